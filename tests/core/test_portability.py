"""The same loss, gradient and samples wherever and however the core runs.

Tokens must be identical; sums may differ by the order of additions. The model is one small network
with the same parameters written in Linen, in NNX, in Equinox and as a plain function.
"""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import mdm_jax as mdm

V, L, B, WIDTH = 11, 6, 16, 8
PROCESSES = {
    "masked": mdm.Masked(V, mdm.LogLinear()),
    "uniform": mdm.Uniform(V, mdm.LogLinear()),
}
every_process = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())


def parameters():
    keys = jax.random.split(jax.random.key(7), 3)
    return {
        "embed": jax.random.normal(keys[0], (V + 1, WIDTH)),
        "mix": jax.random.normal(keys[1], (WIDTH, WIDTH)),
        "head": jax.random.normal(keys[2], (WIDTH, V + 1)),
    }


def forward(params, tokens, t):
    """Embeds by one-hot product, mixes along the row with its mean, and reads out."""
    x = jax.nn.one_hot(tokens, V + 1) @ params["embed"]
    context = jnp.mean(x, axis=-2, keepdims=True) * jnp.cos(t)[..., None, None]
    return jnp.tanh(x @ params["mix"] + context) @ params["head"]


class LinenModel(nn.Module):
    @nn.compact
    def __call__(self, tokens, t):
        shapes = {name: value.shape for name, value in parameters().items()}
        init = nn.initializers.zeros
        return forward({n: self.param(n, init, s) for n, s in shapes.items()}, tokens, t)


class NNXModel(nnx.Module):
    def __init__(self, params):
        for name, value in params.items():
            setattr(self, name, nnx.Param(value))

    def __call__(self, tokens, t):
        return forward({n: getattr(self, n)[...] for n in ("embed", "mix", "head")}, tokens, t)


class EquinoxModel(eqx.Module):
    params: dict

    def __call__(self, tokens, t):  # one example, as Equinox layers are written
        return forward(self.params, tokens, t)


def linen(params):
    return lambda x, t: LinenModel().apply({"params": params}, x, t)


def nnx_model(params):
    return lambda x, t: NNXModel(params)(x, t)


def equinox(params):
    return lambda x, t: jax.vmap(EquinoxModel(params))(x, t)


def plain(params):
    return lambda x, t: forward(params, x, t)


FRAMEWORKS = {"linen": linen, "nnx": nnx_model, "equinox": equinox, "plain": plain}


def data():
    key = jax.random.key(0)
    tokens = jax.random.randint(key, (B, L), 0, V, dtype=jnp.int32)
    where = jnp.arange(L).reshape(1, L) < jnp.arange(B).reshape(B, 1) % L + 1
    return tokens, where


def noise(process):
    tokens, where = data()
    t = mdm.sample_times(jax.random.key(1), (B,))
    return process.corrupt(jax.random.key(2), tokens, t, where=where)


def total(params, noised, process, model=plain):
    logits = model(params)(noised.tokens, noised.t)
    return mdm.token_sum(mdm.elbo(logits, noised, process), noised.where)


def mean_and_grad(params, noised, process, model=plain):
    return jax.value_and_grad(lambda p: total(p, noised, process, model).mean())(params)


def sample(params, key, canvas, keep, process, model=plain):
    start = jnp.where(keep, canvas, process.prior(key, canvas))
    denoiser = mdm.denoiser(model(params))
    sampler = mdm.ancestral(process)
    return mdm.generate(key, denoiser, sampler, start, mdm.time_grid(5), keep=keep).tokens


def assert_same(got, expected):
    value, gradient = got
    np.testing.assert_allclose(value, expected[0], rtol=2e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-7), gradient, expected[1]
    )


def mesh_of(kind):
    return jax.make_mesh((8,), ("data",), axis_types=(kind,))


@every_process
@pytest.mark.parametrize("model", FRAMEWORKS.values(), ids=FRAMEWORKS.keys())
def test_frameworks(process, model):
    params, noised = parameters(), noise(process)
    expected = mean_and_grad(params, noised, process)
    assert_same(jax.jit(lambda p, n: mean_and_grad(p, n, process, model))(params, noised), expected)
    canvas, keep = data()
    key = jax.random.key(3)
    reference = sample(params, key, canvas, keep, process)
    np.testing.assert_array_equal(
        jax.jit(lambda p: sample(p, key, canvas, keep, process, model))(params), reference
    )


@every_process
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def test_meshes(process, kind):
    """Corruption, loss, gradient and samples of a batch sharded over 8 devices."""
    params, (tokens, where) = parameters(), data()
    t = mdm.sample_times(jax.random.key(1), (B,))
    mesh = mesh_of(kind)
    rows = NamedSharding(mesh, P("data"))
    reference = noise(process)
    key = jax.random.key(3)
    with jax.set_mesh(mesh):
        shard = lambda x: jax.device_put(x, rows)
        replicated = jax.device_put(params, NamedSharding(mesh, P()))
        corrupted = jax.jit(lambda x, t, w: process.corrupt(jax.random.key(2), x, t, where=w))(
            shard(tokens), shard(t), shard(where)
        )
        jax.tree.map(np.testing.assert_array_equal, corrupted, reference)
        assert corrupted.tokens.sharding.is_equivalent_to(rows, 2)
        got = jax.jit(lambda p, n: mean_and_grad(p, n, process))(replicated, corrupted)
        out = jax.jit(lambda p, c, k: sample(p, key, c, k, process))(
            replicated, shard(tokens), shard(where)
        )
        assert out.sharding.is_equivalent_to(rows, 2)
    assert_same(got, mean_and_grad(params, reference, process))
    np.testing.assert_array_equal(out, sample(params, key, tokens, where, process))


@every_process
def test_shard_map(process):
    """Each shard adds up its own (total, weight); one psum, then one division."""
    params, noised = parameters(), noise(process)

    def local(params, noised):
        def summed(params):
            pair = jax.lax.psum(total(params, noised, process), "data")
            return pair.mean()

        return jax.value_and_grad(summed)(params)

    sharded = jax.shard_map(
        local, mesh=mesh_of(AxisType.Auto), in_specs=(P(), P("data")), out_specs=P()
    )
    assert_same(jax.jit(sharded)(params, noised), mean_and_grad(params, noised, process))
    canvas, keep = data()
    keys = jax.random.split(jax.random.key(3), 8)
    run = jax.shard_map(
        lambda keys, canvas, keep: sample(params, keys[0], canvas, keep, process),
        mesh=mesh_of(AxisType.Auto),
        in_specs=P("data"),
        out_specs=P("data"),
    )
    rows = np.asarray(jax.jit(run)(keys, canvas, keep)).reshape(8, B // 8, L)
    one = sample(params, keys[5], canvas[10:12], keep[10:12], process)
    np.testing.assert_array_equal(rows[5], one)


@every_process
def test_pmap(process):
    params, noised = parameters(), noise(process)
    split = jax.tree.map(lambda x: x.reshape(8, B // 8, *x.shape[1:]), noised)

    def local(params, noised):
        pair, pull = jax.vjp(lambda p: total(p, noised, process), params)
        (gradient,) = pull(mdm.WeightedSum(jnp.ones_like(pair.total), jnp.zeros_like(pair.weight)))
        pair, gradient = jax.lax.psum((pair, gradient), "data")
        return pair.mean(), jax.tree.map(lambda g: g / pair.weight, gradient)

    value, gradient = jax.pmap(local, axis_name="data", in_axes=(None, 0))(params, split)
    first = jax.tree.map(lambda x: x[0], (value, gradient))
    assert_same(first, mean_and_grad(params, noised, process))
    canvas, keep = (x.reshape(8, B // 8, L) for x in data())
    keys = jax.random.split(jax.random.key(3), 8)
    rows = jax.pmap(lambda k, c, w: sample(params, k, c, w, process))(keys, canvas, keep)
    np.testing.assert_array_equal(rows[5], sample(params, keys[5], canvas[5], keep[5], process))


@every_process
def test_vmap(process):
    """Examples with keys of their own, without a batch axis."""
    params, (tokens, where) = parameters(), data()
    noised = noise(process)

    def one(noised):
        return total(params, noised, process)

    pairs = jax.vmap(one)(noised)
    merged = mdm.WeightedSum(pairs.total.sum(), pairs.weight.sum())
    np.testing.assert_allclose(merged.mean(), total(params, noised, process).mean(), rtol=2e-6)
    keys = jax.random.split(jax.random.key(3), B)
    rows = jax.vmap(lambda k, c, w: sample(params, k, c, w, process))(keys, tokens, where)
    one_row = sample(params, keys[4], tokens[4], where[4], process)
    np.testing.assert_array_equal(rows[4], one_row)


def hitting_sample(params, canvas, keep):
    """Everything a time-conditioned first-hitting sample takes: clocks, positions, nucleus."""
    process, key = PROCESSES["masked"], jax.random.key(3)
    start = jnp.where(keep, canvas, process.prior(key, canvas))
    times = mdm.hitting_times(key, process, start, L, keep=keep)
    model = mdm.denoiser(lambda x, t: forward(params, x, t))
    model = mdm.nucleus(mdm.predicting(model, process), 0.9)
    sampler = mdm.first_hitting(process, per_step=2)
    return mdm.generate(key, model, sampler, start, times, keep=keep).tokens


def bound(params, tokens, where):
    """The exact-count likelihood bound, which draws its own noise."""
    return mdm.nll_bound(
        jax.random.key(4),
        lambda x, t: forward(params, x, t),
        PROCESSES["masked"],
        tokens,
        where=where,
        samples=2,
    ).nats


@pytest.mark.parametrize("run", [hitting_sample, bound], ids=lambda f: f.__name__)
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def test_sampling_with_clocks_and_bounds_on_meshes(run, kind):
    params, (tokens, where) = parameters(), data()
    mesh = mesh_of(kind)
    with jax.set_mesh(mesh):
        rows = NamedSharding(mesh, P("data"))
        out = jax.jit(run)(
            jax.device_put(params, NamedSharding(mesh, P())),
            jax.device_put(tokens, rows),
            jax.device_put(where, rows),
        )
    np.testing.assert_allclose(out, run(params, tokens, where), rtol=1e-6)


@pytest.mark.parametrize("run", [hitting_sample, bound], ids=lambda f: f.__name__)
def test_sampling_with_clocks_and_bounds_under_shard_map(run):
    params, (tokens, where) = parameters(), data()
    sharded = jax.shard_map(
        lambda tokens, where: run(params, tokens, where),
        mesh=mesh_of(AxisType.Auto),
        in_specs=P("data"),
        out_specs=P("data"),
    )
    out = jax.jit(sharded)(tokens, where)
    np.testing.assert_allclose(out[4:6], run(params, tokens[4:6], where[4:6]), rtol=1e-6)
