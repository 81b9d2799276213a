"""Tokenizers read from a file of tiktoken ranks (GPT-4, Nemotron, the scaling study's 128k...)."""

import base64
import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mdm_jax.data.tokenizers import as_text, one_sequence

GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""How GPT-2's vocabulary cuts a text before merging bytes."""


@dataclasses.dataclass(frozen=True)
class TiktokenTokenizer:
    r"""A byte-level BPE given by ranks; needs the `tiktoken` package.

    A ranks file holds neither the pattern that cuts a text nor the special tokens, so both are
    given here. No special token is read out of a text.

    Attributes:
        path: The file: lines of "base64 rank" (``*.tiktoken``), or a JSON list of
            ``{"rank", "token_bytes"}``. Nothing is downloaded.
        pattern: The regular expression that cuts a text, as published with the ranks.
        special: Names of the special tokens, in the order of their ids.
        end: The one that ends a document.
        slots: Ids in front of the ranks that are special, whether named or not. With 0, the
            special tokens come after the ranks. The scaling study has 1000 in front, the first
            four named ``<unk>``, ``<s>``, ``</s>``, ``<mask>``.
        ranks: How many ranks to take of the file, or 0 for all.
        vocab_size: Number of ids, special ones included.
        eos_id: The id of `end`.

    Raises:
        ImportError: If `tiktoken` is not installed.
        FileNotFoundError: If there is no such file.
        ValueError: If the file holds no such ranks, or `end` and `slots` do not fit `special`.

    Examples:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp(), "bytes.tiktoken")
        >>> merges = [*(bytes([i]) for i in range(256)), b"to"]
        >>> lines = [f"{base64.b64encode(m).decode()} {rank}" for rank, m in enumerate(merges)]
        >>> _ = file.write_text("\n".join(lines))
        >>> tokenizer = TiktokenTokenizer(str(file), GPT2_PATTERN)
        >>> tokenizer.encode("to b"), tokenizer.vocab_size, tokenizer.eos_id
        (array([256,  32,  98], dtype=int32), 258, 257)
    """

    path: str
    pattern: str
    special: tuple[str, ...] = ("<|endoftext|>",)
    end: str = ""
    slots: int = 0
    ranks: int = 0
    vocab_size: int = dataclasses.field(init=False)
    eos_id: int = dataclasses.field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "special", tuple(self.special))
        end = self.end or (self.special[0] if len(self.special) == 1 else "")
        if end not in self.special:
            raise ValueError(f"end={end!r} must be one of special={self.special}")
        if self.slots and self.slots < len(self.special):
            raise ValueError(f"slots={self.slots} is fewer than special={self.special}")
        count = len(self._ranks)
        object.__setattr__(self, "vocab_size", count + (self.slots or len(self.special)))
        object.__setattr__(self, "eos_id", self.special_ids[end])

    @property
    def special_ids(self) -> dict[str, int]:
        """The special tokens that have a name."""
        first = 0 if self.slots else len(self._ranks)
        return {name: first + i for i, name in enumerate(self.special)}

    def encode(self, text: str | bytes) -> np.ndarray:
        """`text` as int32[n]; bytes that are not UTF-8 are read as U+FFFD."""
        ids = np.asarray(self._encoding.encode_ordinary(as_text(text)), np.int32)
        return ids + np.int32(self.slots)

    def decode(self, ids: ArrayLike) -> str:
        """The text of int[n] ids, special tokens by name (``<SPECIAL_i>`` where they have none).

        Raises:
            ValueError: If `ids` is not one sequence, or an id is not a token.
        """
        ids = one_sequence(ids, self.vocab_size, "a token")
        return b"".join(self._bytes(int(i)) for i in ids).decode(errors="replace")

    def _bytes(self, number: int) -> bytes:
        rank = number - self.slots
        if 0 <= rank < len(self._ranks):
            return self._encoding.decode_single_token_bytes(rank)
        named = rank - len(self._ranks) if rank >= 0 else number
        name = self.special[named] if named < len(self.special) else f"<SPECIAL_{number}>"
        return name.encode()

    @functools.cached_property
    def _ranks(self) -> dict[bytes, int]:
        file = Path(self.path)
        if not file.is_file():
            raise FileNotFoundError(f"no file of ranks {self.path!r}")
        try:
            pairs = _pairs(file.read_bytes())
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f'{self.path} does not hold ranks, as lines of "base64 rank" or JSON: {error}'
            ) from error
        ranks = {token: rank for token, rank in pairs if not self.ranks or rank < self.ranks}
        expected = self.ranks or len(pairs)
        if sorted(ranks.values()) != list(range(expected)):
            raise ValueError(
                f"{self.path} holds {len(pairs)} tokens, which are not distinct and ranked 0 to "
                f"{expected - 1} without a gap"
            )
        missing = [i for i in range(256) if bytes([i]) not in ranks]
        if missing:
            raise ValueError(f"{self.path} has no rank for the bytes {missing}")
        return ranks

    @functools.cached_property
    def _encoding(self) -> Any:
        try:
            import tiktoken
        except ImportError as error:
            raise ImportError(
                f"reading {self.path} needs the tiktoken package: pip install 'mdm-jax[tiktoken]'"
            ) from error
        return tiktoken.Encoding(
            self.path, pat_str=self.pattern, mergeable_ranks=self._ranks, special_tokens={}
        )


def _pairs(raw: bytes) -> list[tuple[bytes, int]]:
    """The (token, rank) pairs of either format."""
    if raw.lstrip().startswith(b"["):
        entries = json.loads(raw)
        return [(base64.b64decode(e["token_bytes"]), int(e["rank"])) for e in entries]
    lines = [line.split() for line in raw.splitlines() if line.strip()]
    return [(base64.b64decode(token, validate=True), int(rank)) for token, rank in lines]
