"""Orders of generation: Eso-LM's plans, and the published block orders."""

import goldens
import numpy as np
import pytest

import mdm_jax as mdm
from mdm_jax.models.orders import eso_plan, interleaved_order


def test_plans_fill_every_place_once_and_end_from_left_to_right():
    rng = np.random.default_rng(0)
    for alpha_0, steps in [(1.0, 4), (0.5, 8), (0.0, 3)]:
        order, counts = eso_plan(rng, mdm.LogLinear(), (3, 32), steps, alpha_0=alpha_0)
        assert np.array_equal(np.sort(order, axis=1), np.tile(np.arange(32), (3, 1)))
        assert counts.sum() == 32 and counts.min() >= 1
        if alpha_0 == 0.0:
            assert np.array_equal(order, np.sort(order, axis=1)) and len(counts) == 32
        else:
            assert not np.array_equal(order[0], order[1])


def test_counts_follow_the_schedule():
    rng, schedule = np.random.default_rng(0), mdm.Linear()
    # One text of many places: the share filled after a step is alpha_0 alpha(s), up to 1 / sqrt(L).
    _, counts = eso_plan(rng, schedule, (1, 40_000), 4, alpha_0=0.8)
    filled = np.cumsum(counts[:4]) / 40_000
    np.testing.assert_allclose(filled, 0.8 * np.array([0.25, 0.5, 0.75, 1.0]), atol=0.01)
    assert (counts[4:] == 1).all() and len(counts) == 4 + 40_000 - counts[:4].sum()


def test_the_published_plan_is_one(golden):
    order = golden["sample.sort_idx"]
    assert golden["sample.unmask_k"].sum() == 24
    assert np.array_equal(np.sort(order, axis=1), np.tile(np.arange(24), (3, 1)))
    sequential = (golden["sample.unmask_k"][5:] == 1).sum()
    tail = order[:, -sequential:]
    assert np.array_equal(tail, np.sort(tail, axis=1))


@pytest.fixture(scope="module")
def golden():
    return goldens.load("dit_esolm")


def test_published_block_orders_are_interleaved(golden):
    for row in golden["block.sort_idx"]:
        columns = row[::3] % 4
        np.testing.assert_array_equal(interleaved_order(3, 4, columns), row)
        assert sorted(columns) == [0, 1, 2, 3]
    assert golden["block.unmask_k"].tolist() == [3] * 4
    chunk = interleaved_order(3, 4)
    for row in golden["block_ar.sort_idx"]:
        np.testing.assert_array_equal(np.concatenate([chunk, 12 + chunk]), row)
    assert golden["block_ar.unmask_k"].tolist() == ([1] * 3 + [3] * 3) * 2


def test_impossible_plans_are_refused():
    with pytest.raises(ValueError, match=r"alpha_0 in \[0, 1\], got 4 and 1.5"):
        eso_plan(np.random.default_rng(0), mdm.Linear(), (1, 8), 4, alpha_0=1.5)
