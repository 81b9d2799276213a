"""What a finished run learned, shown: its bound beside simple models, samples, and pictures."""

import math
from pathlib import Path

import jax

from mdm_jax.evaluation.canvas import canvas
from mdm_jax.evaluation.held_out import baselines, held_out_bound, table
from mdm_jax.evaluation.pictures import loss_curve, samples_html
from mdm_jax.evaluation.samples import TextModel, sample_text
from mdm_jax.train.experiment import Experiment
from mdm_jax.train.trained import load_trained

PROMPT = "Return the "
TEMPLATE = "Return a new {{12}} with the {{10}} of the string. If {{8}} is given, raise ____Error."


def show(experiment: Experiment, workdir: str | Path) -> None:
    """Reads back the parameters a run exported, evaluates, samples, draws, and prints it all.

    Writes ``loss.png`` and ``trajectory.html`` beside the run's metrics.

    Args:
        experiment: what was trained; any masked model.
        workdir: the folder of the finished run.

    Raises:
        FileNotFoundError: if the run is not finished: it exports its parameters at the end.
    """
    workdir = Path(workdir)
    model = load_trained(workdir / "params").text_model
    print(f"\nparameters exported to {workdir / 'params'} and read back")
    held_out = experiment.held_out
    bound = held_out_bound(model, held_out, samples=4)
    rivals = baselines(experiment.train_data, held_out, experiment.tokenizer)
    print(f"\nbound on {held_out}, stratified over exact numbers of masks:\n{bound.summary()}\n")
    print(table(bound.bits_per_byte, bound.bits_per_byte_error, rivals))
    page = _sample(model, held_out.tokens.shape[1], workdir / "trajectory.html")
    print(f"\ntrajectory of the first sample: {page}")
    print(_draw_loss(workdir, rivals, bound.bytes_per_token))


def _sample(model: TextModel, length: int, page: Path) -> Path:
    """Prints samples of three kinds; writes the first as a page."""
    layouts = {
        "unconditional": canvas(model.tokenizer, length=length),
        f"prompt {PROMPT!r}": canvas(model.tokenizer, prompt=PROMPT, length=length),
        f"template {TEMPLATE!r}": canvas(model.tokenizer, template=TEMPLATE),
    }
    for index, (name, layout) in enumerate(layouts.items()):
        # The same steps everywhere, so that canvases of one length share their compiled code.
        samples = sample_text(
            jax.random.key(index),
            model,
            layout,
            sampler="ancestral",
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
