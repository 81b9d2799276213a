"""The four sizes of GPT-2, and what each costs."""

import dataclasses
from typing import Any, ClassVar

from mdm_jax.models.remat import check_remat

GPT2_SIZES: dict[str, dict[str, Any]] = {
    "gpt2": {"width": 768, "layers": 12, "heads": 12},
    "gpt2-medium": {"width": 1024, "layers": 24, "heads": 16},
    "gpt2-large": {"width": 1280, "layers": 36, "heads": 20},
    "gpt2-xl": {"width": 1600, "layers": 48, "heads": 25},
}
"""The published sizes, by their published names. "gpt2-large" is the field's usual judge."""

_DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GPT2Config:
    """Everything that fixes the parameters and the computation of a `GPT2`.

    Attributes:
        width: Width D of the residual stream; the MLP is four times as wide.
        layers: Number of blocks.
        heads: Attention heads H, dividing `width`.
        vocab_size: Ids V that the model embeds and scores.
        positions: Learned positions: the longest sequence it takes.
        dtype: Dtype of matmuls and logits, "float32" or "bfloat16". Parameters, residual stream
            and LayerNorm are float32 whatever it says.
        remat: What the backward pass may keep of a block, one of `remat.REMAT`: everything, all
            matmul outputs, those around attention, or the block's input only.
        unroll: Blocks per iteration of the layer scan; it changes neither parameters nor results.

    Raises:
        ValueError: If a field has a value the model cannot honor.

    Examples:
        >>> GPT2Config.from_size("gpt2-large", dtype="bfloat16").head_dim
        64
    """

    width: int
    layers: int
    heads: int
    vocab_size: int = 50_257
    positions: int = 1024
    dtype: str = "float32"
    remat: str = "none"
    unroll: int = 1

    time_conditioning: ClassVar[bool] = False
    """Nothing is noised: there is no time."""

    def __post_init__(self):
        for name in ("width", "layers", "heads", "vocab_size", "positions", "unroll"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be a positive int, got {value!r}.")
        if self.width % self.heads:
            raise ValueError(
                f"width must be a multiple of heads; got width={self.width}, heads={self.heads}."
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
        """Ids the model embeds: the data ids, as there is no mask."""
        return self.vocab_size

    @classmethod
    def from_size(cls, size: str, **overrides: Any) -> "GPT2Config":
        """Returns the configuration of a published size.

        Args:
            size: A key of `GPT2_SIZES`.
            **overrides: Any field; it wins over the size's own value.

        Raises:
            ValueError: If there is no such size.

        Examples:
            >>> GPT2Config.from_size("gpt2-xl").layers
            48
        """
        if size not in GPT2_SIZES:
            raise ValueError(f"size must be one of {tuple(GPT2_SIZES)}, got {size!r}.")
        return cls(**(GPT2_SIZES[size] | overrides))


def gpt2_parameter_count(config: GPT2Config) -> int:
    """Returns the number of parameters of a `GPT2`; the head, tied to the embedding, adds none.

    Examples:
        >>> f"{gpt2_parameter_count(GPT2Config.from_size('gpt2-large')):,}"
        '774,030,080'
    """
    D = config.width
    norms = 2 * 2 * D
    attention = D * 3 * D + 3 * D + D * D + D
    mlp = D * 4 * D + 4 * D + 4 * D * D + D
    ids = (config.vocab_size + config.positions) * D
    return ids + config.layers * (norms + attention + mlp) + 2 * D
