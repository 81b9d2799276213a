"""ReMDM: masked steps that also mask decided tokens again, so that mistakes can be taken back."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from mdm_jax.arrays import Bool, PerToken, Times, Tokens
from mdm_jax.processes import Masked
from mdm_jax.processes.base import align
from mdm_jax.reading import over_positions
from mdm_jax.samplers.base import Sampler
from mdm_jax.samplers.certainty import doubt
from mdm_jax.samplers.mixtures import (
    check_share,
    draw_mixture,
    idle_if_nothing_changes,
    largest_renewal,
    mixing,
    psi_mixture,
)

_ETA = {"cap": 0.008, "rescale": 0.015, "conf": 1.0, "loop": 0.02}
_TINY = 1e-30


def remasking(
    process: Masked,
    rule: Literal["cap", "rescale", "conf", "loop"] = "cap",
    *,
    eta: float | None = None,
) -> Sampler:
    """Ancestral steps in which a decided token is masked again with probability sigma.

    Masks lift the more often for it, so that 1 - alpha_s of the positions are masked after the step
    whatever sigma is (ReMDM, Wang et al., 2025): it is `psi` with kappa = 1 - sigma / (1 -
    alpha_s). With sigma_max = min(1, (1 - alpha_s) / alpha_t), the largest that allows it,

        "cap":      sigma = min(eta, sigma_max);
        "rescale":  sigma = eta sigma_max;
        "conf":     sigma = eta sigma_max softmax(-p) over the decided positions of the row, where p
                    is the probability with which a token was drawn;
        "loop":     sigma = min(eta, sigma_max) in steps that stay at a time, t = s, and 0 in those
                    that walk down: walk `remdm_loop_times`.

    At s = 0 nothing is masked again.

    Exactness: exact in the limit of many steps, for consistent conditionals (for "loop", of eta to
    0 as well: the plateau stays where two masks may lift at once). The total variation falls like
    1 / sqrt(T) where eta is fixed. "conf" is heuristic: as published it does not lift more masks in
    return, so that more than 1 - alpha_s of the positions stay masked, and which token is taken
    back depends on what was drawn. With a truncated model (`nucleus`, as published) the law is a
    sharpened one.

    Args:
        process: a masked process.
        rule: "cap", "rescale", "conf" or "loop".
        eta: a number in [0, 1]; the published 0.008, 0.015, 1 and 0.02 (for a thousand steps).

    Returns:
        `Sampler`. One model call per step, none where no position changes. "conf" keeps p in its
        state, float32[*B, L]: 1 for tokens given in the canvas. Kept positions have no share. Do
        not stop it by `all_decided`: a row without masks may still be corrected.

    Raises:
        TypeError: if `process` is not masked (for other noise: `psi` with `remasking_kappa`).
        ValueError: if the rule is unknown or `eta` outside [0, 1].

    Examples:
        >>> import mdm_jax as mdm
        >>> process = mdm.Masked(vocab_size=5, schedule=mdm.LogLinear())
        >>> model = mdm.denoiser(lambda tokens, t: jnp.zeros((*tokens.shape, 5)))
        >>> start = jnp.full((2, 8), process.mask_id)
        >>> out = mdm.generate(
        ...     jax.random.key(0), model, remasking(process, eta=0.5), start, mdm.time_grid(4)
        ... )
        >>> bool((out.tokens < 5).all()), int(out.calls)
        (True, 4)
    """
    check_masked(process)
    if rule not in _ETA:
        raise ValueError(f"rule={rule!r}: expected 'cap', 'rescale', 'conf' or 'loop'")
    share = _ETA[rule] if eta is None else eta
    check_share("eta", share)

    def most(t, s):
        return largest_renewal(process, t, s)[1]

    if rule == "conf":
        return _by_confidence(process, share)
    if rule == "rescale":
        return _remasking(process, lambda t, s: share * most(t, s))
    if rule == "cap":
        return _remasking(process, lambda t, s: jnp.minimum(share, most(t, s)))
    return _remasking(process, lambda t, s: jnp.where(t <= s, jnp.minimum(share, most(t, s)), 0.0))


def forward_backward(process: Masked) -> Sampler:
    """Remasks at the rate of the forward process: sigma = (alpha_s - alpha_t) / alpha_t.

    The forward-backward corrector (Campbell et al., 2022), a step of noise for every step of
    denoising; sigma is capped at ReMDM's sigma_max.

    Exactness: exact in the limit of many steps, for consistent conditionals, as `remasking`.

    Args:
        process: a masked process.

    Returns:
        `Sampler` without state. One model call per step, none where no position changes.

    Raises:
        TypeError: if `process` is not masked.

    Examples:
        >>> import mdm_jax as mdm
        >>> process = mdm.Masked(vocab_size=5, schedule=mdm.LogLinear())
        >>> x, _ = forward_backward(process).step(
        ...     jax.random.key(0), jnp.zeros((2, 5)), jnp.array([5, 1]), (), 0.5, 0.0)
        >>> bool((x < 5).all())
        True
    """
    check_masked(process)
    return _remasking(process, lambda t, s: _forward_rate(process, t, s))


def dfm(process: Masked, *, strength: float = 10.0, power: float = 0.25) -> Sampler:
    """The corrector of discrete flow matching: b times the remasking of `forward_backward`.

    With n the noise rate at t, b = strength (n (1 - n))^power, and masks lift a = b + 1 times as
    fast as in an ancestral step (Gat et al., 2024, with the numbers of ReMDM's comparison). The
    published loop shortens its steps until both are probabilities (`dfm_times`); on other grids
    sigma is capped at sigma_max, which keeps the marginals.

    Exactness: exact in the limit of many steps, for consistent conditionals, as `remasking`.

    Args:
        process: a masked process.
        strength: 0 or more; 0 is `ancestral`.
        power: 0 or more.

    Returns:
        `Sampler` without state. One model call per step, none where no position changes.

    Raises:
        TypeError: if `process` is not masked.
        ValueError: if a number is negative or not finite.

    Examples:
        >>> import mdm_jax as mdm
        >>> process = mdm.Masked(vocab_size=5, schedule=mdm.Linear())
        >>> x, _ = dfm(process).step(
        ...     jax.random.key(0), jnp.zeros((2, 5)), jnp.array([5, 1]), (), 0.5, 0.0)
        >>> bool((x < 5).all())
        True
    """
    check_masked(process)
    check_strength(strength, power)

    def sigma(t, s):
        noise = process.schedule.noise_rate(t)
        bump = strength * (noise * process.schedule.alpha(t)) ** power
        return _forward_rate(process, t, s, bump)

    return _remasking(process, sigma)


def remasking_mixture_rate(process: Masked, sigma: jax.Array, s: Times) -> jax.Array:
    """Returns 1 - kappa of the psi-sampler that remasks with probability `sigma`.

    Args:
        process: a masked process.
        sigma: float32, probability that a decided token is masked again, shaped like `s`.
        s: float32 time after the step.

    Returns:
        float32, sigma / (1 - alpha_s); 0 at s = 0.

    Examples:
        >>> import mdm_jax as mdm
        >>> process = mdm.Masked(vocab_size=5, schedule=mdm.Linear())
        >>> float(remasking_mixture_rate(process, jnp.float32(0.125), jnp.float32(0.5)))
        0.25
    """
    noise_s = process.schedule.noise_rate(s)
    some = (s > 0) & (noise_s > 0)
    return jnp.where(some, sigma / jnp.where(some, noise_s, 1.0), 0.0)


def _remasking(process: Masked, sigma: Callable[[Times, Times], jax.Array]) -> Sampler:
    def renewed(tokens, state, t, s, keep):
        del tokens, state, keep
        t, s = jnp.asarray(t, jnp.float32), jnp.asarray(s, jnp.float32)
        return remasking_mixture_rate(process, sigma(t, s), s)

    return mixing(process, renewed)


def _by_confidence(process: Masked, eta: float) -> Sampler:
    """ReMDM-conf; the state is the probability with which each token was drawn."""

    def renewed(tokens, state, t, s, keep):
        t, s = (align(jnp.asarray(x, jnp.float32), tokens) for x in (t, s))
        _, most = largest_renewal(process, t, s)
        sigma = eta * most * confidence_shares(process, tokens, state, keep)
        return remasking_mixture_rate(process, sigma, s + jnp.zeros_like(sigma))

    def step(key, logits, tokens, state, t, s, *, keep=None, **extra):
        del extra
        mixture = psi_mixture(process, logits, tokens, t, s, renewed(tokens, state, t, s, keep))
        after = draw_mixture(key, process, mixture, logits, tokens)
        lifted = process.is_masked(tokens) & ~process.is_masked(after)
        if keep is not None:
            lifted = lifted & ~keep
        doubts = over_positions(lambda x, ids: doubt(process.data_logits(x), ids), logits, after)
        return after, jnp.where(lifted, 1.0 - doubts, state)

    return Sampler(
        init=lambda tokens: jnp.ones_like(tokens, dtype=jnp.float32),
        step=step,
        idle=idle_if_nothing_changes(process, renewed),
        revises=True,
    )


def confidence_shares(
    process: Masked, tokens: Tokens, probability: PerToken, keep: Bool | None = None
) -> PerToken:
    """Returns softmax(-probability) over each row's decided positions, float32[*B, L].

    Args:
        process: a masked process.
        tokens: int32[*B, L].
        probability: float32[*B, L], with which each token was drawn.
        keep: bool[*B, L], positions that never change; they have no share.

    Returns:
        float32[*B, L], 0 at masks; it sums to 1 in a row with any decided position, else to 0.

    Examples:
        >>> import mdm_jax as mdm
        >>> process = mdm.Masked(vocab_size=5, schedule=mdm.Linear())
        >>> shares = confidence_shares(process, jnp.array([1, 5, 2]), jnp.array([0.9, 0.0, 0.2]))
        >>> [round(float(x), 3) for x in shares]
        [0.332, 0.0, 0.668]
    """
    decided = ~process.is_masked(tokens)
    if keep is not None:
        decided = decided & ~keep
    weights = jnp.where(decided, jnp.exp(-probability), 0.0)  # no larger than 1
    return weights / jnp.maximum(jnp.sum(weights, axis=-1, keepdims=True), _TINY)


def _forward_rate(
    process: Masked, t: Times, s: Times, factor: jax.Array | float = 1.0
) -> jax.Array:
    """Factor (alpha_s - alpha_t) / alpha_t, at most sigma_max."""
    noise_s, most = largest_renewal(process, t, s)
    lost = process.schedule.noise_rate(t) - noise_s
    return jnp.minimum(factor * lost / jnp.maximum(process.schedule.alpha(t), _TINY), most)


def check_masked(process: Masked) -> None:
    """Raises TypeError unless `process` is masked."""
    if not isinstance(process, Masked):
        raise TypeError(
            f"process={process!r}: remasking needs a Masked process; for other noise use psi with "
            "remasking_kappa"
        )


def check_strength(strength: float, power: float) -> None:
    """Raises ValueError unless both are finite and not negative."""
    if not (0 <= strength < float("inf") and 0 <= power < float("inf")):
        raise ValueError(f"strength={strength}, power={power}: expected finite numbers, 0 or more")
