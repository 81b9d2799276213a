"""Tokenizers read from a `tokenizer.json` file (Hugging Face's format: GPT-2, BERT, Llama 3...)."""

import dataclasses
import functools
import os
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mdm_jax.data.tokenizers import as_text, one_sequence

_END_TOKENS = ("<|endoftext|>", "</s>", "<|end_of_text|>", "[SEP]")


@dataclasses.dataclass(frozen=True)
class JsonTokenizer:
    """The tokenizer in a `tokenizer.json` file; needs the `tokenizers` package.

    No special token is added to a text, and none is read out of it: a document that mentions
    ``<|endoftext|>`` in so many letters does not end there. `pack` ends documents with `eos_id`.
    Bytes that are not UTF-8 are read as U+FFFD, one for each, as these tokenizers take text only.

    Attributes:
        path: the file. Nothing is downloaded.
        end: the token that ends a document; by default the first that the file has of
            ``<|endoftext|>``, ``</s>``, ``<|end_of_text|>``, ``[SEP]``.
        vocab_size: one more than the largest id, added tokens included.
        eos_id: the id of `end`.

    Raises:
        ImportError: if `tokenizers` is not installed.
        FileNotFoundError: if there is no such file.
        ValueError: if the file is no tokenizer, or has no such end token.

    Examples:
        >>> import tempfile, tokenizers
        >>> words = {"to": 0, "be": 1, "?": 2, "</s>": 3}
        >>> file = tempfile.mkdtemp() + "/tokenizer.json"
        >>> model = tokenizers.models.WordLevel(words, unk_token="?")
        >>> plain = tokenizers.Tokenizer(model)
        >>> plain.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        >>> plain.save(file)
        >>> tokenizer = JsonTokenizer(file)
        >>> tokenizer.encode("to be"), tokenizer.vocab_size, tokenizer.eos_id
        (array([0, 1], dtype=int32), 4, 3)
    """

    path: str
    end: str = ""
    vocab_size: int = dataclasses.field(init=False)
    eos_id: int = dataclasses.field(init=False)

    def __post_init__(self):
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        candidates = [self.end] if self.end else _END_TOKENS
        present = [token for token in candidates if token in vocabulary]
        if not present:
            raise ValueError(f"{self.path} has no token {' or '.join(candidates)}: give end=...")
        object.__setattr__(self, "vocab_size", max(vocabulary.values()) + 1)
        object.__setattr__(self, "eos_id", vocabulary[present[0]])

    @property
    def special_ids(self) -> dict[str, int]:
        """The tokens the file marks as special, and `end`."""
        added = self._tokenizer.get_added_tokens_decoder().items()
        special = {token.content: number for number, token in added if token.special}
        return special | {self._tokenizer.id_to_token(self.eos_id): self.eos_id}

    def encode(self, text: str | bytes) -> np.ndarray:
        """`text` as int32[n]."""
        ids = self._tokenizer.encode(as_text(text), add_special_tokens=False).ids
        return np.asarray(ids, np.int32)

    def decode(self, ids: ArrayLike) -> str:
        """The text of int[n] ids, special tokens included.

        Raises:
            ValueError: if `ids` is not one sequence, or an id is not in the vocabulary.
        """
        ids = one_sequence(ids, self.vocab_size, "a token")
        return self._tokenizer.decode(ids.tolist(), skip_special_tokens=False)

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
            tokenizer = tokenizers.Tokenizer.from_file(self.path)
        except Exception as error:  # the package raises bare Exception on a malformed file
            raise ValueError(f"{self.path} is not a tokenizer.json: {error}") from error
        tokenizer.encode_special_tokens = True  # special tokens in a text are letters
        return tokenizer
