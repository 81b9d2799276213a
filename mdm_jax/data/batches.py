"""Batches as a pure function of `(seed, step)`.

There is no iterator and so no iterator state: a run resumes by asking for the next step, on any
number of processes.
"""

from collections.abc import Iterator

import grain
import numpy as np

from mdm_jax.data.packing import Packed


class Batches:
    """Training batches by random access: `batches(step)` is this process's part of batch `step`.

    All epochs form one stream of windows: every window once in each epoch, in an order drawn anew
    for each epoch. Global batch `step` is the windows `[step * batch_size, (step + 1) *
    batch_size)` of that stream, so a batch may span two epochs and no window is ever dropped. The
    parts of the processes, in order, make up the global batch, which is the same for any number of
    processes. A process reads only its own part.

    Args:
        packed: The windows.
        batch_size: Rows of the global batch, over all processes.
        seed: Seed of the order, an integer from 0 to 2^32 - 1.
        process_index: This process's index, as in `jax.process_index()`.
        process_count: Number of processes, as in `jax.process_count()`.

    Raises:
        ValueError: If `process_count` does not divide `batch_size`, or a number is out of range.

    Examples:
        >>> packed = Packed(np.arange(12, dtype=np.int32).reshape(6, 2), np.ones((6, 2), bool), 12)
        >>> batches = Batches(packed, batch_size=4, seed=0)
        >>> batches(7)["tokens"].shape
        (4, 2)
        >>> halves = [Batches(packed, 4, 0, process_index=i, process_count=2) for i in (0, 1)]
        >>> both = np.concatenate([half(7)["tokens"] for half in halves])
        >>> bool((both == batches(7)["tokens"]).all())
        True
    """

    def __init__(
        self,
        packed: Packed,
        batch_size: int,
        seed: int,
        process_index: int = 0,
        process_count: int = 1,
    ):
        if not 0 <= seed < 2**32:
            raise ValueError(f"seed must lie from 0 to 2**32 - 1, got {seed}")
        rows = _rows_per_process(batch_size, process_index, process_count)
        # `seed` hashes what it is given; a seed passed to `shuffle` itself has the epoch added to
        # it, and then run seed + 1 would begin with the second epoch of run seed.
        windows = grain.MapDataset.source(packed).seed(seed).shuffle().repeat()
        self._parts = windows.batch(rows)
        self._process_index = process_index
        self._process_count = process_count

    def __call__(self, step: int) -> dict[str, np.ndarray]:
        """This process's rows at `step`: `{"tokens": int32[b, L], "where": bool[b, L]}`.

        Raises:
            ValueError: If `step` is negative.
        """
        if step < 0:
            raise ValueError(f"step must not be negative, got {step}")
        part = self._parts[int(step) * self._process_count + self._process_index]
        assert part is not None  # Grain's type allows for filtered windows; there is no filter here
        return part


def evaluation_batches(
    packed: Packed, batch_size: int, process_index: int = 0, process_count: int = 1
) -> Iterator[dict[str, np.ndarray]]:
    """Every window once, in order, in batches that all have the same shape.

    The last batch is filled up with rows whose `where` is False throughout (their tokens repeat the
    last window, so that they are ids of the vocabulary). As in `Batches`, the parts of the
    processes, in order, make up the global batch.

    Yields:
        `{"tokens": int32[b, L], "where": bool[b, L]}`, `b = batch_size / process_count`.

    Raises:
        ValueError: If `process_count` does not divide `batch_size`, or a number is out of range.

    Examples:
        >>> packed = Packed(np.arange(6, dtype=np.int32).reshape(3, 2), np.ones((3, 2), bool), 6)
        >>> [batch["where"].sum(axis=1).tolist() for batch in evaluation_batches(packed, 2)]
        [[2, 2], [2, 0]]
    """
    rows = _rows_per_process(batch_size, process_index, process_count)
    starts = range(process_index * rows, len(packed) + process_index * rows, batch_size)
    return (_window_rows(packed, start, rows) for start in starts)


def _window_rows(packed: Packed, start: int, rows: int) -> dict[str, np.ndarray]:
    """Windows `[start, start + rows)`, with rows that score nothing past the last one."""
    index = np.arange(start, start + rows)
    clamped = np.minimum(index, len(packed) - 1)
    exists = index < len(packed)
    return {
        "tokens": packed.tokens[clamped],
        "where": packed.where[clamped] & exists[:, None],
    }


def _rows_per_process(batch_size: int, process_index: int, process_count: int) -> int:
    if not 0 <= process_index < process_count:
        raise ValueError(
            f"process_index must lie from 0 to process_count - 1, got process_index={process_index}"
            f" and process_count={process_count}"
        )
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(
            f"batch_size={batch_size} must be a positive multiple of process_count={process_count}:"
            " it counts the rows of the global batch, and every process gets the same number"
        )
    return batch_size // process_count
