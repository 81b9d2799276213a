"""Corpora too large for memory, as pieces that are read one document at a time.

A corpus is named by "<kind>:<path>", for instance ``jsonl:corpus/**/*.jsonl.gz``. It is cut into
pieces (a file, a range of bytes, row groups, a range of examples), and pieces are gathered into
units of work: see `units_of`. Neither depends on how many processes will do the work.
"""

import gzip
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from mdm_jax.data.sources import find_files


class Document(NamedTuple):
    """One document of a corpus.

    Attributes:
        content: its text; or, of a tokenized corpus, its ids int[n] with whatever ends them.
        where: where it was found, for messages.
        last: whether what follows in the corpus does not continue here, as at the end of a file of
            tokens; what is left of a window then is not filled up with it.
    """

    content: bytes | np.ndarray
    where: str
    last: bool = False


class Reading(NamedTuple):
    """What reading a corpus needs beside its path.

    Attributes:
        field: of records, the one that holds the text; dots lead into nested records.
        skip: "field=value": records to leave out; "" for none.
        data_dir: of TFDS, where prepared datasets are; "" for its own default.
        download: of TFDS, whether what is not there may be downloaded and prepared.
        end: of tokens, the id that ends a document.
        fill: of tokens, the id that fills up the last file; -1 for none.
    """

    field: str = "text"
    skip: str = ""
    data_dir: str = ""
    download: bool = False
    end: int = -1
    fill: int = -1


class Piece(NamedTuple):
    """A part of a corpus that is read from its beginning to its end.

    Attributes:
        kind: of the corpus.
        path: a file; of TFDS, "<dataset>@<split>".
        start: the first byte, row group or example, whatever the kind counts.
        stop: one past the last.
        size: about how many bytes it has.
    """

    kind: str
    path: str
    start: int
    stop: int
    size: int


def pieces_of(corpus: str, reading: Reading, most: int) -> list[Piece]:
    """Returns the pieces of a corpus, in order.

    Args:
        corpus: "text:PATH" (a document for each file), "lines:PATH" (for each line), "jsonl:PATH"
            (for each record), "parquet:PATH", "tinyllama:PATH" (tokens in ``.bin`` files), with a
            file, a folder or a glob as the path; or "tfds:NAME@SPLIT". Lines and records may be
            compressed (``.gz``, ``.zst``), and are then read by whole files.
        reading: see `Reading`.
        most: bytes of a piece, where it can be cut.

    Raises:
        ValueError: if there is no such kind, or nothing to read.
        FileNotFoundError: if nothing is at the path.
        ImportError: if the package that reads this kind is not installed.

    Examples:
        >>> here = os.path.dirname(__file__)
        >>> [piece.kind for piece in pieces_of(f"text:{here}/corpo*.py", Reading(), 1000)]
        ['text']
    """
    kind, colon, path = corpus.partition(":")
    kinds = _kinds()
    if not colon or kind not in kinds or not path:
        raise ValueError(
            f"unknown corpus {corpus!r}: expected <kind>:<path>, the kind one of {list(kinds)}"
        )
    pieces = [piece for piece in kinds[kind].pieces(path, reading, most) if piece.size]
    if not pieces:
        raise ValueError(f"no text found in {corpus!r}: its files are empty")
    return pieces


def units_of(pieces: Iterable[Piece], most: int) -> list[tuple[Piece, ...]]:
    """Gathers pieces, in order, into units of at most `most` bytes; a larger piece is one alone.

    Examples:
        >>> pieces = [Piece("text", name, 0, 6, 6) for name in "abc"]
        >>> [[piece.path for piece in unit] for unit in units_of(pieces, 12)]
        [['a', 'b'], ['c']]
    """
    units: list[tuple[Piece, ...]] = []
    unit: list[Piece] = []
    held = 0
    for piece in pieces:
        if unit and held + piece.size > most:
            units.append(tuple(unit))
            unit, held = [], 0
        unit.append(piece)
        held += piece.size
    return [*units, tuple(unit)] if unit else units


def read_piece(piece: Piece, reading: Reading) -> Iterator[Document]:
    """Yields the documents of a piece, in order; empty texts are left out.

    Raises:
        ValueError: if a record is none, or has no such field.

    Examples:
        >>> piece = Piece("text", __file__, 0, os.path.getsize(__file__), os.path.getsize(__file__))
        >>> [document.content[:12] for document in read_piece(piece, Reading())]
        [b'\"\"\"Corpora t']
    """
    documents = _kinds()[piece.kind].read(piece, reading)
    return (document for document in documents if len(document.content))


class Kind(NamedTuple):
    """How one kind of corpus is cut and read."""

    pieces: Any  # (path, reading, most) -> iterable of Piece
    read: Any  # (piece, reading) -> iterator of Document


def field_of(record: Mapping[str, Any], field: str, where: str) -> Any:
    """The value of a field of a nested record.

    Args:
        record: of mappings and values.
        field: its name; dots lead into nested records.
        where: the record's place, for messages.

    Raises:
        ValueError: if there is no such field; the message has those that are there.

    Examples:
        >>> field_of({"meta": {"set": "books"}}, "meta.set", "line 1")
        'books'
    """
    value: Any = record
    for name in field.split("."):
        if not isinstance(value, Mapping) or name not in value:
            there = list(value) if isinstance(value, Mapping) else type(value).__name__
            raise ValueError(f"{where}: no field {field!r} in the record, which has {there}")
        value = value[name]
    return value


def document_of(record: Mapping[str, Any], reading: Reading, where: str) -> Iterator[Document]:
    """Yields the document of a record, or nothing if it is one to skip.

    Raises:
        ValueError: if the field is not there, or is no text.

    Examples:
        >>> [one.content for one in document_of({"text": "to be"}, Reading(), "line 1")]
        [b'to be']
    """
    if reading.skip:
        name, _, unwanted = reading.skip.partition("=")
        if str(field_of(record, name, where)) == unwanted:
            return
    text = field_of(record, reading.field, where)
    if not isinstance(text, str | bytes):
        raise ValueError(
            f"{where}: field {reading.field!r} is of type {type(text).__name__}, expected text"
        )
    yield Document(text.encode(errors="replace") if isinstance(text, str) else text, where)


def _kinds() -> dict[str, Kind]:
    from mdm_jax.data import parquet_files, tfds_datasets, tinyllama_files

    return {
        "text": Kind(_whole_files("text"), _read_text),
        "lines": Kind(_line_pieces("lines"), _read_lines),
        "jsonl": Kind(_line_pieces("jsonl"), _read_jsonl),
        "parquet": Kind(parquet_files.pieces, parquet_files.read),
        "tinyllama": Kind(_whole_files("tinyllama"), tinyllama_files.read),
        "tfds": Kind(tfds_datasets.pieces, tfds_datasets.read),
    }


def _whole_files(kind: str) -> Any:
    def pieces(path: str, reading: Reading, most: int) -> Iterator[Piece]:
        del reading, most  # a file is read whole
        for name in find_files(path):
            size = os.path.getsize(name)
            yield Piece(kind, name, 0, size, size)

    return pieces


def _line_pieces(kind: str) -> Any:
    def pieces(path: str, reading: Reading, most: int) -> Iterator[Piece]:
        del reading
        for name in find_files(path):
            size = os.path.getsize(name)
            step = size if name.endswith((".gz", ".zst")) else most
            for start in range(0, size, step or 1):
                stop = min(start + step, size)
                yield Piece(kind, name, start, stop, stop - start)

    return pieces


def _read_text(piece: Piece, reading: Reading) -> Iterator[Document]:
    del reading
    with open(piece.path, "rb") as file:
        yield Document(file.read(), piece.path)


def _read_lines(piece: Piece, reading: Reading) -> Iterator[Document]:
    del reading
    for at, line in _lines(piece):
        yield Document(line, f"{piece.path} at byte {at}")


def _read_jsonl(piece: Piece, reading: Reading) -> Iterator[Document]:
    for at, line in _lines(piece):
        where = f"{piece.path} at byte {at}"
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{where}: the line is not JSON: {error}") from error
        if not isinstance(record, Mapping):
            raise ValueError(f"{where}: the line is no JSON object but {type(record).__name__}")
        yield from document_of(record, reading, where)


def _lines(piece: Piece) -> Iterator[tuple[int, bytes]]:
    """The lines that begin in the piece, without their ends, and where they begin."""
    with _opened(piece.path) as file:
        at = 0
        if piece.start:  # a line that begins before is the piece before's
            file.seek(piece.start - 1)
            at = piece.start - 1 + len(file.readline())
        whole = piece.path.endswith((".gz", ".zst"))
        while whole or at < piece.stop:
            line = file.readline()
            if not line:
                return
            yield at, line.rstrip(b"\r\n")
            at += len(line)


def _opened(path: str) -> Any:
    """The file for reading bytes, decompressed."""
    if path.endswith(".gz"):
        return gzip.open(path, "rb")
    if path.endswith(".zst"):
        try:
            import zstandard
        except ImportError as error:
            raise ImportError(
                f"reading {path} needs the zstandard package: pip install 'mdm-jax[corpora]'"
            ) from error
        import io

        return io.BufferedReader(zstandard.open(path, "rb"))  # whose own readline is missing
    return open(path, "rb")
