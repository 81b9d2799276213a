"""DiT: the transformer of MDLM, Duo and their scaling studies, as a Flax Linen module.

A pre-norm transformer with rotary attention and a GELU MLP, whose blocks are scaled, shifted and
gated by a time vector (adaLN-zero; Peebles & Xie, 2023). Block matmuls and the head run in
`config.dtype`; the residual stream, LayerNorm and everything computed from time are float32.

One set of parameters serves every published use: masked and uniform diffusion and autoregression
(`model(tokens, sigma)`), Duo's relaxed tokens, Eso-LM's permuted positions and masks, block
diffusion's two streams, and generation with a cache (`decode`).

The module knows no mesh: parameters are a plain pytree with the layers stacked along axis 0 of
every leaf under "blocks", and sharding is decided by whoever places parameters and tokens.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mdm_jax.masks import Bidirectional, Causal, Mask, TwoStream
from mdm_jax.models import embeddings
from mdm_jax.models.attention import Attention, attention
from mdm_jax.models.cache import Cache
from mdm_jax.models.configs import DiTConfig
from mdm_jax.models.layers import Head, TimeMLP, stacked_blocks, uniform


class DiT(nn.Module):
    """Maps noised tokens, and the noise level, to logits of the clean tokens.

    At initialization gates and head are zero: the blocks are the identity and all logits are 0.

    Attributes:
        config: The architecture.
        attention: How attention is computed: a function of the signature of
            `mdm_jax.models.attention.attention`, the default.

    Examples:
        >>> model = DiT(DiTConfig.from_size("tiny", num_ids=5, layers=1))
        >>> tokens = jnp.array([[0, 4, 2]])
        >>> params = jax.jit(model.init)(jax.random.key(0), tokens)["params"]
        >>> model.apply({"params": params}, tokens).shape
        (1, 3, 5)
    """

    config: DiTConfig
    attention: Attention = attention

    def __call__(
        self,
        tokens: jax.Array,
        sigma: jax.Array | None = None,
        *,
        weights: jax.Array | None = None,
        clean: jax.Array | None = None,
        positions: jax.Array | None = None,
        mask: Mask | None = None,
        deterministic: bool = True,
        unembed: bool = True,
    ) -> jax.Array:
        """Returns logits.

        Args:
            tokens: int32[B, L]; or relaxed tokens: float[B, L, num_ids], logits over the ids, or
                int32[B, L, K] with `weights`.
            sigma: float32[B], the noise level -log alpha(t). Read only if
                `config.time_conditioning`; otherwise the model is fed zeros, as the published
                masked models are.
            weights: float[B, L, K], the share of each id in `tokens`.
            clean: int32[B, L], the second stream of block diffusion and of Eso-LM's sequential
                loss: the network sees [tokens; clean] under a `TwoStream` mask.
            positions: int32[L] or int32[B, L], where each token stands in the text; 0 to L - 1 by
                default. Permuted tokens bring their positions, while the mask counts in the order
                of the arrays.
            mask: Who attends to whom, by default `Causal` or `Bidirectional` after
                `config.causal`.
            deterministic: Switch dropout off. Otherwise `apply` needs `rngs={"dropout": key}`.
            unembed: Apply the head's matmul. Otherwise return the states it is applied to, for
                losses that make the logits themselves (`mdm_jax.from_hidden`).

        Returns:
            [B, L, num_ids] in `config.dtype`; losses cast to float32 before their softmax. The
            states [B, L, width] in `config.dtype` if not `unembed`.

        Raises:
            TypeError: If tokens are floats without an axis of ids.
            ValueError: If an input has the wrong shape, a time-conditioned model is applied without
                sigma, or `clean` and a `TwoStream` mask do not come together.
        """
        if (clean is None) == isinstance(mask, TwoStream):
            raise ValueError(
                f"clean and mask=TwoStream(...) go together; got clean="
                f"{clean if clean is None else clean.shape} and mask={mask!r}."
            )
        length = tokens.shape[1] if tokens.ndim > 1 else 0
        if positions is None:
            positions = jnp.arange(length, dtype=jnp.int32)
        if mask is None:
            mask = Causal() if self.config.causal else Bidirectional()
        logits, _ = self._forward(
            tokens, sigma, weights, clean, positions, mask, None, deterministic, unembed
        )
        return logits

    def decode(
        self,
        tokens: jax.Array,
        cache: Cache,
        sigma: jax.Array | None = None,
        *,
        positions: jax.Array | None = None,
        mask: Mask | None = None,
        slots: jax.Array | None = None,
        read: jax.Array | None = None,
    ) -> tuple[jax.Array, Cache]:
        """Returns logits of tokens that follow those in the cache, or stand among them (`slots`).

        Args:
            tokens: int32[B, Q], the newest tokens; row b takes the slots from `cache.filled[b]`
                on. Later ones are invisible to earlier ones under the default mask, so rows with
                fewer tokens are padded at their end.
            cache: Keys and values of the tokens before.
            sigma: As in a call.
            positions: int32[B, Q]; by default those that continue the text, `filled[b] + i`, or
                the slots where they are given.
            mask: Over Q queries and the cache's S slots; by default causal, or with `slots`
                everything: then all slots must hold something.
            slots: int32[B, Q], where new keys and values replace older ones: some positions of a
                canvas are computed again and the others are taken as they were. S for a token
                that leaves none, such as padding.
            read: int32[B, R], which of the Q tokens to return logits of; all by default.

        Returns:
            Logits [B, Q, num_ids] (or R in place of Q), and the cache with the new keys and values
            written at `slots`, or behind the first `filled`, which `commit` counts in.

        Raises:
            ValueError: If tokens are more than the capacity, or the batch differs.
        """
        batch, capacity = cache.keys.shape[1:3]
        if tokens.ndim != 2 or tokens.shape[0] != batch or tokens.shape[1] > capacity:
            raise ValueError(
                f"tokens must have shape [{batch}, Q] with Q at most the cache's capacity, "
                f"{capacity}; got {tokens.shape}."
            )
        if positions is None:
            steps = jnp.arange(tokens.shape[1], dtype=jnp.int32)
            positions = cache.filled[:, None] + steps[None, :] if slots is None else slots
        if mask is None:
            mask = Causal(start=cache.filled) if slots is None else Bidirectional()
        start = cache.filled if slots is None else slots
        return self._forward(
            tokens, sigma, None, None, positions, mask, cache, True, start=start, read=read
        )

    @nn.compact
    def _forward(
        self,
        tokens,
        sigma,
        weights,
        clean,
        positions,
        mask,
        cache,
        deterministic,
        unembed=True,
        start=None,
        read=None,
    ) -> tuple[jax.Array, Any]:
        """Returns logits, and the cache where there is one: a call and `decode` in one."""
        config = self.config
        sigma = self._checked(tokens, sigma, weights, clean, positions)
        table = jnp.asarray(
            self.param(
                "embedding", uniform(config.width), (config.num_ids, config.width), jnp.float32
            )
        )
        x = _embed(table, tokens, weights)
        if clean is not None:
            x = jnp.concatenate([x, embeddings.lookup(table, clean)], axis=1)
            positions = jnp.concatenate([positions, positions], axis=-1)
        cond = TimeMLP(config.cond_dim, name="time")(sigma) if config.adaln else None
        angles = embeddings.rotary_angles(positions, config.head_dim)
        # Keys and values enter and leave the scan layer by layer; without a cache they are None.
        layers = None if cache is None else cache[:2]
        x, layers = stacked_blocks(config)(config, deterministic, self.attention, name="blocks")(
            x, cond, angles, mask, layers, start
        )
        x = x if clean is None else x[:, : tokens.shape[1]]
        x = x if read is None else jnp.take_along_axis(x, read[..., None], axis=1)
        logits = Head(config, name="head")(x, cond, unembed=unembed)
        if cache is not None:
            cache = cache._replace(keys=layers[0], values=layers[1])
        return logits, cache

    def _checked(self, tokens, sigma, weights, clean, positions) -> jax.Array:
        """Checks what is static about the inputs; returns the sigma to feed, [B] or [1]."""
        _check_tokens(tokens, weights, self.config.num_ids)
        if positions.shape not in (tokens.shape[1:2], tokens.shape[:2]):
            raise ValueError(
                f"positions must have shape {tokens.shape[1:2]} or {tokens.shape[:2]}, got "
                f"{positions.shape}."
            )
        if clean is not None and clean.shape != tokens.shape[:2]:
            raise ValueError(f"clean must have shape {tokens.shape[:2]}, got {clean.shape}.")
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


def _embed(table: jax.Array, tokens: jax.Array, weights: jax.Array | None) -> jax.Array:
    """Returns float32[B, L, D] for tokens, or for relaxed tokens of either kind."""
    if weights is not None:
        return embeddings.weighted_lookup(table, tokens, weights)
    if jnp.issubdtype(tokens.dtype, jnp.floating):
        return embeddings.soft_lookup(table, tokens)
    return embeddings.lookup(table, tokens)


def _check_tokens(tokens: jax.Array, weights: jax.Array | None, num_ids: int) -> None:
    """Raises if tokens are none of the three kinds that `DiT` embeds."""
    relaxed = jnp.issubdtype(tokens.dtype, jnp.floating) and tokens.ndim == 3
    if not relaxed and not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise TypeError(
            f"tokens must be integers, or logits float[B, L, {num_ids}] of relaxed tokens; got "
            f"{tokens.dtype}{list(tokens.shape)}."
        )
    if relaxed and (tokens.shape[-1] != num_ids or weights is not None):
        raise ValueError(
            f"relaxed tokens must be logits over all {num_ids} ids, without weights; got "
            f"{tokens.shape[-1]} ids."
        )
    if weights is not None and (tokens.ndim != 3 or weights.shape != tokens.shape):
        raise ValueError(
            f"weights need tokens of the same shape [B, L, K], one id to each; got tokens "
            f"{tokens.shape} and weights {weights.shape}."
        )
    if weights is None and not relaxed and tokens.ndim != 2:
        raise ValueError(
            f"tokens must have shape [B, L], got {tokens.shape}; add a batch axis with "
            f"tokens[None], or map over further axes with jax.vmap."
        )
