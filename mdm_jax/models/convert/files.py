"""Published checkpoints as they lie on disk: one file, or a folder as Hugging Face has them."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mdm_jax.models.convert.pickles import Inert, read_pytorch
from mdm_jax.models.convert.tensors import StoredTensor, read_safetensors

PYTORCH = (".bin", ".pt", ".pth", ".ckpt")
SUFFIXES = (".safetensors", *PYTORCH)
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")

_NESTED = ("state_dict", "model", "model_state_dict", "module")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What a published file or folder holds.

    Attributes:
        origin: The file or folder.
        tensors: The model's tensors by published name, prefix included, read when needed.
        averages: The moving averages of its parameters, in their unnamed order, if it has any.
        hints: What it says of itself: its config.json, or the hyper-parameters beside the weights.
    """

    origin: Path
    tensors: Mapping[str, StoredTensor]
    averages: Sequence[StoredTensor] | None = None
    hints: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Reads what a checkpoint holds, without reading its tensors yet.

    Args:
        path: A .safetensors, .bin, .pt, .pth or .ckpt file, or a folder with one of them; a
            folder's config.json and the index of a sharded model are read.

    Raises:
        FileNotFoundError: If there is no such file, or the folder has no weights.
        ValueError: If the file is of no kind that is read, asks for code to be run, or if it is
            not clear which of several files is meant.
        OSError: If it is truncated or damaged.

    Examples:
        >>> import tempfile, numpy as np
        >>> from mdm_jax.models.convert.tensors import write_safetensors
        >>> path = Path(tempfile.mkdtemp()) / "model.safetensors"
        >>> write_safetensors(path, {"w": np.ones(3, np.float32)}.items(), {"w": "F32"})
        >>> read_checkpoint(path).tensors["w"].shape
        (3,)
    """
    path = Path(path)
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}.")
    if path.name in INDICES:
        return _folder(path.parent, index=path)
    checkpoint = _file(path)
    if path.name in WEIGHTS:
        return dataclasses.replace(checkpoint, hints=_config(path.parent) or checkpoint.hints)
    return checkpoint


def _folder(path: Path, index: Path | None = None) -> Checkpoint:
    indices = [path / name for name in INDICES if (path / name).is_file()]
    weights = [path / name for name in WEIGHTS if (path / name).is_file()]
    weights = weights or sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
    if index or (indices and not (weights and weights[0].name in WEIGHTS)):
        checkpoint = _sharded(index or indices[0])
    elif not weights:
        raise FileNotFoundError(
            f"{path} holds no weights: expected {' or '.join((*WEIGHTS, *INDICES))}."
        )
    elif len(weights) > 1 and weights[0].name not in WEIGHTS:
        names = ", ".join(file.name for file in weights)
        raise ValueError(f"{path} holds several checkpoints ({names}): name the file.")
    else:
        checkpoint = _file(weights[0])
    hints = _config(path) or checkpoint.hints
    return dataclasses.replace(checkpoint, origin=path, hints=hints)


def _file(path: Path) -> Checkpoint:
    if path.suffix == ".safetensors":
        return Checkpoint(path, read_safetensors(path)[0])
    if path.suffix in PYTORCH:
        return _from_pytorch(path, read_pytorch(path))
    raise ValueError(f"{path} is of no kind that is read: expected {', '.join(SUFFIXES)}.")


def _sharded(index: Path) -> Checkpoint:
    try:
        places = json.loads(index.read_text())["weight_map"]
        shards = {name: _shard_names(places, name) for name in sorted(set(places.values()))}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise OSError(f"{index} is damaged: {error!r}.") from error
    tensors: dict[str, StoredTensor] = {}
    for name, expected in shards.items():
        if Path(name).name != name:
            raise ValueError(f"{index} points outside its folder, to {name!r}.")
        shard = index.parent / name
        if not shard.is_file():
            raise FileNotFoundError(f"{index} lists {name}, which is not there: download it too.")
        found = _file(shard).tensors
        if found.keys() != expected:
            differing = ", ".join(sorted(found.keys() ^ expected))
            raise ValueError(f"{shard} and {index.name} disagree on: {differing}.")
        tensors |= found
    return Checkpoint(index, tensors)


def _shard_names(places: Mapping[str, str], shard: str) -> set[str]:
    return {tensor for tensor, file in places.items() if file == shard}


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise OSError(f"{path} is damaged: {error}.") from error
    if not isinstance(config, dict):
        raise OSError(f"{path} is damaged: expected an object, got {type(config).__name__}.")
    return config


def _from_pytorch(path: Path, saved: Any) -> Checkpoint:
    """Returns what a saved object holds: a state dict, or a training state around one."""
    if not isinstance(saved, Mapping):
        raise ValueError(
            f"{path} holds {_kind(saved)} and no state dict: save model.state_dict() instead."
        )
    state = saved
    for name in _NESTED:
        if isinstance(saved.get(name), Mapping):
            state = saved[name]
            break
    # A distilled model is saved beside its teacher, and a compiled one under another name.
    tensors = {
        str(name).replace("_orig_mod.", ""): value
        for name, value in state.items()
        if not str(name).startswith("teacher")
    }
    others = [f"{name} ({_kind(x)})" for name, x in tensors.items() if not _is_tensor(x)]
    if others or not tensors:
        raise ValueError(
            f"{path} holds no state dict: expected tensors by name, at the top or under "
            f"{' or '.join(_NESTED)}; got {', '.join(others[:5]) or 'nothing'}."
        )
    hints = _plain(saved.get("hyper_parameters", {})) if state is not saved else {}
    config = hints.get("config", hints) if isinstance(hints, dict) else {}
    return Checkpoint(
        path,
        tensors,
        _averages(path, saved) if state is not saved else None,
        config if isinstance(config, dict) else {},
    )


def _averages(path: Path, saved: Mapping[str, Any]) -> list[StoredTensor] | None:
    ema = saved.get("ema")
    if not isinstance(ema, Mapping) or "shadow_params" not in ema:
        return None
    averages = list(ema["shadow_params"])
    if not all(_is_tensor(value) for value in averages):
        raise ValueError(f"{path}: ema.shadow_params is not a list of tensors.")
    return averages


def _is_tensor(value: Any) -> bool:
    return isinstance(value, StoredTensor)


def _kind(value: Any) -> str:
    return value.origin if isinstance(value, Inert) else type(value).__name__


def _plain(value: Any) -> Any:
    """Returns the plain data inside the containers that hyper-parameters are kept in."""
    if isinstance(value, Inert):
        state = value.state if isinstance(value.state, Mapping) else {}
        if "_content" in state or "_val" in state:
            return _plain(state.get("_content", state.get("_val")))
        pairs = [item for item in value.items if isinstance(item, tuple) and len(item) == 2]
        return {str(key): _plain(item) for key, item in pairs} if pairs else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, str) and value.startswith("${"):
        return None  # A reference to another entry, which is resolved only as it is read.
    return value
