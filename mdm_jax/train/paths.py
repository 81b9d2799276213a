"""Where runs live: a folder of the file system, or of a bucket."""

import importlib.util
import io
import re
import time
from pathlib import Path
from typing import IO, Any, cast

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.DOTALL)  # pathlib makes one slash of two
_SECONDS = 30.0  # between two writes of a growing object


def run_path(path: str | Path) -> Path:
    """Returns where a run, a checkpoint or exported parameters live.

    A local path is made absolute, and ``file://`` stripped. ``gs://bucket/run`` gives an
    `etils.epath.Path`, which has the methods of `pathlib.Path`, and which Orbax writes to itself;
    that needs ``pip install mdm-jax[gcs]``.

    Args:
        path: a path or URL.

    Raises:
        ValueError: if it is another URL, which would silently become a folder named "s3:" on the
            local disk.
        ImportError: if it is in a bucket and gcsfs is not installed.

    Examples:
        >>> print(run_path("file:///tmp/run") / "params")
        /tmp/run/params
        >>> run_path("s3://bucket/run")
        Traceback (most recent call last):
            ...
        ValueError: 's3://bucket/run': runs, checkpoints and parameters live in folders ...
    """
    match = _URL.fullmatch(str(path))
    if match is None:
        return Path(path).absolute()
    scheme, rest = match.groups()
    if scheme == "file":
        return Path("/" + rest)
    if scheme != "gs":
        raise ValueError(
            f"{str(path)!r}: runs, checkpoints and parameters live in folders of the file system, "
            "such as runs/mine, or of Google Cloud Storage, gs://bucket/run. Mount another store "
            "(s3fs, rclone mount) and name the mounted folder, or copy the run. (Training "
            "in one process takes any URL of fsspec as its --workdir)"
        )
    if importlib.util.find_spec("gcsfs") is None and importlib.util.find_spec("tensorflow") is None:
        raise ImportError(f"{str(path)!r} needs gcsfs: pip install 'mdm-jax[gcs]'")
    import fsspec.config  # the two of them only here: most runs need neither
    from etils import epath

    # A process must see what the others write; a remembered listing would hide it for ever.
    fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)
    return cast(Path, epath.Path(f"gs://{rest}"))


def is_mirrored(path: str | Path) -> bool:
    """Whether a run there is trained in a local folder and copied (`mirrors.Mirror`).

    Examples:
        >>> [is_mirrored(path) for path in ("runs/mine", "gs://bucket/run", "s3://bucket/run")]
        [False, False, True]
    """
    match = _URL.fullmatch(str(path))
    return match is not None and match.group(1) not in ("file", "gs")


def is_url(path: Path) -> bool:
    """Whether what `run_path` returned is in a bucket.

    Examples:
        >>> is_url(run_path("runs/mine"))
        False
    """
    return not isinstance(path, Path)


def open_growing(path: Path) -> IO[str]:
    """Opens a file of lines to go on writing at its end.

    Objects of a bucket cannot grow. There the whole text is kept in memory and written anew, when
    it is flushed and `_SECONDS` have passed since the last time, and when it is closed.

    Args:
        path: from `run_path`; missing or not.

    Examples:
        >>> import tempfile
        >>> path = run_path(tempfile.mkdtemp()) / "lines"
        >>> for line in "ab":
        ...     with open_growing(path) as file:
        ...         _ = file.write(line)
        >>> path.read_text()
        'ab'
    """
    return _Object(path) if is_url(path) else path.open("a")


def sync(file: IO[str]) -> None:
    """Writes what is still in memory of a file from `open_growing`.

    Examples:
        >>> import tempfile
        >>> with open_growing(run_path(tempfile.mkdtemp()) / "lines") as file:
        ...     sync(file)
    """
    if isinstance(file, _Object):
        file.sync()
    else:
        file.flush()


class _Object(io.StringIO):
    """The text of an object, written whole from time to time."""

    def __init__(self, path: Any):
        super().__init__(path.read_text() if path.exists() else "")
        self.seek(0, io.SEEK_END)
        self._path, self._written, self._at = path, self.tell(), time.monotonic()

    def flush(self) -> None:
        if time.monotonic() - self._at >= _SECONDS:
            self.sync()

    def close(self) -> None:
        if not self.closed:
            self.sync()
        super().close()

    def sync(self) -> None:
        if self.tell() != self._written:
            self._path.write_text(self.getvalue())
        self._written, self._at = self.tell(), time.monotonic()
