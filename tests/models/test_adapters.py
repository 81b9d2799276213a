"""A model of any framework, through its adapter, in the library's loops."""

import equinox
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import mdm_jax as mdm
from mdm_jax.models import adapters

PROCESS = mdm.Masked(vocab_size=10, schedule=mdm.LogLinear())
TABLE = np.random.default_rng(0).normal(size=(11, 11)).astype(np.float32)


def by_hand(tokens, sigma):
    """The logits that each of the models below computes, float32[B, L, 11]."""
    return jnp.asarray(TABLE)[tokens] + jnp.sin(sigma)[:, None, None]


class LinenModel(nn.Module):
    @nn.compact
    def __call__(self, tokens, sigma):
        return nn.Embed(11, 11, name="table")(tokens) + jnp.sin(sigma)[:, None, None]


class NNXModel(nnx.Module):
    def __init__(self):
        self.table = nnx.Param(jnp.asarray(TABLE))

    def __call__(self, tokens, sigma):
        return self.table[...][tokens] + jnp.sin(sigma)[:, None, None]


class EquinoxModel(equinox.Module):
    table: equinox.nn.Embedding

    def __call__(self, tokens, sigma):
        return jax.vmap(self.table)(tokens) + jnp.sin(sigma)


ADAPTED = {
    "linen": lambda: adapters.linen(
        LinenModel(), {"table": {"embedding": jnp.asarray(TABLE)}}, PROCESS
    ),
    "nnx": lambda: adapters.nnx(NNXModel(), PROCESS),
    "equinox": lambda: adapters.equinox(
        EquinoxModel(equinox.nn.Embedding(weight=jnp.asarray(TABLE))), PROCESS
    ),
    "function": lambda: adapters.function(by_hand, PROCESS),
}


@pytest.mark.parametrize("framework", ADAPTED)
def test_every_framework_gives_the_same_logits_loss_and_text(framework):
    adapted = ADAPTED[framework]()
    tokens = jax.random.randint(jax.random.key(0), (2, 4), 0, 11, jnp.int32)
    t = jnp.array([0.2, 0.9])
    sigma = PROCESS.schedule.sigma(t)
    np.testing.assert_allclose(adapted(tokens, t), by_hand(tokens, sigma), rtol=1e-6)
    one_time = adapted(tokens, t[1])
    np.testing.assert_allclose(one_time, by_hand(tokens, sigma[jnp.array([1, 1])]), rtol=1e-6)

    noised = PROCESS.corrupt(jax.random.key(1), tokens % 10, t)
    values = mdm.elbo(adapted(noised.tokens, noised.t), noised, PROCESS)
    expected = mdm.elbo(by_hand(noised.tokens, sigma), noised, PROCESS)
    np.testing.assert_allclose(values, expected, rtol=1e-5)

    @jax.jit
    def sample(key):
        start = PROCESS.prior(key, tokens)
        sampler = mdm.ancestral(PROCESS)
        return mdm.generate(key, mdm.denoiser(adapted), sampler, start, mdm.time_grid(3)).tokens

    assert jnp.all(sample(jax.random.key(2)) < 10)


def test_without_a_process_the_model_sees_tokens_only():
    adapted = adapters.function(lambda tokens: tokens + 1)
    assert adapted(jnp.array([[1, 2]]), jnp.float32(0.5)).tolist() == [[2, 3]]


def test_a_dit_reads_sigma_exactly_if_conditioned(build, tokens):
    conditioned, params = build(time_conditioning=True)
    adapted = adapters.linen(conditioned, params, PROCESS)
    sigma = PROCESS.schedule.sigma(jnp.full(8, 0.5))
    expected = conditioned.apply({"params": params}, tokens, sigma)
    np.testing.assert_array_equal(adapted(tokens, 0.5), expected)

    blind, _ = build()
    endless = mdm.Masked(vocab_size=10, schedule=mdm.Linear())  # sigma(1) is infinite.
    at_one = adapters.linen(blind, params, endless)(tokens, 1.0)
    np.testing.assert_array_equal(at_one, blind.apply({"params": params}, tokens))


def test_a_dit_bounds_the_likelihood(build, tokens):
    model, params = build()
    adapted = adapters.linen(model, params, PROCESS)
    bound = mdm.nll_bound(jax.random.key(0), adapted, PROCESS, tokens % 10, samples=2)
    assert bound.nats.shape == (8,) and jnp.all(jnp.isfinite(bound.nats))


def test_times_that_are_not_one_per_sequence_are_refused(tokens):
    adapted = adapters.function(by_hand, PROCESS)
    with pytest.raises(ValueError, match=r"one per sequence, shape \(8,\); got \(8, 6\)"):
        adapted(tokens, jnp.full((8, 6), 0.5))


def test_an_infinite_sigma_is_refused_even_while_tracing():
    endless = mdm.Masked(vocab_size=10, schedule=mdm.Linear())

    def adapt(tokens):
        return adapters.function(by_hand, endless)(tokens, 0.5)

    with pytest.raises(ValueError, match=r"Linear\(\) has sigma\(1\) = inf.*LogLinear"):
        jax.jit(adapt)(jnp.zeros((1, 2), jnp.int32))
