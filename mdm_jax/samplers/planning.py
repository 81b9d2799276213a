"""Path planning (P2): the best-scored tokens stay, everything else is masked again."""

import jax
import jax.numpy as jnp

from mdm_jax import draws
from mdm_jax.arrays import Key, Logits, PerToken, Tokens
from mdm_jax.processes import Masked
from mdm_jax.processes.base import align
from mdm_jax.reading import logits_width, over_positions
from mdm_jax.samplers.base import Sampler
from mdm_jax.samplers.certainty import doubt
from mdm_jax.samplers.positions import best, check_temperature, draw

_SLACK = 3e-7  # above float32's rounding of L (1 - alpha), so that 10 * 0.3 counts as 3


def path_planning(process: Masked, eta: float = 1.0, *, temperature: float = 1.0) -> Sampler:
    """Draws every mask, then keeps the tokens of highest score and masks the rest again.

    P2 with the model as its own planner (Peng et al., 2025): the score of a token just drawn is its
    log-probability, and that of a token decided before is `eta` times its log-probability in the
    model's present prediction there. After the step floor(n (1 - alpha_s)) of a row's n positions
    (those not in `keep`) are masked: the number is exact, and decided tokens may be among them.

    * ``eta=0``: decided tokens score highest and stay; it is the legacy rule that commits the most
      probable draws.
    * ``eta=1``: old and new tokens compete on equal terms. Above 1 old ones are taken back sooner.

    The published options of a second network as planner (BERT, a trained head) need more than the
    logits that a sampler gets, and are not offered. Models trained as `masked_elbo` does have no
    loss at tokens that they can see: there the prediction, and so the score, is untrained.

    Exactness: heuristic. Positions are chosen by the probability of what was drawn there.

    Args:
        process: a masked process.
        eta: weight of decided tokens' log-probabilities, 0 or more.
        temperature: of the draw, not of the scores; 0 takes the top id.

    Returns:
        `Sampler` without state. One model call per step.

    Raises:
        TypeError: if `process` is not masked.
        ValueError: if `eta` is negative or not finite, or `temperature` negative.

    Examples:
        >>> import mdm_jax as mdm
        >>> process = mdm.Masked(vocab_size=2, schedule=mdm.Linear())
        >>> logits = jnp.array([[0.0, 9.0], [2.0, 0.0], [0.0, 5.0]])
        >>> x = jnp.array([0, 2, 2])  # by now the model disagrees with the first token
        >>> for eta in (1.0, 0.0):
        ...     sampler = path_planning(process, eta, temperature=0.0)
        ...     sampler.step(jax.random.key(0), logits, x, (), 0.7, 0.4)[0].tolist()
        [2, 0, 1]
        [0, 2, 1]
    """
    if not isinstance(process, Masked):
        raise TypeError(f"process={process!r}: path planning needs a Masked process")
    if not 0 <= eta < float("inf"):
        raise ValueError(f"eta={eta}: expected a finite number, 0 or more")
    temperature = check_temperature(temperature)

    def step(key, logits, tokens, state, t, s, *, keep=None, **extra):
        del t, extra
        masked = process.is_masked(tokens)
        free = jnp.ones_like(masked) if keep is None else ~keep
        drawn, scores = _draw_and_score(key, process, logits, tokens, temperature)
        decided = eta * scores if eta > 0 else jnp.zeros_like(scores)  # 0 * -inf is no number
        staying = best(jnp.where(masked, scores, decided), free, _staying(process, free, s))
        planned = jnp.where(staying, drawn, process.mask_id).astype(tokens.dtype)
        return jnp.where(free, planned, tokens), state

    return Sampler(init=lambda tokens: (), step=step, revises=True)


def _staying(process: Masked, free: jax.Array, s: jax.typing.ArrayLike) -> jax.Array:
    """How many of the free positions hold a token after the step, int32[*B]."""
    number = jnp.sum(free, axis=-1, dtype=jnp.int32)
    s = align(jnp.asarray(s, jnp.float32), number)
    noise = jnp.where(s > 0, process.schedule.noise_rate(s), 0.0)
    size = number.astype(jnp.float32)
    return number - jnp.floor(size * noise + _SLACK * size).astype(jnp.int32)


def _draw_and_score(
    key: Key, process: Masked, logits: Logits, tokens: Tokens, temperature: float
) -> tuple[Tokens, PerToken]:
    """Fills the masks, int32[*B, L], and says how probable every token now is, float32[*B, L]."""

    def read(logits, noise, tokens):
        data = process.data_logits(logits)
        if temperature == 0:
            drawn = draw(key, data, 0.0)
        else:
            drawn = draws.choose(noise, data if temperature == 1 else data / temperature)
        filled = jnp.where(process.is_masked(tokens), drawn.astype(tokens.dtype), tokens)
        # Log p, resolved next to 0; -inf where no id is possible.
        return filled, jnp.log1p(-doubt(data, filled))

    width = logits_width(logits)
    noise = draws.categorical_noise(key, (*tokens.shape, width)) if temperature > 0 else ()
    return over_positions(read, logits, noise, tokens)
