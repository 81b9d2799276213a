import numpy as np
import pytest

from mdm_jax.data import ByteTokenizer, Packed, check_ids, in_memory, pack

TEXTS = ["first", b"\xff\xfe", "third document"]


@pytest.mark.parametrize("length", [1, 4, 8, 24])
def test_packing_keeps_every_token_in_order(length):
    packed = pack(in_memory(TEXTS), ByteTokenizer(), length)
    stream = b"first\x00\xff\xfe\x00third document\x00"
    assert packed.tokens.dtype == np.int32
    assert packed.where.dtype == bool
    assert packed.tokens.shape == packed.where.shape == (-(-len(stream) // length), length)
    assert bytes(packed.tokens[packed.where].tolist()) == stream
    assert packed.where.ravel().tolist() == sorted(packed.where.ravel(), reverse=True)
    assert not packed.tokens[~packed.where].any()  # padding is eos_id, 0
    assert packed.token_count == len(stream)
    assert packed.bytes == len(stream) - len(TEXTS)
    assert packed.bytes_per_token == packed.bytes / packed.token_count


def test_text_shorter_than_a_window_is_an_error():
    with pytest.raises(ValueError, match=r"24 tokens long, shorter than one window of 25"):
        pack(in_memory(TEXTS), ByteTokenizer(), 25)
    with pytest.raises(ValueError, match="length must be at least 1, got 0"):
        pack(in_memory(TEXTS), ByteTokenizer(), 0)


def test_a_tokenizer_must_keep_to_its_vocabulary():
    class Wrong(ByteTokenizer):
        def encode(self, text):
            return super().encode(text) + 200

    with pytest.raises(ValueError, match=r"token 302 at index \(0,\) is outside.* 256 ids"):
        pack(in_memory(["first"]), Wrong(), 2)


def test_check_ids_names_the_first_offender():
    tokens = np.array([[0, 1, 2], [3, 4, 5]])
    check_ids(tokens, vocab_size=6)
    check_ids(tokens, vocab_size=6, mask_id=6)
    with pytest.raises(ValueError, match=r"token 4 at index \(1, 1\) is outside .* 4 ids \(0 to 3"):
        check_ids(tokens, vocab_size=4)
    with pytest.raises(ValueError, match=r"token -1 at index \(0, 0\)"):
        check_ids(tokens - 1, vocab_size=6)
    with pytest.raises(ValueError, match=r"token 2 at index \(0, 2\) is the mask id"):
        check_ids(tokens, vocab_size=6, mask_id=2)
    with pytest.raises(TypeError, match="must be integers, got float64"):
        check_ids(tokens / 2, vocab_size=6)


def test_packed_arrays_must_agree():
    with pytest.raises(ValueError, match=r"same shape \[N, L\].* \(2, 3\) and \(2, 4\)"):
        Packed(np.zeros((2, 3), np.int32), np.ones((2, 4), bool), bytes=6)
    with pytest.raises(ValueError, match=r"above 0, got \(0, 3\)"):
        Packed(np.zeros((0, 3), np.int32), np.ones((0, 3), bool), bytes=0)
