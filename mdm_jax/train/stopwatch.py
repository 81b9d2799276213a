"""Where the wall time of a run goes."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax

PHASES: tuple[str, ...] = (
    "startup",
    "data",
    "step",
    "evaluation",
    "checkpoint",
    "compile",
    "profile",
    "other",
)
"""Names of what a second can be spent on, see `Stopwatch`."""

PRODUCTIVE: tuple[str, ...] = ("data", "step", "other")
"""The phases that a training without a pause still has."""

_COMPILE_EVENTS = "/jax/core/compile/"  # tracing, lowering, the backend's compilation


class Stopwatch:
    """Splits the wall time of the thread that made it among `PHASES`.

    A block ``with stopwatch("data"):`` counts for "data", except for blocks inside it and for
    what JAX traces, lowers and compiles meanwhile, which counts for "compile". Time in no block is
    "startup" until `started` is called, then "other".

    JAX dispatches steps without waiting for them. So "step" is the time for which the host was held
    up, by the dispatch or by waiting for the numbers of the step before; while "data" runs, the
    device may be at work.

    Args:
        clock: returns seconds.

    Examples:
        >>> now = iter([0.0, 3.0, 3.0, 3.0, 10.0, 14.0, 14.5])
        >>> with Stopwatch(clock=lambda: next(now)) as stopwatch:
        ...     stopwatch.started()
        ...     with stopwatch("step"):  # from 3.0 to 14.0
        ...         with stopwatch("data"):  # from 3.0 to 10.0
        ...             pass
        ...     seconds = stopwatch.seconds()
        >>> {name: value for name, value in seconds.items() if value}
        {'startup': 3.0, 'data': 7.0, 'step': 4.0, 'other': 0.5}
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._rest = "startup"
        self._open: list[str] = []
        self._since = clock()
        self._thread = threading.get_ident()
        self._compiled: list[tuple[float, float]] = []  # disjoint, in order: (from, to)

    def __enter__(self) -> "Stopwatch":
        jax.monitoring.register_event_duration_secs_listener(self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self._note)

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Counts the block for `phase`, one of `PHASES`; ValueError if it is none."""
        if phase not in PHASES:
            raise ValueError(f"phase={phase!r}: expected one of {PHASES}")
        self._settle()
        self._open.append(phase)
        try:
            yield
        finally:
            self._settle()
            self._open.pop()

    def started(self) -> None:
        """Ends "startup": the first step comes next."""
        self._settle()
        self._rest = "other"

    def seconds(self) -> dict[str, float]:
        """Returns the seconds of each phase until now; their sum is the age of the stopwatch."""
        self._settle()
        return dict(self._seconds)

    @property
    def _phase(self) -> str:
        return self._open[-1] if self._open else self._rest

    def _settle(self) -> float:
        """Counts the time until now for the phase that is running; returns now."""
        now = self._clock()
        self._seconds[self._phase] += now - self._since
        self._since = now
        return now

    def _note(self, event: str, duration_secs: float, **_: str | int) -> None:
        """Moves what JAX says it has just spent on compiling from the running phase."""
        if not event.startswith(_COMPILE_EVENTS) or threading.get_ident() != self._thread:
            return
        now = self._settle()
        start = now - duration_secs
        # A function traced inside another one reports first, and both durations hold its time.
        known = 0.0
        while self._compiled and self._compiled[-1][1] > start:
            first, last = self._compiled.pop()
            known += last - max(first, start)
            start = min(start, first)
        self._compiled.append((start, now))
        moved = min(max(duration_secs - known, 0.0), self._seconds[self._phase])
        self._seconds[self._phase] -= moved
        self._seconds["compile"] += moved
