"""Categorical draws that resolve tails, without V random numbers per position.

`jax.random.categorical` adds float32 Gumbel noise made from a 23-bit uniform. That noise stops at
about 16, so improbable outcomes lose: the same float32 artefact that lowers the entropy of samples
throughout the literature. Two measures keep draws honest here. Decisions of very unequal
probability ("does this token change at all?") are taken first, by a uniform of their own; and the
draw over the vocabulary is split in two stages, a block of ids and then an id inside the block,
each with high-resolution noise. By the chain rule the two-stage law is the softmax itself, and it
costs about 2 sqrt(V) random numbers instead of V, which is most of the time of a draw.

With the positions as leading axis, the draws of a longer canvas begin with those of a shorter one
(under JAX's default generator): what lies behind a row's end does not change the row.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mdm_jax.arrays import Key, Logits, Tokens, last_axis_index

# Below this many ids, one stage is as fast.
_ONE_STAGE_IDS = 64
# Names the stream of low-order bits of a key: no index of an array, and no step.
_LOW_BITS = 0x6C6F77


def categorical(key: Key, logits: Logits) -> Tokens:
    """Draws ids from softmax(logits) over the last axis, with exact tails.

    Args:
        key: a PRNG key.
        logits: float[*B, V], unnormalized; -inf is never drawn. Cast to float32 first, since
            bfloat16 noise has no tail at all.

    Returns:
        int32[*B]; -1, which no vocabulary has, for a row that allows no id (all -inf) or holds NaN.

    Examples:
        >>> logits = jnp.log(jnp.array([0.0, 0.25, 0.75]))
        >>> draws = categorical(jax.random.key(0), jnp.tile(logits, (4096, 1)))
        >>> round(float(jnp.mean(draws == 2)), 2), int(jnp.sum(draws == 0))
        (0.75, 0)
    """
    return choose(categorical_noise(key, logits.shape), logits)


class Noise(NamedTuple):
    """Gumbel noise of a draw over V ids: of blocks of ids, and of the ids of a block.

    Attributes:
        blocks: float32[*B, ~sqrt(V)]; None where V is so small that one stage is as fast.
        ids: float32[*B, ~sqrt(V)]; float32[*B, V] where there are no blocks.
    """

    blocks: jax.Array | None
    ids: jax.Array


def categorical_noise(key: Key, shape: tuple[int, ...]) -> Noise:
    """Draws all that is random in `categorical`, for logits of a shape.

    Args:
        key: a PRNG key.
        shape: of the logits, (*B, V).

    Returns:
        `Noise`, of which any part may be given to `choose` with the logits of that part.

    Examples:
        >>> [x.shape for x in categorical_noise(jax.random.key(0), (2, 3, 10_000))]
        [(2, 3, 100), (2, 3, 100)]
    """
    *lead, size = shape
    if size <= _ONE_STAGE_IDS:
        return Noise(None, _gumbel(key, (*lead, size)))
    width, blocks = _table(size)
    key_block, key_id = jax.random.split(key)
    return Noise(_gumbel(key_block, (*lead, blocks)), _gumbel(key_id, (*lead, width)))


def choose(noise: Noise, logits: Logits) -> Tokens:
    """Returns the ids that `noise` draws from softmax(logits), int32[*B]; -1 as in `categorical`.

    Args:
        noise: of `categorical_noise`, for the shape of the logits.
        logits: float[*B, V].

    Examples:
        >>> logits = jnp.log(jnp.array([[0.5, 0.5], [1.0, 0.0]]))
        >>> noise = categorical_noise(jax.random.key(0), logits.shape)
        >>> bool((choose(noise, logits) == categorical(jax.random.key(0), logits)).all())
        True
    """
    logits = logits.astype(jnp.float32)
    size = logits.shape[-1]
    possible = jnp.max(logits, axis=-1) > -jnp.inf  # false for NaN too
    if noise.blocks is None:
        return jnp.where(possible, _first(logits, noise.ids), -1)
    width, blocks = _table(size)
    padding = [(0, 0)] * (logits.ndim - 1) + [(0, blocks * width - size)]
    table = jnp.pad(logits, padding, constant_values=-jnp.inf)
    table = table.reshape(*logits.shape[:-1], blocks, width)
    block = _first(jax.nn.logsumexp(table, axis=-1), noise.blocks)
    # Selecting by comparison instead of a gather: one fused pass, and it partitions on any mesh.
    chosen = last_axis_index(blocks, logits.ndim) == block[..., None]
    row = jnp.max(jnp.where(chosen[..., None], table, -jnp.inf), axis=-2)
    inside = _first(row, noise.ids)
    return jnp.where(possible, block * width + inside, -1)


def uniform(key: Key, shape: tuple[int, ...]) -> jax.Array:
    """Draws uniform numbers on [0, 1) that resolve rare events: ``uniform(...) < p`` for tiny p.

    `jax.random.uniform` lies on a lattice of 2^-23, so an event of probability 1e-8 would never
    happen, or three times too often. Here draws below 2^-11 are drawn anew inside that interval,
    which makes the lattice near zero as fine as 2^-34.

    Args:
        key: a PRNG key.
        shape: of the result.

    Returns:
        float32[*shape].

    Examples:
        >>> uniform(jax.random.key(0), (2, 3)).shape
        (2, 3)
    """
    coarse, fine = _two_words(key, shape)
    return jnp.where(coarse < 2.0**-11, fine * 2.0**-11, coarse)


def _table(size: int) -> tuple[int, int]:
    """Ids in a block and number of blocks, about sqrt(size) each."""
    width = math.isqrt(size - 1) + 1
    return width, -(-size // width)


def _first(logits: Logits, gumbel: jax.Array) -> Tokens:
    """Who wins the race of logits with Gumbel noise, int32[*B]."""
    return jnp.argmax(logits + gumbel, axis=-1).astype(jnp.int32)


def _gumbel(key: Key, shape: tuple[int, ...]) -> jax.Array:
    """Gumbel noise of 46 bits, float32."""
    high, low = _two_words(key, shape)
    tiny = jnp.finfo(jnp.float32).tiny
    # Large noise comes from x near 0, where the low-order bits count.
    x = jnp.where(high >= 0.5, high, high + 2.0**-23 * low + tiny)
    return -jnp.log(-jnp.log1p(-x))


def _two_words(key: Key, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Two uniform numbers per element, each of which depends on its place from the left alone.

    One array of shape (2, *shape) would not do: its second half begins where the first one ends.
    """
    fine = jax.random.fold_in(key, _LOW_BITS)
    return jax.random.uniform(key, shape, jnp.float32), jax.random.uniform(fine, shape, jnp.float32)


@functools.partial(jax.jit, static_argnames="shape")
def normal(key: Key, shape: tuple[int, ...]) -> jax.Array:
    """Draws standard normal numbers whose tails reach 6.3 on either side.

    `jax.random.normal` makes them from 23 bits and stops at 5.2, which the largest of 50,000 of
    them, one for each id, passes at one position in 200. Here each takes 31 bits and a sign.

    Args:
        key: a PRNG key.
        shape: of the result.

    Returns:
        float32[*shape].

    Examples:
        >>> x = normal(jax.random.key(0), (10_000,))
        >>> abs(float(x.mean())) < 0.03, abs(float(x.std()) - 1) < 0.02
        (True, True)
    """
    bits = jax.random.bits(key, shape, jnp.uint32)
    # The probability beyond |x|, in (0, 1/2]: small ones keep all their digits.
    beyond = ((bits >> 1).astype(jnp.int32).astype(jnp.float32) + 0.5) * 2.0**-32
    x = jax.scipy.special.ndtri(beyond)
    return jnp.where((bits & 1) == 1, x, -x)


def exponential(key: Key, shape: tuple[int, ...]) -> jax.Array:
    """Draws standard exponential numbers, never 0, and resolved near 0 down to 1e-10.

    Args:
        key: a PRNG key.
        shape: of the result.

    Returns:
        float32[*shape], between 2^-35 and 17.

    Examples:
        >>> bool((exponential(jax.random.key(0), (1000,)) > 0).all())
        True
    """
    u = uniform(key, shape)
    return -jnp.log1p(-jnp.clip(u, 2.0**-35, 1 - 2.0**-24))
