"""Token, time and position embeddings, all in float32."""

import jax
import jax.numpy as jnp
import numpy as np

BASE = 10_000.0
"""Ratio of the longest to the shortest wavelength, of time features and rotary angles alike."""


def frequencies(dim: int) -> np.ndarray:
    """Returns 10000^(-2k / dim) for k = 0, 1, ...: `dim / 2` angular frequencies, falling from 1.

    Args:
        dim: Number of features, two to a frequency.

    Returns:
        float32[dim / 2], rounded once from float64.

    Examples:
        >>> frequencies(4)
        array([1.  , 0.01], dtype=float32)
    """
    return (BASE ** -(np.arange(0, dim, 2) / dim)).astype(np.float32)


def lookup(table: jax.Array, tokens: jax.Array) -> jax.Array:
    """Looks up the rows of an embedding table.

    Unlike `table[tokens]`, it works on Explicit meshes too, where a gather must be told its
    output sharding: the sharding of the tokens, with rows left whole.

    Args:
        table: float32[V, D].
        tokens: int32[*B].

    Returns:
        float32[*B, D]. An id outside [0, V) gives a row of NaN rather than a neighbor's row.

    Examples:
        >>> lookup(jnp.eye(3), jnp.array([2, 0]))
        Array([[0., 0., 1.],
               [1., 0., 0.]], dtype=float32)
    """
    return table.at[tokens].get(
        mode="fill",
        fill_value=jnp.nan,
        wrap_negative_indices=False,
        out_sharding=jax.typeof(tokens).sharding,
    )


def soft_lookup(table: jax.Array, logits: jax.Array) -> jax.Array:
    """Returns the mean embedding under softmax(logits): Duo's relaxed tokens.

    The product keeps float32's leading bits on accelerators too (the reference runs it in TF32),
    as the embedding is the residual stream itself.

    Args:
        table: float32[V, D].
        logits: float[*B, V].

    Returns:
        float32[*B, D].

    Examples:
        >>> soft_lookup(jnp.eye(2), jnp.zeros((1, 2)))
        Array([[0.5, 0.5]], dtype=float32)
    """
    weights = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
    return jnp.einsum("...v,vd->...d", weights, table, precision=jax.lax.Precision.HIGH)


def weighted_lookup(table: jax.Array, ids: jax.Array, weights: jax.Array) -> jax.Array:
    """Returns sum_k weights[k] table[ids[k]]: relaxed tokens with few ids each (Duo, top-k).

    Args:
        table: float32[V, D].
        ids: int32[*B, K].
        weights: float[*B, K]; they need not sum to 1.

    Returns:
        float32[*B, D].

    Examples:
        >>> weighted_lookup(jnp.eye(3), jnp.array([2, 0]), jnp.array([0.5, 0.25]))
        Array([0.25, 0.  , 0.5 ], dtype=float32)
    """
    rows = lookup(table, ids)
    return jnp.sum(weights.astype(jnp.float32)[..., None] * rows, axis=-2)


def time_features(sigma: jax.Array, dim: int) -> jax.Array:
    """Returns the sinusoidal features of a noise level.

    The features are `[cos(sigma f), sin(sigma f)]` with the `frequencies` f, and sigma is not
    scaled: at sigma = 0 they are ones, then zeros.

    Args:
        sigma: float32[B], the noise level -log alpha(t).
        dim: Number of features, even.

    Returns:
        float32[B, dim].

    Examples:
        >>> time_features(jnp.zeros(1), 4)
        Array([[1., 1., 0., 0.]], dtype=float32)
    """
    angles = sigma[:, None] * frequencies(dim)[None, :]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def rotary_angles(positions: jax.Array, head_dim: int) -> tuple[jax.Array, jax.Array]:
    """Returns the cosines and sines by which `rotate` turns each position.

    Args:
        positions: int32[*B, L]; with a batch axis, each sequence has positions of its own.
        head_dim: Width of a head, even.

    Returns:
        Two float32[*B, L, head_dim / 2].

    Examples:
        >>> cos, sin = rotary_angles(jnp.arange(3), 4)
        >>> cos.shape
        (3, 2)
    """
    rates = frequencies(head_dim).reshape((1,) * positions.ndim + (head_dim // 2,))
    angles = positions[..., None].astype(jnp.float32) * rates
    # Made once, behind a barrier: else a compiler may merge them into each product that rotates,
    # and make a cosine for every row and head of every layer.
    return jax.lax.optimization_barrier((jnp.cos(angles), jnp.sin(angles)))


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates heads by position (RoPE, half-split: dimension k pairs with k + head_dim / 2).

    The rotation is computed in float32 and rounded once, so that bfloat16 heads keep their
    relative positions far into a long sequence.

    Args:
        x: [B, L, H, head_dim] queries or keys.
        cos: float32[L, head_dim / 2] or float32[B, L, head_dim / 2], from `rotary_angles`.
        sin: The same shape.

    Returns:
        The rotated heads, in the shape and dtype of `x`.

    Examples:
        >>> x = jnp.ones((1, 2, 1, 4))
        >>> cos, sin = rotary_angles(jnp.arange(2), 4)
        >>> [round(float(v), 2) for v in rotate(x, cos, sin)[0, 1, 0]]  # position 1
        [-0.3, 0.99, 1.38, 1.01]
    """
    if cos.ndim == 2:
        cos, sin = cos[None], sin[None]
    cos, sin = cos[:, :, None, :], sin[:, :, None, :]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)


def rotate_interleaved(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates heads by position (RoPE as Llama has it: dimension 2k pairs with 2k + 1).

    Args:
        x: [B, L, H, head_dim] queries or keys.
        cos: float32[L, head_dim / 2] or float32[B, L, head_dim / 2], from `rotary_angles`.
        sin: The same shape.

    Returns:
        The rotated heads, in the shape and dtype of `x`.

    Examples:
        >>> x = jnp.ones((1, 2, 1, 4))
        >>> cos, sin = rotary_angles(jnp.arange(2), 4)
        >>> [round(float(v), 2) for v in rotate_interleaved(x, cos, sin)[0, 1, 0]]  # position 1
        [-0.3, 1.38, 0.99, 1.01]
    """
    pairs = x.reshape(*x.shape[:-1], x.shape[-1] // 2, 2)
    halves = jnp.concatenate([pairs[..., 0], pairs[..., 1]], axis=-1)
    turned = jnp.split(rotate(halves, cos, sin), 2, axis=-1)
    return jnp.stack(turned, axis=-1).reshape(x.shape)
