"""Attention: the one place that decides how it is computed."""

import jax
import jax.numpy as jnp


def attention(q: jax.Array, k: jax.Array, v: jax.Array, *, causal: bool) -> jax.Array:
    """Returns softmax(q k^T / sqrt(head_dim)) v, with scores and softmax in float32.

    Written out rather than `jax.nn.dot_product_attention`, which under strict dtype promotion
    does not run in bfloat16 (jax 0.10.2).

    Args:
        q: [B, L, H, head_dim] queries, in the compute dtype.
        k: [B, L, H, head_dim] keys.
        v: [B, L, H, head_dim] values.
        causal: Let position i attend to positions <= i only.

    Returns:
        [B, L, H, head_dim], in the dtype of `v`.

    Examples:
        >>> q = k = jnp.zeros((1, 2, 1, 1))
        >>> v = jnp.array([1.0, 3.0]).reshape(1, 2, 1, 1)
        >>> attention(q, k, v, causal=False).ravel(), attention(q, k, v, causal=True).ravel()
        (Array([2., 2.], dtype=float32), Array([1., 2.], dtype=float32))
    """
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32)
    scores *= q.shape[-1] ** -0.5
    if causal:
        length = q.shape[1]
        seen = jnp.tril(jnp.ones((length, length), bool))
        scores = jnp.where(seen[None, None], scores, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v)
