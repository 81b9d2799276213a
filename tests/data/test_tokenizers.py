import numpy as np
import pytest

from mdm_jax.data import ByteTokenizer

tokenizer = ByteTokenizer()


def test_every_byte_survives_the_round_trip():
    raw = bytes(range(256))
    ids = tokenizer.encode(raw)
    assert ids.dtype == np.int32
    assert ids.tolist() == list(range(256))
    assert tokenizer.decode_bytes(ids) == raw


@pytest.mark.parametrize("text", ["", "plain", "naïve — 日本語 🙂"])
def test_text_survives_the_round_trip(text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_text_and_its_bytes_encode_alike():
    np.testing.assert_array_equal(tokenizer.encode("é"), tokenizer.encode("é".encode()))


def test_bytes_that_are_not_text_decode_to_the_replacement_character():
    assert tokenizer.decode(tokenizer.encode(b"a\xff\xc3b")) == "a\ufffd\ufffdb"


def test_the_mask_does_not_decode():
    with pytest.raises(ValueError, match="id 256 at position 2 is not a byte"):
        tokenizer.decode([97, 98, 256])
    with pytest.raises(ValueError, match="id -1 at position 0"):
        tokenizer.decode([-1])


def test_a_batch_does_not_decode_as_one_sequence():
    with pytest.raises(ValueError, match=r"shape \(2, 3\): decode row by row"):
        tokenizer.decode(np.zeros((2, 3), np.int32))


def test_equal_tokenizers_are_equal():
    assert tokenizer == ByteTokenizer()
    assert (tokenizer.vocab_size, tokenizer.eos_id) == (256, 0)
