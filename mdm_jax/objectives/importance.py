"""Masked diffusion with times drawn in proportion to the weight of the bound (MDLM, appendix)."""

import jax
import jax.numpy as jnp
import numpy as np

from mdm_jax import losses
from mdm_jax.arrays import Times
from mdm_jax.objectives.base import Inputs, Objective, Prepare, hide_others
from mdm_jax.processes import Masked, Noised
from mdm_jax.schedules import Schedule
from mdm_jax.times import sample_times


def importance_objective(
    process: Masked,
    *,
    low: float = 1e-3,
    change_of_variables: bool = False,
    time_conditioning: bool = False,
) -> Objective:
    r"""Masked diffusion with times of density w(t) / C on [low, 1], and the constant weight C.

    With w(t) = -alpha'(t) / (1 - alpha(t)), the integral of w is C = log((1 - alpha(1)) /
    (1 - alpha(low))), and log(1 - alpha) is uniform. The expected loss is the part of the masked
    ELBO over [low, 1], as it is with uniform times and the weight w(t); only its variance differs.
    (MDLM's `importance_sampling`, whose constant leaves out log(1 - alpha(1)).) The evaluation is
    the plain bound over all times.

    Args:
        process: the masked process. Any schedule will do.
        low: smallest time to train on.
        change_of_variables: feed the model the uniform number u itself, in [0, 1), as ``sigma`` in
            place of sigma(t). (MDLM's `change_of_variables`.) When it samples, feed it
            `importance_coordinate`. Without `time_conditioning` it changes nothing.
        time_conditioning: whether the model is told the time.

    Returns:
        `Objective`.

    Raises:
        ValueError: if `low` lies outside (0, 1).

    Examples:
        >>> import mdm_jax as mdm
        >>> process = mdm.Masked(vocab_size=4, schedule=mdm.Linear())
        >>> objective, x = importance_objective(process, low=1e-2), jnp.zeros((2, 3), jnp.int32)
        >>> _, noised = objective.prepare(jax.random.key(0), x, x == 0, jnp.int32(0))
        >>> (noised.t < 0.1).tolist()  # half of the times lie in the lower half of the logarithms
        [True, False]
    """
    constant = importance_constant(process.schedule, low)

    def told(t: Times) -> Times:
        if change_of_variables:
            return importance_coordinate(process.schedule, t, low)
        return process.schedule.sigma(t)

    def corrupted(key, tokens, where, t) -> tuple[Inputs, Noised]:
        noised = process.corrupt(key, tokens, t, where=where)
        inputs = {"tokens": noised.tokens}
        return inputs | ({"sigma": told(t)} if time_conditioning else {}), noised

    def preparing(times) -> Prepare:
        def prepare(key, tokens, where, step):
            del step
            key_time, key_noise = jax.random.split(key)
            t = times(sample_times(key_time, tokens.shape[:1]))
            return corrupted(key_noise, tokens, where, t)

        return prepare

    return Objective(
        prepare=preparing(lambda u: importance_times(process.schedule, u, low)),
        loss=lambda logits, noised: constant * losses.masked_cross_entropy(logits, noised, process),
        evaluate=lambda logits, noised: losses.masked_elbo(logits, noised, process),
        prepare_evaluation=preparing(lambda u: u),
        apart=hide_others,
    )


def importance_constant(schedule: Schedule, low: float) -> float:
    """Returns C, the integral of the schedule's weight over [low, 1]: a ratio of logarithms.

    Args:
        schedule: the noise schedule.
        low: smallest time.

    Raises:
        ValueError: if `low` lies outside (0, 1).

    Examples:
        >>> import mdm_jax as mdm
        >>> importance_constant(mdm.LogLinear(), 1e-3)  # log 1000
        6.907...
    """
    if not 0 < low < 1:
        raise ValueError(f"low={low}: expected a time in (0, 1), as the weight is infinite at 0")
    start, stop = _log_noise(schedule, low)
    return stop - start


def importance_times(schedule: Schedule, u: Times, low: float) -> Times:
    """Moves uniform numbers to times of density w(t) / C: log(1 - alpha(t)) is linear in u.

    Args:
        schedule: the noise schedule.
        u: float32 in [0, 1].
        low: smallest time, where u = 0.

    Returns:
        float32 in [low, 1], shaped like `u`.

    Raises:
        ValueError: if `low` lies outside (0, 1).

    Examples:
        >>> import mdm_jax as mdm
        >>> importance_times(mdm.Linear(), jnp.array([0.0, 0.5, 1.0]), 1e-2).round(4).tolist()
        [0.00999..., 0.0999..., 1.0]
    """
    constant = importance_constant(schedule, low)
    start, _ = _log_noise(schedule, low)
    noise = jnp.exp(start + constant * u)
    return jnp.clip(schedule.inverse_noise_rate(noise), low, 1.0)


def importance_coordinate(schedule: Schedule, t: Times, low: float) -> Times:
    """Returns the u of `importance_times`: what a model trained on changed variables is fed.

    Args:
        schedule: the noise schedule.
        t: float32 in [0, 1].
        low: smallest time of the training; earlier times are told apart no more.

    Returns:
        float32 in [0, 1], shaped like `t`.

    Raises:
        ValueError: if `low` lies outside (0, 1).

    Examples:
        >>> import mdm_jax as mdm
        >>> u = importance_coordinate(mdm.Linear(), jnp.array([0.0, 0.1, 1.0]), 1e-2)
        >>> u.round(4).tolist()
        [0.0, 0.5, 1.0]
    """
    constant = importance_constant(schedule, low)
    start, _ = _log_noise(schedule, low)
    log_noise = jnp.log(schedule.noise_rate(t))
    return jnp.clip((log_noise - start) / constant, 0.0, 1.0)


def _log_noise(schedule: Schedule, low: float) -> tuple[float, float]:
    """log(1 - alpha) at `low` and at 1, as numbers: both are static, also under `jax.jit`."""
    with jax.ensure_compile_time_eval():
        rates = schedule.noise_rate(jnp.array([low, 1.0], jnp.float32))
        start, stop = np.log(np.float64(rates))
    return float(start), float(stop)
