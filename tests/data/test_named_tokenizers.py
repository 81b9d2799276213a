import pytest
import sentencepiece
import tokenizers

from mdm_jax import data


@pytest.fixture
def folder(tmp_path):
    """A folder with every kind of file, all of the same text."""
    text = ["to be or not to be"] * 9
    bpe = tokenizers.ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        text, vocab_size=260, special_tokens=["<|endoftext|>"], show_progress=False
    )
    bpe.save_model(str(tmp_path))
    bpe.save(str(tmp_path / "tokenizer.json"))
    with open(tmp_path / "tokenizer.model", "wb") as writer:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(text), model_writer=writer, vocab_size=11, minloglevel=2
        )
    return tmp_path


def test_a_folder_gives_the_first_it_has(folder):
    assert data.open_tokenizer(str(folder)) == data.JsonTokenizer(str(folder / "tokenizer.json"))
    (folder / "tokenizer.json").unlink()
    pieces = data.SentencePieceTokenizer(str(folder / "tokenizer.model"))
    assert data.open_tokenizer(str(folder)) == pieces
    assert data.open_tokenizer(str(folder / "tokenizer.model")) == pieces
    (folder / "tokenizer.model").unlink()
    assert data.open_tokenizer(str(folder)) == data.Gpt2FilesTokenizer(str(folder))
    (folder / "merges.txt").unlink()
    with pytest.raises(FileNotFoundError, match="is no folder with"):
        data.open_tokenizer(str(folder))


def test_names():
    assert data.open_tokenizer("byte") == data.ByteTokenizer()
    assert data.open_tokenizer("text8") == data.CharTokenizer()
    with pytest.raises(ValueError, match="unknown tokenizer 'gpt2': expected 'byte', 'text8'"):
        data.open_tokenizer("gpt2")
    with pytest.raises(FileNotFoundError, match="no tokenizer file"):
        data.open_tokenizer("missing/tokenizer.json")
