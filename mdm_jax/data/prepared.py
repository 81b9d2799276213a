"""Windows of prepared data, read from their shards when they are asked for."""

import dataclasses
import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mdm_jax.data.manifests import Manifest, check_shard, read_manifest
from mdm_jax.data.window_records import decode_window, segment_ids


class PreparedWindows:
    """The windows of one side of a folder of prepared data, by random access.

    Only the index of each shard is held in memory. It can be pickled: readers are opened anew.

    Args:
        folder: with a manifest.
        side: "train" or "held_out".

    Raises:
        FileNotFoundError: if there is no manifest: nothing was prepared, or not to the end.
        ValueError: if the side is empty, a shard is missing or of another size, or there are more
            shards than a process may open.

    Examples:
        >>> import tempfile
        >>> from mdm_jax.data import Recipe, prepare
        >>> folder = tempfile.mkdtemp()
        >>> _ = prepare(Recipe(f"lines:{__file__}", "byte", length=64), folder)
        >>> windows = PreparedWindows(folder, "train")
        >>> windows[0]["tokens"].shape, bytes(windows[0]["tokens"][3:10].tolist())
        ((64,), b'Windows')
    """

    def __init__(self, folder: str | os.PathLike[str], side: str):
        self.folder, self.side = Path(folder), side
        self.manifest = read_manifest(folder)
        shards = self.manifest.shards[side]
        if not shards:
            raise ValueError(
                f"{folder} has no {side} windows: prepare it with held_out above 0, or with "
                "another corpus as held_out_corpus"
            )
        _check_open_files(len(shards))
        for shard in shards:
            check_shard(self.folder, shard)
        self._source = _source(self.folder, self.manifest, side)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Window `index`: "tokens" int32[L], "where" bool[L]; "segments" int32[L] if kept apart.

        Raises:
            IndexError: if there is no such window.
            OSError: if its shard is damaged; the message names it.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"window {index} of {len(self)} in {self.folder}")
        length = self.manifest.length
        try:
            window = decode_window(self._source[int(index)], self.manifest.dtype, length)
        except (RuntimeError, ValueError) as error:
            raise OSError(
                f"{self._shard_of(index)} cannot be read: {error}. Check all shards with "
                f"launch/prepare_data.py --verify={self.folder}"
            ) from error
        row = {"tokens": window.tokens, "where": np.arange(length) < window.real}
        return row | {"segments": segment_ids(window)} if self.manifest.apart else row

    def __repr__(self) -> str:
        return (
            f"PreparedWindows({len(self):,} {self.side} windows of {self.manifest.length} in "
            f"{self.folder}, {self.token_count:,} tokens, {self.bytes:,} bytes)"
        )

    @property
    def token_count(self) -> int:
        """Number of tokens that are scored."""
        return self.manifest.total(self.side, "tokens")

    @property
    def bytes(self) -> int:
        """Bytes of the text of the windows."""
        return self.manifest.total(self.side, "bytes")

    @property
    def bytes_per_token(self) -> float:
        """Turns nats per token into bits per byte: `nats / ln 2 / bytes_per_token`."""
        return self.bytes / self.token_count

    @property
    def parts(self) -> "tuple[PreparedWindows, ...]":
        """These windows alone, as a mixture has several."""
        return (self,)

    def fingerprint(self) -> str:
        """Returns a hash of the windows, wherever they are."""
        return f"{self.side} {self.manifest.fingerprint()}"

    def _shard_of(self, index: int) -> Path:
        ends = itertools.accumulate(shard.windows for shard in self.manifest.shards[self.side])
        number = next(number for number, end in enumerate(ends) if index < end)
        return self.folder / self.manifest.shards[self.side][number].file


class Mixture:
    """Several prepared data of one kind, drawn from in given shares.

    As a sequence of windows it is one after another. `Batches` draws from them by their weights,
    each in an order of its own and over again when it is through.

    Args:
        parts: windows of equal length, from one tokenizer.
        weights: how often each is drawn from, relative to one another.

    Raises:
        ValueError: if there is no part, the parts differ in kind, or a weight is not positive.

    Examples:
        >>> import tempfile
        >>> from mdm_jax.data import Recipe, prepare
        >>> folder = tempfile.mkdtemp()
        >>> _ = prepare(Recipe(f"lines:{__file__}", "byte", length=64), folder)
        >>> part = PreparedWindows(folder, "train")
        >>> len(Mixture([part, part], [0.7, 0.3])) == 2 * len(part)
        True
    """

    def __init__(self, parts: Sequence[PreparedWindows], weights: Sequence[float]):
        if not parts or len(parts) != len(weights):
            raise ValueError(f"{len(parts)} parts with {len(weights)} weights: expected as many")
        wrong = [weight for weight in weights if not 0 < weight < float("inf")]
        if wrong:
            raise ValueError(f"weights={list(weights)}: expected positive numbers, got {wrong[0]}")
        for part in parts[1:]:
            _check_alike(parts[0], part)
        self.parts, self.weights = tuple(parts), tuple(map(float, weights))
        self.manifest = parts[0].manifest
        self._ends = list(itertools.accumulate(map(len, parts)))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Window `index` of the parts, one after another."""
        if not 0 <= index < len(self):
            raise IndexError(f"window {index} of {len(self)} in a mixture")
        number = next(number for number, end in enumerate(self._ends) if index < end)
        return self.parts[number][index - (self._ends[number - 1] if number else 0)]

    def __repr__(self) -> str:
        named = ", ".join(
            f"{weight:g} of {part!r}" for part, weight in zip(self.parts, self.weights, strict=True)
        )
        return f"Mixture({named})"

    @property
    def token_count(self) -> int:
        """Number of tokens that are scored, in all parts."""
        return sum(part.token_count for part in self.parts)

    @property
    def bytes(self) -> int:
        """Bytes of the text of the windows of all parts."""
        return sum(part.bytes for part in self.parts)

    @property
    def bytes_per_token(self) -> float:
        """Turns nats per token into bits per byte, over the windows of all parts."""
        return self.bytes / self.token_count

    def fingerprint(self) -> str:
        """Returns a hash of the windows, wherever they are, and of the weights."""
        parts = zip(self.parts, self.weights, strict=True)
        return ", ".join(f"{weight!r} of {part.fingerprint()}" for part, weight in parts)


def open_prepared(path: str, side: str) -> PreparedWindows | Mixture:
    """Opens one folder of prepared data, or a mixture of several.

    Args:
        path: a folder, or "FOLDER=WEIGHT,FOLDER=WEIGHT,...".
        side: "train" or "held_out". Of a mixture, parts that hold nothing out are left out of
            "held_out"; its other windows are taken one after another, whatever their weight.

    Raises:
        FileNotFoundError: if a folder has no manifest.
        ValueError: if a weight is no positive number, the parts differ in kind, the side is empty,
            or a shard is missing or damaged.

    Examples:
        >>> open_prepared("web=0.7,code=-1", "train")
        Traceback (most recent call last):
            ...
        ValueError: ... expected FOLDER=WEIGHT,... with positive weights, got 'code=-1'
    """
    if Path(path).is_dir() or "=" not in path:
        return PreparedWindows(path, side)
    folders, weights = zip(*_parsed(path), strict=True)
    if side == "held_out":
        keeping = [i for i, folder in enumerate(folders) if read_manifest(folder).shards[side]]
        if not keeping:
            raise ValueError(f"{path}: no part has held-out windows: prepare one with held_out")
        folders, weights = ([values[i] for i in keeping] for values in (folders, weights))
    return Mixture([PreparedWindows(folder, side) for folder in folders], weights)


def _parsed(path: str) -> list[tuple[str, float]]:
    parts = []
    for part in path.split(","):
        folder, equals, weight = part.rpartition("=")
        try:
            number = float(weight)
        except ValueError:
            number = 0.0
        if not equals or not folder or not 0 < number < float("inf"):
            raise ValueError(
                f"{path!r}: expected FOLDER=WEIGHT,... with positive weights, got {part!r}"
            )
        parts.append((folder, number))
    return parts


def _check_alike(first: PreparedWindows, other: PreparedWindows) -> None:
    """Refuses windows that one model cannot be trained on together."""
    one, two = first.manifest, other.manifest
    kinds = {
        "length": (one.length, two.length),
        "the tokenizer's hash": (one.tokenizer["sha256"], two.tokenizer["sha256"]),
        "keeping documents apart": (one.apart, two.apart),
    }
    for what, (mine, theirs) in kinds.items():
        if mine != theirs:
            raise ValueError(
                f"{first.folder} and {other.folder} cannot be mixed: {what} is {mine} and {theirs}"
            )


def _check_open_files(count: int) -> None:
    """Random access keeps every shard open; running out of files would fail hours later."""
    try:
        import resource
    except ImportError:  # not on this system
        return
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit != resource.RLIM_INFINITY and count + 100 > limit:
        raise ValueError(
            f"{count} shards, and this process may open {limit} files: raise the limit "
            "(ulimit -n), or prepare with larger units (--unit_mb)"
        )


@dataclasses.dataclass(frozen=True)
class _Whole:
    """A file of records, as array_record wants it named: it need not be opened to be counted."""

    filename: str
    skip: int
    take: int
    examples_in_shard: int


def _source(folder: Path, manifest: Manifest, side: str) -> Any:
    from array_record.python import array_record_data_source

    files: Any = [
        _Whole(str(folder / shard.file), 0, shard.windows, shard.windows)
        for shard in manifest.shards[side]
    ]
    return array_record_data_source.ArrayRecordDataSource(files)
