"""Corpora in Parquet files, as the Hugging Face hub has them; needs the `pyarrow` package."""

from collections.abc import Iterator
from typing import Any

from mdm_jax.data.corpora import Document, Piece, Reading, document_of
from mdm_jax.data.sources import find_files

_ROWS = 256  # that are turned into Python objects at once


def pieces(path: str, reading: Reading, most: int) -> Iterator[Piece]:
    """Yields a piece for each row group: only the footers of the files are read.

    Raises:
        ImportError: if pyarrow is not installed.
        ValueError: if a file is not Parquet.
    """
    del reading, most  # a row group is not cut
    for name in find_files(path):
        with _opened(name) as file:
            for group in range(file.num_row_groups):
                size = file.metadata.row_group(group).total_byte_size
                yield Piece("parquet", name, group, group + 1, size)


def read(piece: Piece, reading: Reading) -> Iterator[Document]:
    """Yields the documents of a row group, reading no column but those it needs.

    Raises:
        ValueError: if there is no such column, or a value is no text.
    """
    skipped = reading.skip.partition("=")[0]
    columns = sorted({name.split(".")[0] for name in (reading.field, skipped) if name})
    with _opened(piece.path) as file:
        missing = set(columns) - set(file.schema_arrow.names)
        if missing:
            raise ValueError(
                f"{piece.path}: no column {sorted(missing)}: it has {file.schema_arrow.names}"
            )
        groups, row = range(piece.start, piece.stop), 0
        for batch in file.iter_batches(_ROWS, row_groups=list(groups), columns=columns):
            for record in batch.to_pylist():
                where = f"{piece.path}, row {row} of row group {piece.start}"
                yield from document_of(record, reading, where)
                row += 1


def _opened(path: str) -> Any:
    try:
        import pyarrow.parquet as parquet
        from pyarrow import ArrowInvalid
    except ImportError as error:
        raise ImportError(
            f"reading {path} needs the pyarrow package: pip install 'mdm-jax[corpora]'"
        ) from error
    try:
        return parquet.ParquetFile(path)
    except ArrowInvalid as error:
        raise ValueError(f"{path} is not a Parquet file: {error}") from error
