"""DiT: the transformer of MDLM, Duo and their scaling studies, as a Flax Linen module.

A pre-norm transformer with rotary attention and a GELU MLP, whose blocks are scaled, shifted and
gated by a time vector (adaLN-zero; Peebles & Xie, 2023). Block matmuls and the head run in
`config.dtype`; the residual stream, LayerNorm and everything computed from time are float32.

The module knows no mesh: parameters are a plain pytree with the layers stacked along axis 0 of
every leaf under "blocks", and sharding is decided by whoever places parameters and tokens.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from mdm_jax.models import embeddings
from mdm_jax.models.attention import attention
from mdm_jax.models.configs import TIME_FEATURES, DiTConfig

_REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


class DiT(nn.Module):
    """Maps noised tokens, and the noise level, to logits of the clean tokens.

    At initialization gates and head are zero: the blocks are the identity and all logits are 0.

    Attributes:
        config: The architecture.

    Examples:
        >>> model = DiT(DiTConfig.from_size("tiny", num_ids=5, layers=1))
        >>> tokens = jnp.array([[0, 4, 2]])
        >>> params = jax.jit(model.init)(jax.random.key(0), tokens)["params"]
        >>> model.apply({"params": params}, tokens).shape
        (1, 3, 5)
    """

    config: DiTConfig

    @nn.compact
    def __call__(
        self, tokens: jax.Array, sigma: jax.Array | None = None, *, deterministic: bool = True
    ) -> jax.Array:
        """Returns logits.

        Args:
            tokens: int32[B, L].
            sigma: float32[B], the noise level -log alpha(t). Read only if
                `config.time_conditioning`; otherwise the model is fed zeros, as the published
                masked models are.
            deterministic: Switch dropout off. Otherwise `apply` needs `rngs={"dropout": key}`.

        Returns:
            [B, L, num_ids] in `config.dtype`; losses cast to float32 before their softmax.

        Raises:
            TypeError: If tokens are not integers.
            ValueError: If tokens or sigma have the wrong shape, or a time-conditioned model is
                applied without sigma.
        """
        config = self.config
        sigma = self._checked(tokens, sigma)
        table = self.param(
            "embedding", _uniform(config.width), (config.num_ids, config.width), jnp.float32
        )
        x = embeddings.lookup(jnp.asarray(table), tokens)
        cond = TimeMLP(config.cond_dim, name="time")(sigma) if config.adaln else None
        angles = embeddings.rotary_angles(jnp.arange(tokens.shape[1]), config.head_dim)
        x, _ = _stacked(config)(config, deterministic, name="blocks")(x, cond, angles)
        return Head(config, name="head")(x, cond)

    def _checked(self, tokens: jax.Array, sigma: jax.Array | None) -> jax.Array:
        """Checks what is static about the inputs; returns the sigma to feed, [B] or [1]."""
        if not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise TypeError(f"tokens must be integers, got {tokens.dtype}.")
        if tokens.ndim != 2:
            raise ValueError(
                f"tokens must have shape [B, L], got {tokens.shape}; add a batch axis with "
                f"tokens[None], or map over further axes with jax.vmap."
            )
        if not self.config.time_conditioning:
            return jnp.zeros(1)  # One row, broadcast: the same vector modulates every sequence.
        if sigma is None:
            if self.is_initializing():
                return jnp.zeros(1)
            raise ValueError(
                "a time-conditioned model needs sigma, float32[B]: process.schedule.sigma(t)."
            )
        if sigma.shape != tokens.shape[:1]:
            raise ValueError(
                f"sigma must have one entry per sequence, shape {tokens.shape[:1]}; "
                f"got {sigma.shape}."
            )
        return sigma


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
    """

    config: DiTConfig
    deterministic: bool

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        cond: jax.Array | None,
        angles: tuple[jax.Array, jax.Array],
    ) -> tuple[jax.Array, None]:
        """Returns the next residual stream, in the (carry, output) form of a scan.

        Args:
            x: float32[B, L, D].
            cond: float32[B, C], or float32[1, C] for all sequences, or None without adaLN.
            angles: Rotary cosines and sines, float32[L, head_dim / 2] each.
        """
        if cond is None:
            shift1 = scale1 = gate1 = shift2 = scale2 = gate2 = None
        else:
            # The published order: shift, scale, gate of attention, then of the MLP.
            shift1, scale1, gate1, shift2, scale2, gate2 = _modulation(6, self.config)(cond)
        h = _modulate(_norm("norm_attention")(x), shift1, scale1)
        x = x + self._gated(self._attend(h, angles), gate1)
        h = _modulate(_norm("norm_mlp")(x), shift2, scale2)
        x = x + self._gated(self._mlp(h), gate2)
        return x, None

    def _attend(self, h: jax.Array, angles: tuple[jax.Array, jax.Array]) -> jax.Array:
        """Returns the attention branch, `config.dtype`[B, L, D]."""
        config = self.config
        init = _uniform(config.width)
        # One matmul for q, k and v, its kernel [D, 3, H, head_dim] so that heads can be sharded.
        qkv = nn.DenseGeneral(
            (3, config.heads, config.head_dim),
            use_bias=False,
            kernel_init=init,
            dtype=config.dtype,
            name="qkv",
        )(h)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        q, k = embeddings.rotate(q, *angles), embeddings.rotate(k, *angles)
        return nn.DenseGeneral(
            config.width,
            axis=(-2, -1),
            use_bias=False,
            kernel_init=init,
            dtype=config.dtype,
            name="attention_out",
        )(attention(q, k, v, causal=config.causal))

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
    def __call__(self, x: jax.Array, cond: jax.Array | None) -> jax.Array:
        """Returns `config.dtype`[B, L, num_ids] for float32[B, L, D]."""
        config = self.config
        shift = scale = None
        if cond is not None:
            shift, scale = _modulation(2, config)(cond)
        x = _modulate(_norm("norm")(x), shift, scale)
        return nn.Dense(
            config.num_ids, kernel_init=nn.initializers.zeros, dtype=config.dtype, name="logits"
        )(x)


def _stacked(config: DiTConfig) -> type[nn.Module]:
    """Returns `Block`, rematerialized as configured and scanned over stacked parameters."""
    block = Block
    if config.remat != "none":
        # A loop body cannot be merged with its backward pass, so CSE is harmless inside a scan
        # and need not be prevented; an unrolled layer has no such boundary.
        block = nn.remat(block, prevent_cse=config.unroll > 1, policy=_REMAT_POLICIES[config.remat])
    return nn.scan(
        block,
        variable_axes={"params": 0, "intermediates": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=nn.broadcast,  # pyright: ignore[reportArgumentType]
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
    init = _uniform(fan_in)
    return nn.Dense(features, kernel_init=init, bias_init=init, dtype=dtype, name=name)


def _float32_dense(features: int, fan_in: int | None, name: str) -> nn.Dense:
    """Returns a linear map of the time path, zero at initialization if `fan_in` is None.

    It runs at the highest precision, as accelerators otherwise round float32 operands; with one
    row per sequence it costs next to nothing.
    """
    init = nn.initializers.zeros if fan_in is None else _uniform(fan_in)
    return nn.Dense(
        features,
        kernel_init=init,
        bias_init=init,
        dtype=jnp.float32,
        precision=jax.lax.Precision.HIGHEST,
        name=name,
    )


def _uniform(fan_in: int) -> nn.initializers.Initializer:
    """Returns an initializer drawing from U(+-1 / sqrt(fan_in)), the published rule."""
    limit = fan_in**-0.5

    def init(key, shape, dtype=jnp.float32, out_sharding=None):
        del out_sharding  # Parameters are placed by their owner, not where they are drawn.
        return jax.random.uniform(key, shape, dtype, minval=-limit, maxval=limit)

    return init
