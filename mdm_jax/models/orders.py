"""In which order, and how many at a time, `generate_permuted` fills a text: Eso-LM's plans.

A plan is drawn on the host before generation, as counts decide the shapes of its steps.
"""

import itertools

import jax.numpy as jnp
import numpy as np

from mdm_jax.schedules import Schedule


def eso_plan(
    rng: np.random.Generator,
    schedule: Schedule,
    shape: tuple[int, int],
    steps: int,
    *,
    alpha_0: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns Eso-LM's order and counts: diffusion first, then what it left from left to right.

    Going from t to s, each place left is filled with probability (alpha_s - alpha_t) /
    (1 - alpha_t), where alpha_t is `alpha_0` times the schedule's. The number is drawn once for all
    rows, the places for each row; steps that fill nothing are dropped, as no token changes.
    Diffusion leaves a share 1 - alpha_0 of the text, which follows one token at a time.

    Args:
        rng: A NumPy generator.
        schedule: The noise schedule.
        shape: B and L.
        steps: Steps of diffusion; at most as many are returned for it.
        alpha_0: Share of the text that diffusion fills, in [0, 1].

    Returns:
        Order int32[B, L], and counts int32[T].

    Raises:
        ValueError: If `steps` is not positive or `alpha_0` lies outside [0, 1].

    Examples:
        >>> from mdm_jax.schedules import LogLinear
        >>> order, counts = eso_plan(np.random.default_rng(0), LogLinear(), (2, 16), 4)
        >>> order.shape, int(counts.sum())
        ((2, 16), 16)
    """
    batch, length = shape
    if steps < 1 or not 0.0 <= alpha_0 <= 1.0:
        raise ValueError(
            f"steps must be positive and alpha_0 in [0, 1], got {steps} and {alpha_0}."
        )
    alphas = alpha_0 * np.asarray(schedule.alpha(jnp.linspace(1.0, 0.0, steps + 1)), np.float64)
    left, counts = length, []
    for alpha_t, alpha_s in itertools.pairwise(alphas):
        rate = (alpha_s - alpha_t) / (1.0 - alpha_t) if alpha_t < 1.0 else 0.0
        counts.append(int(rng.binomial(left, min(max(rate, 0.0), 1.0))))
        left -= counts[-1]
    order = rng.permuted(np.tile(np.arange(length, dtype=np.int32), (batch, 1)), axis=1)
    order[:, length - left :].sort(axis=1)
    counts = [count for count in counts if count] + [1] * left
    return order, np.array(counts, np.int32)


def interleaved_order(blocks: int, size: int, columns: np.ndarray | None = None) -> np.ndarray:
    """Returns an order that fills one place in each of several blocks per step.

    With counts of `blocks` for each of `size` steps, tokens drawn together are `size` places apart
    (Eso-LM's block sampler). Chunks of a longer text are such orders one after the other.

    Args:
        blocks: Blocks of the text.
        size: Places in a block.
        columns: int[size], the place in the block that each step fills; left to right by default.

    Returns:
        int32[blocks * size].

    Examples:
        >>> interleaved_order(3, 4).reshape(4, 3)
        array([[ 0,  4,  8],
               [ 1,  5,  9],
               [ 2,  6, 10],
               [ 3,  7, 11]], dtype=int32)
    """
    columns = np.arange(size) if columns is None else np.asarray(columns)
    return (columns[:, None] + size * np.arange(blocks)[None, :]).reshape(-1).astype(np.int32)
