"""text8's alphabet."""

import string

import numpy as np
import pytest

from mdm_jax import data

tokenizer = data.CharTokenizer()


def test_the_alphabet_is_a_to_z_then_space():
    text = string.ascii_lowercase + " "
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32 and ids.tolist() == list(range(27))
    assert tokenizer.decode(ids) == text
    np.testing.assert_array_equal(tokenizer.encode(text.encode()), ids)
    assert tokenizer.encode("").shape == (0,) and tokenizer.decode([]) == ""


def test_documents_are_joined_by_a_space():
    packed = data.pack(data.in_memory(["anarchism originated", "as a term"]), tokenizer, length=31)
    assert tokenizer.decode(packed.tokens[0]) == "anarchism originated as a term "
    assert packed.where.all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("one Two", "'T' at position 4 is not one of text8's symbols"),
        ("café", "'é' at position 3"),
        ("ab\n", r"'\\n' at position 2"),
        (b"a\xff", "position 1"),
    ],
)
def test_other_characters_are_named(text, message):
    with pytest.raises(ValueError, match=message):
        tokenizer.encode(text)


def test_what_does_not_decode_is_named():
    with pytest.raises(ValueError, match=r"id 27 at position 1 is not a character \(0 to 26\)"):
        tokenizer.decode([0, 27])
    with pytest.raises(ValueError, match="decode row by row"):
        tokenizer.decode([[0, 1]])
