"""Tokenizers: text to int32 ids and back."""

import dataclasses
import string
from collections.abc import Mapping
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

    @property
    def special_ids(self) -> Mapping[str, int]:
        """Ids that are no text, by name: `eos_id` and whatever else the vocabulary reserves."""
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

    @property
    def special_ids(self) -> dict[str, int]:
        """NUL, which ends a document."""
        return {"NUL": 0}

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
        return one_sequence(ids, self.vocab_size, "a byte").astype(np.uint8).tobytes()


@dataclasses.dataclass(frozen=True)
class CharTokenizer:
    """text8's 27 symbols: a to z are 0 to 25, the space is 26.

    That is all of its alphabet, so bits per character compare with published ones. (MDLM's text8
    has 35 ids and ends of chunks in it; its numbers do not.) There is no end of document: text8 is
    one, and several are joined by a space.

    Examples:
        >>> tokenizer = CharTokenizer()
        >>> tokenizer.encode("a zebra")
        array([ 0, 26, 25,  4,  1, 17,  0], dtype=int32)
        >>> tokenizer.decode([0, 26, 25])
        'a z'
    """

    vocab_size: int = dataclasses.field(default=27, init=False)
    eos_id: int = dataclasses.field(default=26, init=False)

    @property
    def special_ids(self) -> dict[str, int]:
        """None: every id is a character."""
        return {}

    def encode(self, text: str | bytes) -> np.ndarray:
        """The characters of `text` as int32[n].

        Raises:
            ValueError: If a character is no lower-case letter of English and no space.

        Examples:
            >>> CharTokenizer().encode("It")
            Traceback (most recent call last):
                ...
            ValueError: 'I' at position 0 is not one of text8's symbols, a to z and space...
        """
        raw = text.encode() if isinstance(text, str) else text
        ids = _CHAR_IDS[np.frombuffer(raw, np.uint8)]
        unknown = np.flatnonzero(ids < 0)
        if unknown.size:
            at = len(raw[: unknown[0]].decode(errors="replace"))
            raise ValueError(
                f"{raw.decode(errors='replace')[at]!r} at position {at} is not one of text8's "
                "symbols, a to z and space: clean the text as text8 is, or take another tokenizer"
            )
        return ids

    def decode(self, ids: ArrayLike) -> str:
        """The text of int[n] ids.

        Raises:
            ValueError: If `ids` is not one sequence, or an id is not a character.
        """
        ids = one_sequence(ids, self.vocab_size, "a character")
        return "".join(_CHARS[i] for i in ids)


_CHARS = string.ascii_lowercase + " "
_CHAR_IDS = np.full(256, -1, np.int32)
_CHAR_IDS[np.frombuffer(_CHARS.encode(), np.uint8)] = np.arange(27, dtype=np.int32)


def as_text(text: str | bytes) -> str:
    r"""`text`, with bytes that are not UTF-8 read as U+FFFD: what tokenizers of text are given.

    Examples:
        >>> as_text(b"a\xff")
        'a\ufffd'
    """
    return text.decode(errors="replace") if isinstance(text, bytes) else text


def one_sequence(ids: ArrayLike, vocab_size: int, what: str) -> np.ndarray:
    """Checks that ids can be decoded; returns them as int[n].

    Args:
        ids: int[n].
        vocab_size: Number of ids.
        what: What an id stands for, for messages.

    Raises:
        ValueError: If `ids` is not one sequence, or an id lies outside [0, vocab_size).

    Examples:
        >>> one_sequence([3, 9], 9, "a token")
        Traceback (most recent call last):
            ...
        ValueError: id 9 at position 1 is not a token (0 to 8); if it is the mask, replace...
    """
    ids = np.asarray(ids)
    if ids.ndim != 1:
        raise ValueError(
            f"decode takes one sequence, int[n], got shape {ids.shape}: decode row by row"
        )
    outside = np.flatnonzero((ids < 0) | (ids >= vocab_size))
    if outside.size:
        raise ValueError(
            f"id {ids[outside[0]]} at position {outside[0]} is not {what} (0 to {vocab_size - 1}); "
            "if it is the mask, replace masked positions before decoding"
        )
    return ids
