"""Objectives: what a trainer needs to train any family without knowing it.

An `Objective` is three pure functions. `prepare` turns clean tokens into what the family feeds its
model; `loss` and `evaluate` turn the model's output into per-token nats. The model itself is the
trainer's business.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from mdm_jax import losses
from mdm_jax.arrays import Bool, Key, PerToken, Tokens
from mdm_jax.processes import Masked, Noised, Process, Uniform
from mdm_jax.times import sample_times

Inputs = dict[str, jax.Array]


class Objective(NamedTuple):
    """A training objective as three pure functions.

    Attributes:
        prepare: ``(key, tokens int32[B, L], where bool[B, L], step) -> (inputs, noised)``.
            `inputs` are the model's keyword arguments (``tokens``, and ``sigma`` float32[B] for a
            model conditioned on time). Every array in both has the leading axis B, so a
            micro-batch is a slice of a prepared batch.
        loss: ``(outputs, noised) -> float32[B, L]`` nats to descend; count with `noised.where`.
        evaluate: ``(outputs, noised) -> float32[B, L]`` nats of the bound; same count.

    Examples:
        >>> import mdm_jax as mdm
        >>> objective = masked_objective(mdm.Masked(vocab_size=4, schedule=mdm.Linear()))
        >>> x = jnp.zeros((2, 3), jnp.int32)
        >>> inputs, noised = objective.prepare(jax.random.key(0), x, x == 0, jnp.int32(0))
        >>> objective.loss(jnp.zeros((2, 3, 4)), noised).shape
        (2, 3)
    """

    prepare: Callable[[Key, Tokens, Bool, jax.Array], tuple[Inputs, Noised]]
    loss: Callable[[Any, Noised], PerToken]
    evaluate: Callable[[Any, Noised], PerToken]


def masked_objective(
    process: Masked,
    weighting: Literal["elbo", "cross_entropy"] = "elbo",
    *,
    time_conditioning: bool = False,
) -> Objective:
    """Masked diffusion: MDLM and SMDM ("elbo"), or the low-variance "cross_entropy".

    Args:
        process: the masked process.
        weighting: what to descend. The evaluation is the ELBO either way.
        time_conditioning: whether the model is fed sigma(t).

    Returns:
        `Objective`.

    Raises:
        ValueError: if `weighting` is unknown.

    Examples:
        >>> import mdm_jax as mdm
        >>> process = mdm.Masked(vocab_size=4, schedule=mdm.Linear())
        >>> masked_objective(process, "cross_entropy").loss is masked_objective(process).loss
        False
    """
    if weighting not in ("elbo", "cross_entropy"):
        raise ValueError(f"weighting={weighting!r}: expected 'elbo' or 'cross_entropy'")
    descend = losses.masked_elbo if weighting == "elbo" else losses.masked_cross_entropy
    return Objective(
        prepare=_corrupting(process, time_conditioning),
        loss=lambda outputs, noised: descend(outputs, noised, process),
        evaluate=lambda outputs, noised: losses.masked_elbo(outputs, noised, process),
    )


def uniform_objective(process: Uniform) -> Objective:
    """Uniform-state diffusion (Duo, UDLM): the ELBO, with the model conditioned on sigma(t).

    Args:
        process: the uniform process.

    Returns:
        `Objective`.

    Examples:
        >>> import mdm_jax as mdm
        >>> objective = uniform_objective(mdm.Uniform(vocab_size=4, schedule=mdm.LogLinear()))
        >>> x = jnp.zeros((2, 3), jnp.int32)
        >>> inputs, _ = objective.prepare(jax.random.key(0), x, x == 0, jnp.int32(0))
        >>> sorted(inputs)
        ['sigma', 'tokens']
    """

    def bound(outputs: jax.Array, noised: Noised) -> PerToken:
        return losses.uniform_elbo(outputs, noised, process)

    return Objective(_corrupting(process, time_conditioning=True), bound, bound)


def autoregressive_objective() -> Objective:
    """The autoregressive baseline: next-token likelihood, no noise; the first token is not scored.

    Returns:
        `Objective`, whose loss is its evaluation: an exact likelihood.

    Examples:
        >>> x = jnp.zeros((2, 3), jnp.int32)
        >>> objective = autoregressive_objective()
        >>> inputs, noised = objective.prepare(jax.random.key(0), x, x == 0, jnp.int32(0))
        >>> int(noised.where.sum())
        4
    """

    def prepare(key, tokens, where, step):
        del key, step
        scored = losses.scored_by_next_token(where)
        t = jnp.zeros(tokens.shape[:1], jnp.float32)
        return {"tokens": tokens}, Noised(tokens, tokens, t, jnp.zeros_like(where), scored)

    def nll(outputs: jax.Array, noised: Noised) -> PerToken:
        return losses.autoregressive(outputs, noised.targets, noised.where)

    return Objective(prepare, nll, nll)


def _corrupting(process: Process, time_conditioning: bool):
    """A `prepare` that draws one stratified time per sequence and corrupts to it."""

    def prepare(key, tokens, where, step):
        del step
        key_time, key_noise = jax.random.split(key)
        t = sample_times(key_time, tokens.shape[:1])
        noised = process.corrupt(key_noise, tokens, t, where=where)
        inputs = {"tokens": noised.tokens}
        if time_conditioning:
            inputs["sigma"] = process.schedule.sigma(t)
        return inputs, noised

    return prepare
