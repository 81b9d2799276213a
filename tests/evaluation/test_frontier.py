"""A sweep over a toy law: what it measures, and what the two-sample test can and cannot tell."""

import dataclasses
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import mdm_jax as mdm
from mdm_jax.data import ByteTokenizer
from mdm_jax.evaluation import matched, reports
from mdm_jax.evaluation.frontier import (
    Point,
    Setting,
    at_entropy,
    best,
    judged,
    measure,
    sweep,
    table,
)
from mdm_jax.evaluation.samples import TextModel
from mdm_jax.evaluation.text_statistics import (
    distinct,
    repetition,
    same_bigrams,
    unigram_entropy,
)
from mdm_jax.models import DiTConfig
from mdm_jax.models.flops import flops_per_token

BYTES = ByteTokenizer()
KEY = jax.random.key(0, impl="unsafe_rbg")
SIZES = DiTConfig(num_ids=257, width=8, layers=1, heads=2)


def three_letters(tokens, t):
    """a, b and c with probabilities 1/2, 1/4, 1/4, independently."""
    logits = jnp.full((256,), -jnp.inf).at[97:100].set(jnp.log(jnp.array([0.5, 0.25, 0.25])))
    return jnp.broadcast_to(logits, (*tokens.shape, 256))


MODEL = TextModel(
    Partial(three_letters), mdm.Masked(256, mdm.LogLinear()), BYTES, length=8, config=SIZES
)
JUDGE = TextModel(Partial(three_letters), None, BYTES)


class TestStatistics:
    def test_against_counts_by_hand(self):
        rows = np.array([[1, 2, 1, 2, 1, 2], [1, 2, 3, 4, 5, 6]])
        assert unigram_entropy(rows) == pytest.approx((np.log(2) + np.log(6)) / 2)
        assert repetition(rows, 2) == pytest.approx((3 / 5 + 0) / 2)
        assert repetition(rows, 4) == pytest.approx((1 / 3 + 0) / 2)
        assert distinct(rows, 1) == pytest.approx(6 / 12)
        assert distinct(rows, 2) == pytest.approx(6 / 10)

    @pytest.mark.parametrize("call", [unigram_entropy, lambda x: repetition(x, 3)])
    def test_too_short(self, call):
        with pytest.raises(ValueError, match=r"expected|no such n-gram"):
            call(np.zeros((2, 0 if call is unigram_entropy else 2), int))

    def test_the_test_has_its_level_and_some_power(self):
        """Under equal laws p is uniform: 40 tests at level 0.1 reject at most 10 (chance 0.2 %)."""
        rng = np.random.default_rng(1)

        def chains(stay, rows=24):
            steps = (rng.random((rows, 20)) > stay).cumsum(axis=1)
            return steps % 2

        level = [same_bigrams(chains(0.8), chains(0.8), permutations=99).p_value for _ in range(40)]
        assert sum(p <= 0.1 for p in level) <= 10
        # Equal unigrams, other bigrams.
        assert same_bigrams(chains(0.8), chains(0.6), permutations=99).p_value <= 0.02


@pytest.fixture(scope="module")
def points():
    settings = sweep(["first_hitting"], [2, 4], [0.5, 1.0])
    candidates = [("toy", MODEL, setting) for setting in settings]
    candidates += [("ar", JUDGE, Setting(sampler="left_to_right"))]
    return measure(KEY, candidates, length=8, batch=16, rounds=1, judge=JUDGE, latency=False)


def test_the_sweep_measures_the_toy_law(points):
    assert [(p.setting.steps, p.setting.temperature) for p in points[:4]] == [
        (2, 0.5), (2, 1.0), (4, 0.5), (4, 1.0)
    ]  # fmt: skip
    for point in points:
        assert point.samples == 32 and point.length == 8 and point.seconds > 0
        assert point.calls == (point.setting.steps or 8)
        # The law is a product, so that steps and order do not matter to it.
        sharp = point.setting.temperature == 0.5
        shares = np.array([2 / 3, 1 / 6, 1 / 6] if sharp else [0.5, 0.25, 0.25])
        nats = -np.log([0.5, 0.25, 0.25])
        spread = np.sqrt(shares @ nats**2 - (shares @ nats) ** 2) / np.sqrt(32 * 7)
        assert abs(point.judge_nats - shares @ nats) < 4 * spread
        expected = point.calls * 8 * flops_per_token(SIZES, 8)
        assert point.flops == (expected if point.name == "toy" else None)
    assert points[0].entropy < points[1].entropy and points[0].latency is None


def test_curves_at_equal_entropy_and_the_front(points):
    one = points[0]
    curve = [
        dataclasses.replace(one, entropy=1.0, judge_nats=2.0),
        dataclasses.replace(one, entropy=2.0, judge_nats=4.0),
    ]
    other = dataclasses.replace(one, name="other", calls=1.0, entropy=1.0, judge_nats=3.0)
    matched_nats = at_entropy([*curve, other], 1.25)
    assert list(matched_nats.values()) == [2.5, None]
    assert best([*curve, other], lambda point: point.calls) == [other, curve[0]]
    text = table([*curve, other], matched_nats)
    assert text.count("2.500") == 2 and text.splitlines()[-1].endswith("| - |")


def test_reports_are_written(points, tmp_path, monkeypatch):
    said = reports.write_frontier(tmp_path / "new", points, 0.9)
    assert "frontier.svg" in said and "0.900 nats" in said
    lines = (tmp_path / "new" / "frontier.jsonl").read_text().splitlines()
    first = json.loads(lines[0])
    assert len(lines) == 5 and first["sampler"] == "first_hitting" and first["temperature"] == 0.5
    assert first["judge_nats"] == points[0].judge_nats and len(first["repetition"]) == 3
    assert (tmp_path / "new" / "frontier.md").read_text().count("\n| toy |") == 4
    assert (tmp_path / "new" / "frontier.svg").stat().st_size > 5_000
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert "mdm-jax[plot]" in reports.write_frontier(tmp_path / "bare", points, None)


def test_the_exact_sampler_beside_the_loops(tmp_path):
    costs = matched.matched_distribution(
        KEY, MODEL, length=8, steps=64, batch=8, rounds=1, samples=24
    )
    exact, loop, cached = costs
    assert (exact.calls, loop.calls) == (8, 64) and 1 <= cached.calls < 64
    assert loop.speedup == 1 and exact.test is None and loop.test.p_value > 0.001
    assert cached.test.p_value > 0.001
    said = reports.write_matched(tmp_path, costs)
    assert "| first_hitting | " in said and (tmp_path / "matched.jsonl").exists()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: measure(KEY, [], length=8), "0 candidates"),
        (lambda: judged(MODEL, np.zeros((2, 4), np.int32)), "autoregressive one"),
        (lambda: matched.matched_distribution(KEY, JUDGE, length=8), "expected a masked model"),
        (lambda: same_bigrams(np.zeros((1, 4)), np.zeros((2, 4))), "two rows or more"),
        (lambda: reports.plot_frontier("x.svg", []), "no point has"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_judge_of_other_tokens_is_refused():
    other = JUDGE._replace(tokenizer="another")
    with pytest.raises(ValueError, match="the judge scores tokens"):
        measure(KEY, [("toy", MODEL, Setting(sampler="ancestral"))], length=8, judge=other)


def test_points_are_flat_records(points):
    assert isinstance(points[0], Point) and points[0].record()["options"] == {}
