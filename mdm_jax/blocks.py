"""Generation from left to right in blocks, with any sampler inside, and past the model's length."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mdm_jax.arrays import Bool, Key, Times, Tokens, last_axis_index
from mdm_jax.denoisers import Denoiser
from mdm_jax.generation import Generation, generate
from mdm_jax.processes.base import check_tokens
from mdm_jax.reading import by_rows
from mdm_jax.samplers.base import Sampler
from mdm_jax.stopping import Stop, any_of


class Blocks(NamedTuple):
    """The carry of a denoiser that reads one block at a time and remembers the rest of the canvas.

    Attributes:
        tokens: int32[*B, L], the canvas; what stands before `start` is final.
        start: int32[], the first position of the block that `apply` reads.
        memory: what else the denoiser carries: keys and values, or the carry of another denoiser.
        calls: int32[], model evaluations so far that no `apply` accounts for, such as the reading
            of a finished block into a cache.
    """

    tokens: Tokens
    start: jax.Array
    memory: Any
    calls: jax.Array


def by_block(inner: Denoiser) -> Denoiser:
    """Lets a denoiser of whole canvases read one block at a time, as `generate_blocks` asks.

    Every call evaluates the whole canvas, on which later blocks stand as they were given, and the
    logits of the block are cut out; those of a model that returns `Hidden` are made for the block
    alone. `commit` writes a finished block on the canvas and moves on;
    `inner` is told to commit once the last block is there.

    Args:
        inner: a denoiser of canvases, int32[*B, L].

    Returns:
        `Denoiser` with a `Blocks` carry.

    Examples:
        >>> import mdm_jax as mdm
        >>> d = by_block(mdm.denoiser(lambda tokens, t: jax.nn.one_hot(tokens, 3)))
        >>> carry = d.commit(jnp.array([[1, 1]]), d.init(jnp.array([[2, 2, 2, 2]])))
        >>> carry.tokens.tolist(), int(carry.start)
        ([[1, 1, 2, 2]], 2)
        >>> d.apply(jnp.array([[0, 2]]), jnp.float32(1.0), carry)[0].shape
        (1, 2, 3)
    """

    def init(tokens):
        return Blocks(tokens, jnp.int32(0), inner.init(tokens), jnp.int32(0))

    def apply(window, t, carry):
        canvas = put(carry.tokens, window, carry.start)
        logits, memory = inner.apply(canvas, t, carry.memory)
        width = window.shape[-1]
        cut = lambda x: jax.lax.dynamic_slice_in_dim(x, carry.start, width, axis=-2)
        return by_rows(cut, logits), carry._replace(memory=memory)

    def commit(window, carry):
        canvas, end = put(carry.tokens, window, carry.start), carry.start + window.shape[-1]
        memory = jax.lax.cond(
            end == canvas.shape[-1],
            lambda memory: inner.commit(canvas, memory),
            lambda memory: memory,
            carry.memory,
        )
        return carry._replace(tokens=canvas, start=end, memory=memory)

    return Denoiser(init=init, apply=apply, commit=commit, calls=inner.calls)


def generate_blocks(
    key: Key,
    denoiser: Denoiser,
    sampler: Sampler,
    tokens: Tokens,
    times: Times,
    *,
    block: int,
    keep: Bool | None = None,
    stop: Stop | None = None,
    block_stop: Stop | None = None,
) -> Generation:
    """Fills the canvas block by block from left to right; each block walks down all of `times`.

    Semi-autoregressive generation (SSD-LM; BD3-LM, section 3; LLaDA): the sampler sees one block at
    a time, and blocks before it are final. Block b uses the key ``fold_in(key, b)``, so that with
    ``block = L`` this is ``generate(fold_in(key, 0), ...)``.

    Exactness: that of the inner sampler, for the law that factorizes over blocks,
    prod_b p(block b | blocks before b). This is the model's own law if it was trained by blocks
    (`block_objective`). For a model trained on whole canvases, which sees the later blocks as
    masks, it is a mixture over fewer orders than its own law: "exact for consistent conditionals"
    at best; if it is conditioned on time, "heuristic", since no canvas in training has as many
    masks behind the block as t says.

    Args:
        key: a PRNG key.
        denoiser: of whole canvases, such as `mdm.denoiser(f)` and wrappers of it, which evaluates
            the whole canvas at every step (`by_block`); or one that carries `Blocks`, such as
            `mdm_jax.models.block_decoding.block_cached`, which reads the block alone.
        sampler: how to draw inside a block.
        tokens: int32[*B, L], the canvas: noise, and given tokens at `keep`.
        times: float32[T + 1] or float32[T + 1, *B], the steps of every block.
        block: tokens in a block; it divides L.
        keep: bool[*B, L], positions that must not change.
        stop: ``tokens int32[*B, L] -> bool[*B]``, asked between blocks, such as `eos_decided`. A
            finished row is frozen: the rest of its canvas stays as it was given (masks, mostly).
            Generation ends when all rows are finished.
        block_stop: a stop of ``int32[*B, block]``, asked after every step: rows that are done with
            this block, such as `all_decided`.

    Returns:
        `Generation`. `calls` counts the steps taken in all blocks, and what a cache needed to read
        finished blocks.

    Raises:
        TypeError: if `tokens` are not integers, or `stop` needs logits.
        ValueError: if `block` does not divide L, or as in `generate`.

    Examples:
        >>> import mdm_jax as mdm
        >>> process = mdm.Masked(vocab_size=5, schedule=mdm.Linear())
        >>> model = mdm.denoiser(lambda tokens, t: jnp.zeros((*tokens.shape, 5)))
        >>> prompt = jnp.array([[3, 5, 5, 1, 5, 5]])
        >>> out = generate_blocks(jax.random.key(0), model, mdm.first_hitting(process), prompt,
        ...                       mdm.time_grid(2), block=2, keep=prompt != 5,
        ...                       block_stop=mdm.all_decided(process))
        >>> out.tokens[0, 0].item(), out.tokens[0, 3].item(), int(out.calls)
        (3, 1, 4)
    """
    length = _checked_length(tokens, keep)
    if isinstance(block, bool) or not isinstance(block, int) or block < 1 or length % block:
        raise ValueError(
            f"block={block!r} does not divide the length L={length}: take a divisor, or a canvas "
            "whose length is a multiple of it"
        )
    carry = denoiser.init(tokens)
    if not blocks_in(carry):
        denoiser = by_block(denoiser)
        carry = denoiser.init(tokens)
    first = blocks_in(carry)[0].start // block
    finished = _between_blocks(stop)

    def unfinished(loop):
        b, _, _, _, done = loop
        return (b < length // block) & ~jnp.all(done)

    def fill(loop):
        b, tokens, carry, calls, done = loop
        window = take(tokens, b * block, block)
        kept = None if keep is None else take(keep, b * block, block)
        out = generate(
            jax.random.fold_in(key, b),
            denoiser._replace(init=lambda _: carry),
            sampler,
            window,
            times,
            keep=kept,
            stop=_done_with_block(done, kept, block_stop),
        )
        tokens = put(tokens, out.tokens, b * block)
        return b + 1, tokens, out.carry, calls + out.calls, done | finished(tokens)

    start = (first, tokens, carry, _zero(tokens), finished(tokens))
    _, tokens, carry, calls, _ = jax.lax.while_loop(unfinished, fill, start)
    return Generation(tokens, sum((x.calls for x in blocks_in(carry)), calls), carry)


def generate_strided(
    key: Key,
    denoiser: Denoiser,
    sampler: Sampler,
    tokens: Tokens,
    times: Times,
    *,
    window: int,
    stride: int,
    keep: Bool | None = None,
    stop: Stop | None = None,
    window_stop: Stop | None = None,
) -> Generation:
    """Generates texts of any length with a model of `window` tokens (MDLM, section 4).

    The model sees a window of the text, which moves on by `stride` once it is filled: the last
    ``window - stride`` tokens of one window are the prompt of the next. Window w uses the key
    ``fold_in(key, w)``, and a fresh carry of the denoiser.

    Exactness: that of the inner sampler for the first window; "heuristic" beyond it, as the model
    never sees the text before its window, and takes each window for the start of a text.

    Args:
        key: a PRNG key.
        denoiser: of canvases of `window` tokens.
        sampler: how to draw inside a window.
        tokens: int32[*B, total], the canvas: noise, and given tokens at `keep`.
        times: float32[T + 1] or float32[T + 1, *B], the steps of every window.
        window: tokens the model sees, L.
        stride: tokens that are new in each window after the first; `window` for none in common.
        keep: bool[*B, total], positions that must not change.
        stop: ``tokens int32[*B, total] -> bool[*B]``, asked between windows; finished rows are
            frozen, the rest of their canvas stays as it was given.
        window_stop: a stop of ``int32[*B, window]``, asked after every step, such as `all_decided`.

    Returns:
        `Generation`, tokens int32[*B, total]; its carry is empty.

    Raises:
        TypeError: if `tokens` are not integers, or `stop` needs logits.
        ValueError: unless 1 <= stride <= window <= total and stride divides total - window, or as
            in `generate`.

    Examples:
        >>> import mdm_jax as mdm
        >>> process = mdm.Masked(vocab_size=5, schedule=mdm.Linear())
        >>> model = mdm.denoiser(lambda tokens, t: jnp.zeros((*tokens.shape, 5)))
        >>> out = generate_strided(jax.random.key(0), model, mdm.first_hitting(process),
        ...                        jnp.full((2, 10), 5), mdm.time_grid(4), window=4, stride=2,
        ...                        window_stop=mdm.all_decided(process))
        >>> out.tokens.shape, bool((out.tokens < 5).all()), int(out.calls)
        ((2, 10), True, 10)
    """
    total = _checked_length(tokens, keep)
    if not 1 <= stride <= window <= total or (total - window) % stride:
        raise ValueError(
            f"window={window}, stride={stride} on a canvas of {total} tokens: expected "
            "1 <= stride <= window <= total, and a stride that divides total - window"
        )
    finished = _between_blocks(stop)
    shape = (*tokens.shape[:-1], window)
    seen = jnp.broadcast_to(last_axis_index(window, tokens.ndim) < window - stride, shape)

    def unfinished(loop):
        w, _, _, done = loop
        return (w <= (total - window) // stride) & ~jnp.all(done)

    def fill(loop):
        w, tokens, calls, done = loop
        kept = seen & (w > 0)
        if keep is not None:
            kept |= take(keep, w * stride, window)
        out = generate(
            jax.random.fold_in(key, w),
            denoiser,
            sampler,
            take(tokens, w * stride, window),
            times,
            keep=kept,
            stop=_done_with_block(done, kept, window_stop),
        )
        tokens = put(tokens, out.tokens, w * stride)
        return w + 1, tokens, calls + out.calls, done | finished(tokens)

    start = (jnp.int32(0), tokens, _zero(tokens), finished(tokens))
    _, tokens, calls, _ = jax.lax.while_loop(unfinished, fill, start)
    return Generation(tokens, calls, ())


def blocks_in(carry: Any) -> list[Blocks]:
    """The `Blocks` in a carry, also below the carries of wrappers such as `guided`.

    Examples:
        >>> blocks_in(((), jnp.zeros(3)))
        []
    """
    leaves = jax.tree.leaves(carry, is_leaf=lambda node: isinstance(node, Blocks))
    return [leaf for leaf in leaves if isinstance(leaf, Blocks)]


def take(tokens: jax.Array, start: jax.Array | int, width: int) -> jax.Array:
    """Returns [*B, width], the positions from `start` on.

    Examples:
        >>> take(jnp.arange(5), 2, 2).tolist()
        [2, 3]
    """
    return jax.lax.dynamic_slice_in_dim(tokens, start, width, axis=-1)


def put(tokens: Tokens, window: Tokens, start: jax.Array | int) -> Tokens:
    """Returns the canvas with the window written from `start` on.

    Examples:
        >>> put(jnp.arange(5), jnp.array([9, 9]), 2).tolist()
        [0, 1, 9, 9, 4]
    """
    return jax.lax.dynamic_update_slice_in_dim(tokens, window, start, axis=-1)


def _done_with_block(done: jax.Array, keep: Bool | None, stop: Stop | None) -> Stop:
    """Rows with nothing to do in a block: finished, given whole, or decided."""
    idle = done if keep is None else done | jnp.all(keep, axis=-1)
    return any_of(lambda window: idle, *(() if stop is None else (stop,)))


def _between_blocks(stop: Stop | None) -> Callable[[Tokens], jax.Array]:
    if stop is None:
        return _never
    if not callable(stop):
        raise TypeError(
            f"stop={stop!r} is asked between blocks, when there are no logits: expected a function "
            "of the tokens, such as eos_decided. What is asked after every step is block_stop (or "
            "window_stop)"
        )
    return stop


def _never(tokens: Tokens) -> jax.Array:
    # Derived from the tokens, so that the loop carry has their varying axes under shard_map.
    return jnp.zeros_like(tokens[..., 0], dtype=jnp.bool_)


def _zero(tokens: Tokens) -> jax.Array:
    # Calls, which shards may count apart.
    return jnp.sum(jnp.zeros_like(tokens[..., 0], dtype=jnp.int32))


def _checked_length(tokens: Tokens, keep: Bool | None) -> int:
    check_tokens(tokens)
    if keep is not None and (keep.shape != tokens.shape or keep.dtype != jnp.bool_):
        raise ValueError(
            f"keep is {keep.dtype}{list(keep.shape)}: expected bool{list(tokens.shape)}"
        )
    return tokens.shape[-1]
