"""Published weights give the published activations, and every tensor is accounted for."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from mdm_jax.models import DiT, DiTConfig
from mdm_jax.models.convert import dit_params, dit_state_dict

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "dit_mdlm.safetensors"
MASK_ID = 100


def config(**fields):
    return DiTConfig(num_ids=101, width=64, layers=2, heads=4, cond_dim=32, **fields)


@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDEN)


@pytest.fixture
def state(golden):
    return {name: value for name, value in golden.items() if name.startswith("backbone.")}


@pytest.mark.parametrize("time_conditioning", [False, True])
def test_activations_are_those_of_the_reference(golden, state, time_conditioning):
    model = DiT(config(time_conditioning=time_conditioning))
    params = dit_params(state, model.config)
    tokens = jnp.asarray(golden["xt"], jnp.int32)
    sigma = jnp.asarray(golden["sigma"]) if time_conditioning else None

    @jax.jit
    def apply(*inputs):
        return model.apply(
            {"params": params}, *inputs, capture_intermediates=True, mutable=["intermediates"]
        )

    logits, seen = apply(tokens, sigma)
    seen = seen["intermediates"]
    suffix = "on" if time_conditioning else "off"

    def assert_close(found, name, atol, rtol=0.0):
        np.testing.assert_allclose(found, golden[f"{name}_{suffix}"], rtol=rtol, atol=atol)

    cond = seen["time"]["__call__"][0]
    assert_close(jnp.broadcast_to(cond, (3, 32)), "cond", 5e-6)
    for layer, stream in enumerate(seen["blocks"]["__call__"][0][0]):
        expected = golden[f"hidden_{suffix}.{layer}"]
        np.testing.assert_allclose(stream, expected, rtol=0, atol=5e-5)
    assert_close(logits, "logits", 5e-5)
    # The published parameterization: no mask among predictions, unmasked tokens carried over.
    predicted = jax.nn.log_softmax(logits.at[..., MASK_ID].set(-1e6), axis=-1)
    carried = jnp.where(jax.nn.one_hot(tokens, 101, dtype=jnp.bool_), 0.0, -1e6)
    assert_close(
        jnp.where((tokens == MASK_ID)[..., None], predicted, carried), "logprobs", 2e-5, rtol=2e-5
    )


def test_conversion_goes_both_ways(state):
    params = dit_params(state, config())
    back = dit_state_dict(params, config())
    assert back.keys() == state.keys()
    for name, value in state.items():
        np.testing.assert_allclose(back[name], value, rtol=1e-6, err_msg=name)
    unprefixed = {name.removeprefix("backbone."): value for name, value in back.items()}
    again = dit_params(unprefixed, config())
    jax.tree.map(np.testing.assert_array_equal, again, params)
    shapes = jax.eval_shape(DiT(config()).init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, shapes["params"])


def test_a_checkpoint_without_time_parameters(state):
    plain = {k: v for k, v in state.items() if "adaLN" not in k and "sigma_map" not in k}
    params = dit_params(plain, config(adaln=False))
    assert dit_state_dict(params, config(adaln=False)).keys() == plain.keys()


def test_every_misfit_is_named_at_once(state):
    state["backbone.extra.weight"] = np.zeros(3, np.float32)
    del state["backbone.blocks.1.norm2.weight"]
    state["backbone.blocks.0.mlp.0.bias"] = np.zeros(7, np.float32)
    with pytest.raises(ValueError) as error:
        dit_params(state, config())
    for part in (
        "missing: blocks.1.norm2.weight",
        "left over: extra.weight",
        "misshapen: blocks.0.mlp.0.bias (7,) instead of (256,)",
    ):
        assert part in str(error.value)


def test_frequencies_of_other_heads_are_refused(state):
    state["backbone.rotary_emb.inv_freq"] = state["backbone.rotary_emb.inv_freq"] * 1.1
    with pytest.raises(ValueError, match=r"rotary_emb.inv_freq is not that of DiTConfig"):
        dit_params(state, config())


def test_params_of_another_architecture_are_refused(state):
    params = dit_params(state, config())
    del params["head"]["norm"]
    with pytest.raises(ValueError, match=r"params are not those of .*: head/norm/scale differ"):
        dit_state_dict(params, config())
