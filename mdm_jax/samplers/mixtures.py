"""One step as a mixture of fates: stay, take the model's law, turn into the mask, or into noise.

The laws of `mdm_jax.samplers.psi` and `mdm_jax.samplers.remasking`, as pure functions, and their
draws: which fate comes first, and then which id.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mdm_jax import draws
from mdm_jax.arrays import Bool, Key, Logits, PerToken, Times, Tokens, last_axis_index
from mdm_jax.processes import Hybrid, Masked, Process, Uniform
from mdm_jax.processes.base import align, check_times
from mdm_jax.reading import draw_tokens, log_prob_at
from mdm_jax.samplers.base import Sampler


class Mixture(NamedTuple):
    """What becomes of each position in one step; with what is left to 1 it stays as it is.

    Attributes:
        model: float32[*B, L], probability to take a token of the model's law.
        masked: float32[*B, L], probability to turn into the mask; 0 where it is one.
        uniform: float32[*B, L], probability to take a uniform data id.
    """

    model: PerToken
    masked: PerToken
    uniform: PerToken


def psi_mixture(
    process: Process, logits: Logits | None, tokens: Tokens, t: Times, s: Times, renewed: jax.Array
) -> Mixture:
    """Returns the law of a psi step as a mixture of four fates.

    Args:
        process: the process.
        logits: float[*B, L, W]; not read for `Masked`, and may be None there.
        tokens: int32[*B, L], x_t.
        t: float32 time of `tokens`, broadcast from the left.
        s: float32 time after it, no later than t; equal to it for a step that only corrects.
        renewed: float32, 1 - kappa, broadcast from the left. It is asked for rather than kappa
            because it may be small. `Masked` allows more than 1, up to 1 / alpha_t.

    Returns:
        `Mixture`.

    Raises:
        TypeError: if `process` is no process.
        ValueError: if shapes do not fit.

    Examples:
        >>> import mdm_jax as mdm
        >>> process = mdm.Masked(vocab_size=2, schedule=mdm.Linear())
        >>> m = psi_mixture(process, None, jnp.array([2, 0]), 0.5, 0.25, jnp.float32(0.2))
        >>> round(float(m.model[0]), 3), round(float(m.masked[1]), 3)
        (0.55, 0.05)
    """
    check_process(process)
    t, s = (align(check_times(name, x, tokens), tokens) for name, x in (("t", t), ("s", s)))
    renewed = align(jnp.asarray(renewed, jnp.float32), tokens)
    clean, masked, uniform = _forward(process, s)
    if isinstance(process, Masked):
        rate = process._unmask_rate(tokens, t, s)
        here, none = process.is_masked(tokens), jnp.zeros(tokens.shape, jnp.float32)
        lift = jnp.clip(rate + renewed * (clean - rate), 0.0, 1.0)
        return Mixture(
            jnp.where(here, lift, none),
            jnp.where(here, none, jnp.clip(renewed * masked, 0.0, 1.0)),
            none,
        )
    assert logits is not None
    log_p_z = log_prob_at(logits, tokens, process.log_probs)
    model_s, masked_s, uniform_s = _reverse(process, log_p_z, tokens, t, s)
    model_0, _, _ = _reverse(process, log_p_z, tokens, t, jnp.zeros_like(s))
    kept = 1.0 - renewed
    remasked = kept * masked_s + renewed * masked
    if isinstance(process, Hybrid):
        remasked = jnp.where(process.is_masked(tokens), 0.0, remasked)
    return Mixture(
        kept * model_s + renewed * clean * model_0,
        remasked,
        kept * uniform_s + renewed * uniform,
    )


def psi_law(
    process: Process,
    logits: Logits,
    tokens: Tokens,
    t: Times,
    s: Times,
    kappa: jax.typing.ArrayLike,
) -> jax.Array:
    """Returns the probabilities of x_s in a psi step, float32[*B, L, num_ids].

    Averaged over x_t ~ q(x_t | x_0), with a model that knows x_0, they are q(x_s | x_0).

    Args:
        process: the process.
        logits: float[*B, L, W].
        tokens: int32[*B, L], x_t.
        t: float32 time of `tokens`, broadcast from the left.
        s: float32 time after it, likewise.
        kappa: broadcast from the left.

    Raises:
        TypeError: if `process` is no process.
        ValueError: if shapes do not fit.

    Examples:
        >>> import mdm_jax as mdm
        >>> process = mdm.Masked(vocab_size=2, schedule=mdm.Linear())
        >>> law = psi_law(process, jnp.zeros((2, 2)), jnp.array([2, 0]), 0.5, 0.25, 0.8)
        >>> [[round(float(p), 3) for p in row] for row in law]
        [[0.275, 0.275, 0.45], [0.95, 0.0, 0.05]]
    """
    renewed = 1.0 - jnp.asarray(kappa, jnp.float32)
    return mixture_law(process, psi_mixture(process, logits, tokens, t, s, renewed), logits, tokens)


def mixture_law(process: Process, mixture: Mixture, logits: Logits, tokens: Tokens) -> jax.Array:
    """Returns the probabilities of each id under a `Mixture`, float32[*B, L, num_ids]."""
    ids = last_axis_index(process.num_ids, tokens.ndim + 1)
    stays = 1.0 - mixture.model - mixture.masked - mixture.uniform
    law = jnp.where(ids == tokens[..., None], stays[..., None], 0.0)
    law = law + mixture.model[..., None] * jnp.exp(process.log_probs(logits))
    if isinstance(process, Masked | Hybrid):
        law = law + jnp.where(ids == process.mask_id, mixture.masked[..., None], 0.0)
    if isinstance(process, Hybrid):
        data = ids != process.mask_id
        return law + jnp.where(data, mixture.uniform[..., None] / process.data_ids, 0.0)
    return law + mixture.uniform[..., None] / process.vocab_size


def mixing(process: Process, renewed: Callable[..., jax.Array]) -> Sampler:
    """A psi-sampler from ``renewed(tokens, state, t, s, keep)``, 1 - kappa, and without a state."""

    def step(key, logits, tokens, state, t, s, *, keep=None, **extra):
        del extra
        mixture = psi_mixture(process, logits, tokens, t, s, renewed(tokens, state, t, s, keep))
        return draw_mixture(key, process, mixture, logits, tokens), state

    idle = idle_if_nothing_changes(process, renewed)
    return Sampler(lambda tokens: (), step, idle=idle, revises=True)


def idle_if_nothing_changes(process: Process, renewed: Callable[..., jax.Array]):
    """The `idle` of a sampler of mixtures: for `Masked` only, where no model has a say in them."""
    if not isinstance(process, Masked):
        return None

    def idle(key, tokens, state, t, s, *, keep=None, **extra):
        del extra
        mixture = psi_mixture(process, None, tokens, t, s, renewed(tokens, state, t, s, keep))
        changed = _changes(key, mixture)
        return ~jnp.any(changed if keep is None else changed & ~keep, axis=-1)

    return idle


def draw_mixture(
    key: Key, process: Process, mixture: Mixture, logits: Logits, tokens: Tokens
) -> Tokens:
    """Draws x_s, int32[*B, L]: whether a position changes, then to what kind, then which id."""
    _, key_kind, key_model, key_uniform = jax.random.split(key, 4)
    drawn = draw_tokens(key_model, logits, process.data_logits).astype(tokens.dtype)
    if isinstance(process, Masked):
        changed_to = jnp.where(process.is_masked(tokens), drawn, process.mask_id)
    else:
        kind = draws.uniform(key_kind, tokens.shape) * sum(mixture)
        if isinstance(process, Hybrid):
            noise = process._data_noise(key_uniform, tokens)
            drawn = jnp.where(kind < mixture.uniform + mixture.masked, process.mask_id, drawn)
        else:
            noise = process.prior(key_uniform, tokens)
        changed_to = jnp.where(kind < mixture.uniform, noise, drawn)
    return jnp.where(_changes(key, mixture), changed_to, tokens)


def largest_renewal(process: Process, t: Times, s: Times) -> tuple[jax.Array, jax.Array]:
    """Returns 1 - alpha_s and ReMDM's sigma_max = min(1, (1 - alpha_s) / alpha_t), shaped like t.

    Both are 0 at s = 0, where the data is clean.
    """
    noise_s = jnp.where(s <= 0, 0.0, process.noise_rate(s))
    alpha_t = process.schedule.alpha(t)
    if isinstance(process, Hybrid):
        alpha_t = process.shares(t).clean
    most = noise_s / jnp.where(noise_s > 0, jnp.maximum(alpha_t, noise_s), 1.0)
    return noise_s, most


def check_process(process: Process) -> None:
    """Raises TypeError unless `process` is one."""
    if not isinstance(process, Masked | Uniform | Hybrid):
        raise TypeError(f"process={process!r}: expected a Masked, Uniform or Hybrid process")


def check_share(name: str, value: float) -> None:
    """Raises TypeError unless `value` is a number, ValueError unless it lies in [0, 1]."""
    if not isinstance(value, int | float):
        raise TypeError(f"{name}={value!r}: expected a number in [0, 1]")
    if not 0 <= value <= 1:
        raise ValueError(f"{name}={value}: expected a number in [0, 1]")


def _changes(key: Key, mixture: Mixture) -> Bool:
    """Draws which positions change, bool[*B, L], as the step with the same key does."""
    key_when, *_ = jax.random.split(key, 4)
    return draws.uniform(key_when, mixture.model.shape) < sum(mixture)


def _forward(process: Process, s: Times) -> tuple[jax.Array, jax.Array, jax.Array]:
    """q(x_s | x_0): probabilities of the clean token, the mask, and a uniform id."""
    last = s <= 0
    if isinstance(process, Hybrid):
        shares = zip((1.0, 0.0, 0.0), process.shares(s), strict=True)
        clean, masked, uniform = (jnp.where(last, end, share) for end, share in shares)
        return clean, masked, uniform
    clean = jnp.where(last, 1.0, process.schedule.alpha(s))
    noise = jnp.where(last, 0.0, process.schedule.noise_rate(s))
    none = jnp.zeros_like(noise)
    return (clean, noise, none) if isinstance(process, Masked) else (clean, none, noise)


def _reverse(
    process: Process, log_p_z: PerToken, tokens: Tokens, t: Times, s: Times
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """q(x_s | x_t): probabilities of a token of the model's, the mask, and a uniform id."""
    assert isinstance(process, Uniform | Hybrid)
    stay, model, *noises = process._mixture(log_p_z, tokens, t, s)
    masked, uniform = noises if isinstance(process, Hybrid) else (jnp.zeros_like(stay), *noises)
    total = stay + model + masked + uniform
    still = t <= s  # nothing happens in no time, also at t = 1, where no token may be left
    model, masked, uniform = (jnp.where(still, 0.0, x / total) for x in (model, masked, uniform))
    return model, masked, uniform
