"""Ancestral sampling where every vocabulary entry has a schedule of its own (GenMD4)."""

import jax
import jax.numpy as jnp

from mdm_jax import draws
from mdm_jax.arrays import Logits, LogProbs, Times, Tokens
from mdm_jax.losses.learned import check_powers
from mdm_jax.processes import Masked
from mdm_jax.processes.base import align
from mdm_jax.reading import draw_beside
from mdm_jax.samplers.base import Sampler
from mdm_jax.token_schedules import TokenPolynomial


def learned_ancestral(process: Masked, schedule: TokenPolynomial) -> Sampler:
    r"""Draws x_s from q(x_s | x_t, x_0 ~ model) under the learned schedules.

    A mask becomes id v with probability

        pi_v (alpha_v(s) - alpha_v(t)) / (1 - alpha_v(t)) = pi_v (1 - (s / t)^{p_v})

    and stays a mask otherwise. Whether it lifts is decided before to what, so that rare changes
    keep their rate. At s = 0 every mask lifts and its token is drawn from the model, as in
    `ancestral`; there the ratios are 1 for all ids, whatever their powers. (The bound decodes the
    masks left at its `min_time` without the model: a share t1^{p_v}, all that differs.)

    Exactness: exact in the limit. The law of the samples tends to that of the jump process of
    `learned_masked_elbo`, whose mask at position i lifts to v at rate pi_v p_v / t. With equal
    powers it is `ancestral(Masked(V, Polynomial(p)))` step by step.

    Args:
        process: the masked process, for its ids.
        schedule: the trained powers, see `trained_schedule`.

    Returns:
        `Sampler` without state. One model call per step.

    Raises:
        TypeError: if `process` is not masked.
        ValueError: if there is not one power for each id.

    Examples:
        >>> import mdm_jax as mdm
        >>> process = mdm.Masked(vocab_size=5, schedule=mdm.LogLinear())
        >>> model = mdm.denoiser(lambda tokens, t: jnp.zeros((*tokens.shape, 5)))
        >>> sampler = learned_ancestral(process, mdm.TokenPolynomial(jnp.arange(1.0, 6.0)))
        >>> start = jnp.full((2, 8), process.mask_id)
        >>> out = mdm.generate(jax.random.key(0), model, sampler, start, mdm.time_grid(4))
        >>> bool((out.tokens < 5).all()), int(out.calls)
        (True, 4)
    """
    if not isinstance(process, Masked):
        raise TypeError(f"process={process!r}: learned schedules need a Masked process")
    check_powers(schedule, process)

    def step(key, logits, tokens, state, t, s, **extra):
        del extra

        def weigh(logits, tokens):
            joint = _lifting(logits, tokens, t, s, schedule, process)
            return joint, jnp.exp(jax.nn.logsumexp(joint, axis=-1))

        key_when, key_what = jax.random.split(key)
        drawn, rate = draw_beside(key_what, logits, weigh, tokens)
        lifted = process.is_masked(tokens) & (draws.uniform(key_when, tokens.shape) < rate)
        # Sums of probabilities may round to just below 1: the last step lifts whatever they say.
        last = jnp.asarray(align(jnp.asarray(s, jnp.float32), tokens)) <= 0
        lifted = lifted | (process.is_masked(tokens) & last)
        return jnp.where(lifted, drawn.astype(tokens.dtype), tokens), state

    return Sampler(init=lambda tokens: (), step=step)


def _lifting(
    logits: Logits,
    tokens: Tokens,
    t: Times,
    s: Times,
    schedule: TokenPolynomial,
    process: Masked,
) -> LogProbs:
    """Returns log pi_v (1 - (s / t)^{p_v}), float32[*B, L, V]: that a mask at t is v at s."""
    t, s = (align(jnp.asarray(x, jnp.float32), tokens)[..., None] for x in (t, s))
    certain = (s <= 0) | (t <= 0)
    log_ratio = jnp.where(certain, -jnp.inf, jnp.log(jnp.where(certain, 1.0, s / t)))
    powers = schedule.powers.reshape((1,) * tokens.ndim + (-1,))
    # A step of no length has ratio 1 and lifts nothing: log 0.
    lift = jnp.log(-jnp.expm1(powers * jnp.minimum(log_ratio, 0.0)))
    log_p = jax.nn.log_softmax(process.data_logits(logits), axis=-1)[..., : process.vocab_size]
    return log_p + lift
