"""Tokenizers: text to int32 ids and back."""

import dataclasses
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike


class Tokenizer(Protocol):
    """What `pack` needs of a tokenizer, and what a sample needs to be read.

    Every id lies in `[0, vocab_size)`; the mask of a masked process is not the tokenizer's affair.
    """

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        ...

    @property
    def eos_id(self) -> int:
        """The id that ends a document."""
        ...

    def encode(self, text: str | bytes) -> np.ndarray:
        """`text` as int32[n], without an end-of-document id."""
        ...

    def decode(self, ids: ArrayLike) -> str:
        """The text of one sequence of ids."""
        ...


@dataclasses.dataclass(frozen=True)
class ByteTokenizer:
    """One id per byte, so any text and any file has an exact encoding.

    NUL (id 0) ends a document. A document that itself holds a NUL byte therefore reads as two.

    Examples:
        >>> tokenizer = ByteTokenizer()
        >>> tokenizer.encode("né")
        array([110, 195, 169], dtype=int32)
        >>> tokenizer.decode([110, 195, 169])
        'né'
    """

    vocab_size: int = dataclasses.field(default=256, init=False)
    eos_id: int = dataclasses.field(default=0, init=False)

    def encode(self, text: str | bytes) -> np.ndarray:
        r"""The bytes of `text` (UTF-8 if it is a `str`) as int32[n].

        Examples:
            >>> ByteTokenizer().encode(b"\xff\x00")
            array([255,   0], dtype=int32)
        """
        raw = text.encode() if isinstance(text, str) else text
        return np.frombuffer(raw, np.uint8).astype(np.int32)

    def decode(self, ids: ArrayLike) -> str:
        """The text of int[n] ids; bytes that are not UTF-8 read as U+FFFD.

        Raises:
            ValueError: As `decode_bytes`.

        Examples:
            >>> ByteTokenizer().decode([104, 105, 255])
            'hi�'
        """
        return self.decode_bytes(ids).decode(errors="replace")

    def decode_bytes(self, ids: ArrayLike) -> bytes:
        r"""The bytes of int[n] ids: the exact inverse of `encode`.

        Raises:
            ValueError: If `ids` is not one sequence, or an id is not a byte.

        Examples:
            >>> ByteTokenizer().decode_bytes([104, 105, 255])
            b'hi\xff'
        """
        ids = np.asarray(ids)
        if ids.ndim != 1:
            raise ValueError(
                f"decode takes one sequence, int[n], got shape {ids.shape}: decode row by row"
            )
        outside = np.flatnonzero((ids < 0) | (ids >= self.vocab_size))
        if outside.size:
            raise ValueError(
                f"id {ids[outside[0]]} at position {outside[0]} is not a byte (0 to 255); if it is "
                "the mask, replace masked positions before decoding"
            )
        return ids.astype(np.uint8).tobytes()
