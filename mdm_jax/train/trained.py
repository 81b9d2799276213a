"""Reading a trained model back: from an exported folder, a run, or one checkpoint of it."""

from pathlib import Path
from typing import Any, NamedTuple

from jax.tree_util import Partial

from mdm_jax.evaluation.samples import TextModel
from mdm_jax.models.adapters import linen
from mdm_jax.models.dit import DiT
from mdm_jax.train.checkpoints import load_checkpoint_params, load_params
from mdm_jax.train.experiment import make_family, make_model_config, make_tokenizer
from mdm_jax.train.fields import checked
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


def load_trained(path: str | Path) -> Trained:
    """Reads a model: no text, optimizer or training state is needed or loaded.

    Args:
        path: a folder of `save_params`; a run (``--workdir``), which means its newest checkpoint;
            or one checkpoint, ``workdir/checkpoints/<step>``. A run in progress may be read.

    Raises:
        FileNotFoundError: if none of these is there.
        OSError: if the checkpoint is damaged.
        ValueError: if its config is not one of this version.

    Examples:
        >>> load_trained("runs/nothing")
        Traceback (most recent call last):
            ...
        FileNotFoundError: no model at ...runs/nothing: expected a run (with checkpoints/), ...
    """
    path = Path(path).absolute()
    checkpoint = _newest_checkpoint(path)
    if checkpoint is not None:
        params, config = load_checkpoint_params(checkpoint)
    elif (path / "config.json").is_file():
        params, config = load_params(path)
    else:
        raise FileNotFoundError(
            f"no model at {path}: expected a run (with checkpoints/), one of its checkpoints, or "
            "the folder of exported params"
        )
    config = checked(config)
    text_model = text_model_of(config, params)
    return Trained(text_model, params, config, checkpoint or path)


def text_model_of(config: dict[str, Any], params: Params) -> TextModel:
    """The model a checked config describes, with the given parameters."""
    tokenizer = make_tokenizer(config["data"]["tokenizer"])
    process, _ = make_family(config, tokenizer.vocab_size)
    num_ids = tokenizer.vocab_size if process is None else process.num_ids
    model = DiT(make_model_config(config["model"], num_ids))

    def logits(params, tokens, t):
        return linen(model, params, process)(tokens, t)

    return TextModel(Partial(logits, params), process, tokenizer)


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
