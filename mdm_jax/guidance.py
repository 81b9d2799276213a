"""Guidance: two predictions, with and without a condition, and more of their difference."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from mdm_jax.arrays import Bool, Logits, LogProbs, Times, Tokens
from mdm_jax.denoisers import Carry, Denoiser, denoiser
from mdm_jax.processes import Hybrid, Masked, Process
from mdm_jax.ramps import Setting, setting_at
from mdm_jax.reading import by_rows, derived


def guided(cond: Denoiser, uncond: Denoiser, scale: Setting) -> Denoiser:
    """Classifier-free guidance: log-probabilities (1 + scale) cond - scale uncond.

    A scale of 0 is the conditional model alone, up to the normalization of its logits. Both
    branches run, each with a carry of its own. It guides p(x_0 | x_t); columns that are never
    predicted would count, so put `predicting` inside.

    Args:
        cond: the conditional denoiser.
        uncond: the unconditional one; same vocabulary.
        scale: guidance strength: a number, a float32 array (scalar or [*B]), or a function of time
            such as ``linear_ramp(2.0, 0.0)``.

    Returns:
        `Denoiser` whose `calls` is the sum of both.

    Raises:
        ValueError: if `scale` is a number and not finite.

    Examples:
        >>> flat = denoiser(lambda tokens, t: jnp.zeros((*tokens.shape, 2)))
        >>> peaked = denoiser(lambda tokens, t: jnp.tile(jnp.array([1.0, 0.0]), (*tokens.shape, 1)))
        >>> logits, _ = guided(peaked, flat, 1.0).apply(
        ...     jnp.zeros((1,), jnp.int32), jnp.float32(1.0), ((), ())
        ... )
        >>> float(logits[0, 0] - logits[0, 1])
        2.0
    """
    _check_scale(scale)

    def apply(tokens: Tokens, t: Times, carry: Carry) -> tuple[Logits, Carry]:
        logits_cond, carry_cond = cond.apply(tokens, t, carry[0])
        logits_uncond, carry_uncond = uncond.apply(tokens, t, carry[1])

        def mix(cond: Logits, uncond: Logits) -> Logits:
            cond, uncond = (
                jax.nn.log_softmax(x.astype(jnp.float32), axis=-1) for x in (cond, uncond)
            )
            return _mixed(cond, uncond, scale, t)

        return derived(mix, logits_cond, logits_uncond), (carry_cond, carry_uncond)

    return Denoiser(
        init=lambda tokens: (cond.init(tokens), uncond.init(tokens)),
        apply=apply,
        commit=lambda tokens, carry: (
            cond.commit(tokens, carry[0]),
            uncond.commit(tokens, carry[1]),
        ),
        calls=cond.calls + uncond.calls,
    )


def unsupervised_guided(
    model: Denoiser | Callable[[Tokens, Times], Logits],
    process: Process,
    scale: Setting,
    *,
    prompt: Bool,
) -> Denoiser:
    """Guidance by the prompt, without a model trained for it (SMDM, section 4.2; LLaDA).

    The unconditional prediction is the model's own for the same sequence with its prompt masked:
    log-probabilities uncond + (1 + scale)(cond - uncond), over predictable ids, in float32 and not
    normalized again. What was generated so far stays in sight of both.

    Args:
        model: a function ``(tokens, t) -> logits``, which is called once on a doubled batch, rows
            interleaved (2 B rows; an unbatched row [L] becomes [2, L]); or a `Denoiser`, whose
            two branches run one after the other, each with a carry of its own.
        process: the model's process, which must have a mask.
        scale: guidance strength: a number, a float32 array (scalar or [*B]), or a function of time.
            The number 0 is the model alone: no second branch is computed.
        prompt: bool[*B, L] or bool[L], the positions of each row's own prompt.

    Returns:
        `Denoiser`. For a function `calls` is 1: one evaluation, of twice the rows. For a `Denoiser`
        it is twice that one's.

    Raises:
        TypeError: if the process has no mask, or `prompt` is not boolean. Uniform noise has no
            token for "unknown": a redrawn prompt is another prompt, not the lack of one.
        ValueError: if `scale` is a number and not finite, or (when applied) if `prompt` does not
            fit the tokens.

    Examples:
        >>> import mdm_jax as mdm
        >>> process = mdm.Masked(vocab_size=2, schedule=mdm.Linear())
        >>> def repeats(tokens, t):  # predicts a 1 where it sees one
        ...     seen = jnp.any(tokens == 1, axis=-1, keepdims=True)
        ...     return jax.nn.one_hot(jnp.where(seen, 1, -1) + 0 * tokens, 2)
        >>> d = unsupervised_guided(repeats, process, 2.0, prompt=jnp.array([True, False]))
        >>> logits, _ = d.apply(jnp.array([[1, 2]]), jnp.float32(1.0), ())
        >>> d.calls, round(float(logits[0, 1, 1] - logits[0, 1, 0]), 4)
        (1, 3.0)
    """
    if not isinstance(process, Masked | Hybrid) or (
        isinstance(process, Hybrid) and process.uniform_share == 1
    ):
        raise TypeError(
            f"process={process!r}: unsupervised guidance masks the prompt, and this noise has no "
            "mask: a redrawn prompt is another prompt. Use guided with a model that was trained "
            "without conditions too"
        )
    _check_scale(scale)
    prompt = jnp.asarray(prompt)
    if prompt.dtype != jnp.bool_:
        raise TypeError(f"prompt has dtype {prompt.dtype}: expected bool")
    if not isinstance(model, Denoiser):
        return _doubled(model, process, scale, prompt)
    inner = model._replace(apply=_log_probs(model, process))
    if _is_zero(scale):
        return inner

    def without(tokens: Tokens) -> Tokens:
        return jnp.where(_fitting(prompt, tokens), process.mask_id, tokens)

    def apply_without(tokens: Tokens, t: Times, carry: Carry):
        return inner.apply(without(tokens), t, carry)

    uncond = Denoiser(
        init=lambda tokens: inner.init(without(tokens)),
        apply=apply_without,
        commit=lambda tokens, carry: inner.commit(without(tokens), carry),
        calls=inner.calls,
    )
    return guided(inner, uncond, scale)


def _doubled(
    logits_fn: Callable[[Tokens, Times], Logits],
    process: Masked | Hybrid,
    scale: Setting,
    prompt: Bool,
) -> Denoiser:
    """Both branches in one call."""
    alone = denoiser(logits_fn)
    if _is_zero(scale):
        return alone._replace(apply=_log_probs(alone, process))

    def apply(tokens: Tokens, t: Times, carry: Carry) -> tuple[Logits, Carry]:
        masked = jnp.where(_fitting(prompt, tokens), process.mask_id, tokens)
        # A row and its copy stand side by side, so that a batch sharded by rows stays in place.
        place = tokens.ndim - 1
        both = jnp.stack([tokens, masked], axis=place)
        flat = both.reshape(-1, tokens.shape[-1]) if tokens.ndim > 1 else both
        times = jnp.asarray(t, jnp.float32)
        if times.ndim:
            times = jnp.stack([times, times], axis=-1).reshape(-1)
        logits, carry = alone.apply(flat, times, carry)
        branch = lambda i: by_rows(lambda x: x.reshape(*both.shape, -1)[..., i, :, :], logits)

        def mix(cond: Logits, uncond: Logits) -> Logits:
            return _mixed(_normalized(process, cond), _normalized(process, uncond), scale, t)

        return derived(mix, branch(0), branch(1)), carry

    return alone._replace(apply=apply)


def _log_probs(inner: Denoiser, process: Process):
    def apply(tokens: Tokens, t: Times, carry: Carry) -> tuple[Logits, Carry]:
        logits, carry = inner.apply(tokens, t, carry)
        return derived(lambda part: _normalized(process, part), logits), carry

    return apply


def _normalized(process: Process, logits: Logits) -> LogProbs:
    """Log-probabilities over predictable ids, as wide as the logits."""
    return jax.nn.log_softmax(process.data_logits(logits), axis=-1)


def _mixed(log_cond: LogProbs, log_uncond: LogProbs, scale: Setting, t: Times) -> LogProbs:
    """(1 + scale) cond - scale uncond."""
    # -inf - -inf is NaN: an id that either branch forbids stays forbidden.
    possible = (log_cond > -jnp.inf) & (log_uncond > -jnp.inf)
    ahead = log_cond - jnp.where(possible, log_uncond, 0.0)
    mixed = log_cond + setting_at(scale, t, log_cond) * ahead
    impossible = (log_cond == -jnp.inf) | (log_uncond == -jnp.inf)
    return jnp.where(impossible, -jnp.inf, mixed)


def _fitting(prompt: Bool, tokens: Tokens) -> Bool:
    if prompt.shape not in (tokens.shape, tokens.shape[-1:]):
        raise ValueError(
            f"prompt has shape {prompt.shape}: expected {tokens.shape}, or {tokens.shape[-1:]} for "
            "all rows"
        )
    return jnp.broadcast_to(prompt, tokens.shape)


def _is_zero(scale: Setting) -> bool:
    return isinstance(scale, int | float) and scale == 0


def _check_scale(scale: Setting) -> None:
    if isinstance(scale, int | float) and not math.isfinite(scale):
        raise ValueError(f"scale={scale}: expected a finite number")
