"""Canvases: text with gaps, which is how prompts and infilling are said to a sampler."""

import re
from typing import NamedTuple

import numpy as np

from mdm_jax.data import Tokenizer

# Two underscores are left alone: `__init__` and `__doc__` are text, and common text in code.
_GAP = re.compile(r"_{3,}|\{\{(\d+)\}\}")


class Canvas(NamedTuple):
    """A row of tokens, some given and some to be filled in.

    Attributes:
        tokens: int32[L]; where nothing is given, an id without meaning.
        keep: bool[L], True where the token is given and must stay.
    """

    tokens: np.ndarray
    keep: np.ndarray

    @property
    def open(self) -> int:
        """Number of tokens to fill in."""
        return int((~self.keep).sum())


def canvas(
    tokenizer: Tokenizer, *, prompt: str = "", template: str = "", length: int = 0
) -> Canvas:
    """Lays out a prompt, a template, or both (the prompt first), with gaps to fill in.

    In a template, every run of three or more underscores is a gap of that many tokens, and
    ``{{12}}`` is a gap of 12. Everything else, and all of the prompt, is kept as it is.

    Args:
        tokenizer: text to ids.
        prompt: kept at the left.
        template: text with gaps.
        length: tokens of the canvas; what lies past the given text is one more gap. 0 means
            exactly the given text.

    Returns:
        `Canvas`.

    Raises:
        ValueError: if the text is longer than `length`, or leaves nothing to fill in.

    Examples:
        >>> from mdm_jax.data import ByteTokenizer
        >>> canvas(ByteTokenizer(), template="f(___)").keep.tolist()
        [True, True, False, False, False, True]
        >>> canvas(ByteTokenizer(), prompt="def ", length=16).open
        12
    """
    if length < 0:
        raise ValueError(f"length={length}: expected a number of tokens, or 0 for just the text")
    pieces = [_given(tokenizer, prompt)]
    end = 0
    for gap in _GAP.finditer(template):
        pieces.append(_given(tokenizer, template[end : gap.start()]))
        pieces.append(_gap(tokenizer, int(gap[1]) if gap[1] else len(gap[0])))
        end = gap.end()
    pieces.append(_given(tokenizer, template[end:]))
    used = sum(len(piece.keep) for piece in pieces)
    if length and used > length:
        raise ValueError(
            f"the {'template' if template else 'prompt'} is {used} tokens long, more than the "
            f"canvas of {length}: shorten it or raise --length"
        )
    pieces.append(_gap(tokenizer, max(length - used, 0)))
    tokens, keep = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
    if keep.all():
        raise ValueError(
            f"a canvas of {len(keep)} given tokens leaves nothing to fill in: write gaps as ____ "
            "or {{4}} in the template (not in the prompt), or give a --length beyond the text"
        )
    return Canvas(tokens, keep)


def _given(tokenizer: Tokenizer, text: str) -> Canvas:
    tokens = tokenizer.encode(text).astype(np.int32, casting="same_kind")
    return Canvas(tokens, np.ones(len(tokens), np.bool_))


def _gap(tokenizer: Tokenizer, width: int) -> Canvas:
    return Canvas(np.full(width, tokenizer.eos_id, np.int32), np.zeros(width, np.bool_))
