"""The share of a run's wall time that brought it forward, over all its restarts.

``sessions.jsonl`` holds one line at the start of each session (one start of the command), at each
report and at each checkpoint: the time of day, the steps taken, and the seconds spent so far in
this session by phase. Unlike ``metrics.jsonl`` it keeps what was lost: a session that resumes from
step 500 shows that what the one before spent beyond step 500 was for nothing.
"""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from mdm_jax.evaluation.records import read_records
from mdm_jax.train.paths import open_growing, run_path
from mdm_jax.train.stopwatch import PHASES, PRODUCTIVE, Stopwatch

FILE = "sessions.jsonl"


class Account(NamedTuple):
    """Where the wall time of a run went since its first start, in seconds.

    Attributes:
        wall: all of it.
        useful: training steps that counted.
        lost: training steps that were taken again, after a resumption from before them.
        overhead: the other phases of `stopwatch.PHASES`, of all sessions.
        down: when nothing ran; or what ran was killed before it wrote its next line.
        sessions: starts of the command.
    """

    wall: float
    useful: float
    lost: float
    overhead: dict[str, float]
    down: float
    sessions: int

    @property
    def goodput(self) -> float:
        """`useful` as a share of `wall`."""
        return self.useful / self.wall if self.wall > 0 else 0.0


def account(records: Sequence[dict[str, Any]]) -> Account:
    """Adds up the lines of ``sessions.jsonl``.

    Training seconds beyond the step from which a later session resumes are lost. Between two lines
    they are spread evenly over the steps.

    Args:
        records: in the order written.

    Examples:
        >>> line = lambda session, step, time, spent, compiling: {
        ...     "session": session, "step": step, "time": time,
        ...     "seconds": {"step": spent, "compile": compiling}}
        >>> first = [line(0, 0, 100.0, 0.0, 0.0), line(0, 40, 150.0, 40.0, 10.0)]
        >>> second = [line(1, 20, 160.0, 0.0, 0.0), line(1, 40, 190.0, 20.0, 10.0)]
        >>> total = account(first + second)
        >>> total.useful, total.lost, total.overhead["compile"], total.down, total.wall
        (40.0, 20.0, 20.0, 10.0, 90.0)
        >>> round(total.goodput, 3)
        0.444
    """
    sessions: dict[int, list[dict[str, Any]]] = {}
    for record in records:
        sessions.setdefault(record["session"], []).append(record)
    useful = lost = running = 0.0
    overhead = {name: 0.0 for name in PHASES if name not in PRODUCTIVE}
    resumed_from = float("inf")  # the first step that a later session took again
    for lines in reversed(sessions.values()):
        steps = [line["step"] for line in lines]
        spent = [sum(line["seconds"].get(p, 0.0) for p in PRODUCTIVE) for line in lines]
        kept = float(np.interp(min(resumed_from, steps[-1]), steps, spent))
        useful, lost = useful + kept, lost + spent[-1] - kept
        for name in overhead:
            overhead[name] += lines[-1]["seconds"].get(name, 0.0)
        running += sum(lines[-1]["seconds"].values())
        resumed_from = min(resumed_from, steps[0])
    wall = records[-1]["time"] - _began(records[0]) if records else 0.0
    return Account(wall, useful, lost, overhead, max(wall - running, 0.0), len(sessions))


def _began(record: dict[str, Any]) -> float:
    """The time of day at which the session of a line started."""
    return record["time"] - sum(record["seconds"].values())


class Sessions:
    """Writes the lines of this session, and knows the goodput of the run so far.

    Only process 0 writes. A session that takes no step leaves no line.

    Args:
        directory: of the run.
        stopwatch: of this session.
        start: steps taken before it.
        clock: the time of day, in seconds.

    Raises:
        OSError: if the file cannot be written to.

    Examples:
        >>> import tempfile
        >>> directory = tempfile.mkdtemp()
        >>> with Sessions(directory, Stopwatch(), start=0) as sessions:
        ...     goodput = sessions.note(10)
        >>> 0 <= goodput <= 1, [record["step"] for record in read_sessions(directory)]
        (True, [0, 10])
    """

    def __init__(
        self,
        directory: str | Path,
        stopwatch: Stopwatch,
        *,
        start: int,
        clock: Callable[[], float] = time.time,
    ):
        self._path = run_path(directory) / FILE
        self._stopwatch, self._clock, self._start = stopwatch, clock, start
        self._file = None
        # What a line holds is of one clock, and what is between sessions of another: the time of
        # day may be set while a session runs, and its seconds must not change.
        self._origin = clock() - sum(stopwatch.seconds().values())
        self._before = read_sessions(directory) if jax.process_index() == 0 else []
        self._number = 1 + max((r["session"] for r in self._before), default=-1)
        first = self._line(start, dict.fromkeys(PHASES, 0.0))
        past = account([*self._before, first])
        self._past_useful, self._past_wall = past.useful, past.wall

    def __enter__(self) -> "Sessions":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file is not None:
            self._file.close()

    def note(self, step: int) -> float | None:
        """Writes a line.

        Args:
            step: steps taken, and done.

        Returns:
            The goodput of the run until now, of all its sessions; None on other processes.
        """
        if jax.process_index() != 0:
            return None
        seconds = self._stopwatch.seconds()
        if self._file is None:
            whole = not self._path.exists() or self._path.read_bytes()[-1:] in (b"", b"\n")
            self._file = open_growing(self._path)
            if not whole:  # killed while writing: its half line must not swallow ours
                self._file.write("\n")
            self._file.write(self._text(self._line(self._start, dict.fromkeys(PHASES, 0.0))))
        self._file.write(self._text(self._line(step, seconds)))
        self._file.flush()
        useful = self._past_useful + sum(seconds[name] for name in PRODUCTIVE)
        return useful / max(self._past_wall + sum(seconds.values()), 1e-9)

    def _line(self, step: int, seconds: dict[str, float]) -> dict[str, Any]:
        now = self._origin + sum(seconds.values())
        rounded = {name: round(value, 4) for name, value in seconds.items()}
        return {"step": step, "session": self._number, "time": now, "seconds": rounded}

    def _text(self, record: dict[str, Any]) -> str:
        return json.dumps(record) + "\n"


def read_sessions(directory: str | Path) -> list[dict[str, Any]]:
    """Returns the lines of a run's sessions, in the order written; none if there is no file.

    Examples:
        >>> read_sessions("no/such/run")
        []
    """
    path = run_path(directory) / FILE
    records = read_records(path) if path.exists() else []
    return [r for r in records if isinstance(r.get("seconds"), dict) and "session" in r]
