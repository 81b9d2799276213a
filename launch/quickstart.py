"""Trains a small masked diffusion model of Python's documentation, and shows what it learned.

    python launch/quickstart.py

Trains `configs/quickstart.py` into runs/quickstart (fields can be set: --config.train.steps=200),
bounds its likelihood on held-out text beside simple models of the same text, reads the exported
parameters back, samples, continues a prompt, fills gaps, and draws the loss and a sample coming
into being. Run again, it continues an interrupted training, or goes straight to the rest.
"""

import math
import time
from logging import getLogger
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    str(Path(__file__).parents[1] / "configs" / "quickstart.py"),
    "File with the training config.",
)
_WORKDIR = flags.DEFINE_string("workdir", "runs/quickstart", "Directory of the run.")

PROMPT = "Return the "
TEMPLATE = "Return a new {{12}} with the {{10}} of the string. If {{8}} is given, raise ____Error."


def main(argv: list[str]) -> None:
    """Trains, then shows."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}: settings are --config.field=value")
    logging.set_verbosity(logging.WARNING)
    getLogger("mdm_jax").setLevel("INFO")
    from mdm_jax.train.loop import train

    started, workdir = time.monotonic(), Path(_WORKDIR.value)
    result = train(_CONFIG.value, workdir)
    trained = time.monotonic()
    show(result.experiment, workdir)
    print(f"\ntraining {trained - started:.0f} s, the rest {time.monotonic() - trained:.0f} s")


def show(experiment: Any, workdir: Path) -> None:
    """Evaluates, samples and draws the exported parameters of a finished run."""
    from mdm_jax.evaluation.held_out import baselines, held_out_bound, table
    from mdm_jax.train.trained import load_trained

    trained = load_trained(workdir / "params")
    print(f"\nparameters exported to {workdir / 'params'} and read back")
    held_out = experiment.held_out
    bound = held_out_bound(trained.text_model, held_out, samples=4, batch_size=64)
    rivals = baselines(experiment.train_data, held_out, experiment.tokenizer)
    print(f"\nbound on {held_out}, stratified over exact numbers of masks:\n{bound.summary()}\n")
    print(table(bound.bits_per_byte, bound.bits_per_byte_error, rivals))
    _sample(trained.text_model, experiment.held_out.tokens.shape[1], workdir)
    _draw_loss(workdir, rivals, bound.bytes_per_token)


def _sample(model: Any, length: int, workdir: Path) -> None:
    import jax

    from mdm_jax.evaluation.canvas import canvas
    from mdm_jax.evaluation.pictures import samples_html
    from mdm_jax.evaluation.samples import sample_text

    key = jax.random.key(0)
    layouts = {
        "unconditional": canvas(model.tokenizer, length=length),
        f"prompt {PROMPT!r}": canvas(model.tokenizer, prompt=PROMPT, length=length),
        f"template {TEMPLATE!r}": canvas(model.tokenizer, template=TEMPLATE),
    }
    for index, (name, layout) in enumerate(layouts.items()):
        # The same steps everywhere, so that canvases of one length share their compiled code.
        samples = sample_text(
            jax.random.fold_in(key, index),
            model,
            layout,
            sampler="ancestral",
            steps=length,
            batch=2,
            watch=True,
            progress=True,
        )
        print(f"\n=== {name}\n{samples.show()}\n({samples.summary()})")
        if not index:
            page = samples_html(workdir / "trajectory.html", samples, model, layout)
    print(f"\ntrajectory of the first sample: {page}")


def _draw_loss(workdir: Path, rivals: dict[str, float], bytes_per_token: float) -> None:
    from mdm_jax.evaluation.pictures import loss_curve

    levels = {name: rate * math.log(2) * bytes_per_token for name, rate in rivals.items()}
    levels = {name: level for name, level in levels.items() if "counted" in name or "xz" in name}
    try:
        print(f"loss curve: {loss_curve(workdir, workdir / 'loss.png', levels=levels)}")
    except ModuleNotFoundError as error:
        print(f"no loss curve: {error}")


if __name__ == "__main__":
    app.run(main)
