"""Array aliases used in signatures, and the shape letters used in every docstring.

Shape letters: B batch, L length, V vocabulary, D width, H heads, T steps. A leading ``*B`` stands
for any number of batch axes, including none.
"""

from typing import Annotated, TypeAlias

import jax
import jax.numpy as jnp

Tokens: TypeAlias = Annotated[jax.Array, "int32[*B, L]"]
Bool: TypeAlias = Annotated[jax.Array, "bool[*B, L]"]
Logits: TypeAlias = Annotated[jax.Array, "float[*B, L, V]"]
LogProbs: TypeAlias = Annotated[jax.Array, "float32[*B, L, V]"]
PerToken: TypeAlias = Annotated[jax.Array, "float32[*B, L]"]
Times: TypeAlias = Annotated[jax.Array, "float32[*B] or float32[*B, L]"]
Scalar: TypeAlias = Annotated[jax.Array, "float32[]"]
Key: TypeAlias = Annotated[jax.Array, "key<...>[]"]


def last_axis_index(size: int, ndim: int) -> jax.Array:
    """Returns 0..size-1 along the last of `ndim` axes, int32[1, ..., 1, size].

    An index of full rank, because the library computes under strict rank promotion.

    Examples:
        >>> last_axis_index(3, 2).tolist()
        [[0, 1, 2]]
    """
    return jnp.arange(size, dtype=jnp.int32).reshape((1,) * (ndim - 1) + (size,))
