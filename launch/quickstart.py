"""Trains a small masked diffusion model of Python's documentation, and shows what it learned.

    python launch/quickstart.py

Trains `configs/quickstart.py` into runs/quickstart (fields can be set: --config.train.steps=200),
bounds its likelihood on held-out text beside simple models of the same text, reads the exported
parameters back, samples, continues a prompt, fills gaps, and draws the loss and a sample coming
into being. Run again, it continues an interrupted training, or goes straight to the rest. Exits
with 128 + the signal's number when interrupted, and with 1 if the config as it comes has not
learned more than pairs of bytes tell.
"""

import sys
import time
from logging import getLogger
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

# The configs import one another as configs.<name>, which is not installed with the package.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

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
    from configs.quickstart import get_config
    from mdm_jax.train.host_memory import keep_freed_memory
    from mdm_jax.train.interruption import Interrupted
    from mdm_jax.train.loop import train
    from mdm_jax.train.showcase import shortfall, show

    keep_freed_memory()
    started, workdir = time.monotonic(), _WORKDIR.value
    try:
        result = train(_CONFIG.value, workdir)
    except Interrupted as interruption:
        logging.warning("%s", interruption)
        sys.exit(128 + interruption.signum)
    trained = time.monotonic()
    shown = show(result.experiment, workdir)
    print(f"\ntraining {trained - started:.0f} s, the rest {time.monotonic() - trained:.0f} s")
    trouble = shortfall(shown.bound.bits_per_byte, shown.rivals)
    if trouble and _CONFIG.value.to_dict() == get_config().to_dict():
        sys.exit(trouble)
    if trouble:
        print(f"\n{trouble} (this is not the quickstart's config)")


if __name__ == "__main__":
    app.run(main)
