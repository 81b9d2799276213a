"""Tokenizers read from a SentencePiece model file (Llama 2, T5...)."""

import dataclasses
import functools
import os
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mdm_jax.data.tokenizers import as_text, one_sequence


@dataclasses.dataclass(frozen=True)
class SentencePieceTokenizer:
    """The tokenizer in a SentencePiece model file; needs the `sentencepiece` package.

    No special piece is added to a text, and none is read out of it: a document that mentions
    ``</s>`` in so many letters does not end there. `pack` ends documents with `eos_id`.

    Attributes:
        path: The file, such as Llama 2's ``tokenizer.model``. Nothing is downloaded.
        vocab_size: Number of pieces: 32000 in Llama 2's. A mask lies past them.
        eos_id: The piece that ends a document.

    Raises:
        ImportError: If `sentencepiece` is not installed.
        FileNotFoundError: If there is no such file.
        ValueError: If the file is no model, or has no piece for the end of a document.

    Examples:
        >>> import tempfile, sentencepiece
        >>> file = tempfile.mkdtemp() + "/tokenizer.model"
        >>> with open(file, "wb") as writer:
        ...     sentencepiece.SentencePieceTrainer.train(
        ...         sentence_iterator=iter(["to be or not to be"] * 9),
        ...         model_writer=writer,
        ...         vocab_size=11,
        ...         minloglevel=2,
        ...     )
        >>> tokenizer = SentencePieceTokenizer(file)
        >>> tokenizer.decode(tokenizer.encode("to be")), tokenizer.vocab_size, tokenizer.eos_id
        ('to be', 11, 2)
    """

    path: str
    vocab_size: int = dataclasses.field(init=False)
    eos_id: int = dataclasses.field(init=False)

    def __post_init__(self):
        eos_id = self._processor.eos_id()
        if eos_id < 0:
            raise ValueError(f"{self.path} has no piece that ends a document (eos_id is -1)")
        object.__setattr__(self, "vocab_size", self._processor.get_piece_size())
        object.__setattr__(self, "eos_id", eos_id)

    @property
    def special_ids(self) -> dict[str, int]:
        """The pieces for unknown text, beginning, end and padding, as far as the model has them."""
        processor = self._processor
        numbers = (processor.unk_id(), processor.bos_id(), self.eos_id, processor.pad_id())
        return {processor.id_to_piece(number): number for number in numbers if number >= 0}

    def encode(self, text: str | bytes) -> np.ndarray:
        """`text` as int32[n]; bytes that are not UTF-8 are read as U+FFFD."""
        return np.asarray(self._processor.encode(as_text(text), out_type=int), np.int32)

    def decode(self, ids: ArrayLike) -> str:
        """The text of int[n] ids; control pieces such as ``</s>`` are no text and leave none.

        Raises:
            ValueError: If `ids` is not one sequence, or an id is not a piece.
        """
        return self._processor.decode(one_sequence(ids, self.vocab_size, "a piece").tolist())

    @functools.cached_property
    def _processor(self) -> Any:
        try:
            import sentencepiece
        except ImportError as error:
            raise ImportError(
                f"reading {self.path} needs the sentencepiece package: pip install "
                "'mdm-jax[sentencepiece]'"
            ) from error
        if not os.path.isfile(self.path):
            raise FileNotFoundError(
                f"no SentencePiece model {self.path!r}: copy tokenizer.model from a model's folder"
            )
        try:
            return sentencepiece.SentencePieceProcessor(model_file=self.path)
        except (RuntimeError, OSError) as error:
            raise ValueError(f"{self.path} is not a SentencePiece model: {error}") from error
