"""Filling a few chosen positions per step: what the position-by-position samplers share."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mdm_jax import draws
from mdm_jax.arrays import Bool, Key, Logits, Tokens, last_axis_index
from mdm_jax.processes import Masked
from mdm_jax.processes.base import align
from mdm_jax.samplers.base import Sampler

Score = Callable[[Key, Tokens], jax.Array]


def fill_best(process: Masked, score: Score, per_step: int) -> Sampler:
    """A sampler that fills the `per_step` masked positions of highest score at every step.

    The score sees the tokens and a key, never the logits' draws: positions are chosen from the
    state, then tokens are drawn. Masks that are left at the last step (s = 0) are drawn in it
    together, so that none remains. Every row does the same work, so shapes are static.

    Args:
        process: a masked process.
        score: ``(key, tokens int32[*B, L]) -> float32[*B, L]``, non-negative.
        per_step: positions filled per step and row.

    Returns:
        `Sampler` without state.
    """

    def step(key, logits, tokens, state, t, s, **extra):
        del t
        open_masks = process.is_masked(tokens)
        if extra.get("keep") is not None:  # a mask that is kept is none of the sampler's business
            open_masks = open_masks & ~extra["keep"]
        key_where, key_what, key_rest = jax.random.split(key, 3)
        scores = jnp.where(open_masks, score(key_where, tokens), -1.0)
        chosen = _top_positions(scores, per_step)
        filled, written = _fill(key_what, process, logits, tokens, chosen, open_masks)
        last = jnp.asarray(s) <= 0
        rest = open_masks & ~written & align(last, tokens)
        finished = jax.lax.cond(
            jnp.any(rest),
            lambda filled: _fill_all(key_rest, process, logits, filled, rest),
            lambda filled: filled,
            filled,
        )
        return finished, state

    return Sampler(init=lambda tokens: (), step=step)


def _top_positions(scores: jax.Array, count: int) -> jax.Array:
    """The `count` positions of highest score, int32[*B, count]."""
    if count == 1:
        return jnp.argmax(scores, axis=-1, keepdims=True).astype(jnp.int32)
    return jax.lax.top_k(scores, min(count, scores.shape[-1]))[1].astype(jnp.int32)


def _fill(
    key: Key,
    process: Masked,
    logits: Logits,
    tokens: Tokens,
    chosen: jax.Array,
    open_masks: Bool,
) -> tuple[Tokens, Bool]:
    """Draws tokens at the chosen open positions, reading only their logits; says where it wrote."""
    masked = jnp.take_along_axis(open_masks, chosen, axis=-1)
    rows = jnp.take_along_axis(logits, chosen[..., None], axis=-2)
    drawn = draws.categorical(key, process.data_logits(rows)).astype(tokens.dtype)
    # Written by comparison rather than by scatter, which partitions on any mesh.
    places = last_axis_index(tokens.shape[-1], tokens.ndim + 1)
    hit = (chosen[..., None] == places) & masked[..., None]
    written = jnp.sum(jnp.where(hit, drawn[..., None], 0), axis=-2, dtype=tokens.dtype)
    where = jnp.any(hit, axis=-2)
    return jnp.where(where, written, tokens), where


def _fill_all(key: Key, process: Masked, logits: Logits, tokens: Tokens, where: Bool) -> Tokens:
    """Draws all the given positions at once."""
    drawn = draws.categorical(key, process.data_logits(logits)).astype(tokens.dtype)
    return jnp.where(where, drawn, tokens)
