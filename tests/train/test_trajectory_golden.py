"""Five optimizer steps of the published trainer, reproduced from its weights and its noise.

Loss, gradient, clipping, AdamW, learning rate, moving average and weight conversion are all in it:
an error in any of them shows. Tolerances are those stated with the reference numbers, whose own
float32 noise (against a float64 rerun) is at most 1.2e-5 in the weights and 3e-7 in the losses.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import mdm_jax as mdm
from mdm_jax.models.configs import DiTConfig
from mdm_jax.models.convert.dit import dit_params
from mdm_jax.models.dit import DiT
from mdm_jax.train.optimizers import adamw, learning_rate
from mdm_jax.train.state import create_state
from mdm_jax.train.step import jit_train_step

MASK = 100
MODEL = DiTConfig(num_ids=MASK + 1, width=32, layers=2, heads=4, cond_dim=16)
PROCESS = mdm.Masked(MASK, mdm.LogLinear(1e-3))
ADAM = {"b1": 0.9, "b2": 0.95, "eps": 1e-8, "weight_decay": 0.1, "clip": 1.0, "moments": "float32"}
FAST = {"schedule": "cosine", "learning_rate": 5e-3, "min_learning_rate": 5e-4, "warmup": 3}
SLOW = {"schedule": "cosine", "learning_rate": 2e-4, "min_learning_rate": 2e-5, "warmup": 100}
VARIANTS = {
    "config_lr": ("elbo", SLOW, 1000),
    "fast_elbo": ("elbo", FAST, 8),
    "fast_lowvar": ("cross_entropy", FAST, 8),
}


@pytest.fixture(scope="module")
def data(golden):
    return load_file(golden / "trajectory_mdlm.safetensors")


def weights(data, prefix):
    """One set of weights, in our layout."""
    start = f"{prefix}."
    named = {k.removeprefix(start): v for k, v in data.items() if k.startswith(start)}
    return dit_params(named, MODEL)


def replaying(objective, data):
    """The objective with its noise replaced by the stored noise of the step."""
    stored = [jnp.asarray(data[name]) for name in ("xt", "t")]

    def prepare(key, tokens, where, step):
        xt, t = (array[step] for array in stored)
        xt = xt.astype(tokens.dtype)
        return {"tokens": xt}, mdm.Noised(xt, tokens, t, xt == MASK, where)

    return objective._replace(prepare=prepare)


def trajectory(data, weighting, rates, steps, **settings):
    """Returns the final state and the records of five steps."""
    rate = learning_rate(rates, steps)
    optimizer = adamw(ADAM, rate)
    params = jax.tree.map(jnp.asarray, weights(data, "init"))
    state = create_state(jax.random.key(0), lambda _: params, optimizer, ema=True)
    model = DiT(MODEL)
    step = jit_train_step(
        apply=lambda params, inputs, _: model.apply({"params": params}, **inputs),
        objective=replaying(mdm.masked_objective(PROCESS, weighting), data),
        optimizer=optimizer,
        seed=0,
        ema_decay=0.9999,
        **settings,
    )
    records = {"loss": [], "grad_norm": [], "lr": []}
    for index in range(5):
        tokens = data["x0"][index].astype(np.int32)
        state, metrics = step(state, {"tokens": tokens, "where": np.ones(tokens.shape, bool)})
        records["loss"].append(metrics["loss"].mean())
        records["grad_norm"].append(metrics["grad_norm"])
        records["lr"].append(rate(index))
    return state, records


@pytest.mark.parametrize("variant", VARIANTS)
def test_five_steps_of_the_published_trainer(data, variant):
    state, records = trajectory(data, *VARIANTS[variant])
    for name, rtol in (("loss", 1e-5), ("grad_norm", 1e-4), ("lr", 1e-6)):
        np.testing.assert_allclose(
            records[name], data[f"{variant}.{name}"], rtol=rtol, err_msg=name
        )
    if variant == "fast_elbo":  # the one whose weights are stored in full
        close = lambda got, want: np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)
        jax.tree.map(close, state.params, weights(data, "fast_elbo.final"))
        # The reference stores its average without the rotary buffer, like its final weights.
        jax.tree.map(close, state.ema, weights(data, "fast_elbo.ema"))


def test_micro_batches_follow_it_too(data):
    _, records = trajectory(data, *VARIANTS["fast_elbo"], accumulate=3)
    np.testing.assert_allclose(records["loss"], data["fast_elbo.loss"], rtol=1e-5)
    np.testing.assert_allclose(records["grad_norm"], data["fast_elbo.grad_norm"], rtol=1e-4)
