import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mdm_jax as mdm
from mdm_jax.evaluation.bound import bits_per_byte, evaluate_bound
from mdm_jax.train.meshes import make_mesh, to_global

VOCAB, LENGTH = 5, 6
PROCESS = mdm.Masked(VOCAB, mdm.LogLinear())
OBJECTIVE = mdm.masked_objective(PROCESS)


def apply(params, inputs, key):
    """The best a model that sees no context can do, if `params` are the log-frequencies."""
    assert key is None
    return jnp.broadcast_to(params, (*inputs["tokens"].shape, VOCAB))


def batches(rows=64, count=3):
    rng = np.random.default_rng(0)
    for _ in range(count):
        lengths = rng.integers(0, LENGTH + 1, rows)
        yield {
            "tokens": rng.choice(VOCAB, (rows, LENGTH), p=FREQUENCIES).astype(np.int32),
            "where": np.arange(LENGTH)[None, :] < lengths[:, None],
        }


FREQUENCIES = np.array([0.4, 0.3, 0.15, 0.1, 0.05])
PARAMS = jnp.log(jnp.asarray(FREQUENCIES, jnp.float32))


def test_bound_of_independent_tokens_is_their_cross_entropy():
    data = list(batches())
    tokens = np.concatenate([b["tokens"][b["where"]] for b in data])
    exact = -np.log(FREQUENCIES[tokens]).mean()
    report = evaluate_bound(apply, PARAMS, OBJECTIVE, data, seed=0, samples=64)
    # LogLinear leaves a share 1e-3 of the integral to the constants.
    constant = float(mdm.constant_terms(PROCESS))
    np.testing.assert_allclose(report.nats_per_token, exact, atol=0.05)
    assert report.tokens == tokens.size
    shifted = evaluate_bound(apply, PARAMS, OBJECTIVE, data, seed=0, samples=64, constant=constant)
    assert shifted.nats_per_token == pytest.approx(report.nats_per_token + constant)


def test_constant_terms_complete_the_bound():
    """A schedule that leaves a fifth at t = 1: it costs log V, the rest the model's loss."""
    process = mdm.Masked(VOCAB, mdm.LogLinear(eps=0.2))
    constant = float(mdm.constant_terms(process))
    data = list(batches())
    tokens = np.concatenate([b["tokens"][b["where"]] for b in data])
    cross_entropy = -np.log(FREQUENCIES[tokens]).mean()
    objective = mdm.masked_objective(process)
    report = evaluate_bound(apply, PARAMS, objective, data, seed=0, samples=64, constant=constant)
    exact = 0.8 * cross_entropy + 0.2 * math.log(VOCAB)
    assert report.nats_per_token == pytest.approx(exact, abs=0.04)  # 8 times less than the constant
    assert constant > 0.3


def test_standard_error_is_the_spread_of_the_estimate():
    """Over many data sets of other sequences and noise, the estimates scatter as reported."""
    reports = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        tokens = rng.choice(VOCAB, (32, LENGTH), p=FREQUENCIES).astype(np.int32)
        where = np.arange(LENGTH)[None, :] < rng.integers(1, LENGTH + 1, 32)[:, None]
        batch = {"tokens": tokens, "where": where}
        reports.append(evaluate_bound(apply, PARAMS, OBJECTIVE, [batch], seed=seed))
    scatter = np.std([r.nats_per_token for r in reports], ddof=1)
    reported = np.mean([r.standard_error for r in reports])
    assert 0.7 < reported / scatter < 1.4


def test_same_noise_every_time_and_on_any_mesh():
    data = list(batches())
    report = lambda **kwargs: evaluate_bound(apply, PARAMS, OBJECTIVE, data, **kwargs)
    first = report(seed=3)
    assert report(seed=3) == first
    assert report(seed=4).nats_per_token != first.nats_per_token
    mesh = make_mesh({"data": 8})
    spread = report(seed=3, place=lambda batch: to_global(batch, mesh))
    assert spread.nats_per_token == pytest.approx(first.nats_per_token, rel=1e-6)
    assert spread.standard_error == pytest.approx(first.standard_error, rel=1e-5)


def test_the_noise_is_not_that_of_a_training_step():
    """Training step i splits fold_in(key(seed), i); evaluation must not meet those keys."""
    seen = []

    def prepare(key, tokens, where, step):
        jax.debug.callback(lambda data: seen.append(tuple(data.tolist())), jax.random.key_data(key))
        return OBJECTIVE.prepare(key, tokens, where, step)

    watched = OBJECTIVE._replace(prepare=prepare)
    evaluate_bound(apply, PARAMS, watched, batches(count=2), seed=0, samples=2)
    jax.effects_barrier()
    steps = [jax.random.fold_in(jax.random.key(0), i) for i in range(3)]
    training = {tuple(jax.random.key_data(k).tolist()) for s in steps for k in jax.random.split(s)}
    assert len(set(seen)) == 4 and not training & set(seen)


def test_padding_rows_count_for_nothing():
    (batch,) = batches(count=1)
    padded = {
        "tokens": batch["tokens"],
        "where": batch["where"] & (np.arange(64) < 40)[:, None],
    }
    report = evaluate_bound(apply, PARAMS, OBJECTIVE, [padded], seed=0)
    assert report.tokens == padded["where"].sum()
    assert math.isfinite(report.standard_error)


def test_it_compiles_once_per_apply():
    traces = []

    def counting(params, inputs, key):
        traces.append(1)
        return apply(params, inputs, key)

    for seed in range(3):
        evaluate_bound(counting, PARAMS, OBJECTIVE, batches(), seed=seed)
    assert len(traces) == 1


def test_bad_arguments():
    with pytest.raises(ValueError, match="samples=0"):
        evaluate_bound(apply, PARAMS, OBJECTIVE, batches(), seed=0, samples=0)
    with pytest.raises(ValueError, match="no token to score"):
        evaluate_bound(apply, PARAMS, OBJECTIVE, [], seed=0)
    with pytest.raises(ValueError, match="num_bytes=0"):
        bits_per_byte(1.0, 3, 0)


def test_autoregressive_bound_is_exact():
    objective = mdm.autoregressive_objective()
    (batch,) = batches(count=1)
    reports = [evaluate_bound(apply, PARAMS, objective, [batch], seed=seed) for seed in (0, 1)]
    assert reports[0] == reports[1]
    scored = batch["where"][:, 1:] & batch["where"][:, :-1]
    exact = -np.log(FREQUENCIES[batch["tokens"][:, 1:][scored]]).mean()
    assert reports[0].nats_per_token == pytest.approx(exact, rel=1e-6)
    assert reports[0].tokens == scored.sum()
