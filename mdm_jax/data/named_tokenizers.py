"""A tokenizer from one string, as configurations, command lines and model cards have it."""

import hashlib
from pathlib import Path

from mdm_jax.data.gpt2_files import Gpt2FilesTokenizer
from mdm_jax.data.sentencepiece_files import SentencePieceTokenizer
from mdm_jax.data.tokenizer_files import JsonTokenizer
from mdm_jax.data.tokenizers import ByteTokenizer, CharTokenizer, Tokenizer


def open_tokenizer(name: str) -> Tokenizer:
    """Returns the tokenizer that a string names.

    Tiktoken ranks are not among them, as they come without the pattern that cuts a text: see
    `TiktokenTokenizer`.

    Args:
        name: "byte", "text8", or a path: of a ``tokenizer.json`` (``.json``), of a SentencePiece
            model (``.model``), or of a folder. Of a folder the first is taken that it has of
            ``tokenizer.json``, ``tokenizer.model``, and GPT-2's two files.

    Raises:
        ImportError: If the file's package is not installed.
        FileNotFoundError: If there is no such file, or none in the folder.
        ValueError: If the name is none of these, or the file is not what its name says.

    Examples:
        >>> open_tokenizer("text8").vocab_size
        27
    """
    if name in _BUILT_IN:
        return _BUILT_IN[name]()
    path = Path(name)
    if path.is_dir():
        if (path / "tokenizer.json").is_file():
            return JsonTokenizer(str(path / "tokenizer.json"))
        if (path / "tokenizer.model").is_file():
            return SentencePieceTokenizer(str(path / "tokenizer.model"))
        return Gpt2FilesTokenizer(name)
    if path.suffix == ".json":
        return JsonTokenizer(name)
    if path.suffix == ".model":
        return SentencePieceTokenizer(name)
    raise ValueError(
        f"unknown tokenizer {name!r}: expected {', '.join(map(repr, _BUILT_IN))}, or the path of a "
        ".json or .model file or of a folder with one"
    )


def tokenizer_hash(tokenizer: Tokenizer) -> str:
    """Returns a hash of what a tokenizer is made of: equal files give equal hashes, wherever.

    Args:
        tokenizer: From `open_tokenizer`.

    Examples:
        >>> tokenizer_hash(ByteTokenizer()) == tokenizer_hash(CharTokenizer())
        False
    """
    kind = type(tokenizer).__name__
    digest = hashlib.sha256(f"{kind} {tokenizer.vocab_size} {tokenizer.eos_id}".encode())
    path = getattr(tokenizer, "path", None)
    if path is not None:
        files = tokenizer.files() if isinstance(tokenizer, Gpt2FilesTokenizer) else [Path(path)]
        for file in files:
            digest.update(file.read_bytes())
    return digest.hexdigest()


_BUILT_IN = {"byte": ByteTokenizer, "text8": CharTokenizer}
