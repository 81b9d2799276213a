"""Windows of prepared data: access, mixtures, the same batches for any number of hosts."""

import itertools
import pickle
import shutil

import jax
import numpy as np
import pytest

from mdm_jax import data
from mdm_jax.train.meshes import make_mesh, row_ranges


def prepare(folder, letters, length=8, **fields):
    """Windows whose tokens are the given letters."""
    folder.mkdir()
    rows = [f"{letter}{i:03}" * 9 for letter, i in itertools.product(letters, range(20))]
    (folder / "text.txt").write_text("\n".join(rows) + "\n")
    settings = {"held_out": 0.2, "unit_bytes": 700} | fields
    recipe = data.Recipe(f"lines:{folder}/text.txt", "byte", length, **settings)
    data.prepare(recipe, folder / "out")
    return str(folder / "out")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two joined corpora, one with documents kept apart."""
    top = tmp_path_factory.mktemp("prepared")
    return {
        "a": prepare(top / "a", "ab", packing="md4_owt"),
        "c": prepare(top / "c", "cde", packing="md4_owt"),
        "apart": prepare(top / "apart", "xyz", length=50, packing="separate"),
    }


def test_it_is_what_packing_in_memory_gives(tmp_path):
    """One unit, so windows run on as they do in memory."""
    path = prepare(tmp_path / "one", "pq", unit_bytes=10**6)
    lines = (tmp_path / "one" / "text.txt").read_text().splitlines()
    train, held_out = data.split(data.in_memory(lines), held_out=0.2)
    for side, documents in (("train", train), ("held_out", held_out)):
        packed = data.pack(documents, data.ByteTokenizer(), 8)
        windows = data.PreparedWindows(path, side)
        assert (len(windows), windows.token_count) == (len(packed), packed.token_count)
        assert windows.bytes == packed.bytes and windows.bytes_per_token == packed.bytes_per_token
        for seed in (0, 1):
            ours, theirs = (data.Batches(one, 4, seed) for one in (windows, packed))
            for step in (0, 1, 77):
                for name, array in theirs(step).items():
                    np.testing.assert_array_equal(ours(step)[name], array)
                assert set(ours(step)) == {"tokens", "where"}
        pairs = zip(
            data.evaluation_batches(windows, 5), data.evaluation_batches(packed, 5), strict=True
        )
        for ours, theirs in pairs:
            np.testing.assert_array_equal(ours["tokens"], theirs["tokens"])
            np.testing.assert_array_equal(ours["where"], theirs["where"])
        sample, same = data.evenly_spaced(windows, 3), data.evenly_spaced(packed, 3)
        np.testing.assert_array_equal(sample.tokens, same.tokens)
        assert sample.bytes == same.bytes


def test_segments_where_documents_are_kept_apart(folders):
    windows = data.PreparedWindows(folders["apart"], "train")
    batch = data.Batches(windows, 6, seed=0)(0)
    assert {name: (x.shape, x.dtype) for name, x in batch.items()} == {
        "tokens": ((6, 50), np.int32),
        "where": ((6, 50), np.bool_),
        "segments": ((6, 50), np.int32),
    }
    np.testing.assert_array_equal(batch["segments"] > 0, batch["where"])
    for tokens, segments in zip(batch["tokens"], batch["segments"], strict=True):
        ends = np.flatnonzero((tokens == 0) & (segments > 0))
        np.testing.assert_array_equal(segments[ends], np.arange(1, len(ends) + 1))
    (evaluated, *_) = data.evaluation_batches(data.sample_windows(windows, 3), 4)
    assert evaluated["segments"].shape == (4, 50) and not evaluated["where"][3].any()


def test_it_can_be_pickled_and_indexed(folders):
    windows = data.PreparedWindows(folders["a"], "train")
    windows[0]
    again = pickle.loads(pickle.dumps(windows))
    np.testing.assert_array_equal(again[5]["tokens"], windows[5]["tokens"])
    for index in (-1, len(windows)):
        with pytest.raises(IndexError, match=f"window {index} of {len(windows)} in "):
            windows[index]
    assert len(windows.manifest.shards["train"]) > 1 and "train windows of 8" in repr(windows)


def test_hosts_read_their_rows_of_the_same_batch(folders):
    """1, 2 and 4 hosts of 8 devices: what they read, put together, is the batch."""
    mixture = data.open_prepared(f"{folders['a']}=0.7,{folders['c']}=0.3", "train")
    mesh = make_mesh({"data": 4, "fsdp": 2, "tensor": 1})
    for windows in (mixture, data.PreparedWindows(folders["apart"], "train")):
        batches = data.Batches(windows, 16, seed=5)
        for step, hosts in itertools.product((0, 9, 1000), (1, 2, 4)):
            whole = data.Batches(windows, 16, seed=5)(step)
            seen = []
            for host in range(hosts):
                each = jax.device_count() // hosts
                mine = mesh.devices.reshape(-1)[host * each : (host + 1) * each]
                for start, stop in row_ranges(mesh, 16, mine):
                    rows = batches.rows(step, start, stop)
                    seen += range(start, stop)
                    for name, array in whole.items():
                        np.testing.assert_array_equal(rows[name], array[start:stop])
            assert sorted(seen) == list(range(16))


def test_a_mixture_keeps_its_weights_and_its_parts_their_epochs(folders):
    mixture = data.open_prepared(f"{folders['a']}=3,{folders['c']}=1", "train")
    parts = mixture.parts
    assert len(mixture) == sum(map(len, parts)) and mixture.weights == (3.0, 1.0)
    np.testing.assert_array_equal(mixture[len(parts[0])]["tokens"], parts[1][0]["tokens"])
    batches = data.Batches(mixture, 4, seed=0)
    keys = [{part[i]["tokens"].tobytes() for i in range(len(part))} for part in parts]
    assert not keys[0] & keys[1]
    rows = [row.tobytes() for step in range(len(mixture)) for row in batches(step)["tokens"]]
    for shard in range(0, len(rows), 4):  # three in four of every batch, not only on average
        assert sum(row in keys[0] for row in rows[shard : shard + 4]) == 3
    first = [row for row in rows if row in keys[0]][: len(parts[0])]
    counts = {row: first.count(row) for row in set(first)}
    whole = [parts[0][i]["tokens"].tobytes() for i in range(len(parts[0]))]
    assert counts == {row: whole.count(row) for row in set(whole)}  # one epoch, once each
    assert not np.array_equal(batches(0)["tokens"], data.Batches(mixture, 4, 1)(0)["tokens"])
    other = data.open_prepared(f"{folders['a']}=1,{folders['c']}=1", "train")
    assert other.fingerprint() != mixture.fingerprint()
    assert mixture.bytes == sum(part.bytes for part in parts)
    with pytest.raises(IndexError):
        mixture[len(mixture)]


def test_the_order_is_the_same_in_every_version(folders):
    """Fails when Grain changes how it mixes: runs then no longer resume on the same data."""
    mixture = data.open_prepared(f"{folders['a']}=0.7,{folders['c']}=0.3", "train")
    first = {bytes(mixture.parts[0][i]["tokens"].tolist()) for i in range(len(mixture.parts[0]))}
    rows = data.Batches(mixture, 10, seed=0)(0)["tokens"]
    drawn = "".join("a" if bytes(row.tolist()) in first else "c" for row in rows)
    assert drawn.count("a") == 7 and drawn == ORDER


ORDER = "aaacaacaac"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("{a}=0.7,{c}=0", "with positive weights, got '.*=0'"),
        ("{a}=0.7,{c}=-1", "with positive weights, got '.*=-1'"),
        ("{a}=0.7,{c}=nan", "with positive weights, got '.*=nan'"),
        ("{a}=0.7,{c}", "with positive weights, got '"),
        ("{a}=0.7,{apart}=0.3", "cannot be mixed: length is 8 and 50"),
    ],
)
def test_mixtures_that_make_no_sense(folders, path, message):
    with pytest.raises(ValueError, match=message):
        data.open_prepared(path.format(**folders), "train")


def test_held_out_windows_of_a_mixture(folders, tmp_path):
    none = prepare(tmp_path / "none", "k", held_out=0.0)
    held_out = data.open_prepared(f"{folders['a']}=1,{none}=1", "held_out")
    assert [part.folder.parent.name for part in held_out.parts] == ["a"]
    with pytest.raises(ValueError, match="has no held_out windows: prepare it with held_out"):
        data.open_prepared(none, "held_out")
    with pytest.raises(ValueError, match="no part has held-out windows"):
        data.open_prepared(f"{none}=1,{none}=2", "held_out")
    with pytest.raises(ValueError, match="0 parts with 0 weights"):
        data.Mixture([], [])
    part = data.PreparedWindows(none, "train")
    with pytest.raises(ValueError, match=r"weights=\[0\.0\]: expected positive numbers"):
        data.Mixture([part], [0.0])


def test_what_is_missing_or_damaged_is_named(folders, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no prepared data in .*launch/prepare_data\.py"):
        data.PreparedWindows(tmp_path, "train")
    copy = tmp_path / "copy"
    shutil.copytree(folders["a"], copy)
    shard = copy / "train-00001.array_record"
    raw = shard.read_bytes()
    damaged = bytearray(raw)
    damaged[raw.index(b"\0\0\0a") if b"\0\0\0a" in raw else 200] ^= 0xFF
    shard.write_bytes(damaged)
    windows = data.PreparedWindows(copy, "train")
    with pytest.raises(OSError, match=r"train-0000\d\.array_record cannot be read: .*--verify="):
        for index in range(len(windows)):
            windows[index]
    shard.unlink()
    with pytest.raises(ValueError, match=r"train-00001\.array_record is missing"):
        data.PreparedWindows(copy, "train")
    manifest = copy / "manifest.json"
    for text, message in [("{", "is not a manifest"), ('{"format": 9}', "is of format 9")]:
        manifest.write_text(text)
        with pytest.raises(ValueError, match=message):
            data.PreparedWindows(copy, "train")


def test_more_shards_than_files_may_be_open(folders, monkeypatch):
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(resource, "getrlimit", lambda which: (100, 100))
    with pytest.raises(ValueError, match=r"\d shards, and this process may open 100 files"):
        data.PreparedWindows(folders["a"], "train")
