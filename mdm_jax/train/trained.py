"""Reading a trained model back: from an exported folder, a run, or one checkpoint of it."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from jax.tree_util import Partial

from mdm_jax.data import Tokenizer
from mdm_jax.evaluation.samples import TextModel
from mdm_jax.models.adapters import linen
from mdm_jax.models.convert.files import INDICES, SUFFIXES, WEIGHTS
from mdm_jax.models.dit import DiT
from mdm_jax.processes import Process
from mdm_jax.train import experiment
from mdm_jax.train.checkpoints import load_params
from mdm_jax.train.fields import checked
from mdm_jax.train.published import is_converted, published_model
from mdm_jax.train.state import Params


class Trained(NamedTuple):
    """A trained model and where it came from.

    Attributes:
        text_model: for `mdm_jax.evaluation.samples.sample_text` and
            `mdm_jax.evaluation.held_out.held_out_bound`.
        params: its parameters, the averaged ones if there are any.
        config: what it was trained with.
        origin: the folder it was read from.
    """

    text_model: TextModel
    params: Params
    config: dict[str, Any]
    origin: Path


def load_trained(
    path: str | Path, *, tokenizer: str = "", mask_id: int | None = None, family: str | None = None
) -> Trained:
    """Reads a model: no text, optimizer or training state is needed or loaded.

    Args:
        path: a folder of `save_params`; a run (``--workdir``), which means its newest checkpoint;
            or one checkpoint, ``workdir/checkpoints/<step>``. A run in progress may be read.
            Or a published checkpoint, as in `mdm_jax.models.load`, whose `config` then holds the
            length of its canvas alone; or what `mdm_jax.train.converted` made of one.
        tokenizer: of a published checkpoint, as in `mdm_jax.train.published.published_model`.
        mask_id: likewise.
        family: likewise.

    Raises:
        FileNotFoundError: if none of these is there.
        OSError: if the checkpoint is damaged.
        ValueError: if its config is not one of this version; of a published checkpoint, if it
            cannot be loaded, or its tokenizer is not known.

    Examples:
        >>> load_trained("runs/nothing")
        Traceback (most recent call last):
            ...
        FileNotFoundError: no model at ...runs/nothing: expected a run (with checkpoints/), ...
    """
    path = Path(path).absolute()
    if is_published(path):
        found = published_model(path, tokenizer=tokenizer, mask_id=mask_id, family=family)
        return Trained(found.text_model, found.params, {"data": {"length": found.length}}, path)
    if tokenizer or family or mask_id is not None:
        raise ValueError(
            f"{path} is a run or its export, which says itself what tokenizer, mask and family it "
            "has: leave them out"
        )
    checkpoint = _newest_checkpoint(path)
    if checkpoint is not None:
        params, config = _checkpoint_params(checkpoint)
    elif (path / "config.json").is_file():
        params, config = load_params(path)
    else:
        raise FileNotFoundError(
            f"no model at {path}: expected a run (with checkpoints/), one of its checkpoints, or "
            "the folder of exported params; or a published checkpoint"
        )
    config = checked(config)
    text_model = text_model_of(config, params)
    return Trained(text_model, params, config, checkpoint or path)


def is_published(path: Path) -> bool:
    """Whether a path is a published checkpoint, or one converted to Orbax, and not a run of ours.

    Args:
        path: Any path.

    Examples:
        >>> is_published(Path("runs/nothing"))
        False
    """
    if path.is_dir():
        names = (*WEIGHTS, *INDICES)
        known = any((path / name).is_file() for name in names) or is_converted(path)
        alone = any(file.suffix in SUFFIXES for file in path.iterdir() if file.is_file())
        return known or (alone and not (path / "params").is_dir())
    return path.is_file()


def text_model_of(config: dict[str, Any], params: Params) -> TextModel:
    """The model a checked config describes, with the given parameters."""
    tokenizer, process = _language_of(config)
    model = model_of(config)

    def logits(params, tokens, t):
        return linen(model, params, process)(tokens, t)

    return TextModel(Partial(logits, params), process, tokenizer)


def model_of(config: dict[str, Any]) -> DiT:
    """The module a checked config describes."""
    tokenizer, process = _language_of(config)
    num_ids = tokenizer.vocab_size if process is None else process.num_ids
    return DiT(experiment._model_config(config["model"], num_ids))


def _language_of(config: dict[str, Any]) -> tuple[Tokenizer, Process | None]:
    tokenizer = experiment._tokenizer(config["data"]["tokenizer"])
    return tokenizer, experiment._family(config, tokenizer.vocab_size)[0]


def _newest_checkpoint(path: Path) -> Path | None:
    """The folder of the newest checkpoint of a run, or `path` if it is a checkpoint; else None."""
    if (path / "state").is_dir() and (path / "config" / "metadata").is_file():
        return path
    for folder in (path / "checkpoints", path):
        if folder.is_dir():
            steps = [int(p.name) for p in folder.iterdir() if p.name.isdigit()]
            if steps:
                return folder / str(max(steps))
    return None


def _checkpoint_params(checkpoint: Path) -> tuple[Params, dict[str, Any]]:
    """The parameters to sample with, on the default device, and the config they belong to."""
    config = json.loads((checkpoint / "config" / "metadata").read_text())
    config.pop("data_fingerprint", None)  # says which text it was; not a setting
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    # The handler and not a Checkpoints: opening one of those tidies up after dead runs, and this
    # run may be alive.
    handler = ocp.PyTreeCheckpointHandler()
    try:
        saved = handler.metadata(checkpoint / "state").tree
        name = "ema" if saved.get("ema") else "params"
        wanted = {
            name: jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), saved[name]
            )
        }
        restored = handler.restore(
            checkpoint / "state",
            args=ocp.args.PyTreeRestore(
                item=wanted,
                restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
                partial_restore=True,
            ),
        )
    except Exception as error:  # whatever a damaged file makes its reader raise
        raise OSError(
            f"checkpoint {checkpoint} cannot be read ({error}): name an older one of the run, "
            f"{checkpoint.parent}/<step>"
        ) from error
    finally:
        handler.close()
    return restored[name], config
