"""Conversion between published checkpoints and the parameters of this library's models."""

from mdm_jax.models.convert.dit import dit_params, dit_state_dict

__all__ = ["dit_params", "dit_state_dict"]
