"""The 30 sizes of SMDM's transformers, masked and autoregressive, and what each costs.

SMDM (Nie et al., 2024, arXiv 2410.18514) trained the same blocks twice: as a bidirectional masked
model ("mdm-*") and as a causal language model ("ar-*").
"""

import dataclasses
from typing import Any, ClassVar

from mdm_jax.models.remat import check_remat

_LADDER = {
    # millions of parameters outside the embeddings: (layers, heads, width)
    6: (6, 4, 256),
    19: (8, 6, 384),
    34: (8, 8, 512),
    48: (9, 9, 576),
    66: (10, 10, 640),
    75: (16, 8, 640),
    85: (13, 10, 640),
    113: (12, 12, 768),
    142: (15, 12, 768),
    170: (18, 12, 768),
    180: (14, 14, 896),
    206: (16, 14, 896),
    231: (18, 14, 896),
    268: (16, 16, 1024),
    302: (18, 16, 1024),
    336: (20, 16, 1024),
    472: (18, 10, 1280),
    551: (21, 10, 1280),
    571: (18, 11, 1408),
    629: (24, 10, 1280),
    666: (21, 11, 1408),
    717: (19, 12, 1536),
    761: (24, 11, 1408),
    831: (22, 12, 1536),
    944: (25, 12, 1536),
    1028: (20, 14, 1792),
    1233: (24, 14, 1792),
    1476: (22, 16, 2048),
    1678: (25, 16, 2048),
    2121: (28, 17, 2176),
}

SMDM_SIZES: dict[str, dict[str, Any]] = {
    f"{millions}M": {"width": width, "layers": layers, "heads": heads, "hidden": 4 * width}
    for millions, (layers, heads, width) in _LADDER.items()
}
"""The published ladder. The paper's "1.1B" is "1028M", and its "220M" is "170M": names leave the
embeddings out."""
SMDM_SIZES["75M"]["hidden"] = 1600  # 2.5 widths: the one exception to four.

LLAMA_VOCABULARY = 32_000
"""Pieces of the Llama 2 tokenizer, with which every published model was trained."""

_DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SMDMConfig:
    """Everything that fixes the parameters and the computation of an `SMDM`.

    Attributes:
        width: Width D of the residual stream.
        layers: Number of blocks.
        heads: Query heads H; `width / heads` must be even, as rotary pairs dimensions.
        hidden: Width F of the SwiGLU MLP.
        groups: Key and value heads G, each shared by `heads / groups` query heads; 0 means one
            for every query head, as in all published sizes.
        vocab_size: Data ids V, which the model scores.
        causal: False is the masked model, whose embedding has one more row, for the mask id
            `vocab_size`. True is the autoregressive model: no mask row, attention to the current
            and earlier positions only.
        rotary_bf16: Round the rotary cosines and sines to bfloat16, as the published models do:
            weights trained so expect it. On random weights it moves logits of about 1 by 0.01.
        dtype: Dtype of block matmuls and logits, "float32" or "bfloat16" (as published).
            Parameters, residual stream and norms are float32 whatever it says.
        remat: What the backward pass may keep of a block, one of `remat.REMAT`: everything, all
            matmul outputs, those around attention, or the block's input only.
        unroll: Blocks per iteration of the layer scan; it changes neither parameters nor results.

    Raises:
        ValueError: If a field has a value the model cannot honor.

    Examples:
        >>> config = SMDMConfig.from_size("1028M", dtype="bfloat16")
        >>> config.num_ids, config.vocab_size, config.head_dim
        (32001, 32000, 128)
    """

    width: int
    layers: int
    heads: int
    hidden: int
    groups: int = 0
    vocab_size: int = LLAMA_VOCABULARY
    causal: bool = False
    rotary_bf16: bool = True
    dtype: str = "float32"
    remat: str = "none"
    unroll: int = 1

    time_conditioning: ClassVar[bool] = False
    """These models are never told the noise level: it shows in the number of masks."""

    def __post_init__(self):
        for name in ("width", "layers", "heads", "hidden", "vocab_size", "unroll"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be a positive int, got {value!r}.")
        if self.width % (2 * self.heads):
            raise ValueError(
                f"width must be a multiple of 2 * heads, so that heads are equal and rotary can "
                f"pair their dimensions; got width={self.width}, heads={self.heads}."
            )
        if self.groups == 0:
            object.__setattr__(self, "groups", self.heads)
        if not isinstance(self.groups, int) or self.groups < 0 or self.heads % self.groups:
            raise ValueError(
                f"groups must divide heads={self.heads} (or be 0, meaning heads), so that each "
                f"key is shared by as many queries; got {self.groups!r}."
            )
        if self.dtype not in _DTYPES:
            raise ValueError(f"dtype must be one of {_DTYPES}, got {self.dtype!r}.")
        check_remat(self.remat)

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.width // self.heads

    @property
    def num_ids(self) -> int:
        """Ids the model embeds: `process.num_ids`, or the data ids of a causal model."""
        return self.vocab_size + (not self.causal)

    @classmethod
    def from_size(cls, size: str, **overrides: Any) -> "SMDMConfig":
        """Returns the configuration of a published size.

        Args:
            size: A key of `SMDM_SIZES`: the number in the names of published files.
            **overrides: Any field; it wins over the size's own value.

        Raises:
            ValueError: If there is no such size.

        Examples:
            >>> SMDMConfig.from_size("170M", causal=True).num_ids
            32000
        """
        if size not in SMDM_SIZES:
            raise ValueError(f"size must be one of {tuple(SMDM_SIZES)}, got {size!r}.")
        return cls(**(SMDM_SIZES[size] | overrides))


def smdm_parameter_count(config: SMDMConfig, *, embeddings: bool = True) -> int:
    """Returns the number of parameters of an `SMDM`.

    Args:
        config: The model.
        embeddings: Count the embedding and the head, which the published names leave out.

    Examples:
        The "1.1B" model of the paper:

        >>> config = SMDMConfig.from_size("1028M")
        >>> f"{smdm_parameter_count(config):,}"
        '1,142,367,744'
        >>> f"{smdm_parameter_count(config, embeddings=False):,}"
        '1,027,677,952'
    """
    D = config.width
    body = config.layers * (smdm_block_weights(config) + 2 * D) + D
    return body + embeddings * D * (config.num_ids + config.vocab_size)


def smdm_block_weights(config: SMDMConfig) -> int:
    """Returns the number of weights in the matmuls of a block.

    Examples:
        >>> smdm_block_weights(SMDMConfig(width=4, layers=1, heads=2, hidden=8))
        160
    """
    D = config.width
    qkv = D * (config.heads + 2 * config.groups) * config.head_dim
    return qkv + D * D + 3 * D * config.hidden
