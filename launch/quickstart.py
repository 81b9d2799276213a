"""Trains a small masked diffusion model of Python's documentation, and shows what it learned.

    python launch/quickstart.py

Trains `configs/quickstart.py` into runs/quickstart (fields can be set: --config.train.steps=200),
bounds its likelihood on held-out text beside simple models of the same text, reads the exported
parameters back, samples, continues a prompt, fills gaps, and draws the loss and a sample coming
into being. Run again, it continues an interrupted training, or goes straight to the rest.
"""

import time
from logging import getLogger
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    str(Path(__file__).parents[1] / "configs" / "quickstart.py"),
    "File with the training config.",
)
_WORKDIR = flags.DEFINE_string("workdir", "runs/quickstart", "Directory of the run.")


def main(argv: list[str]) -> None:
    """Trains, then shows."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}: settings are --config.field=value")
    logging.set_verbosity(logging.WARNING)
    getLogger("mdm_jax").setLevel("INFO")
    from mdm_jax.train.loop import train
    from mdm_jax.train.showcase import show

    started, workdir = time.monotonic(), _WORKDIR.value
    result = train(_CONFIG.value, workdir)
    trained = time.monotonic()
    show(result.experiment, workdir)
    print(f"\ntraining {trained - started:.0f} s, the rest {time.monotonic() - trained:.0f} s")


if __name__ == "__main__":
    app.run(main)
