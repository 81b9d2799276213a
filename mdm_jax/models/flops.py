"""FLOPs of the networks, counted from their configurations: the one place that does.

A multiply-add is two FLOPs. Counted are the matmuls of blocks and head and, apart from them, the
two products inside attention. Norms and activations are left out, and so are the matmuls of the
time vector, which run once a sequence: 0.3 % at most in published sizes. A test compares the counts
with XLA's own of an unrolled model.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from mdm_jax.masks import Causal, Mask
from mdm_jax.models.configs import DiTConfig
from mdm_jax.models.md4_configs import MD4Config
from mdm_jax.models.smdm_configs import SMDMConfig, smdm_block_weights

Config: TypeAlias = DiTConfig | SMDMConfig | MD4Config


class Flops(NamedTuple):
    """FLOPs by where they are spent; two counts add with `plus`.

    Attributes:
        blocks: matmuls of the blocks with their weights.
        head: matmuls with the head's, and with the embedding where tokens are relaxed.
        attention: products of queries with keys and of weights with values, of the pairs that the
            mask lets see each other.
        pairs: the same of all pairs, which is what attention costs where hidden ones are computed
            and then masked.

    Examples:
        >>> flops = Flops(blocks=4, head=2, attention=3, pairs=6)
        >>> flops.total, flops.without_attention, flops.times(3).total
        (9, 6, 27)
    """

    blocks: int = 0
    head: int = 0
    attention: int = 0
    pairs: int = 0

    @property
    def without_attention(self) -> int:
        """The matmuls with weights: what the rule "6 N per token" stands for, and the head."""
        return self.blocks + self.head

    @property
    def total(self) -> int:
        """With the products inside attention, hidden pairs left out."""
        return self.blocks + self.head + self.attention

    def times(self, factor: int) -> "Flops":
        """Returns `factor` times as many: 3 for a forward and backward pass."""
        return Flops(*(factor * count for count in self))

    def plus(self, other: "Flops") -> "Flops":
        """Returns the sum."""
        return Flops(*(a + b for a, b in zip(self, other, strict=True)))


def flops_per_token(config: Config, length: int, *, attention: bool = True) -> int:
    """Returns the FLOPs of one forward pass, per token; a training step costs three times that.

    Args:
        config: The model, of any family.
        length: Sequence length L.
        attention: Count the two products inside attention: `length` keys for each query, or half
            of them on average, (length + 1) / 2, where attention is causal. The published IsoFLOP
            budgets leave them out.

    Raises:
        TypeError: If `config` is not of a family known here.

    Examples:
        >>> config = DiTConfig.from_size("small", 50258)
        >>> flops_per_token(config, 1024) / flops_per_token(config, 1024, attention=False)
        1.152...

        A training step's, over the 6 N D rule with which SMDM names its budgets (N counted
        without embeddings): the head and attention make the difference.

        >>> from mdm_jax.models.smdm_configs import smdm_parameter_count
        >>> config = SMDMConfig.from_size("1028M")
        >>> rule = 6 * smdm_parameter_count(config, embeddings=False)
        >>> 3 * flops_per_token(config, 2048) / rule
        1.198...
    """
    matmuls = 2 * (config.layers * block_weights(config) + head_weights(config))
    if not attention:
        return matmuls
    # Twice the mean number of keys, so that the causal mean stays an integer.
    twice_keys = length + 1 if _causal(config) else 2 * length
    return matmuls + 2 * config.layers * twice_keys * config.width


def call_flops(config: Config, inputs: Mapping[str, Any]) -> Flops:
    """Returns the FLOPs of one forward call, for what an objective prepared.

    Args:
        config: The model.
        inputs: The keyword arguments of the call, arrays or `jax.ShapeDtypeStruct`: ``tokens``
            [B, L], or [B, L, num_ids] if they are relaxed; ``clean`` where there are two streams;
            ``mask``, by default the model's own. A mask that depends on the data is charged as
            if it hid nothing.

    Examples:
        >>> config = DiTConfig.from_size("tiny", 257)
        >>> inputs = {"tokens": jax.ShapeDtypeStruct((2, 8), jnp.int32)}
        >>> call_flops(config, inputs).total == 2 * 8 * flops_per_token(config, 8)
        True
    """
    tokens = inputs["tokens"]
    rows, length = tokens.shape[:2]
    streams = 2 if inputs.get("clean") is not None else 1
    mask: Mask | None = inputs.get("mask")
    if mask is None:
        hidden: Any = Causal() if _causal(config) else None
    else:
        hidden = mask
    seen = streams * length
    head = 2 * rows * length * head_weights(config)
    if len(tokens.shape) == 3 and jnp.issubdtype(tokens.dtype, jnp.floating):
        head += 2 * rows * length * tokens.shape[-1] * config.width
    per_pair = 4 * config.layers * config.width * rows
    return Flops(
        blocks=2 * rows * seen * config.layers * block_weights(config),
        head=head,
        attention=per_pair * _visible(hidden, seen),
        pairs=per_pair * seen * seen,
    )


def block_weights(config: Config) -> int:
    """Returns the number of weights in the matmuls of one block.

    Raises:
        TypeError: If `config` is not of a family known here.

    Examples:
        >>> block_weights(DiTConfig.from_size("small", 257)) == 12 * 768**2
        True
    """
    for family, count in _BLOCKS.items():
        if isinstance(config, family):
            return count(config)
    known = [family.__name__ for family in _BLOCKS]
    raise TypeError(f"config is a {type(config).__name__}: expected one of {known}")


def head_weights(config: Config) -> int:
    """Returns the number of weights of the matmul that makes the logits.

    Examples:
        >>> head_weights(SMDMConfig.from_size("170M")) == 768 * 32_000
        True
    """
    scored = config.num_ids if isinstance(config, DiTConfig) else config.vocab_size
    return config.width * scored


def _dit(config: DiTConfig) -> int:
    return (4 + 2 * config.mlp_ratio) * config.width**2


def _md4(config: MD4Config) -> int:
    return 4 * config.width**2 + 3 * config.width * config.hidden


_BLOCKS: dict[type, Callable[[Any], int]] = {
    DiTConfig: _dit,
    SMDMConfig: smdm_block_weights,
    MD4Config: _md4,
}


def _causal(config: Config) -> bool:
    return not isinstance(config, MD4Config) and config.causal


def _visible(mask: Mask | None, positions: int) -> int:
    """How many (query, key) pairs of a sequence see each other."""
    if mask is None or jax.tree.leaves(mask):  # arrays: of the data, which is not here
        return positions**2
    if isinstance(mask, Causal):
        return positions * (positions + 1) // 2
    with jax.ensure_compile_time_eval():
        allowed = mask.allowed(positions, positions)
        return positions**2 if allowed is None else int(allowed.sum())
