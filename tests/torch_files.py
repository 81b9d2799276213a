"""Writes the zip files of torch.save, byte layout included, without PyTorch.

Stand-ins carry the names of PyTorch's functions and classes while pickling, so that the pickle asks
for `torch._utils._rebuild_tensor_v2` and `torch.FloatStorage` as a real one does (protocol 2).
"""

import contextlib
import io
import pickle
import sys
import types
import zipfile
from collections import OrderedDict

import numpy as np

_STORAGES = {
    "float32": "FloatStorage",
    "float64": "DoubleStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
}


def stand_in(full, **attributes):
    """Returns a class that pickles as the global `full`."""
    module, name = full.rsplit(".", 1)
    return type(name, (), {"__module__": module, "__qualname__": name, **attributes})


_TORCH = {
    f"torch.{name}": stand_in(f"torch.{name}") for name in (*_STORAGES.values(), "Size", "device")
}
REBUILD = stand_in("torch._utils._rebuild_tensor_v2")
REBUILD_PARAMETER = stand_in("torch._utils._rebuild_parameter")


class Storage:
    """Bytes that tensors may share."""

    def __init__(self, array):
        self.array = np.ascontiguousarray(array).reshape(-1)


class Tensor:
    """A view of a storage, as a torch.Tensor is."""

    def __init__(self, array=None, *, storage=None, start=0, shape=None, strides=None):
        self.storage = Storage(array) if storage is None else storage
        self.start = start
        self.shape = np.shape(array) if shape is None else shape
        self.strides = strides or tuple(
            int(np.prod(self.shape[i + 1 :])) for i in range(len(self.shape))
        )

    def __reduce__(self):
        size = tuple(int(n) for n in self.shape)
        return REBUILD, (self.storage, self.start, size, self.strides, False, OrderedDict())


class Parameter:
    """As a torch.nn.Parameter."""

    def __init__(self, array):
        self.tensor = Tensor(array)

    def __reduce__(self):
        return REBUILD_PARAMETER, (self.tensor, True, OrderedDict())


def save(path, value, *, classes=(), root="archive", byteorder="little", protocol=2):
    """Writes `value`, in which `classes` (stand-ins) may occur."""
    storages = []

    class Pickler(pickle.Pickler):
        def persistent_id(self, item):
            if not isinstance(item, Storage):
                return None
            if item not in storages:
                storages.append(item)
            kind = _TORCH["torch." + _STORAGES[item.array.dtype.name]]
            return ("storage", kind, str(storages.index(item)), "cpu", item.array.size)

    buffer = io.BytesIO()
    with importable([*_TORCH.values(), REBUILD, REBUILD_PARAMETER, *classes]):
        Pickler(buffer, protocol=protocol).dump(value)
    write_zip(path, buffer.getvalue(), [s.array for s in storages], root, byteorder)


def write_zip(path, pickled, arrays=(), root="archive", byteorder="little"):
    """Writes the entries of torch.save around a pickle, aligned to 64 bytes as it aligns them."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:

        def put(name, data):
            entry = zipfile.ZipInfo(f"{root}/{name}", (1980, 0, 0, 0, 0, 0))
            start = archive.fp.tell() + 30 + len(entry.filename)
            padding = -(start + 4) % 64
            entry.extra = b"FB" + padding.to_bytes(2, "little") + b"Z" * padding
            archive.writestr(entry, data)
            entry.extra = b""  # the central directory has none, as torch writes it

        put("data.pkl", pickled)
        put(".format_version", b"1")
        put(".storage_alignment", b"64")
        put("byteorder", byteorder.encode())
        for i, array in enumerate(arrays):
            put(f"data/{i}", array.tobytes())
        put("version", b"3\n")
        put(".data/serialization_id", b"1" * 40)


@contextlib.contextmanager
def importable(classes):
    """Makes stand-ins importable under their names while a pickle is written."""
    added = {}
    saved = {}
    try:
        for cls in classes:
            parts = cls.__module__.split(".")
            for i in range(1, len(parts) + 1):
                name = ".".join(parts[:i])
                if name not in sys.modules:
                    added[name] = sys.modules[name] = types.ModuleType(name)
            module = sys.modules[cls.__module__]
            if cls.__module__ not in added and hasattr(module, cls.__name__):
                saved[module, cls.__name__] = getattr(module, cls.__name__)
            setattr(module, cls.__name__, cls)
        yield
    finally:
        for name in added:
            del sys.modules[name]
        for (module, name), value in saved.items():
            setattr(module, name, value)
