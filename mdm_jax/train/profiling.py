"""Profiles of a few steps, asked for by the config or while the run is going on.

A window is a folder ``profile-<step>`` in the workdir, for TensorBoard's profile plugin or xprof.
"""

import importlib.util
import logging
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from mdm_jax.train.paths import run_path

logger = logging.getLogger(__name__)

REQUEST = "profile"  # a file of this name in the workdir asks for a window
_LOOK_EVERY = 1.0  # seconds between looks for it: on a network disk a look takes milliseconds


class Profiler:
    """Traces windows of steps: at a step the config names, on SIGUSR1, or for a file.

    ``kill -USR1`` profiles the process that gets it, ``touch <workdir>/profile`` the first process,
    which removes the file. A window that cannot be traced is logged and training goes on.

    Args:
        workdir: of the run.
        steps: of a window.
        first: step before which the planned window starts, counted as `step` of `before`; 0: none.

    Examples:
        >>> import tempfile
        >>> with Profiler(tempfile.mkdtemp(), steps=1) as profiler:
        ...     for step in range(3):
        ...         profiler.before(step, wait=lambda: None)
    """

    def __init__(self, workdir: str | Path, *, steps: int, first: int = 0):
        self._workdir = run_path(workdir)
        self._steps = steps
        self._main = jax.process_index() == 0
        self._first = first if self._main else 0
        self._requested = False
        self._until: int | None = None  # of the window that is open
        self._looked = time.monotonic() - _LOOK_EVERY
        self._previous: Any = None

    def __enter__(self) -> "Profiler":
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGUSR1, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGUSR1, self._previous)
        self._stop()

    def before(self, step: int, wait: Callable[[], object]) -> None:
        """Starts or ends a window; call it before each step.

        Args:
            step: steps taken.
            wait: returns when the devices have done them all, so that a window holds whole steps.
        """
        if self._until is not None:
            if step >= self._until:
                wait()
                self._stop()
            return
        planned = self._first > 0 and step == self._first
        if planned or self._requested or self._found():
            self._requested = False
            wait()
            self._start(step)

    def _note(self, signum: int, frame: object) -> None:
        self._requested = True

    def _found(self) -> bool:
        """Whether the file is there; removes it."""
        now = time.monotonic()
        if not self._main or now - self._looked < _LOOK_EVERY:
            return False
        self._looked = now
        request = self._workdir / REQUEST
        if not request.is_file():
            return False
        request.unlink()
        return True

    def _start(self, step: int) -> None:
        if _would_crash():
            logger.error(
                "no profile of step %d: libtpu is installed and there is no TPU, with which JAX's "
                "profiler crashes. Start with JAX_PLATFORMS=%s to profile",
                *(step, jax.default_backend()),
            )
            return
        folder = self._workdir / f"profile-{step}"
        try:
            jax.profiler.start_trace(str(folder))
        except Exception:  # watching must not stop what it watches
            logger.exception("no profile of step %d", step)
            return
        self._until = step + self._steps
        logger.info("profiling %d step(s) from step %d to %s", self._steps, step, folder)

    def _stop(self) -> None:
        if self._until is None:
            return
        self._until = None
        try:
            jax.profiler.stop_trace()
        except Exception:
            logger.exception("the profile could not be written")


def _would_crash() -> bool:
    """Whether JAX loaded libtpu on a machine without TPUs: its tracer then fails hard (0.0.52)."""
    loaded = (
        importlib.util.find_spec("libtpu") is not None and not jax.config.values["jax_platforms"]
    )
    return loaded and jax.default_backend() != "tpu"
