"""The layers of `MD4`: the vector of time and class, the blocks and the head."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mdm_jax.masks import Mask
from mdm_jax.models import embeddings
from mdm_jax.models.attention import Attention
from mdm_jax.models.md4_configs import MD4Config
from mdm_jax.models.remat import kept, rematerialized

_GATES = {"glu": nn.sigmoid, "swiglu": nn.silu, "geglu": nn.gelu}


class Condition(nn.Module):
    """Maps the time, and a class if there are any, to the vector that modulates the blocks.

    Attributes:
        config: The architecture.
    """

    config: MD4Config

    @nn.compact
    def __call__(self, t: jax.Array, label: jax.Array | None) -> jax.Array:
        """Returns float32[B, features] for times float32[B] and classes int32[B]."""
        config, f = self.config, self.config.features
        x = wave_features(1000.0 * t, f)
        if label is not None:
            init = nn.initializers.normal(f**-0.5)
            table = jnp.asarray(self.param("class_embedding", init, (config.classes, f)))
            x = jnp.concatenate([x, embeddings.lookup(table, label)], axis=-1)
        x = nn.silu(_float32_dense(4 * f, nn.initializers.lecun_normal(), name="mlp_in")(x))
        return _float32_dense(f, nn.initializers.lecun_normal(), name="mlp_out")(x)


class Block(nn.Module):
    """One layer: attention, then a gated MLP, each on a modulated norm of the residual stream.

    Attributes:
        config: The architecture.
        deterministic: Switch dropout off.
        attention: How attention is computed.
    """

    config: MD4Config
    deterministic: bool
    attention: Attention

    @nn.compact
    def __call__(
        self, x: jax.Array, cond: jax.Array | None, angles: tuple[jax.Array, jax.Array], mask: Mask
    ) -> tuple[jax.Array, None]:
        """Returns the next residual stream, in the (carry, output) form of a scan.

        Args:
            x: float32[B, L, D].
            cond: float32[B, features], or None without time.
            angles: Rotary cosines and sines, float32[L, features / 2] each.
            mask: Who attends to whom.
        """
        config = self.config
        if cond is None:
            x = x + self._dropped(self._attend(_rms_norm("norm_attention")(x), angles, mask))
            return x + self._dropped(self._mlp(_rms_norm("norm_mlp")(x))), None
        # Shift, scale, gate of attention, then of the MLP.
        shift1, scale1, gate1, shift2, scale2, gate2 = _modulation(6, config)(cond)
        h = _standardized(x) * (1.0 + scale1) + shift1
        x = x + gate1 * self._dropped(self._attend(h, angles, mask))
        h = _standardized(x) * (1.0 + scale2) + shift2
        x = x + gate2 * self._dropped(self._mlp(h))
        return x, None

    def _attend(self, h: jax.Array, angles: tuple[jax.Array, jax.Array], mask: Mask) -> jax.Array:
        """Returns the attention branch, `config.dtype`[B, L, D]."""
        config = self.config
        # One matmul for q, k and v, its kernel [D, 3, H, features] so that heads can be sharded.
        qkv = nn.DenseGeneral(
            (3, config.heads, config.features), use_bias=False, dtype=config.dtype, name="qkv"
        )(h)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        q = embeddings.rotate_interleaved(q, *angles)
        k = embeddings.rotate_interleaved(k, *angles)
        q, k, v = kept((q, k, v))
        out = nn.DenseGeneral(
            config.width, axis=(-2, -1), use_bias=False, dtype=config.dtype, name="attention_out"
        )
        return out(self.attention(q, k, v, mask))

    def _mlp(self, h: jax.Array) -> jax.Array:
        """Returns the MLP branch, down(act(gate(h)) * up(h)), `config.dtype`[B, L, D]."""
        config = self.config
        scale = 2.0 / config.layers if config.depth_scaled_init else 1.0
        init = nn.initializers.variance_scaling(scale, "fan_in", "truncated_normal")

        def dense(features: int, name: str) -> nn.Dense:
            return nn.Dense(
                features, use_bias=False, kernel_init=init, dtype=config.dtype, name=name
            )

        gate = _GATES[config.mlp](dense(config.hidden, "mlp_gate")(h))
        return dense(config.width, "mlp_down")(gate * dense(config.hidden, "mlp_up")(h))

    def _dropped(self, branch: jax.Array) -> jax.Array:
        """Returns a branch as float32[B, L, D], after dropout of whole features."""
        branch = branch.astype(jnp.float32)
        rate = self.config.dropout
        if rate > 0.0 and not self.deterministic:
            shape = (branch.shape[0], 1, branch.shape[2])
            branch = dropped(branch, self.make_rng("dropout"), rate, shape)
        return branch


class Head(nn.Module):
    """Maps the residual stream to logits: a modulated norm, then an untied matmul.

    Attributes:
        config: The architecture.
    """

    config: MD4Config

    @nn.compact
    def __call__(self, x: jax.Array, cond: jax.Array | None, *, unembed: bool = True) -> jax.Array:
        """Returns `config.dtype`[B, L, vocab_size], or [B, L, D] before the matmul."""
        config = self.config
        if cond is None:
            x = _rms_norm("norm")(x)
        else:
            shift, scale = _modulation(2, config)(cond)
            x = _standardized(x) * (1.0 + scale) + shift
        dense = nn.Dense(
            config.vocab_size,
            use_bias=False,
            kernel_init=nn.initializers.zeros,
            dtype=config.dtype,
            name="logits",
        )
        return dense(x) if unembed or self.is_initializing() else x.astype(config.dtype)


def wave_features(x: jax.Array, dim: int) -> jax.Array:
    """Returns sinusoidal features, [sin(x f), cos(x f)], both ends of the wavelengths included.

    The frequencies are f_k = 10000^(-k / (dim / 2 - 1)), k = 0, ..., dim / 2 - 1. (The features of
    `embeddings.time_features` put cosines first and stop short of the last wavelength.)

    Args:
        x: float32[B].
        dim: Number of features, even and at least 4.

    Returns:
        float32[B, dim].

    Examples:
        >>> wave_features(jnp.zeros(1), 4)
        Array([[0., 0., 1., 1.]], dtype=float32)
    """
    half = dim // 2
    rates = (embeddings.BASE ** -(np.arange(half) / (half - 1))).astype(np.float32)
    angles = x[:, None] * rates[None, :]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def dropped(x: jax.Array, key: jax.Array, rate: float, shape: tuple[int, ...]) -> jax.Array:
    """Returns x with entries dropped, and the others scaled up so that the mean stays.

    Args:
        x: float32[*S].
        key: What decides which.
        rate: Share of entries to drop, below 1.
        shape: Shape of what is drawn; an axis of 1 drops or keeps all along it.

    Examples:
        >>> dropped(jnp.ones((1, 2, 3)), jax.random.key(0), 0.5, (1, 1, 3))[0, 0] % 2
        Array([0., 0., 0.], dtype=float32)
    """
    return jnp.where(jax.random.bernoulli(key, 1.0 - rate, shape), x / (1.0 - rate), 0.0)


def stacked_blocks(config: MD4Config) -> type[nn.Module]:
    """Returns `Block`, rematerialized as configured and scanned over stacked parameters.

    Args:
        config: The architecture.
    """
    return nn.scan(
        rematerialized(Block, config.remat, config.unroll),
        variable_axes={"params": 0, "intermediates": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=nn.broadcast,  # pyright: ignore[reportArgumentType]
        length=config.layers,
        unroll=config.unroll,
    )


def _modulation(parts: int, config: MD4Config):
    """Returns the map from the time vector to `parts` float32[B, 1, D]."""
    zero = config.modulation == "adaln_zero"
    init = nn.initializers.zeros if zero else nn.initializers.lecun_normal()
    dense = _float32_dense(parts * config.width, init, name="modulation")
    # The time vector passes through the MLP's own gate: a sigmoid in the published text models.
    gate = _GATES[config.mlp]
    return lambda cond: jnp.split(dense(gate(cond))[:, None, :], parts, axis=-1)


def _standardized(x: jax.Array) -> jax.Array:
    """Returns LayerNorm without parameters, in float32."""
    mean = jnp.mean(x, axis=-1, keepdims=True)
    centered = x - mean
    variance = jnp.mean(jnp.square(centered), axis=-1, keepdims=True)
    return centered * jax.lax.rsqrt(variance + 1e-5)


def _rms_norm(name: str) -> nn.RMSNorm:
    """Returns RMSNorm in float32, with a scale."""
    return nn.RMSNorm(epsilon=1e-5, dtype=jnp.float32, name=name)


def _float32_dense(features: int, init: nn.initializers.Initializer, name: str) -> nn.Dense:
    """Returns a linear map of the time path, at the highest precision: it is one row a sequence."""
    return nn.Dense(
        features,
        kernel_init=init,
        dtype=jnp.float32,
        precision=jax.lax.Precision.HIGHEST,
        name=name,
    )
