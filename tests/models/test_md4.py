"""MD4's transformer: published sizes, an independent forward pass, and its own rules."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import mdm_jax as mdm
from mdm_jax.models import adapters
from mdm_jax.models.md4 import MD4
from mdm_jax.models.md4_configs import MD4Config, md4_parameter_count
from mdm_jax.train.meshes import MD4_RULES, state_shardings

SMALL = {"vocab_size": 11, "layers": 2, "heads": 3, "features": 8}
TOKENS = jax.random.randint(jax.random.key(1), (8, 6), 0, 12, jnp.int32)
TIMES = jnp.linspace(0.125, 1.0, 8)
LABELS = jnp.arange(8, dtype=jnp.int32) % 5


def build(**fields):
    """Returns a model and parameters that are all drawn at random, as many begin at zero."""
    model = MD4(MD4Config(**(SMALL | fields)))
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(0.0, 0.3, x.shape).astype(np.float32), shapes)
    return model, params["params"]


def apply(model, params, *args, **kwargs):
    return jax.jit(lambda p, a, k: model.apply({"params": p}, *a, **k))(params, args, kwargs)


def reference(params, config, tokens, t, label):
    """The network in float64 NumPy, with explicit loops over heads and rotary pairs."""
    w = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    f, width = config.features, config.width

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    def gelu(x):
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    act = {"glu": sigmoid, "swiglu": lambda x: x * sigmoid(x), "geglu": gelu}[config.mlp]

    def dense(x, module):
        return x @ module["kernel"] + module.get("bias", 0.0)

    def norm(x, module, shift, scale):
        if module is not None:
            return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * module["scale"]
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * (1 + scale) + shift

    def turned(x):  # [L, f]: dimensions 2k and 2k + 1 are a complex number.
        z = x[:, 0::2] + 1j * x[:, 1::2]
        z = z * np.exp(1j * np.outer(np.arange(len(x)), 10000.0 ** (-np.arange(0, f, 2) / f)))
        return np.stack([z.real, z.imag], axis=-1).reshape(x.shape)

    def one(row, time, kind):
        x = w["embedding"]["table"][row]
        if config.factored_embedding:
            x = dense(x, w["embedding"]["widen"])
        cond = None
        if config.time_conditioning:
            # Angles reach 1000, which float32 holds to 6e-5: they are rounded as published.
            rates = np.float32(10000.0 ** (-np.arange(f // 2) / (f // 2 - 1)))
            angles = (np.float32(1000 * time) * rates).astype(np.float64)
            cond = np.concatenate([np.sin(angles), np.cos(angles)])
            if config.classes:
                cond = np.concatenate([cond, w["condition"]["class_embedding"][kind]])
            cond = dense(cond, w["condition"]["mlp_in"])
            cond = dense(cond * sigmoid(cond), w["condition"]["mlp_out"])
        for i in range(config.layers):
            block = jax.tree.map(lambda leaf, i=i: leaf[i], w["blocks"])
            parts = [None, None, 1.0, None, None, 1.0]
            if cond is not None:
                parts = np.split(dense(act(cond), block["modulation"]), 6)
            h = norm(x, block.get("norm_attention"), parts[0], parts[1])
            heads = np.zeros((len(row), config.heads, f))
            for j in range(config.heads):
                q, k, v = (h @ block["qkv"]["kernel"][:, part, j] for part in range(3))
                scores = np.exp(turned(q) @ turned(k).T / math.sqrt(f))
                heads[:, j] = scores / scores.sum(-1, keepdims=True) @ v
            out = heads.reshape(len(row), width) @ block["attention_out"]["kernel"].reshape(
                width, width
            )
            x = x + parts[2] * out
            h = norm(x, block.get("norm_mlp"), parts[3], parts[4])
            gated = act(dense(h, block["mlp_gate"])) * dense(h, block["mlp_up"])
            x = x + parts[5] * dense(gated, block["mlp_down"])
        parts = [None, None]
        if cond is not None:
            parts = np.split(dense(act(cond), w["head"]["modulation"]), 2)
        return dense(norm(x, w["head"].get("norm"), *parts), w["head"]["logits"])

    rows = zip(np.asarray(tokens), np.asarray(t, np.float64), np.asarray(label), strict=True)
    return np.stack([one(*row) for row in rows])


@pytest.mark.parametrize(
    ("size", "vocab_size", "millions"),
    [("small", 50_257, 165.9), ("medium", 50_257, 416.2), ("small", 27, 88.7)],
)
def test_published_sizes_have_their_published_counts(size, vocab_size, millions):
    config = MD4Config.from_size(size, vocab_size)
    assert round(md4_parameter_count(config) / 1e6, 1) == millions
    assert counted(config) == md4_parameter_count(config)


@pytest.mark.parametrize(
    "fields", [{"classes": 5}, {"time_conditioning": False}, {"factored_embedding": True}]
)
def test_the_count_holds_for_every_variant(fields):
    config = MD4Config(**(SMALL | fields))
    assert counted(config) == md4_parameter_count(config)


def counted(config):
    shapes = jax.eval_shape(MD4(config).init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def test_hidden_widths_are_the_published_ones():
    widths = [MD4Config.from_size(size, 27).hidden for size in ("small", "medium")]
    assert widths == [2048, 2752]


@pytest.mark.parametrize(
    "fields",
    [
        {"classes": 5},
        {"mlp": "swiglu", "modulation": "adaln", "factored_embedding": True},
        {"mlp": "geglu"},
        {"time_conditioning": False},
    ],
)
def test_logits_are_those_of_an_independent_forward_pass(fields):
    model, params = build(**fields)
    inputs = {"t": TIMES} if model.config.time_conditioning else {}
    inputs |= {"label": LABELS} if model.config.classes else {}
    found = apply(model, params, TOKENS, **inputs)
    expected = reference(params, model.config, TOKENS, TIMES, LABELS)
    assert found.shape == (8, 6, 11) and found.dtype == jnp.float32
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_it_starts_with_flat_logits_and_the_identity():
    config = MD4Config(**(SMALL | {"dropout": 0.5, "layers": 3}))
    model = MD4(config)
    params = jax.jit(model.init)(jax.random.key(0), TOKENS)["params"]
    logits, seen = jax.jit(
        lambda p: model.apply(
            {"params": p},
            TOKENS,
            t=TIMES,
            capture_intermediates=lambda module, _: module.name == "blocks",
            mutable=["intermediates"],
        )
    )(params)
    assert not jnp.any(logits)
    streams = seen["intermediates"]["blocks"]["__call__"][0][0][-1]  # After the last layer.
    np.testing.assert_array_equal(streams, params["embedding"]["table"][TOKENS])


def test_initialization_follows_the_depth():
    def spreads(**fields):
        model = MD4(MD4Config(**(SMALL | {"features": 64, "layers": 4} | fields)))
        params = jax.jit(model.init)(jax.random.key(0), TOKENS[:1, :1])["params"]
        return {name: float(jnp.std(m["kernel"])) for name, m in params["blocks"].items()}

    def variances(found):
        return {name: found[name] ** 2 * fan_in for name, fan_in in fan_ins.items()}

    fan_ins = {"qkv": 192, "mlp_gate": 192, "mlp_down": 512}
    scaled, plain = spreads(), spreads(depth_scaled_init=False, modulation="adaln")
    assert variances(scaled) == pytest.approx(
        {"qkv": 1, "mlp_gate": 0.5, "mlp_down": 0.5}, rel=0.03
    )
    assert variances(plain) == pytest.approx({"qkv": 1, "mlp_gate": 1, "mlp_down": 1}, rel=0.03)
    assert scaled["modulation"] == 0
    assert plain["modulation"] ** 2 * 64 == pytest.approx(1, rel=0.03)


def test_time_enters_as_itself_or_as_the_noise_rate():
    model, params = build()
    at_time = apply(model, params, TOKENS, t=TIMES)
    sigma = mdm.Linear().sigma(TIMES[:-1])  # At t = 1 sigma is infinite.
    np.testing.assert_allclose(
        apply(model, params, TOKENS[:-1], sigma), at_time[:-1], rtol=0, atol=2e-3
    )
    certain = apply(model, params, TOKENS[-1:], jnp.array([jnp.inf]))
    np.testing.assert_allclose(certain, at_time[-1:], rtol=0, atol=1e-5)
    everywhere = apply(model, params, TOKENS, t=0.3)
    np.testing.assert_allclose(
        everywhere, apply(model, params, TOKENS, t=jnp.full(8, 0.3)), rtol=0, atol=1e-5
    )
    assert jnp.all(jnp.abs(everywhere - at_time).max(axis=(1, 2)) > 1e-2)


def test_it_samples_and_is_scored_like_any_model():
    model, params = build()
    process = mdm.Masked(vocab_size=11, schedule=mdm.LogLinear())
    assert process.num_ids == model.config.num_ids
    f = adapters.linen(model, params, process)
    start = process.prior(jax.random.key(0), TOKENS)
    sampled = mdm.generate(
        jax.random.key(1), mdm.denoiser(f), mdm.ancestral(process), start, mdm.time_grid(3)
    )
    assert jnp.all((sampled.tokens >= 0) & (sampled.tokens < 11))


def test_dropout_drops_whole_features_of_a_sequence():
    model, params = build(dropout=0.5, layers=1)
    params = params | {"embedding": {"table": np.zeros_like(params["embedding"]["table"])}}

    @jax.jit
    def stream(seed):
        _, seen = model.apply(
            {"params": params},
            TOKENS,
            t=TIMES,
            deterministic=False,
            rngs={"dropout": jax.random.key(seed)},
            capture_intermediates=lambda module, _: module.name == "blocks",
            mutable=["intermediates"],
        )
        return seen["intermediates"]["blocks"]["__call__"][0][0][-1]

    dead = np.asarray(stream(0) == 0.0)  # [B, L, D]: a feature is gone where both branches drop it.
    assert 0.1 < dead.mean() < 0.4
    np.testing.assert_array_equal(dead, np.broadcast_to(dead[:, :1], dead.shape))
    assert not np.array_equal(dead[0], dead[1])
    assert not np.array_equal(dead, np.asarray(stream(1) == 0.0))
    with pytest.raises(Exception, match="dropout"):
        model.apply({"params": params}, TOKENS, t=TIMES, deterministic=False)


def test_the_embedding_drops_entries():
    model, params = build(dropout=0.5, layers=1)
    params["blocks"]["modulation"] = jax.tree.map(np.zeros_like, params["blocks"]["modulation"])
    _, seen = model.apply(
        {"params": params},
        TOKENS,
        t=TIMES,
        deterministic=False,
        rngs={"dropout": jax.random.key(0)},
        capture_intermediates=lambda module, _: module.name == "embedding",
        mutable=["intermediates"],
    )
    dead = np.asarray(seen["intermediates"]["embedding"]["__call__"][0] == 0.0)
    assert 0.4 < dead.mean() < 0.6 and not np.array_equal(dead[:, 0], dead[:, 1])


def test_bfloat16_rounds_matmuls_only():
    exact_model, params = build()
    exact = apply(exact_model, params, TOKENS, t=TIMES)
    found = apply(build(dtype="bfloat16")[0], params, TOKENS, t=TIMES)
    assert found.dtype == jnp.bfloat16
    error = jnp.abs(found.astype(jnp.float32) - exact).max()
    assert 0 < error < 0.05 * jnp.abs(exact).max()


def test_remat_and_unrolling_change_nothing():
    def gradient(**fields):
        model, params = build(**fields)

        def loss(params):
            return jnp.sum(jnp.sin(model.apply({"params": params}, TOKENS, t=TIMES)))

        return jax.jit(jax.grad(loss))(params)

    expected = gradient()
    for fields in ({"remat": "attention"}, {"remat": "full", "unroll": 2}):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3),
            gradient(**fields),
            expected,
        )


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_a_batch_sharded_over_eight_devices(axis_type):
    model, params = build(classes=5, dropout=0.3)

    def run(params, tokens, t, label):
        plain = model.apply({"params": params}, tokens, t=t, label=label)
        rngs = {"dropout": jax.random.key(0)}
        noisy = model.apply(
            {"params": params}, tokens, t=t, label=label, deterministic=False, rngs=rngs
        )
        return plain, noisy

    expected = jax.jit(run)(params, TOKENS, TIMES, LABELS)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    sharding = NamedSharding(mesh, P("data"))
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, NamedSharding(mesh, P()))
        found = jax.jit(run)(placed, *jax.device_put((TOKENS, TIMES, LABELS), sharding))
    assert found[0].sharding.is_equivalent_to(sharding, found[0].ndim)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_parameters_sharded_by_the_rules():
    model, params = build(heads=2)
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    shardings = state_shardings(params, mesh, MD4_RULES)
    split = {k for k, v in shardings["blocks"].items() if not v["kernel"].is_fully_replicated}
    assert split == params["blocks"].keys()
    found = apply(model, jax.device_put(params, shardings), TOKENS, t=TIMES)
    np.testing.assert_allclose(found, apply(model, params, TOKENS, t=TIMES), rtol=1e-4, atol=1e-4)


def test_vmap_over_an_extra_leading_axis():
    model, params = build(classes=5)

    def run(tokens, t, label):
        return model.apply({"params": params}, tokens, t=t, label=label)

    split = (x.reshape(4, 2, *x.shape[1:]) for x in (TOKENS, TIMES, LABELS))
    found = jax.jit(jax.vmap(run))(*split).reshape(8, 6, 11)
    np.testing.assert_allclose(found, jax.jit(run)(TOKENS, TIMES, LABELS), rtol=1e-4, atol=1e-4)


def test_bad_inputs_are_refused_with_the_fix():
    model, params = build(classes=5)

    def call(tokens=TOKENS, sigma=None, **inputs):
        return model.apply({"params": params}, tokens, sigma, **inputs)

    with pytest.raises(ValueError, match="needs either t"):
        call(label=LABELS)
    with pytest.raises(ValueError, match="needs either t"):
        call(sigma=TIMES, t=TIMES, label=LABELS)
    with pytest.raises(ValueError, match=r"shape \(8,\); got \(8, 1\)"):
        call(t=TIMES[:, None], label=LABELS)
    with pytest.raises(ValueError, match=r"config.classes, which is 5; got label=None"):
        call(t=TIMES)
    with pytest.raises(ValueError, match=r"label must have shape \(8,\); got \(3,\)"):
        call(t=TIMES, label=LABELS[:3])
    with pytest.raises(TypeError, match="label must be integers"):
        call(t=TIMES, label=TIMES)
    with pytest.raises(ValueError, match=r"shape \[B, L\], got \(6,\); add a batch axis"):
        call(TOKENS[0], t=0.5, label=LABELS)
    timeless, weights = build(time_conditioning=False)
    with pytest.raises(ValueError, match=r"label is given, but config\.classes is 0"):
        timeless.apply({"params": weights}, TOKENS, label=LABELS)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"features": 7}, "features must be even and at least 4.*got 7"),
        ({"classes": -1}, "classes must be 0 or a positive int"),
        ({"classes": 2, "time_conditioning": False}, "classes=2 needs time_conditioning=True"),
        ({"mlp": "relu"}, "mlp must be one of .*, got 'relu'"),
        ({"modulation": "film"}, "modulation must be one of"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\)"),
        ({"layers": 0}, "layers must be a positive int, got 0"),
    ],
)
def test_bad_configs_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        MD4Config(**(SMALL | fields))
    with pytest.raises(ValueError, match="size must be one of"):
        MD4Config.from_size("XL", 27)
