"""What a report says of speed: where the time went, tokens per second, MFU, memory, goodput."""

import logging

import jax

from mdm_jax.models.flops import Flops
from mdm_jax.train.cost import step_flops
from mdm_jax.train.goodput import Sessions
from mdm_jax.train.learners import Learner
from mdm_jax.train.stopwatch import PRODUCTIVE, Stopwatch
from mdm_jax.train.utilization import device_memory, peak_flops

logger = logging.getLogger(__name__)


class Meter:
    """Counts steps and tokens between reports, and divides them by the time they took.

    Rates leave out evaluation, checkpoints and compilation, so that they say how fast training
    trains whatever falls between two reports; ``goodput`` says what all of that costs.

    Args:
        stopwatch: of the run.
        sessions: of the run, for its goodput; None leaves it out.
        flops: of one step on all devices; None leaves the MFU out.
        peak: FLOP/s of one device; None leaves the MFU out.

    Attributes:
        stopwatch: of the run.

    Examples:
        >>> now = iter([0.0, 0.0, 0.0, 4.0])
        >>> flops = Flops(blocks=48, attention=12)
        >>> meter = Meter(Stopwatch(clock=lambda: next(now)), flops=flops, peak=10.0)
        >>> meter.stopwatch.started()
        >>> meter.count(tokens=128)
        >>> report = meter.report(1)
        >>> report["tokens_per_second"], report["seconds"], report["seconds_other"]
        (32.0, 4.0, 4.0)
        >>> devices = jax.device_count()
        >>> round(report["mfu"] * devices, 3), round(report["mfu_6n"] * devices, 3)
        (1.5, 1.2)
    """

    def __init__(
        self,
        stopwatch: Stopwatch | None = None,
        *,
        sessions: Sessions | None = None,
        flops: Flops | None = None,
        peak: float | None = None,
    ):
        self.stopwatch = stopwatch or Stopwatch()
        self._sessions, self._flops, self._peak = sessions, flops, peak
        self._last = dict.fromkeys(self.stopwatch.seconds(), 0.0)
        self._steps, self._tokens, self._starved = 0, 0.0, 0.0
        self._fed = 0.0  # seconds of "data" when the last batch had come

    @classmethod
    def of(cls, learner: Learner, stopwatch: Stopwatch, sessions: Sessions) -> "Meter":
        """Returns the meter of a run; logs why if there will be no MFU."""
        kind, given = jax.devices()[0].device_kind, learner.config["watch"]["peak_tflops"]
        peak, flops = peak_flops(kind, given), step_flops(learner)
        if peak is None:
            logger.info(
                "no MFU: the peak of a %r is not known here; set watch.peak_tflops, the TFLOP/s of "
                "one device, to have it",
                kind,
            )
        return cls(stopwatch, sessions=sessions, flops=flops, peak=peak)

    def fed(self, *, idle: bool) -> None:
        """Notes that a batch has come, and whether the devices had nothing left to do by then."""
        before, self._fed = self._fed, self.stopwatch.seconds()["data"]
        self._starved += (self._fed - before) * idle

    def count(self, tokens: float) -> None:
        """Counts a step that was done, and the tokens it scored."""
        self._steps += 1
        self._tokens += tokens

    def report(self, step: int) -> dict[str, float]:
        """Returns what belongs in a record, and starts to count anew.

        Args:
            step: steps taken.

        Returns:
            ``tokens_per_second`` and ``tokens_per_second_per_device``; ``seconds`` since the last
            report and, as ``seconds_<phase>``, its parts by `stopwatch.PHASES`; ``starved``, the
            share of training seconds that went by waiting for batches for which the devices had
            nothing else to do. Where they are
            known: ``mfu`` with the products inside attention, ``mfu_6n`` without them,
            ``memory_...`` (see `device_memory`), ``goodput``.
        """
        seconds = self.stopwatch.seconds()
        passed = {name: seconds[name] - self._last[name] for name in seconds}
        productive = max(sum(passed[name] for name in PRODUCTIVE), 1e-9)
        rate = self._tokens / productive
        devices = jax.device_count()
        record = {"tokens_per_second": rate, "tokens_per_second_per_device": rate / devices}
        if self._flops is not None and self._peak is not None:
            possible = productive * self._peak * devices
            record["mfu"] = self._steps * self._flops.total / possible
            record["mfu_6n"] = self._steps * self._flops.without_attention / possible
        record["seconds"] = sum(passed.values())
        record |= {f"seconds_{name}": value for name, value in passed.items()}
        record["starved"] = self._starved / productive
        record |= device_memory()
        goodput = None if self._sessions is None else self._sessions.note(step)
        if goodput is not None:
            record["goodput"] = goodput
        self._last, self._steps, self._tokens, self._starved = seconds, 0, 0.0, 0.0
        return record
