"""The analytic sampler of SEDD, also called Tweedie tau-leaping: one step of a concrete score."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mdm_jax import draws
from mdm_jax.arrays import Logits, Times, Tokens, last_axis_index
from mdm_jax.losses.score import check_survival, log_odds, sedd_log_scores
from mdm_jax.processes import Masked, Process, Uniform
from mdm_jax.processes.base import align, check_times
from mdm_jax.reading import draw_beside
from mdm_jax.samplers.base import Sampler

LogScores = Callable[[Logits, Tokens, Times, Process], Logits]


def analytic(process: Process, log_scores: LogScores = sedd_log_scores) -> Sampler:
    """Undoes the noise between s and t for every position by itself (SEDD, section 4.2).

    The score at t is carried back to s exactly, since the noise is linear, and multiplied by the
    probability of the noise that leads from there to x_t. The step to s = 0 is the published
    denoising step: masked noise leaves no mask, uniform noise is undone whole.

    Exactness: exact in the limit. With the true score of a sequence, every position is drawn from
    its true law given x_t, but independently of the others: a single token is drawn exactly in any
    number of steps, and a sequence with a total variation of O(1 / T). With the score of a law of
    x_0 (`mean_log_scores`) it is `ancestral`. A learned score is not bound to any law: where it
    asks for negative probabilities, those are taken as zero.

    Each position decides whether to change before which token to take, so that rare changes keep
    their rate at any T.

    Args:
        process: the masked or uniform process the model was trained with.
        log_scores: ``(logits, tokens, t, process) -> log_scores``, what the model's output means:
            `sedd_log_scores`, or `mean_log_scores` for a model of x_0.

    Returns:
        `Sampler` without state. One model call per step.

    Raises:
        TypeError: if the process is of no known family.
        ValueError: for uniform noise that ends with nothing surviving, where sigma is infinite.

    Examples:
        >>> import mdm_jax as mdm
        >>> process = mdm.Masked(vocab_size=5, schedule=mdm.LogLinear())
        >>> model = mdm.denoiser(lambda tokens, t: jnp.zeros((*tokens.shape, 6)))
        >>> start = jnp.full((2, 8), process.mask_id)
        >>> out = mdm.generate(
        ...     jax.random.key(0), model, analytic(process), start, mdm.time_grid(4)
        ... )
        >>> bool((out.tokens < 5).all()), int(out.calls)
        (True, 4)
    """
    if not isinstance(process, Masked | Uniform):
        raise TypeError(f"process={process!r}: expected Masked or Uniform")
    if isinstance(process, Uniform):
        check_survival(process)

    def step(key, logits, tokens, state, t, s, **extra):
        del extra
        key_when, key_what = jax.random.split(key)

        def weigh(logits, tokens):
            scores = log_scores(logits, tokens, t, process)
            moves, log_weights = score_step(scores, tokens, t, s, process)
            return log_weights, moves

        drawn, moves = draw_beside(key_what, logits, weigh, tokens)
        moved = draws.uniform(key_when, tokens.shape) < moves
        return jnp.where(moved, drawn.astype(tokens.dtype), tokens), state

    return Sampler(init=lambda tokens: (), step=step)


def score_step(
    log_scores: Logits, tokens: Tokens, t: Times, s: Times, process: Process
) -> tuple[jax.Array, jax.Array]:
    """The law of the analytic step: whether each position changes, and what it changes to.

    Args:
        log_scores: float[*B, L, W], log s_y at t.
        tokens: int32[*B, L], x_t.
        t: float32 time of `tokens`, broadcast from the left.
        s: float32 earlier time, likewise.
        process: the masked or uniform process.

    Returns:
        float32[*B, L], the probability of a change, and float32[*B, L, W], unnormalized
        log-probabilities of the id changed to (without meaning where no change is possible).

    Raises:
        TypeError: if the process is of no known family.
        ValueError: if shapes do not fit.

    Examples:
        >>> import mdm_jax as mdm
        >>> process = mdm.Masked(vocab_size=2, schedule=mdm.Linear())
        >>> masks, t = jnp.array([[2]]), jnp.array([0.8])
        >>> scores = sedd_log_scores(jnp.zeros((1, 1, 3)), masks, t, process)
        >>> moves, _ = score_step(scores, masks, t, jnp.array([0.6]), process)
        >>> moves.round(3).tolist()
        [[0.25]]
    """
    if isinstance(process, Masked):
        return _lift(log_scores, tokens, t, s, process)
    if isinstance(process, Uniform):
        return _jump(log_scores, tokens, t, s, process)
    raise TypeError(f"process={process!r}: expected Masked or Uniform")


def _lift(log_scores: Logits, tokens: Tokens, t: Times, s: Times, process: Masked):
    """A mask lifts with (e^dsigma - 1) sum_y s_y: the posterior's rate, times the free total."""
    log_weights = process.data_logits(log_scores)
    noise_t, noise_s, final = _noise_rates(tokens, t, s, process)
    rate = (noise_t - noise_s) / jnp.where(noise_t > 0, noise_t, 1.0)
    excess = jax.nn.logsumexp(log_weights, axis=-1) - log_odds(process, tokens, t)
    moves = jnp.where(final, 1.0, jnp.minimum(rate * jnp.exp(excess), 1.0))
    return jnp.where(process.is_masked(tokens), moves, 0.0), log_weights


def _jump(log_scores: Logits, tokens: Tokens, t: Times, s: Times, process: Uniform):
    """A token jumps by the score carried back to s, times the noise that leads from there to it.

    With m the mean score and a = alpha_t / alpha_s, y != z has the weight
    (1 - a) / K [s_y + (1/a - 1)(s_y - m)], and z has (a + (1 - a) / K) [s_z + (1/a - 1)(s_z - m)].
    """
    size = process.vocab_size
    scores = jnp.exp(log_scores[..., :size].astype(jnp.float32))
    noise_t, noise_s, final = _noise_rates(tokens, t, s, process)
    alpha_t, alpha_s = (
        process.schedule.alpha(align(check_times(name, time, tokens), tokens))
        for name, time in (("t", t), ("s", s))
    )
    lost = noise_t - noise_s
    gone = lost / jnp.where(final, 1.0, alpha_s)  # 1 - a
    back = scores + (lost / alpha_t)[..., None] * (scores - scores.mean(-1, keepdims=True))
    back = jnp.maximum(back, 0.0)
    here = last_axis_index(size, tokens.ndim + 1) == tokens[..., None]
    weights = jnp.where(here, 0.0, (gone / size)[..., None] * back)
    move = jnp.sum(weights, axis=-1)
    stay = (1.0 - gone + gone / size) * jnp.sum(jnp.where(here, back, 0.0), axis=-1)
    total = move + stay
    return move / jnp.where(total > 0, total, 1.0), jnp.log(weights)


def _noise_rates(tokens: Tokens, t: Times, s: Times, process: Process):
    """1 - alpha at t and at s, of the tokens' rank, with no noise left at s = 0; and whether s = 0.

    The denoising step undoes all noise, also that of a schedule which starts with some.
    """
    t = align(check_times("t", t, tokens), tokens)
    s = align(check_times("s", s, tokens), tokens)
    final = s <= 0
    noise_s = jnp.where(final, 0.0, process.schedule.noise_rate(s))
    return process.schedule.noise_rate(t), noise_s, final
