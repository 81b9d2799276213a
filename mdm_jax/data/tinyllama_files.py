"""TinyLlama's packed token files, which SMDM and the scaling study of diffusion models train on.

A file is a header of 24 bytes (the magic ``LITPKDS``, a little-endian uint64 version 1, a uint8
code of the type, a uint64 number of tokens) and the tokens. Documents end with an id; the last file
of each writer is filled up with another.
"""

import itertools
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mdm_jax.data.corpora import Document, Piece, Reading

_MAGIC = b"LITPKDS"
_HEADER = struct.Struct("<7sQBQ")
_TYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}  # 6 and 7 are floats


def read_tokens(path: str | Path) -> np.ndarray:
    """Returns the tokens of a file, int[n], mapped into memory.

    Raises:
        ValueError: if it is no such file, is cut short, or holds no integers.

    Examples:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "train_0000000000.bin")
        >>> write_tokens(path, np.array([5, 6, 2]), np.dtype("uint16"))
        >>> read_tokens(path).tolist()
        [5, 6, 2]
    """
    with open(path, "rb") as file:
        header = file.read(_HEADER.size)
    if len(header) < _HEADER.size or header[:7] != _MAGIC:
        raise ValueError(f"{path} is no packed token file: it does not begin with {_MAGIC!r}")
    _, version, code, count = _HEADER.unpack(header)
    if version != 1:
        raise ValueError(f"{path} is of version {version}, expected 1")
    if code not in _TYPES:
        raise ValueError(f"{path} has the type code {code}, expected one of {sorted(_TYPES)}")
    dtype = np.dtype(_TYPES[code])
    expected = _HEADER.size + count * dtype.itemsize
    if Path(path).stat().st_size != expected:
        raise ValueError(
            f"{path} has {Path(path).stat().st_size} bytes, but its header says {count} tokens of "
            f"{dtype}, which is {expected}: it is damaged, or was not written to its end"
        )
    return np.memmap(path, dtype, "r", offset=_HEADER.size, shape=(count,)) if count else _EMPTY


_EMPTY = np.zeros(0, np.int32)


def write_tokens(path: str | Path, tokens: np.ndarray, dtype: np.dtype) -> None:
    """Writes such a file.

    Args:
        path: of the file.
        tokens: int[n].
        dtype: how they are stored.

    Raises:
        ValueError: if the format has no code for `dtype`.

    Examples:
        See `read_tokens`.
    """
    codes = {np.dtype(name): code for code, name in _TYPES.items()}
    if dtype not in codes:
        raise ValueError(f"dtype={dtype}: expected one of {[str(one) for one in codes]}")
    header = _HEADER.pack(_MAGIC, 1, codes[dtype], len(tokens))
    Path(path).write_bytes(header + tokens.astype(dtype).tobytes())


def read(piece: Piece, reading: Reading) -> Iterator[Document]:
    """Yields the documents of a file with their ends, without what fills it up.

    What begins the file, and what ends it, may be parts of documents.

    Raises:
        ValueError: as `read_tokens`.
    """
    tokens = read_tokens(piece.path)
    if reading.fill >= 0 and reading.fill != reading.end:
        text = np.flatnonzero(tokens != reading.fill)
        tokens = tokens[: text[-1] + 1] if text.size else tokens[:0]
    ends = np.flatnonzero(tokens == reading.end) + 1
    edges = np.unique(np.concatenate([[0], ends, [len(tokens)]]))
    for start, stop in itertools.pairwise(edges.tolist()):
        document = np.array(tokens[start:stop], np.int64)
        last = stop == len(tokens)
        yield Document(document, f"{piece.path} at token {start}", last)
