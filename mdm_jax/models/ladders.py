"""Published DiT sizes: the scaling study's ladder, and those of MDLM, Duo, Eso-LM and BD3-LM.

A size is the fields of a `DiTConfig` that a paper's configuration file fixes; how the model is fed
(time, causality, vocabulary) is the family's, `PUBLISHED`. All of these share one DiT, so a rung of
the ladder serves any family.
"""

from typing import Any, NamedTuple

from mdm_jax.models.configs import SIZES, DiTConfig, flops_per_token


def _size(width: int, layers: int, heads: int, cond_dim: int = 128) -> dict[str, int]:
    return {"width": width, "layers": layers, "heads": heads, "cond_dim": cond_dim}


SCALING_LADDER: dict[str, dict[str, int]] = {
    "6M": _size(256, 6, 4),
    "19M": _size(384, 8, 6),
    "34M": _size(512, 8, 8),
    "48M": _size(576, 9, 9),
    "66M": _size(640, 10, 10),
    "75M": _size(640, 16, 8),
    "85M": _size(640, 13, 10),
    "113M": _size(768, 12, 12),
    "142M": _size(768, 15, 12),
    "170M": _size(768, 18, 12),
    "180M": _size(896, 14, 14),
    "206M": _size(896, 16, 14),
    "231M": _size(896, 18, 14),
    "268M": _size(1024, 16, 16),
    "302M": _size(1024, 18, 16),
    "336M": _size(1024, 20, 16),
    "472M": _size(1280, 18, 10),
    "551M": _size(1280, 21, 10),
    "571M": _size(1408, 18, 11),
    "629M": _size(1280, 24, 10),
    "666M": _size(1408, 21, 11),
    "761M": _size(1408, 24, 11),
    "831M": _size(1536, 22, 12),
    "944M": _size(1536, 25, 12),
    "1233M": _size(1792, 24, 14),
    "1476M": _size(2048, 22, 16),
    "1678M": _size(2048, 25, 16),
    "2121M": _size(2176, 28, 17),
}
"""The 28 rungs of the scaling study (scaling-dllms). Names are labels taken over from SMDM's
ladder: "2121M" is the study's "1.7B", with 1.78 billion parameters in all."""

_SMALL, _MEDIUM = (_size(**{k: SIZES[name][k] for k in ("width", "layers", "heads", "cond_dim")})
                   for name in ("small", "medium"))  # fmt: skip


class PublishedFamily(NamedTuple):
    """What a family's published configurations have in common.

    Attributes:
        num_ids: Ids of its main vocabulary, the mask id included.
        length: Tokens of a training sequence.
        sizes: Its sizes by name.
        fields: How its models are fed, and dropout: fields of `DiTConfig`.
    """

    num_ids: int
    length: int
    sizes: dict[str, dict[str, int]]
    fields: dict[str, Any]


_MASKED = {"time_conditioning": False, "dropout": 0.1}
_UNIFORM = {"time_conditioning": True, "dropout": 0.1}
_CAUSAL = {"causal": True, "adaln": False, "dropout": 0.1}
_MDLM_SIZES = {"tiny": _size(512, 8, 8), "small": _SMALL, "medium": _MEDIUM}
_DUO_SIZES = {"tiny": _size(256, 8, 8), "small": _SMALL, "medium": _MEDIUM}
_BD3_SIZES = {"tiny": _size(256, 8, 8, cond_dim=64), "small": _SMALL, "medium": _MEDIUM}
_SCALING_SIZES = SCALING_LADDER | {
    "717M": _size(1536, 19, 12),
    "1028M": _size(1792, 20, 14),
    "base": _size(384, 6, 6),
    **_DUO_SIZES,
}

PUBLISHED: dict[str, PublishedFamily] = {
    "mdlm": PublishedFamily(50_258, 1024, _MDLM_SIZES, _MASKED),
    "mdlm-ar": PublishedFamily(50_258, 1024, _MDLM_SIZES, _CAUSAL),
    "sedd": PublishedFamily(50_258, 1024, _MDLM_SIZES, _UNIFORM),
    "bd3lm": PublishedFamily(50_258, 1024, _BD3_SIZES, _MASKED),
    "duo": PublishedFamily(50_258, 1024, _DUO_SIZES, _UNIFORM),
    "duo-ar": PublishedFamily(50_258, 1024, _DUO_SIZES, _CAUSAL),
    "esolm": PublishedFamily(50_258, 1024, _DUO_SIZES, _MASKED),
    "scaling-mdlm": PublishedFamily(32_001, 2048, _SCALING_SIZES, {}),
    "scaling-esolm": PublishedFamily(32_001, 2048, _SCALING_SIZES, {}),
    "scaling-duo": PublishedFamily(32_001, 2048, _SCALING_SIZES, {"time_conditioning": True}),
    "scaling-ar": PublishedFamily(32_001, 2048, _SCALING_SIZES, {"causal": True}),
}
"""Published families by name. The scaling study keeps adaLN in every family, the autoregressive one
included, and trains without dropout; the others drop it from their autoregressive baseline."""


def published_config(family: str, size: str, **overrides: Any) -> DiTConfig:
    """Returns the configuration of a published model.

    Args:
        family: A key of `PUBLISHED`.
        size: One of its sizes.
        **overrides: Fields that differ, such as `num_ids` for another tokenizer.

    Raises:
        ValueError: If there is no such family or size.

    Examples:
        >>> published_config("scaling-duo", "2121M", dtype="bfloat16").head_dim
        128
        >>> published_config("esolm", "tiny").width
        256
    """
    if family not in PUBLISHED:
        raise ValueError(f"family must be one of {tuple(PUBLISHED)}, got {family!r}.")
    known = PUBLISHED[family]
    if size not in known.sizes:
        raise ValueError(f"sizes of {family} are {tuple(known.sizes)}, got {size!r}.")
    fields: dict[str, Any] = {"num_ids": known.num_ids, **known.sizes[size], **known.fields}
    return DiTConfig(**(fields | overrides))


def training_steps(config: DiTConfig, flops: float, *, batch: int, length: int) -> int:
    """Returns how many steps a budget of training FLOPs pays for, as the scaling study counts.

    A step costs three forward passes of matmuls; attention's own products are not charged. The
    study's figures count norms and activations too, so its steps are 0.05 to 0.27 % fewer.

    Args:
        config: The model.
        flops: The budget, such as 6e18.
        batch: Sequences of a step.
        length: Tokens of a sequence.

    Raises:
        ValueError: If the budget does not pay for one step.

    Examples:
        >>> training_steps(published_config("scaling-ar", "170M"), 1e19, batch=256, length=2048)
        20916
    """
    step = 3 * flops_per_token(config, length, attention=False) * batch * length
    if flops < step:
        raise ValueError(f"one step costs {step:.3g} FLOPs, more than the budget of {flops:.3g}.")
    return int(flops // step)
