"""Which positions attend to which: small descriptions that become a boolean mask when needed.

Each mask is a frozen dataclass and a pytree. What varies by sequence (`cut`, `start`) is an array
with a batch axis, so masks are sliced, sharded and traced like the rest of a batch; what is static
(`block`) is part of the tree's structure. Queries and keys are numbered in the order in which the
network sees them; positions (for rotary) are another matter and may be permuted.

Masks without an array are the same for every sequence. They also say `sees(q, k, queries)` for
integers of numpy, so that a kernel can be made for them before anything is computed.
"""

import dataclasses
from typing import Protocol, dataclass_transform

import jax
import jax.numpy as jnp


class Mask(Protocol):
    """Anything that can say which keys a query may attend to."""

    def allowed(self, queries: int, keys: int) -> jax.Array | None:
        """Returns bool[B or 1, queries, keys], True to attend, or None if everything may."""
        ...


@dataclass_transform(frozen_default=True)
def _mask(cls):
    """Makes a frozen dataclass whose unmarked fields are pytree leaves."""
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True)(cls))


def _static(default):
    """Returns a dataclass field that is part of the tree's structure."""
    return dataclasses.field(default=default, metadata={"static": True})


@_mask
class Bidirectional:
    """Every position sees every other: masked and uniform diffusion.

    Examples:
        >>> Bidirectional().allowed(2, 2) is None
        True
    """

    def allowed(self, queries: int, keys: int) -> None:
        """Returns None: nothing is hidden."""
        return None

    def sees(self, q, k, queries: int):
        """Returns True for all of q, int[Q, 1], and k, int[1, K]."""
        del queries
        return (q >= 0) & (k >= 0)


@_mask
class Causal:
    """A position sees itself and what comes before: autoregression, and Eso-LM (B) in its order.

    Attributes:
        start: int32[B], the key that is the first query itself. With a cache of keys, queries
            are the newest ones: query i of sequence b is key `start[b] + i`. None means 0.

    Examples:
        >>> Causal().allowed(2, 2)[0].astype(int)
        Array([[1, 0],
               [1, 1]], dtype=int32)
        >>> Causal(start=jnp.array([1])).allowed(1, 3)[0].astype(int)
        Array([[1, 1, 0]], dtype=int32)
    """

    start: jax.Array | None = None

    def allowed(self, queries: int, keys: int) -> jax.Array:
        """Returns bool[B or 1, queries, keys]."""
        q, k = _grid(queries, keys)
        return self.sees(q if self.start is None else q + _column(self.start), k, queries)

    def sees(self, q, k, queries: int):
        """Returns whether q, int[Q, 1], counted as the keys are, sees k, int[1, K]."""
        del queries
        return k <= q


@_mask
class BlockCausal:
    """A position sees its own block and those before: the clean stream of block diffusion, alone.

    Attributes:
        block: Tokens in a block.

    Raises:
        ValueError: If `block` is not positive.

    Examples:
        >>> BlockCausal(2).allowed(3, 3)[0].astype(int)
        Array([[1, 1, 0],
               [1, 1, 0],
               [1, 1, 1]], dtype=int32)
    """

    block: int = _static(1)

    def __post_init__(self):
        if self.block < 1:
            raise ValueError(f"block must be a positive int, got {self.block!r}.")

    def allowed(self, queries: int, keys: int) -> jax.Array:
        """Returns bool[1, queries, keys]."""
        return self.sees(*_grid(queries, keys), queries)

    def sees(self, q, k, queries: int):
        """Returns whether q, int[Q, 1], sees k, int[1, K]."""
        del queries
        return k // self.block <= q // self.block


@_mask
class PrefixBidirectional:
    """Prefix-LM: the first `cut` positions see each other, later ones what comes before them.

    Eso-LM (A) trains its diffusion with it (called "mixed2" there): clean tokens are sorted to the
    front, masks behind them.

    Attributes:
        cut: int32[B], length of the prefix.

    Examples:
        >>> PrefixBidirectional(jnp.array([2])).allowed(3, 3)[0].astype(int)
        Array([[1, 1, 0],
               [1, 1, 0],
               [1, 1, 1]], dtype=int32)
    """

    cut: jax.Array

    def allowed(self, queries: int, keys: int) -> jax.Array:
        """Returns bool[B, queries, keys]."""
        q, k = _grid(queries, keys)
        cut = _column(self.cut)
        return (q >= k) | ((q < cut) & (k < cut))


@_mask
class PrefixCausal:
    """The first `cut` positions are causal, later ones see everything (Eso-LM's "mixed").

    Attributes:
        cut: int32[B], length of the prefix.

    Examples:
        >>> PrefixCausal(jnp.array([2])).allowed(3, 3)[0].astype(int)
        Array([[1, 0, 0],
               [1, 1, 0],
               [1, 1, 1]], dtype=int32)
        >>> PrefixCausal(jnp.array([1])).allowed(3, 3)[0].astype(int)
        Array([[1, 0, 0],
               [1, 1, 1],
               [1, 1, 1]], dtype=int32)
    """

    cut: jax.Array

    def allowed(self, queries: int, keys: int) -> jax.Array:
        """Returns bool[B, queries, keys]."""
        q, k = _grid(queries, keys)
        return (q >= k) | (q >= _column(self.cut))


@_mask
class TwoStream:
    """Block diffusion in one pass over [noised; clean], 2L positions (BD3-LM, section 3.3).

    A noised token sees its own noised block and the clean blocks before it; a clean token sees the
    clean blocks up to its own. With blocks of 1 it is Eso-LM's sequential mask: noised token i
    sees itself and clean tokens 0 to i - 1.

    Attributes:
        block: Tokens in a block; it divides L.
        cut: int32[B], clean tokens before `cut` see each other too (Eso-LM (A)'s prefix), or None.

    Raises:
        ValueError: If `block` is not positive; when used, if it does not divide L.

    Examples:
        >>> TwoStream().allowed(4, 4)[0].astype(int)
        Array([[1, 0, 0, 0],
               [0, 1, 1, 0],
               [0, 0, 1, 0],
               [0, 0, 1, 1]], dtype=int32)
    """

    block: int = _static(1)
    cut: jax.Array | None = None

    def __post_init__(self):
        if self.block < 1:
            raise ValueError(f"block must be a positive int, got {self.block!r}.")

    def allowed(self, queries: int, keys: int) -> jax.Array:
        """Returns bool[B or 1, 2L, 2L]; `queries` and `keys` are 2L."""
        self.check(queries, keys)
        q, k = _grid(queries, keys)
        visible = self.sees(q, k, queries)
        if self.cut is None:
            return visible
        length, cut = queries // 2, _column(self.cut)
        both_clean = (q >= length) & (k >= length)
        return visible | (both_clean & (q - length < cut) & (k - length < cut))

    def check(self, queries: int, keys: int) -> None:
        """Raises ValueError unless there are two streams of whole blocks."""
        if queries != keys or queries % 2 or (queries // 2) % self.block:
            raise ValueError(
                f"a two-stream mask needs [noised; clean] of 2 L positions, L a multiple of "
                f"block={self.block}; got {queries} queries and {keys} keys."
            )

    def sees(self, q, k, queries: int):
        """Returns whether q, int[Q, 1], sees k, int[1, K], without the prefix of `cut`."""
        length = queries // 2
        q_clean, k_clean = q >= length, k >= length
        q_block, k_block = (q % length) // self.block, (k % length) // self.block
        own = (q_clean == k_clean) & (q_block == k_block)
        return own | (k_clean & (q_block > k_block))


@_mask
class Filled:
    """Every query sees the first `count` keys: a cache, and the block that is being denoised.

    Attributes:
        count: int32[B], keys in use.

    Examples:
        >>> Filled(jnp.array([2])).allowed(1, 3)[0].astype(int)
        Array([[1, 1, 0]], dtype=int32)
    """

    count: jax.Array

    def allowed(self, queries: int, keys: int) -> jax.Array:
        """Returns bool[B, queries, keys]."""
        q, k = _grid(queries, keys)
        return (k < _column(self.count)) & (q >= 0)


@_mask
class Segments:
    """A position sees its own document only: several documents packed into one window.

    Attributes:
        ids: int32[B, L], the document of each position: 0 is padding, documents count from 1.
            (Padding sees padding, so that every query has a key.)
        causal: Also hide what comes later.

    Examples:
        >>> ids = jnp.array([[1, 2, 2]])
        >>> Segments(ids).allowed(3, 3)[0].astype(int)
        Array([[1, 0, 0],
               [0, 1, 1],
               [0, 1, 1]], dtype=int32)
        >>> Segments(ids, causal=True).allowed(3, 3)[0].astype(int)
        Array([[1, 0, 0],
               [0, 1, 0],
               [0, 1, 1]], dtype=int32)
    """

    ids: jax.Array
    causal: bool = _static(False)

    def allowed(self, queries: int, keys: int) -> jax.Array:
        """Returns bool[B, L, L]; `queries` and `keys` are L.

        Raises:
            ValueError: If they are not.
        """
        self.check(queries, keys)
        same = self.ids[:, :, None] == self.ids[:, None, :]
        if not self.causal:
            return same
        q, k = _grid(queries, keys)
        return same & (k <= q)

    def check(self, queries: int, keys: int) -> None:
        """Raises ValueError unless there is one id for each query and each key."""
        length = self.ids.shape[-1]
        if queries != length or keys != length:
            raise ValueError(
                f"segments {self.ids.shape} give a document to each of {length} positions; got "
                f"{queries} queries and {keys} keys."
            )


def _grid(queries: int, keys: int) -> tuple[jax.Array, jax.Array]:
    """Returns query and key numbers, int32[1, queries, 1] and int32[1, 1, keys]."""
    q = jnp.arange(queries, dtype=jnp.int32)[None, :, None]
    return q, jnp.arange(keys, dtype=jnp.int32)[None, None, :]


def _column(x: jax.Array) -> jax.Array:
    """Returns int32[B] as int32[B, 1, 1]."""
    return jnp.asarray(x, jnp.int32)[:, None, None]
