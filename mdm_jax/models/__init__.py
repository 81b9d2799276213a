"""Denoising networks in Flax Linen, and adapters for models written elsewhere."""

from mdm_jax.models import adapters, convert
from mdm_jax.models.attention import attention
from mdm_jax.models.configs import SIZES, DiTConfig, flops_per_token, parameter_count
from mdm_jax.models.dit import DiT

__all__ = [
    "SIZES",
    "DiT",
    "DiTConfig",
    "adapters",
    "attention",
    "convert",
    "flops_per_token",
    "parameter_count",
]
