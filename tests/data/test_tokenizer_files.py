"""A tokenizer.json trained here, used as any tokenizer is."""

import numpy as np
import pytest
import tokenizers

from mdm_jax import data


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["to be or not to be, that is the question"] * 20, trainer)
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(file))
    return str(file)


def test_text_survives_and_packs(path):
    tokenizer = data.JsonTokenizer(path)
    text = "to be — or not"
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32 and tokenizer.decode(ids) == text
    assert len(ids) < len(text.encode()) and ids.max() < tokenizer.vocab_size
    np.testing.assert_array_equal(tokenizer.encode(text.encode()), ids)
    packed = data.pack(data.in_memory([text, text]), tokenizer, length=4)
    assert packed.token_count == 2 * len(ids) + 2
    assert (packed.tokens == tokenizer.eos_id).sum() >= 2
    assert packed.bytes == 2 * len(text.encode())


def test_special_tokens_in_a_text_are_letters(path):
    tokenizer = data.JsonTokenizer(path)
    ids = tokenizer.encode("to <|endoftext|> be")
    assert tokenizer.eos_id not in ids and tokenizer.decode(ids) == "to <|endoftext|> be"


def test_bad_files_are_named(path, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no tokenizer file .*missing\.json"):
        data.JsonTokenizer(str(tmp_path / "missing.json"))
    broken = tmp_path / "broken.json"
    broken.write_text("{}")
    with pytest.raises(ValueError, match=r"broken\.json is not a tokenizer\.json"):
        data.JsonTokenizer(str(broken))
    with pytest.raises(ValueError, match="has no token <eot>"):
        data.JsonTokenizer(path, end="<eot>")


def test_the_mask_does_not_decode(path):
    tokenizer = data.JsonTokenizer(path)
    with pytest.raises(
        ValueError, match=rf"id {tokenizer.vocab_size} at position 0 is not a token"
    ):
        tokenizer.decode([tokenizer.vocab_size])
    assert tokenizer.special_ids == {"<|endoftext|>": tokenizer.eos_id}
