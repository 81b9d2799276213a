"""Edits of logits: sharpened, truncated, ids forbidden. Each makes the law another one.

They are ``Denoiser -> Denoiser`` wrappers and apply in the order in which they are written. Where
they leave no id to a position, its logits are all -inf and a draw gives -1, an id that no
vocabulary has.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mdm_jax.arrays import Logits, Times, Tokens
from mdm_jax.denoisers import Denoiser, edited
from mdm_jax.processes.base import align
from mdm_jax.ramps import Setting, setting_at


def tempered(inner: Denoiser, temperature: Setting) -> Denoiser:
    """Divides the logits by `temperature`: below 1 sharpens, above 1 flattens.

    The law is no longer the model's own. For greedy decoding choose a sampler that is greedy
    rather than a temperature near zero.

    Args:
        inner: the denoiser to wrap.
        temperature: positive number, float32 array (scalar or [*B]), or function of time.

    Returns:
        `Denoiser`.

    Raises:
        ValueError: if `temperature` is a number and not positive.

    Examples:
        >>> import mdm_jax as mdm
        >>> d = tempered(mdm.denoiser(lambda tokens, t: jnp.ones((*tokens.shape, 2))), 0.5)
        >>> d.apply(jnp.zeros((1,), jnp.int32), jnp.float32(1.0), ())[0].tolist()
        [[2.0, 2.0]]
    """
    _check_positive("temperature", temperature)

    def divide(logits: Logits, tokens: Tokens, t: Times) -> Logits:
        del tokens
        return logits.astype(jnp.float32) / setting_at(temperature, t, logits)

    return edited(inner, divide, positionwise=True)


def nucleus(inner: Denoiser, p: Setting) -> Denoiser:
    """Keeps the smallest set of most probable ids whose mass reaches `p` (top-p).

    The id that crosses the threshold is kept, as are ids exactly as probable as it. The threshold
    is found by bisecting on the bit pattern of the probabilities: 31 passes without a sort.
    Columns that are never predicted (the mask id, padding) would count as mass: put `predicting`
    inside.

    Args:
        inner: the denoiser to wrap.
        p: number in (0, 1], float32 array (scalar or [*B]), or function of time.

    Returns:
        `Denoiser`.

    Raises:
        ValueError: if `p` is a number outside (0, 1].

    Examples:
        >>> import mdm_jax as mdm
        >>> logits = jnp.log(jnp.array([0.5, 0.3, 0.2]))
        >>> d = nucleus(mdm.denoiser(lambda tokens, t: jnp.tile(logits, (*tokens.shape, 1))), 0.6)
        >>> jnp.isfinite(d.apply(jnp.zeros((1,), jnp.int32), jnp.float32(1.0), ())[0]).tolist()
        [[True, True, False]]
    """
    if isinstance(p, int | float) and not 0 < p <= 1:
        raise ValueError(f"nucleus p={p}: expected a number in (0, 1]; 1 keeps every id")

    def truncate(logits: Logits, tokens: Tokens, t: Times) -> Logits:
        del tokens
        logits = logits.astype(jnp.float32)
        probs = jax.nn.softmax(logits, axis=-1)
        threshold = _nucleus_threshold(probs, setting_at(p, t, logits))
        return jnp.where(probs >= threshold, logits, -jnp.inf)

    return edited(inner, truncate, positionwise=True)


def top_k(inner: Denoiser, k: int) -> Denoiser:
    """Keeps the k most probable ids of each position, and those exactly as probable as the k-th.

    The k-th logit is found by bisecting on the bit pattern: 32 passes without a sort. Columns that
    are never predicted (the mask id, padding) would count: put `predicting` inside.

    Args:
        inner: the denoiser to wrap.
        k: at least 1.

    Returns:
        `Denoiser`.

    Raises:
        TypeError: if `k` is no integer.
        ValueError: if k < 1, or (when applied) if the logits have fewer columns.

    Examples:
        >>> import mdm_jax as mdm
        >>> logits = jnp.array([[0.5, 2.0, -1.0, 0.5]])
        >>> d = top_k(mdm.denoiser(lambda tokens, t: logits), 2)
        >>> jnp.isfinite(d.apply(jnp.zeros((1,), jnp.int32), jnp.float32(1.0), ())[0]).tolist()
        [[True, True, False, True]]
    """
    if not isinstance(k, int):
        raise TypeError(f"top_k k={k!r}: expected an integer")
    if k < 1:
        raise ValueError(f"top_k k={k}: expected at least 1")

    def truncate(logits: Logits, tokens: Tokens, t: Times) -> Logits:
        del tokens, t
        if k > logits.shape[-1]:
            raise ValueError(f"top_k k={k}: the logits have {logits.shape[-1]} columns")
        logits = logits.astype(jnp.float32)
        ranks = _sortable(logits)
        return jnp.where(ranks >= _kth_largest(ranks, k), logits, -jnp.inf)

    return edited(inner, truncate, positionwise=True)


def forbid(inner: Denoiser, ids: Sequence[int]) -> Denoiser:
    """Removes `ids` from every prediction.

    Args:
        inner: the denoiser to wrap.
        ids: token ids, such as an end-of-text id that must not be generated.

    Returns:
        `Denoiser`.

    Raises:
        ValueError: if `ids` is empty or holds a negative id, or (when applied) an id lies outside
            the logits.

    Examples:
        >>> import mdm_jax as mdm
        >>> d = forbid(mdm.denoiser(lambda tokens, t: jnp.zeros((*tokens.shape, 3))), [1])
        >>> d.apply(jnp.zeros((1,), jnp.int32), jnp.float32(1.0), ())[0].tolist()
        [[0.0, -inf, 0.0]]
    """
    return _forbidden(inner, ids, lambda t: None)


def forbid_until(inner: Denoiser, ids: Sequence[int], until: float) -> Denoiser:
    """Removes `ids` from every prediction at times above `until`: no end of text too early.

    Args:
        inner: the denoiser to wrap.
        ids: token ids.
        until: time in [0, 1] from which on they are allowed; 0 forbids them at every step.

    Returns:
        `Denoiser`.

    Raises:
        ValueError: as `forbid`, and if `until` lies outside [0, 1].

    Examples:
        >>> import mdm_jax as mdm
        >>> flat = mdm.denoiser(lambda tokens, t: jnp.zeros((*tokens.shape, 2)))
        >>> d = forbid_until(flat, [1], 0.5)
        >>> for t in (0.75, 0.5):
        ...     d.apply(jnp.zeros((1,), jnp.int32), jnp.float32(t), ())[0].tolist()
        [[0.0, -inf]]
        [[0.0, 0.0]]
    """
    if not 0 <= until <= 1:
        raise ValueError(f"until={until}: expected a time in [0, 1]")
    return _forbidden(inner, ids, lambda t: t > until)


def _forbidden(inner: Denoiser, ids: Sequence[int], when: Callable[[Times], jax.Array | None]):
    """Removes ids at times for which `when` is true, or None for all times."""
    listed = sorted({int(i) for i in ids})
    if not listed or listed[0] < 0:
        raise ValueError(f"forbid ids={list(ids)}: expected at least one id, none negative")

    def remove(logits: Logits, tokens: Tokens, t: Times) -> Logits:
        del tokens
        width = logits.shape[-1]
        if listed[-1] >= width:
            raise ValueError(f"forbid id {listed[-1]}: the logits have {width} columns")
        removed = np.isin(np.arange(width), listed).reshape((1,) * (logits.ndim - 1) + (width,))
        now = when(jnp.asarray(t, jnp.float32))
        if now is not None:
            removed = removed & align(now, logits)
        return jnp.where(removed, -jnp.inf, logits.astype(jnp.float32))

    return edited(inner, remove, positionwise=True)


def _sortable(logits: jax.Array) -> jax.Array:
    """int32 numbers in the order of the float32 logits; both zeros are equal."""
    bits = jax.lax.bitcast_convert_type(jnp.where(logits == 0, 0.0, logits), jnp.int32)
    return jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def _kth_largest(ranks: jax.Array, k: int) -> jax.Array:
    """The largest int32 that at least k entries of the last axis reach, int32[..., 1]."""
    low = jnp.zeros_like(ranks[..., :1]) + np.int32(-(2**31))  # all reach it
    high = jnp.zeros_like(low) + np.int32(2**31 - 1)  # beyond any float but some NaN

    def halve(_, interval):
        low, high = interval
        middle = (low >> 1) + (high >> 1) + (low & high & 1)  # their sum may overflow
        enough = jnp.sum(ranks >= middle, axis=-1, keepdims=True, dtype=jnp.int32) >= k
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    low, _ = jax.lax.fori_loop(0, 32, halve, (low, high))
    return low


def _nucleus_threshold(probs: jax.Array, p: jax.Array) -> jax.Array:
    """Largest float32 tau with sum(probs where probs >= tau) >= p, float32[*B, L, 1].

    Non-negative floats are ordered like their bit patterns, so 31 halvings of an integer interval
    find tau exactly. The mass cannot exceed its own float32 total, hence the minimum.
    """
    target = jnp.minimum(p, jnp.sum(probs, axis=-1, keepdims=True))
    low = jnp.zeros_like(target, dtype=jnp.int32)  # threshold 0 keeps everything: always enough
    high = jnp.full_like(low, np.float32(2.0).view(np.int32))  # keeps nothing: never enough

    def halve(_, interval):
        low, high = interval
        middle = low + (high - low) // 2
        tau = jax.lax.bitcast_convert_type(middle, jnp.float32)
        mass = jnp.sum(jnp.where(probs >= tau, probs, 0.0), axis=-1, keepdims=True)
        enough = mass >= target
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    low, _ = jax.lax.fori_loop(0, 31, halve, (low, high))
    return jax.lax.bitcast_convert_type(low, jnp.float32)


def _check_positive(name: str, value: Setting) -> None:
    if isinstance(value, int | float) and not value > 0:
        raise ValueError(f"{name}={value}: expected a positive number")
