"""GPT-2 in Flax Linen: the autoregressive model by which the field judges its samples.

"Generative perplexity" is the perplexity of samples under GPT-2 large (Radford et al., 2019;
"Language models are unsupervised multitask learners"). A pre-norm transformer with learned
positions, causal attention, a GELU MLP, biases everywhere, and a head tied to the embedding.

Matmuls run in `config.dtype`; the residual stream and LayerNorm are float32. Parameters are a
plain pytree with the layers stacked along axis 0 under "blocks". There is no dropout: a judge is
not trained.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from mdm_jax.masks import Causal
from mdm_jax.models import embeddings
from mdm_jax.models.attention import attention
from mdm_jax.models.gpt2_configs import GPT2Config
from mdm_jax.models.remat import kept, rematerialized


class GPT2(nn.Module):
    """Maps tokens to logits of the next ones.

    Attributes:
        config: The architecture.

    Examples:
        >>> model = GPT2(GPT2Config(vocab_size=5, positions=4, width=8, layers=2, heads=2))
        >>> tokens = jnp.array([[0, 4, 2]])
        >>> params = jax.jit(model.init)(jax.random.key(0), tokens)["params"]
        >>> model.apply({"params": params}, tokens).shape
        (1, 3, 5)
    """

    config: GPT2Config

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        sigma: jax.Array | None = None,
        *,
        deterministic: bool = True,
        unembed: bool = True,
    ) -> jax.Array:
        """Returns logits.

        Args:
            tokens: int32[B, L], with L at most `config.positions`. Attention is causal, so padding
                at the end of a sequence changes nothing before it.
            sigma: Not read: the model takes no time. It is accepted, as is `deterministic`, so
                that models can be exchanged.
            deterministic: Not read: there is no dropout.
            unembed: Apply the head's matmul. Otherwise return the states it is applied to, for
                losses that make the logits themselves (`mdm_jax.from_hidden`).

        Returns:
            [B, L, vocab_size] in `config.dtype`; losses cast to float32 before their softmax. The
            logits at position i are those of token i + 1. The states [B, L, width] in
            `config.dtype` if not `unembed`.

        Raises:
            TypeError: If tokens are not integers.
            ValueError: If tokens have the wrong shape, or are longer than the learned positions.
        """
        del sigma, deterministic
        config = self.config
        _check(tokens, config)
        init = nn.initializers.normal(0.02)
        table = jnp.asarray(self.param("embedding", init, (config.vocab_size, config.width)))
        positions = jnp.asarray(self.param("positions", init, (config.positions, config.width)))
        x = embeddings.lookup(table, tokens) + positions[None, : tokens.shape[1]]
        x, _ = _stacked(config)(config, name="blocks")(x)
        x = _norm("norm")(x).astype(config.dtype)
        return jnp.einsum("bld,vd->blv", x, table.astype(config.dtype)) if unembed else x


class Block(nn.Module):
    """One layer: attention, then an MLP, each on a norm of the residual stream.

    Attributes:
        config: The architecture.
    """

    config: GPT2Config

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, None]:
        """Returns the next residual stream, in the (carry, output) form of a scan.

        Args:
            x: float32[B, L, D].
        """
        x = x + self._attend(_norm("norm_attention")(x)).astype(jnp.float32)
        x = x + self._mlp(_norm("norm_mlp")(x)).astype(jnp.float32)
        return x, None

    def _attend(self, h: jax.Array) -> jax.Array:
        """Returns the attention branch, `config.dtype`[B, L, D]."""
        config = self.config
        # One matmul for q, k and v, its kernel [D, 3, H, head_dim] so that heads can be sharded.
        qkv = nn.DenseGeneral(
            (3, config.heads, config.head_dim),
            kernel_init=nn.initializers.normal(0.02),
            dtype=config.dtype,
            name="qkv",
        )(h)
        q, k, v = kept((qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]))
        heads = kept(attention(q, k, v, Causal()))
        return nn.DenseGeneral(
            config.width,
            axis=(-2, -1),
            kernel_init=_branch_init(config),
            dtype=config.dtype,
            name="attention_out",
        )(heads)

    def _mlp(self, h: jax.Array) -> jax.Array:
        """Returns the MLP branch, `config.dtype`[B, L, D]."""
        config = self.config
        init, dtype = nn.initializers.normal(0.02), config.dtype
        h = nn.Dense(4 * config.width, kernel_init=init, dtype=dtype, name="mlp_in")(h)
        out = nn.Dense(config.width, kernel_init=_branch_init(config), dtype=dtype, name="mlp_out")
        return out(nn.gelu(h, approximate=True))  # "gelu_new": the tanh form.


def _check(tokens: jax.Array, config: GPT2Config) -> None:
    """Checks what is static about the input."""
    if not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise TypeError(f"tokens must be integers, got {tokens.dtype}.")
    if tokens.ndim != 2:
        raise ValueError(
            f"tokens must have shape [B, L], got {tokens.shape}; add a batch axis with "
            f"tokens[None], or map over further axes with jax.vmap."
        )
    if tokens.shape[1] > config.positions:
        raise ValueError(
            f"tokens are {tokens.shape[1]} long, but the model has learned {config.positions} "
            f"positions: cut the text into windows."
        )


def _stacked(config: GPT2Config) -> type[nn.Module]:
    """Returns `Block`, rematerialized as configured and scanned over stacked parameters."""
    return nn.scan(
        rematerialized(Block, config.remat, config.unroll),
        variable_axes={"params": 0, "intermediates": 0},
        split_rngs={"params": True},
        length=config.layers,
        unroll=config.unroll,
    )


def _norm(name: str) -> nn.LayerNorm:
    """Returns LayerNorm in float32, with scale and bias, its variance taken around the mean."""
    return nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, dtype=jnp.float32, name=name)


def _branch_init(config: GPT2Config) -> nn.initializers.Initializer:
    """Returns the rule for maps that end a residual branch, of which there are 2 `layers`."""
    return nn.initializers.normal(0.02 * (2 * config.layers) ** -0.5)
