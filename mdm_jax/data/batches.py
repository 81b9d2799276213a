"""Batches as a pure function of `(seed, step)`.

There is no iterator and so no iterator state: a run resumes by asking for the next step, on any
number of processes. Which rows of a batch a process reads is for the mesh to say: see
`mdm_jax.train.meshes.read_rows`.
"""

from collections.abc import Iterator
from typing import Any

import grain
import numpy as np

from mdm_jax.data.packing import Windows
from mdm_jax.data.prepared import Mixture


class Batches:
    """Training batches by random access: `batches(step)` is batch `step`, `rows` a part of it.

    All epochs form one stream of windows: every window once in each epoch, in an order drawn anew
    for each epoch. Global batch `step` is the windows `[step * batch_size, (step + 1) *
    batch_size)` of that stream, so a batch may span two epochs and no window is ever dropped.

    Of a mixture, windows alternate between the parts as the weights say, and each part has its own
    epochs.

    Args:
        windows: The windows: in memory, prepared, or a `Mixture` of prepared ones.
        batch_size: Rows of the global batch, over all processes.
        seed: Seed of the order, an integer from 0 to 2^32 - 1.

    Raises:
        ValueError: If a number is out of range.

    Examples:
        >>> from mdm_jax.data import Packed
        >>> packed = Packed(np.arange(12, dtype=np.int32).reshape(6, 2), np.ones((6, 2), bool), 12)
        >>> batches = Batches(packed, batch_size=4, seed=0)
        >>> batches(7)["tokens"].shape
        (4, 2)
        >>> bool((batches.rows(7, 1, 3)["tokens"] == batches(7)["tokens"][1:3]).all())
        True
    """

    def __init__(self, windows: Windows, batch_size: int, seed: int):
        if not 0 <= seed < 2**32:
            raise ValueError(f"seed must lie from 0 to 2**32 - 1, got {seed}")
        self.batch_size = _checked_size(batch_size)
        if isinstance(windows, Mixture):
            seeds = np.random.SeedSequence(seed).generate_state(len(windows.parts))
            self._windows = grain.MapDataset.mix(
                [_stream(*part) for part in zip(windows.parts, seeds.tolist(), strict=True)],
                weights=windows.weights,
            )
        else:
            self._windows = _stream(windows, seed)

    def __call__(self, step: int) -> dict[str, np.ndarray]:
        """The batch at `step`: `{"tokens": int32[B, L], "where": bool[B, L]}`.

        It has "segments" int32[B, L] as well if attention must keep documents apart.

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
        return _stacked([self._windows[first + row] for row in range(start, stop)])


def evaluation_batches(windows: Windows, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
    """Every window once, in order, in batches that all have the same shape.

    The last batch is filled up with rows whose `where` is False throughout (their tokens repeat the
    last window, so that they are ids of the vocabulary).

    Yields:
        As `Batches`.

    Raises:
        ValueError: If `batch_size` is below 1.

    Examples:
        >>> from mdm_jax.data import Packed
        >>> packed = Packed(np.arange(6, dtype=np.int32).reshape(3, 2), np.ones((3, 2), bool), 6)
        >>> [batch["where"].sum(axis=1).tolist() for batch in evaluation_batches(packed, 2)]
        [[2, 2], [2, 0]]
    """
    size = _checked_size(batch_size)
    return (_window_rows(windows, start, size) for start in range(0, len(windows), size))


def _window_rows(windows: Windows, start: int, rows: int) -> dict[str, np.ndarray]:
    """Windows `[start, start + rows)`, with rows that score nothing past the last one."""
    there = [windows[index] for index in range(start, min(start + rows, len(windows)))]
    batch = _stacked([*there, *(rows - len(there)) * there[-1:]])
    batch["where"][len(there) :] = False
    return batch


def _stream(windows: Any, seed: int) -> Any:
    """All epochs of some windows."""
    # `seed` hashes what it is given; a seed passed to `shuffle` itself has the epoch added to
    # it, and then run seed + 1 would begin with the second epoch of run seed.
    return grain.MapDataset.source(windows).seed(seed).shuffle().repeat()


def _stacked(rows: list[Any]) -> dict[str, np.ndarray]:
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _checked_size(batch_size: int) -> int:
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: expected at least one row in the global batch")
    return batch_size
