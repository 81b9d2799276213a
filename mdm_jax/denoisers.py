"""Denoisers: a model as the samplers see it, and what makes one out of another.

A `Denoiser` is three pure functions around an opaque carry, in which a key/value cache,
self-conditioning or a second branch lives. Guidance (`mdm_jax.guidance`) and edits of the logits
(`mdm_jax.edits`) are ``Denoiser -> Denoiser`` wrappers, so the order in which they apply is the
order in which they are written: ``tempered(nucleus(d, 0.9), 0.7)`` truncates first, then sharpens.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from mdm_jax.arrays import Logits, Times, Tokens
from mdm_jax.processes import Masked, Process
from mdm_jax.processes.base import align
from mdm_jax.reading import Derived, Hidden, by_rows, derived

Carry = Any


class Denoiser(NamedTuple):
    """A model of the clean tokens given the noised ones.

    Attributes:
        init: ``tokens -> carry``; allocates or prefills from the canvas.
        apply: ``(tokens, t, carry) -> (logits float[*B, L, V], carry)``; t is float32[] or
            float32[*B]. In place of logits it may return `mdm_jax.Hidden`: samplers then make the
            logits of the positions they read, and those of a whole canvas are never held.
        commit: ``(tokens, carry) -> carry``; these tokens are final (append them to a cache).
        calls: model evaluations that one `apply` costs.

    Examples:
        >>> d = denoiser(lambda tokens, t: jnp.zeros((*tokens.shape, 5)))
        >>> logits, carry = d.apply(jnp.zeros((2, 3), jnp.int32), jnp.float32(1.0), ())
        >>> logits.shape
        (2, 3, 5)
    """

    init: Callable[[Tokens], Carry]
    apply: Callable[[Tokens, Times, Carry], tuple[Logits, Carry]]
    commit: Callable[[Tokens, Carry], Carry]
    calls: int = 1


def denoiser(logits_fn: Callable[[Tokens, Times], Logits]) -> Denoiser:
    """Lifts a plain function ``(tokens, t) -> logits`` to a `Denoiser` without memory.

    Args:
        logits_fn: takes int32[*B, L] and float32[*B], returns float[*B, L, V] or `Hidden`: the same
            times as in training, one per sequence. Close over parameters inside the jitted
            function, or pass a `jax.tree_util.Partial`.

    Returns:
        `Denoiser` with an empty carry.

    Raises:
        TypeError: if `logits_fn` is not callable.
        ValueError: (when applied) if t is neither one time nor one per sequence.

    Examples:
        >>> denoiser(lambda tokens, t: jnp.zeros((*tokens.shape, 5))).calls
        1
    """
    if not callable(logits_fn):
        raise TypeError(f"logits_fn={logits_fn!r}: expected a function (tokens, t) -> logits")
    return Denoiser(
        init=lambda tokens: (),
        apply=lambda tokens, t, carry: (logits_fn(tokens, _per_sequence(t, tokens)), carry),
        commit=lambda tokens, carry: carry,
    )


def predicting(inner: Denoiser, process: Process) -> Denoiser:
    """Restricts predictions to the ids that `process` predicts: no mask id, no padding columns.

    Samplers do this by themselves. It is needed inside wrappers that weigh ids against each other,
    as `nucleus` and `guided` do: networks put arbitrary logits in columns that no loss ever read.

    Args:
        inner: the denoiser to wrap.
        process: the process of the model.

    Returns:
        `Denoiser` with float32 logits.

    Raises:
        ValueError: (when applied) if the logits are narrower than the vocabulary.

    Examples:
        >>> import mdm_jax as mdm
        >>> process = mdm.Masked(vocab_size=2, schedule=mdm.Linear())
        >>> d = predicting(denoiser(lambda tokens, t: jnp.zeros((*tokens.shape, 3))), process)
        >>> d.apply(jnp.zeros((1,), jnp.int32), jnp.float32(1.0), ())[0].tolist()
        [[0.0, 0.0, -inf]]
    """
    return edited(inner, lambda logits, tokens, t: process.data_logits(logits), positionwise=True)


def shifted(inner: Denoiser, process: Masked, *, first: int | None = None) -> Denoiser:
    """Lets an autoregressive model answer like a masked one, to be sampled `left_to_right`.

    Next-token models predict the token after: their logits are moved one position to the right, so
    that those at position i are the prediction of token i. Position 0 has no prediction and gets
    zeros (of `Hidden`, zero states); give it a token (a beginning-of-text id) through `keep`. The
    masks of the canvas, which the model may not even embed, are shown to it as some data id; being
    causal, it does not see them where it matters.

    Args:
        inner: a causal, next-token denoiser.
        process: the masked process of the canvas, such as ``Masked(vocab_size, Linear())``.
        first: the id that the model was trained to read before every text, if it was
            (``autoregressive_objective(prepend=...)``): it is fed before the canvas, whose last
            token is not read, and so position 0 has a prediction too.

    Returns:
        `Denoiser`.

    Examples:
        >>> import jax, mdm_jax as mdm
        >>> process = mdm.Masked(vocab_size=3, schedule=mdm.Linear())
        >>> d = shifted(denoiser(lambda tokens, t: jax.nn.one_hot(tokens, 3)), process)
        >>> d.apply(jnp.array([2, 3]), jnp.float32(1.0), ())[0].tolist()
        [[0.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    """
    some_id = int(np.argmax(process.predictable(process.num_ids)))

    def apply(tokens: Tokens, t: Times, carry: Carry) -> tuple[Logits, Carry]:
        shown = jnp.where(process.is_masked(tokens), some_id, tokens)
        if first is not None:
            before = jnp.full_like(shown[..., :1], first)
            return inner.apply(jnp.concatenate([before, shown[..., :-1]], axis=-1), t, carry)
        logits, carry = inner.apply(shown, t, carry)
        padding = [(0, 0)] * (tokens.ndim - 1) + [(1, 0), (0, 0)]
        return by_rows(lambda x: jnp.pad(x[..., :-1, :], padding), logits), carry

    return inner._replace(apply=apply)


def _per_sequence(t: Times, tokens: Tokens) -> Times:
    """`t` as float32[*B], placed like the tokens."""
    t = jnp.asarray(t, jnp.float32)
    row = tokens[..., 0]
    if t.ndim and t.shape != row.shape:
        raise ValueError(
            f"t has shape {t.shape}: expected one time, or one per sequence, {row.shape}"
        )
    return align(t, row) + jnp.zeros_like(row, dtype=jnp.float32)


def edited(
    inner: Denoiser,
    edit: Callable[[Logits, Tokens, Times], Logits],
    *,
    positionwise: bool = False,
) -> Denoiser:
    """Wraps a denoiser so that a function of its logits, the tokens and the time is applied.

    Args:
        inner: the denoiser to wrap.
        edit: ``(logits float[*B, L, V], tokens int32[*B, L], t) -> logits``.
        positionwise: says that `edit` reads no tokens, and of the logits those of the position
            alone, so that it works on any part of a row. Then it also applies to models that return
            `Hidden`, where their logits are made.

    Returns:
        `Denoiser`.

    Raises:
        TypeError: (when applied) if the model returns `Hidden` and the edit is not `positionwise`.

    Examples:
        >>> d = edited(
        ...     denoiser(lambda tokens, t: jnp.zeros((*tokens.shape, 2))),
        ...     lambda logits, tokens, t: logits + t,
        ... )
        >>> d.apply(jnp.zeros((1,), jnp.int32), jnp.float32(0.5), ())[0].tolist()
        [[0.5, 0.5]]
    """

    def apply(tokens: Tokens, t: Times, carry: Carry) -> tuple[Logits, Carry]:
        logits, carry = inner.apply(tokens, t, carry)
        if positionwise:
            return derived(lambda part: edit(part, tokens, t), logits), carry
        if isinstance(logits, Hidden | Derived):
            raise TypeError(
                "the model returns Hidden in place of logits, and an edit reads tokens or other "
                "positions, so that it needs all logits at once: let the model return logits, or "
                "take the edit off"
            )
        return edit(logits, tokens, t), carry

    return inner._replace(apply=apply)
