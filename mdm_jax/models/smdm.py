"""SMDM: the Llama-style transformer of masked and autoregressive scaling laws, in Flax Linen.

"Scaling up Masked Diffusion Models on Text" (Nie et al., 2024, arXiv 2410.18514) calls the masked
one TransEncoder and the causal one GPT; `SMDMConfig.causal` chooses. Pre-norm blocks of rotary
attention and a SwiGLU MLP, RMSNorm, no biases, no dropout, an untied head, and no time input. The
head of the masked model has no row for the mask id, so that it cannot be predicted.

As published, matmuls run in `config.dtype`; the residual stream, the norms and the rotation are
float32. Parameters are a plain pytree with the layers stacked along axis 0 under "blocks".
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mdm_jax.masks import Bidirectional, Causal, Mask, Segments
from mdm_jax.models import embeddings
from mdm_jax.models.attention import Attention, attention
from mdm_jax.models.cache import Cache, write
from mdm_jax.models.remat import kept, rematerialized
from mdm_jax.models.smdm_configs import SMDMConfig


class SMDM(nn.Module):
    """Maps tokens to logits: of the clean tokens, or of the next ones if `config.causal`.

    Attributes:
        config: The architecture.
        attention: How attention is computed: a function of the signature of
            `mdm_jax.models.attention.attention`, the default.

    Examples:
        >>> config = SMDMConfig(vocab_size=5, width=8, layers=2, heads=2, hidden=12)
        >>> model, tokens = SMDM(config), jnp.array([[0, 5, 2]])  # 5 is the mask id
        >>> params = jax.jit(model.init)(jax.random.key(0), tokens)["params"]
        >>> model.apply({"params": params}, tokens).shape
        (1, 3, 5)
    """

    config: SMDMConfig
    attention: Attention = attention

    def __call__(
        self,
        tokens: jax.Array,
        sigma: jax.Array | None = None,
        *,
        mask: Mask | None = None,
        deterministic: bool = True,
        unembed: bool = True,
    ) -> jax.Array:
        """Returns logits.

        Args:
            tokens: int32[B, L], ids below `config.num_ids`. Published models were trained with
                L up to 2048; nothing here depends on it.
            sigma: Not read: the model takes no time. It is accepted, as is `deterministic`, so
                that models can be exchanged.
            mask: Who attends to whom, by default everyone. `Filled(count)` hides the tokens from
                `count` on, so that those before get the logits of a shorter text. Only for a
                bidirectional model; a causal one takes `Segments(ids, causal=True)`.
            deterministic: Not read: there is no dropout.
            unembed: Apply the head's matmul. Otherwise return the states it is applied to, for
                losses that make the logits themselves (`mdm_jax.from_hidden`).

        Returns:
            [B, L, vocab_size] in `config.dtype`; losses cast to float32 before their softmax.
            If causal, the logits at position i are those of token i + 1. The states
            [B, L, width] in `config.dtype` if not `unembed`.

        Raises:
            TypeError: If tokens are not integers.
            ValueError: If tokens have the wrong shape, or a causal model is given a mask.
        """
        del sigma, deterministic
        _check(tokens)
        if mask is None:
            mask = Causal() if self.config.causal else Bidirectional()
        elif self.config.causal and not (isinstance(mask, Segments) and mask.causal):
            raise ValueError(
                f"mask={mask!r} would take the place of a causal model's own: give none, or "
                "Segments(ids, causal=True), or build the model with causal=False."
            )
        logits, _ = self._forward(tokens, jnp.arange(tokens.shape[1]), mask, None, unembed)
        return logits

    def decode(
        self,
        tokens: jax.Array,
        cache: Cache,
        *,
        positions: jax.Array | None = None,
        slots: jax.Array | None = None,
        read: jax.Array | None = None,
    ) -> tuple[jax.Array, Cache]:
        """Returns next-token logits of tokens that follow those in the cache.

        With `slots` it returns the logits of tokens that stand among those in the cache, each of
        which sees all of them: for a bidirectional model.

        Args:
            tokens: int32[B, Q], the newest tokens; row b takes the slots from `cache.filled[b]`
                on. Later ones are invisible to earlier ones, so rows with fewer tokens are padded
                at their end.
            cache: Keys and values of the tokens before, from `make_cache`.
            positions: int32[B, Q], where each token stands in the text; by default behind those
                in the cache, `filled[b] + i`, or the slots where they are given.
            slots: int32[B, Q], where new keys and values replace older ones; the others are taken
                as they were. S for a token that leaves none, such as padding.
            read: int32[B, R], which of the Q tokens to return logits of; all by default.

        Returns:
            Logits [B, Q, vocab_size] (or R in place of Q), and the cache with the new keys and
            values at `slots`, or behind the first `filled`, which `commit` counts in.

        Raises:
            TypeError: If tokens are not integers.
            ValueError: If the model is bidirectional, so that keys change with every new token,
                and no slots are given; if it is causal and they are; if tokens are more than the
                capacity, or the batch differs.

        Examples:
            >>> from mdm_jax.models.cache import commit, make_cache
            >>> config = SMDMConfig(
            ...     vocab_size=5, width=8, layers=2, heads=2, hidden=12, causal=True
            ... )
            >>> model, tokens = SMDM(config), jnp.array([[0, 4, 2]])
            >>> params = jax.jit(model.init)(jax.random.key(0), tokens)["params"]
            >>> cache = make_cache(config, batch=1, capacity=8)
            >>> logits, cache = model.apply({"params": params}, tokens, cache, method="decode")
            >>> commit(cache, 3).filled
            Array([3], dtype=int32)
        """
        _check(tokens)
        if not self.config.causal and slots is None:
            raise ValueError(
                "decode needs causal=True: in a bidirectional model the keys of earlier tokens "
                "change with each new one."
            )
        if self.config.causal and slots is not None:
            raise ValueError("slots are for a bidirectional model; a causal one fills its cache.")
        batch, capacity = cache.keys.shape[1:3]
        if tokens.shape[0] != batch or tokens.shape[1] > capacity:
            raise ValueError(
                f"tokens must have shape [{batch}, Q] with Q at most the cache's capacity, "
                f"{capacity}; got {tokens.shape}."
            )
        if positions is None:
            steps = jnp.arange(tokens.shape[1], dtype=jnp.int32)
            positions = cache.filled[:, None] + steps[None, :] if slots is None else slots
        start = cache.filled if slots is None else slots
        mask = Causal(start=cache.filled) if slots is None else Bidirectional()
        logits, layers = self._forward(tokens, positions, mask, cache, start=start, read=read)
        return logits, cache._replace(keys=layers[0], values=layers[1])

    @nn.compact
    def _forward(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        mask: Mask,
        cache: Cache | None,
        unembed: bool = True,
        start: jax.Array | None = None,
        read: jax.Array | None = None,
    ) -> tuple[jax.Array, Any]:
        """Returns logits, and the keys and values of all layers if there is a cache."""
        config = self.config
        table = self.param(
            "embedding", _linear_init(config), (config.num_ids, config.width), jnp.float32
        )
        x = embeddings.lookup(jnp.asarray(table), tokens)
        # Keys and values enter and leave the scan layer by layer; without a cache they are None.
        layers = None if cache is None else cache[:2]
        x, layers = _stacked(config)(config, self.attention, name="blocks")(
            x, _angles(positions, config), mask, layers, start
        )
        x = x if read is None else jnp.take_along_axis(x, read[..., None], axis=1)
        return Head(config, name="head")(x, unembed=unembed), layers


class Block(nn.Module):
    """One layer: attention, then an MLP, each on a norm of the residual stream.

    Attributes:
        config: The architecture.
        attention: How attention is computed.
    """

    config: SMDMConfig
    attention: Attention

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        angles: tuple[jax.Array, jax.Array],
        mask: Mask,
        layer: tuple[jax.Array, jax.Array] | None,
        start: jax.Array | None,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array] | None]:
        """Returns the next residual stream, and this layer's cache.

        Args:
            x: float32[B, L, D].
            angles: Rotary cosines and sines, float32[L, head_dim / 2] or [B, L, head_dim / 2].
            mask: Who attends to whom.
            layer: Cached keys and values, [B, S, G, head_dim] each, or None.
            start: int32[B], cached slots in use, or int32[B, L], the slots to write; or None.
        """
        attended, layer = self._attend(_norm("norm_attention")(x), angles, mask, layer, start)
        x = x + attended.astype(jnp.float32)
        return x + self._mlp(_norm("norm_mlp")(x)).astype(jnp.float32), layer

    def _attend(self, h, angles, mask, layer, start):
        """Returns the attention branch, `config.dtype`[B, L, D], and the layer's cache."""
        config = self.config
        shared = config.heads // config.groups
        # As published, a group's queries stand before the key and the value they share.
        qkv = nn.DenseGeneral(
            (config.groups, shared + 2, config.head_dim),
            use_bias=False,
            kernel_init=_linear_init(config),
            dtype=config.dtype,
            name="grouped_qkv",
        )(h)
        q, k, v = qkv[:, :, :, :shared], qkv[:, :, :, shared], qkv[:, :, :, shared + 1]
        q = q.reshape(*h.shape[:2], config.heads, config.head_dim)
        q, k = embeddings.rotate(q, *angles), embeddings.rotate(k, *angles)
        if layer is not None:
            layer = k, v = write(layer[0], k, start), write(layer[1], v, start)
        q, k, v = kept((q, k, v))
        out = nn.DenseGeneral(
            config.width,
            axis=(-2, -1),
            use_bias=False,
            kernel_init=_branch_init(config),
            dtype=config.dtype,
            name="attention_out",
        )
        return out(self.attention(q, k, v, mask)), layer

    def _mlp(self, h: jax.Array) -> jax.Array:
        """Returns the MLP branch, down(silu(gate(h)) * up(h)), `config.dtype`[B, L, D]."""
        config = self.config
        gate = _dense(config.hidden, _linear_init(config), config.dtype, name="mlp_gate")(h)
        up = _dense(config.hidden, _linear_init(config), config.dtype, name="mlp_up")(h)
        down = _dense(config.width, _branch_init(config), config.dtype, name="mlp_down")
        return down(nn.silu(gate) * up)


class Head(nn.Module):
    """Maps the residual stream to logits: a norm, then an untied matmul.

    Attributes:
        config: The architecture.
    """

    config: SMDMConfig

    @nn.compact
    def __call__(self, x: jax.Array, *, unembed: bool = True) -> jax.Array:
        """Returns `config.dtype`[B, L, vocab_size], or [B, L, D] before the matmul."""
        config = self.config
        x = _norm("norm")(x)
        dense = _dense(config.vocab_size, _linear_init(config), config.dtype, name="logits")
        return dense(x) if unembed or self.is_initializing() else x.astype(config.dtype)


def _check(tokens: jax.Array) -> None:
    """Checks what is static about the input."""
    if not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise TypeError(f"tokens must be integers, got {tokens.dtype}.")
    if tokens.ndim != 2:
        raise ValueError(
            f"tokens must have shape [B, L], got {tokens.shape}; add a batch axis with "
            f"tokens[None], or map over further axes with jax.vmap."
        )


def _angles(positions: jax.Array, config: SMDMConfig) -> tuple[jax.Array, jax.Array]:
    """Returns the rotary cosines and sines, float32[*B, L, head_dim / 2] each, for int32[*B, L].

    Rounding is explicit, as a compiler may drop a cast to bfloat16 and back. Powers and cosines
    differ in their last bit between libraries: over 2048 positions one or two entries in a
    thousand round to the neighbor of PyTorch's.
    """
    angles = embeddings.rotary_angles(positions, config.head_dim)
    if not config.rotary_bf16:
        return angles
    cos, sin = (jax.lax.reduce_precision(a, exponent_bits=8, mantissa_bits=7) for a in angles)
    return cos, sin


def _stacked(config: SMDMConfig) -> type[nn.Module]:
    """Returns `Block`, rematerialized as configured and scanned over stacked parameters."""
    return nn.scan(
        rematerialized(Block, config.remat, config.unroll),
        variable_axes={"params": 0, "intermediates": 0},
        split_rngs={"params": True},
        # Only the cache has an axis of layers; angles, mask and start are every layer's.
        in_axes=(nn.broadcast,) * 2 + (0, nn.broadcast),  # pyright: ignore[reportArgumentType]
        length=config.layers,
        unroll=config.unroll,
    )


def _norm(name: str) -> nn.RMSNorm:
    """Returns RMSNorm in float32, with a scale."""
    return nn.RMSNorm(epsilon=1e-5, dtype=jnp.float32, name=name)


def _dense(features: int, init: nn.initializers.Initializer, dtype: str, name: str) -> nn.Dense:
    """Returns a linear map without bias."""
    return nn.Dense(features, use_bias=False, kernel_init=init, dtype=dtype, name=name)


def _linear_init(config: SMDMConfig) -> nn.initializers.Initializer:
    """Returns the published rule for embedding and linear maps, N(0, 2 / (5 width))."""
    return nn.initializers.normal((2.0 / (5.0 * config.width)) ** 0.5)


def _branch_init(config: SMDMConfig) -> nn.initializers.Initializer:
    """Returns the rule for maps that end a residual branch: deviation 1 / (layers sqrt(width))."""
    return nn.initializers.normal(config.width**-0.5 / config.layers)
