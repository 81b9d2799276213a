"""The published activations through the files that people have, not through arrays in memory.

`test_dit_goldens.py` holds the other families' numbers: its models come from Lightning files.
"""

import json

import goldens
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_files
from safetensors.numpy import save_file
from torch_files import Parameter, Tensor

from mdm_jax.models import load


def weights(golden):
    return {
        name: value
        for name, value in golden.items()
        if name.startswith(("backbone.", "transformer.", "lm_head."))
    }


def hugging_face(folder, state):
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    hints = {"vocab_size": 101, "hidden_dim": 64, "n_blocks": 2, "n_heads": 4, "cond_dim": 32}
    (folder / "config.json").write_text(json.dumps(hints | {"time_conditioning": True}))
    return folder


def averages(folder, state):
    """A Lightning checkpoint whose moving averages are the golden's weights, without names."""
    buffers = {name: value for name, value in state.items() if "inv_freq" in name}
    parameters = {name: value for name, value in state.items() if name not in buffers}
    order = [name for part in ("vocab", "sigma", "blocks", "output") for name in published(part)]
    raw = {name: Tensor(np.zeros_like(value)) for name, value in parameters.items()}
    saved = {
        "state_dict": raw | {name: Tensor(value) for name, value in buffers.items()},
        "ema": {"decay": 0.9999, "shadow_params": [Parameter(parameters[k]) for k in order]},
    }
    torch_files.save(folder / "last.ckpt", saved)
    return folder / "last.ckpt"


def published(part):
    """The parameters of one part of the reference's module, in its order."""
    mlp = ("mlp.0.weight", "mlp.0.bias", "mlp.2.weight", "mlp.2.bias")
    modulation = ("adaLN_modulation.weight", "adaLN_modulation.bias")
    block = ("norm1.weight", "attn_qkv.weight", "attn_out.weight", "norm2.weight", *mlp)
    names = {
        "vocab": ["vocab_embed.embedding"],
        "sigma": [f"sigma_map.{name}" for name in mlp],
        "blocks": [f"blocks.{i}.{name}" for i in range(2) for name in (*block, *modulation)],
        "output": [
            f"output_layer.{name}"
            for name in ("norm_final.weight", "linear.weight", "linear.bias", *modulation)
        ],
    }
    return [f"backbone.{name}" for name in names[part]]


@pytest.mark.parametrize("written", [hugging_face, averages])
def test_mdlm(tmp_path, written):
    golden = goldens.load("dit_mdlm")
    path = written(tmp_path, weights(golden))
    tokens = jnp.asarray(golden["xt"], jnp.int32)
    model, params = load(path, time_conditioning=True)
    logits = jax.jit(model.apply)({"params": params}, tokens, golden["sigma"])
    np.testing.assert_allclose(logits, golden["logits_on"], rtol=0, atol=5e-5)
    model, params = load(path, time_conditioning=False)
    logits = jax.jit(model.apply)({"params": params}, tokens)
    np.testing.assert_allclose(logits, golden["logits_off"], rtol=0, atol=5e-5)


@pytest.mark.parametrize("kind", ["enc", "gpt"])
def test_smdm(tmp_path, kind):
    golden = goldens.load("smdm_transencoder")
    state = weights(golden)
    if kind == "gpt":  # The causal twin has no row for the mask.
        state["transformer.wte.weight"] = state["transformer.wte.weight"][:-1]
    torch_files.save(
        tmp_path / "iter.pth", {"model": {k: Tensor(v) for k, v in state.items()}, "step": 3}
    )
    for exact, suffix in ((True, ""), (False, "_rope_fp32")):
        model, params = load(tmp_path / "iter.pth", heads=4, rotary_bf16=exact)
        assert model.config.causal == (kind == "gpt")
        tokens = golden["x" if kind == "enc" else "x_gpt"].astype(np.int32)
        logits = jax.jit(model.apply)({"params": params}, tokens)
        np.testing.assert_allclose(logits, golden[f"{kind}.logits{suffix}"], rtol=0, atol=5e-5)
