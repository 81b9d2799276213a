"""The small DiTs of the golden files: one state dict serves every variant."""

import functools

import numpy as np

from mdm_jax.models import DiT, DiTConfig
from mdm_jax.models.convert import dit_params
from mdm_jax.processes import Masked
from mdm_jax.schedules import Linear

MASK_ID = 100
PROCESS = Masked(vocab_size=101, schedule=Linear(), mask_id=MASK_ID)
assert_logits = functools.partial(np.testing.assert_allclose, rtol=0, atol=5e-5)


def make(golden, **fields):
    """Returns the model of a golden file's sizes, and the weights that such a model has."""
    table = golden["backbone.vocab_embed.embedding"]
    cond_dim = golden["backbone.sigma_map.mlp.2.bias"].size
    config = DiTConfig(
        num_ids=101, width=table.shape[1], layers=2, heads=4, cond_dim=cond_dim, **fields
    )
    state = {k: v for k, v in golden.items() if k.startswith("backbone.")}
    if not config.adaln:
        state = {k: v for k, v in state.items() if "adaLN" not in k and "sigma_map" not in k}
    return DiT(config), dit_params(state, config)
