"""MD4's text transformer, as a Flax Linen module.

"Simplified and generalized masked diffusion for discrete data" (Shi et al., 2024, arXiv
2406.04329), whose network follows Llama 2: pre-norm blocks of rotary attention (interleaved pairs)
and a gated MLP without biases, scaled, shifted and gated by a vector made of the time and,
optionally, of a class. The head has no row for the mask id, so that it cannot be predicted.

The published network is float32 throughout; here block matmuls and the head run in
`config.dtype`. Parameters are a plain pytree with the layers stacked along axis 0 under "blocks".
No weights were published. Left out is dropout of attention weights, which published text models
do not use.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from mdm_jax.masks import Bidirectional, Mask
from mdm_jax.models import embeddings
from mdm_jax.models.attention import Attention, attention
from mdm_jax.models.md4_configs import MD4Config
from mdm_jax.models.md4_layers import Condition, Head, dropped, stacked_blocks


class MD4(nn.Module):
    """Maps noised tokens, and the time, to logits of the clean tokens.

    At initialization the head is zero: all logits are 0.

    Attributes:
        config: The architecture.
        attention: How attention is computed: a function of the signature of
            `mdm_jax.models.attention.attention`, the default.

    Examples:
        >>> model = MD4(MD4Config(vocab_size=5, layers=2, heads=2, features=4, classes=3))
        >>> tokens, t, label = jnp.array([[0, 5, 2]]), jnp.array([0.3]), jnp.array([2])
        >>> params = jax.jit(model.init)(jax.random.key(0), tokens)["params"]
        >>> model.apply({"params": params}, tokens, t=t, label=label).shape  # 5 is the mask id
        (1, 3, 5)
    """

    config: MD4Config
    attention: Attention = attention

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        sigma: jax.Array | None = None,
        *,
        t: jax.Array | None = None,
        label: jax.Array | None = None,
        mask: Mask | None = None,
        deterministic: bool = True,
        unembed: bool = True,
    ) -> jax.Array:
        """Returns logits.

        Args:
            tokens: int32[B, L], ids up to the mask id, `vocab_size`.
            sigma: float32[B], the noise level -log alpha(t), in place of `t` where all models are
                called alike. The network is then fed 1 - alpha(t), which under MD4's linear
                schedule is the time itself.
            t: float32[B] or a scalar, the time in [0, 1], which the published models are fed
                whatever their schedule. Neither is read without `config.time_conditioning`.
            label: int32[B], the class of each sequence, if `config.classes`.
            mask: Who attends to whom, by default everyone.
            deterministic: Switch dropout off. Otherwise `apply` needs `rngs={"dropout": key}`.
            unembed: Apply the head's matmul. Otherwise return the states it is applied to, for
                losses that make the logits themselves (`mdm_jax.from_hidden`).

        Returns:
            [B, L, vocab_size] in `config.dtype`; losses cast to float32 before their softmax. The
            states [B, L, width] in `config.dtype` if not `unembed`.

        Raises:
            TypeError: If tokens or labels are not integers.
            ValueError: If an input has the wrong shape, if a time-conditioned model is applied
                without exactly one of `t` and `sigma`, or if `label` and `config.classes` do not
                come together.
        """
        config = self.config
        _check_ids("tokens", tokens, 2)
        x = _Embedding(config, deterministic, name="embedding")(tokens)
        cond = None
        if config.time_conditioning:
            t, label = self._conditions(tokens, sigma, t, label)
            cond = Condition(config, name="condition")(t, label)
        elif label is not None:
            raise ValueError("label is given, but config.classes is 0.")
        angles = embeddings.rotary_angles(jnp.arange(tokens.shape[1]), config.features)
        mask = Bidirectional() if mask is None else mask
        blocks = stacked_blocks(config)(config, deterministic, self.attention, name="blocks")
        x, _ = blocks(x, cond, angles, mask)
        return Head(config, name="head")(x, cond, unembed=unembed)

    def _conditions(self, tokens, sigma, t, label) -> tuple[jax.Array, jax.Array | None]:
        """Checks what is static about time and class; returns both, with one row per sequence."""
        blank = jnp.zeros_like(tokens[:, 0])
        if self.is_initializing():
            t = jnp.zeros(()) if t is None and sigma is None else t
            label = blank if label is None and self.config.classes else label
        if (t is None) == (sigma is None):
            raise ValueError(
                "a time-conditioned model needs either t, float32[B], or sigma, "
                "process.schedule.sigma(t)."
            )
        if sigma is not None:
            t = -jnp.expm1(-sigma)
        t = jnp.asarray(t, jnp.float32)
        if t.ndim and t.shape != blank.shape:
            raise ValueError(
                f"t or sigma must have one entry per sequence, shape {blank.shape}; got {t.shape}."
            )
        if (label is None) == bool(self.config.classes):
            raise ValueError(
                f"label, int32[B], goes with config.classes, which is {self.config.classes}; got "
                f"label={label if label is None else label.shape}."
            )
        if label is not None:
            _check_ids("label", label, 1)
            if label.shape != blank.shape:
                raise ValueError(f"label must have shape {blank.shape}; got {label.shape}.")
        return t + blank.astype(jnp.float32), label


class _Embedding(nn.Module):
    """Maps ids to the residual stream, directly or through a narrow table.

    Attributes:
        config: The architecture.
        deterministic: Switch dropout off.
    """

    config: MD4Config
    deterministic: bool

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Returns float32[B, L, D] for int32[B, L]."""
        config = self.config
        columns = config.features if config.factored_embedding else config.width
        init = nn.initializers.normal(columns**-0.5)
        x = embeddings.lookup(
            jnp.asarray(self.param("table", init, (config.num_ids, columns))), tokens
        )
        if config.factored_embedding:
            dense = nn.Dense(config.width, precision=jax.lax.Precision.HIGHEST, name="widen")
            return dense(x)
        if config.dropout > 0.0 and not self.deterministic:
            x = dropped(x, self.make_rng("dropout"), config.dropout, x.shape)
        return x


def _check_ids(name: str, ids: jax.Array, ndim: int) -> None:
    """Checks what is static about tokens and labels."""
    shape = {1: "[B]", 2: "[B, L]"}[ndim]
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise TypeError(f"{name} must be integers, got {ids.dtype}.")
    if ids.ndim != ndim:
        raise ValueError(
            f"{name} must have shape {shape}, got {ids.shape}; add a batch axis with "
            f"{name}[None], or map over further axes with jax.vmap."
        )
