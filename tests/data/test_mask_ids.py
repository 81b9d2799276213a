"""A mask that is also a token is found and named."""

import pytest
import tokenizers

from mdm_jax import data


@pytest.fixture
def padded(tmp_path):
    """Builds a word tokenizer with special tokens, as `tokenizer.json`."""

    def build(*special):
        names = ["to", "be", "?", "<|endoftext|>"]
        model = tokenizers.models.WordLevel({n: i for i, n in enumerate(names)}, unk_token="?")
        plain = tokenizers.Tokenizer(model)
        plain.add_special_tokens(list(special))
        plain.save(str(tmp_path / "tokenizer.json"))
        return data.JsonTokenizer(str(tmp_path / "tokenizer.json"))

    return build


def test_the_default_is_the_models_last_id():
    assert data.mask_id_for(data.ByteTokenizer(), 257) == 256
    assert data.mask_id_for(data.CharTokenizer(), 28) == 27
    assert data.mask_id_for(data.ByteTokenizer(), 384) == 383  # padded for the hardware
    assert data.mask_id_for(data.ByteTokenizer(), 384, mask_id=256) == 256


def test_an_added_pad_at_the_masks_place_is_named(padded):
    plain, with_pad = padded(), padded("[PAD]")
    assert (plain.vocab_size, with_pad.vocab_size) == (4, 5)
    assert data.mask_id_for(plain, 5) == 4
    with pytest.raises(
        ValueError, match=r"mask id 4 is also the tokenizer's token '\[PAD\]'.*shared='\[PAD\]'"
    ):
        data.mask_id_for(with_pad, 5)
    assert data.mask_id_for(with_pad, 5, shared="[PAD]") == 4


def test_a_mask_token_of_the_vocabulary_is_a_mask(padded):
    tokenizer = padded("[PAD]", "[MASK]")
    assert tokenizer.special_ids == {"<|endoftext|>": 3, "[PAD]": 4, "[MASK]": 5}
    assert data.mask_id_for(tokenizer, 6) == data.mask_id_for(tokenizer, 6, mask_id=5) == 5


def test_text_and_ends_of_documents_are_no_masks():
    tokenizer = data.ByteTokenizer()
    with pytest.raises(ValueError, match=r"mask id 97 is also the tokenizer's token 'a'.*one past"):
        data.mask_id_for(tokenizer, 256, mask_id=97)
    with pytest.raises(ValueError, match=r"mask id 0 is also .* 'NUL'.*it ends documents"):
        data.mask_id_for(tokenizer, 256, mask_id=0, shared="NUL")


def test_vocabularies_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match=r"embeds 28 ids, fewer than the tokenizer's 256"):
        data.mask_id_for(data.ByteTokenizer(), 28)
    with pytest.raises(ValueError, match="mask id 257 is none of the model's 257 ids"):
        data.mask_id_for(data.ByteTokenizer(), 257, mask_id=257)
