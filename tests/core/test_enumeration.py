"""Corruption, posteriors, bounds and sampler laws against exact enumeration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tabular
from exact import (
    CLEAN,
    CONDITIONALS,
    JOINT,
    PROCESSES,
    L,
    V,
    arbitrary_conditionals,
    expected_loss,
    tabular_logits,
)

import mdm_jax as mdm


@pytest.mark.parametrize("kind", PROCESSES)
@pytest.mark.parametrize("t", [0.3, 0.9])
def test_corrupt_follows_the_exact_law(kind, t):
    process = PROCESSES[kind]
    x = np.array([2, 0, 1])
    states = tabular.sequences(process.num_ids, L)
    law = tabular.sequence_law(tabular.token_channel(kind, V, 1 - t), x, states)
    batch = jnp.tile(jnp.asarray(x), (100_000, 1))
    noised = process.corrupt(jax.random.key(0), batch, jnp.float32(t))
    drawn = tabular.index(np.asarray(noised.tokens), process.num_ids)
    counts = np.bincount(drawn, minlength=len(states))
    assert abs(tabular.chi_square_z(counts, law)) < 5
    # `noised` is the redraw indicator itself, also where a redraw returned the same id.
    redrawn = float(noised.noised.mean())
    assert abs(redrawn - t) < 5 * np.sqrt(t * (1 - t) / noised.noised.size)


@pytest.mark.parametrize("kind", PROCESSES)
@pytest.mark.parametrize(("t", "s"), [(0.9, 0.4), (0.5, 0.49), (1.0, 0.0), (0.2, 0.0)])
def test_posterior_is_bayes_rule(kind, t, s):
    process = PROCESSES[kind]
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(V), size=process.num_ids)  # one belief per observed token
    q_s = tabular.token_channel(kind, V, 1 - s)
    q_t = tabular.token_channel(kind, V, 1 - t)
    q_ts = tabular.token_channel(kind, V, (1 - t) / (1 - s))
    for z in range(process.num_ids):
        if kind == "masked" and z < V:
            expected = np.eye(process.num_ids)[z]  # carried over whatever the model says
        else:
            expected = (p[z] @ q_s[:V]) * q_ts[:, z] / (p[z] @ q_t[:V, z])
        logits = jnp.log(jnp.asarray(p[z], jnp.float32))[None]
        got = process.posterior(logits, jnp.array([z]), jnp.float32(t), jnp.float32(s))
        np.testing.assert_allclose(np.exp(got[0]), expected, atol=2e-6)


@pytest.mark.parametrize("kind", PROCESSES)
def test_sample_posterior_follows_posterior(kind):
    process = PROCESSES[kind]
    logits = jnp.array([0.3, -1.0, 1.0])
    z = process.num_ids - 1
    t, s = jnp.float32(0.8), jnp.float32(0.3)
    law = np.exp(np.float64(process.posterior(logits[None], jnp.array([z]), t, s)[0]))
    n = 100_000
    tokens = process.sample_posterior(
        jax.random.key(3), jnp.broadcast_to(logits, (n, 1, V)), jnp.full((n, 1), z), t, s
    )
    counts = np.bincount(np.asarray(tokens[:, 0]), minlength=process.num_ids)
    assert abs(tabular.chi_square_z(counts, law / law.sum())) < 5


SOME = [0, 5, 13, 26]


@pytest.mark.parametrize("x", [CLEAN[i] for i in SOME], ids=str)
def test_masked_elbo_is_the_any_order_bound(x):
    """Averaged over noise, the loss is E_order[-log p]: Jensen's bound on the model's own NLL."""
    conditionals = arbitrary_conditionals()
    paths = tabular.any_order_paths(conditionals, x, V)
    loss = expected_loss(PROCESSES["masked"], lambda t, alpha: conditionals, x)
    np.testing.assert_allclose(loss, -paths.mean(), rtol=2e-5)
    assert loss >= -np.log(np.exp(paths).mean()) - 1e-4


@pytest.mark.parametrize("x", [CLEAN[i] for i in SOME], ids=str)
def test_masked_elbo_is_tight_for_the_ideal_denoiser(x):
    loss = expected_loss(PROCESSES["masked"], lambda t, alpha: CONDITIONALS, x)
    np.testing.assert_allclose(loss, -np.log(JOINT[tabular.index(x, V)]), rtol=2e-5)


@pytest.mark.parametrize("x", [CLEAN[i] for i in SOME], ids=str)
def test_uniform_elbo_is_tight_for_the_leave_one_out_denoiser(x):
    def ideal(t, alpha):
        return tabular.leave_one_out(JOINT, V, L, alpha)

    loss = expected_loss(PROCESSES["uniform"], ideal, x)
    np.testing.assert_allclose(loss, -np.log(JOINT[tabular.index(x, V)]), rtol=1e-4)


def generic_uniform_loss(p, x0, z, alpha, alpha_prime):
    """The Duo NELBO of one token as published, in float64: no stable form, no shortcuts."""
    k = len(p)
    x_bar = k * alpha * np.eye(k)[x0] + 1 - alpha
    p_bar = k * alpha * p + 1 - alpha
    logs = np.log(p_bar[z] * x_bar / (p_bar * x_bar[z]))
    inner = k / x_bar[z] - k / p_bar[z] - (x_bar / x_bar[z] * logs).sum()
    return alpha_prime / (k * alpha) * inner


@pytest.mark.parametrize("t", [0.001, 0.3, 0.7, 0.999])
def test_uniform_elbo_is_the_published_form(t):
    rng = np.random.default_rng(2)
    size = 7
    process = mdm.Uniform(size, mdm.LogLinear())
    p = rng.dirichlet(np.ones(size), size=(size, size))  # [x0, z]
    alpha = 1 - 0.999 * t
    expected = [
        [generic_uniform_loss(p[x0, z], x0, z, alpha, -0.999) for z in range(size)]
        for x0 in range(size)
    ]
    x0, z = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")
    noised = mdm.Noised(
        jnp.asarray(z),
        jnp.asarray(x0),
        jnp.float32(t),
        jnp.asarray(x0 != z),
        jnp.ones((7, 7), bool),
    )
    loss = mdm.uniform_elbo(jnp.log(jnp.asarray(p, jnp.float32)), noised, process)
    np.testing.assert_allclose(loss, expected, rtol=3e-4, atol=2e-5)


def test_uniform_elbo_stays_a_bound_for_a_wrong_denoiser():
    """Any denoiser gives an upper bound on average over data: the cross-entropy exceeds H."""
    rng = np.random.default_rng(3)
    table = rng.dirichlet(np.ones(V), size=(V**L, L))
    average = sum(
        p * expected_loss(PROCESSES["uniform"], lambda t, alpha: table, x, nodes=40)
        for p, x in zip(JOINT, CLEAN, strict=True)
    )
    assert average > -(JOINT * np.log(JOINT)).sum() + 0.1


@pytest.mark.parametrize("kind", PROCESSES)
def test_discrete_time_bound_converges_to_the_loss(kind):
    """sum over steps of KL(q(x_s|x_t,x_0) || p(x_s|x_t)) tends to the integral, like 1 / T."""
    process = PROCESSES[kind]
    x = CLEAN[11]
    table = (
        arbitrary_conditionals()
        if kind == "masked"
        else np.random.default_rng(4).dirichlet(np.ones(V), size=(V**L, L))
    )
    limit = expected_loss(process, lambda t, alpha: table, x)
    logits = jnp.log(jnp.asarray(table, jnp.float32))
    states = jnp.asarray(tabular.sequences(process.num_ids, L))
    truth = jnp.log(jax.nn.one_hot(jnp.broadcast_to(jnp.asarray(x), states.shape), V))

    @jax.jit
    def step_kl(t, s):
        q = process.posterior(truth, states, t, s)
        p = process.posterior(logits, states, t, s)
        safe = q > -jnp.inf
        gap = jnp.where(safe, q, 0.0) - jnp.where(safe, p, 0.0)
        return jnp.where(safe, jnp.exp(q) * gap, 0.0).sum((-1, -2))

    def discrete(steps):
        total = 0.0
        for i in range(steps):
            t, s = (steps - i) / steps, (steps - i - 1) / steps
            law = tabular.sequence_law(tabular.token_channel(kind, V, 1 - t), x, np.asarray(states))
            total += (law * np.float64(step_kl(jnp.float32(t), jnp.float32(s)))).sum()
        return total

    coarse, fine = discrete(16), discrete(32)
    assert abs(fine - limit) < 0.7 * abs(coarse - limit) + 1e-4
    np.testing.assert_allclose(2 * fine - coarse, limit, rtol=3e-3)  # Richardson: 1 / T removed


def sampled_counts(process, sampler, logits_fn, steps, n=60_000, seed=0, times=None):
    @jax.jit
    def run(key):
        start = process.prior(key, jnp.zeros((n, L), jnp.int32))
        grid = mdm.time_grid(steps) if times is None else times(key, start)
        return mdm.generate(key, mdm.denoiser(logits_fn), sampler, start, grid).tokens

    tokens = np.asarray(run(jax.random.key(seed)))
    return np.bincount(tabular.index(tokens, V), minlength=V**L)


@pytest.mark.parametrize("denoiser", ["ideal", "arbitrary"])
def test_first_hitting_samples_the_any_order_joint(denoiser):
    process = PROCESSES["masked"]
    table = CONDITIONALS if denoiser == "ideal" else arbitrary_conditionals()
    law = tabular.any_order_joint(table, V, L)
    if denoiser == "ideal":
        np.testing.assert_allclose(law, JOINT, rtol=1e-9)
    counts = sampled_counts(process, mdm.first_hitting(process), tabular_logits(table), steps=L)
    assert abs(tabular.chi_square_z(counts, law)) < 5


def test_first_hitting_with_hitting_times_is_exact_for_a_time_dependent_model(optimized):
    """A model that reads t: the law is the integral over hitting times, seen through tanh(t)."""
    process = mdm.Masked(V, mdm.Linear())
    table = jnp.log(jnp.asarray(arbitrary_conditionals(), jnp.float32))

    def logits_fn(tokens, t):
        row = sum(tokens[..., i] * (V + 1) ** (L - 1 - i) for i in range(L))
        scale = jnp.broadcast_to(t, tokens.shape[:1])
        return table[row] * (2.0 * scale)[:, None, None]

    def times(key, start):
        return mdm.hitting_times(jax.random.fold_in(key, 9), process, start, L)

    hit = sampled_counts(process, mdm.first_hitting(process), logits_fn, L, times=times)
    fine = sampled_counts(process, mdm.ancestral(process), logits_fn, 128, seed=1)
    grid = sampled_counts(process, mdm.first_hitting(process), logits_fn, L, seed=2)
    same = tabular.total_variation(hit / hit.sum(), fine / fine.sum())
    wrong = tabular.total_variation(grid / grid.sum(), fine / fine.sum())
    # Two empirical laws of 60,000 draws over 27 states lie within 0.015 of each other.
    assert same < 0.015 < 0.03 < wrong


def exact_ancestral_law(process, logits_at, steps):
    """Pushes the prior through the production posterior, state by state."""
    states = tabular.sequences(process.num_ids, L)
    masked = isinstance(process, mdm.Masked)
    law = np.zeros(len(states))
    if masked:
        law[-1] = 1.0
    else:
        law[:] = 1 / len(states)
    for i in range(steps):
        t, s = (steps - i) / steps, (steps - i - 1) / steps
        logits = jnp.log(jnp.asarray(logits_at(1 - t), jnp.float32))
        log_q = process.posterior(logits, jnp.asarray(states), jnp.float32(t), jnp.float32(s))
        q = np.exp(np.float64(log_q))
        kernel = np.prod([q[:, i, :][:, states[:, i]] for i in range(L)], axis=0)
        law = law @ kernel
    return law[[tabular.index(x, process.num_ids) for x in CLEAN]]


@pytest.mark.parametrize("kind", PROCESSES)
def test_ancestral_converges_like_one_over_steps(kind):
    process = PROCESSES[kind]

    def ideal(alpha):
        return CONDITIONALS if kind == "masked" else tabular.leave_one_out(JOINT, V, L, alpha)

    distance = {
        steps: tabular.total_variation(exact_ancestral_law(process, ideal, steps), JOINT)
        for steps in (8, 16, 32)
    }
    assert 1.6 < distance[8] / distance[16] < 2.6
    assert 1.6 < distance[16] / distance[32] < 2.6
    assert distance[32] < 0.05


@pytest.mark.parametrize("kind", PROCESSES)
def test_ancestral_samples_its_exact_law(kind):
    """The jitted production loop at T = 4 against the enumerated law at T = 4."""
    process = PROCESSES[kind]
    if kind == "masked":
        table, seed = arbitrary_conditionals(), 0
    else:
        table, seed = np.random.default_rng(4).dirichlet(np.ones(V), size=(V**L, L)), 1
    law = exact_ancestral_law(process, lambda alpha: table, 4)
    counts = sampled_counts(process, mdm.ancestral(process), tabular_logits(table), 4, seed=seed)
    assert abs(tabular.chi_square_z(counts, law / law.sum())) < 5
