import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file

from mdm_jax.train.state import create_state, ema_update


@pytest.mark.parametrize(("name", "warmup"), [("num_updates", True), ("plain", False)])
def test_ema_follows_the_reference(golden, name, warmup):
    data = load_file(golden / "ema.safetensors")
    ema = jnp.asarray(data["params"][0])
    for n in range(1, 12):
        params = jnp.asarray(data["params"][n])
        ema = ema_update(ema, params, jnp.int32(n), 0.9999, warmup=warmup)
        np.testing.assert_allclose(ema, data[f"{name}.shadow"][n - 1], atol=1e-6, rtol=1e-6)


def test_ema_decay_reaches_its_limit():
    late = ema_update(jnp.float32(1.0), jnp.float32(0.0), jnp.int32(10**6), 0.99)
    np.testing.assert_allclose(late, 0.99, rtol=1e-6)


def test_state_without_ema_evaluates_its_parameters():
    init = lambda key: {"w": jax.random.normal(key, (3,))}
    state = create_state(jax.random.key(0), init, optax.adam(1e-3), ema=False)
    assert state.ema is None
    assert state.eval_params is state.params


def test_fresh_state_can_be_donated():
    init = lambda key: {"w": jax.random.normal(key, (3,))}
    state = create_state(jax.random.key(0), init, optax.adam(1e-3), ema=True)
    moved = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)(state)
    np.testing.assert_array_equal(moved.params["w"], moved.ema["w"])
