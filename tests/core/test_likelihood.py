"""Likelihood bounds: unbiased against enumeration, honest error bars, small variance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tabular
from exact import (
    CLEAN,
    JOINT,
    PROCESSES,
    L,
    V,
    arbitrary_conditionals,
    expected_loss,
    tabular_logits,
)

import mdm_jax as mdm

X = CLEAN[[0, 5, 13]]
CASES = {
    "masked-count": ("masked", "count"),
    "masked-time": ("masked", "time"),
    "uniform-time": ("uniform", "time"),
}


def table_of(kind):
    if kind == "masked":
        return arbitrary_conditionals()
    return np.random.default_rng(4).dirichlet(np.ones(V), size=(V**L, L))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_bound_is_the_enumerated_one_within_its_standard_error(case):
    kind, strata = case
    process, table = PROCESSES[kind], table_of(kind)
    exact = [expected_loss(process, lambda t, alpha: table, x) for x in X]
    repeats = 400
    tokens = jnp.asarray(np.tile(X, (repeats, 1)))
    bound = mdm.nll_bound(
        jax.random.key(0), tabular_logits(table), process, tokens, samples=12, strata=strata
    )
    nats = np.float64(bound.nats).reshape(repeats, len(X))
    spread = nats.std(0, ddof=1)
    assert (np.abs(nats.mean(0) - exact) < 5 * spread / np.sqrt(repeats)).all()
    # The reported standard error is conservative and of the right size.
    reported = np.sqrt(np.square(np.float64(bound.standard_error)).reshape(nats.shape).mean(0))
    assert (reported > 0.85 * spread).all() and (reported < 3 * spread + 1e-6).all()


def test_exact_counts_have_the_smaller_variance():
    process, table = PROCESSES["masked"], table_of("masked")
    tokens = jnp.asarray(np.tile(CLEAN[5:6], (300, 1)))

    def spread(strata):
        bound = mdm.nll_bound(
            jax.random.key(1), tabular_logits(table), process, tokens, samples=6, strata=strata
        )
        return float(bound.nats.std())

    assert spread("count") < 0.5 * spread("time")


def test_counts_are_exact_for_a_model_that_reads_the_time():
    """Given k masks of n, 1 - alpha(t) is Beta(k, n - k + 1): both estimators agree."""
    process = mdm.Masked(V, mdm.Linear())
    base = tabular_logits(arbitrary_conditionals())
    tokens = jnp.asarray(np.tile(CLEAN[5:6], (2000, 1)))

    def logits_fn(tokens, t):
        return base(tokens, t) * (3.0 * t)[:, None, None]

    bounds = [
        mdm.nll_bound(jax.random.key(i), logits_fn, process, tokens, samples=12, strata=strata).nats
        for i, strata in enumerate(["count", "time"])
    ]
    means = [float(b.mean()) for b in bounds]
    error = np.sqrt(sum(float(b.var()) / len(b) for b in bounds))
    assert abs(means[0] - means[1]) < 5 * error


def test_only_tokens_in_where_are_scored_given_the_others():
    """With one token scored, the ideal denoiser gives its exact conditional likelihood."""
    conditionals = tabular.masked_conditionals(JOINT, V, L)
    tokens = jnp.asarray(X)
    where = jnp.broadcast_to(jnp.arange(L) == 1, tokens.shape)
    bound = mdm.nll_bound(
        jax.random.key(0),
        tabular_logits(conditionals),
        PROCESSES["masked"],
        tokens,
        where=where,
        samples=2,
    )
    for nats, x in zip(bound.nats, X, strict=True):
        others = [np.array([x[0], v, x[2]]) for v in range(V)]
        law = np.array([JOINT[tabular.index(o, V)] for o in others])
        np.testing.assert_allclose(nats, -np.log(law[x[1]] / law.sum()), rtol=1e-4)
    assert float(bound.standard_error.max()) < 1e-6
    empty = mdm.nll_bound(
        jax.random.key(0),
        tabular_logits(conditionals),
        PROCESSES["masked"],
        tokens,
        where=jnp.zeros_like(where),
        samples=2,
    )
    assert float(jnp.abs(empty.nats).max()) == 0.0


def test_tokens_that_are_no_data_are_refused():
    """Inside the estimator's loop nothing can be checked, so it is checked before."""
    process, x = PROCESSES["masked"], jnp.zeros((1, L), jnp.int32)
    flat = lambda tokens, t: jnp.zeros((*tokens.shape, V))
    for bad, message in ((x + V, "token 3 at position"), (x + 99, "token 99 at position")):
        with pytest.raises(ValueError, match=message):
            mdm.nll_bound(jax.random.key(0), flat, process, bad, samples=2)
    with pytest.raises(ValueError, match="where has shape"):
        mdm.nll_bound(jax.random.key(0), flat, process, x, where=x[0] == 0, samples=2)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"samples": 3}, ValueError, "samples=3: expected an even number"),
        ({"samples": 2, "strata": "order"}, ValueError, "strata='order'"),
        ({"samples": 2, "strata": "count"}, TypeError, "needs a Masked process"),
    ],
)
def test_bad_input_is_named(options, error, message):
    with pytest.raises(error, match=message):
        mdm.nll_bound(
            jax.random.key(0),
            lambda x, t: x,
            PROCESSES["uniform"],
            jnp.zeros((1, L), int),
            **options,
        )
