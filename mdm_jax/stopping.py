"""Stop conditions: ``tokens -> bool[*B]``, true for rows that need no further step.

`generate` freezes finished rows and ends when all are done. Any function of this shape works.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mdm_jax.arrays import Bool, Tokens
from mdm_jax.processes import Masked

Stop = Callable[[Tokens], jax.Array]


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


def eos_decided(process: Masked, eos_id: int) -> Stop:
    """A row is done once it holds `eos_id` and no mask before it; the rest is padding.

    Args:
        process: a masked process.
        eos_id: the id that ends a text.

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
        ended = jnp.cumsum(tokens == eos_id, axis=-1) > 0
        return ~jnp.any(process.is_masked(tokens) & ~ended, axis=-1)

    return stop


def any_of(*stops: Stop) -> Stop:
    """A row is done as soon as one of `stops` says so.

    Args:
        *stops: stop conditions, at least one.

    Returns:
        ``int32[*B, L] -> bool[*B]``.

    Raises:
        ValueError: if none is given.

    Examples:
        >>> any_of(lambda x: x[..., 0] == 1, lambda x: x[..., 1] == 1)(jnp.array([[0, 1]])).tolist()
        [True]
    """
    if not stops:
        raise ValueError("any_of() needs at least one stop condition")

    def stop(tokens: Tokens) -> jax.Array:
        done = stops[0](tokens)
        for other in stops[1:]:
            done = done | other(tokens)
        return done

    return stop


def _check_masked(name: str, process: Masked) -> None:
    if not isinstance(process, Masked):
        raise TypeError(f"{name} needs a Masked process, not {process!r}")
