"""The configuration of a DiT denoiser, and what it costs.

Counts are closed forms of the configuration, so that a budget can be planned without a device.
"""

import dataclasses
from typing import Any

from mdm_jax.models.remat import check_remat
from mdm_jax.models.sizes import SIZES

TIME_FEATURES = 256
"""Width of the sinusoidal features of sigma: 128 cosines, then 128 sines."""

_DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiTConfig:
    """Everything that fixes the parameters and the computation of a `DiT`.

    Attributes:
        num_ids: Ids the model embeds and scores, `process.num_ids` (mask id included).
        width: Width D of the residual stream.
        layers: Number of blocks.
        heads: Attention heads H; `width / heads` must be even, as rotary pairs dimensions.
        cond_dim: Width of the time vector that drives adaLN.
        mlp_ratio: MLP width over `width`.
        dropout: Rate on both residual branches of a block, in [0, 1).
        adaln: Scale, shift and gate every block by the time vector. Without it the model has no
            time parameters at all (the published autoregressive baseline).
        time_conditioning: Feed sigma = -log alpha. If False, an adaLN model is fed sigma = 0, as
            the published masked models are.
        causal: Attend to the current and earlier positions only.
        dtype: Dtype of block matmuls and logits, "float32" or "bfloat16". Parameters, residual
            stream, LayerNorm and the time path are float32 whatever it says.
        remat: What the backward pass may keep of a block, one of `remat.REMAT`: everything, all
            matmul outputs, those around attention, or the block's input only.
        unroll: Blocks per iteration of the layer scan. It changes neither parameters nor results:
            1 compiles fastest, `layers` removes the loop.

    Raises:
        ValueError: If a field has a value the model cannot honor.

    Examples:
        >>> DiTConfig(num_ids=257, width=128, layers=4, heads=4).head_dim
        32
    """

    num_ids: int
    width: int
    layers: int
    heads: int
    cond_dim: int = 128
    mlp_ratio: int = 4
    dropout: float = 0.0
    adaln: bool = True
    time_conditioning: bool = False
    causal: bool = False
    dtype: str = "float32"
    remat: str = "none"
    unroll: int = 1

    def __post_init__(self):
        for name in ("num_ids", "width", "layers", "heads", "cond_dim", "mlp_ratio", "unroll"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be a positive int, got {value!r}.")
        if self.width % (2 * self.heads):
            raise ValueError(
                f"width must be a multiple of 2 * heads, so that heads are equal and rotary can "
                f"pair their dimensions; got width={self.width}, heads={self.heads}."
            )
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout!r}.")
        if self.dtype not in _DTYPES:
            raise ValueError(f"dtype must be one of {_DTYPES}, got {self.dtype!r}.")
        check_remat(self.remat)
        if self.time_conditioning and not self.adaln:
            raise ValueError(
                "time_conditioning=True needs adaln=True: adaLN is the only way time enters."
            )

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.width // self.heads

    @classmethod
    def from_size(cls, size: str, num_ids: int, **overrides: Any) -> "DiTConfig":
        """Returns the configuration of a named size.

        Args:
            size: A key of `SIZES`.
            num_ids: Ids the model embeds, `process.num_ids`.
            **overrides: Any other field; it wins over the size's own value.

        Raises:
            ValueError: If there is no such size.

        Examples:
            >>> DiTConfig.from_size("small", 50258, dtype="bfloat16").layers
            12
        """
        if size not in SIZES:
            raise ValueError(f"size must be one of {tuple(SIZES)}, got {size!r}.")
        return cls(num_ids=num_ids, **(SIZES[size] | overrides))


def parameter_count(config: DiTConfig) -> int:
    """Returns the number of parameters of a `DiT`.

    Examples:
        MDLM's published base model:

        >>> f"{parameter_count(DiTConfig.from_size('small', 50258)):,}"
        '169,627,218'
    """
    D, C, V = config.width, config.cond_dim, config.num_ids
    hidden = config.mlp_ratio * D
    attention = D * 3 * D + D * D
    mlp = D * hidden + hidden + hidden * D + D
    block = D + attention + D + mlp
    head = D + D * V + V
    time = 0
    if config.adaln:
        time = TIME_FEATURES * C + C + C * C + C
        block += (C + 1) * 6 * D
        head += (C + 1) * 2 * D
    return V * D + time + config.layers * block + head
