"""Objectives: what a trainer needs to train any family without knowing it.

An `Objective` is a few pure functions. `prepare` turns clean tokens into what the family feeds its
model; `loss` and `evaluate` turn the model's output into per-token nats. The model itself is the
trainer's business.
"""

from mdm_jax.objectives.autoregressive import autoregressive_objective
from mdm_jax.objectives.base import Inputs, Objective, prepare_batch
from mdm_jax.objectives.block import block_objective
from mdm_jax.objectives.chunked import chunked
from mdm_jax.objectives.curriculum import curriculum_objective, log_linear_temperature
from mdm_jax.objectives.discrete import d3pm_objective, discrete_objective
from mdm_jax.objectives.distillation import distillation_objective, doubling_time_step
from mdm_jax.objectives.esolm import esolm_constant_terms, esolm_objective
from mdm_jax.objectives.hybrid import hybrid_objective
from mdm_jax.objectives.importance import (
    importance_coordinate,
    importance_objective,
    importance_times,
)
from mdm_jax.objectives.learned import (
    LearnedOutputs,
    learned_apply,
    learned_init,
    learned_objective,
    trained_schedule,
)
from mdm_jax.objectives.masked import masked_objective
from mdm_jax.objectives.random_length import with_random_lengths
from mdm_jax.objectives.score import sedd_objective
from mdm_jax.objectives.uniform import uniform_objective

__all__ = [
    "Inputs",
    "LearnedOutputs",
    "Objective",
    "autoregressive_objective",
    "block_objective",
    "chunked",
    "curriculum_objective",
    "d3pm_objective",
    "discrete_objective",
    "distillation_objective",
    "doubling_time_step",
    "esolm_constant_terms",
    "esolm_objective",
    "hybrid_objective",
    "importance_coordinate",
    "importance_objective",
    "importance_times",
    "learned_apply",
    "learned_init",
    "learned_objective",
    "log_linear_temperature",
    "masked_objective",
    "prepare_batch",
    "sedd_objective",
    "trained_schedule",
    "uniform_objective",
    "with_random_lengths",
]
