"""A run behind a URL that Orbax cannot write to: kept on the local disk, copied through fsspec."""

import json
import logging
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

import jax

logger = logging.getLogger(__name__)

_RECORDS = (".jsonl", ".json")  # small files of a run, copied every time
_WHOLE = ".whole.json"  # beside a folder of the store, once all its files are there


class Mirror:
    """Copies a run between a folder of the local disk and any store that fsspec reaches.

    Training writes into `folder`; `push` copies what is new: first the files of a checkpoint, then
    a marker that lists them with their sizes, so that a copy cut short does not count. `fetch`
    brings what is whole there back here. Both are done at once, while training waits.

    Args:
        url: such as ``s3://bucket/run``; what its scheme needs (s3fs, adlfs) must be installed.
        folder: the local folder; by default a new one, which goes when the context ends.

    Raises:
        ValueError: with several processes, whose local disks hold parts of a checkpoint each.

    Examples:
        >>> with Mirror("memory://runs/mine") as mirror:
        ...     _ = (mirror.folder / "metrics.jsonl").write_text("{}")
        ...     mirror.push()
        >>> with Mirror("memory://runs/mine") as mirror:
        ...     mirror.fetch()
        ...     (mirror.folder / "metrics.jsonl").read_text()
        '{}'
    """

    def __init__(self, url: str, folder: Path | None = None):
        import fsspec  # only here: most runs are in a folder

        if jax.process_count() > 1:
            raise ValueError(
                f"{url!r} with {jax.process_count()} processes: several write one checkpoint "
                "together, in a folder that all of them see or in gs://. Mount the store instead "
                "(s3fs, rclone mount), and name the mounted folder"
            )
        self.url = url
        self._store, self._root = fsspec.url_to_fs(url)
        self._own = tempfile.TemporaryDirectory(prefix="mdm_jax-") if folder is None else None
        self.folder = Path(self._own.name) if self._own is not None else Path(str(folder))

    def __enter__(self) -> "Mirror":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._own is not None:
            self._own.cleanup()

    def fetch(self) -> None:
        """Copies here the records, the whole checkpoints and the exported parameters.

        Raises:
            OSError: if the store cannot be read.
        """
        for name in self._whole():
            marker = json.loads(self._store.cat_file(f"{self._root}/{name}{_WHOLE}"))
            for file, size in marker.items():
                self._get(f"{name}/{file}")
                if (self.folder / name / file).stat().st_size != size:
                    logger.warning("%s/%s/%s is damaged", self.url, name, file)
        for path in self._store.glob(f"{self._root}/*"):
            name = path.rpartition("/")[2]
            if name.endswith(_RECORDS) and not name.endswith(_WHOLE):
                self._get(name)

    def push(self) -> None:
        """Copies there what is new here, and removes there the checkpoints removed here.

        Raises:
            OSError: if the store cannot be written to.
        """
        here = {
            f"checkpoints/{path.name}": path
            for path in self.folder.glob("checkpoints/*")
            if path.name.isdigit()
        }
        there = self._whole()
        for name in sorted(here.keys() - there):
            self._put_folder(name)
        for name in sorted(there - here.keys() - {"params"}):
            self._store.rm_file(f"{self._root}/{name}{_WHOLE}")
            self._store.rm(f"{self._root}/{name}", recursive=True)
        if (self.folder / "params").is_dir():
            self._put_folder("params")
        for path in self.folder.iterdir():
            if path.name.endswith(_RECORDS):
                self._put(path.name)

    def _whole(self) -> set[str]:
        """The folders of the store whose marker is there."""
        self._store.invalidate_cache()
        found = [
            path
            for folder in (self._root, f"{self._root}/checkpoints")
            for path in self._store.glob(f"{folder}/*{_WHOLE}")
        ]
        names = [path.rpartition(f"{self._root.strip('/')}/")[2] for path in found]
        return {name.removesuffix(_WHOLE) for name in names}

    def _put_folder(self, name: str) -> None:
        files: dict[str, Any] = {}
        for path in sorted((self.folder / name).rglob("*")):
            if path.is_file():
                file = path.relative_to(self.folder / name).as_posix()
                self._put(f"{name}/{file}")
                files[file] = path.stat().st_size
        self._store.pipe_file(f"{self._root}/{name}{_WHOLE}", json.dumps(files).encode())

    def _put(self, name: str) -> None:
        target = f"{self._root}/{name}"
        self._store.makedirs(target.rpartition("/")[0], exist_ok=True)
        self._store.put_file(str(self.folder / name), target)

    def _get(self, name: str) -> None:
        target = self.folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        self._store.get_file(f"{self._root}/{name}", str(target))
