"""Published checkpoints: a file or a folder in, a model and its parameters out; and back."""

import dataclasses
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax import linen as nn

from mdm_jax.models.convert.card import model_card
from mdm_jax.models.convert.dit import renamed_hints
from mdm_jax.models.convert.families import (
    PRESETS,
    family_for,
    family_of,
    preset_in,
    without_prefix,
)
from mdm_jax.models.convert.family import Family
from mdm_jax.models.convert.files import Checkpoint, read_checkpoint
from mdm_jax.models.convert.layout import layout_of
from mdm_jax.models.convert.leaves import Shape
from mdm_jax.models.convert.tensors import write_safetensors

WEIGHTS = ("ema", "raw")


def load(
    path: str | Path, *, family: str | None = None, weights: str = "ema", **fields: Any
) -> tuple[nn.Module, dict[str, Any]]:
    """Loads a published checkpoint.

    Args:
        path: A .safetensors, .bin, .pt, .pth or .ckpt file, or a Hugging Face folder. PyTorch is
            not needed, and nothing that a file holds is run.
        family: "dit", "smdm", "smdm_ar" or "gpt2", recognized from the tensors if None; or what a
            DiT was trained as, "mdlm", "sedd", "duo", "bd3lm", "esolm" or "ar". Where neither the
            name nor the file says that, a DiT is taken for a masked model fed sigma = 0 or, if it
            has no time parameters, for an autoregressive one; this is logged.
        weights: "ema" for the moving averages where a file holds both (Lightning checkpoints do),
            "raw" for the parameters themselves. Most files hold one set, which is then meant.
        **fields: Fields of the configuration, such as `dtype="bfloat16"`, or `heads` where a file
            does not show it.

    Returns:
        The module, and its parameters as NumPy float32, for `jax.device_put` to place:
        `model.apply({"params": params}, tokens, sigma)` gives logits, with sigma None where the
        model takes no time.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the tensors are not exactly those of the family, the file's config
            contradicts them, or the file asks for code to be run.
        OSError: If the file is truncated or damaged.

    Examples:
        >>> import jax, jax.numpy as jnp, numpy as np, tempfile
        >>> from mdm_jax.models import DiT, DiTConfig
        >>> model = DiT(DiTConfig(num_ids=5, width=8, layers=2, heads=2, cond_dim=4))
        >>> tokens = jnp.zeros((1, 3), jnp.int32)
        >>> params = jax.jit(model.init)(jax.random.key(0), tokens)["params"]
        >>> folder = tempfile.mkdtemp() + "/model"
        >>> save(folder, model, params)
        >>> restored, restored_params = load(folder)
        >>> restored == model
        True
        >>> jax.tree.all(jax.tree.map(np.array_equal, restored_params, params))
        True
    """
    _, model, params = open_published(path, family=family, weights=weights, **fields)
    return model, params


def open_published(
    path: str | Path, *, family: str | None = None, weights: str = "ema", **fields: Any
) -> tuple[Checkpoint, nn.Module, dict[str, Any]]:
    """Loads as `load` does, and returns the checkpoint too.

    Args:
        path: As in `load`.
        family: As in `load`.
        weights: As in `load`.
        **fields: As in `load`.

    Returns:
        The checkpoint, the module and its parameters.
    """
    if weights not in WEIGHTS:
        raise ValueError(f"weights must be one of {WEIGHTS}, got {weights!r}.")
    checkpoint = read_checkpoint(path)
    shapes = _shapes(checkpoint)
    own = checkpoint.hints.get("mdm_jax")
    if family is None and isinstance(own, Mapping):
        family = own.get("family")
    found = family_of(shapes, family)
    if found.name == "dit" and (preset := preset_in(checkpoint.hints)):
        found = PRESETS[preset]
    try:
        config = _config(found, checkpoint, fields)
        state = without_prefix(found, checkpoint.tensors)
        if weights == "ema" and checkpoint.averages is not None:
            state |= _averages(found, config, checkpoint)
        params = found.params(state, config)
    except ValueError as error:
        raise ValueError(
            f"{checkpoint.origin} cannot be loaded as {found.name}: {error}"
        ) from error
    return checkpoint, found.module(config), params


def save(
    path: str | Path,
    model: nn.Module,
    params: Mapping[str, Any],
    *,
    like: str | Path | Mapping[str, str] | None = None,
    dtype: str = "F32",
    tokenizer: str = "",
    mask_id: int | None = None,
    family: str | None = None,
) -> None:
    """Writes a model as its family publishes it; the inverse of `load`.

    Args:
        path: A folder, which gets model.safetensors, config.json and README.md (a model card); or
            a file ending in .safetensors, written alone. The weights must not be there yet.
        model: The module.
        params: Its parameters.
        like: A published checkpoint whose names, dtypes and further tensors to follow, so that
            what was loaded from it is written bit for bit; or dtypes by full name.
        dtype: The dtype of every tensor, "F32", "F16" or "BF16", unless `like` says.
        tokenizer: Name or file of the tokenizer, for config and card.
        mask_id: Id of the mask, for config and card; None for a model without one.
        family: What a DiT was trained as, if not what its configuration shows.

    Raises:
        FileExistsError: If weights are there already.
        ValueError: If `params` are not those of the model, or `like` has other tensors.

    Examples:
        See `load`.
    """
    path = Path(path)
    config = model.config  # pyright: ignore[reportAttributeAccessIssue]
    own = family_for(config)
    named = [own.name, *(PRESETS if own.name == "dit" else ())]
    if family is not None and family not in named:
        raise ValueError(
            f"the model is a {own.name}: family must be one of {named}, not {family!r}."
        )
    layout = layout_of(own, config, like, dtype)
    alone = path.suffix == ".safetensors"
    target = path if alone else path / "model.safetensors"
    if target.exists():
        raise FileExistsError(f"{target} is there already: remove it or name another place.")
    target.parent.mkdir(parents=True, exist_ok=True)
    tensors = layout.tensors(own, params, config)
    write_safetensors(target, tensors, layout.dtypes, shapes=layout.shapes)
    if alone:
        return
    record = {"family": family or own.name, "tokenizer": tokenizer, "mask_id": mask_id}
    hints = own.hints(config) | {"mdm_jax": record}
    (path / "config.json").write_text(json.dumps(hints, indent=2) + "\n")
    card = model_card(
        own, config, trained_as=record["family"], tokenizer=tokenizer, mask_id=mask_id
    )
    (path / "README.md").write_text(card)


def _config(family: Family, checkpoint: Checkpoint, fields: Mapping[str, Any]) -> Any:
    """Returns the configuration that tensors, hints and the caller's fields agree on."""
    shapes = without_prefix(family, _shapes(checkpoint))
    named = {family.names[k]: v for k, v in fields.items() if k in family.names}
    config = family.config(shapes, {**checkpoint.hints, **named})
    known = {field.name for field in dataclasses.fields(config)}
    if not fields.keys() <= known:
        raise ValueError(
            f"unknown fields {sorted(fields.keys() - known)}: expected some of {sorted(known)}."
        )
    if family.name == "dit" and not _says_how_it_is_fed(config, checkpoint.hints, fields):
        logging.getLogger(__name__).warning(
            "%s does not say what it was trained as: taken for %s. Pass family= to say.",
            checkpoint.origin,
            "autoregressive (ar)" if config.causal else "masked and fed sigma = 0 (mdlm)",
        )
    return dataclasses.replace(config, **fields)


def _says_how_it_is_fed(config: Any, hints: Mapping[str, Any], fields: Mapping[str, Any]) -> bool:
    told = {**renamed_hints(hints), **fields}
    return told.get("time_conditioning") is not None or bool(config.causal and told.get("causal"))


def _averages(family: Family, config: Any, checkpoint: Checkpoint) -> dict[str, Any]:
    """Returns the moving averages, an unnamed list in a file, by the names of the parameters."""
    averages = checkpoint.averages or []
    names = family.parameter_names(config)
    if len(names) != len(averages):
        raise ValueError(
            f"there are {len(averages)} moving averages for {len(names)} parameters; "
            f'weights="raw" loads the parameters themselves.'
        )
    return dict(zip(names, averages, strict=True))


def _shapes(checkpoint: Checkpoint) -> dict[str, Shape]:
    return {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
