"""SMDM: what it computes, in which dtype, how it is sharded and cached, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import mdm_jax as mdm
from mdm_jax.masks import Filled
from mdm_jax.models import adapters
from mdm_jax.models.cache import commit, make_cache
from mdm_jax.models.decoding import cached, generate_autoregressive
from mdm_jax.models.smdm import SMDM
from mdm_jax.models.smdm_configs import SMDMConfig
from mdm_jax.train.meshes import SMDM_RULES, state_shardings

SMALL = {"vocab_size": 10, "width": 16, "layers": 2, "heads": 4, "hidden": 40}


def build(**fields):
    """The small model, every parameter drawn at random."""
    model = SMDM(SMDMConfig(**(SMALL | fields)))
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    rng = np.random.default_rng(0)
    draw = lambda leaf: jnp.asarray(rng.normal(0.0, 0.3, leaf.shape), jnp.float32)
    return model, jax.tree.map(draw, shapes)["params"]


@jax.jit(static_argnums=0)
def apply(model, params, tokens):
    return model.apply({"params": params}, tokens)


def test_initialization_is_the_published_one():
    config = SMDMConfig(vocab_size=300, width=64, layers=4, heads=4, hidden=256)
    tokens = jnp.zeros((1, 1), jnp.int32)
    params = jax.jit(SMDM(config).init)(jax.random.key(0), tokens)["params"]
    blocks, linear, branch = params["blocks"], (2 / (5 * 64)) ** 0.5, 1 / (8 * 4)
    for array, deviation in [
        (params["embedding"], linear),
        (params["head"]["logits"]["kernel"], linear),
        (blocks["grouped_qkv"]["kernel"], linear),
        (blocks["mlp_gate"]["kernel"], linear),
        (blocks["mlp_up"]["kernel"], linear),
        (blocks["attention_out"]["kernel"], branch),
        (blocks["mlp_down"]["kernel"], branch),
    ]:
        assert abs(array.mean()) < 0.05 * deviation
        assert float(array.std()) == pytest.approx(deviation, rel=0.02)
    for scale in (blocks["norm_attention"], blocks["norm_mlp"], params["head"]["norm"]):
        assert jnp.all(scale["scale"] == 1)
    kernel = blocks["mlp_up"]["kernel"]
    assert not jnp.array_equal(kernel[0], kernel[1]), "layers must be drawn independently"


@pytest.mark.parametrize("groups", [1, 2])
def test_shared_keys_are_copied_keys(tokens, groups):
    model, params = build(groups=groups)
    full, _ = build()
    kernel = params["blocks"]["grouped_qkv"]["kernel"]  # [layers, D, groups, 4 / groups + 2, 4]
    q, k, v = kernel[:, :, :, :-2], kernel[:, :, :, -2:-1], kernel[:, :, :, -1:]
    parts = [jnp.broadcast_to(part, q.shape).reshape(2, 16, 4, 1, 4) for part in (q, k, v)]
    copied = params | {
        "blocks": params["blocks"] | {"grouped_qkv": {"kernel": jnp.concatenate(parts, axis=3)}}
    }
    expected = apply(full, copied, tokens)
    np.testing.assert_allclose(apply(model, params, tokens), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_a_position_sees_later_ones_unless_causal(causal):
    model, params = build(causal=causal)
    tokens = jnp.arange(6, dtype=jnp.int32)[None]  # Row j of the table is position j's input.

    def logits(table):
        return model.apply({"params": params | {"embedding": table}}, tokens)[0]

    jacobian = jax.jit(jax.jacrev(logits))(params["embedding"])[:, :, :6]  # [L, V, L, D]
    influence = jnp.abs(jacobian).max(axis=(1, 3))
    later = np.triu(np.ones((6, 6), bool), k=1)
    assert np.all(influence[~later] > 0)
    assert np.all((influence[later] == 0) == causal)


def test_filled_is_a_shorter_text(tokens):
    """What random lengths rely on: the first logits are those of the text cut to `count`."""
    model, params = build()
    cut = jax.jit(lambda x, mask: model.apply({"params": params}, x, mask=mask))
    found = cut(tokens, Filled(jnp.full(8, 4)))[:, :4]
    np.testing.assert_allclose(found, apply(model, params, tokens[:, :4]), rtol=1e-5, atol=1e-5)
    changed = tokens.at[:, 4:].set(0)
    np.testing.assert_array_equal(cut(changed, Filled(jnp.full(8, 4)))[:, :4], found)
    rows = cut(tokens, Filled(jnp.arange(8) % 6 + 1))  # a length for every row
    np.testing.assert_allclose(rows[3, :4], found[3], rtol=1e-5, atol=1e-5)
    everything = cut(tokens, Filled(jnp.full(8, 6)))
    np.testing.assert_allclose(everything, apply(model, params, tokens), rtol=1e-5, atol=1e-5)


def loss(model, params, tokens):
    return jnp.sum(jnp.sin(model.apply({"params": params}, tokens)))


@pytest.fixture(scope="module")
def plain_gradient(tokens):
    model, params = build()
    return jax.jit(jax.grad(lambda p: loss(model, p, tokens)))(params)


@pytest.mark.parametrize(("remat", "unroll"), [("dots", 1), ("attention", 1), ("full", 2)])
def test_remat_and_unrolling_change_nothing(tokens, plain_gradient, remat, unroll):
    model, params = build(remat=remat, unroll=unroll)
    found = jax.jit(jax.grad(lambda p: loss(model, p, tokens)))(params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, plain_gradient
    )


def test_bfloat16_rounds_matmuls_but_not_the_stream(tokens):
    exact_model, params = build()
    model, _ = build(dtype="bfloat16")
    logits, seen = jax.jit(
        lambda p: model.apply(
            {"params": p}, tokens, capture_intermediates=True, mutable=["intermediates"]
        )
    )(params)
    exact = apply(exact_model, params, tokens)
    assert exact.dtype == jnp.float32 and logits.dtype == jnp.bfloat16
    error = jnp.abs(logits.astype(jnp.float32) - exact)
    assert 0 < error.max() < 0.03 * jnp.abs(exact).max()
    dtypes = {
        jax.tree_util.keystr(path, simple=True, separator="/").split("__call__")[0]: leaf.dtype
        for path, leaf in jax.tree_util.tree_leaves_with_path(seen["intermediates"])
    }
    matmuls = ("grouped_qkv", "attention_out", "mlp_gate", "mlp_up", "mlp_down")
    rounded = {f"blocks/{name}/" for name in matmuls} | {"head/logits/", "head/", ""}
    assert {path for path, dtype in dtypes.items() if dtype == jnp.bfloat16} == rounded
    norms = {"blocks/norm_attention/", "blocks/norm_mlp/", "head/norm/"}
    assert dtypes.keys() - rounded == norms | {"blocks/"}


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_a_batch_sharded_over_eight_devices(tokens, plain_gradient, axis_type):
    model, params = build(remat="dots")
    expected = apply(model, params, tokens)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    with jax.set_mesh(mesh):
        sharding = NamedSharding(mesh, P("data"))
        params = jax.device_put(params, NamedSharding(mesh, P()))
        tokens = jax.device_put(tokens, sharding)
        found = jax.jit(model.apply)({"params": params}, tokens)
        gradient = jax.jit(jax.grad(lambda p, x: loss(model, p, x)))(params, tokens)
    assert found.sharding.is_equivalent_to(sharding, found.ndim)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
        gradient,
        plain_gradient,
    )


def test_parameters_sharded_by_the_rules(tokens):
    model, params = build()
    expected = apply(model, params, tokens)
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    shardings = state_shardings(params, mesh, SMDM_RULES)
    replicated = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, sharding in jax.tree_util.tree_leaves_with_path(shardings)
        if sharding.is_fully_replicated
    }
    assert replicated == {
        "blocks/norm_attention/scale",
        "blocks/norm_mlp/scale",
        "head/norm/scale",
    }
    params = jax.device_put(params, shardings)
    tokens = jax.device_put(tokens, NamedSharding(mesh, P(("data", "fsdp"))))
    np.testing.assert_allclose(apply(model, params, tokens), expected, rtol=1e-4, atol=1e-4)


def test_shard_map_and_vmap(tokens):
    model, params = build(causal=True)
    tokens %= 10  # A causal model has no mask id.
    expected = apply(model, params, tokens)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    local = jax.shard_map(
        lambda p, x: model.apply({"params": p}, x),
        mesh=mesh,
        in_specs=(P(), P("data")),
        out_specs=P("data"),
    )
    np.testing.assert_allclose(jax.jit(local)(params, tokens), expected, rtol=1e-4, atol=1e-4)
    mapped = jax.jit(jax.vmap(lambda x: model.apply({"params": params}, x)))
    found = mapped(tokens.reshape(4, 2, 6)).reshape(8, 6, 10)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_it_trains_and_samples_with_its_own_process(tokens):
    # alpha = 1 - t, whose sigma(1) is infinite: fine, as the model is never fed sigma.
    model, params = build()
    process = mdm.Masked(vocab_size=10, schedule=mdm.Linear())
    assert model.config.num_ids == process.num_ids
    noised = process.corrupt(jax.random.key(0), tokens % 10, jnp.full((8,), 0.7))
    nats = mdm.masked_elbo(apply(model, params, noised.tokens), noised, process)
    assert jnp.all((nats > 0) == (noised.tokens == 10))
    denoiser = mdm.denoiser(adapters.linen(model, params, process))
    start = process.prior(jax.random.key(0), tokens)
    drawn = mdm.generate(
        jax.random.key(1), denoiser, mdm.ancestral(process), start, mdm.time_grid(4)
    ).tokens
    assert drawn.shape == (8, 6) and jnp.all(drawn < 10)


def test_sigma_and_dropout_are_not_read(tokens):
    model, params = build()
    found = model.apply({"params": params}, tokens, jnp.ones(8), deterministic=False)
    np.testing.assert_allclose(found, apply(model, params, tokens), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("groups", [2, 4])
def test_cached_keys_give_the_logits_of_the_whole_sequence(tokens, groups):
    model, params = build(causal=True, groups=groups)
    tokens %= 10
    expected = apply(model, params, tokens)
    cache = make_cache(model.config, batch=8, capacity=7)
    assert cache.keys.shape == (2, 8, 7, groups, 4)

    @jax.jit
    def decode(tokens, cache):
        return model.apply({"params": params}, tokens, cache, method="decode")

    # Prompts of one to four tokens, padded at their end; then one token at a time.
    lengths = jnp.arange(8) % 4 + 1
    logits, cache = decode(tokens[:, :4], cache)
    cache = commit(cache, lengths)
    rows = jnp.arange(8)
    last = logits[rows, lengths - 1]
    np.testing.assert_allclose(last, expected[rows, lengths - 1], rtol=1e-4, atol=1e-5)
    for step in range(2):
        now = lengths + step
        logits, cache = decode(tokens[rows, now][:, None], cache)
        cache = commit(cache, 1)
        np.testing.assert_allclose(logits[:, 0], expected[rows, now], rtol=1e-4, atol=1e-5)


def test_it_generates_with_a_cache_what_it_would_without():
    model, params = build(causal=True)
    process = mdm.Masked(vocab_size=10, schedule=mdm.Linear())
    canvas = jnp.arange(12, dtype=jnp.int32).reshape(2, 6) % 10
    greedy = mdm.tempered(cached(model, params, process), 1e-4)
    found = generate_autoregressive(jax.random.key(0), greedy, process, canvas, prefill=2).tokens
    assert jnp.array_equal(found[:, :2], canvas[:, :2])
    expected = jnp.argmax(apply(model, params, found), axis=-1)[:, :-1]
    np.testing.assert_array_equal(found[:, 2:], expected[:, 1:])


def test_decoding_is_refused_where_it_would_be_wrong(tokens):
    model, params = build()
    cache = make_cache(model.config, batch=8, capacity=4)
    with pytest.raises(ValueError, match="decode needs causal=True"):
        model.apply({"params": params}, tokens, cache, method="decode")
    model, params = build(causal=True)
    with pytest.raises(ValueError, match=r"capacity, 4; got \(8, 6\)"):
        model.apply({"params": params}, tokens, cache, method="decode")


def test_bad_inputs_are_refused_with_the_fix(tokens):
    model, params = build()
    with pytest.raises(TypeError, match="tokens must be integers, got float32"):
        apply(model, params, tokens.astype(jnp.float32))
    with pytest.raises(ValueError, match=r"shape \[B, L\], got \(6,\); add a batch axis"):
        apply(model, params, tokens[0])
    model, params = build(causal=True)
    with pytest.raises(ValueError, match="take the place of a causal model's own"):
        model.apply({"params": params}, tokens, mask=Filled(jnp.full(8, 3)))
