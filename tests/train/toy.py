"""A model of two matrices that runs on any mesh, and a batch with uneven rows."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mdm_jax.objectives import masked_objective
from mdm_jax.processes import Masked
from mdm_jax.schedules import LogLinear
from mdm_jax.train.state import create_state

VOCAB, WIDTH, ROWS, LENGTH = 5, 16, 16, 6
PROCESS = Masked(VOCAB, LogLinear())
OBJECTIVE = masked_objective(PROCESS)


def init(key):
    keys = jax.random.split(key, 2)
    return {
        "embed": {"kernel": 0.5 * jax.random.normal(keys[0], (PROCESS.num_ids, WIDTH))},
        "head": {"kernel": 0.5 * jax.random.normal(keys[1], (WIDTH, PROCESS.num_ids))},
    }


def apply(params, inputs, dropout_key):
    """Every position sees itself and the mean of its row."""
    one_hot = jax.nn.one_hot(inputs["tokens"], PROCESS.num_ids)
    hidden = jnp.einsum("blv,vd->bld", one_hot, params["embed"]["kernel"])
    hidden = jax.nn.gelu(hidden + hidden.mean(1, keepdims=True))
    return jnp.einsum("bld,dv->blv", hidden, params["head"]["kernel"])


def batch(seed=0):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, LENGTH + 1, ROWS)
    return {
        "tokens": rng.integers(0, VOCAB, (ROWS, LENGTH)).astype(np.int32),
        "where": np.arange(LENGTH)[None, :] < lengths[:, None],
    }


OPTIMIZER = optax.sgd(0.5)
SETTINGS = {
    "apply": apply,
    "objective": OBJECTIVE,
    "optimizer": OPTIMIZER,
    "seed": 7,
    "ema_decay": 0.9,
}


def state():
    return create_state(jax.random.key(0), init, OPTIMIZER, ema=True)
