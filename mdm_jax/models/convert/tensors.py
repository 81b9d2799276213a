"""Tensors that lie in a file and are read when they are needed, and safetensors files of them.

The safetensors layout is read and written here, and not by its library, for two reasons: memory
and dtypes. A tensor is read into an array of its own (pages of a memory map would count twice
while a model is converted), tensors are written as they are produced, and bfloat16 needs no
framework that has it.
"""

import dataclasses
import json
import math
import os
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from mdm_jax.models.convert.leaves import Shape

DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
"""NumPy dtypes by their names in safetensors headers."""

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_LARGEST_HEADER = 100_000_000  # the format's own limit, in bytes


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file; `np.asarray` reads it.

    Attributes:
        file: Where it lies.
        offset: First byte of its storage.
        span: Elements of its storage that it reaches over.
        shape: Its shape.
        dtype: Its dtype.
        strides: In elements, or None where it is contiguous.
        checksum: CRC-32 of its bytes, or None if unknown.
    """

    file: Path
    offset: int
    span: int
    shape: Shape
    dtype: np.dtype
    strides: Shape | None = None
    checksum: int | None = None

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Reads the tensor.

        Raises:
            OSError: If the file is too short or the bytes do not match their checksum.
        """
        if copy is False:
            raise ValueError("a stored tensor cannot be read without making an array")
        flat = np.empty(self.span, self.dtype)
        with self.file.open("rb") as file:
            file.seek(self.offset)
            read = file.readinto(flat.view(np.uint8).data) if self.span else 0
        if read != flat.nbytes:
            raise OSError(f"{self.file} is truncated: {flat.nbytes - (read or 0)} bytes missing.")
        if self.checksum is not None and zlib.crc32(flat.view(np.uint8).data) != self.checksum:
            raise OSError(f"{self.file} is damaged: a tensor {self.shape} fails its checksum.")
        if self.strides is not None:
            steps = [stride * self.dtype.itemsize for stride in self.strides]
            flat = np.lib.stride_tricks.as_strided(flat, self.shape, steps)
        array = np.ascontiguousarray(flat).reshape(self.shape)
        return array if dtype is None else array.astype(dtype, copy=False)


def read_safetensors(path: str | Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Reads the header of a safetensors file.

    Args:
        path: The file.

    Returns:
        Tensors by name, to be read when needed, and the file's metadata.

    Raises:
        OSError: If the file is truncated or is no safetensors file.

    Examples:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "model.safetensors"
        >>> write_safetensors(path, {"w": np.ones((2, 3), np.float32)}.items(), {"w": "F32"})
        >>> tensors, metadata = read_safetensors(path)
        >>> tensors["w"].shape, metadata
        ((2, 3), {'format': 'pt'})
    """
    path = Path(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _LARGEST_HEADER):
            raise OSError(f"{path} is truncated, or no safetensors file: its header does not fit.")
        try:
            header = json.loads(file.read(length))
            metadata = header.pop("__metadata__", {})
            tensors = {
                name: _stored(path, 8 + length, size, name, record)
                for name, record in header.items()
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise OSError(f"{path} has a damaged safetensors header: {error!r}.") from error
    return tensors, metadata


def _stored(path: Path, start: int, size: int, name: str, record: Any) -> StoredTensor:
    dtype, shape = DTYPES[record["dtype"]], tuple(record["shape"])
    begin, end = record["data_offsets"]
    count = math.prod(shape)
    if not 0 <= begin <= end or end - begin != count * dtype.itemsize:
        raise ValueError(f"{name} spans {end - begin} bytes, not those of {dtype}{shape}")
    if start + end > size:
        raise OSError(f"{path} is truncated: {name} ends {start + end - size} bytes past its end.")
    return StoredTensor(path, start + begin, count, shape, dtype)


def write_safetensors(
    path: str | Path,
    tensors: Iterable[tuple[str, Any]],
    dtypes: Mapping[str, str],
    *,
    shapes: Mapping[str, Shape] | None = None,
) -> None:
    """Writes a safetensors file, byte by byte what the format's own library writes.

    Args:
        path: The file; it is there whole, or not at all.
        tensors: Arrays by name, each of which is written before the next one is asked for.
        dtypes: The dtype that each tensor is written in, by name, a key of `DTYPES`.
        shapes: Shapes by name, if `tensors` is an iterator that can be walked once only.

    Raises:
        ValueError: If names or shapes are not those announced.
    """
    path = Path(path)
    if shapes is None:
        tensors = list(tensors)
        shapes = {name: np.shape(value) for name, value in tensors}
    if shapes.keys() != dtypes.keys():
        raise ValueError(f"no dtype or no shape for {sorted(shapes.keys() ^ dtypes.keys())}.")
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for name in sorted(shapes, key=lambda name: (-_rank(dtypes[name]), name)):
        end = begin + math.prod(shapes[name]) * DTYPES[dtypes[name]].itemsize
        header[name] = {
            "dtype": dtypes[name],
            "shape": list(shapes[name]),
            "data_offsets": [begin, end],
        }
        begin = end
    encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    encoded += b" " * (-len(encoded) % 8)
    partial = path.with_name(path.name + f".partial-{os.getpid()}")
    try:
        with partial.open("wb") as file:
            file.write(len(encoded).to_bytes(8, "little") + encoded)
            file.truncate(8 + len(encoded) + begin)
            written = set()
            for name, value in tensors:
                if np.shape(value) != shapes.get(name) or name in written:
                    raise ValueError(f"{name} {np.shape(value)} is not what was announced.")
                written.add(name)
                file.seek(8 + len(encoded) + header[name]["data_offsets"][0])
                array = np.ascontiguousarray(np.asarray(value), DTYPES[dtypes[name]])
                file.write(array.reshape(-1).view(np.uint8).data)
        if written != shapes.keys():
            raise ValueError(f"announced and not given: {sorted(shapes.keys() - written)}.")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def dtype_name(dtype: np.dtype) -> str:
    """Returns the safetensors name of a dtype.

    Examples:
        >>> dtype_name(np.dtype("float32"))
        'F32'
    """
    return _NAMES[dtype]


# In the order of the format's own enumeration, by which its library sorts.
_ORDER: tuple[str, ...] = (
    *("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "I16", "U16", "F16"),
    *("BF16", "I32", "U32", "F32", "F64", "I64", "U64"),
)


def _rank(dtype: str) -> int:
    return _ORDER.index(dtype)
