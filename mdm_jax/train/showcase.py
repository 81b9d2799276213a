"""What a finished run learned, shown: its bound beside simple models, samples, and pictures."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax

import mdm_jax as mdm
from mdm_jax.evaluation.canvas import canvas
from mdm_jax.evaluation.held_out import HeldOut, baselines, held_out_bound, table
from mdm_jax.evaluation.pictures import loss_curve, samples_html
from mdm_jax.evaluation.samples import TextModel, sample_text
from mdm_jax.train.experiment import Experiment
from mdm_jax.train.trained import load_trained

PROMPT = "Return the "
BIGRAMS = "bigrams of the text itself"
TEMPLATE = "Return a new {{12}} with the {{10}} of the string. If {{8}} is given, raise ____Error."


class Shown(NamedTuple):
    """How well a run predicts held-out text, and how well simple models do.

    Attributes:
        bound: of the trained model.
        rivals: bits per byte of simple models of the same text, from `baselines`.
    """

    bound: HeldOut
    rivals: dict[str, float]


def shortfall(bits_per_byte: float, rivals: Mapping[str, float]) -> str:
    """Says what is wrong with a run that learned less than pairs of bytes tell; "" if none is.

    Args:
        bits_per_byte: of the trained model.
        rivals: from `mdm_jax.evaluation.held_out.baselines`.

    Examples:
        >>> shortfall(3.2, {BIGRAMS: 3.7})
        ''
        >>> shortfall(4.1, {BIGRAMS: 3.7})
        'the bound of 4.100 bits per byte is not below the bigram entropy of the text, 3.700: ...'
    """
    if bits_per_byte < rivals[BIGRAMS]:
        return ""
    return (
        f"the bound of {bits_per_byte:.3f} bits per byte is not below the bigram entropy of the "
        f"text, {rivals[BIGRAMS]:.3f}: the model has not learned what it should have"
    )


def show(experiment: Experiment, workdir: str | Path) -> Shown:
    """Reads back the parameters a run exported, evaluates, samples, draws, and prints it all.

    Writes ``loss.png`` and ``trajectory.html`` beside the run's metrics.

    Args:
        experiment: what was trained; a model of any family.
        workdir: the folder of the finished run.

    Returns:
        `Shown`.

    Raises:
        FileNotFoundError: if the run is not finished: it exports its parameters at the end.
    """
    workdir = Path(workdir)
    model = load_trained(workdir / "params").text_model
    print(f"\nparameters exported to {workdir / 'params'} and read back")
    held_out = experiment.held_out
    bound = held_out_bound(model, held_out, samples=4)
    rivals = baselines(experiment.train_data, held_out, experiment.tokenizer)
    print(f"\n{_how_bounded(model)} on {held_out}:\n{bound.summary()}\n")
    print(table(bound.bits_per_byte, bound.bits_per_byte_error, rivals))
    page = _sample(model, experiment.config["data"]["length"], workdir / "trajectory.html")
    print(f"\ntrajectory of the first sample: {page}")
    print(_draw_loss(workdir, rivals, bound.bytes_per_token))
    return Shown(bound, rivals)


def _how_bounded(model: TextModel) -> str:
    """What kind of number `held_out_bound` gives for a model."""
    if model.process is None:
        return "likelihood"
    masked = isinstance(model.process, mdm.Masked)
    return f"bound, stratified over {'exact numbers of masks' if masked else 'time'},"


def _sample(model: TextModel, length: int, page: Path) -> Path:
    """Prints samples of the kinds the model can do; writes the first as a page."""
    layouts = {
        "unconditional": canvas(model.tokenizer, length=length),
        f"prompt {PROMPT!r}": canvas(model.tokenizer, prompt=PROMPT, length=length),
    }
    if model.process is None:
        print("\n(no template: an autoregressive model cannot fill gaps before given text)")
    else:
        layouts[f"template {TEMPLATE!r}"] = canvas(model.tokenizer, template=TEMPLATE)
    # The one sampler that fits both masked and uniform-state models.
    sampler = "auto" if model.process is None else "ancestral"
    for index, (name, layout) in enumerate(layouts.items()):
        # The same steps everywhere, so that canvases of one length share their compiled code.
        samples = sample_text(
            jax.random.key(index),
            model,
            layout,
            sampler=sampler,
            steps=length,
            batch=2,
            watch=True,
            progress=True,
        )
        print(f"\n=== {name}\n{samples.show()}\n({samples.summary()})")
        if index == 0:
            samples_html(page, samples, model, layout)
    return page


def _draw_loss(workdir: Path, rivals: dict[str, float], bytes_per_token: float) -> str:
    """Draws the loss with the baselines that are like for like; returns what to tell."""
    levels = {
        name: rate * math.log(2) * bytes_per_token
        for name, rate in rivals.items()
        if "counted" in name or "xz" in name
    }
    try:
        return f"loss curve: {loss_curve(workdir, workdir / 'loss.png', levels=levels)}"
    except ModuleNotFoundError as error:  # matplotlib is an extra
        return f"no loss curve: {error}"
