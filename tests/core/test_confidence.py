"""Samplers that choose where the model is certain, then draw: laws, certificates, quotas."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tabular
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import mdm_jax as mdm
from mdm_jax.reading import over_positions
from mdm_jax.samplers import ByTime, Even, PerStep, certainty
from mdm_jax.samplers.entropy_bound import within_bound

V, L = 3, 4
PROCESS = mdm.Masked(V, mdm.Linear())
JOINT = tabular.random_joint(seed=3, vocab_size=V, length=L, concentration=1.0)
CONDITIONALS = tabular.masked_conditionals(JOINT, V, L)
STATES = tabular.sequences(V + 1, L)
LOGITS = jnp.log(jnp.asarray(CONDITIONALS, jnp.float32))


def ideal(tokens, t):
    """The model whose conditionals are those of the joint law."""
    return LOGITS[sum(tokens[..., i] * (V + 1) ** (L - 1 - i) for i in range(L))]


def counts_of(sampler, n=20_000, steps=L):
    @jax.jit
    def run(key):
        start = jnp.full((n, L), PROCESS.mask_id)
        return mdm.generate(key, mdm.denoiser(ideal), sampler, start, mdm.time_grid(steps)).tokens

    return np.bincount(tabular.index(np.asarray(run(jax.random.key(0))), V), minlength=V**L)


ONE_PER_STEP = {
    "probability": mdm.confidence(PROCESS),
    "entropy": mdm.confidence(PROCESS, by="entropy", quota=Even(2), block=2),
    "entropy bound 0": mdm.entropy_bound(PROCESS, 0.0),
    "threshold 1": mdm.threshold(PROCESS, 1.0, block=3),
    "factor to 0": mdm.factor(PROCESS, 1e-6),
}


@pytest.mark.parametrize("sampler", ONE_PER_STEP.values(), ids=ONE_PER_STEP)
def test_one_position_per_step_samples_the_joint_law(sampler):
    """Exact for consistent conditionals: fails by chance once in 3 million seeds."""
    assert abs(tabular.chi_square_z(counts_of(sampler), JOINT)) < 5


def choose_then_draw(positions):
    """A step of `tabular.filled_law` from ``(masked positions, marginals) -> positions``."""

    def step(state, marginals):
        places = positions(list(np.flatnonzero(state == V)), marginals)
        for drawn in itertools.product(range(V), repeat=len(places)):
            after = state.copy()
            after[places] = drawn
            yield after, np.prod([marginals[i, v] for i, v in zip(places, drawn, strict=True)])

    return step


def two_of_largest_margin(masks, marginals):
    top = np.sort(marginals, axis=-1)
    return sorted(masks, key=lambda i: top[i, -2] - top[i, -1])[:2]


def within_one_nat(masks, marginals):
    h = {i: -(marginals[i] * np.log(marginals[i])).sum() for i in masks}
    order = sorted(masks, key=h.get)
    return order[
        : max(n for n in range(1, len(order) + 1) if sum(h[i] for i in order[: n - 1]) <= 1)
    ]


SEVERAL_PER_STEP = {
    "two by margin": (mdm.confidence(PROCESS, by="margin", per_step=2), two_of_largest_margin),
    "entropy bound 1": (mdm.entropy_bound(PROCESS, 1.0), within_one_nat),
}


@pytest.mark.parametrize("case", SEVERAL_PER_STEP.values(), ids=SEVERAL_PER_STEP)
def test_several_positions_per_step_sample_the_law_of_their_rule(case):
    """Not the joint law, which is far enough to be told apart, but that of the rule, enumerated."""
    sampler, positions = case
    law = tabular.filled_law(CONDITIONALS, V, L, choose_then_draw(positions))
    assert tabular.total_variation(law, JOINT) > 0.05
    assert abs(tabular.chi_square_z(counts_of(sampler), law / law.sum())) < 5


def committed(sampler, s=0.5):
    """What a step commits in every state: the masks it fills, bool[(V + 1)^L, L]."""
    after, _ = jax.jit(sampler.step)(
        jax.random.key(1), LOGITS, jnp.asarray(STATES), sampler.init(jnp.asarray(STATES)), 1.0, s
    )
    after = np.asarray(after)
    assert (after[STATES != V] == STATES[STATES != V]).all()
    return (STATES == V) & (after != V)


def total_correlation(state, positions):
    """KL of the joint conditional of some positions from the product of its marginals, nats."""
    clean = tabular.sequences(V, L)
    law = JOINT * ((clean == state) | (state == V)).all(-1)
    law = law / law.sum()
    shape = (V,) * L
    others = tuple(i for i in range(L) if i not in positions)
    joint = law.reshape(shape).sum(others)
    product = functools.reduce(
        np.multiply.outer,
        (law.reshape(shape).sum(tuple(j for j in range(L) if j != i)) for i in positions),
    )
    return (joint * np.log(joint / product)).sum()


@pytest.mark.parametrize(("by", "gamma"), [("entropy", 0.0), ("entropy", 2.2), ("margin", 0.9)])
def test_entropy_bound_certifies_every_step(by, gamma):
    """In every state: the bound holds, is a bound, and no larger prefix would fit."""
    sets = committed(mdm.entropy_bound(PROCESS, gamma, by=by))
    p = np.maximum(CONDITIONALS, 1e-300)
    entropies = -(p * np.log(p)).sum(-1)
    top_two = np.sort(p, axis=-1)[..., -2:]
    scores = -entropies if by == "entropy" else top_two[..., 1] - top_two[..., 0]
    sizes = set()
    for state, chosen, h, score in zip(STATES, sets, entropies, scores, strict=True):
        order = [i for i in np.argsort(-score) if state[i] == V]
        size = int(chosen.sum())
        sizes.add(size)
        assert set(order[:size]) == set(np.flatnonzero(chosen))
        assert size >= min(1, len(order))
        excess = [h[order[:n]].sum() - h[order[:n]].max() for n in range(1, len(order) + 1)]
        if size > 1:
            assert excess[size - 1] <= gamma * (1 + 1e-6)
            assert total_correlation(state, sorted(order[:size])) <= gamma
        if size < len(order):
            assert excess[size] > gamma * (1 - 1e-6)
    assert sizes == {0: {0, 1}, 0.9: {0, 1, 2}, 2.2: {0, 1, 2, 3}}[gamma]


def test_no_two_uncertain_positions_fit_into_a_bound_of_zero():
    """Also where one entropy vanishes beside the other in float32; certain ones are all taken."""
    rng = np.random.default_rng(0)
    entropies = rng.choice([0.0, 1e-12, 1e-7, 0.3, 5.0], size=(500, 9)).astype(np.float32)
    candidates = rng.random((500, 9)) < 0.7
    for scores in (-entropies, rng.random((500, 9)).astype(np.float32)):
        chosen = np.asarray(
            within_bound(jnp.asarray(scores), jnp.asarray(entropies), jnp.asarray(candidates), 0.0)
        )
        assert not (chosen & ~candidates).any()
        assert ((chosen & (entropies > 0)).sum(-1) <= 1).all()
        np.testing.assert_array_equal(chosen.any(-1), candidates.any(-1))
    certain = np.asarray(candidates & (entropies == 0))
    by_entropy = within_bound(
        jnp.asarray(-entropies), jnp.asarray(entropies), jnp.asarray(candidates), 0.0
    )
    assert (np.asarray(by_entropy) >= certain).all()


def test_threshold_and_factor_take_what_their_rules_say():
    top = CONDITIONALS.max(-1)
    masks = STATES == V
    best = np.where(masks, top, -1.0).argmax(-1)[:, None] == np.arange(L)
    sets = committed(mdm.threshold(PROCESS, 0.55))
    np.testing.assert_array_equal(sets, masks & ((top >= 0.55) | best))
    sets = committed(mdm.factor(PROCESS, 1.3))
    for state, chosen, c in zip(STATES, sets, top, strict=True):
        order = [i for i in np.argsort(-c) if state[i] == V]
        fits = [n for n, i in enumerate(order, 1) if (n + 1) * (1 - c[i]) < 1.3]
        size = max([*fits, min(1, len(order))])
        assert set(np.flatnonzero(chosen)) == set(order[:size])
    assert {*committed(mdm.threshold(PROCESS, 0.0)).sum(-1)} == {0, 1, 2, 3, 4}


def test_quotas_split_any_number_of_masks_exactly():
    """Even and ByTime("ceil"): floor and remainder first, as integers; all rules: exact totals."""
    number = np.arange(1000)
    for steps in (1, 3, 7, 10, 30):
        grid = mdm.time_grid(steps)
        left = {q: number.copy() for q in (Even(steps), *map(ByTime, ("floor", "round", "ceil")))}
        for k in range(steps):
            fair = number // steps + (k < number % steps)
            for quota, masks in left.items():
                steps_left = jnp.full(number.shape, steps - k)
                count = np.asarray(
                    quota.count(jnp.asarray(masks, jnp.int32), steps_left, grid[k], grid[k + 1])
                )
                if quota in (Even(steps), ByTime("ceil")):
                    np.testing.assert_array_equal(count, fair)
                if quota == ByTime("floor"):  # in integers: s / t is (S - k - 1) / (S - k)
                    np.testing.assert_array_equal(count, masks // (steps - k))
                left[quota] = masks - count
        assert all((masks == 0).all() for masks in left.values())


def toy(tokens, t):
    """Logits of 9 ids that depend on the whole row and favor the mask id."""
    context = jnp.sum(jnp.sin(tokens.astype(jnp.float32)), axis=-1)[..., None, None]
    places = jnp.arange(tokens.shape[-1], dtype=jnp.float32)[:, None] + 1
    wave = jnp.sin(places * jnp.arange(12, dtype=jnp.float32)[None] * 1.7)
    wave = wave.reshape((1,) * (tokens.ndim - 1) + wave.shape)
    return 4.0 * jnp.sin(context + 2.0 * wave) + 3.0 * (jnp.arange(12) == 9).reshape(
        (1,) * tokens.ndim + (-1,)
    ).astype(jnp.float32)


NINE = mdm.Masked(9, mdm.Linear())
WIDE = 12
ROWS = np.arange(WIDE) < np.array([[12], [7], [5], [1], [0]])  # masks per row, after a prompt
CANVAS = jnp.asarray(np.where(ROWS[:, ::-1], 9, 4), jnp.int32)


def test_every_row_follows_its_own_quota_and_blocks():
    """Masks filled per step by production steps, with a row's blocks counted from its prompt."""
    keep = jnp.zeros(CANVAS.shape, bool).at[0, 11].set(True)  # one mask that stays
    masks = ROWS.sum(-1) - np.array([1, 0, 0, 0, 0])

    def walk(sampler, steps):
        return np.asarray(
            mdm.trajectory(
                jax.random.key(0),
                mdm.denoiser(toy),
                sampler,
                CANVAS,
                mdm.time_grid(steps),
                keep=keep,
                select=lambda before, after, logits: before != after,
            )
        )

    filled = walk(mdm.confidence(NINE, quota=Even(3)), 3).sum(-1)
    np.testing.assert_array_equal(filled, [masks // 3 + (k < masks % 3) for k in range(3)])
    blocked = walk(mdm.confidence(NINE, by="margin", quota=Even(2), block=4), 6)
    places = np.arange(WIDE)
    for row, count in enumerate(ROWS.sum(-1)):
        block = (places - (WIDE - count)) // 4
        visits = [set(block[step[row]]) for step in blocked if step[row].any()]
        assert all(len(v) == 1 for v in visits) and visits == sorted(visits, key=min)
    np.testing.assert_array_equal(blocked[:, 1].sum(-1), [2, 2, 2, 1, 0, 0])
    np.testing.assert_array_equal(blocked[:, 0].sum(-1), [2, 2, 2, 2, 2, 1])


MEMBERS = {
    "even": mdm.confidence(NINE, by="entropy", quota=Even(5), block=6),
    "llada": mdm.samplers.legacy.llada_low_confidence(NINE, 3, block=4, temperature=1.0),
}


@pytest.mark.parametrize("sampler", MEMBERS.values(), ids=MEMBERS)
def test_rows_finish_clean_under_vmap(sampler):
    """Rows of no batch axis, too few steps, a kept position."""
    keys = jax.random.split(jax.random.key(5), len(CANVAS))
    keep = jnp.arange(WIDE) == 8

    def one(key, row):
        return mdm.generate(
            key, mdm.denoiser(toy), sampler, row, mdm.time_grid(4), keep=keep
        ).tokens

    out = np.asarray(jax.jit(jax.vmap(one))(keys, CANVAS))
    np.testing.assert_array_equal(out[:, 8], CANVAS[:, 8])
    assert ((out >= 0) & (out < 9))[:, np.arange(WIDE) != 8].all()


def test_certainty_keeps_its_precision_next_to_one():
    """Against float64, relative, for margins of logits from 0 to 40."""
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(60, 50)) + 40 * (np.arange(50) == 7) * rng.random((60, 1))
    logits[:, 3] = -np.inf
    logits = logits.astype(np.float32).astype(np.float64)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    rest = np.sort(weights, axis=-1)[:, :-1].sum(-1)
    p = weights / weights.sum(-1, keepdims=True)
    gaps = np.where(weights > 0, logits.max(-1, keepdims=True) - logits, 0.0)
    entropy = np.log1p(rest) + (p * gaps).sum(-1)
    top = np.sort(p, axis=-1)
    read = jax.jit(
        lambda x: [certainty.certainty(x, by) for by in ("probability", "margin", "entropy")]
    )
    probability, margin, minus_entropy = map(np.asarray, read(jnp.asarray(logits, jnp.float32)))
    np.testing.assert_allclose(probability, -rest / (1 + rest), rtol=1e-5)
    np.testing.assert_allclose(margin, top[:, -1] - top[:, -2], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(-minus_entropy, entropy, rtol=1e-5)
    assert (np.diff(probability[np.argsort(-rest)]) > 0).all()  # no ties at 1


@pytest.mark.parametrize(
    "sampler",
    [mdm.entropy_bound(NINE, 0.3), mdm.threshold(NINE, 0.999, temperature=0.0)],
    ids=["drawn", "greedy"],
)
def test_nan_of_decided_positions_changes_nothing_and_other_nan_is_seen(sampler):
    tokens = jnp.array([9, 4, 9, 9])
    logits = jax.jit(toy)(tokens, 1.0)

    @jax.jit
    def after(logits, s):
        key = jax.random.key(0)
        return sampler.step(key, logits, tokens, sampler.init(tokens), jnp.float32(1.0), s)[0]

    inert = after(logits.at[1].set(jnp.nan), 0.5)
    np.testing.assert_array_equal(after(logits, 0.5), inert)
    broken = np.asarray(after(logits.at[2].set(jnp.nan), 0.0))
    assert broken[2] == -1 and (broken[[0, 1, 3]] >= 0).all()
    # Where nothing is left but NaN the walk goes on, one position per step.
    assert after(jnp.full_like(logits, jnp.nan), 0.5).tolist() == [-1, 4, 9, 9]


def test_long_rows_are_read_in_parts_on_any_mesh():
    """70 positions, more than are read at a time: the same as at once, sharded, and when padded."""
    rng = np.random.default_rng(2)
    logits = jnp.asarray(rng.normal(size=(8, 70, 12)) * 3, jnp.float32)
    tokens = jnp.asarray(np.where(rng.random((8, 70)) < 0.7, 9, 4), jnp.int32)
    at_once = jax.jit(lambda x: certainty.entropy(NINE.data_logits(x)))(logits)
    sampler = mdm.entropy_bound(NINE, 2.0)

    def step(logits, tokens):
        entropies = over_positions(lambda x: certainty.entropy(NINE.data_logits(x)), logits)
        s = jnp.float32(0.5)
        state = sampler.init(tokens)
        return entropies, sampler.step(jax.random.key(0), logits, tokens, state, s, s)[0]

    entropies, expected = jax.jit(step)(logits, tokens)
    np.testing.assert_allclose(entropies, at_once, rtol=1e-6)
    filled = np.asarray(expected != tokens)
    assert filled.any(-1).all() and (filled.sum(-1) < np.asarray(tokens == 9).sum(-1)).all()
    padded = jax.jit(step)(
        jnp.pad(logits, [(0, 0), (0, 30), (0, 0)]), jnp.pad(tokens, [(0, 0), (0, 30)])
    )[1]
    np.testing.assert_array_equal(padded[:, :70], expected)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        sharded = jax.device_put((logits, tokens), NamedSharding(mesh, P("data")))
        np.testing.assert_array_equal(jax.jit(step)(*sharded)[1], expected)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    shards = jax.shard_map(step, mesh=mesh, in_specs=P("data"), out_specs=P("data"))
    _, by_shard = jax.jit(shards)(logits, tokens)
    np.testing.assert_array_equal(by_shard != tokens, filled)  # each draws with the same key


BAD = {
    "by": (lambda: mdm.confidence(PROCESS, by="luck"), ValueError, "by='luck'.*'margin'"),
    "by, bound": (lambda: mdm.entropy_bound(PROCESS, by="luck"), ValueError, "by='luck'"),
    "gamma": (lambda: mdm.entropy_bound(PROCESS, -0.1), ValueError, "gamma=-0.1"),
    "gamma nan": (lambda: mdm.entropy_bound(PROCESS, float("nan")), ValueError, "gamma=nan"),
    "tau": (lambda: mdm.threshold(PROCESS, 1.1), ValueError, r"tau=1.1.*\[0, 1\]"),
    "tau below": (lambda: mdm.threshold(PROCESS, -0.1), ValueError, "tau=-0.1"),
    "f": (lambda: mdm.factor(PROCESS, 0.0), ValueError, "f=0.0.*positive"),
    "temperature": (lambda: mdm.confidence(PROCESS, temperature=-1), ValueError, "temperature=-1"),
    "per_step": (lambda: mdm.confidence(PROCESS, per_step=0), ValueError, "per_step=0"),
    "both": (lambda: mdm.confidence(PROCESS, per_step=2, quota=Even(2)), ValueError, "one of them"),
    "quota": (lambda: mdm.confidence(PROCESS, quota=3), TypeError, "Even or ByTime"),
    "steps": (lambda: Even(0), ValueError, "steps=0"),
    "steps float": (lambda: Even(2.5), TypeError, "steps=2.5: expected an integer"),
    "positions": (lambda: PerStep(0), ValueError, "per_step=0"),
    "rounding": (lambda: ByTime("up"), ValueError, "rounding='up'.*'ceil'"),
    "block": (lambda: mdm.threshold(PROCESS, block=0), ValueError, "block=0"),
    "block float": (lambda: mdm.threshold(PROCESS, block=2.0), TypeError, "block=2.0"),
    "process": (
        lambda: mdm.entropy_bound(mdm.Uniform(4, mdm.Linear())),
        TypeError,
        "use ancestral",
    ),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD.keys())
def test_bad_input_is_named(case):
    call, error, message = case
    with pytest.raises(error, match=message):
        call()
