"""GPT-2's byte-level BPE, from its two published files."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mdm_jax.data.tokenizers import as_text, one_sequence

_NAMES = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))


@dataclasses.dataclass(frozen=True)
class Gpt2FilesTokenizer:
    r"""A byte-level BPE tokenizer in a folder of two files; needs the `tokenizers` package.

    The folder has ``vocab.json`` and ``merges.txt`` (Hugging Face), or ``encoder.json`` and
    ``vocab.bpe`` (as OpenAI published them). With GPT-2's it has 50257 ids, and nothing is added
    to them: a padding token, where others add one, would sit at 50257, which is where masked
    models have their mask.

    No special token is read out of a text: one that mentions ``<|endoftext|>`` in so many letters
    does not end there.

    Attributes:
        path: The folder. Nothing is downloaded.
        end: The token that ends a document.
        vocab_size: One more than the largest id.
        eos_id: The id of `end`.

    Raises:
        ImportError: If `tokenizers` is not installed.
        FileNotFoundError: If the folder has neither pair of files.
        ValueError: If the files are no such vocabulary, or it has no such end token.

    Examples:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> words = {"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3}
        >>> _ = (folder / "vocab.json").write_text(json.dumps(words))
        >>> _ = (folder / "merges.txt").write_text("#version: 0.2\na b\n")
        >>> tokenizer = Gpt2FilesTokenizer(str(folder))
        >>> tokenizer.encode("aba"), tokenizer.vocab_size, tokenizer.eos_id
        (array([2, 0], dtype=int32), 4, 3)
    """

    path: str
    end: str = "<|endoftext|>"
    vocab_size: int = dataclasses.field(init=False)
    eos_id: int = dataclasses.field(init=False)

    def __post_init__(self):
        vocabulary = self._tokenizer.get_vocab()
        if self.end not in vocabulary:
            raise ValueError(f"{self.path} has no token {self.end}: give end=...")
        object.__setattr__(self, "vocab_size", max(vocabulary.values()) + 1)
        object.__setattr__(self, "eos_id", vocabulary[self.end])

    @property
    def special_ids(self) -> dict[str, int]:
        """`end`, the only one."""
        return {self.end: self.eos_id}

    def encode(self, text: str | bytes) -> np.ndarray:
        """`text` as int32[n]; bytes that are not UTF-8 are read as U+FFFD.

        Raises:
            ValueError: If the vocabulary has no token for some character of the text.
        """
        encoding = self._tokenizer.encode(as_text(text), add_special_tokens=False)
        return np.asarray(encoding.ids, np.int32)

    def decode(self, ids: ArrayLike) -> str:
        """The text of int[n] ids, ends of documents included.

        Raises:
            ValueError: If `ids` is not one sequence, or an id is not in the vocabulary.
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
        vocabulary, merges = self.files()
        try:
            ids = json.loads(vocabulary.read_text(encoding="utf-8"))
            rules = [
                tuple(line.split(" "))
                for line in merges.read_text(encoding="utf-8").splitlines()
                if line and not line.startswith("#version")
            ]
            tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(ids, rules))
        except Exception as error:  # the package raises bare Exception on malformed files
            raise ValueError(
                f"{vocabulary} and {merges.name} are not a byte-level BPE vocabulary: {error}"
            ) from error
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = tokenizers.decoders.ByteLevel()
        return tokenizer

    def files(self) -> tuple[Path, Path]:
        """The two files.

        Raises:
            FileNotFoundError: If the folder has neither pair of them.
        """
        for vocabulary, merges in _NAMES:
            files = Path(self.path, vocabulary), Path(self.path, merges)
            if all(file.is_file() for file in files):
                return files
        raise FileNotFoundError(
            f"{self.path!r} is no folder with vocab.json and merges.txt, or encoder.json and "
            "vocab.bpe: copy them from a model's folder"
        )
