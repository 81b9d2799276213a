"""How certain a model is of each position: one number from its predictive distribution.

All of them are computed without the top id's own term, so that they keep their relative precision
where the model is almost certain: probabilities within 1e-7 of 1 are still told apart, and an
entropy of 1e-12 nats is 1e-12. Nothing is sorted over the vocabulary.
"""

from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp

from mdm_jax.arrays import Logits, PerToken, Tokens, last_axis_index

Certainty: TypeAlias = Literal["probability", "margin", "entropy"]


def certainty(logits: Logits, by: Certainty) -> PerToken:
    """Returns a score that is higher where the model is more certain.

    Args:
        logits: float[*B, L, V]; -inf is an id of probability zero.
        by: "probability" for that of the top id, "margin" for its lead over the second, or
            "entropy" for minus the entropy in nats.

    Returns:
        float32[*B, L]. For "probability" it is p - 1, which resolves p next to 1.

    Examples:
        >>> logits = jnp.log(jnp.array([[0.5, 0.3, 0.2]]))
        >>> [round(float(certainty(logits, by)[0]), 3) for by in ("probability", "margin")]
        [-0.5, 0.2]
    """
    if by == "probability":
        return -doubt(logits, top_id(logits))
    if by == "margin":
        return margin(logits)
    if by == "entropy":
        return -entropy(logits)
    raise ValueError(f"by={by!r}: expected 'probability', 'margin' or 'entropy'")


def check_certainty(by: str) -> None:
    """Raises ValueError unless `by` names a certainty."""
    if by not in ("probability", "margin", "entropy"):
        raise ValueError(f"by={by!r}: expected 'probability', 'margin' or 'entropy'")


def top_id(logits: Logits) -> Tokens:
    """Returns the most probable id, int32[*B, L]; the first of several."""
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)


def doubt(logits: Logits, ids: Tokens) -> PerToken:
    """Returns 1 - p(ids), float32[*B, L], without cancellation.

    Args:
        logits: float[*B, L, V].
        ids: int32[*B, L], below V.

    Examples:
        >>> logits = jnp.array([[30.0, 0.0]])
        >>> round(float(doubt(logits, jnp.array([0]))[0]) * 1e14, 2)
        9.36
    """
    weights, here = _weights(logits, ids)
    others = jnp.sum(jnp.where(here, 0.0, weights), axis=-1)
    own = jnp.sum(jnp.where(here, weights, 0.0), axis=-1)
    return others / (own + others)


def margin(logits: Logits) -> PerToken:
    """Returns the lead of the top id over the second in probability, float32[*B, L].

    Examples:
        >>> round(float(margin(jnp.log(jnp.array([[0.6, 0.3, 0.1]])))[0]), 3)
        0.3
    """
    weights, here = _weights(logits, top_id(logits))
    weights = jnp.where(here, 0.0, weights)
    return (1.0 - jnp.max(weights, axis=-1)) / (1.0 + jnp.sum(weights, axis=-1))


def entropy(logits: Logits) -> PerToken:
    """Returns the entropy of softmax(logits) in nats, float32[*B, L], never negative.

    With w_v = exp(x_v - max x) and R the sum of all but the top one,
    H = log(1 + R) + sum_v w_v (max x - x_v) / (1 + R): no term is negative.

    Examples:
        >>> flat, certain = jnp.zeros((1, 8)), jnp.array([[200.0, 0.0]])
        >>> round(float(entropy(flat)[0]), 3), float(entropy(certain)[0])
        (2.079, 0.0)
    """
    logits = logits.astype(jnp.float32)
    weights, here = _weights(logits, top_id(logits))
    rest = jnp.sum(jnp.where(here, 0.0, weights), axis=-1)
    # Ids of weight zero, -inf among them, have no part: 0 log 0 = 0.
    below = jnp.where(weights > 0, jnp.max(logits, axis=-1, keepdims=True) - logits, 0.0)
    return jnp.log1p(rest) + jnp.sum(weights * below, axis=-1) / (1.0 + rest)


def _weights(logits: Logits, ids: Tokens) -> tuple[jax.Array, jax.Array]:
    """exp(logits - max), float32[*B, L, V], and where the given ids stand."""
    logits = logits.astype(jnp.float32)
    weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    return weights, last_axis_index(logits.shape[-1], logits.ndim) == ids[..., None]
