"""Preparation: the same bytes for any number of workers and after any kill; refusals."""

import dataclasses
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mdm_jax import data
from mdm_jax.data import preparation
from mdm_jax.data.tinyllama_files import write_tokens

ROOT = Path(data.__file__).parents[2]


def texts(count=400):
    rng = random.Random(0)
    words = ["the", "number", "follows", "in", "its", "turn"]
    return [f"{i} " + " ".join(rng.choices(words, k=rng.randint(1, 60))) for i in range(count)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Three files of records, 13 units of 6,000 bytes."""
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(3):
        lines = [json.dumps({"text": text}) for text in texts()[number::3]]
        (folder / f"{number}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def recipe_for(corpus, **fields):
    settings = {"tokenizer": "byte", "length": 32, "held_out": 0.1, "unit_bytes": 6000}
    return data.Recipe(f"jsonl:{corpus}", **(settings | fields))


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    data.prepare(recipe_for(corpus), folder)
    return folder


def files(folder):
    """Names to bytes of all that is not hidden."""
    paths = [path for path in sorted(Path(folder).rglob("*")) if path.is_file()]
    assert not [path for path in paths if path.name.startswith(".")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def decoded(folder, side):
    """The text of all windows of a side."""
    windows = data.PreparedWindows(folder, side)
    rows = [windows[i] for i in range(len(windows))]
    return b"".join(bytes(row["tokens"][row["where"]].tolist()) for row in rows)


def test_every_document_is_there_once_on_its_side(corpus, whole):
    manifest = data.read_manifest(whole)
    train, held_out = data.split(data.in_memory(texts()), held_out=0.1)
    for side, documents in (("train", train), ("held_out", held_out)):
        ends = sorted(decoded(whole, side).removesuffix(b"\0").split(b"\0"))
        assert ends == sorted(documents.texts)
        assert manifest.total(side, "documents") == len(documents)
        assert manifest.total(side, "bytes") == sum(map(len, documents.texts))
        assert manifest.total(side, "tokens") == sum(len(text) + 1 for text in documents.texts)
        assert manifest.total(side, "dropped") == 0
        assert len(manifest.shards[side]) > 9
    assert len(list((whole / "units").iterdir())) == 13  # one of them holds the end of a line
    assert manifest.dtype == "uint8" and data.verify(whole) == manifest
    totals = json.loads((whole / "manifest.json").read_text())["totals"]
    assert totals["train"]["windows"] == len(data.PreparedWindows(whole, "train"))


def test_the_number_of_workers_changes_nothing(corpus, whole, tmp_path):
    data.prepare(recipe_for(corpus), tmp_path / "two", workers=2)
    assert files(tmp_path / "two") == files(whole)


KILLED = """
import os, signal, sys
from mdm_jax import data
from mdm_jax.data import preparation

written = 0
encode = preparation.encode_window

def encode_or_die(*arguments):
    global written
    written += 1
    if written == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    return encode(*arguments)

preparation.encode_window = encode_or_die
settings = {"tokenizer": "byte", "length": 32, "held_out": 0.1, "unit_bytes": 6000}
data.prepare(data.Recipe(f"jsonl:{sys.argv[1]}", **settings), sys.argv[2])
"""


def test_a_killed_preparation_goes_on_to_the_same_bytes(corpus, whole, tmp_path):
    """SIGKILL in the middle of a shard, then the same call again."""
    out = tmp_path / "out"
    command = [sys.executable, "-c", KILLED, str(corpus), str(out), "700"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert list(out.glob(".*.tmp")) and not (out / "manifest.json").exists()
    kept = {path: path.stat().st_mtime_ns for path in out.glob("*.array_record")}
    assert 0 < len(list((out / "units").iterdir())) < 13
    with pytest.raises(FileNotFoundError, match="its preparation was not finished"):
        data.PreparedWindows(out, "train")
    data.prepare(recipe_for(corpus), out)
    assert files(out) == files(whole)
    assert all(path.stat().st_mtime_ns == kept[path] for path in kept)  # not done again


def test_the_launcher(corpus, tmp_path):
    settings = ["--tokenizer=byte", "--length=32", "--packing=separate", "--unit_mb=1"]
    command = [sys.executable, "launch/prepare_data.py", f"--corpus=jsonl:{corpus}", *settings]
    done = subprocess.run(
        [*command, f"--out={tmp_path}/out"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    recipe = recipe_for(corpus, packing="separate", held_out=0.0125, unit_bytes=2**20)
    manifest = data.prepare(recipe, tmp_path / "same")
    assert files(tmp_path / "out") == files(tmp_path / "same")
    assert f"train: {manifest.total('train', 'windows'):,} windows, " in done.stdout


@pytest.mark.slow
def test_killed_at_random_times_with_two_workers(corpus, whole, tmp_path):
    """The launcher and its workers, killed at ten moments, each on what the last one left."""
    out = tmp_path / "out"
    settings = ["--tokenizer=byte", "--length=32", "--held_out=0.1", "--unit_mb=1", "--workers=2"]
    large = tmp_path / "large"
    large.mkdir()
    for number in range(24):
        lines = [json.dumps({"text": f"{number} {text} " * 9}) for text in texts(900)]
        (large / f"{number:02}.jsonl").write_text("\n".join(lines) + "\n")
    command = [sys.executable, "launch/prepare_data.py", f"--corpus=jsonl:{large}", *settings]
    rng, killed = random.Random(1), 0
    for _ in range(10):
        process = subprocess.Popen([*command, f"--out={out}"], cwd=ROOT, stderr=subprocess.DEVNULL)
        time.sleep(rng.uniform(2, 8))
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
    assert killed
    for folder in (out, tmp_path / "clean"):
        subprocess.run([*command, f"--out={folder}"], cwd=ROOT, check=True)
    assert files(out) == files(tmp_path / "clean")


def test_a_worker_that_fails_says_where(tmp_path):
    for number in range(4):
        (tmp_path / f"{number}.jsonl").write_text('{"text": "a"}\n' * 9 + '{"txt": "a"}\n')
    recipe = data.Recipe(f"jsonl:{tmp_path}", "byte", 8, unit_bytes=100)
    with pytest.raises(ValueError, match=r"0\.jsonl at byte 126: no field 'text'"):
        data.prepare(recipe, tmp_path / "out")
    assert not list((tmp_path / "out").glob(".*.tmp"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"length": 64}, "length is 64, was 32"),
        ({"packing": "separate"}, "packing is 'separate', was 'joined'"),
        ({"tokenizer": "text8"}, "tokenizer is '27 ids, .*', was '256 ids, "),
        ({"unit_bytes": 7000}, "unit_bytes is 7000, was 6000, files and their sizes is "),
    ],
)
def test_other_settings_are_refused(corpus, whole, change, message):
    with pytest.raises(ValueError, match=f"was begun with other settings: {message}"):
        data.prepare(recipe_for(corpus, **change), whole)


def test_changed_files_and_strange_folders_are_refused(tmp_path):
    (tmp_path / "a.txt").write_text("some text to prepare")
    recipe = data.Recipe(f"text:{tmp_path}/*.txt", "byte", 4, held_out=0.0)
    data.prepare(recipe, tmp_path / "out")
    (tmp_path / "a.txt").write_text("some other text to prepare")
    with pytest.raises(ValueError, match="files and their sizes is '1 units, "):
        data.prepare(recipe, tmp_path / "out")
    with pytest.raises(ValueError, match=r"is not empty \(it has 'a\.txt'\)"):
        data.prepare(recipe, tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"length": 0}, "length=0"),
        ({"unit_bytes": 0}, "unit_bytes=0"),
        ({"held_out": 1.0}, r"held_out=1\.0: expected a share"),
        ({"held_out_corpus": "text:a"}, r"held_out=0\.1 with held_out_corpus='text:a'"),
        ({"packing": "duo"}, "unknown packing 'duo'"),
        ({"detokenizer": "c4"}, "unknown detokenizer 'c4'"),
        ({"skip": "meta"}, "skip='meta': expected field=value"),
        ({"tokenizer": "none"}, "unknown tokenizer 'none'"),
        ({"length": 100_000, "packing": "md4_owt"}, "no train window of 100000 tokens"),
    ],
)
def test_settings_that_make_no_sense(corpus, tmp_path, fields, message):
    with pytest.raises(ValueError, match=message):
        data.prepare(recipe_for(corpus, **fields), tmp_path / "out")
    with pytest.raises(ValueError, match="workers=0"):
        data.prepare(recipe_for(corpus), tmp_path / "out", workers=0)


def test_another_corpus_is_held_out_and_dropped_tokens_are_counted(tmp_path):
    (tmp_path / "train.txt").write_text("abcdefgh\n" * 5)
    (tmp_path / "test.txt").write_text("the test\n" * 4)
    recipe = data.Recipe(
        f"lines:{tmp_path}/train.txt",
        "byte",
        7,
        packing="mdlm_owt",
        held_out=0.0,
        held_out_corpus=f"lines:{tmp_path}/test.txt",
    )
    manifest = data.prepare(recipe, tmp_path / "out")
    assert decoded(tmp_path / "out", "held_out")[:14] == b"\0the t\0\0est\0t\0"
    # 45 tokens of text and ends in pieces of 5: all of 9 windows; of 36, one is left over.
    assert manifest.total("train", "dropped") == 0 and manifest.total("train", "windows") == 9
    assert manifest.total("train", "bytes") == 40 and manifest.total("train", "tokens") == 63
    assert manifest.total("held_out", "dropped") == 1
    assert manifest.total("held_out", "bytes") == round(32 * 35 / 36)


def test_a_damaged_shard_is_named_and_made_again(corpus, whole, tmp_path):
    out = tmp_path / "out"
    data.prepare(recipe_for(corpus), out)
    shard = out / "train-00003.array_record"
    raw = bytearray(shard.read_bytes())
    raw[len(raw) // 2] ^= 1
    shard.write_bytes(raw)
    with pytest.raises(ValueError, match=r"train-00003\.array_record is damaged \(its SHA-256"):
        data.verify(out)
    shard.write_bytes(raw[:-9])
    (out / "units" / "00005.json").write_text("")  # as after a power cut
    with pytest.raises(ValueError, match=r"train-00003\.array_record has \d+ bytes, expected"):
        data.PreparedWindows(out, "train")
    data.prepare(recipe_for(corpus), out)
    assert files(out) == files(whole)


def test_tokens_of_tinyllama(tmp_path):
    """The published blocks come out again: the first L of every L + 1 tokens of a file."""
    rng, length = np.random.default_rng(0), 12
    tokens = rng.integers(1, 256, 10 * (length + 1))
    tokens[rng.random(tokens.size) < 0.1] = 0  # the byte tokenizer's end
    write_tokens(tmp_path / "a.bin", tokens, np.dtype("uint16"))
    write_tokens(tmp_path / "b.bin", tokens[::-1], np.dtype("uint16"))
    corpus = f"tinyllama:{tmp_path}"
    recipe = data.Recipe(corpus, "byte", length, packing="smdm", held_out=0.0)
    data.prepare(recipe, tmp_path / "out")
    windows = data.PreparedWindows(tmp_path / "out", "train")
    found = np.stack([windows[i]["tokens"] for i in range(len(windows))])
    blocks = np.concatenate([tokens, tokens[::-1]]).reshape(-1, length + 1)[:, :length]
    np.testing.assert_array_equal(found, blocks)
    write_tokens(tmp_path / "a.bin", np.array([5, 300, 0]), np.dtype("uint16"))
    with pytest.raises(ValueError, match=r"a\.bin at token 0: token 300 at index \(1,\)"):
        data.prepare(recipe, tmp_path / "out2")


def test_beam_makes_the_same_bytes(corpus, whole, tmp_path):
    pytest.importorskip("apache_beam")
    from mdm_jax.data.beam_preparation import prepare_with_beam

    prepare_with_beam(recipe_for(corpus), tmp_path, options=["--runner=DirectRunner"])
    assert files(tmp_path) == files(whole)


def test_a_recipe_is_data():
    recipe = data.Recipe("text:a", "byte", 8)
    assert data.Recipe(**json.loads(json.dumps(dataclasses.asdict(recipe)))) == recipe
    assert preparation.UNITS == "units"
