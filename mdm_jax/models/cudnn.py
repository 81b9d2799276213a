"""Attention of cuDNN: fused kernels for NVIDIA GPUs, through `jax.nn.dot_product_attention`.

What a mask means to cuDNN: `Causal` and `Filled` are arguments of the kernel; every other one is an
array of what is hidden, [B or 1, 1, Q, K], that it reads (and that is the only thing of this size).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mdm_jax.masks import Bidirectional, Causal, Filled, Mask

_DTYPES = (jnp.bfloat16, jnp.float16)
_WIDEST = 128  # features of a head that every GPU since Ampere takes


class Hidden(NamedTuple):
    """What a mask hides, as arrays.

    Attributes:
        counts: int32[B], keys in use, or None for all.
        allowed: bool[B or 1, 1, Q, K], True to attend, or None for all.
    """

    counts: jax.Array | None
    allowed: jax.Array | None


def refusal(q: jax.Array, k: jax.Array, mask: Mask) -> str:
    """Returns why cuDNN cannot do a call, or "" if it can.

    Args:
        q: [B, Q, H, head_dim] queries.
        k: [B, K, G, head_dim] keys.
        mask: Any mask.

    Examples:
        >>> x = jnp.zeros((1, 4, 2, 8))
        >>> refusal(x, x, Causal())
        'float32 is none of bfloat16, float16'
        >>> refusal(x.astype(jnp.bfloat16), x.astype(jnp.bfloat16), Causal())
        ''
    """
    features, lengths = q.shape[-1], (q.shape[1], k.shape[1])
    if q.dtype not in _DTYPES:
        return f"{q.dtype} is none of bfloat16, float16"
    if features % 8 or features > _WIDEST:
        return f"heads of {features} features are not a multiple of 8 up to {_WIDEST}"
    plain = isinstance(mask, (Bidirectional, Filled)) or is_causal(q, k, mask)
    if not plain and any(length % 2 for length in lengths):
        return f"lengths {lengths} are not even, as a mask that is an array needs"
    return ""


def cudnn_attention(q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask) -> jax.Array:
    """Returns softmax(q k^T / sqrt(head_dim)) v, as `attention` does, on one NVIDIA GPU.

    Args:
        q: [B, Q, H, head_dim] queries, bfloat16 or float16.
        k: [B, K, G, head_dim] keys; G divides H, and consecutive query heads share a key head.
        v: [B, K, G, head_dim] values.
        mask: Which keys a query may attend to. Every query must be allowed one.

    Returns:
        [B, Q, H, head_dim], in the dtype of `q`.

    Raises:
        ValueError: If cuDNN cannot do it (see `refusal`), or the mask does not fit the lengths.

    Examples:
        >>> x = jnp.zeros((1, 2, 1, 8))
        >>> cudnn_attention(x, x, x, Causal())
        Traceback (most recent call last):
            ...
        ValueError: cuDNN cannot do this attention: float32 is none of bfloat16, float16. ...
    """
    check(q, k, mask)
    return run(q, k, v, prepare(q, k, mask), is_causal(q, k, mask))


def check(q: jax.Array, k: jax.Array, mask: Mask) -> None:
    """Raises ValueError, naming the reason, if cuDNN cannot do a call (see `refusal`)."""
    reason = refusal(q, k, mask)
    if reason:
        raise ValueError(
            f"cuDNN cannot do this attention: {reason}. Use model.attention='auto', which leaves "
            "it to XLA, or 'xla' (or model.dtype='bfloat16')."
        )


def is_causal(q: jax.Array, k: jax.Array, mask: Mask) -> bool:
    """Returns whether a mask is what the kernel itself calls causal.

    Args:
        q: [B, Q, H, head_dim].
        k: [B, K, G, head_dim].
        mask: Any mask.
    """
    return isinstance(mask, Causal) and mask.start is None and q.shape[1] == k.shape[1]


def prepare(q: jax.Array, k: jax.Array, mask: Mask, *, parts: int = 1) -> Hidden:
    """Returns what a mask hides that `run` is not told by ``causal``.

    Args:
        q: [B, Q, H, head_dim].
        k: [B, K, G, head_dim].
        mask: Any mask.
        parts: Devices that share the queries; on a part of them the kernel is not causal.

    Examples:
        >>> x = jnp.zeros((1, 4, 1, 8))
        >>> prepare(x, x, Causal())
        Hidden(counts=None, allowed=None)
        >>> prepare(x, x, Causal(), parts=2).allowed.shape
        (1, 1, 4, 4)
    """
    if isinstance(mask, Filled):
        counts = jnp.asarray(mask.count, jnp.int32)
        return Hidden(jnp.minimum(counts, k.shape[1]), None)
    if is_causal(q, k, mask) and parts == 1:
        return Hidden(None, None)
    allowed = mask.allowed(q.shape[1], k.shape[1])
    return Hidden(None, None if allowed is None else allowed[:, None])


def run(q: jax.Array, k: jax.Array, v: jax.Array, hidden: Hidden, causal: bool) -> jax.Array:
    """Calls the kernel on what `prepare` returned, or on a device's part of it.

    Args:
        q: [B, Q, H, head_dim].
        k: [B, K, G, head_dim].
        v: [B, K, G, head_dim].
        hidden: From `prepare`.
        causal: Hide later keys too; for whole sequences.

    Returns:
        [B, Q, H, head_dim].
    """
    lengths = None if hidden.counts is None else jnp.full_like(hidden.counts, q.shape[1])
    return jax.nn.dot_product_attention(
        q,
        k,
        v,
        mask=hidden.allowed,
        is_causal=causal,
        query_seq_lengths=lengths,
        key_value_seq_lengths=hidden.counts,
        implementation="cudnn",
    )
