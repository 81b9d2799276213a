"""Drawing training times, and the time grids that samplers walk down."""

import math
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from mdm_jax.arrays import Key, Times


def sample_times(
    key: Key,
    batch_shape: Sequence[int],
    *,
    stratified: bool = True,
    low: float = 0.0,
    high: float = 1.0,
) -> Times:
    """Draws diffusion times, uniform on [low, high).

    Stratified draws put exactly one time in each of n equal intervals, t_i = (i + u_i) / n with
    u_i uniform (the references' "antithetic" sampling): every marginal stays uniform over the
    batch and the variance of the loss falls. Strata are numbered over all of `batch_shape`, so
    under `jax.jit` they span the global batch; under `shard_map` or `pmap` they span one shard
    unless the caller draws the global times and slices them.

    Args:
        key: a PRNG key.
        batch_shape: shape of the result, such as ``(B,)`` for one time per sequence.
        stratified: whether to stratify.
        low: smallest time.
        high: largest time (excluded).

    Returns:
        float32[*batch_shape].

    Raises:
        ValueError: unless 0 <= low < high <= 1.

    Examples:
        >>> t = sample_times(jax.random.key(0), (4,))
        >>> [int(x) for x in jnp.floor(4 * t)]
        [0, 1, 2, 3]
    """
    if not 0.0 <= low < high <= 1.0:
        raise ValueError(f"low={low}, high={high}: expected 0 <= low < high <= 1")
    shape = tuple(batch_shape)
    count = math.prod(shape)
    u = jax.random.uniform(key, (count,), jnp.float32)
    if stratified:
        u = in_stratum(jnp.arange(count, dtype=jnp.int32), u, max(count, 1))
    # Scaling may round up to `high` itself: keep the interval half-open.
    largest = np.nextafter(np.float32(high), np.float32(0))
    return jnp.minimum(low + (high - low) * u, largest).reshape(shape)


def in_stratum(index: jax.Array, u: jax.Array, count: int) -> jax.Array:
    """Moves `u` from [0, 1) into the stratum [index / count, (index + 1) / count), below 1.

    Args:
        index: int32, the stratum, 0 to count - 1; broadcasts against `u`.
        u: float32 in [0, 1).
        count: number of strata.

    Returns:
        float32 in [0, 1). (In float32 the last stratum would otherwise round up to 1.)

    Examples:
        >>> in_stratum(jnp.int32(3), jnp.float32(0.5), 4).item()
        0.875
    """
    return jnp.minimum((index.astype(jnp.float32) + u) / count, 1.0 - 2.0**-24)


def time_grid(steps: int, *, spacing: Literal["uniform", "cosine"] = "uniform") -> jax.Array:
    """Returns the decreasing grid 1 = t_0 > t_1 > ... > t_steps = 0 a sampler walks down.

    Args:
        steps: number of reverse steps, at least 1.
        spacing: "uniform", or "cosine" for t_i = cos(pi i / (2 steps)), which takes small steps
            while little is known (MD4, section 4).

    Returns:
        float32[steps + 1].

    Raises:
        ValueError: if `steps` < 1 or `spacing` is unknown.

    Examples:
        >>> time_grid(4).tolist()
        [1.0, 0.75, 0.5, 0.25, 0.0]
    """
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps={steps}: expected an integer, at least one step")
    index = jnp.arange(steps + 1, dtype=jnp.float32)
    if spacing == "uniform":
        return (steps - index) / steps
    if spacing == "cosine":
        grid = jnp.cos(index * (0.5 * math.pi / steps))
        return grid.at[-1].set(0.0)  # cos(pi / 2) is -4e-8 in float32
    raise ValueError(f"spacing={spacing!r}: expected 'uniform' or 'cosine'")
