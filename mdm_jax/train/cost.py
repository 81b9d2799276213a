"""What a training step costs, from its config: for MFU, rooflines and plans."""

from typing import Any

import jax
import jax.numpy as jnp

from mdm_jax.models.flops import Flops, call_flops
from mdm_jax.train.learners import Learner


def step_flops(learner: Learner, phase: int = -1) -> Flops:
    """Returns the FLOPs of one optimizer step on the global batch, forward and backward.

    What the model is called on is what the objective prepares: two streams, two calls, relaxed
    tokens and a teacher's forward pass are counted as they are. Recomputation is not: this is what
    MFU divides by time and peak, `Flops.total` with attention, `Flops.without_attention` without.

    Args:
        learner: from `build_learner`; nothing is computed.
        phase: index in ``learner.family.objectives``, the last by default.

    Examples:
        With the learner of ``configs/quickstart.py``, 64 windows of 256::

            step_flops(learner).total == 3 * 64 * 256 * flops_per_token(config, 256)  # True
    """
    rows, length = learner.config["train"]["batch_size"], learner.config["data"]["length"]
    shape = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    where = jax.ShapeDtypeStruct((rows, length), jnp.bool_)
    key = jax.eval_shape(lambda: jax.random.key(0))
    step = jax.ShapeDtypeStruct((), jnp.int32)
    prepare = learner.family.objectives[phase][1].prepare
    inputs, _ = jax.eval_shape(prepare, key, shape, where, step)
    calls = inputs if isinstance(inputs, tuple) else (inputs,)
    total = Flops()
    for index, call in enumerate(calls):
        taught = learner.family.teacher_every > 0 and index == 1  # the teacher has no backward
        total = total.plus(_call(learner, call).times(1 if taught else 3))
    return total


def _call(learner: Learner, inputs: dict[str, Any]) -> Flops:
    """One forward call, its rows repeated where the noise is learned (`learned_apply`)."""
    flops = call_flops(learner.network.module.config, inputs)  # pyright: ignore
    draws = inputs["uniforms"].shape[1] if learner.family.learned_noise is not None else 1
    return flops.times(draws)
