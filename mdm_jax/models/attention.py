"""Attention, as XLA computes it: on any device and mesh, for every mask.

Models take a function of its signature as an attribute, so that kernels of one kind of device can
take its place: `mdm_jax.models.splash` on TPUs, `mdm_jax.models.cudnn` on GPUs.
"""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from mdm_jax.masks import Mask

# (q [B, Q, H, head_dim], k [B, K, G, head_dim], v [B, K, G, head_dim], mask) -> [B, Q, H, head_dim]
Attention: TypeAlias = Callable[[jax.Array, jax.Array, jax.Array, Mask], jax.Array]

SAVED = "attention"
"""Name of what a kernel's gradient needs of its result, for rematerialization policies."""


def attention(q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask) -> jax.Array:
    """Returns softmax(q k^T / sqrt(head_dim)) v, with scores and softmax in float32.

    Written out rather than `jax.nn.dot_product_attention`, which under strict dtype promotion
    does not run in bfloat16 (jax 0.10.2).

    Args:
        q: [B, Q, H, head_dim] queries, in the compute dtype.
        k: [B, K, G, head_dim] keys; G divides H, and consecutive query heads share a key head.
        v: [B, K, G, head_dim] values.
        mask: Which keys a query may attend to. Every query must be allowed one.

    Returns:
        [B, Q, H, head_dim], in the dtype of `v`.

    Raises:
        ValueError: If the heads of queries are not a multiple of those of keys, or the mask does
            not fit the lengths.

    Examples:
        >>> from mdm_jax.masks import Bidirectional, Causal
        >>> q = k = jnp.zeros((1, 2, 1, 1))
        >>> v = jnp.array([1.0, 3.0]).reshape(1, 2, 1, 1)
        >>> attention(q, k, v, Bidirectional()).ravel(), attention(q, k, v, Causal()).ravel()
        (Array([2., 2.], dtype=float32), Array([1., 2.], dtype=float32))
    """
    heads, groups = q.shape[2], k.shape[2]
    if heads % groups:
        raise ValueError(f"{heads} query heads are not a multiple of {groups} key heads.")
    if groups != heads:
        k, v = (jnp.repeat(x, heads // groups, axis=2) for x in (k, v))
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32)
    allowed = mask.allowed(q.shape[1], k.shape[1])
    if allowed is not None:
        scores = jnp.where(allowed[:, None], scores, -jnp.inf)
    scale = q.shape[-1] ** -0.5
    if v.dtype != jnp.float32:
        # Normalized in float32, before they are rounded: only then do the gradients of a query's
        # scores add up to zero.
        weights = jax.nn.softmax(scores * scale, axis=-1).astype(v.dtype)
        return checkpoint_name(jnp.einsum("bhqk,bkhd->bqhd", weights, v), SAVED)
    # The same, divided last: head_dim numbers of a query in place of one for each of its keys. The
    # largest score cancels, so that its gradient is left out.
    largest = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    weights = jnp.exp((scores - largest) * scale)
    total = jnp.swapaxes(jnp.sum(weights, axis=-1), 1, 2)[..., None]
    out = jnp.einsum("bhqk,bkhd->bqhd", weights, v) / total
    return checkpoint_name(out, SAVED)
