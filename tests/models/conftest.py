"""A small DiT with every parameter drawn at random, as at initialization many are zero."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdm_jax.models import DiT, DiTConfig

SMALL = {"num_ids": 11, "width": 16, "layers": 2, "heads": 2, "cond_dim": 8}


@pytest.fixture(scope="session")
def build():
    """Returns `build(**fields) -> (model, params)`, the small size with fields overridden."""

    def build(**fields):
        model = DiT(DiTConfig(**(SMALL | fields)))
        shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
        rng = np.random.default_rng(0)
        params = jax.tree.map(
            lambda leaf: jnp.asarray(rng.normal(0.0, 0.3, leaf.shape), jnp.float32), shapes
        )
        return model, params["params"]

    return build


@pytest.fixture(scope="session")
def tokens():
    """int32[8, 6], ids below 11."""
    return jax.random.randint(jax.random.key(2), (8, 6), 0, 11, jnp.int32)


@pytest.fixture(scope="session")
def sigma():
    """float32[8], from no noise to nearly all of it."""
    return jnp.linspace(0.0, 6.9, 8)
