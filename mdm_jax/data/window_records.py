"""One window of tokens as bytes, and back: what a shard of prepared data is made of.

    tokens   L little-endian integers of 1, 2 or 4 bytes, padding included
    real     uint32, how many of them are no padding; padding is at the end
    starts   uint32 each, where the second and later documents of the window begin

Documents of a window are contiguous, so their starts say as much as an id for each token.
"""

from typing import NamedTuple

import numpy as np

_COUNT = np.dtype("<u4")
_DTYPES = {"uint8": np.dtype("u1"), "uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}


class Window(NamedTuple):
    """A window before it is written.

    Attributes:
        tokens: int[L], padding included.
        real: how many of them, from the first, are no padding.
        starts: int[n], ascending, where the documents of the window begin; the first is 0.
    """

    tokens: np.ndarray
    real: int
    starts: np.ndarray


def token_dtype(vocab_size: int) -> str:
    """Returns the name of the smallest type that holds the ids of a vocabulary.

    Raises:
        ValueError: if the vocabulary is empty or too large for 32 bits.

    Examples:
        >>> token_dtype(256), token_dtype(257), token_dtype(50_257), token_dtype(131_072)
        ('uint8', 'uint16', 'uint16', 'uint32')
    """
    for name, dtype in _DTYPES.items():
        if 1 <= vocab_size <= 2 ** (8 * dtype.itemsize):
            return name
    raise ValueError(f"vocab_size={vocab_size}: expected from 1 to 2**32 ids")


def encode_window(window: Window, dtype: str) -> bytes:
    r"""Returns the record of a window.

    Args:
        window: ids must fit `dtype`; this is not checked.
        dtype: from `token_dtype`.

    Examples:
        >>> window = Window(np.array([7, 8, 9, 0]), 3, np.array([0, 2]))
        >>> encode_window(window, "uint8")
        b'\x07\x08\t\x00\x03\x00\x00\x00\x02\x00\x00\x00'
    """
    tokens = window.tokens.astype(_DTYPES[dtype])
    counts = np.concatenate([[window.real], window.starts[1:]]).astype(_COUNT)
    return tokens.tobytes() + counts.tobytes()


def decode_window(record: bytes, dtype: str, length: int) -> Window:
    """Returns the window of a record: the inverse of `encode_window`, with int32 tokens.

    Raises:
        ValueError: if the bytes are no record of such a window.

    Examples:
        >>> window = Window(np.array([7, 8, 9, 0]), 3, np.array([0, 2]))
        >>> tokens, real, starts = decode_window(encode_window(window, "uint8"), "uint8", 4)
        >>> tokens, real, starts
        (array([7, 8, 9, 0], dtype=int32), 3, array([0, 2]))
    """
    cut = length * _DTYPES[dtype].itemsize
    extra = len(record) - cut
    if extra < _COUNT.itemsize or extra % _COUNT.itemsize:
        raise ValueError(
            f"a record of {len(record)} bytes is no window of {length} tokens of {dtype}: the "
            "shard was not written by this preparation"
        )
    tokens = np.frombuffer(record[:cut], _DTYPES[dtype]).astype(np.int32)
    counts = np.frombuffer(record[cut:], _COUNT).astype(np.int64)
    starts = counts.copy()
    starts[0] = 0
    return Window(tokens, int(counts[0]), starts)


def segment_ids(window: Window) -> np.ndarray:
    """Returns int32[L]: the documents of a window, counted from 1; 0 is padding.

    Examples:
        >>> segment_ids(Window(np.array([7, 8, 9, 0]), 3, np.array([0, 2])))
        array([1, 1, 2, 0], dtype=int32)
    """
    begins = np.zeros(len(window.tokens), np.int32)
    begins[window.starts] = 1
    ids = np.cumsum(begins, dtype=np.int32)
    ids[window.real :] = 0
    return ids
