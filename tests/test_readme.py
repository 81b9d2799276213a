"""The README's Python runs as it stands, for both processes, once a model is given."""

import pathlib
import re

import jax
import jax.numpy as jnp
import pytest

import mdm_jax as mdm

README = (pathlib.Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)


def model_apply(params, tokens, t):
    """257 columns for masked diffusion, which embeds a mask; uniform reads the first 256."""
    hidden = params["embedding"][tokens] * jnp.cos(t)[:, None, None]
    return hidden @ params["head"]


@pytest.mark.parametrize("family", ["masked", "uniform"])
def test_training_and_sampling_examples(family):
    names = {"model_apply": model_apply}
    for block in BLOCKS:
        exec(block, names)
    if family == "uniform":
        names["process"] = mdm.Uniform(vocab_size=256, schedule=mdm.LogLinear())
    keys = jax.random.split(jax.random.key(0), 3)
    params = {
        "embedding": jax.random.normal(keys[0], (257, 8)),
        "head": jax.random.normal(keys[1], (8, 257)),
    }
    x = jax.random.randint(keys[2], (4, 16), 0, 256)
    where = jnp.arange(16).reshape(1, 16) < jnp.array([[16], [9], [4], [0]])
    loss, gradient = jax.value_and_grad(
        lambda p: names["loss_fn"](p, jax.random.key(1), x, where).mean()
    )(params)
    assert 0 < float(loss) < 100 and bool(jnp.isfinite(gradient["head"]).all())
    text = jax.jit(names["sample"])(params, jax.random.key(2), x, where)
    assert bool(jnp.where(where, text == x, (text >= 0) & (text < 256)).all())
