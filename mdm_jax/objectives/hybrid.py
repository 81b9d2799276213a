"""Hybrid diffusion: mask and uniform noise mixed (GIDD), in continuous time."""

from typing import Literal

from mdm_jax import losses
from mdm_jax.objectives.base import Objective, hide_others, trained_late
from mdm_jax.processes import Hybrid


def hybrid_objective(
    process: Hybrid,
    weighting: Literal["elbo", "dynamic"] = "elbo",
    *,
    time_conditioning: bool = True,
    min_time: float = 0.0,
) -> Objective:
    """Hybrid diffusion (GIDD), with the model conditioned on sigma(t) by default.

    Args:
        process: the hybrid process.
        weighting: what to descend; the published models are trained with "dynamic". The evaluation
            is the ELBO either way.
        time_conditioning: whether the model is fed sigma(t) of the base schedule.
        min_time: smallest time to train on (1e-4 in GIDD), which caps the weight; the evaluation
            covers all times.

    Returns:
        `Objective`.

    Raises:
        TypeError: if the process is not hybrid.
        ValueError: if `weighting` is unknown or `min_time` lies outside [0, 1).

    Examples:
        >>> import jax, jax.numpy as jnp, mdm_jax as mdm
        >>> process = mdm.Hybrid(vocab_size=4, schedule=mdm.LogLinear(), uniform_share=0.1)
        >>> x = jnp.zeros((2, 3), jnp.int32)
        >>> prepare = hybrid_objective(process).prepare
        >>> inputs, _ = prepare(jax.random.key(0), x, x == 0, jnp.int32(0))
        >>> sorted(inputs)
        ['sigma', 'tokens']
    """
    if not isinstance(process, Hybrid):
        raise TypeError(f"process={process!r}: expected Hybrid")
    if weighting not in ("elbo", "dynamic"):
        raise ValueError(f"weighting={weighting!r}: expected 'elbo' or 'dynamic'")
    descend = losses.hybrid_elbo if weighting == "elbo" else losses.hybrid_dynamic
    return Objective(
        loss=lambda logits, noised: descend(logits, noised, process),
        evaluate=lambda logits, noised: losses.hybrid_elbo(logits, noised, process),
        **trained_late(process, time_conditioning=time_conditioning, min_time=min_time),
        apart=hide_others,
    )
