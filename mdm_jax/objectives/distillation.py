"""Discrete consistency distillation: few-step uniform-state diffusion (Duo)."""

import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from mdm_jax import losses, relaxation
from mdm_jax.arrays import Bool, Key, Logits, PerToken, Tokens
from mdm_jax.objectives.base import Objective, corrupting, hide_others
from mdm_jax.objectives.curriculum import gaussian_schedule
from mdm_jax.processes import Noised, Process, Uniform
from mdm_jax.times import sample_times

# Stands for the logit of an id that a model forbids: a finite number, so that 0 log 0 is 0.
_FORBIDDEN = -1e30


def distillation_objective(
    gaussian_process: Uniform,
    evaluation_process: Uniform,
    *,
    time_step: Callable[[jax.Array], jax.Array],
    divergence: Literal["reverse", "forward"] = "reverse",
) -> Objective:
    r"""Teaches the model to say at time t what its teacher says at time t - dt on the same path.

    Uniform-state diffusion has no deterministic path, but the Gaussian diffusion underneath has:
    z_t and z_s are the argmax of the same noise eps at two levels, s = t - dt. The student reads
    z_t, the teacher z_s, and the loss is a divergence of their laws of x_0, without a weight:

        reverse: sum_v p_S (log p_S - log p_T),    forward: sum_v p_T (log p_T - log p_S).

    The noise is drawn without an axis of V ids: the others all share a level, so that the largest
    of them is the same id at both times.

    `prepare` gives two calls, (student, teacher), and `loss` takes their two outputs in that
    order. The trainer runs the second call on parameters of its own, the teacher's: a copy of the
    student's (or of their average) that is made at the start and again whenever `time_step`
    doubles, and frozen in between. No gradient passes through the second output. With
    `prepare_evaluation` there is one call, and `evaluate` takes its logits: the bound of the
    student under `evaluation_process`.

    Args:
        gaussian_process: `Uniform` with an `ArgmaxGaussian` schedule: the path. The published one
            is wider than the curriculum's, gamma from -4 to -1 (alpha from 0.999 to 0.006).
        evaluation_process: `Uniform` with the schedule of the bound to report.
        time_step: dt as a function of the step (int32[], traced under `jax.jit`), in (0, 1].
            See `doubling_time_step`.
        divergence: "reverse" (published as `kl-bwd`, its default) or "forward" (`kl-fwd`).

    Returns:
        `Objective`. Times are t = min(u + dt, 1) with u uniform.

    Raises:
        TypeError: if a process is not of the family asked for, or `time_step` is no function.
        ValueError: if vocabulary sizes differ or `divergence` is unknown.

    Examples:
        >>> import mdm_jax as mdm
        >>> objective = distillation_objective(
        ...     mdm.Uniform(256, mdm.ArgmaxGaussian(256, -4.0, -1.0)),
        ...     mdm.Uniform(256, mdm.LogLinear()),
        ...     time_step=doubling_time_step(),
        ... )
        >>> x = jnp.zeros((2, 3), jnp.int32)
        >>> inputs, noised = jax.eval_shape(objective.prepare, jax.random.key(0), x, x == 0, 0)
        >>> [sorted(call) for call in inputs]
        [['sigma', 'tokens'], ['sigma', 'tokens']]
    """
    schedule = gaussian_schedule(gaussian_process, evaluation_process)
    if not callable(time_step):
        raise TypeError(
            f"time_step={time_step!r}: expected a function of the step, such as "
            "doubling_time_step()"
        )
    if divergence not in ("reverse", "forward"):
        raise ValueError(f"divergence={divergence!r}: expected 'reverse' or 'forward'")

    def prepare(key: Key, tokens: Tokens, where: Bool, step: jax.Array):
        gaussian_process.check_data(tokens, where)
        key_time, key_noise = jax.random.split(key)
        dt = jnp.asarray(time_step(step), jnp.float32)
        t = jnp.clip(sample_times(key_time, tokens.shape[:1]) + dt, 0.0, 1.0)
        s = jnp.maximum(t - dt, 0.0)
        noise = relaxation.draw_largest(
            key_noise, tokens, gaussian_process.vocab_size, count=1, ids=1
        )

        def call(time):
            level = schedule.signal(time), schedule.noise_scale(time)
            z = jnp.where(where, relaxation.winner(tokens, noise, *level), tokens)
            return {"tokens": z, "sigma": schedule.sigma(time)}

        student, teacher = call(t), call(s)
        z = student["tokens"]
        return (student, teacher), Noised(z, tokens, t, z != tokens, where)

    def loss(outputs: tuple[Logits, Logits], noised: Noised) -> PerToken:
        student, teacher = (_log_law(logits, noised, gaussian_process) for logits in outputs)
        teacher = jax.lax.stop_gradient(teacher)
        first, second = (student, teacher) if divergence == "reverse" else (teacher, student)
        return jnp.sum(jnp.exp(first) * (first - second), axis=-1)

    return Objective(
        prepare=prepare,
        loss=loss,
        evaluate=lambda logits, noised: losses.uniform_elbo(logits, noised, evaluation_process),
        prepare_evaluation=corrupting(evaluation_process, time_conditioning=True),
        apart=hide_others,
    )


def doubling_time_step(steps: int = 512, every: int = 10_000) -> Callable[[jax.Array], jax.Array]:
    """A time step that starts at 1 / steps and doubles every so many training steps (Duo).

    Args:
        steps: of the sampler that the teacher of the first round stands for.
        every: training steps to a round. The teacher is to be renewed as often.

    Returns:
        ``step -> dt``, int32[] to float32[]: 2^(step // every) / steps, at most 1.

    Raises:
        ValueError: if a number is below 1.

    Examples:
        >>> dt = doubling_time_step(steps=8, every=100)
        >>> [float(dt(jnp.int32(step))) for step in (0, 99, 100, 250, 10_000)]
        [0.125, 0.125, 0.25, 0.5, 1.0]
    """
    if not (steps >= 1 and every >= 1):
        raise ValueError(f"steps={steps}, every={every}: expected numbers of at least 1")
    most = math.ceil(math.log2(steps))  # doublings after which dt is 1

    def time_step(step: jax.Array) -> jax.Array:
        doublings = jnp.minimum(jnp.asarray(step) // every, most).astype(jnp.int32)
        return jnp.minimum(jnp.ldexp(jnp.float32(1.0), doublings) / steps, 1.0)

    return time_step


def _log_law(logits: Logits, noised: Noised, process: Process) -> jax.Array:
    """Log of p(x_0 | .), float32[B, L, W], finite; uniform and inert outside `where`."""
    if logits.shape[:-1] != noised.tokens.shape:
        raise ValueError(
            f"logits have shape {logits.shape} and tokens {noised.tokens.shape}: expected logits "
            "[*B, L, V] over tokens [*B, L]"
        )
    logits = process.data_logits(jnp.where(noised.where[..., None], logits, 0))
    return jax.nn.log_softmax(jnp.maximum(logits, _FORBIDDEN), axis=-1)
