"""Confidence sampling: fill first where the model is most certain."""

from mdm_jax.processes import Masked
from mdm_jax.reading import over_positions
from mdm_jax.samplers.base import Sampler
from mdm_jax.samplers.certainty import Certainty, certainty, check_certainty
from mdm_jax.samplers.positions import fill_best
from mdm_jax.samplers.quotas import Quota, check_quota


def confidence(
    process: Masked,
    *,
    by: Certainty = "probability",
    per_step: int = 1,
    quota: Quota | None = None,
    block: int | None = None,
    temperature: float = 1.0,
) -> Sampler:
    """Chooses the positions of which the model is most certain, then draws tokens there.

    Certainty is a number of the predictive distribution, never of the token drawn from it: that
    is what `mdm_jax.samplers.legacy` holds, and it is biased. The orders are those of MaskGIT and
    LLaDA ("probability"), of Kim et al., 2025 ("margin": top-k margin) and Dream ("entropy").

    Exactness: with one position per step, exact for consistent conditionals (some joint law has
    all of them); real masked models are consistent only approximately, and then this is another of
    their order-dependent laws. With more per step the error is the total correlation of positions
    drawn together (exact in a limit). A `temperature` other than 1 makes it another law.

    Args:
        process: a masked process.
        by: "probability" of the top id, "margin" between the first two, or "entropy".
        per_step: positions per step and row, at least 1.
        quota: instead of `per_step`: `Even` or `ByTime`, which give every row exact totals.
        block: if given, fill a row in blocks of so many positions, from its first mask on.
        temperature: of the draw alone, the order is chosen before; 0 takes the top id. To change
            both, wrap the denoiser in `tempered`.

    Returns:
        `Sampler`. One model call per step.

    Raises:
        TypeError: if `process` is not masked, or a count is no integer.
        ValueError: if `by` is unknown, a count is below 1 or `temperature` negative, or both
            `per_step` and `quota` are given.

    Examples:
        >>> import jax, jax.numpy as jnp, mdm_jax as mdm
        >>> process = mdm.Masked(vocab_size=2, schedule=mdm.Linear())
        >>> logits = jnp.array([[0.0, 1.0], [5.0, 0.0], [0.0, 0.0]])
        >>> model = mdm.denoiser(lambda tokens, t: logits)
        >>> path = mdm.trajectory(
        ...     jax.random.key(0), model, confidence(process), jnp.full((3,), 2),
        ...     mdm.time_grid(3), select=lambda before, after, logits: after == 2)
        >>> path.tolist()
        [[True, False, True], [False, False, True], [False, False, False]]
    """
    check_certainty(by)

    def score(key, tokens, logits):
        del key, tokens
        return over_positions(lambda x: certainty(process.data_logits(x), by), logits)

    return fill_best(
        process, score, check_quota(per_step, quota), block=block, temperature=temperature
    )
