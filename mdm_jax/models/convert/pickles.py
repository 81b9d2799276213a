"""PyTorch's zip files, read without PyTorch and without running anything that is in them.

Such a file holds a pickle, which describes nested containers and tensors, and one uncompressed
entry per tensor storage. A pickle is a program: it may name any function and have it called. Here
every name is looked up in this module alone. Tensors and plain containers are rebuilt; a class
becomes an inert record of what it was given; any other function is refused.
"""

import pickle
import re
import struct
import sys
import tarfile
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mdm_jax.models.convert.tensors import DTYPES, StoredTensor

_LEGACY_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."

_STORAGES = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}

# Modules of the standard library whose classes are data. All its others are refused: their
# classes open files, sockets and processes.
_DATA_MODULES = {"collections", "typing", "pathlib", "datetime", "argparse", "uuid", "decimal"}
_DATA_TYPES = {"int", "float", "complex", "bool", "str", "bytes", "list", "dict", "tuple", "object"}
# Lower-case names that are data or make it, as inert here as any class.
_DATA_NAMES = {
    "torch": re.compile(r"(u?int|b?float|complex|q?u?int)\d+\w*|bool|device|strided|\w+_format"),
    "numpy": re.compile(r"dtype|ndarray|u?int\d+|float\d+|bool_?"),
    "numpy.core.multiarray": re.compile(r"_reconstruct|scalar"),
    "numpy._core.multiarray": re.compile(r"_reconstruct|scalar"),
    "_codecs": re.compile(r"encode"),
    "copyreg": re.compile(r"_reconstructor"),
}


class UnreadableError(ValueError):
    """A file that is whole and is not read: it asks for code to be run, or is of another kind."""


class Inert:
    """Stands for an object of a class that is not loaded; keeps what the pickle gave it.

    Attributes:
        origin: Name of the class.
        arguments: What it was made from.
        state: What was set on it, or None.
        items: What was put into it.
    """

    origin = "?"
    arguments: tuple[Any, ...]
    state: Any
    items: list[Any]

    def __new__(cls, *arguments: Any, **named: Any) -> "Inert":
        """Returns a record; a pickle makes objects with this, and may leave out `__init__`."""
        self = super().__new__(cls)
        self.arguments, self.state, self.items = arguments, None, []
        return self

    def __init__(self, *arguments: Any, **named: Any) -> None:
        pass

    def __call__(self, *arguments: Any) -> "Inert":
        """Returns itself: what an inert class makes is as inert."""
        return self

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items.append((key, value))

    def append(self, value: Any) -> None:
        """Keeps an item of a list."""
        self.items.append(value)

    def add(self, value: Any) -> None:
        """Keeps an item of a set."""
        self.items.append(value)


class _Dict(dict):
    """A dict that ignores what it was made from, such as the factory of a defaultdict."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__()


class _Storage(NamedTuple):
    offset: int
    size: int  # in elements
    dtype: np.dtype
    checksum: int


def read_pytorch(path: str | Path) -> Any:
    """Reads what `torch.save` wrote: containers, with `StoredTensor`s in place of tensors.

    Args:
        path: A .pt, .pth, .bin or .ckpt file.

    Returns:
        The saved object. Objects of classes are `Inert`.

    Raises:
        UnreadableError: If the pickle asks for a function to be called (its name is in the
            message), or if the file is of a kind that is not read.
        OSError: If the file is truncated or damaged.
    """
    path = Path(path)
    _check_kind(path)
    try:
        with zipfile.ZipFile(path) as archive:
            reader = _Archive(path, archive)
            with archive.open(reader.root + "data.pkl") as pickled:
                return _Unpickler(pickled, reader).load()
    except zipfile.BadZipFile as error:
        raise OSError(f"{path} is truncated or damaged: {error}.") from error
    except (UnreadableError, OSError):
        raise
    except Exception as error:  # A pickle with other bytes in it may raise anything.
        raise OSError(f"{path} has a damaged pickle: {error!r}.") from error


def _check_kind(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(32)
    if start[:4] == b"PK\x03\x04":
        return
    if _LEGACY_MAGIC in start or tarfile.is_tarfile(path):
        raise UnreadableError(
            f"{path} is in PyTorch's format of before version 1.6, which is not read. Convert it "
            f"where PyTorch is: torch.save(torch.load(path, weights_only=True), new_path)."
        )
    if start[:1] == b"\x80":
        raise UnreadableError(
            f"{path} is a bare pickle, not a file of torch.save, and is not opened."
        )
    raise OSError(f"{path} is not a file of torch.save: it begins with {start[:4]!r}.")


class _Archive:
    """The entries of a zip file of torch.save."""

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self.path = path
        self.entries = {entry.filename: entry for entry in archive.infolist()}
        roots = [name[: -len("data.pkl")] for name in self.entries if name.endswith("/data.pkl")]
        if len(roots) != 1 or roots[0] + "constants.pkl" in self.entries:
            raise UnreadableError(
                f"{path} is a zip file but not one of torch.save (TorchScript is not read)."
            )
        (self.root,) = roots
        order = self.root + "byteorder"
        if order in self.entries and archive.read(order).strip() != b"little":
            raise UnreadableError(f"{path} was written on a big-endian machine, which is not read.")

    def storage(self, kind: str, key: str, size: int) -> _Storage:
        name, dtype = f"{self.root}data/{key}", DTYPES[kind]
        if name not in self.entries:
            raise OSError(f"{self.path} is damaged: it has no entry {name}.")
        entry = self.entries[name]
        if entry.compress_type != zipfile.ZIP_STORED:
            raise UnreadableError(
                f"{self.path} has been compressed since torch.save: unpack {name}."
            )
        if entry.file_size != size * dtype.itemsize:
            raise OSError(
                f"{self.path} is damaged: {name} has {entry.file_size} bytes, expected "
                f"{size * dtype.itemsize}."
            )
        return _Storage(self._start(entry), size, dtype, entry.CRC)

    def _start(self, entry: zipfile.ZipInfo) -> int:
        """Returns where an entry's bytes begin: its own header says, not the directory."""
        with self.path.open("rb") as file:
            file.seek(entry.header_offset)
            header = file.read(30)
        if len(header) < 30 or header[:4] != b"PK\x03\x04":
            raise OSError(f"{self.path} is damaged at {entry.filename}.")
        name, extra = struct.unpack("<HH", header[26:30])
        return entry.header_offset + 30 + name + extra


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: Any, archive: _Archive) -> None:
        super().__init__(file)
        self._archive = archive
        self._known = {
            "collections.OrderedDict": OrderedDict,
            "collections.defaultdict": _Dict,
            "builtins.set": set,
            "builtins.frozenset": frozenset,
            "torch.Size": tuple,
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "torch._utils._rebuild_tensor": self._tensor,
            "torch._utils._rebuild_parameter": lambda data, *_: data,
            "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
            # A tensor with attributes: the function is one of these, or an inert class.
            "torch._tensor._rebuild_from_type_v2": lambda make, _, arguments, *__: make(*arguments),
        }

    def find_class(self, module: str, name: str) -> Any:
        """Returns what a name of the pickle stands for; nothing is imported.

        Raises:
            UnreadableError: If the name is not that of a tensor, a container or a class.
        """
        module = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module, module)
        full = f"{module}.{name}"
        if full in self._known:
            return self._known[full]
        if module in ("torch", "torch.storage") and name in _STORAGES:
            return _STORAGES[name]
        if not _is_data(module, name):
            raise UnreadableError(
                f"{self._archive.path} is refused: its pickle asks for {full}, which is code and "
                f"no data. Nothing of it has been run. If you trust its author, convert it to "
                f"safetensors where PyTorch is."
            )
        return type(name, (Inert,), {"origin": full})

    def persistent_load(self, pid: Any) -> Any:
        """Returns the storage that a persistent id of torch.save stands for."""
        kind, dtype, key, _, size = pid
        if kind != "storage" or not isinstance(dtype, str):
            raise pickle.UnpicklingError(f"unknown persistent id {pid!r}")
        return self._archive.storage(dtype, key, size)

    def _tensor(
        self, storage: Any, start: int, shape: tuple, strides: tuple, *_: Any
    ) -> StoredTensor:
        if not isinstance(storage, _Storage):
            raise pickle.UnpicklingError(f"a tensor without a storage: {storage!r}")
        shape, strides = tuple(shape), tuple(strides)
        reach = sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        span = 0 if 0 in shape else reach + 1
        if min((start, span, *shape, *strides)) < 0 or start + span > storage.size:
            raise pickle.UnpicklingError(f"a tensor {shape} reaches past its storage")
        contiguous = strides == _contiguous(shape)
        return StoredTensor(
            self._archive.path,
            storage.offset + start * storage.dtype.itemsize,
            span,
            shape,
            storage.dtype,
            None if contiguous or span == 0 else strides,
            storage.checksum if span == storage.size else None,
        )


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides, step = [], 1
    for n in reversed(shape):
        strides.append(step)
        step *= n
    return tuple(reversed(strides))


def _is_data(module: str, name: str) -> bool:
    """Returns whether a name is a class, or makes data only: safe to stand for inertly."""
    last, root = name.rsplit(".", 1)[-1], module.split(".")[0]
    if module in _DATA_NAMES and _DATA_NAMES[module].fullmatch(name):
        return True
    if module == "builtins":
        return name in _DATA_TYPES
    if root in sys.stdlib_module_names and module not in _DATA_MODULES:
        return False
    return last.lstrip("_")[:1].isupper()
