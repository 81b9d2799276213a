"""Stopping between steps when the operating system or the user asks for it."""

import logging
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import jax

logger = logging.getLogger(__name__)


class Interrupted(Exception):  # noqa: N818 (not an error: the run is saved and can continue)
    """Training stopped on request, after saving its state.

    Attributes:
        signum: the signal, for the exit status 128 + signum.
        step: steps taken, and saved.
    """

    def __init__(self, signum: int, step: int):
        super().__init__(
            f"stopped by {signal.Signals(signum).name} after {step} steps, which are saved: run "
            "the same command to continue"
        )
        self.signum = signum
        self.step = step


class StopRequest:
    """Notes SIGTERM and SIGINT (Ctrl-C) while in its context; a second one acts at once.

    With several processes a signal reaches some before others, and they must stop at the same
    step: there JAX's preemption service decides (`Checkpoints.reached_preemption`), and no handler
    is installed in its place. Nor is there one outside the main thread, where Python allows none.

    Attributes:
        signum: the signal noted; None before there is one.

    Examples:
        >>> with StopRequest() as request:
        ...     signal.raise_signal(signal.SIGTERM)
        >>> request.signum == signal.SIGTERM
        True
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self):
        self.signum: int | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._previous = {s: signal.signal(s, self._note) for s in self.SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum
        self._restore()
        logger.warning("%s: stopping after this step", signal.Signals(signum).name)

    def _restore(self) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        self._previous = {}
