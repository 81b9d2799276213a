"""Weighted sums: the pair (total, weight) that every reduction in the library returns.

Means of means are wrong as soon as micro-batches, hosts or devices hold different numbers of
tokens. So nothing divides until everything has been added up, and the only division is
`WeightedSum.mean`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mdm_jax.arrays import Bool, PerToken, Scalar


class WeightedSum(NamedTuple):
    """A sum and the weight it is to be divided by. Add with ``+``, divide with `mean`.

    Attributes:
        total: float32[], the weighted sum of the values (nats, for losses).
        weight: float32[], the sum of the weights (tokens, for losses).

    Examples:
        >>> a = WeightedSum(jnp.float32(6.0), jnp.float32(2.0))
        >>> b = WeightedSum(jnp.float32(1.0), jnp.float32(5.0))
        >>> float((a + b).mean())
        1.0
    """

    total: Scalar
    weight: Scalar

    def __add__(self, other: "WeightedSum") -> "WeightedSum":  # type: ignore[override]
        """Merges two sums (a tuple would concatenate, silently)."""
        return WeightedSum(self.total + other.total, self.weight + other.weight)

    def mean(self) -> Scalar:
        """Returns total / weight as float32[], and 0 with a zero gradient where weight is 0."""
        empty = self.weight == 0
        return jnp.where(empty, 0.0, self.total) / jnp.where(empty, 1.0, self.weight)


def token_sum(values: PerToken, where: Bool, weights: jax.Array | None = None) -> WeightedSum:
    """Sums per-token values over the positions in `where`.

    Args:
        values: float32[*B, L], for instance a loss in nats per token. Values outside `where` are
            ignored, even if they are NaN.
        where: bool[*B, L], the positions that count.
        weights: optional float32 array that broadcasts against `values` from the left, such as
            float32[*B] importance weights. It multiplies the value and the count alike.

    Returns:
        WeightedSum of float32 scalars: (sum of weights * values, sum of weights).

    Raises:
        ValueError: if the shapes of `values` and `where` differ.

    Examples:
        >>> values = jnp.array([[1.0, 3.0, jnp.nan]])
        >>> float(token_sum(values, jnp.array([[True, True, False]])).mean())
        2.0
    """
    if values.shape != where.shape:
        raise ValueError(
            f"values has shape {values.shape} and where has shape {where.shape}: they must be "
            "equal. Losses return one value per token; do not reduce them before token_sum."
        )
    counts = where.astype(jnp.float32)
    if weights is not None:
        extra = (1,) * (where.ndim - weights.ndim)
        counts = counts * weights.astype(jnp.float32).reshape(weights.shape + extra)
    safe_values = jnp.where(where, values, 0).astype(jnp.float32)
    return WeightedSum(jnp.sum(counts * safe_values), jnp.sum(counts))
