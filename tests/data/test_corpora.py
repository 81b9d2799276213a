"""Every kind of corpus gives the same documents, in order, however it is cut."""

import gzip
import json
import struct
from typing import ClassVar

import numpy as np
import pytest

from mdm_jax.data.corpora import Reading, pieces_of, read_piece, units_of
from mdm_jax.data.tinyllama_files import read_tokens, write_tokens

TEXTS = [f"document {i} " + "word é " * (i % 7) for i in range(40)]


def contents(corpus, most=10**9, **reading):
    reading = Reading(**reading)
    pieces = pieces_of(corpus, reading, most)
    units = units_of(pieces, most)
    assert [piece for unit in units for piece in unit] == pieces
    return [one.content for piece in pieces for one in read_piece(piece, reading)], len(pieces)


def write_jsonl(path, compress=None):
    lines = [json.dumps({"text": text, "meta": {"set": i % 2}}) for i, text in enumerate(TEXTS)]
    raw = ("\n".join(lines) + "\n").encode()
    path.write_bytes(compress(raw) if compress else raw)


@pytest.mark.parametrize("most", [1, 7, 100, 10**9])
def test_lines_are_read_once_wherever_the_file_is_cut(tmp_path, most):
    expected = [text.encode() for text in TEXTS]
    write_jsonl(tmp_path / "a.jsonl")
    assert contents(f"jsonl:{tmp_path}", most)[0] == expected
    (tmp_path / "b.txt").write_text("\r\n".join(TEXTS) + "\n\n")
    found, pieces = contents(f"lines:{tmp_path}/b.txt", most)
    assert found == expected
    assert (pieces > 1) == (most < 1000)


def test_compressed_records(tmp_path):
    zstandard = pytest.importorskip("zstandard")
    write_jsonl(tmp_path / "a.jsonl.gz", gzip.compress)
    write_jsonl(tmp_path / "b.jsonl.zst", zstandard.ZstdCompressor().compress)
    found, pieces = contents(f"jsonl:{tmp_path}", most=10)
    assert found == 2 * [text.encode() for text in TEXTS] and pieces == 2


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"body": TEXTS, "other": list(range(40))})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=9)
    corpus = f"parquet:{tmp_path}"
    found, pieces = contents(corpus, field="body")
    assert found == [text.encode() for text in TEXTS] and pieces == 5
    assert len(contents(corpus, field="body", skip="other=3")[0]) == 39
    with pytest.raises(ValueError, match=r"no column \['text'\]: it has \['body', 'other'\]"):
        contents(corpus)
    with pytest.raises(ValueError, match="field 'other' is of type int, expected text"):
        contents(corpus, field="other")
    (tmp_path / "b.parquet").write_text("no")
    with pytest.raises(ValueError, match=r"b\.parquet is not a Parquet file"):
        contents(corpus)


def test_text_files(tmp_path):
    for i, text in enumerate(TEXTS):
        (tmp_path / f"{i:02}.txt").write_text(text)
    (tmp_path / "99.txt").write_text("")
    found, pieces = contents(f"text:{tmp_path}/*.txt")
    assert found == [text.encode() for text in TEXTS] and pieces == 40


def test_tfds(tmp_path):
    """A dataset made and read without TensorFlow."""
    import tensorflow_datasets as tfds

    class TinyCorpus(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        url_infos: ClassVar = {}  # else they are looked for beside this file

        def _info(self):
            features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(TEXTS)}

        def _generate_examples(self, texts):
            yield from ((i, {"text": text}) for i, text in enumerate(texts))

    TinyCorpus(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    place = {"data_dir": str(tmp_path)}
    found, pieces = contents("tfds:tiny_corpus@train", most=200, **place)
    assert sorted(found) == sorted(text.encode() for text in TEXTS) and pieces > 3  # it shuffles
    assert contents("tfds:tiny_corpus@train[:10]", **place)[0] == found[:10]
    with pytest.raises(ValueError, match=r"has the splits \['train'\], not 'test'"):
        contents("tfds:tiny_corpus@test", **place)
    with pytest.raises(FileNotFoundError, match=r"'lm1b' is not prepared in .*--download"):
        contents("tfds:lm1b@train", **place)
    with pytest.raises(ValueError, match="expected tfds:NAME@SPLIT"):
        contents("tfds:tiny_corpus", **place)
    with pytest.raises(ValueError, match=r"no field 'body' in the record, which has \['text'\]"):
        contents("tfds:tiny_corpus@train", field="body", **place)


def test_tinyllama_files(tmp_path):
    """The header byte for byte; documents with their ends, without the fill of the last file."""
    path = tmp_path / "train_slim_0_0000000000.bin"
    tokens = np.array([5, 6, 2, 7, 2, 1, 1, 1])
    write_tokens(path, tokens, np.dtype("uint16"))
    header = b"LITPKDS" + struct.pack("<Q", 1) + b"\x08" + struct.pack("<Q", 8)
    assert path.read_bytes() == header + tokens.astype("<u2").tobytes() and len(header) == 24
    np.testing.assert_array_equal(read_tokens(path), tokens)
    reading = Reading(end=2, fill=1)
    (piece,) = pieces_of(f"tinyllama:{path}", reading, 1)
    documents = list(read_piece(piece, reading))
    assert [one.content.tolist() for one in documents] == [[5, 6, 2], [7, 2]]
    assert [one.last for one in documents] == [False, True]
    write_tokens(path, np.array([5, 2, 6]), np.dtype("uint16"))  # cut inside a document
    assert [one.content.tolist() for one in read_piece(piece, reading)] == [[5, 2], [6]]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"short", "is no packed token file"),
        (b"LITPKDS" + struct.pack("<QBQ", 2, 8, 0), "is of version 2, expected 1"),
        (b"LITPKDS" + struct.pack("<QBQ", 1, 6, 0), r"has the type code 6, expected one of \[1,"),
        (b"LITPKDS" + struct.pack("<QBQ", 1, 8, 9), "header says 9 tokens of uint16, which is 42"),
    ],
)
def test_damaged_tinyllama_files(tmp_path, raw, message):
    (tmp_path / "a.bin").write_bytes(raw)
    with pytest.raises(ValueError, match=rf"a\.bin.*{message}"):
        read_tokens(tmp_path / "a.bin")


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"unknown corpus 'csv:a': expected <kind>:<path>"):
        contents("csv:a")
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        contents(f"jsonl:{tmp_path}/none")
    (tmp_path / "a.jsonl").write_text("")
    with pytest.raises(ValueError, match="no text found in"):
        contents(f"jsonl:{tmp_path}")
    for line, message in [
        ("{", "at byte 12: the line is not JSON"),
        ("[1]", "at byte 12: the line is no JSON object but list"),
        ('{"a": 1}', r"at byte 12: no field 'text' in the record, which has \['a'\]"),
        ('{"text": null}', "at byte 12: field 'text' is of type NoneType, expected text"),
    ]:
        (tmp_path / "a.jsonl").write_text('{"text":""}\n' + line + "\n")
        with pytest.raises(ValueError, match=message):
            contents(f"jsonl:{tmp_path}")
