"""PyTorch's files: their tensors are read, their containers rebuilt, their code refused."""

import io
import os
import pickle
import tarfile
import zipfile
from collections import OrderedDict

import ml_dtypes
import numpy as np
import pytest
import torch_files
from torch_files import Parameter, Storage, Tensor, stand_in

from mdm_jax.models.convert.pickles import Inert, UnreadableError, read_pytorch
from mdm_jax.models.convert.tensors import StoredTensor

W = np.arange(12, dtype=np.float32).reshape(3, 4)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16", "int64", "bool"])
def test_every_dtype_is_read(tmp_path, dtype):
    array = W.astype(dtype if dtype != "bfloat16" else ml_dtypes.bfloat16)
    torch_files.save(tmp_path / "a.pt", {"w": Tensor(array)})
    found = read_pytorch(tmp_path / "a.pt")["w"]
    assert isinstance(found, StoredTensor)
    assert np.asarray(found).dtype == array.dtype
    np.testing.assert_array_equal(np.asarray(found), array)


def test_views_share_a_storage(tmp_path):
    storage = Storage(W)
    value = OrderedDict(
        whole=Tensor(storage=storage, shape=(3, 4)),
        row=Tensor(storage=storage, start=4, shape=(4,)),
        transposed=Tensor(storage=storage, shape=(4, 3), strides=(1, 4)),
        column=Tensor(storage=storage, start=1, shape=(3,), strides=(4,)),
        expanded=Tensor(storage=storage, start=2, shape=(2, 2), strides=(0, 1)),
        scalar=Tensor(storage=storage, start=5, shape=()),
        empty=Tensor(storage=storage, shape=(0, 4)),
        parameter=Parameter(W),
    )
    torch_files.save(tmp_path / "a.pt", value, root="some_name")
    found = read_pytorch(tmp_path / "a.pt")
    expected = {
        "whole": W,
        "row": W[1],
        "transposed": W.T,
        "column": W[:, 1],
        "expanded": [[2.0, 3.0], [2.0, 3.0]],
        "scalar": 5.0,
        "empty": np.zeros((0, 4)),
        "parameter": W,
    }
    assert list(found) == list(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(np.asarray(found[name]), array, err_msg=name)
        assert np.asarray(found[name]).flags.c_contiguous


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_objects_become_inert_records(tmp_path, protocol):
    node = stand_in("omegaconf.nodes.AnyNode")
    fast = stand_in("transformers.models.gpt2.tokenization_gpt2_fast.GPT2TokenizerFast")
    thing = node()
    thing.__dict__["_val"] = 3
    value = {"hyper_parameters": {"a": thing, "tokenizer": fast}, "epoch": 1, "s": {1, 2}}
    torch_files.save(tmp_path / "a.ckpt", value, classes=[node, fast], protocol=protocol)
    found = read_pytorch(tmp_path / "a.ckpt")
    record = found["hyper_parameters"]["a"]
    assert isinstance(record, Inert) and record.origin == "omegaconf.nodes.AnyNode"
    assert record.state == {"_val": 3}
    assert found["epoch"] == 1 and found["s"] == {1, 2}


def test_containers_and_tensors_of_other_classes(tmp_path):
    attributes = type("AttributeDict", (dict,), {"__module__": "lightning.fabric.utilities.data"})
    rebuild = stand_in("torch._tensor._rebuild_from_type_v2")
    cls = stand_in("torch.Tensor")

    class Marked:
        def __reduce__(self):
            return rebuild, (torch_files.REBUILD, cls, Tensor(W).__reduce__()[1], {"note": 1})

    value = {"w": Marked(), "hyper_parameters": attributes(lr=0.1)}
    torch_files.save(tmp_path / "a.ckpt", value, classes=[attributes, rebuild, cls])
    found = read_pytorch(tmp_path / "a.ckpt")
    np.testing.assert_array_equal(np.asarray(found["w"]), W)
    assert found["hyper_parameters"].items == [("lr", 0.1)]


ATTACKS = {
    "os.system": b"cos\nsystem\n(S'touch PROOF'\ntR.",
    "posix.system": b"cposix\nsystem\n(S'touch PROOF'\ntR.",
    "builtins.eval": b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c\x011\x85R.",
    "builtins.exec": b"c__builtin__\nexec\n(S'1'\ntR.",
    "builtins.getattr": b"cbuiltins\ngetattr\n(cbuiltins\nint\nS'real'\ntR.",
    "subprocess.Popen": b"csubprocess\nPopen\n(S'touch PROOF'\ntR.",
    "torch.hub.load": b"ctorch.hub\nload\n(S'x'\ntR.",
    "numpy.load": b"cnumpy\nload\n(S'x'\ntR.",
    "pickle.Unpickler": b"cpickle\nUnpickler\n(S'x'\ntR.",
    "importlib.import_module": b"(S'os'\niimportlib\nimport_module\n.",
    "torch.load": b"ctorch\nload\n(S'x'\ntR.",
    "torch.serialization.load": b"ctorch.serialization\nload\n(S'x'\ntR.",
    "socket.SocketType": b"csocket\nSocketType\n)R.",
    "collections.abc.os.system": (
        b"\x80\x04\x8c\x0bcollections\x8c\x0dabc.os.system\x93\x8c\x011\x85R."
    ),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_code_is_refused_by_name(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch_files.write_zip("evil.ckpt", ATTACKS[name])
    with pytest.raises(ValueError, match=rf"refused: its pickle asks for {name}, which is code"):
        read_pytorch("evil.ckpt")
    assert not os.path.exists("PROOF")


def test_a_class_is_never_made_even_if_it_is_importable(tmp_path):
    seen = []

    class Loud:
        def __reduce__(self):
            return (Loud, ())

        def __init__(self):
            seen.append(self)

    Loud.__module__, Loud.__qualname__ = "some_project.models", "Loud"
    value = {"model": Loud()}
    torch_files.save(tmp_path / "a.pt", value, classes=[Loud])
    seen.clear()
    with torch_files.importable([Loud]):
        assert isinstance(read_pytorch(tmp_path / "a.pt")["model"], Inert)
    assert not seen


def whole(path):
    torch_files.save(path, {"w": Tensor(W), "v": Tensor(np.ones(1000, np.float32))})
    return path.read_bytes()


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_truncated_files(tmp_path, kept):
    path = tmp_path / "a.pt"
    data = whole(path)
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(OSError, match=r"a\.pt is (truncated|not a file of torch\.save)"):
        read_pytorch(path)


def test_changed_bytes_fail_their_checksum(tmp_path):
    path = tmp_path / "a.pt"
    data = bytearray(whole(path))
    data[data.index(np.ones(10, np.float32).tobytes()) + 100] ^= 1
    path.write_bytes(data)
    found = read_pytorch(path)
    np.testing.assert_array_equal(np.asarray(found["w"]), W)
    with pytest.raises(OSError, match=r"damaged: a tensor .1000,. fails its checksum"):
        np.asarray(found["v"])


@pytest.mark.parametrize(
    "pickled",
    [b"", b"\x80\x02}", b"\x80\x02garbage", b"\x80\x02ctorch\nSize\nK\x01R.", b"\x80\x02N0."],
)
def test_damaged_pickles(tmp_path, pickled):
    torch_files.write_zip(tmp_path / "a.pt", pickled)
    with pytest.raises(OSError, match="damaged pickle"):
        read_pytorch(tmp_path / "a.pt")


def test_tensors_that_reach_past_their_storage(tmp_path):
    storage = Storage(W)
    for bad in (
        {"shape": (13,)},
        {"start": 1, "shape": (3, 4)},
        {"start": -1, "shape": (2,)},
        {"shape": (2, 2), "strides": (-1, 1)},
    ):
        torch_files.save(tmp_path / "a.pt", {"w": Tensor(storage=storage, **bad)})
        with pytest.raises(OSError, match="reaches past its storage"):
            read_pytorch(tmp_path / "a.pt")


def test_formats_that_are_not_read(tmp_path):
    path = tmp_path / "a.pth"

    def refused(message, error=ValueError):
        with pytest.raises(error, match=message):
            read_pytorch(path)

    legacy = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)
    path.write_bytes(legacy)
    refused(r"before version 1\.6.*torch\.save\(torch\.load")
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo("storages")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"abc"))
    refused(r"before version 1\.6")
    path.write_bytes(pickle.dumps({"w": 1}))
    refused("bare pickle")
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    refused("begins with b'vers'", OSError)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    refused("zip file but not one of torch.save")
    torch_files.save(path, {"w": Tensor(W)}, byteorder="big")
    refused("big-endian")


def test_a_file_that_was_compressed_afterwards(tmp_path):
    whole(tmp_path / "a.pt")
    with (
        zipfile.ZipFile(tmp_path / "a.pt") as old,
        zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(ValueError, match=r"compressed since torch\.save"):
        read_pytorch(tmp_path / "b.pt")


def test_whatever_bytes_change_the_error_is_a_clear_one(tmp_path):
    path = tmp_path / "a.pt"
    data = whole(path)
    rng = np.random.default_rng(0)
    outcomes = set()
    for _ in range(300):
        changed = bytearray(data)
        for at in rng.integers(0, len(data), 3):
            changed[at] = rng.integers(256)
        path.write_bytes(changed)
        try:
            for value in dict(read_pytorch(path)).values():
                np.asarray(value)
            outcomes.add("whole")
        except (OSError, UnreadableError) as error:
            outcomes.add(type(error).__name__)
    assert "OSError" in outcomes
