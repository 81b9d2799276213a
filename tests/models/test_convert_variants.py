"""The DiT's variants as files: BD3-LM's extra tensors, and heads told from the ladder."""

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mdm_jax.models import DiTConfig, load
from mdm_jax.models.convert.dit import FAMILY
from mdm_jax.models.ladders import PUBLISHED, published_config


def state_of(config):
    return {
        "backbone." + name: np.full(leaf.published, 0.5, np.float32)
        for leaf in FAMILY.leaves(config)
        for name in leaf.names
    }


def test_bd3_files_hold_the_noise_levels_of_training(tmp_path):
    config = DiTConfig(num_ids=7, width=8, layers=1, heads=2, cond_dim=4)
    state = state_of(config) | {
        "sampling_eps_min": np.array(0.3, np.float32),
        "sampling_eps_max": np.array(0.8, np.float32),
    }
    save_file(state, tmp_path / "bd3.safetensors")
    model, _ = load(tmp_path / "bd3.safetensors", family="bd3lm", heads=2)
    assert model.config == config
    assert load_file(tmp_path / "bd3.safetensors").keys() == state.keys()


@pytest.mark.parametrize("family", PUBLISHED)
def test_heads_of_every_published_size_are_told_from_width_and_depth(family):
    for size in PUBLISHED[family].sizes:
        config = published_config(family, size)
        shapes = {name: leaf.published for leaf in FAMILY.leaves(config) for name in leaf.names}
        assert FAMILY.config(shapes, {}).heads == config.heads, size
        assert FAMILY.config(shapes, {}).adaln == config.adaln


def test_heads_of_other_sizes_have_to_be_named(tmp_path):
    config = DiTConfig(num_ids=7, width=8, layers=3, heads=2)
    save_file(state_of(config), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"number of heads cannot be told.*pass heads="):
        load(tmp_path / "model.safetensors")
    assert load(tmp_path / "model.safetensors", heads=2)[0].config.heads == 2
