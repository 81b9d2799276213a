"""Nested canvases: the masks of each row lift in an order of its own, fixed beforehand.

With the order drawn first, the canvases on which the next j tokens are filled in differ for j = 0,
1, 2... by one place each, and one model call on all of them gives the law of each next token.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mdm_jax.any_order import sorted_places
from mdm_jax.arrays import Bool, Key, Logits, LogProbs, Times, Tokens, last_axis_index
from mdm_jax.denoisers import Denoiser
from mdm_jax.processes import Masked
from mdm_jax.reading import at_places, by_rows
from mdm_jax.samplers.first_hitting import hitting_times


class Walk(NamedTuple):
    """The way of each row through its masks.

    Attributes:
        process: the masked process.
        order: int32[*B, L], places; those of the masks to lift first.
        rank: int32[*B, L], where in that order each place stands.
        masks: int32[*B], how many there are to lift.
        times: float32[*B, L + 1], when each lifts.
    """

    process: Masked
    order: jax.Array
    rank: jax.Array
    masks: jax.Array
    times: Times

    def next_places(self, lifted: jax.Array, count: int) -> jax.Array:
        """The next `count` places, int32[*B, count]; beyond the end of the row, its last again."""
        at = lifted[..., None] + last_axis_index(count, self.order.ndim)
        return jnp.take_along_axis(self.order, jnp.minimum(at, self.order.shape[-1] - 1), axis=-1)

    def next_times(self, lifted: jax.Array, count: int) -> Times:
        """The times at which the next `count` masks lift, float32[*B, count]."""
        # Beyond a row's end its last one again: 0 is no time to call a model at.
        at = lifted[..., None] + last_axis_index(count, self.order.ndim)
        at = jnp.clip(at, 0, jnp.maximum(self.masks - 1, 0)[..., None])
        return jnp.take_along_axis(self.times, at, axis=-1)

    def waiting(self, lifted: jax.Array) -> jax.Array:
        """How many masks lift before that of each place, int32[*B, L]; -1 where none will lift."""
        to_lift = (self.rank >= lifted[..., None]) & (self.rank < self.masks[..., None])
        return jnp.where(to_lift, self.rank - lifted[..., None], -1)

    def log_probs(self, logits: Logits, canvas: jax.Array, places: jax.Array) -> LogProbs:
        """Predictions at int32[*B, N] places, each on one of the canvases of float[*B, C, L, W].

        Returns:
            float32[*B, N, V]; the only rows of the logits that are ever cast or normalized.
        """
        length = self.order.shape[-1]
        flat = by_rows(lambda x: x.reshape(*x.shape[:-3], -1, x.shape[-1]), logits)
        return self.process.log_probs(at_places(flat, canvas * length + places))


def draw_walk(
    key: Key, process: Masked, tokens: Tokens, *, keep: Bool | None = None, in_place: bool = False
) -> Walk:
    """Draws an order for the masks of each row, and the times at which they lift.

    Args:
        key: a PRNG key.
        process: a masked process.
        tokens: int32[*B, L], the canvas.
        keep: bool[*B, L], positions that will not change.
        in_place: from left to right, and not in uniformly random order.

    Returns:
        `Walk`.

    Examples:
        >>> import mdm_jax as mdm
        >>> process = mdm.Masked(vocab_size=5, schedule=mdm.Linear())
        >>> walk = draw_walk(jax.random.key(0), process, jnp.array([5, 2, 5]), in_place=True)
        >>> walk.order.tolist(), walk.masks.item(), walk.waiting(jnp.int32(1)).tolist()
        ([0, 2, 1], 2, [-1, -1, 0])
    """
    key_order, key_times = jax.random.split(key)
    to_lift = process.is_masked(tokens)
    to_lift = to_lift if keep is None else to_lift & ~keep
    order = sorted_places(
        key_order, (~to_lift).astype(jnp.int32), in_place=jnp.full_like(to_lift, in_place)
    )
    times = hitting_times(key_times, process, tokens, tokens.shape[-1], keep=keep)
    return Walk(
        process=process,
        order=order,
        rank=jnp.argsort(order, axis=-1).astype(jnp.int32),
        masks=jnp.sum(to_lift, axis=-1, dtype=jnp.int32),
        times=jnp.moveaxis(times, 0, -1),
    )


def revealed(tokens: Tokens, waiting: jax.Array, ids: jax.Array, counts: jax.Array) -> Tokens:
    """The canvases on which the first so many of the next tokens are filled in.

    Args:
        tokens: int32[*B, L].
        waiting: int32[*B, L], as of `Walk.waiting`: which of `ids` belongs to each place.
        ids: int32[*B, N], the next tokens in the order of the walk.
        counts: int32[*B, C], how many of them stand on each canvas.

    Returns:
        int32[*B, C, L].

    Examples:
        >>> waiting = jnp.array([1, -1, 0])
        >>> revealed(jnp.array([9, 9, 9]), waiting, jnp.array([5, 6]), jnp.array([1, 2])).tolist()
        [[9, 9, 5], [6, 9, 5]]
    """
    there = jnp.take_along_axis(ids, jnp.clip(waiting, 0, ids.shape[-1] - 1), axis=-1)
    waiting = waiting[..., None, :]
    shown = (waiting >= 0) & (waiting < counts[..., None])
    return jnp.where(shown, there.astype(tokens.dtype)[..., None, :], tokens[..., None, :])


def evaluate_canvases(model: Denoiser, canvases: Tokens, times: Times) -> Logits:
    """One model call on all canvases.

    Args:
        model: a denoiser without memory.
        canvases: int32[*B, C, L].
        times: float32[*B, C].

    Returns:
        float[*B, C, L, W].

    Raises:
        TypeError: if the denoiser has a memory: it would be of other canvases than these.

    Examples:
        >>> import mdm_jax as mdm
        >>> shapes = lambda tokens, t: jnp.zeros((*tokens.shape, 7)) + t[..., None, None]
        >>> canvases, times = jnp.zeros((2, 3, 4), jnp.int32), jnp.zeros((2, 3))
        >>> evaluate_canvases(mdm.denoiser(shapes), canvases, times).shape
        (2, 3, 4, 7)
    """
    # The canvases of a row lie side by side, so that rows spread over devices stay there.
    *lead, count, length = canvases.shape
    batch = (*lead[:-1], lead[-1] * count) if lead else (count,)
    flat = canvases.reshape(*batch, length)
    carry = model.init(flat)
    if jax.tree.leaves(carry):
        raise TypeError(
            "nested canvases need a denoiser without memory, whose logits depend on the canvas and "
            "the time alone; the carry of this one holds arrays. Take the cache off"
        )
    logits, _ = model.apply(flat, times.reshape(batch), carry)
    return by_rows(lambda x: x.reshape(*canvases.shape, x.shape[-1]), logits)
