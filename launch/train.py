"""Trains a model.

    python launch/train.py --config=configs/quickstart.py --workdir=runs/quickstart

Any field of the config can be set on the command line: ``--config.train.steps=2000``. The same
command continues an interrupted run. Exits with 128 + the signal's number when interrupted.
"""

import sys
from logging import getLogger
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

# The configs import one another as configs.<name>, which is not installed with the package.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

_CONFIG = config_flags.DEFINE_config_file("config", None, "File with the training config.")
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Directory for checkpoints and metrics.", required=True
)
_MULTIHOST = flags.DEFINE_bool(
    "multihost", False, "Join the other hosts of this job first (TPU pods, SLURM, Kubernetes)."
)


def main(argv: list[str]) -> None:
    """Runs `mdm_jax.train.loop.train`."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}: settings are --config.field=value")
    logging.set_verbosity(logging.WARNING)
    getLogger("mdm_jax").setLevel("INFO")
    import jax

    if _MULTIHOST.value:
        jax.distributed.initialize()  # before anything asks for a device
    from mdm_jax.train.interruption import Interrupted
    from mdm_jax.train.loop import train

    try:
        train(_CONFIG.value, _WORKDIR.value)
    except Interrupted as interruption:
        logging.warning("%s", interruption)
        sys.exit(128 + interruption.signum)


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main)
