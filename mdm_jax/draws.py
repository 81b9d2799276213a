"""Categorical draws that resolve tails, without V random numbers per position.

`jax.random.categorical` adds float32 Gumbel noise made from a 23-bit uniform. That noise stops at
about 16, so improbable outcomes lose: the same float32 artefact that lowers the entropy of samples
throughout the literature. Two measures keep draws honest here. Decisions of very unequal
probability ("does this token change at all?") are taken first, by a uniform of their own; and the
draw over the vocabulary is split in two stages, a block of ids and then an id inside the block,
each with high-resolution noise. By the chain rule the two-stage law is the softmax itself, and it
costs about 2 sqrt(V) random numbers instead of V, which is most of the time of a draw.
"""

import math

import jax
import jax.numpy as jnp

from mdm_jax.arrays import Key, Logits, Tokens, last_axis_index

# Below this many ids, one stage is as fast.
_ONE_STAGE_IDS = 64


def categorical(key: Key, logits: Logits) -> Tokens:
    """Draws ids from softmax(logits) over the last axis, with exact tails.

    Args:
        key: a PRNG key.
        logits: float[*B, V], unnormalized; -inf is never drawn. Cast to float32 first, since
            bfloat16 noise has no tail at all.

    Returns:
        int32[*B].

    Examples:
        >>> logits = jnp.log(jnp.array([0.0, 0.25, 0.75]))
        >>> draws = categorical(jax.random.key(0), jnp.tile(logits, (4096, 1)))
        >>> round(float(jnp.mean(draws == 2)), 2), int(jnp.sum(draws == 0))
        (0.75, 0)
    """
    logits = logits.astype(jnp.float32)
    size = logits.shape[-1]
    if size <= _ONE_STAGE_IDS:
        return jax.random.categorical(key, logits, mode="high").astype(jnp.int32)
    width = math.isqrt(size - 1) + 1
    blocks = -(-size // width)
    padding = [(0, 0)] * (logits.ndim - 1) + [(0, blocks * width - size)]
    table = jnp.pad(logits, padding, constant_values=-jnp.inf)
    table = table.reshape(*logits.shape[:-1], blocks, width)
    key_block, key_id = jax.random.split(key)
    block_logits = jax.nn.logsumexp(table, axis=-1)
    block = jax.random.categorical(key_block, block_logits, mode="high").astype(jnp.int32)
    # Selecting by comparison instead of a gather: one fused pass, and it partitions on any mesh.
    chosen = last_axis_index(blocks, logits.ndim) == block[..., None]
    row = jnp.max(jnp.where(chosen[..., None], table, -jnp.inf), axis=-2)
    inside = jax.random.categorical(key_id, row, mode="high").astype(jnp.int32)
    return block * width + inside
