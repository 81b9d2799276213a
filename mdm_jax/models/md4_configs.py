"""The sizes of MD4's text transformer, and what each costs."""

import dataclasses
from typing import Any

from mdm_jax.models.remat import REMAT

MD4_SIZES: dict[str, dict[str, Any]] = {
    "small": {"layers": 12, "heads": 12},
    "medium": {"layers": 24, "heads": 16},
}
"""MD4-S and MD4-M; the text8 models are small ones of 27 symbols."""

_MLPS = ("glu", "swiglu", "geglu")
_MODULATIONS = ("adaln_zero", "adaln")
_DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MD4Config:
    """Everything that fixes the parameters and the computation of an `MD4`.

    Attributes:
        vocab_size: Data ids V, which the model scores. It embeds one more, the mask id V, and so
            cannot predict the mask.
        layers: Number of blocks.
        heads: Attention heads H; the residual stream is `heads * features` wide.
        features: Width of a head, of the time features and of a class embedding; even, as rotary
            pairs dimensions.
        time_conditioning: Feed the time. Without it the model has RMSNorm in place of adaLN, and
            no time parameters at all.
        classes: Number of classes to condition on, or 0.
        modulation: How adaLN begins: "adaln_zero" with the blocks as the identity, "adaln" with
            kernels drawn like any other.
        mlp: Gate of the MLP: "glu" (sigmoid, as in all published text models), "swiglu" or
            "geglu". It is also what the time vector passes through before a block reads it.
        factored_embedding: Embed ids in `features` dimensions and map those to the full width.
        depth_scaled_init: Draw the MLP's kernels with variance 2 / (layers fan_in), rather than
            1 / fan_in.
        dropout: Rate on the embedding (unless factored) and both residual branches, in [0, 1). In
            a branch, whole features are dropped along the sequence.
        dtype: Dtype of block matmuls and logits, "float32" (as published) or "bfloat16".
            Parameters, residual stream, norms and the time path are float32 whatever it says.
        remat: What the backward pass may keep of a block, one of `remat.REMAT`: everything, all
            matmul outputs, those around attention, or the block's input only.
        unroll: Blocks per iteration of the layer scan; it changes neither parameters nor results.

    Raises:
        ValueError: If a field has a value the model cannot honor.

    Examples:
        >>> config = MD4Config.from_size("small", vocab_size=27)
        >>> config.width, config.hidden, config.num_ids
        (768, 2048, 28)
    """

    vocab_size: int
    layers: int
    heads: int
    features: int = 64
    time_conditioning: bool = True
    classes: int = 0
    modulation: str = "adaln_zero"
    mlp: str = "glu"
    factored_embedding: bool = False
    depth_scaled_init: bool = True
    dropout: float = 0.0
    dtype: str = "float32"
    remat: str = "none"
    unroll: int = 1

    def __post_init__(self):
        for name in ("vocab_size", "layers", "heads", "features", "unroll"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be a positive int, got {value!r}.")
        if self.features % 2 or self.features < 4:
            raise ValueError(
                f"features must be even and at least 4, as rotary pairs dimensions and the "
                f"wavelengths of time run between two ends; got {self.features}."
            )
        if not isinstance(self.classes, int) or self.classes < 0:
            raise ValueError(f"classes must be 0 or a positive int, got {self.classes!r}.")
        if self.classes and not self.time_conditioning:
            raise ValueError(
                f"classes={self.classes} needs time_conditioning=True: a class enters beside "
                f"the time."
            )
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout!r}.")
        for name, valid in (
            ("modulation", _MODULATIONS),
            ("mlp", _MLPS),
            ("dtype", _DTYPES),
            ("remat", REMAT),
        ):
            if getattr(self, name) not in valid:
                raise ValueError(f"{name} must be one of {valid}, got {getattr(self, name)!r}.")

    @property
    def width(self) -> int:
        """Width D of the residual stream."""
        return self.heads * self.features

    @property
    def hidden(self) -> int:
        """Width F of the MLP: 8/3 of the stream's, rounded up to a multiple of 32."""
        return -(-(8 * self.width // 3) // 32) * 32

    @property
    def num_ids(self) -> int:
        """Ids the model embeds, `process.num_ids`: the data ids and the mask."""
        return self.vocab_size + 1

    @classmethod
    def from_size(cls, size: str, vocab_size: int, **overrides: Any) -> "MD4Config":
        """Returns the configuration of a published size.

        Args:
            size: A key of `MD4_SIZES`.
            vocab_size: Data ids, the mask not among them.
            **overrides: Any other field; it wins over the size's own value.

        Raises:
            ValueError: If there is no such size.

        Examples:
            >>> MD4Config.from_size("medium", 50_257).width
            1024
        """
        if size not in MD4_SIZES:
            raise ValueError(f"size must be one of {tuple(MD4_SIZES)}, got {size!r}.")
        return cls(vocab_size=vocab_size, **(MD4_SIZES[size] | overrides))


def md4_parameter_count(config: MD4Config) -> int:
    """Returns the number of parameters of an `MD4`.

    Examples:
        The published MD4-S on OpenWebText (165.9M), and on text8 (88.7M):

        >>> f"{md4_parameter_count(MD4Config.from_size('small', 50_257)):,}"
        '165,857,344'
        >>> f"{md4_parameter_count(MD4Config.from_size('small', 27)):,}"
        '88,704,064'
    """
    D, f = config.width, config.features
    block = 4 * D * D + 3 * D * config.hidden
    embedding = config.num_ids * D
    if config.factored_embedding:
        embedding = config.num_ids * f + (f + 1) * D
    if not config.time_conditioning:
        norms = config.layers * 2 * D + D
        return embedding + config.layers * block + norms + D * config.vocab_size
    inputs = 2 * f if config.classes else f
    time = config.classes * f + (inputs + 1) * 4 * f + (4 * f + 1) * f
    modulations = (f + 1) * D * (6 * config.layers + 2)
    return embedding + time + modulations + config.layers * block + D * config.vocab_size
