"""The autoregressive baseline, on the same data, model and loop as the diffusion models."""

import jax.numpy as jnp

from mdm_jax import losses
from mdm_jax.arrays import PerToken, Tokens
from mdm_jax.masks import Segments
from mdm_jax.objectives.base import Objective
from mdm_jax.processes import Noised


def autoregressive_objective(*, prepend: int | None = None) -> Objective:
    """Next-token likelihood: no noise, and a model that sees only what comes before.

    Args:
        prepend: an id to put before every window, so that its first token is predicted too (a
            beginning-of-text id, or one past the data ids). None leaves the first token unscored,
            as the published baselines do. The model must embed the id.

    Returns:
        `Objective`, whose loss is its evaluation: an exact likelihood. Entry i of the loss is
        -log p of ``noised.targets[i]``, which is the token after the model's input i. Where
        documents are kept apart (`prepare_batch`), each begins as a window does: with `prepend`,
        or with a first token that is not scored.

    Raises:
        ValueError: if `prepend` is negative.

    Examples:
        >>> import jax
        >>> x = jnp.array([[5, 6, 7]])
        >>> where, step = jnp.array([[True, True, True]]), jnp.int32(0)
        >>> inputs, noised = autoregressive_objective().prepare(jax.random.key(0), x, where, step)
        >>> inputs["tokens"].tolist(), noised.targets.tolist(), noised.where.tolist()
        ([[5, 6, 7]], [[6, 7, 0]], [[True, True, False]])
        >>> objective = autoregressive_objective(prepend=9)
        >>> inputs, noised = objective.prepare(jax.random.key(0), x, where, step)
        >>> inputs["tokens"].tolist(), noised.targets.tolist()
        ([[9, 5, 6]], [[5, 6, 7]])
    """
    if prepend is not None and prepend < 0:
        raise ValueError(f"prepend={prepend}: expected a token id")

    def prepare(key, tokens, where, step):
        del key, step
        if prepend is None:
            inputs, targets = tokens, _next(tokens, 0)
            scored = _next(where, False)
        else:
            first = jnp.full_like(tokens[:, :1], prepend)
            inputs, targets = jnp.concatenate([first, tokens[:, :-1]], axis=1), tokens
            scored = where
        t = jnp.zeros(tokens.shape[:1], jnp.float32)
        return {"tokens": inputs}, Noised(inputs, targets, t, jnp.zeros_like(scored), scored)

    def nll(logits, noised: Noised) -> PerToken:
        return losses.next_token_nll(logits, noised.targets, noised.where)

    def apart(inputs, noised: Noised, segments):
        starts = segments != _previous(segments)
        if prepend is None:
            # The first token of a document has nothing to be predicted from.
            noised = noised._replace(where=noised.where & ~_next(starts, False))
        else:
            tokens = jnp.where(starts, jnp.asarray(prepend, noised.tokens.dtype), noised.tokens)
            noised = noised._replace(tokens=tokens)
        return {"tokens": noised.tokens, "mask": Segments(segments, causal=True)}, noised

    return Objective(prepare, nll, nll, apart=apart)


def _previous(x: Tokens) -> Tokens:
    """Moves `x` one position to the right; the first stays, and counts as its own predecessor."""
    return jnp.concatenate([x[:, :1], x[:, :-1]], axis=1)


def _next(x: Tokens, last) -> Tokens:
    """Moves `x` one position to the left; `last` enters at the end."""
    return jnp.concatenate([x[:, 1:], jnp.full_like(x[:, :1], last)], axis=1)
