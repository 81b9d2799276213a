"""Losses from hidden states: the logits of all positions are never held at once.

The logits are by far the largest arrays of a training step: those of 16,384 positions over 131,072
ids take 8 GiB in float32, and their gradient as much again. Here the head's matmul, the loss and
the gradients of both are made chunk by chunk of positions, and the logits of a chunk are forgotten
before the next. Where only some positions carry loss, as in masked diffusion, the others are
skipped.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from mdm_jax.arrays import Bool, Logits, PerToken, last_axis_index
from mdm_jax.processes import Noised
from mdm_jax.reading import Hidden

CHUNK = 512
"""Positions whose logits are held at once, whatever the vocabulary: enough to fill a matmul."""


def from_hidden(
    loss: Callable[[Logits, Any], PerToken],
    hidden: Hidden,
    noised: Noised,
    *,
    chunk: int = CHUNK,
    active: Bool | None = None,
    groups: int | None = None,
) -> PerToken:
    """A pointwise loss of the logits, from the states they are made of.

    It equals ``loss(states @ kernel + bias, noised)``, value and gradient, up to the order of
    float32 additions. The gradient reaches the three arrays of `hidden` and nothing else: not
    `noised`; and if `loss` closes over what is differentiated, JAX raises UnexpectedTracerError.
    There is no forward mode.

    Under differentiation the gradients of the sum are made together with the losses and only
    scaled later, so that there are three matmuls as with a dense head. If the result is not
    summed or averaged but weighted, so that one scale will not do, that is seen at run time and
    the gradients are made anew: six matmuls.

    With `active`, positions are sorted, the active ones first, and the chunks that hold none are
    not computed: the time follows the number of active positions, found at run time, while shapes
    stay fixed. Any number will do, including none and all.

    On a mesh: without `active` a chunk holds positions of every row, so that a batch sharded by
    rows stays where it is. The sort of `active` crosses rows: call it inside ``shard_map``, where
    it sorts each device's rows, or set `groups` to the number of devices that share the rows. In
    both cases each device sums its own gradient of the head, and devices are summed once; without
    either, it is left to the compiler whether once or for each chunk. Axes of a mesh must be Auto,
    not Explicit. Under ``vmap`` all members compute as many chunks as the one with the most active
    positions.

    Args:
        loss: ``(logits [*C, W], noised) -> float32[*C]``, nats; pointwise: each entry depends on
            the logits and the record of its own position alone. For example
            ``lambda logits, noised: masked_elbo(logits, noised, process)``. It must be zero
            and inert outside ``noised.where``, as every loss of this package is.
        hidden: states and head, in place of logits.
        noised: the corrupted batch. Arrays beside [*B, L] are broadcast from the left, as `t` is.
        chunk: how many positions to hold logits of at once, at most.
        active: bool[*B, L], the positions that carry loss; elsewhere it is taken to be zero. For
            masked losses, ``noised.noised & noised.where``. None for all of ``noised.where``.
        groups: number of devices that share the rows, which then make as many equal groups: each
            is sorted apart, gives the same share of a chunk, and has a gradient of the head of its
            own, so that on one device it is memory wasted.

    Returns:
        float32[*B, L], nats; zero where not active and outside ``noised.where``. States at such
        positions may be NaN: neither the value nor any gradient sees them.

    Raises:
        ValueError: if shapes do not fit, `chunk` is not positive, or `groups` does not divide
            the rows.

    Examples:
        >>> import mdm_jax as mdm
        >>> process = mdm.Masked(vocab_size=4, schedule=mdm.Linear())
        >>> x = jnp.zeros((1, 3), jnp.int32)
        >>> noised = process.corrupt(jax.random.key(0), x, jnp.array([1.0]))
        >>> hidden = Hidden(jnp.ones((1, 3, 8)), jnp.zeros((8, 5)), jnp.zeros(5))
        >>> loss = lambda logits, noised: mdm.masked_elbo(logits, noised, process)
        >>> from_hidden(loss, hidden, noised, active=noised.noised).round(3).tolist()  # log 4
        [[1.386..., 1.386..., 1.386...]]
    """
    shape = noised.where.shape
    rows = _check(hidden, shape, chunk, active, groups)
    parts = groups or 1
    if groups is None:
        groups = 1 if active is not None else _most_groups(rows, chunk)
    where = noised.where if active is None else noised.where & active
    if where.size == 0:
        return jnp.zeros(shape, jnp.float32)
    length = where.size // groups
    pieces = -(-length // max(chunk // groups, 1))
    size = -(-length // pieces)  # Equal chunks, so that the last is not mostly padding.
    lay_out = partial(_laid_out, shape=shape, groups=groups, length=size * pieces)
    # Zeros, as 0 NaN = NaN would enter the gradient of the kernel.
    states = lay_out(jnp.where(where[..., None], hidden.states, 0))
    record = jax.tree.map(lay_out, noised._replace(where=where))
    real = last_axis_index(size * pieces, 2) < length
    record = record._replace(where=record.where & real)
    weights = _varying_with(states, (hidden.kernel, hidden.bias))
    values: Any
    if active is None:
        values = _mapped(loss, size, parts, states, *weights, record, pieces)
    else:
        order = jnp.argsort(~record.where, axis=1, stable=True)
        inverse = jnp.argsort(order, axis=1)
        record = jax.tree.map(lambda x: _taken(x, order), record)
        most = jnp.max(jnp.sum(record.where, axis=1, dtype=jnp.int32))
        states = _permuted(states, order, inverse)
        pieces = (most + size - 1) // size
        values = _mapped(loss, size, parts, states, *weights, record, pieces)
        values = _permuted(values, inverse, order)
    return values[:, :length].reshape(shape)


def _check(hidden: Hidden, shape: Any, chunk: int, active: Any, groups: int | None) -> int:
    """Checks what is static; returns the number of rows, the product of the batch axes."""
    states, kernel, bias = hidden
    if states.shape[:-1] != shape or kernel.shape[:1] != states.shape[-1:]:
        raise ValueError(
            f"states {states.shape}, kernel {kernel.shape} over tokens {shape}: expected "
            "[*B, L, D], [D, W] and [*B, L]"
        )
    if kernel.ndim != 2 or (bias is not None and bias.shape != kernel.shape[1:]):
        raise ValueError(
            f"kernel {kernel.shape}, bias {None if bias is None else bias.shape}: expected "
            "[D, W], and [W] or None"
        )
    if active is not None and active.shape != shape:
        raise ValueError(f"active has shape {active.shape}, tokens have {shape}")
    if chunk < 1:
        raise ValueError(f"chunk={chunk}: expected a positive number of positions")
    rows = math.prod(shape[:-1])
    if groups is not None and (groups < 1 or rows % groups or groups > chunk):
        raise ValueError(
            f"groups={groups}: expected a divisor of the {rows} rows, at most chunk={chunk}"
        )
    return rows


def _most_groups(rows: int, chunk: int) -> int:
    """Returns the largest divisor of `rows` that is at most `chunk`."""
    return next(n for n in range(min(rows, chunk) or 1, 0, -1) if rows % n == 0)


def _laid_out(x: jax.Array, *, shape: tuple, groups: int, length: int) -> jax.Array:
    """Returns [groups, length, ...] of [*B, L, ...], or of what broadcasts against that.

    What is added at the end repeats the last position, as zeros might be no valid time or id.
    """
    rest = x.shape[len(shape) :]
    x = jnp.broadcast_to(x.reshape(x.shape + (1,) * (len(shape) - x.ndim)), shape + rest)
    x = x.reshape(groups, math.prod(shape) // groups, *rest)
    padding = [(0, 0), (0, length - x.shape[1])] + [(0, 0)] * len(rest)
    return jnp.pad(x, padding, mode="edge") if length > x.shape[1] else x


def _taken(x: jax.Array, order: jax.Array) -> jax.Array:
    """Returns the positions of each group in another order."""
    return jnp.take_along_axis(x, order.reshape(order.shape + (1,) * (x.ndim - 2)), axis=1)


@jax.custom_vjp
def _permuted(x: jax.Array, order: jax.Array, inverse: jax.Array) -> jax.Array:
    """`_taken` by a permutation: its gradient is the inverse one, a gather and no scatter."""
    del inverse
    return _taken(x, order)


_permuted.defvjp(
    lambda x, order, inverse: (_taken(x, order), inverse),
    lambda inverse, cotangent: (_taken(cotangent, inverse), None, None),
)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _mapped(loss, size, parts, states, kernel, bias, record, pieces) -> jax.Array:
    """Returns float32[G, P], the losses of the first `pieces` chunks of states [G, P, D].

    The gradient of the head is summed over the chunks in `parts` parts, and these at the end.
    """
    del parts
    head = _rounded(kernel, bias, states.dtype)

    def body(i: jax.Array, values: jax.Array) -> jax.Array:
        x, piece = _piece((states, record), i, size)
        nats = jnp.where(piece.where, loss(_logits(x, *head), piece), 0.0)
        return jax.lax.dynamic_update_slice_in_dim(values, nats, i * size, axis=1)

    zeros = _varying_with(states, jnp.zeros(record.where.shape, jnp.float32))
    return jax.lax.fori_loop(0, pieces, body, zeros)


def _forward(loss, size, parts, states, kernel, bias, record, pieces):
    """Returns the losses, and the gradients of their sum: the logits are at hand, so make both."""
    arguments = (states, kernel, bias, record, pieces)
    zeros = jax.tree.map(jnp.zeros_like, _varying_with(states, Hidden(states, kernel, bias)))
    ones = jnp.ones_like(record.where, jnp.float32)
    values, gradients = _with_gradients(loss, size, parts, arguments, ones, zeros)
    return values, (gradients, arguments)


def _backward(loss, size, parts, residuals, cotangent):
    """Scales the gradients of the sum or, if no one number will do, makes them again.

    Training descends a sum or a mean, so that one number does: all positions weigh the same.
    """
    gradients, (*arguments, record, pieces) = residuals
    scale = jnp.max(jnp.where(record.where, cotangent, -jnp.inf))
    same = jnp.all((cotangent == scale) | ~record.where)
    scale = jnp.where(record.where.any(), scale, 0.0)  # The maximum of nothing is -inf.
    start = jax.tree.map(lambda x: jnp.where(same, x * scale.astype(x.dtype), 0), gradients)
    arguments = (*arguments, record, jnp.where(same, 0, pieces))  # A loop of no chunks costs none.
    gradients = _with_gradients(loss, size, parts, arguments, cotangent, start)[1]
    return *gradients, None, None


def _with_gradients(
    loss, size, parts, arguments, cotangent, start: Hidden
) -> tuple[jax.Array, Hidden]:
    """Returns the losses, and `start` plus the gradients of their sum weighted by `cotangent`."""
    states, kernel, bias, record, pieces = arguments
    head = _rounded(kernel, bias, states.dtype)

    def body(i: jax.Array, carry: tuple[jax.Array, Hidden]) -> tuple[jax.Array, Hidden]:
        values, sums = carry
        x, piece, ct = _piece((states, record, cotangent), i, size)
        nats, pull = jax.vjp(lambda logits: loss(logits, piece), _logits(x, *head))
        (slope,) = pull(jnp.where(piece.where, ct, 0.0))
        # The kernel stands first: a backend that transposes an operand then takes the smaller one.
        d_x = jnp.einsum("dv,gcv->dgc", head[0], slope).transpose(1, 2, 0)
        x, slope = (a.reshape(parts, -1, a.shape[-1]) for a in (x, slope))
        d_kernel = jnp.einsum("pcd,pcv->pdv", x, slope, preferred_element_type=jnp.float32)
        d_bias = sums.bias
        if d_bias is not None:
            # A sum over positions, as a product: a CPU's sum over a short leading axis takes 25
            # times as long, as long as the head's own product.
            ones = jnp.ones(slope.shape[:2], slope.dtype)
            d_bias += jnp.einsum("pc,pcv->pv", ones, slope, preferred_element_type=jnp.float32)
        put = partial(jax.lax.dynamic_update_slice_in_dim, start_index=i * size, axis=1)
        sums = Hidden(put(sums.states, d_x), sums.kernel + d_kernel, d_bias)
        return put(values, jnp.where(piece.where, nats, 0.0)), sums

    # Each state is in one chunk, but the head is in all: its gradient is summed in float32.
    share = lambda x: jnp.broadcast_to(x.astype(jnp.float32) / parts, (parts, *x.shape))
    sums = Hidden(start.states, *jax.tree.map(share, start[1:]))
    values = _varying_with(states, jnp.zeros(record.where.shape, jnp.float32))
    values, sums = jax.lax.fori_loop(0, pieces, body, (values, sums))
    whole = lambda x, like: jnp.sum(x, axis=0).astype(like.dtype)
    return values, Hidden(sums.states, *jax.tree.map(whole, sums[1:], start[1:]))


_mapped.defvjp(_forward, _backward)


def _logits(x: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> jax.Array:
    """Returns [G, C, W] logits in the dtype of the states, as a dense head gives them."""
    logits = jnp.einsum("gcd,dv->gcv", x, kernel)
    return logits if bias is None else logits + bias[None, None, :]


def _rounded(kernel: jax.Array, bias: jax.Array | None, dtype: Any) -> tuple:
    """Returns the head's weights in the dtype of the states."""
    return kernel.astype(dtype), None if bias is None else bias.astype(dtype)


def _piece(arrays: Any, i: jax.Array, size: int) -> Any:
    """Returns the i-th chunk of arrays [G, P, ...]."""
    cut = lambda x: jax.lax.dynamic_slice_in_dim(x, i * size, size, axis=1)
    return jax.tree.map(cut, arrays)


def _varying_with(like: jax.Array, arrays: Any) -> Any:
    """Returns arrays that vary over every mapped axis that `like` varies over (`shard_map`).

    The head then is each device's own, and its gradient is summed over devices once, after the
    loop, where the cast is undone.
    """

    def cast(x: jax.Array) -> jax.Array:
        missing = tuple(sorted(_mapped_axes(like) - _mapped_axes(x)))
        return jax.lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(cast, arrays)


def _mapped_axes(x: jax.Array) -> frozenset:
    """Returns the names of the mapped axes that `x` varies over."""
    kind: Any = jax.typeof(x)
    return kind.mat.varying if hasattr(kind, "mat") else kind.vma  # JAX 0.10.0 says vma.
