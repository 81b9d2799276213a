"""The small DiTs of the golden files: one state dict serves every variant."""

import functools
import pathlib
import tempfile

import numpy as np
import torch_files
from torch_files import Tensor

from mdm_jax.models import load
from mdm_jax.processes import Masked
from mdm_jax.schedules import Linear

MASK_ID = 100
PROCESS = Masked(vocab_size=101, schedule=Linear(), mask_id=MASK_ID)
assert_logits = functools.partial(np.testing.assert_allclose, rtol=0, atol=5e-5)


def make(golden, **fields):
    """Returns the model of a golden file's sizes, loaded from a Lightning checkpoint of it."""
    state = {k: v for k, v in golden.items() if k.startswith("backbone.")}
    if not fields.get("adaln", True):
        state = {k: v for k, v in state.items() if "adaLN" not in k and "sigma_map" not in k}
    fields = {"time_conditioning": False, "causal": False} | fields
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "last.ckpt"
        torch_files.save(path, {"state_dict": {k: Tensor(v) for k, v in state.items()}})
        return load(path, **fields)
