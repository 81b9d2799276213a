"""First-hitting sampling: unmask one uniformly random position after another, exactly."""

import jax
import jax.numpy as jnp

from mdm_jax import draws
from mdm_jax.arrays import Key, Times, Tokens, last_axis_index
from mdm_jax.processes import Masked
from mdm_jax.processes.base import align
from mdm_jax.samplers.base import Sampler


def first_hitting(process: Masked, per_step: int = 1) -> Sampler:
    """Unmasks `per_step` uniformly random masked positions per step (Zheng et al., 2024).

    The reverse process of masked diffusion lifts masks one at a time in uniformly random order.
    This sampler simulates just those jumps: positions are chosen from the state alone, then their
    tokens are drawn.

    Exactness: exact for the model's own any-order joint with ``per_step=1``, a model that does not
    depend on t, and at least as many steps as there are masks. A model conditioned on t is exact
    with the times of `hitting_times`. With ``per_step`` above 1 the error is the total correlation
    of positions drawn together (exact in a limit). Masks left at the last step (s = 0) are all
    drawn in it, so that no mask remains: take ``time_grid(ceil(masks / per_step))`` or longer.

    Every row does the same work whatever it holds, so shapes are static, and rows with fewer masks
    finish early.

    Args:
        process: a masked process.
        per_step: positions unmasked per step and row, at least 1.

    Returns:
        `Sampler` without state. One model call per step.

    Raises:
        TypeError: if `process` is not masked.
        ValueError: if `per_step` < 1.

    Examples:
        >>> import mdm_jax as mdm
        >>> process = mdm.Masked(vocab_size=5, schedule=mdm.Linear())
        >>> model = mdm.denoiser(lambda tokens, t: jnp.zeros((*tokens.shape, 5)))
        >>> start = jnp.full((2, 8), process.mask_id)
        >>> out = mdm.generate(
        ...     jax.random.key(0), model, first_hitting(process), start, mdm.time_grid(8)
        ... )
        >>> bool((out.tokens < 5).all()), int(out.calls)
        (True, 8)
    """
    if not isinstance(process, Masked):
        raise TypeError(
            f"process={process!r}: first_hitting needs a Masked process, whose tokens change once; "
            "use ancestral"
        )
    if per_step < 1:
        raise ValueError(f"per_step={per_step}: expected at least 1")

    def step(key, logits, tokens, state, t, s, **extra):
        del t, extra
        key_where, key_what, key_rest = jax.random.split(key, 3)
        chosen = _random_positions(key_where, process.is_masked(tokens), per_step)
        masked = jnp.take_along_axis(tokens, chosen, axis=-1) == process.mask_id
        rows = jnp.take_along_axis(logits, chosen[..., None], axis=-2)
        drawn = draws.categorical(key_what, process.data_logits(rows)).astype(tokens.dtype)
        filled = _put(tokens, chosen, jnp.where(masked, drawn, process.mask_id), masked)

        def finish(filled):
            rest = draws.categorical(key_rest, process.data_logits(logits)).astype(tokens.dtype)
            last = align(jnp.asarray(s) <= 0, tokens)
            return jnp.where(process.is_masked(filled) & last, rest, filled)

        left = jnp.any(process.is_masked(filled)) & jnp.any(jnp.asarray(s) <= 0)
        return jax.lax.cond(left, finish, lambda filled: filled, filled), state

    return Sampler(init=lambda tokens: (), step=step)


def hitting_times(key: Key, process: Masked, tokens: Tokens, steps: int) -> Times:
    """Draws the random times at which masks lift, one decreasing sequence per row.

    With n masks left at time t, the next one lifts at the s with
    1 - alpha(s) = (1 - alpha(t)) u^(1/n), u uniform. Give the result to `generate` as `times`, so
    that a model conditioned on t sees the times of the true reverse process.

    Args:
        key: a PRNG key.
        process: the masked process.
        tokens: int32[*B, L], the canvas to start from; its masks are counted per row.
        steps: number of steps; rows with fewer masks sit at time 0 once they are done.

    Returns:
        float32[steps + 1, *B], decreasing to 0. Entry i is the time fed to the model at step i,
        which is the time at which that step's mask lifts.

    Raises:
        ValueError: if `steps` < 1.

    Examples:
        >>> import mdm_jax as mdm
        >>> process = mdm.Masked(vocab_size=5, schedule=mdm.Linear())
        >>> times = hitting_times(jax.random.key(0), process, jnp.full((2, 4), 5), 4)
        >>> times.shape, bool((jnp.diff(times, axis=0) <= 0).all())
        ((5, 2), True)
    """
    if steps < 1:
        raise ValueError(f"steps={steps}: expected at least 1")
    masks = jnp.sum(process.is_masked(tokens), axis=-1)
    batch = masks.shape
    left = masks[None] - jnp.arange(steps).reshape((steps,) + (1,) * len(batch))
    u = jax.random.uniform(key, (steps, *batch), jnp.float32, minval=jnp.finfo(jnp.float32).tiny)
    log_factor = jnp.log(u) / jnp.maximum(left, 1).astype(jnp.float32)
    start = process.schedule.noise_rate(jnp.float32(1.0))
    noise = start * jnp.exp(jnp.cumsum(log_factor, axis=0))
    times = process.schedule.inverse(1.0 - noise)
    times = jnp.where(left > 0, jnp.clip(times, 0.0, 1.0), 0.0)
    return jnp.concatenate([times, jnp.zeros((1, *batch), jnp.float32)], axis=0)


def _random_positions(key: Key, candidates: jax.Array, count: int) -> jax.Array:
    """Uniformly random `count` of the candidate positions, int32[*B, count].

    Rows with fewer candidates are filled up with other positions, which callers must ignore.
    """
    score = jax.random.uniform(key, candidates.shape, jnp.float32)
    score = jnp.where(candidates, score, -1.0)
    if count == 1:
        return jnp.argmax(score, axis=-1, keepdims=True).astype(jnp.int32)
    return jax.lax.top_k(score, min(count, candidates.shape[-1]))[1].astype(jnp.int32)


def _put(tokens: Tokens, positions: jax.Array, values: Tokens, active: jax.Array) -> Tokens:
    """Writes values at positions where active, by comparison: partitions on any mesh."""
    length = last_axis_index(tokens.shape[-1], tokens.ndim + 1)
    hit = (positions[..., None] == length) & active[..., None]
    written = jnp.sum(jnp.where(hit, values[..., None], 0), axis=-2, dtype=tokens.dtype)
    return jnp.where(jnp.any(hit, axis=-2), written, tokens)
