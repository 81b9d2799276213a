"""Threshold and factor sampling: every position of which the model is certain enough, at once."""

import jax.numpy as jnp

from mdm_jax.arrays import Bool, Logits, PerToken, last_axis_index
from mdm_jax.processes import Masked
from mdm_jax.reading import over_positions
from mdm_jax.samplers.base import Sampler
from mdm_jax.samplers.certainty import certainty
from mdm_jax.samplers.positions import best, descending, fill_chosen


def threshold(
    process: Masked, tau: float = 0.9, *, block: int | None = None, temperature: float = 1.0
) -> Sampler:
    """Fills the positions whose top probability is at least `tau`, else the one of the highest.

    Fast-dLLM's rule (Wu et al., 2025) with the order of choice and draw put right: the published
    one, which asks for the probability of the token just drawn, is `fast_dllm_threshold`. At
    temperature 0 they are the same.

    Exactness: exact in the limit tau to 1, for consistent conditionals. With ``tau=1`` a step takes
    one position, and with it those whose token is certain. A `temperature` other than 1 makes it
    another law.

    Args:
        process: a masked process.
        tau: probability in [0, 1].
        block: if given, fill a row in blocks of so many positions, from its first mask on.
        temperature: of the draw alone; 0 takes the top id.

    Returns:
        `Sampler`. One model call per step; at least one position per row and step, so the calls
        depend on the text: stop with `all_decided`.

    Raises:
        TypeError: if `process` is not masked or `block` no integer.
        ValueError: if `tau` is no probability, `temperature` negative, or `block` below 1.

    Examples:
        >>> import jax, mdm_jax as mdm
        >>> process = mdm.Masked(vocab_size=2, schedule=mdm.Linear())
        >>> logits = jnp.array([[9.0, 0.0], [0.0, 9.0], [0.0, 1.0], [0.0, 0.0]])
        >>> sampler, x = threshold(process, 0.9), jnp.full((4,), 2)
        >>> x, _ = sampler.step(jax.random.key(0), logits, x, sampler.init(x), 1.0, 0.5)
        >>> (x != 2).tolist()
        [True, True, False, False]
    """
    check_tau(tau)

    def choose(key, tokens, logits, candidates):
        del key, tokens
        return above(_top_doubt(process, logits), candidates, tau)

    return fill_chosen(process, choose, block=block, temperature=temperature)


def factor(
    process: Masked, f: float = 1.0, *, block: int | None = None, temperature: float = 1.0
) -> Sampler:
    """Fills the n most certain positions, n the largest with (n + 1)(1 - c_(n)) < f, at least one.

    c_(n) is the n-th highest top probability. Fast-dLLM's factor rule (Wu et al., 2025, section
    3.3): for f = 1 the argmax of the product of marginals is that of the joint law, which speaks of
    greedy decoding (``temperature=0``) only.

    Exactness: exact in the limit f to 0, for consistent conditionals. A `temperature` other than 1
    makes it another law.

    Args:
        process: a masked process.
        f: positive number; larger fills more.
        block: if given, fill a row in blocks of so many positions, from its first mask on.
        temperature: of the draw alone; 0 takes the top id.

    Returns:
        `Sampler`. One model call per step; at least one position per row and step, so the calls
        depend on the text: stop with `all_decided`.

    Raises:
        TypeError: if `process` is not masked or `block` no integer.
        ValueError: if `f` is not positive, `temperature` negative, or `block` below 1.

    Examples:
        >>> import jax, mdm_jax as mdm
        >>> process = mdm.Masked(vocab_size=2, schedule=mdm.Linear())
        >>> logits = jnp.array([[9.0, 0.0], [0.0, 2.0], [0.0, 1.0], [0.0, 0.0]])
        >>> sampler, x = factor(process), jnp.full((4,), 2)
        >>> x, _ = sampler.step(jax.random.key(0), logits, x, sampler.init(x), 1.0, 0.5)
        >>> (x != 2).tolist()
        [True, True, False, False]
    """
    if not 0 < f < float("inf"):
        raise ValueError(f"f={f}: expected a positive number")

    def choose(key, tokens, logits, candidates):
        del key, tokens
        doubts = _top_doubt(process, logits)
        order = descending(-doubts, candidates)
        number = last_axis_index(doubts.shape[-1], doubts.ndim) + 2  # n + 1
        product = number.astype(jnp.float32) * jnp.take_along_axis(doubts, order, axis=-1)
        fits = jnp.take_along_axis(candidates, order, axis=-1) & (product < f)
        # Doubts rise along the order, and so does the product: what fits is a prefix.
        return best(-doubts, candidates, jnp.maximum(jnp.sum(fits, axis=-1), 1))

    return fill_chosen(process, choose, block=block, temperature=temperature)


def above(doubts: PerToken, candidates: Bool, tau: float) -> Bool:
    """Returns the candidates with 1 - doubt >= tau, and the best one in any case, bool[*B, L]."""
    one = jnp.ones_like(candidates[..., 0], dtype=jnp.int32)
    return (candidates & (doubts <= 1.0 - tau)) | best(-doubts, candidates, one)


def check_tau(tau: float) -> None:
    """Raises ValueError unless `tau` is a probability."""
    if not 0 <= tau <= 1:
        raise ValueError(f"tau={tau}: expected a probability, in [0, 1]")


def _top_doubt(process: Masked, logits: Logits) -> PerToken:
    """One minus the top probability, float32[*B, L]."""
    return -over_positions(lambda x: certainty(process.data_logits(x), "probability"), logits)
