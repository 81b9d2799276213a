"""Denoising networks in Flax Linen, and adapters for models written elsewhere."""

from mdm_jax.models import (
    adapters,
    approximate_caches,
    block_decoding,
    cache,
    convert,
    decoding,
    ladders,
    orders,
)
from mdm_jax.models.attention import attention
from mdm_jax.models.configs import SIZES, DiTConfig, parameter_count
from mdm_jax.models.dit import DiT
from mdm_jax.models.flops import call_flops, flops_per_token
from mdm_jax.models.gpt2 import GPT2
from mdm_jax.models.gpt2_configs import GPT2_SIZES, GPT2Config, gpt2_parameter_count
from mdm_jax.models.ladders import published_config
from mdm_jax.models.md4 import MD4
from mdm_jax.models.md4_configs import MD4_SIZES, MD4Config, md4_parameter_count
from mdm_jax.models.published import load, save
from mdm_jax.models.smdm import SMDM
from mdm_jax.models.smdm_configs import (
    SMDM_SIZES,
    SMDMConfig,
    smdm_parameter_count,
)
from mdm_jax.models.unembedding import unembedding

__all__ = [
    "GPT2",
    "GPT2_SIZES",
    "MD4",
    "MD4_SIZES",
    "SIZES",
    "SMDM",
    "SMDM_SIZES",
    "DiT",
    "DiTConfig",
    "GPT2Config",
    "MD4Config",
    "SMDMConfig",
    "adapters",
    "approximate_caches",
    "attention",
    "block_decoding",
    "cache",
    "call_flops",
    "convert",
    "decoding",
    "flops_per_token",
    "gpt2_parameter_count",
    "ladders",
    "load",
    "md4_parameter_count",
    "orders",
    "parameter_count",
    "published_config",
    "save",
    "smdm_parameter_count",
    "unembedding",
]
