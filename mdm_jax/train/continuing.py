"""Whether a checkpoint may be continued with a config."""

import json
from collections.abc import Mapping
from typing import Any

Config = Mapping[str, Any]  # nested, JSON-serializable

# Fields a resumed run may change: they alter how the run is carried out, not what it computes.
# (A decaying learning rate takes the new `train.steps` from the resumed step on.)
FREE_FIELDS = (
    "train.checkpoint_every",
    "train.eval_every",
    "train.log_every",
    "train.loss_chunk",
    "model.remat",
    "model.unroll",
    "model.attention",
    "checkpoint.",
    "evaluation.",
    "mesh.",
    "watch.",
)

# What checkpoints did that were written before these fields were there.
BEFORE_THE_FIELD: dict[str, Any] = {
    "train.z_loss": 0.0,
    "train.skip_above": 0.0,
    "optimizer.moments": "float32",
    "model.attention": "xla",
    "mesh.sequence": 1,
    "mesh.slices": 1,
    "watch.profile_from": 0,
    "watch.profile_steps": 3,
    "watch.tracker": "",
    "watch.project": "mdm_jax",
    "watch.peak_tflops": 0.0,
}


def completed(saved: Config) -> dict[str, Any]:
    """Returns the config of an older run with the fields that were not there yet.

    Args:
        saved: nested, as a checkpoint has it.

    Examples:
        >>> completed({"train": {"steps": 3}, "optimizer": {"b1": 0.9}})["optimizer"]
        {'b1': 0.9, 'moments': 'float32'}
    """
    config = plain(saved)
    for name, value in BEFORE_THE_FIELD.items():
        section, field = name.split(".")
        config.setdefault(section, {}).setdefault(field, value)
    return config


class ConfigMismatchError(ValueError):
    """A checkpoint belongs to a run with another config."""


def check_config(saved: Config, current: Config) -> None:
    """Checks that a checkpoint's config may be continued with the current one.

    Free to change: the mesh, rematerialization and `train.loss_chunk` (the same sums in another
    order), cadences, evaluation, retention, and `train.steps` if it grows. So are micro-batches
    where ``model.dropout`` is 0: dropout masks are drawn for each micro-batch. Where both configs
    have a ``data_fingerprint``, it says whether the text is the same: ``data.path`` may then
    change, and ``data.tokenizer`` from one file to another. A checkpoint from before a field was
    there is taken to have the value that changes nothing, if `BEFORE_THE_FIELD` has it.

    Args:
        saved: the checkpoint's config.
        current: the run's config.

    Raises:
        ConfigMismatchError: a ValueError, naming every other field that differs.

    Examples:
        >>> check_config({"seed": 0, "mesh": {"data": 8}}, {"seed": 0, "mesh": {"data": 1}})
        >>> check_config({"seed": 0}, {"seed": 0, "train": {"z_loss": 0.0}})
        >>> check_config({"seed": 0}, {"seed": 1})
        Traceback (most recent call last):
            ...
        mdm_jax.train.continuing.ConfigMismatchError: ... another config: seed is 1, was 0. ...
    """
    old, new = _flat(plain(saved)), _flat(plain(current))
    old = {name: x for name, x in BEFORE_THE_FIELD.items() if name in new} | old
    differing = []
    for name in sorted(old.keys() | new.keys()):
        if old.get(name, "absent") != new.get(name, "absent") and not _may_change(name, old, new):
            before, now = old.get(name, "absent"), new.get(name, "absent")
            differing.append(f"{name} is {now!r}, was {before!r}")
    if differing:
        raise ConfigMismatchError(
            f"the checkpoint was written with another config: {', '.join(differing)}. Restore the "
            "old values to resume it, or choose another --workdir to start a new run"
        )


def _may_change(name: str, old: Config, new: Config) -> bool:
    """Whether a run may go on although this field of the flat configs differs."""
    both = name in old and name in new
    if name == "train.steps":
        return both and new[name] >= old[name]
    if name == "train.accumulate":
        return not old.get("model.dropout") and not new.get("model.dropout")
    fingerprinted = "data_fingerprint" in old and "data_fingerprint" in new
    if name == "data.path":
        return both and fingerprinted
    if name == "data.tokenizer":
        files = both and all(str(config[name]).endswith(".json") for config in (old, new))
        return files and fingerprinted
    return name.startswith(FREE_FIELDS)


def plain(config: Config) -> dict[str, Any]:
    """The config as JSON gives it back: tuples are lists, numbers are Python's."""
    return json.loads(json.dumps(dict(config)))


def _flat(config: Config, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
