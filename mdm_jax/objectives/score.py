"""SEDD: a network that predicts the concrete score, trained by score entropy."""

from mdm_jax import losses
from mdm_jax.losses.score import check_survival
from mdm_jax.objectives.base import Objective, hide_others, trained_late
from mdm_jax.processes import Masked, Process, Uniform


def sedd_objective(process: Process, *, min_time: float = 0.0) -> Objective:
    """Score entropy of the published parameterization, always conditioned on sigma(t).

    The scale of a score depends on the time, so that a model which is not told the time cannot
    learn one. Sample with `analytic`.

    Args:
        process: the masked or uniform process.
        min_time: smallest time to train on (1e-3 as published); the evaluation covers all times.

    Returns:
        `Objective`, whose inputs always hold ``sigma``.

    Raises:
        TypeError: if the process is of no known family.
        ValueError: if `min_time` lies outside [0, 1), or for uniform noise that ends with nothing
            surviving, where sigma is infinite.

    Examples:
        >>> import jax, jax.numpy as jnp, mdm_jax as mdm
        >>> objective = sedd_objective(mdm.Masked(vocab_size=4, schedule=mdm.LogLinear()))
        >>> x = jnp.zeros((2, 3), jnp.int32)
        >>> inputs, _ = objective.prepare(jax.random.key(0), x, x == 0, jnp.int32(0))
        >>> sorted(inputs)
        ['sigma', 'tokens']
    """
    if not isinstance(process, Masked | Uniform):
        raise TypeError(f"process={process!r}: expected Masked or Uniform")
    if isinstance(process, Uniform):
        check_survival(process)

    def bound(logits, noised):
        scores = losses.sedd_log_scores(logits, noised.tokens, noised.t, process)
        return losses.score_entropy(scores, noised, process)

    return Objective(
        loss=bound,
        evaluate=bound,
        **trained_late(process, time_conditioning=True, min_time=min_time),
        apart=hide_others,
    )
