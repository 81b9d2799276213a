"""GPT-2 against `transformers`' numbers, an independent float64 forward pass, and its own rules."""

import json
import math

import goldens
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from safetensors.numpy import save_file

from mdm_jax.models.convert.gpt2 import FAMILY
from mdm_jax.models.gpt2 import GPT2
from mdm_jax.models.gpt2_configs import GPT2_SIZES, GPT2Config, gpt2_parameter_count
from mdm_jax.models.published import load, save
from mdm_jax.train.meshes import DIT_RULES, state_shardings

CONFIG = GPT2Config(vocab_size=37, positions=10, width=24, layers=3, heads=4)


def random_state(config, prefix="transformer."):
    """A published state dict with every tensor drawn at random, biases and norms included."""
    rng = np.random.default_rng(0)
    names = [(name, leaf) for leaf in FAMILY.leaves(config) for name in leaf.names]
    return {
        prefix + name: rng.normal(0.0, 0.3, leaf.published).astype(np.float32)
        for name, leaf in names
    }


def reference(state, tokens, heads):
    """GPT-2 from published names, in float64 and one sequence at a time."""
    w = {k.removeprefix("transformer."): v.astype(np.float64) for k, v in state.items()}

    def norm(x, name):
        centered = x - x.mean(-1, keepdims=True)
        scaled = centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-5)
        return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x, name):
        return x @ w[f"{name}.weight"] + w[f"{name}.bias"]

    def gelu(x):
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    def one(row):
        x = w["wte.weight"][row] + w["wpe.weight"][: len(row)]
        layer = 0
        while f"h.{layer}.ln_1.weight" in w:
            q, k, v = np.split(
                linear(norm(x, f"h.{layer}.ln_1"), f"h.{layer}.attn.c_attn"), 3, axis=-1
            )
            out = []
            for cols in np.split(np.arange(x.shape[1]), heads):
                mixed = np.zeros((len(row), len(cols)))
                for i in range(len(row)):
                    scores = k[: i + 1, cols] @ q[i, cols] / math.sqrt(len(cols))
                    scores = np.exp(scores - scores.max())
                    mixed[i] = scores / scores.sum() @ v[: i + 1, cols]
                out.append(mixed)
            x = x + linear(np.concatenate(out, axis=-1), f"h.{layer}.attn.c_proj")
            h = gelu(linear(norm(x, f"h.{layer}.ln_2"), f"h.{layer}.mlp.c_fc"))
            x = x + linear(h, f"h.{layer}.mlp.c_proj")
            layer += 1
        return norm(x, "ln_f") @ w["wte.weight"].T

    return np.stack([one(row) for row in np.asarray(tokens)])


@pytest.fixture(scope="module")
def state():
    return random_state(CONFIG)


@pytest.fixture(scope="module")
def params(state):
    return FAMILY.params(state, CONFIG)


@pytest.fixture(scope="module")
def rows():
    return jax.random.randint(jax.random.key(1), (8, 10), 0, 37, jnp.int32)


@pytest.fixture(scope="module")
def logits(params, rows):
    return jax.jit(apply)(params, rows)


def apply(params, tokens, **fields):
    config = GPT2Config(vocab_size=37, positions=10, width=24, layers=3, heads=4, **fields)
    return GPT2(config).apply({"params": params}, tokens)


@pytest.mark.parametrize(
    ("size", "count"),
    [
        ("gpt2", 124_439_808),
        ("gpt2-medium", 354_823_168),
        ("gpt2-large", 774_030_080),
        ("gpt2-xl", 1_557_611_200),
    ],
)
def test_published_sizes_have_their_published_counts(size, count):
    config = GPT2Config.from_size(size)
    shapes = jax.eval_shape(GPT2(config).init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    assert gpt2_parameter_count(config) == count
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == count
    listed = FAMILY.leaves(config)
    assert sum(math.prod(leaf.stacked) for leaf in listed) == count
    assert {leaf.path[-1] for leaf in listed} == {
        "embedding", "positions", "kernel", "bias", "scale",
    }  # fmt: skip


def test_logits_are_those_of_transformers():
    """Weights and logits drawn by transformers' own GPT2LMHeadModel: see tests/golden/README.md."""
    golden = goldens.load("gpt2_transformers")
    state = {k.removeprefix("state."): v for k, v in golden.items() if k.startswith("state.")}
    shapes = {k.removeprefix("transformer."): v.shape for k, v in state.items()}
    assert FAMILY.recognizes(shapes)
    config = FAMILY.config(shapes, {"n_head": 4})
    params = FAMILY.params(state, config)
    found = jax.jit(GPT2(config).apply)({"params": params}, golden["tokens"])
    np.testing.assert_allclose(found, golden["logits"], rtol=0, atol=1e-4)
    assert np.abs(golden["logits"]).max() > 1


def test_live_parity_with_transformers(state, rows, logits):
    """The same against the installed transformers; `pip install 'mdm-jax[parity]'`."""
    torch = pytest.importorskip("torch", reason="parity with transformers needs torch")
    transformers = pytest.importorskip("transformers", reason="parity needs transformers")
    hints = FAMILY.hints(CONFIG)
    with torch.no_grad():
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**hints)).eval()
        tensors = {name: torch.tensor(value) for name, value in state.items()}
        tensors["lm_head.weight"] = tensors["transformer.wte.weight"]
        model.load_state_dict(tensors, strict=True)
        expected = model(torch.tensor(np.asarray(rows, np.int64))).logits.numpy()
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)


def test_transformers_reads_what_is_saved(tmp_path, params, rows, logits):
    torch = pytest.importorskip("torch", reason="parity with transformers needs torch")
    transformers = pytest.importorskip("transformers", reason="parity needs transformers")
    save(tmp_path / "saved", GPT2(CONFIG), params)
    model, report = transformers.GPT2LMHeadModel.from_pretrained(
        tmp_path / "saved", output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    with torch.no_grad():
        expected = model(torch.tensor(np.asarray(rows, np.int64))).logits.numpy()
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)


def test_logits_are_those_of_an_independent_forward_pass(state, rows, logits):
    np.testing.assert_allclose(logits, reference(state, rows, heads=4), rtol=0, atol=1e-4)


def test_a_position_sees_only_what_comes_before(params, rows, logits):
    changed = rows.at[:, 6].set((rows[:, 6] + 1) % 37)
    found = jax.jit(apply)(params, changed)
    np.testing.assert_array_equal(found[:, :6], logits[:, :6])
    assert jnp.all(jnp.abs(found - logits)[:, 6:].max(axis=-1) > 1e-3)


def test_bfloat16_rounds_matmuls_only(params, rows, logits):
    found = jax.jit(lambda p, x: apply(p, x, dtype="bfloat16"))(params, rows)
    assert found.dtype == jnp.bfloat16
    error = jnp.abs(found.astype(jnp.float32) - logits).max()
    assert 0 < error < 0.05 * jnp.abs(logits).max()


def test_remat_and_unrolling_change_nothing(params, rows):
    def gradient(**fields):
        return jax.jit(jax.grad(lambda p: jnp.sum(jnp.sin(apply(p, rows, **fields)))))(params)

    expected = gradient()
    for fields in ({"remat": "attention"}, {"remat": "full", "unroll": 3}):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3),
            gradient(**fields),
            expected,
        )


def test_initialization_is_the_published_rule():
    config = GPT2Config(vocab_size=300, positions=64, width=64, layers=8, heads=4)
    tokens = jnp.zeros((1, 1), jnp.int32)
    params = jax.jit(GPT2(config).init)(jax.random.key(0), tokens)["params"]
    deviations = {
        "embedding": 0.02, "positions": 0.02, "qkv": 0.02, "mlp_in": 0.02,
        "attention_out": 0.005, "mlp_out": 0.005,
    }  # fmt: skip
    for name, expected in deviations.items():
        array = params["blocks"][name]["kernel"] if name in params["blocks"] else params[name]
        assert abs(float(jnp.std(array)) / expected - 1) < 0.1, name
    assert not jnp.any(params["blocks"]["qkv"]["bias"])


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_a_batch_sharded_over_eight_devices(params, rows, logits, axis_type):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    sharding = NamedSharding(mesh, P("data"))
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, NamedSharding(mesh, P()))
        found = jax.jit(apply)(placed, jax.device_put(rows, sharding))
    assert found.sharding.is_equivalent_to(sharding, found.ndim)
    np.testing.assert_allclose(found, logits, rtol=1e-4, atol=1e-4)


def test_parameters_sharded_by_the_rules(params, rows, logits):
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    placed = jax.device_put(params, state_shardings(params, mesh, DIT_RULES))
    assert not placed["blocks"]["qkv"]["kernel"].sharding.is_fully_replicated
    found = jax.jit(apply)(placed, jax.device_put(rows, NamedSharding(mesh, P("data"))))
    np.testing.assert_allclose(found, logits, rtol=1e-4, atol=1e-4)


def test_vmap_over_an_extra_leading_axis(params, rows, logits):
    found = jax.jit(jax.vmap(apply, in_axes=(None, 0)))(params, rows.reshape(4, 2, 10))
    np.testing.assert_allclose(found.reshape(8, 10, 37), logits, rtol=1e-4, atol=1e-4)


def test_conversion_is_bit_identical_with_any_prefix_and_with_buffers(state, params):
    back = FAMILY.state_dict(params, CONFIG)
    assert back.keys() == state.keys()
    for name, value in state.items():
        np.testing.assert_array_equal(back[name], value)
    bare = {name.removeprefix("transformer."): value for name, value in state.items()}
    full = state | {
        "lm_head.weight": state["transformer.wte.weight"],
        "transformer.h.0.attn.bias": np.tril(np.ones((1, 1, 10, 10), bool)),
        "transformer.h.0.attn.masked_bias": np.array(-1e4, np.float32),
    }
    for other in (bare, full):
        jax.tree.map(np.testing.assert_array_equal, FAMILY.params(other, CONFIG), params)
    shapes = jax.eval_shape(GPT2(CONFIG).init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, shapes["params"])
    with pytest.raises(ValueError, match=r"lm_head.weight differs from wte.weight.*untied"):
        FAMILY.params(full | {"lm_head.weight": 2 * full["lm_head.weight"]}, CONFIG)


def test_names_follow_the_order_of_the_published_parameters(state):
    names = FAMILY.parameter_names(CONFIG)
    assert names[:4] == ["wte.weight", "wpe.weight", "h.0.ln_1.weight", "h.0.ln_1.bias"]
    assert names[4:6] == ["h.0.attn.c_attn.weight", "h.0.attn.c_attn.bias"]
    assert len(names) == len(state)


def test_a_config_is_recognized_from_shapes_and_hints():
    shapes = {name: v.shape for name, v in random_state(CONFIG, prefix="").items()}
    assert FAMILY.recognizes(shapes)
    assert FAMILY.config(shapes, FAMILY.hints(CONFIG)) == CONFIG
    with pytest.raises(ValueError, match="number of heads cannot be told"):
        FAMILY.config(shapes, {})
    with pytest.raises(ValueError, match=r"n_layer = 4, but there are 3 blocks"):
        FAMILY.config(shapes, {"n_head": 4, "n_layer": 4})
    with pytest.raises(ValueError, match=r"activation_function = 'relu'.*'gelu_new' only"):
        FAMILY.config(shapes, {"n_head": 4, "activation_function": "relu"})
    with pytest.raises(ValueError, match=r"n_inner = 100, but GPT2's MLP is 96 wide"):
        FAMILY.config(shapes, {"n_head": 4, "n_embd": 24, "n_inner": 100})


def test_published_heads_come_from_the_size():
    size = GPT2_SIZES["gpt2-large"]
    config = GPT2Config.from_size("gpt2-large")
    shapes = {n: leaf.published for leaf in FAMILY.leaves(config) for n in leaf.names}
    assert FAMILY.config(shapes, {}).heads == size["heads"] == 20


def test_bad_inputs_are_refused_with_the_fix(params):
    with pytest.raises(TypeError, match="tokens must be integers, got float32"):
        apply(params, jnp.zeros((1, 3)))
    with pytest.raises(ValueError, match=r"shape \[B, L\], got \(3,\); add a batch axis"):
        apply(params, jnp.zeros(3, jnp.int32))
    with pytest.raises(ValueError, match="11 long, but the model has learned 10 positions"):
        apply(params, jnp.zeros((1, 11), jnp.int32))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"heads": 5}, "width must be a multiple of heads; got width=24, heads=5"),
        ({"layers": 0}, "layers must be a positive int, got 0"),
        ({"dtype": "float16"}, "dtype must be one of .*, got 'float16'"),
        ({"remat": "some"}, "remat must be one of .*, got 'some'"),
    ],
)
def test_bad_configs_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        GPT2Config(**({"width": 24, "layers": 3, "heads": 4} | fields))
    with pytest.raises(ValueError, match="size must be one of"):
        GPT2Config.from_size("gpt3")


def test_a_folder_as_published_loads_and_comes_back(tmp_path, state, rows, logits):
    """The head is tied, so the file has it once; the folder's config names the heads."""
    for folder, tensors in (
        ("model", state),
        ("bare", {name.removeprefix("transformer."): value for name, value in state.items()}),
    ):
        (tmp_path / folder).mkdir()
        save_file(tensors, tmp_path / folder / "model.safetensors")
        hints = FAMILY.hints(CONFIG) | {"architectures": ["GPT2LMHeadModel"], "n_inner": None}
        (tmp_path / folder / "config.json").write_text(json.dumps(hints))
        model, params = load(tmp_path / folder)
        assert model == GPT2(CONFIG)
        np.testing.assert_array_equal(
            jax.jit(lambda p, m=model: m.apply({"params": p}, rows))(params), logits
        )
    bfloat16, _ = load(tmp_path / "model", dtype="bfloat16")
    assert bfloat16.config.dtype == "bfloat16"
