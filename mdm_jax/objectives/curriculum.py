"""Duo's Gaussian curriculum: uniform-state diffusion trained on relaxed tokens."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from mdm_jax import draws, losses, relaxation
from mdm_jax.arrays import Bool, Key, Tokens, last_axis_index
from mdm_jax.gaussian import ArgmaxGaussian
from mdm_jax.objectives.base import Objective, corrupting, hide_others
from mdm_jax.processes import Noised, Uniform
from mdm_jax.times import sample_times

# From here on the published curriculum feeds its model the argmax, at this temperature.
_HARD = 1e-10
# How many of the largest noises enter the softmax's normalizer one by one, when few are named.
_RANKS = 32
# Logit of the other ids where a token stays clean: their softmax is exactly 0 in float32.
_NEVER = -1e9


def curriculum_objective(
    gaussian_process: Uniform,
    evaluation_process: Uniform,
    *,
    temperature: Callable[[jax.Array], jax.Array],
    top_k: int = 0,
    min_time: float = 0.0,
) -> Objective:
    r"""Duo's curriculum: the bound for z = argmax w, by a model that sees softmax(w / tau).

    w = signal(t) x_0 + noise_scale(t) eps is Gaussian diffusion of the one-hot tokens. Its argmax
    z follows the uniform process with alpha = T(gamma(t)), and the loss is `uniform_elbo` for that
    z. The model is fed the relaxed token and sigma = -log alpha. As it sees more than z, the loss
    is no bound on the likelihood while tau > 0; the evaluation is, with tokens alone. When the
    curriculum is over, train on with `uniform_objective(evaluation_process)`, as published.

    With `top_k` no array has an axis of V ids: the model is fed the `top_k` largest of the other
    ids, the clean one, and one uniformly drawn id that carries the weight of all the rest. Two
    errors of the published code are not made here: there z is x_0 whenever x_0 is among the top k,
    and the weight of the rest is lost (see `mdm_jax.relaxation`).

    Args:
        gaussian_process: `Uniform` with an `ArgmaxGaussian` schedule, to train on.
        evaluation_process: `Uniform` with the schedule of the bound to report (log-linear, as
            published).
        temperature: tau as a function of the step (int32[], traced under `jax.jit`); positive.
            See `log_linear_temperature`.
        top_k: how many of the other ids to name; 0 for relaxed tokens over all V ids.
        min_time: smallest time to train on; the evaluation covers all times.

    Returns:
        `Objective`. The model's inputs are ``sigma`` float32[B], and ``tokens`` float32[B, L, V]
        (logits of the relaxed token) or, with `top_k`, ``tokens`` int32[B, L, top_k + 2] and
        ``weights`` of the same shape. Positions outside `where` hold their clean token, which must
        be a data id, with all the weight.

    Raises:
        TypeError: if a process is not of the family asked for, or `temperature` is no function.
        ValueError: if vocabulary sizes differ, `top_k` lies outside [0, V - 2] or `min_time`
            outside [0, 1).

    Examples:
        >>> import mdm_jax as mdm
        >>> objective = curriculum_objective(
        ...     mdm.Uniform(256, ArgmaxGaussian.covering(256)),
        ...     mdm.Uniform(256, mdm.LogLinear()),
        ...     temperature=log_linear_temperature(1e-3, 1e-3, 0, 500_000),
        ...     top_k=3,
        ... )
        >>> x = jnp.zeros((2, 3), jnp.int32)
        >>> prepared = jax.eval_shape(objective.prepare, jax.random.key(0), x, x == 0, 0)
        >>> {name: array.shape for name, array in sorted(prepared[0].items())}
        {'sigma': (2,), 'tokens': (2, 3, 5), 'weights': (2, 3, 5)}
    """
    schedule = gaussian_schedule(gaussian_process, evaluation_process)
    size = gaussian_process.vocab_size
    if not callable(temperature):
        raise TypeError(
            f"temperature={temperature!r}: expected a function of the step, such as "
            "log_linear_temperature(1e-3, 1e-3, 0, 500_000)"
        )
    if not 0 <= top_k <= size - 2:
        raise ValueError(f"top_k={top_k}: expected a number from 0 to {size - 2}, two below V")
    if not 0 <= min_time < 1:
        raise ValueError(f"min_time={min_time}: expected a time in [0, 1)")

    def prepare(key: Key, tokens: Tokens, where: Bool, step: jax.Array):
        gaussian_process.check_data(tokens, where)
        key_time, key_noise = jax.random.split(key)
        t = sample_times(key_time, tokens.shape[:1], low=min_time)
        tau = jnp.asarray(temperature(step), jnp.float32)
        level = (schedule.signal(t), schedule.noise_scale(t))
        if top_k:
            z, inputs = _few_ids(key_noise, tokens, where, level, tau, size, top_k)
        else:
            z, inputs = _all_ids(key_noise, tokens, where, level, tau, size)
        z = jnp.where(where, z, tokens)
        noised = Noised(z, tokens, t, z != tokens, where)
        return inputs | {"sigma": schedule.sigma(t)}, noised

    return Objective(
        prepare=prepare,
        loss=lambda logits, noised: losses.uniform_elbo(logits, noised, gaussian_process),
        evaluate=lambda logits, noised: losses.uniform_elbo(logits, noised, evaluation_process),
        prepare_evaluation=corrupting(evaluation_process, time_conditioning=True),
        apart=hide_others,
    )


def log_linear_temperature(
    start: float, end: float, begin_step: int, end_step: int
) -> Callable[[jax.Array], jax.Array]:
    """A temperature whose logarithm is linear in the step, between two steps (Duo).

    Args:
        start: tau until `begin_step`.
        end: tau towards `end_step`.
        begin_step: where tau starts to move.
        end_step: where the curriculum ends: from here on tau is 1e-10 and the relaxed token is
            the argmax. (The published run has start = end = 1e-3 over its first 500,000 steps.)

    Returns:
        ``step -> tau``, int32[] to float32[].

    Raises:
        ValueError: if a temperature is not positive or the steps do not increase.

    Examples:
        >>> tau = log_linear_temperature(1e-1, 1e-2, 100, 200)
        >>> [f"{float(tau(jnp.int32(step))):.4f}" for step in (0, 100, 150, 200)]
        ['0.1000', '0.1000', '0.0316', '0.0000']
    """
    if not (start > 0 and end > 0):
        raise ValueError(f"start={start}, end={end}: expected positive temperatures")
    if not 0 <= begin_step < end_step:
        raise ValueError(
            f"begin_step={begin_step}, end_step={end_step}: expected 0 <= begin_step < end_step"
        )
    log_start, log_end = math.log(start), math.log(end)

    def temperature(step: jax.Array) -> jax.Array:
        step = jnp.asarray(step)
        share = (step - begin_step).astype(jnp.float32) / (end_step - begin_step)
        tau = jnp.exp(log_start + jnp.clip(share, 0.0, 1.0) * (log_end - log_start))
        return jnp.where(step >= end_step, jnp.float32(_HARD), tau)

    return temperature


def gaussian_schedule(gaussian_process: Uniform, evaluation_process: Uniform) -> ArgmaxGaussian:
    """Returns the first process' schedule after checking that the two belong together.

    Args:
        gaussian_process: to train on.
        evaluation_process: to report the bound of.

    Raises:
        TypeError: if they are no `Uniform`, or the first schedule is no `ArgmaxGaussian`.
        ValueError: if the three vocabulary sizes differ.

    Examples:
        >>> import mdm_jax as mdm
        >>> schedule = ArgmaxGaussian(256, -3.0, 0.0)
        >>> process = mdm.Uniform(256, schedule)
        >>> gaussian_schedule(process, mdm.Uniform(256, mdm.LogLinear())) == schedule
        True
    """
    for name, process in {
        "gaussian_process": gaussian_process,
        "evaluation_process": evaluation_process,
    }.items():
        if not isinstance(process, Uniform):
            raise TypeError(f"{name}={process!r}: expected a Uniform process")
    schedule = gaussian_process.schedule
    if not isinstance(schedule, ArgmaxGaussian):
        raise TypeError(
            f"gaussian_process has schedule {schedule!r}: expected ArgmaxGaussian.covering(V)"
        )
    sizes = gaussian_process.vocab_size, schedule.vocab_size, evaluation_process.vocab_size
    if len(set(sizes)) > 1:
        raise ValueError(
            f"vocab_size of gaussian_process, its schedule and evaluation_process: {sizes}; "
            "expected the same number three times"
        )
    return schedule


def _all_ids(key, tokens, where, level: tuple[jax.Array, jax.Array], tau, size):
    """z, and the relaxed tokens as logits over all ids."""
    noise = draws.normal(key, (*tokens.shape, size))
    w = relaxation.noised_one_hot(tokens, noise, *level)
    z = jnp.argmax(w, axis=-1).astype(tokens.dtype)
    at_token = last_axis_index(size, 3) == tokens[..., None]
    clean = jnp.where(at_token, 0.0, _NEVER)
    return z, {"tokens": jnp.where(where[..., None], w / tau, clean)}


def _few_ids(key, tokens, where, level: tuple[jax.Array, jax.Array], tau, size, top_k):
    """z, and the relaxed tokens as ids with weights."""
    count = min(max(_RANKS, top_k), size - 1)
    noise = relaxation.draw_largest(key, tokens, size, count=count, ids=top_k + 1)
    z = relaxation.winner(tokens, noise, *level)
    ids, weights = relaxation.relaxed_top_k(tokens, noise, *level, tau, size)
    at_token = last_axis_index(top_k + 2, 3) == top_k
    ids = jnp.where(where[..., None], ids, tokens[..., None])
    weights = jnp.where(where[..., None], weights, at_token.astype(jnp.float32))
    return z, {"tokens": ids, "weights": weights}
