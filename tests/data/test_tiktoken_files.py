"""A small table of ranks, in both published layouts."""

import base64
import json

import numpy as np
import pytest
import tokenizers

from mdm_jax import data

TOKENS = [*(bytes([i]) for i in range(256)), b"to", b" b", b" be", b"\xc3\xa9", b"ot", b" not"]
STUDY = {"special": ("<unk>", "<s>", "</s>", "<mask>"), "end": "</s>", "slots": 10}


def encoded(token):
    return base64.b64encode(token).decode()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    file = tmp_path_factory.mktemp("ranks") / "small.tiktoken"
    file.write_text("".join(f"{encoded(token)} {i}\n" for i, token in enumerate(TOKENS)))
    return str(file)


@pytest.fixture
def json_path(tmp_path):
    entries = [
        {"rank": i, "token_bytes": encoded(token), "token_str": None}
        for i, token in enumerate(TOKENS)
    ]
    file = tmp_path / "small.json"
    file.write_text(json.dumps(entries))
    return str(file)


@pytest.mark.parametrize("text", ["to be", "not to bé — 🙂\n", "<|endoftext|>", ""])
def test_text_survives_in_both_layouts(path, json_path, text):
    after = data.TiktokenTokenizer(path, data.GPT2_PATTERN)
    before = data.TiktokenTokenizer(json_path, data.GPT2_PATTERN, **STUDY)
    ids = after.encode(text)
    assert ids.dtype == np.int32 and after.decode(ids) == before.decode(before.encode(text)) == text
    np.testing.assert_array_equal(before.encode(text), ids + 10)
    np.testing.assert_array_equal(after.encode(text.encode()), ids)
    assert after.eos_id not in ids


def test_merges_follow_the_ranks_and_the_pattern(path):
    tokenizer = data.TiktokenTokenizer(path, data.GPT2_PATTERN)
    pieces = [tokenizer.decode([i]) for i in tokenizer.encode("to be not bot")]
    assert pieces == ["to", " be", " not", " b", "ot"]
    letters = data.TiktokenTokenizer(path, r"\p{L}|\s")
    assert len(letters.encode("to be")) == 5


def test_special_ids_come_after_the_ranks_or_in_slots_before_them(path):
    after = data.TiktokenTokenizer(path, data.GPT2_PATTERN)
    assert (after.vocab_size, after.eos_id) == (263, 262)
    assert after.decode([256, 262]) == "to<|endoftext|>"
    before = data.TiktokenTokenizer(path, data.GPT2_PATTERN, **STUDY)
    assert before.special_ids == {"<unk>": 0, "<s>": 1, "</s>": 2, "<mask>": 3}
    assert (before.vocab_size, before.eos_id) == (272, 2)
    assert before.decode([266, 3, 7]) == "to<mask><SPECIAL_7>"
    assert data.mask_id_for(before, 272, mask_id=3) == 3


def test_fewer_ranks_can_be_taken(path):
    tokenizer = data.TiktokenTokenizer(path, data.GPT2_PATTERN, ranks=257)
    assert tokenizer.vocab_size == 258
    assert tokenizer.encode("to be").tolist() == [256, *b" be"]


def test_bad_files_and_fields_are_named(path, tmp_path):
    def read(text, **fields):
        file = tmp_path / "bad.tiktoken"
        file.write_text(text)
        return data.TiktokenTokenizer(str(file), data.GPT2_PATTERN, **fields)

    with pytest.raises(FileNotFoundError, match="no file of ranks"):
        data.TiktokenTokenizer(str(tmp_path / "missing"), data.GPT2_PATTERN)
    for text in ("not ranks", '[{"rank": 0}]', "[1"):
        with pytest.raises(ValueError, match=r"bad\.tiktoken does not hold ranks"):
            read(text)
    with pytest.raises(ValueError, match="2 tokens, which are not distinct and ranked 0 to 1"):
        read("YQ== 0\nYg== 2\n")
    with pytest.raises(ValueError, match=r"no rank for the bytes \[0, 1"):
        read("YQ== 0\nYg== 1\n")
    with pytest.raises(ValueError, match=r"end='' must be one of special=\('a', 'b'\)"):
        data.TiktokenTokenizer(path, data.GPT2_PATTERN, special=("a", "b"))
    with pytest.raises(ValueError, match="slots=1 is fewer than"):
        data.TiktokenTokenizer(path, data.GPT2_PATTERN, special=("a", "b"), end="a", slots=1)
    with pytest.raises(ValueError, match=r"ranked 0 to 999"):
        data.TiktokenTokenizer(path, data.GPT2_PATTERN, ranks=1000)


def test_it_is_the_same_bpe_as_gpt2s_files(tmp_path):
    """One vocabulary in both layouts gives the same ids; GPT-2's own end has id 0 here."""
    bpe = tokenizers.ByteLevelBPETokenizer()
    text = ["to be or not to be, that's the question — I'll say: 1999 times\n\n  or more"] * 20
    bpe.train_from_iterator(
        text, vocab_size=320, special_tokens=["<|endoftext|>"], show_progress=False
    )
    bpe.save_model(str(tmp_path))
    files = data.Gpt2FilesTokenizer(str(tmp_path))
    # GPT-2's files write a byte as a printable character: its own, or one from U+0100 on.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    byte_of = {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}
    vocabulary = json.loads((tmp_path / "vocab.json").read_text())
    del vocabulary["<|endoftext|>"]
    lines = [
        f"{encoded(bytes(byte_of[c] for c in token))} {number - 1}"
        for token, number in vocabulary.items()
    ]
    (tmp_path / "same.tiktoken").write_text("\n".join(lines))
    ranks = data.TiktokenTokenizer(str(tmp_path / "same.tiktoken"), data.GPT2_PATTERN, slots=1)
    assert (ranks.vocab_size, ranks.eos_id) == (files.vocab_size, files.eos_id)
    for sample in (text[0], " 'tis  1234\t\n x's we'd é日本🙂 !? ", "a   b", "\n\n\nend  "):
        np.testing.assert_array_equal(ranks.encode(sample), files.encode(sample))
