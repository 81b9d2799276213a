"""A config that trains in seconds, and the text for it."""

from configs.quickstart import get_config
from mdm_jax import data

MODEL = {"width": 16, "layers": 1, "heads": 2, "cond_dim": 8, "unroll": 1}


def config(**overrides):
    """The quickstart, made tiny. Overrides are sections of fields: ``train={"steps": 3}``."""
    config = get_config()
    config.model.update(MODEL)
    config.data.update({"source": "in_memory", "length": 16, "held_out": 0.3})
    config.train.update({"steps": 6, "batch_size": 16, "log_every": 1, "eval_every": 3})
    config.train.checkpoint_every = 2
    config.objective.weighting = "elbo"  # any family takes it
    config.optimizer.update({"learning_rate": 1e-3, "warmup": 2, "weight_decay": 0.1})
    config.evaluation.update({"batch_size": 16, "max_windows": 8})
    for section, fields in overrides.items():
        config[section].update(fields)
    return config


def documents():
    """Some kilobytes of text with something to learn in it."""
    return data.in_memory([f"the number {i} is followed by {i + 1}. " * 4 for i in range(60)])
