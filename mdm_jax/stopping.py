"""Stop conditions: which rows need no further step.

`generate` freezes finished rows and ends when all are done. A stop is any function
``tokens -> bool[*B]``, or a `StatefulStop`, which also remembers and sees the logits.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from mdm_jax.arrays import Bool, Logits, Tokens
from mdm_jax.processes import Masked, Process
from mdm_jax.processes.masked import WithMask
from mdm_jax.reading import over_positions


class StatefulStop(NamedTuple):
    """A stop that remembers.

    Attributes:
        init: ``tokens -> (done bool[*B], state)``, on the canvas; the leaves of `state` have
            leading axes [*B].
        update: ``(state, tokens, logits) -> (done bool[*B], state)``, after a step: its tokens,
            and the logits they were drawn from. Rows that were idle or done are not updated.

    Examples:
        >>> stop = stable(1)
        >>> done, state = stop.init(jnp.array([[3, 3]]))
        >>> done, state = stop.update(state, jnp.array([[3, 3]]), None)
        >>> done.tolist()
        [True]
    """

    init: Callable[[Tokens], tuple[jax.Array, Any]]
    update: Callable[[Any, Tokens, Logits], tuple[jax.Array, Any]]


Stop: TypeAlias = Callable[[Tokens], jax.Array] | StatefulStop


def stateful(stop: Stop | None) -> StatefulStop:
    """Returns any stop as a `StatefulStop`; None never stops.

    Raises:
        TypeError: if `stop` is none.

    Examples:
        >>> stateful(lambda tokens: tokens[..., 0] == 0).init(jnp.array([[0, 1], [2, 3]]))[0]
        Array([ True, False], dtype=bool)
    """
    if isinstance(stop, StatefulStop):
        return stop
    if stop is not None and not callable(stop):
        raise TypeError(f"stop={stop!r}: expected a function of tokens or a StatefulStop")
    check = _no_row if stop is None else stop
    return StatefulStop(
        init=lambda tokens: (check(tokens), ()),
        update=lambda state, tokens, logits: (check(tokens), state),
    )


def all_decided(process: Masked, *, keep: Bool | None = None) -> Stop:
    """A row is done once it holds no mask. Changes no sample, only saves calls.

    Args:
        process: a masked process.
        keep: bool[*B, L], positions that will not change; masks there do not count.

    Returns:
        ``int32[*B, L] -> bool[*B]``.

    Raises:
        TypeError: if `process` is not masked: other processes never decide a token for good.

    Examples:
        >>> import mdm_jax as mdm
        >>> stop = all_decided(mdm.Masked(vocab_size=5, schedule=mdm.Linear()))
        >>> stop(jnp.array([[0, 5], [0, 1]])).tolist()
        [False, True]
    """
    _check_masked("all_decided", process)

    def stop(tokens: Tokens) -> jax.Array:
        open_masks = process.is_masked(tokens)
        return ~jnp.any(open_masks if keep is None else open_masks & ~keep, axis=-1)

    return stop


def eos_decided(process: Masked, eos_id: int, *, keep: Bool | None = None) -> Stop:
    """A row is done once it holds `eos_id` and no mask before it; the rest is padding.

    Args:
        process: a masked process.
        eos_id: the id that ends a text.
        keep: bool[*B, L], positions that will not change; neither masks nor ends there count.

    Returns:
        ``int32[*B, L] -> bool[*B]``. Also true for rows without any mask.

    Raises:
        TypeError: if `process` is not masked.
        ValueError: if `eos_id` is no data id.

    Examples:
        >>> import mdm_jax as mdm
        >>> stop = eos_decided(mdm.Masked(vocab_size=5, schedule=mdm.Linear()), eos_id=0)
        >>> stop(jnp.array([[1, 0, 5], [5, 0, 5], [1, 2, 3]])).tolist()
        [True, False, True]
    """
    _check_masked("eos_decided", process)
    if not 0 <= eos_id < process.vocab_size or eos_id == process.mask_id:
        raise ValueError(f"eos_id={eos_id}: expected a data id of {process}")

    def stop(tokens: Tokens) -> jax.Array:
        ends, open_masks = tokens == eos_id, process.is_masked(tokens)
        if keep is not None:
            ends, open_masks = ends & ~keep, open_masks & ~keep
        return ~jnp.any(open_masks & (jnp.cumsum(ends, axis=-1) == 0), axis=-1)

    return stop


def stable(steps: int) -> StatefulStop:
    """A row is done once `steps` steps in a row have not changed it. A heuristic: it may yet.

    It is meant for processes whose tokens may change again and again. In steps in which a row is
    idle nothing was tried, and they do not count; but a masked row may also stay as it is by
    chance and be left with masks: take ``all_of(stable(k), all_decided(process))`` there.

    Args:
        steps: number of steps without a change, at least 1.

    Returns:
        `StatefulStop`.

    Raises:
        ValueError: if `steps` < 1.

    Examples:
        >>> import mdm_jax as mdm
        >>> process = mdm.Uniform(vocab_size=5, schedule=mdm.LogLinear())
        >>> model = mdm.denoiser(lambda tokens, t: 99.0 * jax.nn.one_hot(tokens, 5))
        >>> canvas, grid = jnp.array([[1, 2]]), mdm.time_grid(64)
        >>> mdm.generate(jax.random.key(0), model, mdm.ancestral(process), canvas, grid,
        ...              stop=stable(3)).calls.item() < 64
        True
    """
    if steps < 1:
        raise ValueError(f"steps={steps}: expected at least 1")

    def init(tokens: Tokens):
        unchanged = jnp.zeros_like(tokens[..., 0], dtype=jnp.int32)
        return unchanged >= steps, (tokens, unchanged)

    def update(state, tokens: Tokens, logits: Logits):
        del logits
        before, unchanged = state
        same = jnp.all(tokens == before, axis=-1)
        unchanged = jnp.where(same, unchanged + 1, 0)
        return unchanged >= steps, (tokens, unchanged)

    return StatefulStop(init, update)


def low_entropy(process: Process, nats: float, *, keep: Bool | None = None) -> StatefulStop:
    """A row is done once the model's mean entropy over its open positions is at most `nats`.

    DiffusionGemma ends a canvas by ``all_of(stable(1), low_entropy(process, 0.005))``. A heuristic.

    Args:
        process: a process without a mask, such as `Uniform`.
        nats: the threshold, at least 0.
        keep: bool[*B, L], positions that will not change; the mean leaves them out.

    Returns:
        `StatefulStop`.

    Raises:
        TypeError: if the process has a mask, with which the row might be left.
        ValueError: if `nats` is negative.

    Examples:
        >>> import mdm_jax as mdm
        >>> stop = low_entropy(mdm.Uniform(vocab_size=4, schedule=mdm.Linear()), 0.005)
        >>> tokens = jnp.zeros((2, 3), jnp.int32)
        >>> logits = jnp.stack([jnp.zeros((3, 4)), 99.0 * jnp.eye(3, 4)])
        >>> stop.update((), tokens, logits)[0].tolist()
        [False, True]
    """
    if isinstance(process, WithMask):
        raise TypeError(
            f"low_entropy would leave masks of {process!r} in the row: use all_decided, and a "
            "sampler that fills positions of low entropy"
        )
    if not nats >= 0:
        raise ValueError(f"nats={nats}: expected an entropy, at least 0")

    def update(state, tokens: Tokens, logits: Logits):
        def read(logits):
            log_p = jax.nn.log_softmax(process.data_logits(logits), axis=-1)
            return -jnp.sum(jnp.where(log_p > -jnp.inf, jnp.exp(log_p) * log_p, 0.0), axis=-1)

        entropy = over_positions(read, logits)
        still_open = jnp.ones_like(tokens, dtype=jnp.bool_) if keep is None else ~keep
        count = jnp.sum(still_open, axis=-1)
        total = jnp.sum(jnp.where(still_open, entropy, 0.0), axis=-1)
        return total <= nats * count.astype(jnp.float32), state

    return StatefulStop(lambda tokens: (_no_row(tokens), ()), update)


def any_of(*stops: Stop) -> Stop:
    """A row is done as soon as one of `stops` says so.

    Args:
        *stops: stop conditions, at least one.

    Returns:
        A stop; a plain function if all of `stops` are.

    Raises:
        ValueError: if none is given.

    Examples:
        >>> any_of(lambda x: x[..., 0] == 1, lambda x: x[..., 1] == 1)(jnp.array([[0, 1]])).tolist()
        [True]
    """
    return _combined("any_of", jnp.logical_or, stops)


def all_of(*stops: Stop) -> Stop:
    """A row is done once all of `stops` say so after the same step.

    Args:
        *stops: stop conditions, at least one.

    Returns:
        A stop; a plain function if all of `stops` are.

    Raises:
        ValueError: if none is given.

    Examples:
        >>> all_of(lambda x: x[..., 0] == 1, lambda x: x[..., 1] == 1)(jnp.array([[0, 1]])).tolist()
        [False]
    """
    return _combined("all_of", jnp.logical_and, stops)


def _combined(name: str, both: Callable[..., jax.Array], stops: tuple[Stop, ...]) -> Stop:
    if not stops:
        raise ValueError(f"{name}() needs at least one stop condition")
    members = [stateful(stop) for stop in stops]

    def merged(pairs):
        done, states = zip(*pairs, strict=True)
        return functools.reduce(both, done), tuple(states)

    combined = StatefulStop(
        init=lambda tokens: merged([member.init(tokens) for member in members]),
        update=lambda states, tokens, logits: merged(
            [m.update(state, tokens, logits) for m, state in zip(members, states, strict=True)]
        ),
    )
    if any(isinstance(stop, StatefulStop) for stop in stops):
        return combined
    return lambda tokens: combined.init(tokens)[0]


def _no_row(tokens: Tokens) -> jax.Array:
    # Derived from the tokens, so that the loop carry has their varying axes under shard_map.
    return jnp.zeros_like(tokens[..., 0], dtype=jnp.bool_)


def _check_masked(name: str, process: Masked) -> None:
    if not isinstance(process, Masked):
        raise TypeError(f"{name} needs a Masked process, not {process!r}")
