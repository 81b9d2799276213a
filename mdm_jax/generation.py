"""The loops that alternate denoiser and sampler: `generate` for tokens, `trajectory` to watch."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from mdm_jax.arrays import Bool, Key, Logits, Times, Tokens
from mdm_jax.denoisers import Carry, Denoiser
from mdm_jax.processes.base import check_tokens
from mdm_jax.samplers.base import Sampler
from mdm_jax.stopping import Stop


class Generation(NamedTuple):
    """What `generate` returns.

    Attributes:
        tokens: int32[*B, L].
        calls: int32[], model evaluations spent; each evaluates the whole batch.
        carry: the denoiser's carry, with `tokens` committed.
    """

    tokens: Tokens
    calls: jax.Array
    carry: Carry


def generate(
    key: Key,
    denoiser: Denoiser,
    sampler: Sampler,
    tokens: Tokens,
    times: Times,
    *,
    keep: Bool | None = None,
    stop: Stop | None = None,
) -> Generation:
    """Denoises `tokens` along `times` in a `lax.while_loop`.

    Step i uses the key ``fold_in(key, i)``, so results do not depend on early stopping. Prompts
    and infilling are both `keep`: positions that never change.

    Args:
        key: a PRNG key.
        denoiser: the model, lifted by `denoiser` and wrapped at will.
        sampler: how to draw.
        tokens: int32[*B, L], the canvas: noise from `process.prior`, and given tokens at `keep`.
        times: float32[T + 1], decreasing, or float32[T + 1, *B] with a clock per row. A walk that
            ends above 0 leaves noise: masks, for a masked process.
        keep: bool[*B, L], positions that must not change; none by default.
        stop: ``tokens -> bool[*B]``; finished rows freeze, and the loop ends when all are done.

    Returns:
        `Generation`.

    Raises:
        TypeError: if `tokens` are not integers.
        ValueError: if there is no step to take, shapes do not fit, or (where values are known)
            times increase or leave [0, 1].

    Examples:
        >>> import mdm_jax as mdm
        >>> process = mdm.Masked(vocab_size=5, schedule=mdm.Linear())
        >>> model = mdm.denoiser(lambda tokens, t: jnp.zeros((*tokens.shape, 5)))
        >>> prompt = jnp.array([[3, 5, 5, 1]])
        >>> out = generate(jax.random.key(0), model, mdm.ancestral(process), prompt,
        ...                mdm.time_grid(4), keep=prompt != 5)
        >>> out.tokens[0, 0].item(), out.tokens[0, 3].item(), int(out.calls)
        (3, 1, 4)
    """
    times, keep = _check_inputs(tokens, times, keep)
    take_step = _stepper(denoiser, sampler, times, keep)
    steps = times.shape[0] - 1
    finished = stop if stop is not None else _never

    def unfinished(loop):
        i, _, _, _, done = loop
        return (i < steps) & ~jnp.all(done)

    def body(loop):
        i, tokens, state, carry, done = loop
        new_tokens, state, carry, _ = take_step(jax.random.fold_in(key, i), i, tokens, state, carry)
        tokens = jnp.where(done[..., None], tokens, new_tokens)
        return i + 1, tokens, state, carry, finished(tokens)

    start = (jnp.int32(0), tokens, sampler.init(tokens), denoiser.init(tokens), finished(tokens))
    i, tokens, _, carry, _ = jax.lax.while_loop(unfinished, body, start)
    return Generation(tokens, i * denoiser.calls, denoiser.commit(tokens, carry))


def trajectory(
    key: Key,
    denoiser: Denoiser,
    sampler: Sampler,
    tokens: Tokens,
    times: Times,
    *,
    keep: Bool | None = None,
    select: Callable[[Tokens, Tokens, Logits], Any] = lambda before, after, logits: after,
) -> Any:
    """Runs the same steps as `generate` in a `lax.scan` and stacks what `select` picks from each.

    With equal arguments, and no `stop`, the last tokens equal those of `generate`. Nothing of
    size V is kept unless `select` keeps it.

    Args:
        key: a PRNG key.
        denoiser: the model.
        sampler: how to draw.
        tokens: int32[*B, L], the canvas.
        times: float32[T + 1] or float32[T + 1, *B].
        keep: bool[*B, L], positions that must not change.
        select: ``(before, after, logits) -> pytree``; by default the tokens after the step.

    Returns:
        The selected pytree with a leading axis T: int32[T, *B, L] by default.

    Raises:
        TypeError: if `tokens` are not integers.
        ValueError: as in `generate`.

    Examples:
        >>> import mdm_jax as mdm
        >>> process = mdm.Masked(vocab_size=5, schedule=mdm.Linear())
        >>> model = mdm.denoiser(lambda tokens, t: jnp.zeros((*tokens.shape, 5)))
        >>> masks_left = trajectory(
        ...     jax.random.key(0), model, mdm.first_hitting(process), jnp.full((1, 3), 5),
        ...     mdm.time_grid(3), select=lambda before, after, logits: (after == 5).sum())
        >>> masks_left.tolist()
        [2, 1, 0]
    """
    times, keep = _check_inputs(tokens, times, keep)
    take_step = _stepper(denoiser, sampler, times, keep)

    def body(loop, i):
        tokens, state, carry = loop
        after, state, carry, logits = take_step(jax.random.fold_in(key, i), i, tokens, state, carry)
        return (after, state, carry), select(tokens, after, logits)

    start = (tokens, sampler.init(tokens), denoiser.init(tokens))
    _, stacked = jax.lax.scan(body, start, jnp.arange(times.shape[0] - 1, dtype=jnp.int32))
    return stacked


def _stepper(denoiser: Denoiser, sampler: Sampler, times: Times, keep: Bool | None):
    """One reverse step: evaluate the model, draw, and put back what must not change."""

    def take_step(key, i, tokens, state, carry):
        t, s = times[i], times[i + 1]
        logits, carry = denoiser.apply(tokens, t, carry)
        after, state = sampler.step(key, logits, tokens, state, t, s, keep=keep)
        if keep is not None:
            after = jnp.where(keep, tokens, after)
        return after, state, carry, logits

    return take_step


def _never(tokens: Tokens) -> jax.Array:
    # Derived from the tokens, so that the loop carry has their varying axes under shard_map.
    return jnp.zeros_like(tokens[..., 0], dtype=jnp.bool_)


def _check_inputs(tokens: Tokens, times: Times, keep: Bool | None):
    check_tokens(tokens)
    times = jnp.asarray(times, jnp.float32)
    if times.ndim == 0 or times.shape[0] < 2:
        raise ValueError(
            f"times has shape {times.shape}: expected [T + 1] with T at least 1, such as "
            "time_grid(steps)"
        )
    if times.ndim > 1 and times.shape[1:] != tokens.shape[:-1]:
        raise ValueError(
            f"times has shape {times.shape}: expected [T + 1] or [T + 1, *B] with *B = "
            f"{tokens.shape[:-1]}"
        )
    if not isinstance(times, Tracer):
        grid = np.asarray(times)
        # Written so that NaN fails.
        if not ((np.diff(grid, axis=0) <= 0).all() and grid.max() <= 1 and grid.min() >= 0):
            raise ValueError(f"times={grid}: expected times in [0, 1] that never increase")
    if keep is not None:
        keep = jnp.asarray(keep)
        if keep.shape != tokens.shape or keep.dtype != jnp.bool_:
            raise ValueError(
                f"keep is {keep.dtype}{list(keep.shape)}: expected bool{list(tokens.shape)}"
            )
    return times, keep
