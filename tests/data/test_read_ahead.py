"""Reading ahead: the same batches in order, errors where they are asked for, no thread left."""

import threading

import pytest

from mdm_jax.data import ReadAhead


def test_order_and_how_far_ahead():
    read, permits = [], threading.Semaphore(0)

    def slowly(step):
        permits.acquire()
        read.append(step)
        return step * step

    with ReadAhead(slowly, 3, 9, depth=2) as batches:
        for _ in range(6):
            permits.release()
        assert [batches(step) for step in range(3, 9)] == [9, 16, 25, 36, 49, 64]
    assert read == list(range(3, 9))


def test_no_more_than_depth_is_held():
    """What is read and not yet taken: `depth` in the queue and one in the reader's hand."""
    reached, read = threading.Event(), []

    def watched(step):
        read.append(step)
        if len(read) == 3:
            reached.set()
        return step

    with ReadAhead(watched, 0, 100, depth=2) as batches:
        assert reached.wait(10)
        assert len(read) == 3
        batches(0)
    assert len(read) <= 4


def test_an_error_surfaces_at_its_step():
    def failing(step):
        if step == 2:
            raise OSError("no such shard")
        return step

    with ReadAhead(failing, 0, 5) as batches:
        assert [batches(0), batches(1)] == [0, 1]
        with pytest.raises(OSError, match="no such shard"):
            batches(2)
        with pytest.raises(ValueError, match="step 3: expected 3, and below 3"):
            batches(3)


def test_it_stops_with_its_block_whatever_happens():
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt), ReadAhead(lambda step: step, 0, 10**9) as batches:
        batches(0)
        raise KeyboardInterrupt
    assert threading.active_count() == before


def test_steps_are_asked_for_in_order():
    with ReadAhead(lambda step: step, 5, 8) as batches:
        with pytest.raises(ValueError, match="step 6: expected 5"):
            batches(6)
        assert [batches(step) for step in (5, 6, 7)] == [5, 6, 7]
        with pytest.raises(ValueError, match="step 8: expected 8, and below 8"):
            batches(8)
    with pytest.raises(ValueError, match="depth=0"):
        ReadAhead(lambda step: step, 0, 1, depth=0)
    with pytest.raises(RuntimeError, match="use it in a `with` block"):
        ReadAhead(lambda step: step, 0, 1)(0)
