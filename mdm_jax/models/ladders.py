"""Published DiTs by family: MDLM, SEDD, Duo, Eso-LM, BD3-LM and the scaling study.

A size is the fields of a `DiTConfig` that a paper's configuration file fixes; how the model is fed
(time, causality, vocabulary) is the family's, `PUBLISHED`. All of these share one DiT, so a rung of
the ladder serves any family.
"""

from typing import Any, NamedTuple

from mdm_jax.models.configs import DiTConfig
from mdm_jax.models.flops import flops_per_token
from mdm_jax.models.sizes import SCALING_LADDER, SIZES, dit_size


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
_COMMON = {name: SIZES[name] for name in ("small", "medium")}
_MDLM_SIZES = {"tiny": dit_size(512, 8, 8), **_COMMON}
_DUO_SIZES = {"tiny": dit_size(256, 8, 8), **_COMMON}
_BD3_SIZES = {"tiny": dit_size(256, 8, 8, cond_dim=64), **_COMMON}
_SCALING_SIZES = SCALING_LADDER | {
    "717M": dit_size(1536, 19, 12),
    "1028M": dit_size(1792, 20, 14),
    "base": dit_size(384, 6, 6),
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
