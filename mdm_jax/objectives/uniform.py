"""Uniform-state diffusion: Duo and UDLM in continuous time."""

from mdm_jax import losses
from mdm_jax.objectives.base import Objective, hide_others, trained_late
from mdm_jax.processes import Uniform


def uniform_objective(process: Uniform, *, min_time: float = 0.0) -> Objective:
    """Uniform-state diffusion (Duo, UDLM): the ELBO, with the model conditioned on sigma(t).

    Args:
        process: the uniform process.
        min_time: smallest time to train on; the evaluation covers all times.

    Returns:
        `Objective`.

    Raises:
        ValueError: if `min_time` lies outside [0, 1).

    Examples:
        >>> import jax, jax.numpy as jnp, mdm_jax as mdm
        >>> objective = uniform_objective(mdm.Uniform(vocab_size=4, schedule=mdm.LogLinear()))
        >>> x = jnp.zeros((2, 3), jnp.int32)
        >>> inputs, _ = objective.prepare(jax.random.key(0), x, x == 0, jnp.int32(0))
        >>> sorted(inputs)
        ['sigma', 'tokens']
    """

    def bound(logits, noised):
        return losses.uniform_elbo(logits, noised, process)

    return Objective(
        loss=bound,
        evaluate=bound,
        **trained_late(process, time_conditioning=True, min_time=min_time),
        apart=hide_others,
    )
