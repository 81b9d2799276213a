"""Tokenizers read from a `tokenizer.json` file (Hugging Face's format: GPT-2, BERT, Llama 3...)."""

import dataclasses
import functools
import os
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

_END_TOKENS = ("<|endoftext|>", "</s>", "<|end_of_text|>", "[SEP]")


@dataclasses.dataclass(frozen=True)
class JsonTokenizer:
    """The tokenizer in a `tokenizer.json` file; needs the `tokenizers` package.

    Special tokens of the file are not added to texts: `pack` ends documents with `eos_id`.

    Attributes:
        path: the file. Nothing is downloaded.
        end: the token that ends a document; by default the first that the file has of
            ``<|endoftext|>``, ``</s>``, ``<|end_of_text|>``, ``[SEP]``.

    Raises:
        ImportError: if `tokenizers` is not installed.
        FileNotFoundError: if there is no such file.
        ValueError: if the file is no tokenizer, or has no such end token.
    """

    path: str
    end: str = ""

    def __post_init__(self):
        if self.eos_id is None:
            asked = [self.end] if self.end else list(_END_TOKENS)
            raise ValueError(f"{self.path} has no token {' or '.join(asked)}: give end=...")

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        return self._tokenizer.get_vocab_size()

    @functools.cached_property
    def eos_id(self) -> int:
        """The id that ends a document."""
        candidates = [self.end] if self.end else _END_TOKENS
        ids = (self._tokenizer.token_to_id(token) for token in candidates)
        return next((i for i in ids if i is not None), None)  # type: ignore[return-value]

    def encode(self, text: str | bytes) -> np.ndarray:
        """`text` as int32[n]; bytes that are not UTF-8 are read as U+FFFD."""
        text = text.decode(errors="replace") if isinstance(text, bytes) else text
        return np.asarray(self._tokenizer.encode(text, add_special_tokens=False).ids, np.int32)

    def decode(self, ids: ArrayLike) -> str:
        """The text of int[n] ids, special tokens included."""
        return self._tokenizer.decode(np.asarray(ids).tolist(), skip_special_tokens=False)

    @functools.cached_property
    def _tokenizer(self) -> Any:
        try:
            import tokenizers
        except ImportError as error:
            raise ImportError(
                f"reading {self.path} needs the tokenizers package: pip install "
                "'mdm-jax[tokenizers]'"
            ) from error
        if not os.path.isfile(self.path):
            raise FileNotFoundError(
                f"no tokenizer file {self.path!r}: save one with tokenizer.save(path), or copy "
                "tokenizer.json from a model's folder"
            )
        try:
            return tokenizers.Tokenizer.from_file(self.path)
        except Exception as error:  # the package raises bare Exception on a malformed file
            raise ValueError(f"{self.path} is not a tokenizer.json: {error}") from error
