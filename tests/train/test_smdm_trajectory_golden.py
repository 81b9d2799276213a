"""Five optimizer steps of SMDM's published trainer, from its weights and its noise.

Gradients of RMSNorm, SwiGLU and the interleaved attention are in it, and that its loss (cross
entropy over the masking probability p, summed and divided by all tokens) is the masked ELBO of the
linear schedule at time p. The first learning rate is 0, as published.
"""

import goldens
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mdm_jax as mdm
from mdm_jax.models import SMDM, SMDMConfig
from mdm_jax.models.convert.smdm import smdm_params, smdm_state_dict
from mdm_jax.train.optimizers import adamw
from mdm_jax.train.state import create_state
from mdm_jax.train.step import jit_train_step

MODEL = SMDM(SMDMConfig(vocab_size=96, width=64, layers=2, heads=4, hidden=176))
PROCESS = mdm.Masked(vocab_size=96, schedule=mdm.Linear())
ADAM = {"b1": 0.9, "b2": 0.95, "eps": 1e-8, "weight_decay": 0.1, "clip": 1.0, "moments": "float32"}


@pytest.fixture(scope="module")
def data():
    return goldens.load("smdm_train")


def test_the_published_loss_is_the_linear_schedule_s_bound(data):
    tokens, masked = data["input_ids"][0], data["mask_indices"][0].astype(bool)
    noised = mdm.Noised(
        jnp.asarray(data["noisy_input"][0]),
        jnp.asarray(tokens),
        jnp.asarray(data["p_mask"][0]),
        jnp.asarray(masked),
        jnp.ones(tokens.shape, bool),
    )
    nats = mdm.masked_elbo(jnp.asarray(data["fixed.logits"]), noised, PROCESS)
    np.testing.assert_allclose(nats, data["fixed.per_token"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(nats.mean(), data["fixed.loss"], rtol=1e-5)


def test_five_steps_of_the_published_trainer(data):
    initial = {
        name: value
        for name, value in goldens.load("smdm_transencoder").items()
        if name.startswith(("transformer.", "lm_head."))
    }
    params = jax.tree.map(jnp.asarray, smdm_params(initial, MODEL.config))
    stored = [jnp.asarray(data[name]) for name in ("noisy_input", "p_mask", "mask_indices")]

    def prepare(key, tokens, where, step):
        noisy, p, masked = (array[step] for array in stored)
        return {"tokens": noisy}, mdm.Noised(noisy, tokens, p, masked.astype(bool), where)

    rates = jnp.asarray(data["lr"], jnp.float32)
    optimizer = adamw(ADAM, lambda step: rates[step])
    state = create_state(jax.random.key(0), lambda _: params, optimizer, ema=False)
    step = jit_train_step(
        apply=lambda params, inputs, _: MODEL.apply({"params": params}, **inputs),
        objective=mdm.masked_objective(PROCESS)._replace(prepare=prepare),
        optimizer=optimizer,
        seed=0,
        ema_decay=0.0,
    )
    losses, norms = [], []
    for tokens in data["input_ids"]:
        state, metrics = step(state, {"tokens": tokens, "where": np.ones(tokens.shape, bool)})
        losses.append(metrics["loss"].mean())
        norms.append(metrics["grad_norm"])
    np.testing.assert_allclose(losses, data["loss"], rtol=1e-5)
    np.testing.assert_allclose(norms, data["grad_norm"], rtol=1e-4)
    final = smdm_state_dict(state.params, MODEL.config)
    stored_final = {k: v for k, v in data.items() if k.startswith("final.")}
    assert len(stored_final) == 4
    for name, value in stored_final.items():
        found = final[name.removeprefix("final.")]
        np.testing.assert_allclose(found, value, rtol=0, atol=1e-5, err_msg=name)
