"""Masked diffusion: MDLM, SMDM and MD4 in continuous time."""

from typing import Literal

from mdm_jax import losses
from mdm_jax.objectives.base import Objective, hide_others, trained_late
from mdm_jax.processes import Masked


def masked_objective(
    process: Masked,
    weighting: Literal["elbo", "cross_entropy"] = "elbo",
    *,
    time_conditioning: bool = False,
    min_time: float = 0.0,
) -> Objective:
    """Masked diffusion: MDLM and SMDM ("elbo"), or the low-variance "cross_entropy".

    Args:
        process: the masked process.
        weighting: what to descend. The evaluation is the ELBO either way.
        time_conditioning: whether the model is fed sigma(t).
        min_time: smallest time to train on (1e-3 in MDLM, and SMDM's eps), which caps the weight.
            The evaluation covers all times.

    Returns:
        `Objective`.

    Raises:
        ValueError: if `weighting` is unknown or `min_time` lies outside [0, 1).

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
        loss=lambda logits, noised: descend(logits, noised, process),
        evaluate=lambda logits, noised: losses.masked_elbo(logits, noised, process),
        **trained_late(process, time_conditioning=time_conditioning, min_time=min_time),
        apart=hide_others,
    )
