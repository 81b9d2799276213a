"""Streams of documents to windows, holding no more than a few windows at a time.

A packer is given one document after another (`add`) and told when a run of them ends (`finish`);
both return the windows that are full by then. `mdm_jax.data.packing` does the simplest of this to
a corpus in memory.
"""

import dataclasses
from typing import Literal, NamedTuple, Protocol

import numpy as np

from mdm_jax.data.window_records import Window

_TOGETHER = 64  # windows that are cut at once
_OPEN = 64  # windows that wait for documents that fit


class SpecialIds(NamedTuple):
    """The ids that a packer puts in.

    Attributes:
        begin: of the beginning of a framed window.
        end: of the end of a document, and of a framed window.
        pad: of padding, which is never scored.
    """

    begin: int
    end: int
    pad: int


@dataclasses.dataclass(frozen=True)
class Packing:
    """How documents become windows.

    Attributes:
        layout: "joined" (end to end, windows cut anywhere), "single" (one document for each window,
            what does not fit is cut off), "apart" (several whole documents in a window, which
            attention must not join).
        ends: whether each document is followed by the end id. Not in "single".
        frame: whether each window begins with the begin id and ends with the end id. Not in
            "apart".
        group: documents that are joined; what is left of a group is dropped. 0: all, see `drop`.
        drop: whether what is left at the end is dropped, rather than padded.
        skip: tokens left out after each window.
        pad: what padding is made of, "end", "begin" or "pad". It is never scored.
        end_is_begin: whether the begin id takes the place of the end id everywhere.
    """

    layout: Literal["joined", "single", "apart"] = "joined"
    ends: bool = True
    frame: bool = False
    group: int = 0
    drop: bool = False
    skip: int = 0
    pad: Literal["end", "begin", "pad"] = "end"
    end_is_begin: bool = False

    @property
    def frame_tokens(self) -> int:
        """Tokens of a window that are not of the text."""
        return 2 if self.frame else 0

    @property
    def apart(self) -> bool:
        """Whether attention must keep documents of a window apart."""
        return self.layout == "apart"


class Packer(Protocol):
    """Documents in, windows out."""

    def add(self, document: np.ndarray) -> list[Window]:
        """Takes one document, int[n] with its end; returns the windows that are full now."""
        ...

    def finish(self) -> list[Window]:
        """Ends the stream; returns the last windows. Another stream may follow."""
        ...


def make_packer(packing: Packing, length: int, special: SpecialIds) -> Packer:
    """Returns a packer of windows of `length` tokens.

    Raises:
        ValueError: if a window is too short to hold its frame and a token.

    Examples:
        >>> packer = make_packer(Packing(), 4, SpecialIds(begin=1, end=2, pad=2))
        >>> first = packer.add(np.array([5, 6, 2]))
        >>> second = packer.add(np.array([7, 8, 2]))
        >>> [window.tokens.tolist() for window in first + second + packer.finish()]
        [[5, 6, 2, 7], [8, 2, 2, 2]]
    """
    if length <= packing.frame_tokens:
        raise ValueError(
            f"length={length} leaves no room for text beside the {packing.frame_tokens} tokens of "
            "the frame: expected a longer window"
        )
    return _PACKERS[packing.layout](packing, length, special)


class _Joined:
    """Documents end to end, cut anywhere."""

    def __init__(self, packing: Packing, length: int, special: SpecialIds):
        self._packing, self._length, self._special = packing, length, special
        self._body = length - packing.frame_tokens
        self._stride = self._body + packing.skip
        self._clear()

    def _clear(self) -> None:
        self._parts: list[np.ndarray] = []
        self._starts: list[int] = []
        self._size = self._documents = 0

    def add(self, document: np.ndarray) -> list[Window]:
        self._starts.append(self._size)
        self._parts.append(document)
        self._size += len(document)
        self._documents += 1
        if self._packing.group and self._documents == self._packing.group:
            return self.finish()
        return self._cut() if self._size >= _TOGETHER * self._stride else []

    def finish(self) -> list[Window]:
        windows = self._cut()
        if self._size and not (self._packing.group or self._packing.drop):
            tokens = np.concatenate(self._parts)[: self._body]
            windows.append(self._window(tokens, np.array([0, *self._starts])))
        self._clear()
        return windows

    def _cut(self) -> list[Window]:
        """The whole windows of what is held; the rest stays."""
        count = self._size // self._stride
        if not count:
            return []
        stream, starts = np.concatenate(self._parts), np.array(self._starts)
        windows = []
        edges = np.searchsorted(starts, self._stride * np.arange(count + 1))
        for index in range(count):
            at = index * self._stride
            begins = starts[edges[index] : edges[index + 1]] - at
            windows.append(self._window(stream[at : at + self._body], begins))
        rest = stream[count * self._stride :]
        self._parts, self._size = ([rest] if rest.size else []), rest.size
        self._starts = (starts[edges[count] :] - count * self._stride).tolist()
        return windows

    def _window(self, tokens: np.ndarray, starts: np.ndarray) -> Window:
        """Up to a body of tokens, with where documents begin among them, as a window."""
        starts = starts[(starts > 0) & (starts < len(tokens))]
        if self._packing.frame:
            begin, end = self._special.begin, self._special.end
            tokens, starts = np.concatenate([[begin], tokens, [end]]), starts + 1
        return _padded(tokens, np.unique([0, *starts]), self._length, self._special.pad)


class _Single:
    """One window for each document."""

    def __init__(self, packing: Packing, length: int, special: SpecialIds):
        self._packing, self._length, self._special = packing, length, special

    def add(self, document: np.ndarray) -> list[Window]:
        tokens = document[: self._length - self._packing.frame_tokens]
        if self._packing.frame:
            tokens = np.concatenate([[self._special.begin], tokens, [self._special.end]])
        return [_padded(tokens, np.zeros(1, np.int64), self._length, self._special.pad)]

    def finish(self) -> list[Window]:
        return []


class _Apart:
    """Whole documents side by side, each in the fullest of the open windows that has room.

    A document longer than a window is cut into windows, and its last piece goes where it fits.
    """

    def __init__(self, packing: Packing, length: int, special: SpecialIds):
        self._length, self._special = length, special
        self._open: list[list[np.ndarray]] = []
        self._room: list[int] = []

    def add(self, document: np.ndarray) -> list[Window]:
        windows = []
        whole = len(document) - len(document) % self._length
        for start in range(0, whole, self._length):
            windows.append(self._window([document[start : start + self._length]]))
        piece = document[whole:]
        if piece.size:
            windows += self._place(piece)
        return windows

    def finish(self) -> list[Window]:
        windows = [self._window(parts) for parts in self._open]
        self._open, self._room = [], []
        return windows

    def _place(self, piece: np.ndarray) -> list[Window]:
        fitting = [index for index, room in enumerate(self._room) if room >= piece.size]
        if fitting:
            at = min(fitting, key=self._room.__getitem__)
        else:
            at = len(self._open)
            self._open.append([])
            self._room.append(self._length)
        self._open[at].append(piece)
        self._room[at] -= piece.size
        if self._room[at] and len(self._open) <= _OPEN:
            return []
        fullest = min(range(len(self._room)), key=self._room.__getitem__)
        self._room.pop(fullest)
        return [self._window(self._open.pop(fullest))]

    def _window(self, parts: list[np.ndarray]) -> Window:
        starts = np.cumsum([0, *map(len, parts[:-1])])
        return _padded(np.concatenate(parts), starts, self._length, self._special.pad)


_PACKERS = {"joined": _Joined, "single": _Single, "apart": _Apart}


def _padded(tokens: np.ndarray, starts: np.ndarray, length: int, pad: int) -> Window:
    real = len(tokens)
    tokens = np.pad(tokens, (0, length - real), constant_values=pad)
    return Window(tokens, real, starts)
