"""The layers of a `DiT`: the time vector, the blocks and the head."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from mdm_jax.masks import Mask
from mdm_jax.models import embeddings
from mdm_jax.models.attention import Attention
from mdm_jax.models.cache import write
from mdm_jax.models.configs import TIME_FEATURES, DiTConfig
from mdm_jax.models.remat import kept, rematerialized


class TimeMLP(nn.Module):
    """Maps the noise level to the time vector, silu(MLP(features(sigma))).

    Attributes:
        cond_dim: Width C of the time vector.
    """

    cond_dim: int

    @nn.compact
    def __call__(self, sigma: jax.Array) -> jax.Array:
        """Returns float32[B, C] for float32[B] noise levels."""
        x = embeddings.time_features(sigma.astype(jnp.float32), TIME_FEATURES)
        x = nn.silu(_float32_dense(self.cond_dim, TIME_FEATURES, name="mlp_in")(x))
        return nn.silu(_float32_dense(self.cond_dim, self.cond_dim, name="mlp_out")(x))


class Block(nn.Module):
    """One layer: attention, then an MLP, each on a modulated norm of the residual stream.

    Attributes:
        config: The architecture.
        deterministic: Switch dropout off.
        attention: How attention is computed.
    """

    config: DiTConfig
    deterministic: bool
    attention: Attention

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        cond: jax.Array | None,
        angles: tuple[jax.Array, jax.Array],
        mask: Mask,
        layer: tuple[jax.Array, jax.Array] | None,
        start: jax.Array | None,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array] | None]:
        """Returns the next residual stream, and this layer's cache.

        Args:
            x: float32[B, L, D].
            cond: float32[B, C], or float32[1, C] for all sequences, or None without adaLN.
            angles: Rotary cosines and sines, float32[L, head_dim / 2] or [B, L, head_dim / 2].
            mask: Who attends to whom.
            layer: Cached keys and values, [B, S, H, head_dim] each, or None.
            start: int32[B], cached slots in use, or int32[B, L], the slots to write; or None.
        """
        if cond is None:
            shift1 = scale1 = gate1 = shift2 = scale2 = gate2 = None
        else:
            # The published order: shift, scale, gate of attention, then of the MLP.
            shift1, scale1, gate1, shift2, scale2, gate2 = _modulation(6, self.config)(cond)
        h = _modulate(_norm("norm_attention")(x), shift1, scale1)
        attended, layer = self._attend(h, angles, mask, layer, start)
        x = x + self._gated(attended, gate1)
        h = _modulate(_norm("norm_mlp")(x), shift2, scale2)
        return x + self._gated(self._mlp(h), gate2), layer

    def _attend(self, h, angles, mask, layer, start):
        """Returns the attention branch, `config.dtype`[B, L, D], and the layer's cache."""
        config = self.config
        init = uniform(config.width)
        # One matmul for q, k and v, its kernel [D, 3, H, head_dim] so that heads can be sharded.
        qkv = nn.DenseGeneral(
            (3, config.heads, config.head_dim),
            use_bias=False,
            kernel_init=init,
            dtype=config.dtype,
            name="qkv",
        )(h)
        # Not three slices: their gradients are padded to the whole and added up.
        q, k, v = (jnp.squeeze(part, 2) for part in jnp.split(qkv, 3, axis=2))
        q, k = embeddings.rotate(q, *angles), embeddings.rotate(k, *angles)
        if layer is not None:
            layer = k, v = write(layer[0], k, start), write(layer[1], v, start)
        q, k, v = kept((q, k, v))
        out = nn.DenseGeneral(
            config.width,
            axis=(-2, -1),
            use_bias=False,
            kernel_init=init,
            dtype=config.dtype,
            name="attention_out",
        )
        return out(self.attention(q, k, v, mask)), layer

    def _mlp(self, h: jax.Array) -> jax.Array:
        """Returns the MLP branch, `config.dtype`[B, L, D]."""
        config = self.config
        hidden = config.mlp_ratio * config.width
        h = _dense(hidden, config.width, config.dtype, name="mlp_in")(h)
        return _dense(config.width, hidden, config.dtype, name="mlp_out")(nn.gelu(h))

    def _gated(self, branch: jax.Array, gate: jax.Array | None) -> jax.Array:
        """Returns what a branch adds to the stream, float32[B, L, D], after dropout.

        Not `nn.Dropout`: it uses `lax.select`, which an Explicit mesh refuses for sharded arrays.
        """
        branch = branch.astype(jnp.float32)
        rate = self.config.dropout
        if rate > 0.0 and not self.deterministic:
            keep = jax.random.bernoulli(self.make_rng("dropout"), 1.0 - rate, branch.shape)
            branch = jnp.where(keep, branch / (1.0 - rate), 0.0)
        return branch if gate is None else gate * branch


class Head(nn.Module):
    """Maps the residual stream to logits: a modulated norm, then an untied matmul.

    Attributes:
        config: The architecture.
    """

    config: DiTConfig

    @nn.compact
    def __call__(self, x: jax.Array, cond: jax.Array | None, *, unembed: bool = True) -> jax.Array:
        """Returns `config.dtype`[B, L, num_ids], or [B, L, D] before the matmul."""
        config = self.config
        shift = scale = None
        if cond is not None:
            shift, scale = _modulation(2, config)(cond)
        x = _modulate(_norm("norm")(x), shift, scale)
        dense = nn.Dense(
            config.num_ids, kernel_init=nn.initializers.zeros, dtype=config.dtype, name="logits"
        )
        return dense(x) if unembed or self.is_initializing() else x.astype(config.dtype)


def stacked_blocks(config: DiTConfig) -> type[nn.Module]:
    """Returns `Block`, rematerialized as configured and scanned over stacked parameters."""
    return nn.scan(
        rematerialized(Block, config.remat, config.unroll),
        variable_axes={"params": 0, "intermediates": 0},
        split_rngs={"params": True, "dropout": True},
        # Only the cache has an axis of layers; cond, angles, mask and start are every layer's.
        in_axes=(nn.broadcast,) * 3 + (0, nn.broadcast),  # pyright: ignore[reportArgumentType]
        length=config.layers,
        unroll=config.unroll,
    )


def _modulate(x: jax.Array, shift: jax.Array | None, scale: jax.Array | None) -> jax.Array:
    """Returns x (1 + scale) + shift, or x itself without adaLN."""
    return x if shift is None or scale is None else x * (1.0 + scale) + shift


def _modulation(parts: int, config: DiTConfig):
    """Returns the map from the time vector to `parts` float32[B, 1, D], zero at initialization."""
    dense = _float32_dense(parts * config.width, None, name="modulation")
    return lambda cond: jnp.split(dense(cond)[:, None, :], parts, axis=-1)


def _norm(name: str) -> nn.LayerNorm:
    """Returns LayerNorm in float32, with a scale and no bias.

    The variance is taken around the mean: E[x^2] - E[x]^2 cancels where the mean is large.
    """
    return nn.LayerNorm(
        epsilon=1e-5, use_bias=False, use_fast_variance=False, dtype=jnp.float32, name=name
    )


def _dense(features: int, fan_in: int, dtype: str, name: str) -> nn.Dense:
    """Returns a linear map with weights and bias drawn from U(+-1 / sqrt(fan_in))."""
    init = uniform(fan_in)
    return nn.Dense(features, kernel_init=init, bias_init=init, dtype=dtype, name=name)


def _float32_dense(features: int, fan_in: int | None, name: str) -> nn.Dense:
    """Returns a linear map of the time path, zero at initialization if `fan_in` is None.

    It runs at the highest precision, as accelerators otherwise round float32 operands; with one
    row per sequence it costs next to nothing.
    """
    init = nn.initializers.zeros if fan_in is None else uniform(fan_in)
    return nn.Dense(
        features,
        kernel_init=init,
        bias_init=init,
        dtype=jnp.float32,
        precision=jax.lax.Precision.HIGHEST,
        name=name,
    )


def uniform(fan_in: int) -> nn.initializers.Initializer:
    """Returns an initializer drawing from U(+-1 / sqrt(fan_in)), the published rule."""
    limit = fan_in**-0.5

    def init(key, shape, dtype=jnp.float32, out_sharding=None):
        del out_sharding  # Parameters are placed by their owner, not where they are drawn.
        return jax.random.uniform(key, shape, dtype, minval=-limit, maxval=limit)

    return init
