"""Noising processes: masked (absorbing) and uniform-state."""

from mdm_jax.processes.base import Noised, Process
from mdm_jax.processes.masked import Masked
from mdm_jax.processes.uniform import Uniform

__all__ = ["Masked", "Noised", "Process", "Uniform"]
