"""How fast a corpus is prepared and read back here."""

import dataclasses
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mdm_jax.data.batches import Batches
from mdm_jax.data.preparation import prepare
from mdm_jax.data.prepared import open_prepared
from mdm_jax.data.read_ahead import ReadAhead
from mdm_jax.data.recipes import Recipe
from mdm_jax.data.sources import Documents, python_documentation

_RECORDS = 10_000  # of a file
_CHARACTERS = 4000  # of a record
_BATCH = 4096  # tokens of a batch


class Throughput(NamedTuple):
    """Tokens and seconds.

    Attributes:
        tokens: how many.
        seconds: they took.
    """

    tokens: int
    seconds: float

    @property
    def rate(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds


def write_corpus(folder: Path, size: int, documents: Documents | None = None) -> int:
    """Writes JSONL files of pieces of a text, again and again, until they are large enough.

    Args:
        folder: where they go.
        size: bytes of text to write at least.
        documents: the text; by default Python's documentation.

    Returns:
        The bytes of text that were written.

    Examples:
        >>> import tempfile
        >>> from mdm_jax.data import in_memory
        >>> folder = Path(tempfile.mkdtemp())
        >>> write_corpus(folder, 20, in_memory(["to be", "or not"]))
        22
        >>> [file.name for file in folder.iterdir()]
        ['00000.jsonl']
    """
    written = 0
    pieces = _pieces(documents or python_documentation())
    number = 0
    while written < size:
        with open(folder / f"{number:05}.jsonl", "w") as file:
            for _ in range(_RECORDS):
                text = next(pieces)
                file.write(json.dumps({"text": text}) + "\n")
                written += len(text.encode())
                if written >= size:
                    break
        number += 1
    return written


def _pieces(documents: Documents) -> Iterator[str]:
    """Pieces of the texts, numbered so that no two are alike: else all or none were held out."""
    texts = [
        text[start : start + _CHARACTERS]
        for text in (text.decode(errors="replace") for text in documents.texts)
        for start in range(0, len(text), _CHARACTERS)
    ]
    for time_through in itertools.count():
        yield from (f"{time_through} {text}" for text in texts)


def measure_preparation(recipe: Recipe, folder: Path, workers: int) -> Throughput:
    """Prepares a corpus into an empty folder, with the start of the processes in the time.

    Examples:
        >>> import tempfile
        >>> recipe = Recipe(f"lines:{__file__}", "byte", 32, held_out=0.1)
        >>> measure_preparation(recipe, Path(tempfile.mkdtemp()), workers=1).tokens > 2000
        True
    """
    started = time.perf_counter()
    manifest = prepare(recipe, folder, workers=workers)
    tokens = sum(manifest.total(side, "tokens") for side in manifest.shards)
    return Throughput(tokens, time.perf_counter() - started)


def measure_reading(
    folder: Path, batch_size: int, seconds: float, *, ahead: bool = False
) -> Throughput:
    """Reads shuffled training batches, in one thread, for some seconds.

    Args:
        folder: of prepared data.
        batch_size: rows of a batch.
        seconds: how long to read, at least; the first batch, which opens shards, is not counted.
        ahead: whether they are read by `ReadAhead`, as training does.

    Examples:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> recipe = Recipe(f"lines:{__file__}", "byte", 32, held_out=0.1)
        >>> _ = measure_preparation(recipe, folder, workers=1)
        >>> measure_reading(folder, 4, seconds=0.01).tokens % (4 * 32)
        0
    """
    batches = Batches(open_prepared(str(folder), "train"), batch_size, seed=0)
    last = 1_000_000_000
    with ReadAhead(batches, 0, last) as reader:
        read = reader if ahead else batches
        tokens, step = 0, 1
        read(0)
        started = time.perf_counter()
        while True:
            tokens += read(step)["tokens"].size
            step += 1
            passed = time.perf_counter() - started
            if passed >= seconds:
                return Throughput(tokens, passed)


def table(
    recipe: Recipe,
    folder: Path,
    size: int,
    workers: int,
    seconds: float = 5.0,
    documents: Documents | None = None,
) -> str:
    """Writes a corpus, prepares it with one process and with several, reads it: a Markdown table.

    Args:
        recipe: its corpus is the one written.
        folder: an empty one.
        size: bytes of text.
        workers: processes; reading takes one thread.
        seconds: of each reading.
        documents: what the text is made of; by default Python's documentation.

    Examples:
        >>> import tempfile
        >>> from mdm_jax.data import in_memory
        >>> recipe, text = Recipe("", "byte", 32, held_out=0.2), in_memory(["to be or not"])
        >>> print(table(recipe, Path(tempfile.mkdtemp()), 9000, 1, seconds=0.01, documents=text))
        | what | tokens | seconds | tokens/s |
        | --- | --- | --- | --- |
        | prepared, 1 process(es) | ...
    """
    (folder / "text").mkdir()
    write_corpus(folder / "text", size, documents)
    recipe = dataclasses.replace(recipe, corpus=f"jsonl:{folder / 'text'}")
    rows = {}
    for count in sorted({1, workers}):
        out = folder / f"prepared_by_{count}"
        rows[f"prepared, {count} process(es)"] = measure_preparation(recipe, out, count)
    batch = max(1, _BATCH // recipe.length)
    for ahead, name in ((False, "shuffled batches"), (True, "shuffled batches, read ahead")):
        measured = measure_reading(folder / "prepared_by_1", batch, seconds, ahead=ahead)
        rows[f"{name} of {batch} x {recipe.length}"] = measured
    lines = [
        f"| {name} | {one.tokens:,} | {one.seconds:.1f} | {one.rate:,.0f} |"
        for name, one in rows.items()
    ]
    header = ["| what | tokens | seconds | tokens/s |", "| --- | --- | --- | --- |"]
    return "\n".join([*header, *lines])
