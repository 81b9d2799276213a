"""Named sizes of the DiT: widths, depths and heads, as fields of a `DiTConfig`."""

from typing import Any


def dit_size(width: int, layers: int, heads: int, cond_dim: int = 128) -> dict[str, int]:
    """Returns the fields that make a size, all ints.

    Args:
        width: Width of the residual stream.
        layers: Number of blocks.
        heads: Attention heads.
        cond_dim: Width of the time vector.

    Examples:
        >>> dit_size(768, 12, 12)
        {'width': 768, 'layers': 12, 'heads': 12, 'cond_dim': 128}
    """
    return {"width": width, "layers": layers, "heads": heads, "cond_dim": cond_dim}


SCALING_LADDER: dict[str, dict[str, int]] = {
    "6M": dit_size(256, 6, 4),
    "19M": dit_size(384, 8, 6),
    "34M": dit_size(512, 8, 8),
    "48M": dit_size(576, 9, 9),
    "66M": dit_size(640, 10, 10),
    "75M": dit_size(640, 16, 8),
    "85M": dit_size(640, 13, 10),
    "113M": dit_size(768, 12, 12),
    "142M": dit_size(768, 15, 12),
    "170M": dit_size(768, 18, 12),
    "180M": dit_size(896, 14, 14),
    "206M": dit_size(896, 16, 14),
    "231M": dit_size(896, 18, 14),
    "268M": dit_size(1024, 16, 16),
    "302M": dit_size(1024, 18, 16),
    "336M": dit_size(1024, 20, 16),
    "472M": dit_size(1280, 18, 10),
    "551M": dit_size(1280, 21, 10),
    "571M": dit_size(1408, 18, 11),
    "629M": dit_size(1280, 24, 10),
    "666M": dit_size(1408, 21, 11),
    "761M": dit_size(1408, 24, 11),
    "831M": dit_size(1536, 22, 12),
    "944M": dit_size(1536, 25, 12),
    "1233M": dit_size(1792, 24, 14),
    "1476M": dit_size(2048, 22, 16),
    "1678M": dit_size(2048, 25, 16),
    "2121M": dit_size(2176, 28, 17),
}
"""The 28 rungs of the scaling study (scaling-dllms). Names are labels taken over from SMDM's
ladder: "2121M" is the study's "1.7B", with 1.78 billion parameters in all."""

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {**dit_size(128, 4, 4, cond_dim=64), "unroll": 4},
    "small": dit_size(768, 12, 12),
    "medium": dit_size(1024, 24, 16),
    **SCALING_LADDER,
}
"""Every size that a configuration can name. "small" and "medium" are the published MDLM ones.
"tiny" has 1.1M parameters with byte tokens and trains on a CPU, where an unrolled step takes 10
to 20 % less time than a scanned one; published models called tiny are other ones, in `ladders`."""
