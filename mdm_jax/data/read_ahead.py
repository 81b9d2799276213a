"""Reading the next batches while a step runs."""

import queue
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Generic, TypeVar

Batch = TypeVar("Batch")

_POLL = 0.1  # seconds between looks at whether to stop


class ReadAhead(Generic[Batch]):
    """Calls `read` for consecutive steps in a thread of its own, some steps ahead of the caller.

    A batch stays what `read` makes of its step: nothing but the time of the call changes. Where
    `read` also places a batch on devices, that overlaps with the step as well.

    Args:
        read: ``read(step)``, called in order and in one thread.
        start: the first step.
        stop: one past the last: nothing beyond is read.
        depth: batches held ready, at most.

    Raises:
        ValueError: if `depth` is below 1.

    Examples:
        >>> with ReadAhead(lambda step: step * 10, start=2, stop=5) as batches:
        ...     [batches(step) for step in range(2, 5)]
        [20, 30, 40]
    """

    def __init__(self, read: Callable[[int], Batch], start: int, stop: int, depth: int = 2):
        if depth < 1:
            raise ValueError(f"depth={depth}: expected at least one batch")
        self._read, self._next, self._stop = read, start, stop
        self._ready: queue.Queue[tuple[Batch | None, BaseException | None]] = queue.Queue(depth)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(start,), daemon=True)

    def __enter__(self) -> "ReadAhead[Batch]":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stops the thread and waits for it: at most for the batch it is reading."""
        self._closed.set()
        self._thread.join()

    def __call__(self, step: int) -> Batch:
        """Returns the batch of a step, waiting for it if it is not ready.

        Raises:
            ValueError: if `step` is not the one after the last, or none that is read.
            Exception: what `read` raised for this step.
        """
        if step != self._next or step >= self._stop:
            raise ValueError(f"step {step}: expected {self._next}, and below {self._stop}")
        while True:
            try:
                batch, error = self._ready.get(timeout=_POLL)
                break
            except queue.Empty:
                if not self._thread.is_alive() and self._ready.empty():
                    raise RuntimeError(
                        f"nothing reads step {step}: use it in a `with` block"
                    ) from None
        self._next += 1
        if error is not None:
            self._stop = self._next  # the thread has ended
            raise error
        return batch  # pyright: ignore[reportReturnType]

    def _run(self, start: int) -> None:
        for step in range(start, self._stop):
            try:
                item = self._read(step), None
            except BaseException as error:  # it is raised where the batch is asked for
                item = None, error
            while not self._closed.is_set():
                try:
                    self._ready.put(item, timeout=_POLL)
                    break
                except queue.Full:
                    pass
            if self._closed.is_set() or item[1] is not None:
                return
