"""The guard against spikes: a step whose gradient is far above the usual is not taken.

What is usual is a running mean of the global gradient norms of the steps that were taken. It is
part of the train state, so a resumed run skips the same steps.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

GUARD_DECAY = 0.99
"""Decay of the running mean: it remembers about the last hundred steps that were taken."""

GUARD_STEPS = 100
"""Steps that are always taken first: early norms fall fast, and their mean says little."""


class Guard(NamedTuple):
    """The statistic of the guard.

    Attributes:
        average: float32[], the moving average of the norms of the steps taken. It starts at 0, a
            bias that `usual_norm` takes out.
        taken: int32[], how many norms are in it.
        skipped: int32[], how many steps were not taken.
    """

    average: jax.Array
    taken: jax.Array
    skipped: jax.Array


def new_guard() -> Guard:
    """Returns the statistic before the first step.

    Examples:
        >>> int(new_guard().taken)
        0
    """
    return Guard(jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))


def usual_norm(guard: Guard) -> jax.Array:
    """Returns float32[], the mean norm of the steps taken, without the bias of its start.

    Args:
        guard: with at least one step taken; before, the mean is 0.

    Examples:
        >>> guard, _ = watched(new_guard(), jnp.float32(3.0), above=2.0)
        >>> round(float(usual_norm(guard)), 3)
        3.0
    """
    weight = 1 - GUARD_DECAY ** guard.taken.astype(jnp.float32)
    return guard.average / jnp.where(guard.taken > 0, weight, 1.0)


def watched(guard: Guard, norm: jax.Array, above: float) -> tuple[Guard, jax.Array]:
    """Judges a step by the norm of its gradient.

    Args:
        guard: the statistic before the step.
        norm: float32[], the global norm of the step's gradient, before clipping.
        above: a finite `norm` above this many times `usual_norm` is a spike. One that is not finite
            is not: it must stop the run and not be passed over.

    Returns:
        The statistic after the step, and bool[]: whether to skip it. A skipped norm does not enter
        the mean.

    Examples:
        >>> steady = Guard(jnp.float32(1.0), jnp.int32(10_000), jnp.int32(0))
        >>> guard, skip = watched(steady, jnp.float32(5.0), above=4.0)
        >>> bool(skip), int(guard.skipped), float(guard.average)
        (True, 1, 1.0)
        >>> bool(watched(steady, jnp.float32(3.0), above=4.0)[1])
        False
    """
    spike = (guard.taken >= GUARD_STEPS) & (norm > above * usual_norm(guard))
    skip = spike & jnp.isfinite(norm)
    average = GUARD_DECAY * guard.average + (1 - GUARD_DECAY) * norm
    after = Guard(
        average=jnp.where(skip, guard.average, average),
        taken=guard.taken + (~skip).astype(jnp.int32),
        skipped=guard.skipped + skip.astype(jnp.int32),
    )
    return after, skip
