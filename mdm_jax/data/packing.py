"""Documents to fixed-length windows of tokens."""

import dataclasses
from collections.abc import Mapping
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike

from mdm_jax.data.sources import Documents
from mdm_jax.data.tokenizers import Tokenizer


class Windows(Protocol):
    """Windows by random access, in memory or not: what batches are made of."""

    def __len__(self) -> int:
        """Number of windows."""
        ...

    def __getitem__(self, index: int) -> Mapping[str, np.ndarray]:
        """A window: "tokens" int32[L], "where" bool[L]; "segments" int32[L] if kept apart."""
        ...

    @property
    def token_count(self) -> int:
        """Number of real tokens: the sum of all `where`."""
        ...

    @property
    def bytes(self) -> int:
        """Bytes of text behind the real tokens."""
        ...

    @property
    def bytes_per_token(self) -> float:
        """Turns nats per token into bits per byte: `nats / ln 2 / bytes_per_token`."""
        ...


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Packed:
    """N windows of L tokens, and how much text they hold.

    It is also a random-access source of windows (`len`, `[i]`), which is what Grain reads.

    Attributes:
        tokens: int32[N, L].
        where: bool[N, L], True on real tokens (text and ends of documents), False on padding.
        bytes: Bytes of text behind the real tokens; ends of documents count as tokens but not as
            bytes, so bits per byte charge a model for them.
        segments: int32[N, L], if attention must keep the documents of a window apart: they count
            from 1, and 0 is padding. None where it need not.

    Raises:
        ValueError: If the arrays do not have the same shape [N, L], or it is empty.

    Examples:
        >>> packed = Packed(np.zeros((3, 4), np.int32), np.ones((3, 4), bool), bytes=11)
        >>> packed
        Packed(3 windows of 4, 12 tokens, 11 bytes)
    """

    tokens: np.ndarray
    where: np.ndarray
    bytes: int
    segments: np.ndarray | None = None

    def __post_init__(self):
        shape = self.tokens.shape
        if len(shape) != 2 or 0 in shape or shape != self.where.shape:
            raise ValueError(
                "tokens and where must have the same shape [N, L], with N and L above 0, got "
                f"{self.tokens.shape} and {self.where.shape}"
            )
        if self.segments is not None and self.segments.shape != shape:
            raise ValueError(f"segments must have the shape {shape}, got {self.segments.shape}")

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        row = {"tokens": self.tokens[index], "where": self.where[index]}
        return row if self.segments is None else row | {"segments": self.segments[index]}

    def __repr__(self) -> str:
        windows, length = self.tokens.shape
        return (
            f"Packed({windows} windows of {length}, {self.token_count:,} tokens, "
            f"{self.bytes:,} bytes)"
        )

    @property
    def token_count(self) -> int:
        """Number of real tokens: the sum of `where`."""
        return int(self.where.sum())

    @property
    def bytes_per_token(self) -> float:
        """Turns nats per token into bits per byte: `nats / ln 2 / bytes_per_token`."""
        return self.bytes / self.token_count


def pack(documents: Documents, tokenizer: Tokenizer, length: int) -> Packed:
    """Concatenates documents, each followed by `eos_id`, and cuts windows of `length` tokens.

    Nothing is dropped: the last window is filled up with `eos_id` where `where` is False. Windows
    run across the ends of documents, and no mask keeps documents apart.

    Raises:
        ValueError: If `length` is below 1, there are fewer tokens than one window, or the tokenizer
            gives an id outside its own vocabulary.

    Examples:
        >>> from mdm_jax.data import ByteTokenizer, in_memory
        >>> packed = pack(in_memory(["abc", "de"]), ByteTokenizer(), length=4)
        >>> packed.tokens
        array([[ 97,  98,  99,   0], [100, 101,   0,   0]], dtype=int32)
        >>> packed.where[1], packed.bytes
        (array([ True,  True,  True, False]), 5)
    """
    if length < 1:
        raise ValueError(f"length must be at least 1, got {length}")
    end = np.array([tokenizer.eos_id], np.int32)
    stream = np.concatenate(
        [ids for text in documents.texts for ids in (tokenizer.encode(text), end)]
    ).astype(np.int32, casting="same_kind")
    check_ids(stream, tokenizer.vocab_size)
    if stream.size < length:
        raise ValueError(
            f"the text is {stream.size} tokens long, shorter than one window of {length}: "
            "give more text or a smaller length"
        )
    padding = -stream.size % length
    tokens = np.pad(stream, (0, padding), constant_values=tokenizer.eos_id)
    where = np.arange(tokens.size) < stream.size
    return Packed(
        tokens=tokens.reshape(-1, length),
        where=where.reshape(-1, length),
        bytes=sum(map(len, documents.texts)),
    )


def evenly_spaced(windows: Windows, count: int) -> Windows:
    """Some of the windows, evenly spaced, with their share of the bytes; all if `count` is 0.

    Args:
        windows: In memory or not.
        count: How many; they are read into memory.

    Returns:
        `Packed`, or `windows` themselves if that is all of them.

    Raises:
        ValueError: if `count` is negative.

    Examples:
        >>> from mdm_jax.data import ByteTokenizer, in_memory
        >>> packed = pack(in_memory(["x" * 99]), ByteTokenizer(), length=10)
        >>> evenly_spaced(packed, 4)
        Packed(4 windows of 10, 40 tokens, 40 bytes)
    """
    if count < 0:
        raise ValueError(f"windows={count}: expected a number of windows, or 0 for all")
    if count == 0 or count >= len(windows):
        return windows
    return sample_windows(windows, count)


def sample_windows(windows: Windows, most: int) -> Packed:
    """At most so many of the windows, evenly spaced, in memory, with their share of the bytes.

    Args:
        windows: In memory or not.
        most: How many, at least 1.

    Examples:
        >>> packed = Packed(np.zeros((3, 4), np.int32), np.ones((3, 4), bool), bytes=12)
        >>> sample_windows(packed, 2)
        Packed(2 windows of 4, 8 tokens, 8 bytes)
    """
    if isinstance(windows, Packed) and most >= len(windows):
        return windows
    index = np.linspace(0, len(windows) - 1, min(most, len(windows))).round().astype(int)
    rows = [windows[int(one)] for one in index]
    columns = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    return Packed(bytes=round(columns["where"].sum() * windows.bytes_per_token), **columns)


def check_ids(tokens: ArrayLike, vocab_size: int, mask_id: int | None = None) -> None:
    """Checks that data ids are ones a process can noise: below `vocab_size`, and never the mask.

    An id past the vocabulary would be clamped to some embedding inside a compiled step, and a mask
    in the data would be scored as a token: neither fails by itself.

    Args:
        tokens: int[*B, L].
        vocab_size: Number of data ids, as given to the process.
        mask_id: The process's mask, or None where there is none.

    Raises:
        TypeError: If `tokens` are not integers.
        ValueError: If an id is out of range or is `mask_id`; the message has its value and index.

    Examples:
        >>> check_ids([[5, 6], [7, 8]], vocab_size=8)
        Traceback (most recent call last):
            ...
        ValueError: token 8 at index (1, 1) is outside the vocabulary of 8 ids (0 to 7)...
    """
    tokens = np.asarray(tokens)
    if not np.issubdtype(tokens.dtype, np.integer):
        raise TypeError(f"tokens must be integers, got {tokens.dtype}")
    outside = (tokens < 0) | (tokens >= vocab_size)
    if outside.any():
        value, index = _first(tokens, outside)
        raise ValueError(
            f"token {value} at index {index} is outside the vocabulary of {vocab_size} ids "
            f"(0 to {vocab_size - 1}): the process and the tokenizer must agree on vocab_size"
        )
    if mask_id is not None and (tokens == mask_id).any():
        _, index = _first(tokens, tokens == mask_id)
        raise ValueError(
            f"token {mask_id} at index {index} is the mask id, which must not occur in data: remove"
            " it, or give the process another mask_id (by default it is vocab_size, past all data)"
        )


def _first(tokens: np.ndarray, where: np.ndarray) -> tuple[int, tuple[int, ...]]:
    """The first token where `where` is True, and its index."""
    index = tuple(int(i) for i in np.argwhere(where)[0])
    return int(tokens[index]), index
