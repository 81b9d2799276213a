"""Datasets of TensorFlow Datasets, read without TensorFlow.

Only datasets prepared as ArrayRecord files can be read in any order, and so in parallel. They are
read from disk; nothing is downloaded unless `Reading.download` says so.
"""

from collections.abc import Iterator
from typing import Any

from mdm_jax.data.corpora import Document, Piece, Reading, document_of

_EXAMPLES = 100_000  # of a piece, if the dataset does not say how large it is


def pieces(path: str, reading: Reading, most: int) -> Iterator[Piece]:
    """Yields ranges of examples.

    Args:
        path: "NAME@SPLIT", for instance "lm1b@train" or "c4/en:3.1.0@train[:1%]".
        reading: with `data_dir` and `download`.
        most: bytes of a piece.

    Raises:
        FileNotFoundError: if the dataset is not prepared in `data_dir`.
        ValueError: if there is no such split, or the dataset is prepared in another format.
    """
    source, info = _opened(path, reading)
    examples = len(source)
    split = info.splits[path.rpartition("@")[2].split("[")[0]]
    mean = split.num_bytes / max(split.num_examples, 1) if split.num_bytes else 0.0
    step = max(1, int(most / mean)) if mean else _EXAMPLES
    for start in range(0, examples, step):
        stop = min(start + step, examples)
        yield Piece("tfds", path, start, stop, max(1, round(mean * (stop - start))))


def read(piece: Piece, reading: Reading) -> Iterator[Document]:
    """Yields the documents of a range of examples.

    Raises:
        ValueError: if the examples have no such field.
    """
    source, _ = _opened(piece.path, reading)
    for index in range(piece.start, piece.stop):
        yield from document_of(source[index], reading, f"example {index} of {piece.path}")


def _opened(path: str, reading: Reading) -> tuple[Any, Any]:
    """The random-access source of a split, and what the dataset says of itself."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import read_only_builder

    name, _, split = path.rpartition("@")
    if not name or not split:
        raise ValueError(f"tfds:{path}: expected tfds:NAME@SPLIT, such as tfds:lm1b@train")
    where = reading.data_dir or None
    builder: Any
    if reading.download:
        builder = tfds.builder(name, data_dir=where, file_format="array_record")
        builder.download_and_prepare()
    else:
        try:
            builder = read_only_builder.builder_from_files(name, data_dir=where)
        except tfds.core.DatasetNotFoundError as error:
            raise FileNotFoundError(
                f"the TFDS dataset {name!r} is not prepared in {where or 'the default data_dir'}: "
                "name its folder with --data_dir, or download and prepare it with --download"
            ) from error
    splits = list(builder.info.splits)
    if split.split("[")[0] not in splits:
        raise ValueError(f"tfds:{path}: the dataset has the splits {splits}, not {split!r}")
    try:
        return builder.as_data_source(split=split), builder.info
    except NotImplementedError as error:
        raise ValueError(
            f"tfds:{path} is prepared as {builder.info.file_format.value}, which cannot be read in "
            "any order: prepare it as ArrayRecord (--download into another --data_dir, or "
            "tfds.core's convert_format)"
        ) from error
