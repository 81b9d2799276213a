"""Published decoding rules that draw first and choose by the token drawn: biased, for comparison.

Committing a position because a probable token happened to be drawn there throws improbable tokens
away. With a perfect model, one position per step and temperature 1, on random joint laws over four
positions of three ids, the law of such a sampler is at a total variation of 0.4 to 0.5 from the
model's and lacks 0.8 to 1.5 of its 2.7 to 4 nats of entropy, where that of `confidence` is exact.
More steps do not help: these rules are heuristic. At temperature 0 nothing is drawn. Then they are
the published greedy decoding, and equal to `confidence` and `threshold` at temperature 0.

Two things differ from the published code throughout. Rows are independent: SMDM and Dream count
over the whole batch, and SMDM also ranks over it. And probabilities are compared in float32 by
their distance from 1, rather than in bfloat16 (LLaDA) or float64.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mdm_jax.arrays import Bool, Logits, PerToken
from mdm_jax.processes import Masked
from mdm_jax.processes.base import align
from mdm_jax.reading import over_positions
from mdm_jax.samplers.base import Sampler
from mdm_jax.samplers.certainty import Certainty, certainty, doubt
from mdm_jax.samplers.positions import Walk, best, check_temperature, draw_everywhere, fill_best
from mdm_jax.samplers.quotas import ByTime, Even, PerStep, Quota
from mdm_jax.samplers.threshold import above, check_tau


def llada_low_confidence(
    process: Masked,
    steps: int | None = None,
    *,
    block: int | None = None,
    temperature: float = 0.0,
) -> Sampler:
    """LLaDA's "low-confidence remasking": draws all, commits the most probable draws.

    A row's masks are split evenly over `steps`, the remainder first, and so are those of each
    `block` if blocks are given. Confidence is the probability at temperature 1 of what was drawn at
    `temperature`.

    Exactness: heuristic. Above temperature 0 the law is sharpened, at any number of steps: see the
    head of `mdm_jax.samplers.legacy`. Draw after choosing instead: `confidence`.

    Args:
        process: a masked process.
        steps: steps per block, or for the whole row without blocks: walk with as many times the
            number of blocks. None takes the walk's own steps, without blocks and on a uniform grid.
        block: LLaDA's block_length, counted from the row's first mask.
        temperature: of the draw; 0 takes the top id.

    Returns:
        `Sampler`. One model call per step.

    Raises:
        TypeError: if `process` is not masked or a count no integer.
        ValueError: if a count is below 1 or `temperature` negative, or `block` comes without
            `steps`.

    Examples:
        >>> import mdm_jax as mdm
        >>> process = mdm.Masked(vocab_size=2, schedule=mdm.Linear())
        >>> model = mdm.denoiser(lambda tokens, t: jnp.array([[0.0, 1.0], [5.0, 0.0], [0.0, 2.0]]))
        >>> sampler = llada_low_confidence(process, steps=2)
        >>> mdm.trajectory(
        ...     jax.random.key(0), model, sampler, jnp.full((3,), 2), mdm.time_grid(2)).tolist()
        [[2, 0, 1], [1, 0, 1]]
    """
    if steps is None and block is not None:
        raise ValueError(f"block={block} without steps: say how many steps every block has")
    quota = ByTime("ceil") if steps is None else Even(steps)
    return _draw_first(process, quota, block=block, temperature=temperature)


def smdm_greedy(process: Masked, *, temperature: float = 0.0) -> Sampler:
    """SMDM's "greddy": draws all, commits floor(masks (1 - s / t)) of the most probable draws.

    Confidence is the probability at temperature 1 of what was drawn at `temperature`.

    Exactness: heuristic, like `llada_low_confidence`.

    Args:
        process: a masked process.
        temperature: of the draw; 0 takes the top id.

    Returns:
        `Sampler`. One model call per step. (The published code does this to the batch as if it were
        one long row; ``step(key, logits.reshape(-1, V), tokens.reshape(-1), ...)`` is that.)

    Raises:
        TypeError: if `process` is not masked.
        ValueError: if `temperature` is negative.

    Examples:
        >>> import mdm_jax as mdm
        >>> process = mdm.Masked(vocab_size=2, schedule=mdm.Linear())
        >>> model = mdm.denoiser(lambda tokens, t: jnp.array([[0.0, 1.0], [5.0, 0.0], [0.0, 2.0]]))
        >>> mdm.trajectory(
        ...     jax.random.key(0), model, smdm_greedy(process), jnp.full((3,), 2), mdm.time_grid(2)
        ... ).tolist()
        [[2, 0, 2], [1, 0, 1]]
    """
    return _draw_first(process, ByTime("floor"), temperature=temperature)


def dream_maskgit_plus(process: Masked, *, temperature: float = 0.0) -> Sampler:
    """Dream's "maskgit_plus": as `smdm_greedy`, by the probability that it was drawn with.

    That is the probability at `temperature`, so a lower temperature also changes the order.

    Exactness: heuristic, like `llada_low_confidence`.

    Args:
        process: a masked process.
        temperature: of the draw; 0 takes the top id.

    Returns:
        `Sampler`. One model call per step.

    Raises:
        TypeError: if `process` is not masked.
        ValueError: if `temperature` is negative.

    Examples:
        >>> import mdm_jax as mdm
        >>> dream_maskgit_plus(mdm.Masked(5, mdm.Linear()), temperature=-1.0)
        Traceback (most recent call last):
        ValueError: temperature=-1.0: expected a number, 0 (greedy) or more
    """
    return _draw_first(process, ByTime("floor"), temperature=temperature, tempered=True)


def dream_topk_margin(process: Masked, *, temperature: float = 0.0) -> Sampler:
    """Dream's "topk_margin": fills floor(masks (1 - s / t)) positions of largest margin.

    The margin is of the distribution at `temperature`, not of the draw.

    Exactness: heuristic at temperature 0. Above it this rule chooses before it draws: it is
    ``confidence(process, by="margin", quota=ByTime("floor"))`` of ``tempered(model, temperature)``.

    Args:
        process: a masked process.
        temperature: of the distributions; 0 takes the top id, and margins at temperature 1.

    Returns:
        `Sampler`. One model call per step.

    Raises:
        TypeError: if `process` is not masked.
        ValueError: if `temperature` is negative.

    Examples:
        >>> import mdm_jax as mdm
        >>> process = mdm.Masked(vocab_size=2, schedule=mdm.Linear())
        >>> model = mdm.denoiser(lambda tokens, t: jnp.array([[0.0, 1.0], [5.0, 0.0], [0.0, 2.0]]))
        >>> mdm.trajectory(
        ...     jax.random.key(0), model, dream_topk_margin(process), jnp.full((3,), 2),
        ...     mdm.time_grid(3)).tolist()
        [[2, 0, 2], [2, 0, 1], [1, 0, 1]]
    """
    return _dream(process, "margin", temperature)


def dream_entropy(process: Masked, *, temperature: float = 0.0) -> Sampler:
    """Dream's "entropy": fills floor(masks (1 - s / t)) positions of lowest entropy.

    Exactness: as `dream_topk_margin`, with ``by="entropy"``.

    Args:
        process: a masked process.
        temperature: of the distributions; 0 takes the top id, and entropies at temperature 1.

    Returns:
        `Sampler`. One model call per step.

    Raises:
        TypeError: if `process` is not masked.
        ValueError: if `temperature` is negative.

    Examples:
        >>> import mdm_jax as mdm
        >>> process = mdm.Masked(vocab_size=2, schedule=mdm.Linear())
        >>> model = mdm.denoiser(lambda tokens, t: jnp.array([[0.0, 1.0], [5.0, 0.0], [0.0, 2.0]]))
        >>> mdm.trajectory(
        ...     jax.random.key(0), model, dream_entropy(process), jnp.full((3,), 2),
        ...     mdm.time_grid(3)).tolist()
        [[2, 0, 2], [2, 0, 1], [1, 0, 1]]
    """
    return _dream(process, "entropy", temperature)


def fast_dllm_threshold(
    process: Masked, tau: float = 0.9, *, block: int | None = None, temperature: float = 0.0
) -> Sampler:
    """Fast-dLLM's threshold: draws all, commits draws of probability `tau` or more, else the best.

    Confidence is the probability at temperature 1 of what was drawn at `temperature`.

    Exactness: heuristic, like `llada_low_confidence`. Draw after choosing instead: `threshold`.

    Args:
        process: a masked process.
        tau: probability in [0, 1].
        block: block length, counted from the row's first mask.
        temperature: of the draw; 0 takes the top id.

    Returns:
        `Sampler`. One model call per step; at least one position per row and step.

    Raises:
        TypeError: if `process` is not masked or `block` no integer.
        ValueError: if `tau` is no probability, `temperature` negative, or `block` below 1.

    Examples:
        >>> import mdm_jax as mdm
        >>> process = mdm.Masked(vocab_size=2, schedule=mdm.Linear())
        >>> model = mdm.denoiser(lambda tokens, t: jnp.array([[0.0, 1.0], [5.0, 0.0], [0.0, 2.0]]))
        >>> mdm.trajectory(
        ...     jax.random.key(0), model, fast_dllm_threshold(process, 0.85), jnp.full((3,), 2),
        ...     mdm.time_grid(2)).tolist()
        [[2, 0, 1], [1, 0, 1]]
    """
    check_tau(tau)
    return _draw_first(
        process,
        PerStep(1),
        block=block,
        temperature=temperature,
        choose=lambda doubts, candidates: above(doubts, candidates, tau),
    )


def _draw_first(
    process: Masked,
    quota: Quota,
    *,
    block: int | None = None,
    temperature: float,
    tempered: bool = False,
    choose: Callable[[PerToken, Bool], Bool] | None = None,
) -> Sampler:
    """Draws everywhere, then keeps what `choose` says, or the quota of the most probable draws."""
    walk = Walk(process, quota, block)
    temperature = check_temperature(temperature)

    def read(logits, drawn):
        logits = process.data_logits(logits)
        return doubt(_at(logits, temperature) if tempered else logits, drawn)

    def step(key, logits, tokens, state, t, s, **extra):
        candidates, open_masks = walk.candidates(tokens, state, extra.get("keep"))
        drawn = draw_everywhere(key, process, logits, tokens, temperature)
        doubts = over_positions(read, logits, drawn)
        if choose is None:
            chosen = best(-doubts, candidates, walk.count(candidates, state, t, s))
        else:
            chosen = choose(doubts, candidates)
        chosen = chosen | (open_masks & align(jnp.asarray(s) <= 0, tokens))
        after = jnp.where(chosen, drawn, tokens)
        return after, walk.next(candidates, chosen, state)

    return Sampler(init=walk.start, step=step, idle=walk.idle)


def _dream(process: Masked, by: Certainty, temperature: float) -> Sampler:
    def score(key, tokens, logits):
        del key, tokens
        return over_positions(
            lambda x: certainty(_at(process.data_logits(x), temperature), by), logits
        )

    return fill_best(process, score, ByTime("floor"), temperature=temperature)


def _at(logits: Logits, temperature: float) -> jax.Array:
    """Logits at a temperature; unchanged at 0, where the published code reads them as they are."""
    return logits / temperature if temperature > 0 else logits
