"""Packers: the published rules on documents small enough to pack by hand."""

from types import MappingProxyType

import numpy as np
import pytest

from mdm_jax import data
from mdm_jax.data.packers import Packing, SpecialIds, make_packer
from mdm_jax.data.presets import PRESETS, packing_preset, special_ids_of
from mdm_jax.data.window_records import (
    Window,
    decode_window,
    encode_window,
    segment_ids,
    token_dtype,
)

BEGIN, END, PAD = 1, 2, 0
SPECIAL = SpecialIds(BEGIN, END, PAD)


def packed(packing, length, documents):
    """(tokens, real, starts) of the windows; documents are given with their end."""
    packing = packing_preset(packing) if isinstance(packing, str) else packing
    packer = make_packer(packing, length, SPECIAL)
    windows = [window for one in documents for window in packer.add(np.array(one))]
    windows += packer.finish()
    return [(w.tokens.tolist(), w.real, w.starts.tolist()) for w in windows]


DOCUMENTS = [[10, 11, END], [12, END], [13, 14, 15, END]]


@pytest.mark.parametrize(
    ("packing", "length", "windows"),
    [
        (
            "joined",
            4,
            [([10, 11, 2, 12], 4, [0, 3]), ([2, 13, 14, 15], 4, [0, 1]), ([2, 2, 2, 2], 1, [0])],
        ),
        ("md4_owt", 4, [([10, 11, 2, 12], 4, [0, 3]), ([2, 13, 14, 15], 4, [0, 1])]),
        ("scaling", 5, [([10, 11, 2, 12, 2], 5, [0, 3])]),
        ("esolm_owt", 5, [([10, 11, 2, 12, 2], 5, [0, 3])]),
        # Pieces of L - 2, framed; what is left of a group of documents is dropped.
        (
            "mdlm_owt",
            6,
            [([1, 10, 11, 2, 12, 2], 6, [0, 4]), ([1, 2, 13, 14, 15, 2], 6, [0, 2])],
        ),
        # Blocks of L + 1 without their last token; the fill of the last is not scored.
        ("smdm", 4, [([10, 11, 2, 12], 4, [0, 3]), ([13, 14, 15, 2], 4, [0])]),
        ("smdm", 6, [([10, 11, 2, 12, 2, 13], 6, [0, 3, 5]), ([15, 2, 1, 1, 1, 1], 2, [0])]),
        # Whole documents where they fit: the one of 4 does not fit beside the first.
        ("separate", 5, [([10, 11, 2, 12, 2], 5, [0, 3]), ([13, 14, 15, 2, 2], 4, [0])]),
    ],
)
def test_windows_of_three_documents(packing, length, windows):
    preset = PRESETS[packing]
    pad = {"end": END, "begin": BEGIN, "pad": PAD}[preset.pad]
    packer = make_packer(preset, length, SpecialIds(BEGIN, END, pad))
    found = [window for one in DOCUMENTS for window in packer.add(np.array(one))]
    found += packer.finish()
    assert [(w.tokens.tolist(), w.real, w.starts.tolist()) for w in found] == windows


def test_one_document_in_each_window():
    windows = packed("mdlm_lm1b", 6, [[10, 11], [12, 13, 14, 15, 16]])
    assert windows == [
        ([1, 10, 11, 2, 0, 0], 4, [0]),
        ([1, 12, 13, 14, 15, 2], 6, [0]),  # cut off
    ]


def test_what_is_left_of_a_group_is_dropped():
    packing = Packing(group=2, drop=True)
    windows = packed(packing, 3, [[5, 2], [6, 2], [7, 2], [8, 2]])
    assert [tokens for tokens, _, _ in windows] == [[5, 2, 6], [7, 2, 8]]


def test_joined_is_what_packing_in_memory_does():
    texts = [b"x" * n for n in np.random.default_rng(0).integers(1, 60, 300)]
    tokenizer = data.ByteTokenizer()
    expected = data.pack(data.in_memory(texts), tokenizer, 7)
    documents = [np.append(tokenizer.encode(text), 0) for text in texts]
    packer = make_packer(PRESETS["joined"], 7, SpecialIds(0, 0, 0))
    windows = [window for one in documents for window in packer.add(one)] + packer.finish()
    np.testing.assert_array_equal([w.tokens for w in windows], expected.tokens)
    assert sum(w.real for w in windows) == expected.token_count
    # Every document begins in some window, or where a window begins with its continuation.
    begins = np.cumsum([0, *map(len, documents)])[:-1]
    found = {7 * i + s for i, w in enumerate(windows) for s in w.starts if s or 7 * i in begins}
    assert found == set(begins.tolist())


def test_documents_kept_apart_lose_nothing_and_are_whole_where_they_fit():
    length, rng = 16, np.random.default_rng(1)
    documents = [np.full(n, 100 + i) for i, n in enumerate(rng.integers(1, 40, 500))]
    windows = packed("separate", length, documents)
    seen: dict[int, list[int]] = {}
    for tokens, real, starts in windows:
        assert real <= length and starts[0] == 0
        for start, stop in zip(starts, [*starts[1:], real], strict=True):
            ids = set(tokens[start:stop])
            assert len(ids) == 1  # a segment is of one document
            seen.setdefault(ids.pop(), []).append(stop - start)
    for i, document in enumerate(documents):
        pieces = sorted(seen[100 + i], reverse=True)
        whole, rest = divmod(len(document), length)
        assert pieces == [length] * whole + [rest] * (rest > 0)
    padding = 1 - sum(real for _, real, _ in windows) / (length * len(windows))
    assert padding < 0.05  # best fit leaves little room


def test_ids_of_the_frame():
    class Bert(data.ByteTokenizer):
        special_ids = MappingProxyType({"[CLS]": 7, "[SEP]": 0, "[PAD]": 9})

    assert special_ids_of(Bert(), PRESETS["mdlm_lm1b"]) == (7, 0, 9)
    assert special_ids_of(Bert(), PRESETS["duo_lm1b_wrap"]) == (7, 7, 7)
    assert special_ids_of(data.ByteTokenizer(), PRESETS["mdlm_owt"]) == (0, 0, 0)
    with pytest.raises(ValueError, match=r"unknown packing 'bd3': expected one of .*'mdlm_owt'"):
        packing_preset("bd3")
    with pytest.raises(ValueError, match="length=2 leaves no room for text beside the 2 tokens"):
        make_packer(PRESETS["mdlm_owt"], 2, SPECIAL)


@pytest.mark.parametrize("vocab_size", [256, 50_257, 131_072])
def test_records_give_back_the_window(vocab_size):
    dtype, length = token_dtype(vocab_size), 9
    tokens = np.random.default_rng(0).integers(vocab_size - 9, vocab_size, length)
    window = Window(tokens, 7, np.array([0, 3, 4]))
    read = decode_window(encode_window(window, dtype), dtype, length)
    np.testing.assert_array_equal(read.tokens, tokens)
    assert (read.tokens.dtype, read.real, read.starts.tolist()) == (np.int32, 7, [0, 3, 4])
    assert segment_ids(read).tolist() == [1, 1, 1, 2, 3, 3, 3, 0, 0]
    with pytest.raises(ValueError, match="is no window of 99 tokens"):
        decode_window(encode_window(window, dtype), dtype, 99)
    with pytest.raises(ValueError, match="vocab_size=0"):
        token_dtype(0)
