"""Batches as a pure function of `(seed, step)`.

There is no iterator and so no iterator state: a run resumes by asking for the next step, on any
number of processes. Which rows of a batch a process reads is for the mesh to say: see
`mdm_jax.train.meshes.read_rows`.
"""

from collections.abc import Iterator
from typing import Any

import grain
import numpy as np

from mdm_jax.data.packing import Packed


class Batches:
    """Training batches by random access: `batches(step)` is batch `step`, `rows` a part of it.

    All epochs form one stream of windows: every window once in each epoch, in an order drawn anew
    for each epoch. Global batch `step` is the windows `[step * batch_size, (step + 1) *
    batch_size)` of that stream, so a batch may span two epochs and no window is ever dropped.

    Args:
        packed: The windows.
        batch_size: Rows of the global batch, over all processes.
        seed: Seed of the order, an integer from 0 to 2^32 - 1.

    Raises:
        ValueError: If a number is out of range.

    Examples:
        >>> packed = Packed(np.arange(12, dtype=np.int32).reshape(6, 2), np.ones((6, 2), bool), 12)
        >>> batches = Batches(packed, batch_size=4, seed=0)
        >>> batches(7)["tokens"].shape
        (4, 2)
        >>> bool((batches.rows(7, 1, 3)["tokens"] == batches(7)["tokens"][1:3]).all())
        True
    """

    def __init__(self, packed: Packed, batch_size: int, seed: int):
        if not 0 <= seed < 2**32:
            raise ValueError(f"seed must lie from 0 to 2**32 - 1, got {seed}")
        self.batch_size = _checked_size(batch_size)
        # `seed` hashes what it is given; a seed passed to `shuffle` itself has the epoch added to
        # it, and then run seed + 1 would begin with the second epoch of run seed.
        self._windows = grain.MapDataset.source(packed).seed(seed).shuffle().repeat()

    def __call__(self, step: int) -> dict[str, np.ndarray]:
        """The batch at `step`: `{"tokens": int32[B, L], "where": bool[B, L]}`.

        Raises:
            ValueError: If `step` is negative.
        """
        return self.rows(step, 0, self.batch_size)

    def rows(self, step: int, start: int, stop: int) -> dict[str, np.ndarray]:
        """Rows `[start, stop)` of the batch at `step`; no other window is read.

        Raises:
            ValueError: If `step` is negative, or the batch has no such rows.
        """
        if step < 0:
            raise ValueError(f"step must not be negative, got {step}")
        if not 0 <= start < stop <= self.batch_size:
            raise ValueError(f"rows [{start}, {stop}) are none of a batch of {self.batch_size}")
        first = int(step) * self.batch_size
        windows: list[Any] = [self._windows[first + row] for row in range(start, stop)]
        return {name: np.stack([window[name] for window in windows]) for name in windows[0]}


def evaluation_batches(packed: Packed, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
    """Every window once, in order, in batches that all have the same shape.

    The last batch is filled up with rows whose `where` is False throughout (their tokens repeat the
    last window, so that they are ids of the vocabulary).

    Yields:
        `{"tokens": int32[B, L], "where": bool[B, L]}`.

    Raises:
        ValueError: If `batch_size` is below 1.

    Examples:
        >>> packed = Packed(np.arange(6, dtype=np.int32).reshape(3, 2), np.ones((3, 2), bool), 6)
        >>> [batch["where"].sum(axis=1).tolist() for batch in evaluation_batches(packed, 2)]
        [[2, 2], [2, 0]]
    """
    size = _checked_size(batch_size)
    return (_window_rows(packed, start, size) for start in range(0, len(packed), size))


def _window_rows(packed: Packed, start: int, rows: int) -> dict[str, np.ndarray]:
    """Windows `[start, start + rows)`, with rows that score nothing past the last one."""
    index = np.arange(start, start + rows)
    clamped = np.minimum(index, len(packed) - 1)
    exists = index < len(packed)
    return {
        "tokens": packed.tokens[clamped],
        "where": packed.where[clamped] & exists[:, None],
    }


def _checked_size(batch_size: int) -> int:
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: expected at least one row in the global batch")
    return batch_size
