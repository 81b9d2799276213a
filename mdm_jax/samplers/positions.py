"""Filling chosen positions: what the samplers that go position by position share.

Positions are chosen from the state, or from the model's distributions there, never from the tokens
about to be drawn; then tokens are drawn. Every row does the same work whatever it holds, so shapes
are static: how many positions a row commits is a number, not a shape.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mdm_jax import draws
from mdm_jax.arrays import Bool, Key, Logits, PerToken, Times, Tokens, last_axis_index
from mdm_jax.processes import Masked
from mdm_jax.processes.base import align
from mdm_jax.reading import at_places, over_positions
from mdm_jax.samplers.base import Sampler
from mdm_jax.samplers.certainty import top_id
from mdm_jax.samplers.quotas import Even, PerStep, Quota

Score = Callable[[Key, Tokens, Logits], PerToken]
Choose = Callable[[Key, Tokens, Logits, Bool], Bool]


class Progress(NamedTuple):
    """What is carried from step to step, and only where it is needed.

    Attributes:
        origin: int32[*B], the position that blocks are counted from; None without blocks.
        left: int32[*B], steps left of an `Even` quota; None for the others.
    """

    origin: jax.Array | None = None
    left: jax.Array | None = None


def fill_best(
    process: Masked,
    score: Score,
    quota: Quota | int = 1,
    *,
    block: int | None = None,
    temperature: float = 1.0,
) -> Sampler:
    """A sampler that fills the masked positions of highest score, as many as a quota says.

    Masks that are left at the last step (s = 0) are drawn in it, so that none remains.

    Args:
        process: a masked process.
        score: ``(key, tokens int32[*B, L], logits) -> float32[*B, L]``.
        quota: how many positions per step and row.
        block: as in `Walk`.
        temperature: as in `draw`.

    Returns:
        `Sampler`.
    """
    quota = PerStep(quota) if isinstance(quota, int) else quota
    walk = Walk(process, quota, block)
    temperature = check_temperature(temperature)

    def step(key, logits, tokens, state, t, s, **extra):
        candidates, open_masks = walk.candidates(tokens, state, extra.get("keep"))
        key_where, key_what, key_rest = jax.random.split(key, 3)
        scores = score(key_where, tokens, logits)
        count = walk.count(candidates, state, t, s)
        last = align(jnp.asarray(s) <= 0, tokens)
        most = quota.most(tokens.shape[-1] if block is None else min(block, tokens.shape[-1]))
        if most is None:
            chosen = best(scores, candidates, count) | (open_masks & last)
            return walk.fill(key_what, logits, tokens, chosen, temperature), walk.next(
                candidates, chosen, state
            )
        places = _top_places(_among(scores, candidates), most)
        taken = jnp.take_along_axis(candidates, places, axis=-1)
        taken = taken & (last_axis_index(most, tokens.ndim) < count[..., None])
        rows = process.data_logits(at_places(logits, places))
        drawn = draw(key_what, rows, temperature).astype(tokens.dtype)
        filled, written = _write(tokens, places, drawn, taken)
        rest = open_masks & ~written & last
        finished = jax.lax.cond(
            # Asked of the time alone: with a clock that rows share, this stays a branch under vmap.
            jnp.any(last),
            lambda filled: walk.fill(key_rest, logits, filled, rest, temperature),
            lambda filled: filled,
            filled,
        )
        return finished, walk.next(candidates, written, state)

    return Sampler(init=walk.start, step=step, idle=walk.idle)


def fill_chosen(
    process: Masked,
    choose: Choose,
    *,
    block: int | None = None,
    temperature: float = 1.0,
) -> Sampler:
    """A sampler that fills whatever positions `choose` says, all open ones at s = 0.

    Args:
        process: a masked process.
        choose: ``(key, tokens, logits, candidates) -> bool[*B, L]``; where it is true outside the
            candidates does not count.
        block: as in `Walk`.
        temperature: as in `draw`.

    Returns:
        `Sampler`.
    """
    walk = Walk(process, PerStep(1), block)
    temperature = check_temperature(temperature)

    def step(key, logits, tokens, state, t, s, **extra):
        del t
        candidates, open_masks = walk.candidates(tokens, state, extra.get("keep"))
        key_where, key_what = jax.random.split(key)
        chosen = choose(key_where, tokens, logits, candidates) & candidates
        chosen = chosen | (open_masks & align(jnp.asarray(s) <= 0, tokens))
        return walk.fill(key_what, logits, tokens, chosen, temperature), state

    return Sampler(init=walk.start, step=step, idle=walk.idle)


class Walk:
    """The way through a row: which masks are candidates now, and how many of them are due.

    Args:
        process: a masked process.
        quota: how many positions per step and row.
        block: if given, only masks of a row's leftmost unfinished block of so many positions are
            candidates (semi-autoregressive decoding). Blocks are counted from the first mask of
            the row's initial canvas, which is where its prompt ends.

    Raises:
        TypeError: if `process` is not masked or `block` is no integer.
        ValueError: if `block` < 1.
    """

    def __init__(self, process: Masked, quota: Quota, block: int | None):
        if not isinstance(process, Masked):
            raise TypeError(
                f"process={process!r}: filling masks needs a Masked process, whose tokens change "
                "once; use ancestral"
            )
        if block is not None and not isinstance(block, int):
            raise TypeError(f"block={block!r}: expected an integer, or None for no blocks")
        if block is not None and block < 1:
            raise ValueError(f"block={block}: expected at least 1 position, or None for no blocks")
        self.process, self.quota, self.block = process, quota, block

    def start(self, tokens: Tokens) -> Progress:
        """Returns the state before the first step."""
        origin = left = None
        if self.block is not None:
            origin = jnp.argmax(self.process.is_masked(tokens), axis=-1).astype(jnp.int32)
        if isinstance(self.quota, Even):
            left = jnp.full_like(tokens[..., 0], self.quota.steps, dtype=jnp.int32)
        return Progress(origin, left)

    def candidates(self, tokens: Tokens, state: Progress, keep: Bool | None) -> tuple[Bool, Bool]:
        """Returns the masks that may be filled now, and all that will be: bool[*B, L] each.

        A mask that is kept is none of the sampler's business.
        """
        open_masks = self.process.is_masked(tokens)
        if keep is not None:
            open_masks = open_masks & ~keep
        if self.block is None:
            return open_masks, open_masks
        assert state.origin is not None
        first = jnp.argmax(open_masks, axis=-1).astype(jnp.int32)
        current = (first - state.origin) // self.block
        places = last_axis_index(tokens.shape[-1], tokens.ndim)
        blocks = (places - state.origin[..., None]) // self.block
        return open_masks & (blocks == current[..., None]), open_masks

    def count(self, candidates: Bool, state: Progress, t: Times, s: Times) -> jax.Array:
        """Returns how many candidates are due, int32[*B]."""
        masks = jnp.sum(candidates, axis=-1, dtype=jnp.int32)
        return self.quota.count(masks, state.left, t, s)

    def idle(
        self,
        key: Key,
        tokens: Tokens,
        state: Progress,
        t: Times,
        s: Times,
        *,
        keep: Bool | None = None,
    ) -> jax.Array:
        """Returns the rows that have nothing due now, bool[*B]: see `Sampler.idle`."""
        del key
        candidates, _ = self.candidates(tokens, state, keep)
        return ~jnp.any(candidates, axis=-1) | (self.count(candidates, state, t, s) == 0)

    def fill(
        self, key: Key, logits: Logits, tokens: Tokens, where: Bool, temperature: float
    ) -> Tokens:
        """Draws tokens at the positions `where`, all at once."""
        drawn = draw_everywhere(key, self.process, logits, tokens, temperature)
        return jnp.where(where, drawn, tokens)

    def next(self, candidates: Bool, written: Bool, state: Progress) -> Progress:
        """Returns the state after a step: a finished block gives the next one all its steps."""
        if not isinstance(self.quota, Even):
            return state
        assert state.left is not None
        unfinished = jnp.any(candidates & ~written, axis=-1)
        left = jnp.where(unfinished, jnp.maximum(state.left - 1, 1), self.quota.steps)
        return state._replace(left=left)


def best(scores: PerToken, candidates: Bool, count: jax.Array) -> Bool:
    """Returns where the `count` candidates of highest score stand, bool[*B, L].

    Args:
        scores: float32[*B, L].
        candidates: bool[*B, L]; nothing outside is returned.
        count: int32[*B].

    Examples:
        >>> scores, all_of_them = jnp.array([0.2, 0.9, 0.5]), jnp.ones((3,), bool)
        >>> best(scores, all_of_them, jnp.int32(2)).tolist()
        [False, True, True]
    """
    rank = jnp.argsort(descending(scores, candidates), axis=-1)
    return candidates & (rank < count[..., None])


def descending(scores: PerToken, candidates: Bool) -> jax.Array:
    """Returns positions from best to worst, int32[*B, L]: candidates first, leftmost of equals."""
    return jnp.argsort(-_among(scores, candidates), axis=-1, stable=True).astype(jnp.int32)


def draw(key: Key, logits: Logits, temperature: float) -> Tokens:
    """Draws ids from softmax(logits / temperature), int32[*B, L]; the most probable one at 0.

    -1, which no vocabulary has, where no id is possible.
    """
    if temperature == 0:
        possible = jnp.max(logits, axis=-1) > -jnp.inf
        return jnp.where(possible, top_id(logits), -1)
    return draws.categorical(key, logits if temperature == 1 else logits / temperature)


def draw_everywhere(
    key: Key, process: Masked, logits: Logits, tokens: Tokens, temperature: float
) -> Tokens:
    """Draws a predictable id for every position, shaped like `tokens`, with keys of their own.

    A few positions at a time, so that little is held beside the logits.
    """

    def read(logits, places):
        keys = jax.vmap(lambda place: jax.random.fold_in(key, place))(places)
        one = lambda key, logits: draw(key, process.data_logits(logits), temperature)
        return jax.vmap(one, in_axes=(0, logits.ndim - 2), out_axes=-1)(keys, logits)

    places = jnp.arange(tokens.shape[-1], dtype=jnp.int32)
    return over_positions(read, logits, places).astype(tokens.dtype)


def check_temperature(temperature: float) -> float:
    """Returns `temperature`, a non-negative number, or raises ValueError."""
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature={temperature}: expected a number, 0 (greedy) or more")
    return float(temperature)


def _among(scores: PerToken, candidates: Bool) -> PerToken:
    """The scores of candidates, -inf elsewhere; a model's NaN is the worst of candidates."""
    lowest = jnp.finfo(jnp.float32).min
    scores = jnp.where(jnp.isnan(scores), lowest, jnp.maximum(scores, lowest))
    return jnp.where(candidates, scores, -jnp.inf)


def _top_places(scores: jax.Array, count: int) -> jax.Array:
    """The `count` positions of highest score, int32[*B, count]."""
    if count == 1:
        return jnp.argmax(scores, axis=-1, keepdims=True).astype(jnp.int32)
    return jax.lax.top_k(scores, count)[1].astype(jnp.int32)


def _write(tokens: Tokens, places: jax.Array, drawn: Tokens, taken: Bool) -> tuple[Tokens, Bool]:
    """Writes what was drawn for `places` where it is `taken`; says where it wrote."""
    # Written by comparison rather than by scatter, which partitions on any mesh.
    index = last_axis_index(tokens.shape[-1], tokens.ndim + 1)
    hit = (places[..., None] == index) & taken[..., None]
    written = jnp.sum(jnp.where(hit, drawn[..., None], 0), axis=-2, dtype=tokens.dtype)
    where = jnp.any(hit, axis=-2)
    return jnp.where(where, written, tokens), where
