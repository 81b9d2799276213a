"""Reading predictions a few positions at a time, so that little is held beside them, or instead.

The predictions of a model for a whole canvas are the largest arrays of sampling: float32[B, L, V]
takes 3.3 GB for 16 rows of 1024 positions over 50,258 ids. A sampler needs one number, or one id,
of each position. So samplers read predictions through this module: in parts of the canvas, or at
the positions that they have chosen.

What is read may be logits; or `Hidden`, what a model returns before its head, and then a part's
logits are made when it is read and forgotten after, and nothing of size [B, L, V] is ever held; or
`Derived`, logits that are a function of those of others (temperature, nucleus, guidance), made in
the same way.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from mdm_jax import draws
from mdm_jax.arrays import Key, Logits, LogProbs, PerToken, Tokens

_CHUNK = 32  # positions of every row at a time


class Hidden(NamedTuple):
    """What a model returns in place of logits, ``states @ kernel + bias``.

    The weights stay in the dtype of the parameters (float32): they are rounded to that of the
    states where the logits are made, as `flax.linen.Dense` does, and their gradients are summed
    over the chunks in float32.

    A loss takes it by `from_hidden`. A denoiser that returns it is sampled by every sampler, with
    logits made for the positions that are read alone:
    ``mdm.denoiser(lambda x, t: mdm.Hidden(states(x, t), kernel, bias))``.

    Attributes:
        states: float[*B, L, D], the final states, normalized.
        kernel: float[D, W], the head's weights.
        bias: float[W], or None.

    Examples:
        >>> hidden = Hidden(states=jnp.zeros((2, 3, 8)), kernel=jnp.zeros((8, 50258)))
        >>> hidden.bias is None
        True
    """

    states: jax.Array
    kernel: jax.Array
    bias: jax.Array | None = None


class Derived(NamedTuple):
    """Logits that are a function of other predictions, position by position.

    Attributes:
        function: ``(*logits float[*B, l, V]) -> float[*B, l, V]`` for any l.
        parts: the predictions it is a function of.

    Examples:
        >>> half = Derived(lambda logits: logits / 2, (Hidden(jnp.eye(2), jnp.eye(2)),))
        >>> made(half).tolist()
        [[0.5, 0.0], [0.0, 0.5]]
    """

    function: Callable[..., Logits]
    parts: tuple[Any, ...]


Predictions: TypeAlias = Logits | Hidden | Derived


def made(predictions: Predictions) -> Logits:
    """Returns the logits of all positions, float[*B, L, V].

    Args:
        predictions: logits, which are returned as they are, `Hidden` or `Derived`.

    Examples:
        >>> made(Hidden(jnp.ones((1, 2)), jnp.eye(2), jnp.array([0.0, 1.0]))).tolist()
        [[1.0, 2.0]]
    """
    if isinstance(predictions, Derived):
        return predictions.function(*(made(part) for part in predictions.parts))
    if not isinstance(predictions, Hidden):
        return predictions
    states, kernel, bias = predictions
    logits = jnp.matmul(states, kernel.astype(states.dtype))
    if bias is None:
        return logits
    return logits + bias.astype(states.dtype).reshape((1,) * (logits.ndim - 1) + (-1,))


def by_rows(function: Callable[[jax.Array], jax.Array], predictions: Predictions) -> Any:
    """Rearranges positions: applies a function to what has a row for each of them.

    Args:
        function: from an array [*B, L, X] to another, the same for every X, such as a slice.
        predictions: logits, or what is in place of them; the same kind is returned.

    Examples:
        >>> last = by_rows(lambda x: x[-1:], Hidden(jnp.eye(2), jnp.eye(2)))
        >>> made(last).tolist()
        [[0.0, 1.0]]
    """
    if isinstance(predictions, Derived):
        return predictions._replace(parts=tuple(by_rows(function, x) for x in predictions.parts))
    if isinstance(predictions, Hidden):
        return predictions._replace(states=function(predictions.states))
    return function(predictions)


def derived(function: Callable[..., Logits], *parts: Predictions) -> Any:
    """Applies a function of logits: at once if logits are there, and else where they are read.

    Args:
        function: ``(*logits float[*B, l, V]) -> float[*B, l, V]``, position by position and for
            any l.
        *parts: the predictions.

    Examples:
        >>> derived(lambda a, b: a - b, jnp.ones((1, 2)), jnp.ones((1, 2))).tolist()
        [[0.0, 0.0]]
    """
    if any(isinstance(part, Hidden | Derived) for part in parts):
        return Derived(function, parts)
    return function(*parts)


def at_places(predictions: Predictions, places: jax.Array) -> Logits:
    """Returns the logits at some positions alone, float[*B, n, V].

    Args:
        predictions: of [*B, L].
        places: int32[*B, n], positions below L.

    Examples:
        >>> at_places(jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.array([1])).tolist()
        [[3.0, 4.0]]
    """
    rows = lambda x: jnp.take_along_axis(x, places[..., None], axis=-2)
    return made(by_rows(rows, predictions))


def logits_width(predictions: Predictions) -> int:
    """Returns how many logits a position has.

    Args:
        predictions: logits, or what is in place of them.

    Examples:
        >>> logits_width(Hidden(jnp.zeros((2, 3, 8)), jnp.zeros((8, 50258))))
        50258
    """
    return jax.eval_shape(lambda: made(predictions)).shape[-1]


def over_positions(read: Callable[..., Any], predictions: Predictions, *others: Any) -> Any:
    """Returns ``read(logits, *others)``, computed for a few positions at a time.

    So that the float32 intermediates of `read` are small beside the logits, and logits that are
    not made yet (`Hidden`) are made for those positions alone.

    Args:
        read: from float[*B, l, V] and the same positions of the others to a pytree of arrays
            [*B, l], position by position.
        predictions: float[*B, L, V], or in place of it.
        *others: pytrees of arrays [*B, L], [L] or [*B, L, n].

    Examples:
        >>> top = lambda logits: jnp.argmax(logits, axis=-1)
        >>> over_positions(top, jnp.eye(100)).tolist() == list(range(100))
        True
    """
    like = _like(predictions)
    length, axis = like.shape[-2], like.ndim - 2
    if length <= _CHUNK:
        return read(made(predictions), *others)
    predictions = _rounded(predictions)

    def part(i):
        # The last part begins early enough to be whole: what it shares with the one before is
        # computed twice.
        start = jnp.minimum(i * _CHUNK, length - _CHUNK)
        cut = lambda x, axis: jax.lax.dynamic_slice_in_dim(x, start, _CHUNK, axis)
        logits = made(by_rows(lambda x: cut(x, axis), predictions))
        beside = jax.tree.map(lambda x: cut(x, axis if x.ndim == like.ndim else x.ndim - 1), others)
        return start, read(logits, *beside)

    def body(i, out):
        start, values = part(i)
        write = lambda whole, x: jax.lax.dynamic_update_slice_in_dim(whole, x, start, axis)
        return jax.tree.map(write, out, values)

    # Made from the predictions, to have their varying axes under shard_map.
    out = jax.tree.map(
        lambda x: jnp.zeros_like(like[..., 0], dtype=x.dtype), jax.eval_shape(part, 0)[1]
    )
    return jax.lax.fori_loop(0, -(-length // _CHUNK), body, out)


def draw_tokens(
    key: Key, predictions: Predictions, prepare: Callable[..., Logits], *others: Any
) -> Tokens:
    """Draws an id for every position: ``draws.categorical(key, prepare(logits, *others))``.

    The very same ids, but the table of a draw is held for a few positions at a time.

    Args:
        key: a PRNG key.
        predictions: of [*B, L].
        prepare: position by position, from logits and the others to log-probabilities, which need
            not be normalized.
        *others: as in `over_positions`.

    Returns:
        int32[*B, L].

    Examples:
        >>> flat = jnp.zeros((100, 5))
        >>> at_once = draws.categorical(jax.random.key(0), flat)
        >>> bool((draw_tokens(jax.random.key(0), flat, lambda logits: logits) == at_once).all())
        True
    """
    return draw_beside(key, predictions, lambda *x: (prepare(*x), ()), *others)[0]


def draw_beside(
    key: Key, predictions: Predictions, prepare: Callable[..., tuple[Logits, Any]], *others: Any
) -> tuple[Tokens, Any]:
    """As `draw_tokens`, and reads numbers beside the draw from the same logits.

    Args:
        key: a PRNG key.
        predictions: of [*B, L].
        prepare: as in `draw_tokens`, but returns a pair: log-probabilities, and a pytree of arrays
            [*B, l] to return.
        *others: as in `over_positions`.

    Returns:
        int32[*B, L], and the pytree with arrays [*B, L].

    Examples:
        >>> prepare = lambda logits: (logits, jnp.max(logits, axis=-1))
        >>> draw_beside(jax.random.key(0), 99.0 * jnp.eye(2), prepare)[1].tolist()
        [99.0, 99.0]
    """
    width = jax.eval_shape(lambda: prepare(made(predictions), *others)[0]).shape[-1]
    noise = draws.categorical_noise(key, (*_like(predictions).shape[:-1], width))

    def read(logits, noise, *others):
        log_weights, beside = prepare(logits, *others)
        return draws.choose(noise, log_weights), beside

    return over_positions(read, predictions, noise, *others)


def log_prob_at(
    predictions: Predictions, ids: Tokens, log_probs: Callable[[Logits], LogProbs]
) -> PerToken:
    """Returns the log-probabilities of the given ids, float32[*B, L].

    Args:
        predictions: of [*B, L].
        ids: int32[*B, L].
        log_probs: position by position, from logits; `Process.log_probs` or log_softmax.

    Examples:
        >>> logits = jnp.log(jnp.array([[0.5, 1.5]]))
        >>> round(float(jnp.exp(log_prob_at(logits, jnp.array([1]), jax.nn.log_softmax))[0]), 3)
        0.75
    """

    def read(logits, ids):
        return jnp.take_along_axis(log_probs(logits), ids[..., None], axis=-1)[..., 0]

    return over_positions(read, predictions, ids)


def _like(predictions: Predictions) -> jax.Array:
    """An array [*B, L, X] of the predictions."""
    while isinstance(predictions, Derived):
        predictions = predictions.parts[0]
    return predictions.states if isinstance(predictions, Hidden) else predictions


def _rounded(predictions: Predictions) -> Predictions:
    """Rounds the weights of heads once, and not for every part."""
    if isinstance(predictions, Derived):
        return predictions._replace(parts=tuple(map(_rounded, predictions.parts)))
    if not isinstance(predictions, Hidden):
        return predictions
    states, kernel, bias = predictions
    bias = None if bias is None else bias.astype(states.dtype)
    return Hidden(states, kernel.astype(states.dtype), bias)
