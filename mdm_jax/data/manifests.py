"""The manifest of prepared data: what was prepared from what, and the shards that hold it.

It is written last, so a folder that has one is whole.
"""

import dataclasses
import hashlib
import json
import os
import uuid
from pathlib import Path
from typing import Any

NAME = "manifest.json"
FORMAT = 1  # of the manifest and of the records; another is not read
SIDES = ("train", "held_out")


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file of windows, and what went into it.

    Attributes:
        file: its name in the folder.
        windows: how many it has.
        documents: how many went into it.
        bytes: of the text of its windows. Where a packing dropped tokens, their share is taken off.
        tokens: that are scored.
        dropped: tokens of the text that are in no window.
        size: bytes of the file.
        sha256: of the file.
    """

    file: str
    windows: int
    documents: int
    bytes: int
    tokens: int
    dropped: int
    size: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a folder of prepared data holds.

    Attributes:
        recipe: the settings of the preparation, see `mdm_jax.data.recipes.Recipe`.
        tokenizer: its "name", "sha256" and "vocab_size".
        length: tokens of a window.
        dtype: of the tokens of a record, see `window_records.token_dtype`.
        apart: whether attention must keep the documents of a window apart.
        shards: of each of `SIDES`, in order.
    """

    recipe: dict[str, Any]
    tokenizer: dict[str, Any]
    length: int
    dtype: str
    apart: bool
    shards: dict[str, tuple[Shard, ...]]

    def total(self, side: str, field: str) -> int:
        """Returns the sum of a field over the shards of a side.

        Examples:
            >>> shards = {"train": (Shard("a", 2, 1, 9, 8, 0, 99, ""),) * 3, "held_out": ()}
            >>> Manifest({}, {}, 4, "uint8", False, shards).total("train", "windows")
            6
        """
        return sum(getattr(shard, field) for shard in self.shards[side])

    def fingerprint(self) -> str:
        """Returns a hash of the windows and their order, wherever the folder is.

        Examples:
            >>> empty = Manifest({}, {}, 4, "uint8", False, {"train": (), "held_out": ()})
            >>> len(empty.fingerprint())
            16
        """
        hashes = {side: [shard.sha256 for shard in self.shards[side]] for side in SIDES}
        content = [self.length, self.dtype, self.apart, self.tokenizer.get("sha256"), hashes]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes the manifest of a folder whose shards are whole, with the totals of each side.

    Examples:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> manifest = Manifest({}, {}, 4, "uint8", False, {"train": (), "held_out": ()})
        >>> write_manifest(folder, manifest)
        >>> read_manifest(folder) == manifest
        True
    """
    content = {"format": FORMAT, **dataclasses.asdict(manifest)}
    counted = ("windows", "documents", "bytes", "tokens", "dropped")
    content["totals"] = {
        side: {field: manifest.total(side, field) for field in counted} for side in SIDES
    }
    write_json(folder / NAME, content)


def read_manifest(folder: str | os.PathLike[str]) -> Manifest:
    """Returns the manifest of a folder of prepared data.

    Raises:
        FileNotFoundError: if there is no such folder, or it has no manifest: the preparation was
            not finished, or never begun.
        ValueError: if the manifest cannot be read, or is of another format.

    Examples:
        See `write_manifest`.
    """
    path = Path(folder, NAME)
    if not path.is_file():
        begun = Path(folder, "plan.json").is_file()
        hint = (
            "its preparation was not finished: run the same command again, it goes on"
            if begun
            else "prepare one with launch/prepare_data.py"
        )
        raise FileNotFoundError(f"no prepared data in {str(folder)!r} (no {NAME}): {hint}")
    try:
        content = json.loads(path.read_text())
        found = content.pop("format")
    except (ValueError, AttributeError, KeyError) as error:
        raise ValueError(f"{path} is not a manifest of prepared data: {error!r}") from error
    if found != FORMAT:
        raise ValueError(f"{path} is of format {found}, expected {FORMAT}: prepare the data anew")
    try:
        content.pop("totals")
        shards = {
            side: tuple(Shard(**shard) for shard in content["shards"][side]) for side in SIDES
        }
        return Manifest(**(content | {"shards": shards}))
    except (TypeError, KeyError) as error:
        raise ValueError(f"{path} is not a manifest of prepared data: {error!r}") from error


def check_shard(folder: Path, shard: Shard, *, content: bool = False) -> None:
    """Checks that a shard is there and whole.

    Args:
        folder: that has it.
        shard: of the manifest.
        content: whether to read it and compare its hash; else only its size is looked at.

    Raises:
        ValueError: if it is missing, of another size, or of other content.

    Examples:
        >>> check_shard(Path("nowhere"), Shard("train-00000.array_record", 1, 1, 4, 4, 0, 99, ""))
        Traceback (most recent call last):
            ...
        ValueError: nowhere/train-00000.array_record is missing: ...
    """
    path = folder / shard.file
    fix = "copy it again, or remove manifest.json and prepare again: whole shards are kept"
    if not path.is_file():
        raise ValueError(f"{path} is missing: {fix}")
    if path.stat().st_size != shard.size:
        raise ValueError(
            f"{path} has {path.stat().st_size} bytes, expected {shard.size}: it is damaged; {fix}"
        )
    if content and file_hash(path) != shard.sha256:
        raise ValueError(f"{path} is damaged (its SHA-256 is not the manifest's): {fix}")


def file_hash(path: str | Path) -> str:
    """Returns the SHA-256 of a file.

    Examples:
        >>> len(file_hash(__file__))
        64
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, content: Any) -> None:
    r"""Writes JSON so that the file is there whole or not at all.

    Examples:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "a.json")
        >>> write_json(path, {"a": 1})
        >>> path.read_text()
        '{"a": 1}\n'
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    temporary.write_text(json.dumps(content) + "\n")
    os.replace(temporary, path)
