"""Reading a trained model back: from an exported folder, a run, or one checkpoint of it."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from jax.tree_util import Partial

import mdm_jax as mdm
from mdm_jax.data import Tokenizer, sample_windows
from mdm_jax.evaluation.samples import TextModel
from mdm_jax.evaluation.text_statistics import unigram_entropy
from mdm_jax.models.adapters import linen
from mdm_jax.models.block_decoding import block_cached
from mdm_jax.models.convert.files import INDICES, SUFFIXES, WEIGHTS
from mdm_jax.models.decoding import cached
from mdm_jax.train.checkpoints import load_checkpoint_params, load_params
from mdm_jax.train.continuing import completed
from mdm_jax.train.experiment import build, make_tokenizer
from mdm_jax.train.families import Family, make_family
from mdm_jax.train.fields import checked
from mdm_jax.train.networks import Network, make_network
from mdm_jax.train.paths import is_url, run_path
from mdm_jax.train.published import is_converted, published_model
from mdm_jax.train.state import Params

logger = logging.getLogger(__name__)


class Trained(NamedTuple):
    """A trained model and where it came from.

    Attributes:
        text_model: for `mdm_jax.evaluation.samples.sample_text` and
            `mdm_jax.evaluation.held_out.held_out_bound`.
        params: its parameters, the averaged ones if there are any.
        config: what it was trained with.
        origin: the folder it was read from.
        data_fingerprint: of the text it was trained on; "" if not recorded.
    """

    text_model: TextModel
    params: Params
    config: dict[str, Any]
    origin: Path
    data_fingerprint: str


def load_trained(
    path: str | Path, *, tokenizer: str = "", mask_id: int | None = None, family: str | None = None
) -> Trained:
    """Reads a model: no text, optimizer or training state is needed or loaded.

    Args:
        path: a folder of `save_params`; a run (``--workdir``), which means its newest checkpoint
            (the one before it, with a warning, if that is damaged); or one checkpoint,
            ``workdir/checkpoints/<step>``. A run in progress may be read. Or a published
            checkpoint, as in `mdm_jax.models.load`, whose `config` then holds the length of its
            canvas alone; or what `mdm_jax.train.converted` made of one.
        tokenizer: of a published checkpoint, as in `mdm_jax.train.published.published_model`.
        mask_id: likewise.
        family: likewise.

    Raises:
        FileNotFoundError: if none of these is there.
        OSError: if the parameters are damaged: those exported, or of the checkpoint named, or of
            every checkpoint of the run.
        ValueError: if its config is damaged or not one of this version, or `path` is a URL other
            than gs://; of a published checkpoint, if it cannot be loaded, or its tokenizer is not
            known.

    Examples:
        >>> load_trained("runs/nothing")
        Traceback (most recent call last):
            ...
        FileNotFoundError: no model at ...runs/nothing: expected a run (with checkpoints/), ...
    """
    path = run_path(path)
    if not is_url(path) and is_published(path):
        found = published_model(path, tokenizer=tokenizer, mask_id=mask_id, family=family)
        length = {"data": {"length": found.length}}
        return Trained(found.text_model, found.params, length, path, data_fingerprint="")
    if tokenizer or family or mask_id is not None:
        raise ValueError(
            f"{path} is a run or its export, which says itself what tokenizer, mask and family it "
            "has: leave them out"
        )
    checkpoints = _checkpoints(path)
    origin = path
    if checkpoints:
        params, config, origin = _newest_whole(checkpoints)
    elif (path / "config.json").is_file():
        params, config = load_params(path)
    else:
        raise FileNotFoundError(
            f"no model at {path}: expected a run (with checkpoints/), one of its checkpoints, or "
            "the folder of exported params; or a published checkpoint"
        )
    fingerprint = config.pop("data_fingerprint", "")  # says which text it was; not a setting
    config = checked(completed(config))
    return Trained(text_model_of(config, params), params, config, origin, fingerprint)


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
    tokenizer, family = _language_of(config)
    process, network = family.process, network_of(config)
    name, section = config["objective"]["name"], config["objective"]
    scores, learned = name == "sedd", family.learned_noise

    def logits(params, tokens, t):
        return linen(network.module, params, process)(tokens, t)

    model = TextModel(
        Partial(logits, params),
        process,
        tokenizer,
        scores=scores,
        length=config["data"]["length"],
        config=getattr(network.module, "config", None),
    )
    if learned is not None:
        denoiser = Partial(logits, params["denoiser"])
        return model._replace(logits_fn=denoiser, schedule=mdm.trained_schedule(params, learned))
    if not (family.plain or scores or name == "ar"):
        model = model._replace(logits_fn=partial(_refuse, name))  # no array to pass on
    if name == "bd3":
        blocks = Partial(_by_blocks(network, section["block"]), params)
        return model._replace(remembering=blocks, block=section["block"])
    if name == "esolm" and section["variant"] == "B":
        remembering = Partial(_in_order(network, process), params)
        return model._replace(remembering=remembering, alpha_0=section["alpha_0"])
    if name == "ar":
        canvas = mdm.Masked(tokenizer.vocab_size, mdm.Linear())
        remembering = Partial(_in_order(network, canvas), params)
        first = None if section["prepend"] == -1 else section["prepend"]
        return model._replace(remembering=remembering, first=first)
    return model


def _by_blocks(network: Network, block: int) -> Callable[..., mdm.Denoiser]:
    def remembering(params: Params, *, capacity: int, prefill: int) -> mdm.Denoiser:
        module: Any = network.module
        return block_cached(module, params, block=block, capacity=capacity, prefill=prefill)

    return remembering


def _in_order(network: Network, process: Any) -> Callable[..., mdm.Denoiser]:
    def remembering(params: Params) -> mdm.Denoiser:
        module: Any = network.module
        return cached(module, params, process)

    return remembering


def network_of(config: dict[str, Any]) -> Network:
    """The network a checked config describes."""
    tokenizer, family = _language_of(config)
    process = family.process
    vocab_size = tokenizer.vocab_size if process is None else process.vocab_size
    return make_network(config["model"], vocab_size, family.num_ids)


def _language_of(config: dict[str, Any]) -> tuple[Tokenizer, Family]:
    tokenizer = make_tokenizer(config["data"]["tokenizer"])
    return tokenizer, make_family(config, tokenizer.vocab_size)


_WHY = {
    "mdlm": "it is told a time of its own (objective.times='change_of_variables')",
    "d3pm": "its masked form may predict the mask, which no sampler of the process allows for",
    "esolm": "in variant A the tokens decided see each other and change with every new one, while "
    "Eso-LM's sampler keeps their keys and values: that is for variant B",
    "bd3": "its model reads one block and the clean text before it",
}


def _refuse(name: str, tokens: Any, t: Any) -> Any:
    raise ValueError(
        f"objective.name={name!r} trains a model that is not called with tokens and a time alone: "
        f"{_WHY.get(name, 'it has an order of its own')}. `launch/evaluate.py` bounds its "
        "likelihood with its own objective"
    )


def _checkpoints(path: Path) -> list[Path]:
    """The checkpoints of a run, the newest first; `path` alone if it is one; else none."""
    if (path / "state").is_dir() and (path / "config").is_dir():
        return [path]
    for folder in (path / "checkpoints", path):
        if folder.is_dir():
            steps = [int(p.name) for p in folder.iterdir() if p.name.isdigit()]
            if steps:
                return [folder / str(step) for step in sorted(steps, reverse=True)]
    return []


def _newest_whole(checkpoints: list[Path]) -> tuple[Params, dict[str, Any], Path]:
    """What the first checkpoint holds that can be read, and which one that is."""
    damaged: list[OSError] = []
    for checkpoint in checkpoints:
        try:
            params, config = load_checkpoint_params(checkpoint)
        except OSError as error:
            damaged.append(error)
            continue
        for error in damaged:
            logger.warning("%s. Using %s instead", error, checkpoint)
        return params, config, checkpoint
    raise OSError(f"no checkpoint of the run can be read. {'; '.join(map(str, damaged))}")


def real_entropy(trained: Trained, length: int) -> float | None:
    """The unigram entropy of held-out text, for samples of equal length to compare with.

    Args:
        trained: a model.
        length: tokens of a row, at most those of a training window.

    Returns:
        Mean entropy of a row's own token counts, in nats; None of a published checkpoint, whose
        text is not here, or if rows are longer than its windows.
    """
    data = trained.config["data"]
    if "source" not in data or data["source"] == "in_memory" or length > data["length"]:
        return None
    packed = sample_windows(build(trained.config).held_out, 1024)
    whole = packed.where[:, :length].all(axis=1)
    return unigram_entropy(packed.tokens[whole, :length]) if whole.any() else None
