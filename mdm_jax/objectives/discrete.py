"""Diffusion in T steps: the discrete-time bound, and D3PM."""

import jax
import jax.numpy as jnp
import numpy as np

from mdm_jax import losses
from mdm_jax.arrays import Bool, Key, Tokens
from mdm_jax.losses.discrete import check_steps
from mdm_jax.objectives.base import Objective, hide_others, model_inputs
from mdm_jax.processes import Masked, Noised, Process, Uniform
from mdm_jax.times import sample_times


def discrete_objective(
    process: Process, steps: int, *, time_conditioning: bool = False
) -> Objective:
    """The bound of T reverse steps: MD4's discrete loss, MDLM's at T > 0, D3PM with uniform noise.

    Times are drawn from {1/T, ..., 1}, stratified over the batch.

    Args:
        process: the masked or uniform process.
        steps: T, the number of steps.
        time_conditioning: whether the model is fed sigma(t).

    Returns:
        `Objective`, whose loss is its evaluation; `losses.constant_terms` complete the bound.

    Raises:
        TypeError: if the process is of no known family.
        ValueError: if `steps` < 1.

    Examples:
        >>> import mdm_jax as mdm
        >>> objective = discrete_objective(mdm.Masked(4, mdm.Linear()), steps=8)
        >>> x = jnp.zeros((4, 3), jnp.int32)
        >>> _, noised = objective.prepare(jax.random.key(0), x, x == 0, jnp.int32(0))
        >>> bool((noised.t * 8 == jnp.round(noised.t * 8)).all())
        True
    """
    check_steps(steps)
    if not isinstance(process, Masked | Uniform):
        raise TypeError(f"process={process!r}: expected Masked or Uniform")

    def prepare(key, tokens, where, step):
        del step
        noised = _corrupt_on_grid(key, process, steps, tokens, where)
        return model_inputs(process, noised, time_conditioning), noised

    def bound(logits, noised):
        return losses.discrete_elbo(logits, noised, process, steps)

    return Objective(prepare, bound, bound, apart=hide_others)


def d3pm_objective(process: Process, steps: int, *, time_conditioning: bool = True) -> Objective:
    """D3PM: T steps of a model that, for masked noise, may predict the mask as well.

    With masked noise there are two calls of the model: on x_t, and on the tokens at t = 0 for the
    reconstruction (they are x_0 for every schedule that starts clean). Its outputs are the pair of
    both logits. With uniform noise this is `discrete_objective`.

    Args:
        process: the masked or uniform process.
        steps: T, the number of steps.
        time_conditioning: whether the model is fed sigma(t).

    Returns:
        `Objective`, whose loss is its evaluation. What is missing to a bound is, with masked noise,
        alpha(1) log V alone (the reconstruction is part of the loss); else `losses.constant_terms`.

    Raises:
        TypeError: if the process is of no known family.
        ValueError: if `steps` < 1.

    Examples:
        >>> import mdm_jax as mdm
        >>> objective = d3pm_objective(mdm.Masked(4, mdm.LogLinear()), steps=8)
        >>> x = jnp.zeros((2, 3), jnp.int32)
        >>> inputs, noised = objective.prepare(jax.random.key(0), x, x == 0, jnp.int32(0))
        >>> logits = jnp.zeros((2, 3, 5))
        >>> len(inputs), objective.loss((logits, logits), noised).shape
        (2, (2, 3))
    """
    if not isinstance(process, Masked):
        return discrete_objective(process, steps, time_conditioning=time_conditioning)
    check_steps(steps)

    def prepare(key, tokens, where, step):
        del step
        key_start, key_noised = jax.random.split(key)
        noised = _corrupt_on_grid(key_noised, process, steps, tokens, where)
        start = process.corrupt(key_start, tokens, jnp.zeros_like(noised.t), where=where)
        inputs = (model_inputs(process, x, time_conditioning) for x in (noised, start))
        return tuple(inputs), noised

    def bound(outputs, noised):
        logits, logits_at_0 = outputs
        reconstruction = losses.d3pm_reconstruction(
            logits_at_0, noised.targets, noised.where, process
        )
        return losses.d3pm_absorbing(logits, noised, process, steps) + reconstruction

    return Objective(prepare, bound, bound, apart=hide_others)


def _corrupt_on_grid(key: Key, process: Process, steps: int, tokens: Tokens, where: Bool) -> Noised:
    """Corrupts every sequence to a time of {1/T, ..., 1}, stratified over the batch."""
    key_time, key_noise = jax.random.split(key)
    u = sample_times(key_time, tokens.shape[:1])
    # Times from a table: a compiled division may round T / T above 1. The product may round to T.
    grid = jnp.asarray(np.arange(1, steps + 1, dtype=np.float32) / np.float32(steps))
    index = jnp.minimum(jnp.floor(u * steps).astype(jnp.int32), steps - 1)
    return process.corrupt(key_noise, tokens, grid[index], where=where)
