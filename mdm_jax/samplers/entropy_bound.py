"""Entropy-bounded sampling: as many positions per step as a bound on their dependence allows."""

import jax
import jax.numpy as jnp

from mdm_jax.arrays import Bool, PerToken
from mdm_jax.processes import Masked
from mdm_jax.reading import over_positions
from mdm_jax.samplers.base import Sampler
from mdm_jax.samplers.certainty import (
    Certainty,
    certainty,
    check_certainty,
    entropy,
)
from mdm_jax.samplers.positions import descending, fill_chosen


def entropy_bound(
    process: Masked,
    gamma: float = 0.1,
    *,
    by: Certainty = "entropy",
    block: int | None = None,
    temperature: float = 1.0,
) -> Sampler:
    r"""Fills the largest set U of most certain positions with sum_U H - max_U H <= gamma.

    Drawing U at once from the product of its marginals differs from drawing it jointly by a KL
    divergence that is the total correlation of U, and that is at most sum_U H - max_U H nats. So
    the error of every step is at most `gamma`: a certificate, per row, if the conditionals are
    those of a joint law (EB-Sampler, Ben-Hamu et al., 2025). How many model calls that takes
    depends on the text: stop with `all_decided`.

    Exactness: exact in the limit gamma to 0, for consistent conditionals. With ``gamma=0`` a step
    takes one position, and with it those whose token is certain, so it is exact for consistent
    conditionals. A `temperature` other than 1 makes it another law, without a certificate (that of
    ``tempered(denoiser, temperature)`` has one).

    Args:
        process: a masked process.
        gamma: nats per step and row, at least 0.
        by: the order in which positions are tried: as in `confidence`.
        block: if given, fill a row in blocks of so many positions, from its first mask on.
        temperature: of the draw alone; 0 takes the top id.

    Returns:
        `Sampler`. One model call per step; at least one position per row and step.

    Raises:
        TypeError: if `process` is not masked or `block` no integer.
        ValueError: if `gamma` or `temperature` is negative, `by` unknown, or `block` below 1.

    Examples:
        >>> import mdm_jax as mdm
        >>> process = mdm.Masked(vocab_size=2, schedule=mdm.Linear())
        >>> logits = jnp.array([[9.0, 0.0], [0.0, 9.0], [0.0, 0.0], [0.0, 0.0]])
        >>> sampler, x = entropy_bound(process, 0.1), jnp.full((4,), 2)
        >>> x, _ = sampler.step(jax.random.key(0), logits, x, sampler.init(x), 1.0, 0.5)
        >>> (x != 2).tolist()
        [True, True, True, False]
    """
    check_certainty(by)
    if not gamma >= 0:
        raise ValueError(f"gamma={gamma}: expected nats, 0 or more")

    def read(logits):
        logits = process.data_logits(logits)
        entropies = entropy(logits)
        return -entropies if by == "entropy" else certainty(logits, by), entropies

    def choose(key, tokens, logits, candidates):
        del key, tokens
        scores, entropies = over_positions(read, logits)
        return within_bound(scores, entropies, candidates, gamma)

    return fill_chosen(process, choose, block=block, temperature=temperature)


def within_bound(
    scores: PerToken, entropies: PerToken, candidates: Bool, gamma: float | jax.Array
) -> Bool:
    """Returns the largest prefix of the candidates, best first, with sum H - max H <= gamma.

    Args:
        scores: float32[*B, L], the order: high scores first.
        entropies: float32[*B, L], nats.
        candidates: bool[*B, L].
        gamma: nats, at least 0.

    Returns:
        bool[*B, L], at least one position of a row that has candidates.

    Examples:
        >>> h = jnp.array([0.3, 0.1, 0.2, 0.7])
        >>> within_bound(-h, h, jnp.ones((4,), bool), 0.35).tolist()
        [True, True, True, False]
    """
    # A model's NaN is as uncertain as can be, and does not keep the others from being compared.
    entropies = jnp.where(jnp.isnan(entropies), jnp.inf, entropies)
    order = descending(scores, candidates)
    open_masks = jnp.take_along_axis(candidates, order, axis=-1)
    ordered = jnp.where(open_masks, jnp.take_along_axis(entropies, order, axis=-1), 0.0)
    # Adding h to a prefix of maximum m raises sum - max by min(h, m): no difference of large sums,
    # so that two uncertain positions never fit into gamma = 0 by rounding.
    top = jax.lax.cummax(ordered, axis=ordered.ndim - 1)
    before = jnp.concatenate([jnp.zeros_like(top[..., :1]), top[..., :-1]], axis=-1)
    excess = jnp.cumsum(jnp.minimum(ordered, before), axis=-1)
    fits = open_masks & (excess <= gamma)
    rank = jnp.argsort(order, axis=-1)
    return jnp.take_along_axis(fits, rank, axis=-1)
