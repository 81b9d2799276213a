"""GPT-2's two files, trained here on a little text, against the same tokenizer's tokenizer.json."""

import json
import pathlib

import numpy as np
import pytest
import tokenizers

from mdm_jax import data

TEXTS = ["to be — or not", "  spaces\n\nand lines\t", "<|endoftext|> in letters", "日本語 🙂", ""]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpt2")
    bpe = tokenizers.ByteLevelBPETokenizer()
    text = ["to be or not to be, that is the question — 'tis, I'll say"] * 20
    bpe.train_from_iterator(
        text, vocab_size=330, special_tokens=["<|endoftext|>"], show_progress=False
    )
    bpe.save_model(str(folder))  # vocab.json and merges.txt
    bpe.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def tokenizer(folder):
    return data.Gpt2FilesTokenizer(str(folder))


@pytest.mark.parametrize("text", TEXTS)
def test_it_agrees_with_the_tokenizer_json(folder, tokenizer, text):
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32 and tokenizer.decode(ids) == text
    whole = data.JsonTokenizer(str(folder / "tokenizer.json"))
    np.testing.assert_array_equal(ids, whole.encode(text))
    np.testing.assert_array_equal(ids, tokenizer.encode(text.encode()))


def test_special_ids_are_explicit_and_never_read_from_text(tokenizer):
    assert tokenizer.special_ids == {"<|endoftext|>": tokenizer.eos_id}
    assert tokenizer.eos_id not in tokenizer.encode("to <|endoftext|> be")
    assert tokenizer.decode([tokenizer.eos_id]) == "<|endoftext|>"
    vocabulary = json.loads(pathlib.Path(tokenizer.path, "vocab.json").read_text())
    assert tokenizer.vocab_size == len(vocabulary)


def test_openai_file_names_read_alike(folder, tmp_path, tokenizer):
    (tmp_path / "encoder.json").write_bytes((folder / "vocab.json").read_bytes())
    (tmp_path / "vocab.bpe").write_bytes((folder / "merges.txt").read_bytes())
    other = data.Gpt2FilesTokenizer(str(tmp_path))
    np.testing.assert_array_equal(other.encode(TEXTS[0]), tokenizer.encode(TEXTS[0]))


def test_bad_files_are_named(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder with vocab\.json and merges\.txt"):
        data.Gpt2FilesTokenizer(str(tmp_path))
    with pytest.raises(ValueError, match="has no token <eot>: give end="):
        data.Gpt2FilesTokenizer(str(folder), end="<eot>")
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    (tmp_path / "merges.txt").write_text("x y\n")
    with pytest.raises(ValueError, match=r"merges\.txt are not a byte-level BPE vocabulary"):
        data.Gpt2FilesTokenizer(str(tmp_path))
    with pytest.raises(ValueError, match=r"id 999 at position 0 is not a token"):
        data.Gpt2FilesTokenizer(str(folder)).decode([999])
