"""Denoising networks in Flax Linen, and adapters for models written elsewhere."""

from mdm_jax.models import adapters, cache, convert, decoding, ladders, masks
from mdm_jax.models.attention import attention
from mdm_jax.models.configs import SIZES, DiTConfig, flops_per_token, parameter_count
from mdm_jax.models.dit import DiT
from mdm_jax.models.ladders import published_config
from mdm_jax.models.published import load, save
from mdm_jax.models.smdm import SMDM
from mdm_jax.models.smdm_configs import (
    SMDM_SIZES,
    SMDMConfig,
    smdm_flops_per_token,
    smdm_parameter_count,
)

__all__ = [
    "SIZES",
    "SMDM",
    "SMDM_SIZES",
    "DiT",
    "DiTConfig",
    "SMDMConfig",
    "adapters",
    "attention",
    "cache",
    "convert",
    "decoding",
    "flops_per_token",
    "ladders",
    "load",
    "masks",
    "parameter_count",
    "published_config",
    "save",
    "smdm_flops_per_token",
    "smdm_parameter_count",
]
