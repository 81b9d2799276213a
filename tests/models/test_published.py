"""Published layouts load through their files, with the published logits, and are written back."""

import dataclasses
import functools
import json
import logging
import pathlib

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch_files
from safetensors.numpy import load_file, save_file
from torch_files import Tensor, stand_in

from mdm_jax.models import load, save
from mdm_jax.models.convert.families import FAMILIES, PRESETS
from mdm_jax.models.convert.files import read_checkpoint
from mdm_jax.models.convert.gpt2 import GPT2Config
from mdm_jax.models.dit import DiTConfig
from mdm_jax.models.smdm_configs import SMDMConfig

CONFIGS = {
    "dit": DiTConfig(num_ids=11, width=16, layers=2, heads=2, cond_dim=8),
    "smdm": SMDMConfig(vocab_size=10, width=16, layers=2, heads=2, hidden=24),
    "smdm_ar": SMDMConfig(vocab_size=10, width=16, layers=2, heads=2, hidden=24, causal=True),
    "gpt2": GPT2Config(vocab_size=10, positions=8, width=16, layers=2, heads=2),
}
GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
TOKENS = jnp.array([[1, 0, 9, 4]])


@functools.cache
def made(family):
    """Returns the family, a config, and a published state dict drawn at random."""
    found, config = FAMILIES[family], CONFIGS[family]
    rng = np.random.default_rng(0)
    state = {
        found.prefix + name: rng.normal(size=leaf.published).astype(np.float32)
        for leaf in found.leaves(config)
        for name in leaf.names
    }
    known = {k: v for k, v in found.buffers(config).items() if v is not None}
    return found, config, state | {found.prefix + k: v for k, v in known.items()}


def tensors(state):
    return {name: Tensor(value) for name, value in state.items()}


def hugging_face(folder, family="dit", **changes):
    found, config, state = made(family)
    folder.mkdir()
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(found.hints(config) | changes))
    return folder


def lightning(path, *, averages=None, **entries):
    """Writes a Lightning checkpoint of the DiT, whose averages are its parameters plus one."""
    found, config, state = made("dit")
    if averages is None:
        averages = [state[found.prefix + name] + 1 for name in found.parameter_names(config)]
    hidden = stand_in("omegaconf.dictconfig.DictConfig")
    node, tokenizer = stand_in("omegaconf.nodes.AnyNode"), stand_in("transformers.FastTokenizer")

    def wrap(value):
        made_of = hidden() if isinstance(value, dict) else node()
        inner = {k: wrap(v) for k, v in value.items()} if isinstance(value, dict) else value
        made_of.__dict__.update({"_content" if isinstance(value, dict) else "_val": inner})
        return made_of

    training = {"model": {"hidden_size": 16, "n_heads": 2}, "algo": {"time_conditioning": True}}
    value = {
        "state_dict": tensors(state) | {"teacher.blocks.0.norm1.weight": Tensor(np.ones(3))},
        "hyper_parameters": {"config": wrap(training), "tokenizer": tokenizer()},
        "ema": {"decay": 0.9999, "num_updates": 7, "shadow_params": [Tensor(x) for x in averages]},
        "loops": {"fit_loop": {"epoch": 0}},
        "pytorch-lightning_version": "2.2.1",
    } | entries
    torch_files.save(path, value, classes=[hidden, node, tokenizer], root=path.stem)
    return path


def sharded(folder, suffix):
    found, config, state = made("dit")
    folder.mkdir()
    names = sorted(state)
    weight_map = {}
    for i, part in enumerate((names[:7], names[7:])):
        file = f"part-{i}{suffix}"
        weight_map |= dict.fromkeys(part, file)
        values = {name: state[name] for name in part}
        if suffix == ".bin":
            torch_files.save(folder / file, tensors(values))
        else:
            save_file(values, folder / file)
    stem = "pytorch_model.bin" if suffix == ".bin" else "model.safetensors"
    (folder / f"{stem}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(found.hints(config)))
    return folder


def assert_loads(path, family, **arguments):
    """Checks that a checkpoint is the one `made`, and returns what was loaded."""
    found, config, state = made(family)
    model, params = load(path, **arguments)
    assert dataclasses.replace(model.config, heads=config.heads) == config
    jax.tree.map(np.testing.assert_array_equal, params, found.params(state, config))
    return model, params


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_of_hugging_face(tmp_path, family):
    model, params = assert_loads(hugging_face(tmp_path / "hf", family), family)
    logits = jax.jit(model.apply)({"params": params}, TOKENS, None)
    assert logits.shape[:2] == (1, 4) and jnp.isfinite(logits).all()
    assert_loads(tmp_path / "hf" / "model.safetensors", family)


@pytest.mark.parametrize("suffix", [".pth", ".bin", ".pt", ".safetensors"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_flat_file(tmp_path, family, suffix):
    _, _, state = made(family)
    path = tmp_path / f"flat{suffix}"
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch_files.save(path, tensors(state))
    assert_loads(path, family, **({"heads": 2} if family != "dit" else {}))


def test_an_unprefixed_a_nested_and_a_compiled_state_dict(tmp_path):
    _, _, state = made("dit")
    bare = {name.removeprefix("backbone."): x for name, x in state.items()}
    torch_files.save(tmp_path / "a.pth", {"model": tensors(bare), "iter_num": 3})
    assert_loads(tmp_path / "a.pth", "dit")
    compiled = {name.replace("backbone.", "backbone._orig_mod."): x for name, x in state.items()}
    torch_files.save(tmp_path / "b.ckpt", {"state_dict": tensors(compiled)})
    assert_loads(tmp_path / "b.ckpt", "dit")


def test_lightning_gives_the_averages_by_default_and_what_it_was_trained_with(tmp_path, caplog):
    found, config, state = made("dit")
    path = lightning(tmp_path / "last.ckpt")
    expected = found.params(state, config)
    model, params = load(path)
    assert not caplog.text
    assert model.config == dataclasses.replace(config, time_conditioning=True)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b + 1), params, expected)
    _, params = load(path, weights="raw")
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    with pytest.raises(ValueError, match="weights must be one of"):
        load(path, weights="best")
    lightning(path, averages=[np.ones(3, np.float32)])
    with pytest.raises(ValueError, match=r"1 moving averages for 30 parameters; weights=.raw."):
        load(path)


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_shards(tmp_path, suffix):
    folder = sharded(tmp_path / "hf", suffix)
    assert_loads(folder, "dit")
    shard = folder / f"part-1{suffix}"
    shard.rename(folder / "moved")
    with pytest.raises(FileNotFoundError, match=f"part-1{suffix}, which is not there"):
        load(folder)
    index = next(folder.glob("*.index.json"))
    index.write_text(index.read_text().replace("part-1", "../part-1"))
    with pytest.raises(ValueError, match="points outside its folder"):
        load(folder)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_is_widened_and_written_back_bit_for_bit(tmp_path, family, dtype):
    _, _, state = made(family)
    half = {name: value.astype(dtype) for name, value in state.items()}
    save_file(half, tmp_path / "half.safetensors", {"format": "pt"})
    model, params = load(tmp_path / "half.safetensors", heads=2)
    jax.tree.map(lambda x: np.testing.assert_equal(x.dtype, np.float32), params)
    save(tmp_path / "back.safetensors", model, params, like=tmp_path / "half.safetensors")
    assert same_bytes(tmp_path / "half.safetensors", tmp_path / "back.safetensors")


def same_bytes(a, b):
    return a.read_bytes() == b.read_bytes()


@pytest.mark.parametrize("family", FAMILIES)
def test_round_trips_are_bit_identical(tmp_path, family):
    original = hugging_face(tmp_path / "hf", family)
    model, params = load(original)
    save(tmp_path / "mine", model, params, tokenizer="gpt2", mask_id=10)
    assert same_bytes(original / "model.safetensors", tmp_path / "mine" / "model.safetensors")
    again, params_again = load(tmp_path / "mine")
    assert again == model
    jax.tree.map(np.testing.assert_array_equal, params, params_again)
    card = (tmp_path / "mine" / "README.md").read_text()
    assert "| tokenizer | gpt2 |" in card and "| mask id | 10 |" in card
    count = sum(x.size for x in jax.tree.leaves(params))
    assert f"{count:,} parameters" in card
    config = json.loads((tmp_path / "mine" / "config.json").read_text())
    assert config["mdm_jax"] == {"family": family, "tokenizer": "gpt2", "mask_id": 10}
    with pytest.raises(FileExistsError, match=r"model\.safetensors is there already"):
        save(tmp_path / "mine", model, params)


def test_what_a_file_holds_besides_parameters_is_written_back(tmp_path):
    """GPT-2's causal masks, and its head, which is the embedding once more."""
    _, _, state = made("gpt2")
    state = {name.removeprefix("transformer."): value for name, value in state.items()}
    state["h.0.attn.bias"] = np.tril(np.ones((1, 1, 8, 8), np.uint8))
    state["lm_head.weight"] = state["wte.weight"]
    save_file(state, tmp_path / "a.safetensors", {"format": "pt"})
    model, params = load(tmp_path / "a.safetensors", heads=2)
    save(tmp_path / "b.safetensors", model, params, like=tmp_path / "a.safetensors")
    assert same_bytes(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    dtypes = {name: "F32" for name in state if name != "h.0.attn.bias"}
    save(tmp_path / "c.safetensors", model, params, like=dtypes)
    assert load_file(tmp_path / "c.safetensors").keys() == dtypes.keys()
    with pytest.raises(ValueError, match=r"the layout to follow lacks .* wte\.weight"):
        save(
            tmp_path / "d.safetensors",
            model,
            params,
            like={"transformer.wpe.weight": "F32"},
        )


def test_presets_say_how_a_dit_is_fed(tmp_path, caplog):
    _, _, state = made("dit")
    save_file(state, tmp_path / "a.safetensors")
    fed = {name: load(tmp_path / "a.safetensors", family=name)[0].config for name in PRESETS}
    assert {name for name, c in fed.items() if c.time_conditioning} == {"duo", "sedd"}
    assert {name for name, c in fed.items() if c.causal} == {"ar"}
    with caplog.at_level(logging.WARNING):
        load(tmp_path / "a.safetensors", family="mdlm")
        assert not caplog.text
        load(tmp_path / "a.safetensors")
    assert "does not say what it was trained as: taken for masked" in caplog.text
    plain = {k: v for k, v in state.items() if "adaLN" not in k and "sigma_map" not in k}
    save_file(plain, tmp_path / "b.safetensors")
    assert load(tmp_path / "b.safetensors")[0].config.causal
    folder = hugging_face(tmp_path / "hf", time_conditioning=False)
    with pytest.raises(
        ValueError, match="config says time_conditioning = False, but a duo has True"
    ):
        load(folder, family="duo")


@pytest.mark.parametrize("said", [{"model_type": "duo"}, {"algo": {"name": "duo"}}])
def test_a_file_may_say_what_it_was_trained_as(tmp_path, said, caplog):
    folder = hugging_face(tmp_path / "hf", time_conditioning=None, causal=None, **said)
    assert load(folder)[0].config.time_conditioning
    assert not caplog.text
    (folder / "config.json").write_text(json.dumps({"causal": False}))
    assert not load(folder)[0].config.time_conditioning
    assert "does not say what it was trained as" in caplog.text


@pytest.mark.parametrize("family", FAMILIES)
def test_a_wrong_guess_of_the_family_is_an_error(tmp_path, family):
    folder = hugging_face(tmp_path / "hf", family)
    for other in [name for name in (*FAMILIES, *PRESETS) if name != family]:
        if family == "dit" and other in PRESETS:
            continue
        with pytest.raises(
            ValueError, match=f"no tensors of a {other}: they are those of {family}"
        ):
            load(folder, family=other)
    with pytest.raises(ValueError, match="unknown family 'bert'"):
        load(folder, family="bert")


def test_tensors_of_no_family(tmp_path):
    save_file({"a": np.ones(3, np.float32)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"family of these tensors \(a, ...\) cannot be told"):
        load(tmp_path / "a.safetensors")


@pytest.mark.parametrize("family", FAMILIES)
def test_missing_extra_and_misshapen_tensors_are_listed(tmp_path, family):
    found, config, state = made(family)
    state = dict(state)
    first, last = (f"{found.prefix}{found.leaves(config)[i].names[0]}" for i in (-3, -1))
    del state[first]
    state[last] = state[last][..., :-1]
    state[found.prefix + "extra"] = np.ones(1, np.float32)
    save_file(state, tmp_path / "a.safetensors")
    with pytest.raises(ValueError) as error:
        load(tmp_path / "a.safetensors", heads=2)
    bare = [x.removeprefix(found.prefix) for x in (first, last)]
    for part in (f"missing: {bare[0]}", "left over: extra", f"misshapen: {bare[1]}"):
        assert part in str(error.value)


LIES = {
    "dit": ("hidden_dim", 32, r"hidden_dim = 32, but vocab_embed\.embedding has shape \(11, 16\)"),
    "smdm": ("n_embd", 32, r"n_embd = 32, but transformer\.wte\.weight has shape \(11, 16\)"),
    "gpt2": ("n_embd", 32, r"n_embd = 32, but wte\.weight has shape \(10, 16\)"),
}


@pytest.mark.parametrize("family", LIES)
def test_a_config_that_lies_about_a_shape(tmp_path, family):
    name, value, message = LIES[family]
    with pytest.raises(ValueError, match=f"the config says {message}"):
        load(hugging_face(tmp_path / "hf", family, **{name: value}))


def test_a_config_that_lies_about_heads_or_layers(tmp_path):
    with pytest.raises(ValueError, match=r"n_heads = 4, but rotary_emb.inv_freq has shape \(4,\)"):
        load(hugging_face(tmp_path / "a", n_heads=4))
    with pytest.raises(ValueError, match=r"n_blocks = 3, but there are 2 blocks"):
        load(hugging_face(tmp_path / "b", n_blocks=3))


def test_tied_and_untied_weights(tmp_path):
    _, _, state = made("gpt2")
    untied = state | {"lm_head.weight": state["transformer.wte.weight"] + 1}
    save_file(untied, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"lm_head\.weight differs .* of an untied model"):
        load(tmp_path / "a.safetensors", heads=2)
    _, _, state = made("smdm")
    tied = {name: value for name, value in state.items() if name != "lm_head.weight"}
    save_file(tied, tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match=r"no tensors of a smdm: .*lm_head\.weight missing"):
        load(tmp_path / "b.safetensors", family="smdm", heads=2)


def test_dtypes_that_parameters_do_not_have(tmp_path):
    _, _, state = made("dit")
    bad = state | {"backbone.blocks.0.norm1.weight": np.ones(16, np.int64)}
    save_file(bad, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"blocks\.0\.norm1\.weight is int64"):
        load(tmp_path / "a.safetensors")


def test_files_that_are_not_there_or_not_clear(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        load(tmp_path / "nothing.ckpt")
    with pytest.raises(FileNotFoundError, match="holds no weights"):
        load(tmp_path)
    for name in "ab":
        save_file({"w": np.ones(1, np.float32)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(ValueError, match=r"several checkpoints \(a.safetensors, b.safetensors\)"):
        load(tmp_path)
    (tmp_path / "c.npz").write_bytes(b"")
    with pytest.raises(ValueError, match="of no kind that is read"):
        load(tmp_path / "c.npz")
    torch_files.save(tmp_path / "d.pth", {"optimizer": {"lr": 1.0}})
    with pytest.raises(ValueError, match=r"holds no state dict: .* got optimizer \(dict\)"):
        load(tmp_path / "d.pth")
    whole = stand_in("some_project.Model")
    torch_files.save(tmp_path / "e.pth", whole(), classes=[whole])
    with pytest.raises(ValueError, match=r"holds some_project\.Model and no state dict"):
        load(tmp_path / "e.pth")
    (tmp_path / "hf").mkdir()
    save_file(made("dit")[2], tmp_path / "hf" / "model.safetensors")
    (tmp_path / "hf" / "config.json").write_text("{")
    with pytest.raises(OSError, match=r"config\.json is damaged"):
        load(tmp_path / "hf")


def test_code_in_a_checkpoint_is_refused(tmp_path):
    torch_files.write_zip(tmp_path / "evil.ckpt", b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(ValueError, match=r"refused: its pickle asks for os\.system"):
        load(tmp_path / "evil.ckpt")


def test_unknown_fields_and_families_to_save_as(tmp_path):
    folder = hugging_face(tmp_path / "hf")
    assert load(folder, dtype="bfloat16", remat="full")[0].config.dtype == "bfloat16"
    with pytest.raises(ValueError, match=r"unknown fields \['width_of_head'\]"):
        load(folder, width_of_head=8)
    model, params = load(folder)
    with pytest.raises(ValueError, match="family must be one of"):
        save(tmp_path / "x", model, params, family="gpt2")
    with pytest.raises(ValueError, match="unknown dtype"):
        save(tmp_path / "x", model, params, dtype="float32")
    save(tmp_path / "x", model, params, family="mdlm")
    assert load(tmp_path / "x")[0] == model
    assert 'family="mdlm"' in (tmp_path / "x" / "README.md").read_text()
    assert read_checkpoint(tmp_path / "x").hints["mdm_jax"]["family"] == "mdlm"


@pytest.mark.parametrize("family", [*FAMILIES])
def test_the_lists_of_parameters_are_those_of_the_modules(family):
    found, config, _ = made(family)
    shapes = jax.eval_shape(found.module(config).init, jax.random.key(0), jnp.zeros((1, 1), int))
    expected = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes["params"])
    }
    assert {"/".join(leaf.path): leaf.stacked for leaf in found.leaves(config)} == expected
    assert found.owns(config) and found.names.keys() <= {f.name for f in dataclasses.fields(config)}


def test_averages_follow_the_published_order():
    """The order that the reference's list of averages has, tensor by tensor."""
    found, config, _ = made("dit")
    block = "norm1.weight attn_qkv.weight attn_out.weight norm2.weight mlp.0.weight mlp.0.bias "
    block += "mlp.2.weight mlp.2.bias adaLN_modulation.weight adaLN_modulation.bias"
    time = [f"sigma_map.mlp.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")]
    head = "norm_final.weight linear.weight linear.bias adaLN_modulation.weight"
    assert found.parameter_names(config) == [
        "vocab_embed.embedding",
        *time,
        *(f"blocks.{i}.{name}" for i in range(2) for name in block.split()),
        *(f"output_layer.{name}" for name in (head + " adaLN_modulation.bias").split()),
    ]
