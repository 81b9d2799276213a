"""The fields every config has, and the check that one has them all.

A config is a nested mapping (an ml_collections ConfigDict, or plain dicts) of strings and numbers.
Every field is present in every config: nothing is filled in behind the user's back.
"""

import math
from collections.abc import Mapping
from typing import Any

from mdm_jax.train.trackers import TRACKERS

FIELDS: dict[str, Any] = {
    "seed": int,
    "model": {
        "family": str,  # "dit", "smdm", "md4"
        "size": str,  # a size of that family
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
        "attention": str,  # "xla", "splash" (TPU), "cudnn" (GPU), "auto"
    },
    # A field that the named objective does not read holds its neutral value (families.NEUTRAL).
    "objective": {
        "name": str,  # see families.RECIPES
        "weighting": str,  # "elbo"; "cross_entropy", weight 1: mdlm, esolm, bd3; "dynamic": gidd
        "noise": str,  # "masked" or "uniform": d3pm, sedd
        "mask_id": int,  # -1: one past the data ids
        "noise_over_mask": bool,  # uniform noise draws the mask id too
        "min_time": float,  # smallest time to train on
        "times": str,  # "uniform"; "importance", "change_of_variables": mdlm
        "steps": int,  # T of discrete time; 0: continuous
        "random_length": float,  # share of steps on shorter windows: mdlm
        "prepend": int,  # id put before each window, -1: none: ar
        "alpha_0": float,  # share of the text that diffusion fills: esolm
        "variant": str,  # "A" or "B": esolm
        "block": int,  # tokens in a block: bd3
        "low": float,  # of clipped training times: bd3
        "high": float,
        "uniform_share": float,  # of the noise: gidd
        "mixing": str,  # "gidd" or "constant": gidd
        "curriculum_steps": int,  # of relaxed tokens, before the plain loss: duo
        "temperature_start": float,  # of relaxed tokens, such as 1e-3
        "temperature_end": float,
        "temperature_from": int,  # steps over which it moves from start to end
        "temperature_until": int,
        "top_k": int,  # ids of a relaxed token, 0: all
        "teacher_every": int,  # steps of a round of distillation
        "divergence": str,  # "reverse" or "forward": duo_distilled
    },
    "schedule": {"name": str, "eps": float, "power": float, "sigma_min": float, "sigma_max": float},
    "data": {
        "source": str,  # "python_documentation", "text_files", "in_memory", "prepared"
        "path": str,  # of text_files; of prepared: a folder, or "FOLDER=WEIGHT,..."
        "tokenizer": str,  # "byte", or the path of a tokenizer.json
        "length": int,
        "held_out": float,  # share of the documents
    },
    "train": {
        "steps": int,
        "batch_size": int,  # rows of the global batch
        "accumulate": int,
        "loss_chunk": int,  # positions whose logits a device holds at once; 0: all of its batch
        "z_loss": float,  # weight of the mean of logsumexp(logits)^2; 0: off
        "skip_above": float,  # times the usual gradient norm: no update; 0: off
        "start_from": str,  # a run or its export whose parameters to begin with; "": none
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
        "moments": str,  # dtype of the first moment between steps: "float32", "bfloat16"
    },
    "ema": {"decay": float, "warmup": bool},  # decay 0: off
    "evaluation": {
        "batch_size": int,
        "max_windows": int,  # 0: all
        "times": int,  # noise draws per window
    },
    "checkpoint": {"keep": int, "keep_every": int},
    # -1, once: whatever is left; 0: chosen to fit, see `choose_mesh`.
    "mesh": {"data": int, "fsdp": int, "tensor": int, "sequence": int, "slices": int},
    "watch": {
        "profile_from": int,  # step before which a profile starts, 0: none
        "profile_steps": int,  # steps of a profile, also of one asked for while running
        "tracker": str,  # "", "wandb", "trackio"
        "project": str,  # of the tracker
        "peak_tflops": float,  # of one device, for the MFU; 0: as its maker says
    },
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
    "watch.profile_steps",
)
_AT_LEAST_ZERO = (
    "evaluation.max_windows",
    "checkpoint.keep_every",
    "optimizer.clip",
    "train.loss_chunk",
    "train.z_loss",
    "train.skip_above",
    "objective.curriculum_steps",
    "objective.top_k",
    "objective.steps",
    "objective.block",
    "objective.teacher_every",
    "watch.profile_from",
    "watch.peak_tflops",
)


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
    if 0 < plain["train"]["skip_above"] <= 1:
        raise ValueError(
            "config.train.skip_above must be 0 to take every step, or above 1: at "
            f"{plain['train']['skip_above']} usual steps would be skipped"
        )
    if plain["watch"]["tracker"] not in ("", *TRACKERS):
        raise ValueError(
            f"config.watch.tracker must be '' for none or one of {list(TRACKERS)}, got "
            f"{plain['watch']['tracker']!r}"
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
