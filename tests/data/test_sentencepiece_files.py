"""A SentencePiece model trained here; and Llama 2's own, where MDM_LLAMA_TOKENIZER names it."""

import os

import numpy as np
import pytest
import sentencepiece

from mdm_jax import data

LLAMA = os.environ.get("MDM_LLAMA_TOKENIZER", "")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    file = tmp_path_factory.mktemp("pieces") / "tokenizer.model"
    with open(file, "wb") as writer:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["to be or not to be, that is the question"] * 20),
            model_writer=writer,
            model_type="bpe",
            vocab_size=300,
            byte_fallback=True,
            hard_vocab_limit=False,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            minloglevel=2,
        )
    return str(file)


@pytest.fixture
def tokenizer(path):
    return data.SentencePieceTokenizer(path)


@pytest.mark.parametrize("text", ["to be — or not", "  two  spaces", "line\nline", "日本 🙂", ""])
def test_text_survives(tokenizer, text):
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32 and tokenizer.decode(ids) == text
    assert ids.size == 0 or ids.max() < tokenizer.vocab_size
    np.testing.assert_array_equal(ids, tokenizer.encode(text.encode()))


def test_special_ids_are_explicit_and_never_read_from_text(tokenizer):
    assert tokenizer.special_ids == {"<unk>": 0, "<s>": 1, "</s>": 2}
    assert tokenizer.eos_id == 2
    ids = tokenizer.encode("to </s> be <s>")
    assert not {1, 2} & set(ids.tolist()) and tokenizer.decode(ids) == "to </s> be <s>"
    assert tokenizer.decode([1, *tokenizer.encode("to be"), 2]) == "to be"


def test_it_packs(tokenizer):
    packed = data.pack(data.in_memory(["to be", "or not"]), tokenizer, length=3)
    ids = [*tokenizer.encode("to be"), 2, *tokenizer.encode("or not"), 2]
    np.testing.assert_array_equal(packed.tokens[packed.where], ids)


def test_bad_files_and_ids_are_named(tokenizer, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no SentencePiece model .*missing\.model"):
        data.SentencePieceTokenizer(str(tmp_path / "missing.model"))
    broken = tmp_path / "broken.model"
    broken.write_bytes(b"not a model at all")
    with pytest.raises(ValueError, match=r"broken\.model is not a SentencePiece model"):
        data.SentencePieceTokenizer(str(broken))
    mask = tokenizer.vocab_size
    with pytest.raises(ValueError, match=rf"id {mask} at position 1 is not a piece.*if it is the"):
        tokenizer.decode([5, mask])


@pytest.mark.skipif(not os.path.isfile(LLAMA), reason="MDM_LLAMA_TOKENIZER names no file")
def test_llama_2():
    tokenizer = data.SentencePieceTokenizer(LLAMA)
    assert tokenizer.vocab_size == 32_000
    assert tokenizer.special_ids == {"<unk>": 0, "<s>": 1, "</s>": 2}
    assert tokenizer.encode("Hello world").tolist() == [15043, 3186]
    text = "Hello world </s> é🙂\n  two  spaces"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert data.mask_id_for(tokenizer, 32_001) == 32_000
