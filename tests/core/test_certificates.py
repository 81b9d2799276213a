"""Every sampler has the law that it states, measured with the jitted production code."""

import functools
import itertools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tabular

import mdm_jax as mdm
from mdm_jax.evaluation import sampler_certificates
from mdm_jax.evaluation.cache_certificates import CACHES, measure_cache
from mdm_jax.evaluation.certificates import Certificate, certify, classify
from mdm_jax.evaluation.sampler_certificates import SAMPLERS, drawing, measure
from mdm_jax.evaluation.tabular import (
    any_order_law,
    ideal_denoiser,
    random_conditionals,
    random_joint,
    sequences,
    table_denoiser,
)
from mdm_jax.evaluation.wrapper_certificates import WRAPPERS, measure_wrapper, wrapper_cases
from mdm_jax.samplers import legacy
from mdm_jax.speculation import speculate

V, L, N = 3, 3, 2**13
MASKED = mdm.Masked(V, mdm.Linear())
JOINT = random_joint(1, V, L)
TABLE = random_conditionals(5, V, L)
MODEL = table_denoiser(TABLE)
CASES = [(name, kind) for name, entry in SAMPLERS.items() for kind in entry.processes]
KEY = jax.random.key(0)
# Of wrappers, those that `make test` measures.
FAST = [("tempered(0.5)", mdm.Uniform, "ancestral"), ("guided(1)", mdm.Hybrid, "ancestral")]


# The laws themselves, against plain float64 enumeration from the definitions.


def test_tabular_models_are_the_enumerated_ones():
    flat = JOINT.ravel()
    np.testing.assert_array_equal(sequences(V, L), tabular.sequences(V, L))
    expected = tabular.any_order_joint(TABLE, V, L)
    np.testing.assert_allclose(any_order_law(TABLE).ravel(), expected, rtol=1e-12)
    table = tabular.masked_conditionals(flat, V, L)
    np.testing.assert_allclose(any_order_law(table), JOINT, rtol=1e-9)

    def table_of(process, t):
        states = jnp.asarray(sequences(process.num_ids, L))
        logits, _ = ideal_denoiser(JOINT, process).apply(states, jnp.float32(t), ())
        return jax.nn.softmax(logits)

    # What is said where there is no mask is never asked for; the plain table has it certain.
    masks = sequences(V + 1, L) == V
    for t in (0.2, 0.9):
        np.testing.assert_allclose(table_of(MASKED, t)[masks], table[masks], atol=1e-6)
        got = table_of(mdm.Uniform(V, mdm.Linear()), t)
        np.testing.assert_allclose(got, tabular.leave_one_out(flat, V, L, 1 - t), atol=1e-5)
    # Hybrid noise without its uniform part is masked noise.
    hybrid = mdm.Hybrid(V, mdm.Linear(), uniform_share=0.0, mixing="constant")
    np.testing.assert_allclose(table_of(hybrid, 0.4)[masks], table[masks], atol=1e-6)


# The statistics.


def drawn_from(law):
    cumulative = np.cumsum(law.ravel())
    rows = sequences(law.shape[0], law.ndim)

    def draw(key, samples):
        u = np.random.default_rng(int(jax.random.bits(key) >> 1)).random(samples)
        return rows[np.searchsorted(cumulative, u * cumulative[-1])]

    return draw


def test_bounds_hold_and_an_exact_sampler_passes():
    """With error 0.2, bounds fail in at most 1 run of 5; these, being bounds, hardly ever do."""
    tilted = JOINT * np.linspace(0.5, 1.5, V).reshape(1, 1, V)
    tilted = tilted / tilted.sum()
    true = tabular.total_variation(tilted, JOINT)
    kl = (tilted * np.log(tilted / JOINT)).sum()
    failures, scores = 0, []
    for i in range(100):
        c = certify(jax.random.key(i), drawn_from(tilted), JOINT, samples=2000, error=0.2)
        failures += not c.tv_low <= true <= c.tv_high
        failures += not c.kl_low <= kl <= c.kl_high
        assert not c.consistent and c.tv_low <= c.tv <= c.tv_high
        null = certify(jax.random.key(i), drawn_from(JOINT), JOINT, samples=2000)
        assert null.consistent and null.tv_low == 0 and null.kl_low == 0
        scores.append(null.z)
    assert failures <= 30  # 200 chances of at most 0.2, the mean less 2 standard deviations
    assert abs(np.mean(scores)) < 0.5 and 0.7 < np.std(scores) < 1.3


def test_bounds_are_worth_something():
    """A million samples pin the distance of two laws to 0.01."""
    other = random_joint(2, V, L)
    c = certify(KEY, drawn_from(other), JOINT, samples=2**20)
    true = tabular.total_variation(other, JOINT)
    assert true - 0.01 < c.tv_low <= true <= c.tv_high < true + 0.01
    kl = (other * np.log(other / JOINT)).sum()
    assert c.kl_low < kl < c.kl_high < c.kl_low * 1.1


def test_what_is_outside_the_law_counts_against_it():
    def masks_left(key, samples):
        return drawn_from(JOINT)(key, samples) * 0 + V

    c = certify(KEY, masks_left, JOINT, samples=1000)
    assert c.tv_high == 1 and c.tv_low > 0.8 and np.isinf(c.kl) and not c.consistent


def test_ladders_are_classified():
    def at(tv, low, high, z):
        return Certificate(tv, low, high, 0.0, 0.0, 0.0, 1000, 0.01, z)

    null, far, near = at(0, 0, 0.03, 0.1), at(0.3, 0.25, 0.33, 90.0), at(0.1, 0.07, 0.13, 20.0)
    unseen = at(0.02, 0, 0.05, 6.0)
    assert classify([null, null]) == "exact"
    assert classify([far, near, null]) == classify([far, unseen, null]) == "exact in a limit"
    assert classify([far, far]) == classify([far, near]) == classify([near]) == "heuristic"
    # Not seen to be exact, nor to be biased; and a knob that goes the wrong way.
    assert classify([far, unseen]) == classify([null, far]) == "undecided"


BAD = {
    "axes": (lambda: certify(KEY, drawn_from(JOINT), np.ones((2, 3)) / 6), "an axis per position"),
    "no law": (lambda: certify(KEY, drawn_from(JOINT), 2 * JOINT), "expected probabilities"),
    "odd": (lambda: certify(KEY, drawn_from(JOINT), JOINT, samples=3), "samples=3"),
    "error": (lambda: certify(KEY, drawn_from(JOINT), JOINT, error=0.0), "error=0.0"),
    "shape": (
        lambda: certify(KEY, lambda key, n: np.zeros((n, 9), int), JOINT, samples=8),
        "draw returned shape",
    ),
    "ladder": (lambda: classify([]), "no certificate"),
    "table": (lambda: table_denoiser(np.ones((10, 3, 3))), "expected"),
    "joint": (lambda: ideal_denoiser(JOINT, mdm.Masked(4, mdm.Linear())), "joint has shape"),
    "clocks": (
        lambda: ideal_denoiser(JOINT, mdm.Uniform(V, mdm.Linear())).apply(
            jnp.zeros((2, L), jnp.int32), jnp.ones((2,)), ()
        ),
        "one time for all rows",
    ),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
def test_bad_input_is_named(case):
    call, message = case
    with pytest.raises(ValueError, match=message):
        call()


# The samplers.


@pytest.mark.parametrize(("name", "kind"), CASES, ids=lambda x: getattr(x, "__name__", x))
def test_every_sampler_has_its_stated_class(name, kind):
    measured = measure(name, kind, samples=N, ends=True)
    assert measured.found == measured.stated, measured


def test_a_sampler_that_states_too_much_is_found_out():
    """An entry that calls LLaDA's rule or independent draws exact does not pass."""
    options = {"temperature": 1.0}
    llada = SAMPLERS["llada_low_confidence"]._replace(exactness="exact", options=options)
    assert measure("llada_low_confidence", mdm.Masked, samples=N, entry=llada).found == "heuristic"


@pytest.mark.parametrize("rule", ["llada_low_confidence", "fast_dllm_threshold"])
def test_rules_that_draw_first_are_far_from_a_flat_joint_law(rule):
    """Four tokens, Dirichlet(1): published enumeration has 0.526 for both at one per step."""
    joint = random_joint(3, V, 4, concentration=1.0)
    sampler = getattr(legacy, rule)(MASKED, temperature=1.0)
    draw = drawing(sampler, MASKED, ideal_denoiser(joint, MASKED), 4, 4)
    assert certify(KEY, draw, joint, samples=N).tv_low > 0.3


def certified(draw, law, samples=N):
    """Whether it is the law, and not another that lies near: the resolution is part of it."""
    c = certify(KEY, draw, law, samples=samples)
    return c.consistent and c.tv_high < 0.06


def edited(edit):
    """The any-order law of a table whose rows are edited, float64."""
    table = edit(TABLE)
    return any_order_law(table / table.sum(-1, keepdims=True))


def top(p):
    """Rows without what is not in the smallest set of mass p."""
    order = np.sort(TABLE, axis=-1)[..., ::-1]
    size = (order.cumsum(-1) < p * (1 - 1e-6)).sum(-1, keepdims=True)
    smallest = np.take_along_axis(order, size, -1)
    return np.where(smallest <= TABLE, TABLE, 0)


OTHER = random_conditionals(6, V, L)
LAW = any_order_law(TABLE)
WRAPPED = {
    "tempered 1": (mdm.tempered(MODEL, 1.0), LAW),
    "tempered": (mdm.tempered(MODEL, 0.5), edited(lambda p: p**2)),
    "nucleus 1": (mdm.nucleus(MODEL, 1.0), LAW),
    "nucleus": (mdm.nucleus(MODEL, 0.7), edited(lambda p: top(0.7))),
    "top_k V": (mdm.top_k(MODEL, V), LAW),
    "top_k": (
        mdm.top_k(MODEL, 2),
        edited(lambda p: np.where(p > p.min(-1, keepdims=True), p, 0)),
    ),
    "forbid": (mdm.forbid(MODEL, [1]), edited(lambda p: p * np.array([1, 0, 1]))),
    "predicting": (mdm.predicting(MODEL, MASKED), LAW),
    "guided 0": (mdm.guided(MODEL, table_denoiser(OTHER), 0.0), LAW),
    "guided": (mdm.guided(MODEL, table_denoiser(OTHER), 1.0), edited(lambda p: p**2 / OTHER)),
    "two": (
        mdm.tempered(mdm.forbid(MODEL, [2]), 2.0),
        edited(lambda p: np.sqrt(p) * np.array([1, 1, 0])),
    ),
}


@pytest.mark.parametrize("case", WRAPPED.values(), ids=WRAPPED)
def test_wrappers_have_the_law_of_the_edited_conditionals(case):
    """At the settings that edit nothing, that is the law without them."""
    model, law = case
    assert certified(drawing(mdm.first_hitting(MASKED), MASKED, model, L, L), law)


def test_edits_that_change_the_law_are_told_apart_from_those_that_do_not():
    """The case above could fail: the edited laws are farther from LAW than it resolves."""
    for name, (_, law) in WRAPPED.items():
        distance = tabular.total_variation(law, LAW)
        assert (distance < 1e-9) == (law is LAW) and (law is LAW or distance > 0.06), name


def test_rows_of_their_own_keep_the_law():
    """`rowwise`, and with it the clocks of `hitting_times` that a row may have."""
    process = MASKED

    @functools.partial(jax.jit, static_argnums=1)
    def draw(key, samples):
        start = jnp.full((samples, L), process.mask_id)
        sampler = mdm.rowwise(mdm.first_hitting(process), jnp.arange(samples))
        times = mdm.hitting_times(jax.random.fold_in(key, 1), process, start, L)
        return mdm.generate(key, MODEL, sampler, start, times).tokens

    assert certified(draw, LAW)


def stepped_law(table, steps):
    """The law of ancestral sampling in T steps from the definition: a mask lifts with 1 / (T t)."""
    law = np.zeros((V + 1,) * L)
    law[(V,) * L] = 1.0
    for left in range(steps, 0, -1):
        after = np.zeros_like(law)
        for state in zip(*np.nonzero(law), strict=True):
            row = table[tabular.index(np.array(state), V + 1)]
            options = [
                [(V, 1 - 1 / left), *enumerate(row[i] / left)] if z == V else [(z, 1.0)]
                for i, z in enumerate(state)
            ]
            for choice in itertools.product(*options):
                after[tuple(z for z, _ in choice)] += law[state] * np.prod([p for _, p in choice])
        law = after
    return law[(slice(V),) * L]


def test_skipping_calls_keeps_the_law():
    """Batches of two rows, in which most steps call no model: the enumerated law of 8 steps."""
    process, steps = MASKED, 8

    @functools.partial(jax.jit, static_argnums=1)
    def draw(key, samples):
        def pair(key):
            start = jnp.full((2, L), process.mask_id)
            out = mdm.generate(key, MODEL, mdm.ancestral(process), start, mdm.time_grid(steps))
            return out.tokens, out.calls

        return jax.lax.map(pair, jax.random.split(key, samples // 2))

    law = stepped_law(TABLE, steps)
    assert certified(lambda key, n: draw(key, n)[0].reshape(-1, L), law)
    assert int(draw(KEY, 200)[1].max()) < steps


def test_learned_schedules_tend_to_their_jump_process():
    """A mask at i lifts to v with rate p_v pi_v / t, and the order with it: one after another."""
    powers = np.array([0.5, 1.0, 4.0])
    rates = TABLE * powers  # float64[states, L, V]
    reached = np.zeros((V + 1) ** L)
    reached[-1] = 1.0
    states = tabular.sequences(V + 1, L)
    for masks in range(L, 0, -1):
        for row in np.flatnonzero((states == V).sum(-1) == masks):
            lift = np.where((states[row] == V)[:, None], rates[row], 0.0)
            for i, v in zip(*np.nonzero(lift), strict=True):
                after = states[row].copy()
                after[i] = v
                reached[tabular.index(after, V + 1)] += reached[row] * lift[i, v] / lift.sum()
    law = reached.reshape((V + 1,) * L)[(slice(V),) * L]
    assert tabular.total_variation(law, LAW) > 0.06
    schedule = mdm.TokenPolynomial(jnp.asarray(powers, jnp.float32))
    sampler = mdm.learned_ancestral(MASKED, schedule)
    ladder = [
        certify(KEY, drawing(sampler, MASKED, MODEL, steps, L), law, samples=N) for steps in (2, 64)
    ]
    assert classify(ladder) == "exact in a limit"


def test_blocks_have_the_law_of_their_factors():
    """Conditionals of no joint law: the orders within blocks of two, and later blocks masked."""
    length, block = 4, 2
    table = random_conditionals(8, V, length)
    states = {tuple(z): row for z, row in zip(tabular.sequences(V + 1, length), table, strict=True)}

    def path(x, order):
        state, total = [V] * length, 1.0
        for i in order:
            total *= states[tuple(state)][i, x[i]]
            state[i] = x[i]
        return total

    orders = [first + second for first in ((0, 1), (1, 0)) for second in ((2, 3), (3, 2))]
    law = [np.mean([path(x, o) for o in orders]) for x in tabular.sequences(V, length)]

    @functools.partial(jax.jit, static_argnums=1)
    def draw(key, samples):
        start = jnp.full((samples, length), MASKED.mask_id)
        sampler, times = mdm.first_hitting(MASKED), mdm.time_grid(block)
        model = table_denoiser(table)
        return mdm.generate_blocks(key, model, sampler, start, times, block=block).tokens

    law = np.array(law).reshape((V,) * length)
    assert certify(KEY, draw, law, samples=N).consistent
    assert not certify(KEY, draw, any_order_law(table), samples=N).consistent


@pytest.mark.parametrize("order", ["random", "left_to_right"])
def test_speculation_is_exact(order):
    """Drafts from another model, and conditionals of no joint law."""

    @functools.partial(jax.jit, static_argnums=1)
    def draw(key, samples):
        start = jnp.full((samples, L), MASKED.mask_id)
        return speculate(key, MODEL, MASKED, start, draft=2, order=order).tokens

    law = LAW
    if order == "left_to_right":
        rows = TABLE.reshape((V + 1,) * L + (L, V))
        law = np.array(
            [
                rows[V, V, V, 0, a] * rows[a, V, V, 1, b] * rows[a, b, V, 2, c]
                for a, b, c in tabular.sequences(V, L)
            ]
        ).reshape((V,) * L)
        assert tabular.total_variation(law, LAW) > 0.06
    assert certified(draw, law)


def test_every_setting_is_named_in_the_table():
    """The Markdown has a row for every setting, with what is stated and what was found."""
    row = (sampler_certificates.Setting({"gamma": 0.5}, 3), certify(KEY, drawn_from(JOINT), JOINT))
    one = sampler_certificates.Measured("some", "Masked", "exact", "exact", (row,))
    last = sampler_certificates.markdown([one], 8).splitlines()[-1]
    assert last.startswith("| `some` | Masked | exact | gamma=0.5, steps=3 | 0.0")


PAGE = (pathlib.Path(__file__).parents[2] / "docs" / "samplers.md").read_text()


def test_the_written_table_states_what_the_code_states():
    """Written by launch/certify.py: all samplers and processes, and the class of each."""
    inside = PAGE.split("<!-- certificates: begin -->")[1].split("<!-- certificates: end -->")[0]
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| ([\w ]+) \|", inside, re.MULTILINE)
    stated = {(name, kind.__name__): SAMPLERS[name].exactness for name, kind in CASES}
    assert {(name, kind): exactness for name, kind, exactness in rows} == stated


def test_the_overview_lists_every_sampler():
    overview = PAGE.split("\n## ")[0]
    for name in SAMPLERS:
        assert re.search(rf"^\|.*`{name}\b.*\|", overview, re.MULTILINE), name


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=() if case in FAST else pytest.mark.slow)
        for case in wrapper_cases()
    ],
    ids=lambda case: f"{case[2]}-{case[0]}-{case[1].__name__}",
)
def test_every_wrapper_has_the_law_of_its_edit(case):
    measured = measure_wrapper(*case, samples=N)
    assert measured.found == measured.stated, measured


def test_another_edit_than_the_one_made_is_found_out(monkeypatch):
    """The comparison can fail: a temperature of 0.25 does not pass for one of 0.5."""
    _, edit = WRAPPERS["tempered(0.5)"]
    monkeypatch.setitem(WRAPPERS, "sharper", (lambda d, _: mdm.tempered(d, 0.25), edit))
    measured = measure_wrapper("sharper", mdm.Masked, "first_hitting", samples=N)
    assert measured.found == "heuristic"


@pytest.mark.slow
@pytest.mark.parametrize("name", CACHES)
def test_every_exact_cache_has_the_law_of_the_network(name):
    measured = measure_cache(name, samples=N)
    assert measured.found == measured.stated, measured
    assert measured.rows[0][1].tv_high < 0.06  # and not another law that lies near


def test_the_written_table_has_every_wrapper_and_cache():
    inside = PAGE.split("<!-- certificates: begin -->")[1].split("<!-- certificates: end -->")[0]
    for wrapper, kind, sampler in wrapper_cases():
        assert f"| `{sampler} of {wrapper}` | {kind.__name__} | exact |" in inside
    for name in CACHES:
        assert f"| `{name}` | Masked | exact |" in inside
