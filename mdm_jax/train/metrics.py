"""Records of a run: one JSON object per line always, and TensorBoard where it is installed."""

import json
import logging
import math
from pathlib import Path
from types import TracebackType

import jax
import numpy as np
import optax
from tqdm.auto import tqdm

from mdm_jax.evaluation.records import read_records
from mdm_jax.train.meters import Meter
from mdm_jax.train.paths import is_url, open_growing, run_path, sync
from mdm_jax.train.step import Metrics
from mdm_jax.train.trackers import Tracker

logger = logging.getLogger(__name__)


class MetricsWriter:
    """Appends records to ``metrics.jsonl``; only process 0 writes.

    A record is ``{"step": steps taken, name: number, ...}``; a number that is not finite is null.
    Each line is flushed, so a killed run loses none. A resumed run first drops the records after
    the step it resumes from (it will write them again), and a last line cut short. In a bucket the
    file is written whole, every half minute and at `sync`; TensorBoard's files are not.

    Args:
        directory: created if missing.
        resume_step: steps taken by the state the run continues from; 0 for a new run.
        tracker: takes a copy of every record, and is closed with this.

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

    def __init__(
        self, directory: str | Path, *, resume_step: int = 0, tracker: Tracker | None = None
    ):
        self._file = self._board = None
        self._tracker = tracker
        if jax.process_index() != 0:
            return
        directory = run_path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / "metrics.jsonl"
        kept = [r for r in read_metrics(directory) if r["step"] <= resume_step]
        draft = path.with_suffix(".tmp")  # renamed when whole: a kill here must not lose records
        draft.write_text("".join(json.dumps(record) + "\n" for record in kept))
        draft.replace(path)
        self._file = open_growing(path)
        if is_url(path):
            return  # TensorBoard's files would have to grow, too
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
        if self._tracker is not None:
            self._tracker.log(step, scalars)

    def sync(self) -> None:
        """Makes sure of what was written so far, as before a checkpoint: it may be resumed from."""
        if self._file is not None:
            sync(self._file)

    def close(self) -> None:
        """Closes the files."""
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()
        if self._tracker is not None:
            self._tracker.close()


def read_metrics(directory: str | Path) -> list[dict[str, float]]:
    """Returns the records of a run, in the order written; none if there is no file.

    Lines that are no record are left out, see `mdm_jax.evaluation.records.read_records`.

    Examples:
        >>> read_metrics("no/such/run")
        []
    """
    path = run_path(directory) / "metrics.jsonl"
    return read_records(path) if path.exists() else []


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


class DivergedError(ArithmeticError):
    """The loss or the gradient of a step is not finite. Nothing was saved after that step."""


class Reporter:
    """Reads the metrics of a step while the next one runs, checks them and writes them down.

    Args:
        writer: takes a record every `every` steps, and of the first one.
        learning_rate: schedule to report.
        start: steps taken before.
        steps: steps of the whole run.
        every: steps between records.
        meter: measures speed and use of the devices; by default one of its own.

    Examples:
        >>> import tempfile
        >>> from mdm_jax.weighted import WeightedSum
        >>> directory = tempfile.mkdtemp()
        >>> with MetricsWriter(directory) as writer:
        ...     with Reporter(writer, lambda step: 0.1, start=0, steps=2, every=1) as reporter:
        ...         for step in range(2):
        ...             loss = WeightedSum(jax.numpy.float32(4.0), jax.numpy.float32(8.0))
        ...             reporter.submit(step, {"loss": loss, "grad_norm": 1.0})
        ...         reporter.flush()
        >>> [(record["step"], record["loss"]) for record in read_metrics(directory)]
        [(1, 0.5), (2, 0.5)]
    """

    def __init__(
        self,
        writer: MetricsWriter,
        learning_rate: optax.Schedule,
        *,
        start: int,
        steps: int,
        every: int,
        meter: Meter | None = None,
    ):
        self._writer = writer
        self._learning_rate = learning_rate
        self._every = every
        self._bar = progress_bar(start, steps)
        self._pending: tuple[int, Metrics] | None = None
        self._meter = meter or Meter()

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()

    def fed(self) -> None:
        """Notes that the next batch has come, and whether the devices had done the last step."""
        self._meter.fed(idle=self._pending is None or self._pending[1]["loss"].total.is_ready())

    def submit(self, step: int, metrics: Metrics) -> None:
        """Takes the metrics of a step just dispatched, and reports those of the step before."""
        self.flush()
        self._pending = (step, metrics)

    def flush(self) -> None:
        """Waits for the metrics submitted last and reports them.

        Raises:
            DivergedError: if the loss or the gradient norm is not finite.
        """
        if self._pending is None:
            return
        (step, metrics), self._pending = self._pending, None
        with self._meter.stopwatch("step"):
            metrics = jax.device_get(metrics)
        loss, norm = float(metrics["loss"].mean()), float(metrics["grad_norm"])
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self._writer.write(step + 1, loss=loss, grad_norm=norm)
            raise DivergedError(
                f"step {step}: the loss is {loss} and the gradient norm is {norm}. The checkpoints "
                "are from before it. Lower optimizer.learning_rate or optimizer.clip, warm up "
                "longer, or look at the batch of this step"
            )
        self._meter.count(float(metrics["loss"].weight))
        self._bar.update(1)
        if (step + 1) % self._every and step > 0:
            return
        measured = self._meter.report(step + 1)
        rate = measured["tokens_per_second"]
        skipped = int(metrics.get("skipped", 0))
        extra: dict[str, float] = {"skipped": skipped} if "skipped" in metrics else {}
        if "z_loss" in metrics:
            extra["z_loss"] = float(metrics["z_loss"].mean())
        self._bar.set_postfix(loss=f"{loss:.4f}", tokens_per_second=f"{rate:,.0f}")
        self._writer.write(
            step + 1,
            loss=loss,
            grad_norm=norm,
            # The optimizer's schedule does not count skipped steps.
            learning_rate=np.asarray(self._learning_rate(step - skipped)).item(),
            **extra,
            **measured,
        )
        if self._bar.disable:
            logger.info("step %d: loss %.4f, %.0f tokens/s", step + 1, loss, rate)
