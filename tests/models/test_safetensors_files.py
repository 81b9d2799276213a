"""Our reader and writer of safetensors against the format's own library."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mdm_jax.models.convert.tensors import DTYPES, read_safetensors, write_safetensors

ARRAYS = {
    f"{name}.{dtype.name}": np.arange(6).reshape(2, 3).astype(dtype)
    for name in ("b", "a")
    for dtype in DTYPES.values()
} | {"empty": np.zeros((0, 3), np.float32), "scalar": np.array(2.5, ml_dtypes.bfloat16)}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def test_reads_what_the_library_writes(tmp_path):
    save_file(ARRAYS, tmp_path / "a.safetensors", {"note": "é"})
    tensors, metadata = read_safetensors(tmp_path / "a.safetensors")
    assert metadata == {"note": "é"} and tensors.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        found = np.asarray(tensors[name])
        assert found.dtype == array.dtype and found.shape == array.shape
        np.testing.assert_array_equal(found, array)


def test_writes_the_same_bytes_as_the_library(tmp_path):
    save_file(ARRAYS, tmp_path / "a.safetensors", {"format": "pt"})
    dtypes = {name: NAMES[array.dtype] for name, array in ARRAYS.items()}
    write_safetensors(tmp_path / "b.safetensors", ARRAYS.items(), dtypes)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_arrays_in_any_memory_order_are_written_by_their_values(tmp_path):
    array = np.arange(6, dtype=np.float32).reshape(2, 3).T
    write_safetensors(tmp_path / "a.safetensors", {"w": array}.items(), {"w": "F32"})
    np.testing.assert_array_equal(load_file(tmp_path / "a.safetensors")["w"], array)


@pytest.mark.parametrize("kept", [0, 7, 8, 30, 300, -1])
def test_truncated_files(tmp_path, kept):
    path = tmp_path / "a.safetensors"
    save_file({"w": np.ones(100, np.float32), "v": np.ones(9, np.int32)}, path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(OSError, match=r"a\.safetensors is truncated"):
        read_safetensors(path)


@pytest.mark.parametrize(
    "header",
    [
        b"{",
        b"[]",
        {"w": {"dtype": "F33", "shape": [1], "data_offsets": [0, 4]}},
        {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}},
        {"w": {"dtype": "F32", "shape": [-1], "data_offsets": [4, 0]}},
        {"w": {"shape": [1], "data_offsets": [0, 4]}},
        {"w": 3},
    ],
)
def test_damaged_headers(tmp_path, header):
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + bytes(4))
    with pytest.raises(OSError, match="damaged safetensors header"):
        read_safetensors(path)


def test_a_write_that_fails_leaves_no_file(tmp_path):
    path = tmp_path / "a.safetensors"
    shapes = {"w": (2,), "v": (1,)}
    dtypes = {"w": "F32", "v": "F32"}
    with pytest.raises(ValueError, match=r"announced and not given: .'v'."):
        write_safetensors(path, iter([("w", np.ones(2))]), dtypes, shapes=shapes)
    with pytest.raises(ValueError, match=r"w .3,. is not what was announced"):
        write_safetensors(path, iter([("w", np.ones(3))]), dtypes, shapes=shapes)
    assert not list(tmp_path.iterdir())
