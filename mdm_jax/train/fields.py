"""The fields every config has, and the check that one has them all.

A config is a nested mapping (an ml_collections ConfigDict, or plain dicts) of strings and numbers.
Every field is present in every config: nothing is filled in behind the user's back.
"""

import math
from collections.abc import Mapping
from typing import Any

FIELDS: dict[str, Any] = {
    "seed": int,
    "model": {
        "size": str,  # see mdm_jax.models.sizes
        "width": int,  # 0 here and in the next three: as the size has it
        "layers": int,
        "heads": int,
        "cond_dim": int,
        "dropout": float,
        "adaln": bool,
        "time_conditioning": bool,
        "causal": bool,
        "dtype": str,
        "remat": str,
        "unroll": int,
    },
    "objective": {
        "name": str,  # "mdlm", "duo", "ar"
        "weighting": str,  # "elbo", or "cross_entropy" for mdlm
    },
    "schedule": {"name": str, "eps": float, "power": float, "sigma_min": float, "sigma_max": float},
    "data": {
        "source": str,  # "python_documentation", "text_files", "in_memory"
        "path": str,  # of text_files
        "tokenizer": str,  # "byte", or the path of a tokenizer.json
        "length": int,
        "held_out": float,  # share of the documents
    },
    "train": {
        "steps": int,
        "batch_size": int,  # rows of the global batch
        "accumulate": int,
        "log_every": int,
        "eval_every": int,
        "checkpoint_every": int,
    },
    "optimizer": {
        "learning_rate": float,
        "schedule": str,  # "constant", "cosine", "linear"
        "warmup": int,
        "min_learning_rate": float,
        "b1": float,
        "b2": float,
        "eps": float,
        "weight_decay": float,
        "clip": float,  # 0: off
    },
    "ema": {"decay": float, "warmup": bool},  # decay 0: off
    "evaluation": {
        "batch_size": int,
        "max_windows": int,  # 0: all
        "times": int,  # noise draws per window
    },
    "checkpoint": {"keep": int, "keep_every": int},
    "mesh": {"data": int, "fsdp": int, "tensor": int},
}

_AT_LEAST_ONE = (
    "data.length",
    "train.steps",
    "train.batch_size",
    "train.accumulate",
    "train.log_every",
    "train.eval_every",
    "train.checkpoint_every",
    "evaluation.batch_size",
    "evaluation.times",
    "checkpoint.keep",
)
_AT_LEAST_ZERO = ("evaluation.max_windows", "checkpoint.keep_every", "optimizer.clip")


def checked(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the config as plain dicts, its numbers of the types in `FIELDS`.

    Args:
        config: a ConfigDict or nested mapping.

    Raises:
        ValueError: if a field is unknown, missing, of another type, not finite, or out of range.

    Examples:
        >>> checked({"seed": 0, "sede": 1})
        Traceback (most recent call last):
            ...
        ValueError: unknown field config.sede: the fields of config are seed, model, ...
    """
    plain = _checked(config, FIELDS, "")
    for least, names in ((1, _AT_LEAST_ONE), (0, _AT_LEAST_ZERO)):
        for name in names:
            section, field = name.split(".")
            if plain[section][field] < least:
                raise ValueError(
                    f"config.{name} must be at least {least}, got {plain[section][field]}"
                )
    if not 0 <= plain["seed"] < 2**32:
        raise ValueError(f"config.seed must lie from 0 to 2**32 - 1, got {plain['seed']}")
    if not 0 <= plain["ema"]["decay"] < 1:
        raise ValueError(
            f"config.ema.decay must lie in [0, 1), 0 for no average, got {plain['ema']['decay']}"
        )
    return plain


def _checked(config: Mapping[str, Any], fields: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """One level of `checked`."""
    section = f"config.{prefix}".rstrip(".")
    if not hasattr(config, "keys"):
        raise ValueError(f"{section} must be a mapping with the fields {_listed(fields)}")
    for name in config:
        if name not in fields:
            raise ValueError(
                f"unknown field config.{prefix}{name}: the fields of {section} are "
                f"{_listed(fields)}"
            )
    plain: dict[str, Any] = {}
    for name, kind in fields.items():
        path = f"{prefix}{name}"
        if name not in config:
            raise ValueError(
                f"missing field config.{path}: the fields of {section} are {_listed(fields)}"
            )
        value = config[name]
        if isinstance(kind, Mapping):
            plain[name] = _checked(value, kind, f"{path}.")
            continue
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise ValueError(f"config.{path} must be of type {kind.__name__}, got {value!r}")
        if kind is float and not math.isfinite(value):
            raise ValueError(f"config.{path} must be a finite number, got {value!r}")
        plain[name] = value
    return plain


def _listed(fields: Mapping[str, Any]) -> str:
    return ", ".join(fields)
