import itertools

import numpy as np
import pytest

from mdm_jax.data import Batches, Packed, evaluation_batches

LENGTH = 3


def windows(count: int) -> Packed:
    """Window `i` holds `i` throughout; the last one is half padding."""
    tokens = np.repeat(np.arange(count, dtype=np.int32)[:, None], LENGTH, axis=1)
    where = np.ones((count, LENGTH), bool)
    where[-1, 1:] = False
    return Packed(tokens, where, bytes=int(where.sum()))


def ids(batch) -> list[int]:
    return batch["tokens"][:, 0].tolist()


def stream(batches: Batches, rows: int) -> list[int]:
    """The first `rows` windows of the training stream."""
    steps = map(batches, itertools.count())
    return list(itertools.islice(itertools.chain.from_iterable(map(ids, steps)), rows))


def test_a_batch_is_rows_of_the_packed_text():
    packed = windows(10)
    batch = Batches(packed, batch_size=10, seed=0)(0)
    assert {name: (x.dtype, x.shape) for name, x in batch.items()} == {
        "tokens": (np.int32, (10, LENGTH)),
        "where": (np.bool_, (10, LENGTH)),
    }
    np.testing.assert_array_equal(batch["tokens"], packed.tokens[ids(batch)])
    np.testing.assert_array_equal(batch["where"], packed.where[ids(batch)])


@pytest.mark.parametrize(("count", "batch_size"), [(12, 4), (10, 4), (7, 3), (3, 8), (1, 2)])
def test_every_window_once_per_epoch(count, batch_size):
    seen = stream(Batches(windows(count), batch_size, seed=3), 5 * count)
    for epoch in range(5):
        assert sorted(seen[epoch * count : (epoch + 1) * count]) == list(range(count))


def test_every_epoch_has_its_own_order():
    seen = stream(Batches(windows(20), 4, seed=0), 100)
    epochs = {tuple(seen[i : i + 20]) for i in range(0, 100, 20)}
    assert len(epochs) == 5
    assert tuple(range(20)) not in epochs


def test_every_seed_has_its_own_orders():
    """Not only at the start: a run must not replay the second epoch of the run beside it."""
    orders = [stream(Batches(windows(20), 4, seed), 60) for seed in range(4)]
    epochs = {tuple(order[i : i + 20]) for order in orders for i in (0, 20, 40)}
    assert len(epochs) == 12


def test_the_order_is_the_same_in_every_version():
    """Fails when Grain changes its shuffle: runs then no longer resume on the same data."""
    batches = Batches(windows(10), 5, seed=0)
    assert [ids(batches(step)) for step in range(4)] == [
        [1, 2, 4, 5, 9],
        [7, 8, 6, 0, 3],
        [9, 6, 1, 8, 2],
        [0, 3, 5, 4, 7],
    ]


@pytest.mark.parametrize(("start", "stop"), [(0, 8), (0, 4), (4, 8), (3, 4)])
def test_rows_are_those_of_the_whole_batch(start, stop):
    batches = Batches(windows(10), 8, seed=1)
    for step in (0, 1, 5, 1000):
        part, whole = batches.rows(step, start, stop), batches(step)
        for name in ("tokens", "where"):
            np.testing.assert_array_equal(part[name], whole[name][start:stop])


def test_only_the_rows_asked_for_are_read():
    """A process of many must not read the whole batch."""
    read = []

    class Watched(Packed):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    packed = windows(10)
    watched = Watched(packed.tokens, packed.where, packed.bytes)
    rows = Batches(watched, 8, seed=1).rows(3, 2, 4)
    assert [int(i) for i in read] == ids(rows)


def test_a_batch_depends_on_nothing_but_seed_and_step():
    """Out of order, twice, and from a new object as after a restart, the batches are the same."""
    packed = windows(10)
    batches = Batches(packed, 4, seed=2)
    forward = {step: ids(batches(step)) for step in range(8)}
    backward = {step: ids(batches(step)) for step in reversed(range(8))}
    assert backward == forward
    resumed = Batches(packed, 4, seed=2)
    assert {step: ids(resumed(step)) for step in range(5, 8)} == {
        step: forward[step] for step in range(5, 8)
    }
    assert ids(batches(np.int32(3))) == forward[3]


def test_a_batch_is_the_callers_to_write_to():
    packed = windows(4)
    batches = Batches(packed, 4, seed=0)
    before = ids(batches(0))
    batches(0)["tokens"][:] = -1
    next(evaluation_batches(packed, 4))["tokens"][:] = -1
    assert ids(batches(0)) == before


@pytest.mark.parametrize("count", [8, 9, 3, 1])
def test_evaluation_covers_every_window_once_in_order(count):
    packed = windows(count)
    seen, scored = [], 0
    for batch in evaluation_batches(packed, 4):
        tokens, where = batch["tokens"], batch["where"]
        assert tokens.shape == where.shape == (4, LENGTH)
        assert tokens.max() < count  # padding rows hold ids of the vocabulary too
        seen += tokens[where.any(axis=1), 0].tolist()
        scored += int(where.sum())
    assert seen == list(range(count))
    assert scored == packed.token_count


@pytest.mark.parametrize("make", [lambda p, size: Batches(p, size, 0), evaluation_batches])
def test_sizes_are_checked_at_once(make):
    with pytest.raises(ValueError, match="batch_size=0"):
        make(windows(4), 0)


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (2, 2), (2, 5)])
def test_rows_a_batch_does_not_have(start, stop):
    with pytest.raises(ValueError, match=r"are none of a batch of 4"):
        Batches(windows(4), 4, 0).rows(0, start, stop)


def test_seeds_and_steps_are_checked():
    with pytest.raises(ValueError, match=r"seed must lie from 0 .* got -1"):
        Batches(windows(4), 2, seed=-1)
    with pytest.raises(ValueError, match="step must not be negative, got -1"):
        Batches(windows(4), 2, seed=0)(-1)
