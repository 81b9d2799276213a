"""Every config, at its real size, survives one abstract training step."""

import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import pytest

from mdm_jax import data
from mdm_jax.models.configs import DiTConfig, parameter_count
from mdm_jax.train.experiment import build
from mdm_jax.train.step import train_step

CONFIGS = sorted((pathlib.Path(__file__).parent.parent / "configs").glob("*.py"))


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_config_takes_a_step(path):
    module = load(path)
    config = module.get_config()
    for promised in ("python launch/", "Hardware:", "Expected:"):
        assert promised in module.__doc__, f"{path.name} does not say {promised}"
    # The real text and its tokenizer are not here; everything else is as the config says.
    config.data.update(source="in_memory", path="", tokenizer="byte")
    text = data.in_memory([f"{i} " * 1000 for i in range(300)])
    experiment = build(config, documents=text)
    state = jax.eval_shape(experiment.create_state)
    rows = (config.train.batch_size, config.data.length)
    batch = {
        "tokens": jax.ShapeDtypeStruct(rows, jnp.int32),
        "where": jax.ShapeDtypeStruct(rows, jnp.bool_),
    }
    new_state, metrics = jax.eval_shape(
        lambda state, batch: train_step(
            state,
            batch,
            apply=experiment.apply,
            objective=experiment.objective,
            optimizer=experiment.optimizer,
            seed=config.seed,
            ema_decay=config.ema.decay,
            accumulate=config.train.accumulate,
        ),
        state,
        batch,
    )
    assert jax.tree.map(lambda x: x.shape, new_state) == jax.tree.map(lambda x: x.shape, state)
    assert metrics["loss"].total.dtype == jnp.float32


def test_openwebtext_sizes_are_the_published_ones():
    config = load(next(p for p in CONFIGS if p.stem == "mdlm_owt")).get_config()
    model = DiTConfig.from_size(config.model.size, 50_258, adaln=config.model.adaln)
    assert parameter_count(model) == 169_627_218
