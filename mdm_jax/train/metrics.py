"""Records of a run: one JSON object per line, always, and TensorBoard where it is installed."""

import json
import math
import os
from pathlib import Path
from types import TracebackType

import jax
from tqdm.auto import tqdm


class MetricsWriter:
    """Appends records to ``metrics.jsonl``; only process 0 writes.

    A record is ``{"step": steps taken, name: number, ...}``; a number that is not finite is null.
    Each line is flushed, so a killed run loses none. A resumed run first drops the records after
    the step it resumes from (it will write them again), and a last line cut short.

    Args:
        directory: created if missing.
        resume_step: steps taken by the state the run continues from; 0 for a new run.

    Raises:
        OSError: if the directory cannot be written to.

    Examples:
        >>> import tempfile
        >>> directory = tempfile.mkdtemp()
        >>> with MetricsWriter(directory) as writer:
        ...     writer.write(1, loss=2.5)
        ...     writer.write(2, loss=float("nan"))
        >>> with MetricsWriter(directory, resume_step=1) as writer:
        ...     writer.write(2, loss=2.25)
        >>> read_metrics(directory)
        [{'step': 1, 'loss': 2.5}, {'step': 2, 'loss': 2.25}]
    """

    def __init__(self, directory: str | Path, *, resume_step: int = 0):
        self._file = self._board = None
        if jax.process_index() != 0:
            return
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / "metrics.jsonl"
        kept = [r for r in read_metrics(directory) if r["step"] <= resume_step]
        draft = path.with_suffix(".tmp")  # renamed when whole: a kill here must not lose records
        draft.write_text("".join(json.dumps(record) + "\n" for record in kept))
        os.replace(draft, path)
        self._file = path.open("a")
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            return
        self._board = SummaryWriter(str(directory / "tensorboard"), purge_step=resume_step + 1)

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def write(self, step: int, **scalars: float) -> None:
        """Writes one record, at once.

        Args:
            step: steps taken.
            **scalars: Python numbers.
        """
        if self._file is None:
            return
        finite = {name: x if math.isfinite(x) else None for name, x in scalars.items()}
        self._file.write(json.dumps({"step": step, **finite}) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in scalars.items():
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Closes the files."""
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()


def read_metrics(directory: str | Path) -> list[dict[str, float]]:
    """Returns the records of a run, in the order written; none if there is no file.

    A last line without its end, left by a killed process, is not a record.
    """
    path = Path(directory) / "metrics.jsonl"
    if not path.exists():
        return []
    lines = path.read_text().split("\n")[:-1]
    return [json.loads(line) for line in lines]


def progress_bar(start: int, steps: int) -> tqdm:
    """Returns a bar over the steps with time left; silent unless a terminal or notebook watches.

    Examples:
        >>> with progress_bar(0, 10) as bar:
        ...     bar.update(1)
        >>> bar.total
        10
    """
    # `disable=None` asks whether the output is a terminal; other processes stay silent.
    disable = None if jax.process_index() == 0 else True
    return tqdm(total=steps, initial=start, unit="step", disable=disable, dynamic_ncols=True)
