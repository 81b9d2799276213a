"""Corpora to shards of windows, in parallel processes, surviving a kill at any moment.

A unit of work makes at most one training and one held-out shard. Each is written under a temporary
name and renamed when whole, then the unit's own record is; a unit with a record is not done again.
Shards are the same bytes for any number of processes, and whatever was interrupted.
"""

import functools
import json
import logging
import multiprocessing
import os
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from mdm_jax.data.corpora import Document, Reading, read_piece
from mdm_jax.data.detokenizers import detokenize
from mdm_jax.data.manifests import (
    SIDES,
    Manifest,
    Shard,
    check_shard,
    file_hash,
    read_manifest,
    write_json,
    write_manifest,
)
from mdm_jax.data.named_tokenizers import open_tokenizer
from mdm_jax.data.packers import Packing, SpecialIds, make_packer
from mdm_jax.data.packing import check_ids
from mdm_jax.data.presets import packing_preset, special_ids_of
from mdm_jax.data.recipes import Plan, Recipe, Unit, make_plan, start_plan
from mdm_jax.data.sources import hash_fraction
from mdm_jax.data.tokenizers import Tokenizer
from mdm_jax.data.window_records import Window, encode_window, token_dtype

logger = logging.getLogger(__name__)

UNITS = "units"  # the folder of the records of what is done


def prepare(
    recipe: Recipe, folder: str | os.PathLike[str], *, workers: int = 1, download: bool = False
) -> Manifest:
    """Prepares a corpus, going on where an earlier call of the same settings stopped.

    Args:
        recipe: the settings.
        folder: where shards and manifest go.
        workers: processes. More than one must be started from a main module that can be imported,
            as `multiprocessing` says.
        download: whether a TFDS dataset that is not there may be downloaded.

    Returns:
        The manifest, which is also written.

    Raises:
        ValueError: if a setting is none of those expected, is not that of what is in `folder`, or
            the corpus cannot be read as it says; or if no window comes of it.
        FileNotFoundError: if the corpus or the tokenizer is not there.

    Examples:
        >>> import tempfile
        >>> manifest = prepare(Recipe(f"lines:{__file__}", "byte", 64), tempfile.mkdtemp())
        >>> manifest.total("train", "documents") > manifest.total("held_out", "documents") > 0
        True
    """
    from tqdm import tqdm

    if workers < 1:
        raise ValueError(f"workers={workers}: expected at least one process")
    folder = Path(folder)
    plan = make_plan(recipe, download=download)
    start_plan(folder, plan)
    pending = pending_units(plan, folder)
    work = functools.partial(prepare_unit, plan._replace(units=()), folder)
    for _ in tqdm(_done(work, pending, workers), total=len(pending), unit="unit", disable=None):
        pass
    return finish(plan, folder)


def pending_units(plan: Plan, folder: Path) -> list[Unit]:
    """Returns the units that have no record, or whose shards are no longer there.

    Examples:
        >>> import tempfile
        >>> plan = make_plan(Recipe(f"text:{__file__}", "byte", 64))
        >>> len(pending_units(plan, Path(tempfile.mkdtemp())))
        1
    """
    (folder / UNITS).mkdir(exist_ok=True)
    pending = [unit for unit in plan.units if _finished(folder, unit.number) is None]
    if len(pending) < len(plan.units):
        logger.info("%d of %d units are done", len(plan.units) - len(pending), len(plan.units))
    return pending


def prepare_unit(plan: Plan, folder: Path, unit: Unit) -> None:
    """Writes the shards of one unit, and the record that it is done.

    Args:
        plan: of the preparation; its own `units` are not looked at.
        folder: where they go.
        unit: which.

    Raises:
        ValueError: if the corpus cannot be read as the recipe says.

    Examples:
        `prepare` calls it for each unit; so does `beam_preparation`.
    """
    tokenizer = _tokenizer(plan.recipe.tokenizer)
    packing = packing_preset(plan.recipe.packing)
    special = special_ids_of(tokenizer, packing)
    with ExitStack() as stack:
        sides = {
            side: stack.enter_context(_Side(folder, side, unit.number, plan, packing, special))
            for side in SIDES
        }
        for document in _documents(unit, plan.reading):
            raw = document.content
            held_out = unit.side == "held_out" or (
                plan.recipe.held_out > 0 and hash_fraction(_hashed(raw)) < plan.recipe.held_out
            )
            ids, text = _tokens(document, plan.recipe, tokenizer, packing, special)
            sides[SIDES[held_out]].add(ids, text)
            if document.last:
                for side in sides.values():
                    side.flush()
        shards = {side: writer.finish() for side, writer in sides.items()}
    write_json(folder / UNITS / f"{unit.number:05}.json", shards)


def finish(plan: Plan, folder: Path) -> Manifest:
    """Checks that all units are done and writes the manifest.

    Raises:
        ValueError: if a unit is not done, or no window came of the corpus.

    Examples:
        `prepare` and `beam_preparation` end with it.
    """
    shards: dict[str, list[Shard]] = {side: [] for side in SIDES}
    for unit in plan.units:
        record = _finished(folder, unit.number)
        if record is None:
            raise ValueError(f"unit {unit.number} of {folder} is not done: prepare it again")
        for side, shard in record.items():
            shards[side] += [shard] if shard is not None else []
    recipe, held_out = plan.recipe, plan.recipe.held_out or plan.recipe.held_out_corpus
    for side in SIDES:
        if not shards[side] and (side == "train" or held_out):
            raise ValueError(
                f"{recipe.corpus}: no {side} window of {recipe.length} tokens came of it with "
                f"packing={recipe.packing!r}, held_out={recipe.held_out}: give more text, or "
                "shorter windows"
            )
    manifest = Manifest(
        recipe=asdict(recipe),
        tokenizer=plan.tokenizer,
        length=recipe.length,
        dtype=token_dtype(plan.tokenizer["vocab_size"]),
        apart=packing_preset(recipe.packing).apart,
        shards={side: tuple(found) for side, found in shards.items()},
    )
    write_manifest(folder, manifest)
    for left in folder.rglob(".*.tmp"):  # by processes that were killed
        left.unlink()
    return manifest


def verify(folder: str | os.PathLike[str]) -> Manifest:
    """Reads all shards of prepared data and compares their hashes with the manifest's.

    Raises:
        FileNotFoundError: if there is no manifest.
        ValueError: if a shard is missing or damaged; the message names it.

    Examples:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> manifest = prepare(Recipe(f"lines:{__file__}", "byte", 64), folder)
        >>> verify(folder) == manifest
        True
    """
    manifest = read_manifest(folder)
    for side in SIDES:
        for shard in manifest.shards[side]:
            check_shard(Path(folder), shard, content=True)
    return manifest


class _Side:
    """One side of a unit: documents in, a shard out, if there is anything to write."""

    def __init__(
        self,
        folder: Path,
        side: str,
        number: int,
        plan: Plan,
        packing: Packing,
        special: SpecialIds,
    ):
        self._path = folder / f"{side}-{number:05}.array_record"
        self._temporary = folder / f".{self._path.name}.{uuid.uuid4().hex}.tmp"
        self._dtype = token_dtype(plan.tokenizer["vocab_size"])
        self._packing = packing
        self._packer = make_packer(packing, plan.recipe.length, special)
        self._writer: Any = None
        self._windows = self._documents = self._bytes = self._tokens = self._given = 0

    def __enter__(self) -> "_Side":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._writer is not None:  # something was raised
            self._writer.close()
            self._temporary.unlink()

    def add(self, ids: np.ndarray, text: int) -> None:
        """Takes a document, its end included, and how many bytes of text it is."""
        self._documents += 1
        self._bytes += text
        self._given += len(ids)
        self._write(self._packer.add(ids))

    def flush(self) -> None:
        """Ends the stream that documents are joined to."""
        self._write(self._packer.finish())

    def finish(self) -> dict[str, Any] | None:
        """Closes and renames the shard; returns its record, None if there is no window."""
        self.flush()
        if self._writer is None:
            return None
        self._writer.close()
        self._writer = None
        with open(self._temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(self._temporary, self._path)
        kept = self._tokens - self._windows * self._packing.frame_tokens
        shard = Shard(
            file=self._path.name,
            windows=self._windows,
            documents=self._documents,
            bytes=round(self._bytes * kept / max(self._given, 1)),
            tokens=self._tokens,
            dropped=self._given - kept,
            size=self._path.stat().st_size,
            sha256=file_hash(self._path),
        )
        return asdict(shard)

    def _write(self, windows: list[Window]) -> None:
        if windows and self._writer is None:
            from array_record.python import (
                array_record_module,  # pyright: ignore[reportAttributeAccessIssue]
            )

            # One record can be read without its neighbours. Without compression, bytes depend on
            # no other library's version.
            options = "group_size:1,uncompressed"
            self._writer = array_record_module.ArrayRecordWriter(str(self._temporary), options)
        for window in windows:
            self._writer.write(encode_window(window, self._dtype))
            self._windows += 1
            self._tokens += window.real


def _documents(unit: Unit, reading: Reading) -> Iterator[Document]:
    for piece in unit.pieces:
        yield from read_piece(piece, reading)


def _tokens(
    document: Document,
    recipe: Recipe,
    tokenizer: Tokenizer,
    packing: Packing,
    special: SpecialIds,
) -> tuple[np.ndarray, int]:
    """The ids of a document, with its end where the packing has one, and its bytes of text."""
    if isinstance(document.content, np.ndarray):
        ids = document.content
        whole = ids[:-1] if ids[-1] == special.end else ids
        _check_ids(ids, tokenizer, document)
        return ids if packing.ends else whole, len(tokenizer.decode(whole).encode())
    text = detokenize(recipe.detokenizer, document.content)
    try:
        ids = tokenizer.encode(text)
    except ValueError as error:
        raise ValueError(f"{document.where}: {error}") from error
    _check_ids(ids, tokenizer, document)
    if packing.ends:
        ids = np.append(ids, np.int32(special.end))
    return ids, len(text)


def _check_ids(ids: np.ndarray, tokenizer: Tokenizer, document: Document) -> None:
    try:
        check_ids(ids, tokenizer.vocab_size)
    except ValueError as error:
        raise ValueError(f"{document.where}: {error}") from error


def _hashed(content: Any) -> bytes:
    """What decides on which side of the split a document is."""
    return content if isinstance(content, bytes) else content.astype("<i8").tobytes()


def _finished(folder: Path, number: int) -> dict[str, Shard | None] | None:
    """The shards of a unit, if it is done and they are still there."""
    path = folder / UNITS / f"{number:05}.json"
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text())
        shards = {side: None if one is None else Shard(**one) for side, one in record.items()}
        for shard in shards.values():
            if shard is not None:
                check_shard(folder, shard)
    except ValueError as error:
        logger.warning("unit %d: %s. Preparing it again", number, error)
        return None
    return shards


@functools.cache
def _tokenizer(name: str) -> Tokenizer:
    return open_tokenizer(name)


def _done(work: Any, units: list[Unit], workers: int) -> Iterator[None]:
    """Yields once for each unit that is done."""
    if workers == 1 or len(units) < 2:
        yield from map(work, units)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        min(workers, len(units)), mp_context=context, initializer=_die_with_parent
    ) as pool:
        futures = [pool.submit(work, unit) for unit in units]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _die_with_parent() -> None:
    """Ends this process when the one that started it is killed, rather than waiting for ever."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
