"""Splash attention: the Pallas kernel for TPUs, which never holds the scores of a whole sequence.

The kernel is JAX's own (`jax.experimental.pallas.ops.tpu.splash_attention`). Here our masks become
what it takes: a pattern that is the same for all sequences, known when it is compiled, whose empty
blocks are skipped; and segment ids that differ by sequence. Softmax and sums are float32; queries
are scaled before they are multiplied, in their own dtype.
"""

import dataclasses
import functools
import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as patterns
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_mask_info as descriptions,
)

from mdm_jax.masks import Bidirectional, BlockCausal, Causal, Filled, Mask, Segments, TwoStream
from mdm_jax.models.attention import SAVED

_LANES = 128  # the kernel takes lengths that are multiples of this
_BLOCKS = (512, 384, 256, 128)


class Call(NamedTuple):
    """One call of the kernel: what `run` takes, and how it is split.

    Attributes:
        kernel: `SplashAttentionKernel`, whose arrays describe the blocks of the pattern.
        q: [B, Q', H, head_dim], scaled, filled up to whole blocks.
        k: [B, K', G, head_dim].
        v: [B, K', G, head_dim].
        segments: `SegmentIds` of int32[B, Q'] and int32[B, K'], or None.
        parted: whether the kernel's arrays are to be split with the queries; else every part of
            the queries has the whole of them.
    """

    kernel: kernels.SplashAttentionKernel
    q: jax.Array
    k: jax.Array
    v: jax.Array
    segments: kernels.SegmentIds | None
    parted: bool


def refusal(mask: Mask) -> str:
    """Returns why splash attention cannot do a mask, or "" if it can.

    Args:
        mask: Any mask.

    Examples:
        >>> from mdm_jax.masks import PrefixCausal
        >>> refusal(Causal())
        ''
        >>> refusal(PrefixCausal(jnp.array([2])))
        'PrefixCausal differs by sequence, and not by segments'
    """
    if isinstance(mask, (Segments, Filled, Bidirectional, BlockCausal)):
        return ""
    if not isinstance(mask, (Causal, TwoStream)):
        return f"{type(mask).__name__} differs by sequence, and not by segments"
    field = "start" if isinstance(mask, Causal) else "cut"
    if getattr(mask, field) is not None:
        return f"{type(mask).__name__} with `{field}` differs by sequence, and not by segments"
    return ""


def splash_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask, *, interpret: bool = False
) -> jax.Array:
    """Returns softmax(q k^T / sqrt(head_dim)) v, as `attention` does, on one TPU.

    The compiler cannot split the kernel over devices: on a mesh, `mdm_jax.train.backends` calls it
    on each device's part.

    Args:
        q: [B, Q, H, head_dim] queries.
        k: [B, K, G, head_dim] keys; G divides H, and consecutive query heads share a key head.
        v: [B, K, G, head_dim] values.
        mask: Which keys a query may attend to. Every query must be allowed one.
        interpret: Run the kernel as plain JAX, on any device and slowly: for tests.

    Returns:
        [B, Q, H, head_dim], in the dtype of `q`.

    Raises:
        ValueError: If the kernel cannot do the mask (see `refusal`), the mask does not fit the
            lengths, or the heads of queries are not a multiple of those of keys.

    Examples:
        >>> q = k = jnp.zeros((1, 2, 1, 4))
        >>> v = jnp.array([1.0, 3.0]).reshape(1, 2, 1, 1) * jnp.ones((1, 2, 1, 4))
        >>> splash_attention(q, k, v, Causal(), interpret=True)[0, :, 0, 0]
        Array([1., 2.], dtype=float32)
    """
    call = prepare(q, k, v, mask, interpret=interpret)
    return run(call.kernel, call.q, call.k, call.v, call.segments)[:, : q.shape[1]]


def prepare(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: Mask,
    *,
    parts: int = 1,
    interpret: bool = False,
) -> Call:
    """Returns the call of the kernel; what it returns is longer than `q` by what was filled up.

    Args:
        q: [B, Q, H, head_dim].
        k: [B, K, G, head_dim].
        v: [B, K, G, head_dim].
        mask: As in `splash_attention`.
        parts: Devices that share the queries, equally and in order.
        interpret: As in `splash_attention`.

    Raises:
        ValueError: As `splash_attention`.

    Examples:
        >>> x = jnp.zeros((1, 130, 1, 4))
        >>> prepare(x, x, x, Causal(), interpret=True).q.shape
        (1, 256, 1, 4)
    """
    if refusal(mask):
        raise ValueError(
            f"splash attention cannot do this mask: {refusal(mask)}. Use model.attention='auto', "
            "which leaves such masks to XLA, or 'xla'."
        )
    if q.shape[2] % k.shape[2]:
        raise ValueError(f"{q.shape[2]} query heads are not a multiple of {k.shape[2]} key heads.")
    queries, keys = q.shape[1], k.shape[1]
    if isinstance(mask, (Segments, TwoStream)):
        mask.check(queries, keys)
    pattern: Mask = mask
    if isinstance(mask, Segments):
        pattern = Causal() if mask.causal else Bidirectional()
    elif isinstance(mask, Filled):
        pattern = Bidirectional()
    # Segments hide what is filled up: a filled query of theirs sees the filled keys.
    whole = isinstance(mask, (Segments, Filled))
    tile, q_block, kv_block = _tile(pattern, queries, keys, parts, whole)
    q_length, kv_length = tile.size
    segments = _segments(mask, queries, q_length, keys, kv_length)
    parted = parts > 1 and not tile.full()
    if parts > 1 and not parted:  # Each part is the same; jax 0.10.2 cannot split it.
        size = (q_length // parts, kv_length)
        tile = _Tile(pattern, size, *size)
    kernel = _kernel(tile, q_block, kv_block, parts if parted else 1, interpret)
    scale = jnp.asarray(q.shape[-1] ** -0.5, q.dtype)
    q = _filled_up(q * scale, q_length)
    return Call(kernel, q, _filled_up(k, kv_length), _filled_up(v, kv_length), segments, parted)


def run(
    kernel: kernels.SplashAttentionKernel,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segments: kernels.SegmentIds | None,
) -> jax.Array:
    """Calls the kernel on what `prepare` returned, or on a device's part of it.

    What its gradient needs of the result carries the name `SAVED`, for rematerialization policies.

    Returns:
        [B, Q', H, head_dim], in the dtype of `q`.
    """
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
    out: Any = jax.vmap(kernel)(q, k, v, segments)
    return jnp.swapaxes(out, 1, 2)


@dataclasses.dataclass(frozen=True)
class _Tile(patterns.Mask):
    """A mask of ours as the kernel reads it, block by block, filled up to whole blocks.

    Attributes:
        mask: One that is the same for all sequences.
        size: Queries and keys, those filled up among them.
        queries: Real queries. The others see the first key, as a row must not be empty.
        keys: Real keys. Nothing sees the others.
    """

    mask: Mask
    size: tuple[int, int]
    queries: int
    keys: int

    @property
    def shape(self) -> tuple[int, ...]:
        return self.size

    def __getitem__(self, idx) -> np.ndarray:
        q, k = (np.arange(n)[part] for n, part in zip(self.size, idx, strict=True))
        q, k = q[:, None], k[None, :]
        sees = getattr(self.mask, "sees")  # noqa: B009 - `Mask` leaves it to the fixed ones.
        real = sees(q, k, self.queries) & (k < self.keys)
        return np.where(q < self.queries, real, k == 0)

    def full(self) -> bool:
        """Returns whether everything sees everything."""
        return isinstance(self.mask, Bidirectional) and self.size == (self.queries, self.keys)

    def cut(self, q_block: int, kv_block: int) -> bool:
        """Returns whether some block is partly visible."""
        corners = itertools.product(
            range(0, self.size[0], q_block), range(0, self.size[1], kv_block)
        )
        blocks = (self[i : i + q_block, j : j + kv_block] for i, j in corners)
        return any(block.any() and not block.all() for block in blocks)


def _tile(
    pattern: Mask, queries: int, keys: int, parts: int, whole: bool
) -> tuple[_Tile, int, int]:
    """Returns a pattern filled up to whole blocks, and the blocks of queries and of keys."""
    q_block, q_length = _whole(-(-queries // parts))
    kv_block, kv_length = _whole(keys)

    def tile(q_length: int) -> _Tile:
        size = (q_length * parts, kv_length)
        return _Tile(pattern, size, *(size if whole else (queries, keys)))

    first = tile(q_length)
    if parts == 1 or first.full() or first.cut(q_block, kv_block):
        return first, q_block, kv_block
    # jax 0.10.2 cannot split a pattern whose blocks are all or nothing: filled queries cut one.
    return tile(q_length + q_block), q_block, kv_block


@functools.lru_cache(maxsize=64)
def _kernel(
    tile: _Tile, q_block: int, kv_block: int, parts: int, interpret: bool
) -> kernels.SplashAttentionKernel:
    """Returns the kernel of a pattern, as `kernels.make_splash_mha` makes it, but of numpy arrays.

    It would make arrays of the trace that first asks, which are not there for the next.
    """
    sizes = kernels.BlockSizes(
        block_q=q_block,
        block_kv=kv_block,
        block_q_dkv=q_block,
        block_kv_dkv=kv_block,
        block_q_dq=q_block,
        block_kv_dq=kv_block,
    )
    one_for_all_heads = patterns.MultiHeadMask([tile])
    block, shards = (q_block, kv_block), {"head_shards": 1, "q_seq_shards": parts}
    queries, _ = descriptions.process_mask(one_for_all_heads, block, **shards)
    keys, _ = descriptions.process_mask_dkv(one_for_all_heads, block, **shards)
    return kernels.SplashAttentionKernel(
        queries,
        queries,
        keys,
        block_sizes=sizes,
        is_mqa=False,
        save_residuals=False,
        mask_value=kernels.DEFAULT_MASK_VALUE,
        attn_logits_soft_cap=None,
        residual_checkpoint_name=SAVED,
        mask_function=None,
        interpret=interpret,
    )


def _segments(
    mask: Mask, queries: int, q_length: int, keys: int, kv_length: int
) -> kernels.SegmentIds | None:
    """Returns the ids that say what a mask hides differently in each sequence, if it does."""
    if isinstance(mask, Segments):
        ids = jnp.asarray(mask.ids, jnp.int32)
        fill = lambda length: jnp.pad(ids, ((0, 0), (0, length - queries)), constant_values=-1)
        return kernels.SegmentIds(fill(q_length), fill(kv_length))
    if isinstance(mask, Filled):
        count = jnp.asarray(mask.count, jnp.int32)[:, None]
        used = jnp.arange(kv_length, dtype=jnp.int32)[None, :] < jnp.minimum(count, keys)
        return kernels.SegmentIds(
            jnp.ones((count.shape[0], q_length), jnp.int32), used.astype(jnp.int32)
        )
    return None


def _whole(length: int) -> tuple[int, int]:
    """Returns the largest block that fills up a length by little, and that length."""
    least = math.ceil(length / _LANES) * _LANES
    for block in _BLOCKS:
        whole = math.ceil(length / block) * block
        if whole <= 1.125 * least:
            return block, whole
    raise AssertionError("unreachable: the smallest block adds nothing")


def _filled_up(x: jax.Array, length: int) -> jax.Array:
    """Returns [B, length, ...], with zeros behind [B, L, ...]."""
    missing = length - x.shape[1]
    return jnp.pad(x, ((0, 0), (0, missing), (0, 0), (0, 0))) if missing else x
