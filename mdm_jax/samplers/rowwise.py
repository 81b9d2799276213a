"""Rows that do not know of each other: draws from the request and the row alone."""

import jax
import jax.numpy as jnp

from mdm_jax.arrays import Key, Tokens
from mdm_jax.processes import Process
from mdm_jax.processes.base import check_tokens
from mdm_jax.reading import Derived, Hidden
from mdm_jax.samplers.base import Sampler


def rowwise(sampler: Sampler, requests: jax.Array) -> Sampler:
    """Draws every row from ``fold_in(key, requests[row])`` and the row alone.

    The tokens of a request are then the same whatever the batch holds beside it and in which order,
    on however many devices; and, as all draws begin at the first position, on a canvas with padding
    at its end, which must be `keep`. It takes that much of the rest as well: a model whose logits
    for a row depend on that row alone and that masks the padding (see `mdm_jax.serving`), the same
    times, and a start from `rowwise_prior`. Up to the floating-point sums of the model: a matrix
    product over another batch may round differently, and a draw may once in a great while fall on
    the other side.

    The inner step runs under `jax.vmap`, which turns branches that depend on the row into
    selections: their work is then done in every step. Two rows with the same request draw with
    the same random numbers. Holds for JAX's default generator, not for "rbg".

    Exactness: of the inner sampler, for each row.

    Args:
        sampler: the sampler to wrap; its state becomes one per row.
        requests: int32 or uint32[*B], what identifies each row; distinct.

    Returns:
        `Sampler` for tokens int32[*B, L].

    Raises:
        TypeError: if `requests` are not integers; (when applied) if a model that returns `Hidden`
            is wrapped in edits of its logits.
        ValueError: (when applied) if there is not one for each row.

    Examples:
        >>> import mdm_jax as mdm
        >>> process = mdm.Masked(vocab_size=99, schedule=mdm.Linear())
        >>> model = mdm.denoiser(lambda tokens, t: jnp.zeros((*tokens.shape, 99)))
        >>> def sample(*requests):
        ...     sampler = rowwise(mdm.first_hitting(process), jnp.array(requests))
        ...     canvas = jnp.full((len(requests), 3), process.mask_id)
        ...     return mdm.generate(jax.random.key(0), model, sampler, canvas, mdm.time_grid(3))
        >>> bool((sample(7, 8).tokens[1] == sample(8).tokens[0]).all())
        True
    """
    requests = _check_requests(requests)

    def init(tokens):
        return _by_row(sampler.init, tokens)(tokens)

    def step(key, logits, tokens, state, t, s, *, keep=None):
        if isinstance(logits, Derived):
            raise TypeError(
                "the model returns Hidden in place of logits, and wrappers edit them for the batch "
                "as a whole: for rowwise, let the model return logits, or take the edits off"
            )
        states = logits.states if isinstance(logits, Hidden) else logits

        def one(request, tokens, states, state, keep, t, s):
            row_key = jax.random.fold_in(key, request)
            row = logits._replace(states=states) if isinstance(logits, Hidden) else states
            return sampler.step(row_key, row, tokens, state, t, s, keep=keep)

        rows = (_per_row(requests, tokens), tokens, states, state, keep)
        return _by_row(one, tokens, t, s)(*rows)

    if sampler.idle is None:
        return Sampler(init=init, step=step, revises=sampler.revises)
    inner_idle = sampler.idle

    def idle(key, tokens, state, t, s, *, keep=None):
        def one(request, tokens, state, keep, t, s):
            return inner_idle(jax.random.fold_in(key, request), tokens, state, t, s, keep=keep)

        return _by_row(one, tokens, t, s)(_per_row(requests, tokens), tokens, state, keep)

    return Sampler(init=init, step=step, idle=idle, revises=sampler.revises)


def rowwise_prior(key: Key, process: Process, tokens: Tokens, requests: jax.Array) -> Tokens:
    """Draws pure noise for every row from ``fold_in(key, requests[row])``.

    Args:
        key: a PRNG key.
        process: the process.
        tokens: int32[*B, L], whose shape and sharding the noise takes.
        requests: int32 or uint32[*B].

    Returns:
        int32[*B, L]; that of a longer canvas begins with that of a shorter one.

    Raises:
        TypeError: if `requests` or `tokens` are not integers.
        ValueError: if there is not one request for each row.

    Examples:
        >>> import mdm_jax as mdm
        >>> process = mdm.Uniform(vocab_size=50, schedule=mdm.LogLinear())
        >>> canvas = jnp.zeros((2, 4), jnp.int32)
        >>> both = rowwise_prior(jax.random.key(0), process, canvas, jnp.array([3, 4]))
        >>> one = rowwise_prior(jax.random.key(0), process, canvas[:1, :2], jnp.array([4]))
        >>> bool((both[1, :2] == one[0]).all())
        True
    """
    check_tokens(tokens)
    ids = _per_row(_check_requests(requests), tokens)

    def one(request, row):
        return process.prior(jax.random.fold_in(key, request), row)

    return _by_row(one, tokens)(ids, tokens)


def _check_requests(requests: jax.Array) -> jax.Array:
    requests = jnp.asarray(requests)
    if not jnp.issubdtype(requests.dtype, jnp.integer):
        raise TypeError(f"requests have dtype {requests.dtype}: expected integers, one per row")
    return requests.astype(jnp.uint32)


def _per_row(requests: jax.Array, tokens: Tokens) -> jax.Array:
    """The requests, uint32[*B], placed like the tokens."""
    row = tokens[..., 0]
    if requests.shape != row.shape:
        raise ValueError(
            f"requests have shape {requests.shape}: expected one for each row, {row.shape}"
        )
    return requests + jnp.zeros_like(row, dtype=jnp.uint32)


def _by_row(function, tokens: Tokens, *clocks: jax.Array):
    """Maps a function of one row, and of `clocks` last, over all batch axes of `tokens`.

    Arguments that are None stay None, and a clock that all rows share stays one scalar: what a
    sampler asks of the time alone then remains a branch.
    """
    clocks = tuple(jnp.asarray(clock, jnp.float32) for clock in clocks)

    def over_rows(*rows):
        def one(rows, own):
            clock = iter(own)
            return function(*rows, *(next(clock) if c.ndim else c for c in clocks))

        own = tuple(clock for clock in clocks if clock.ndim)
        for _ in range(tokens.ndim - 1):
            one = jax.vmap(one)
        return one(rows, own)

    return over_rows
