r"""Trains a model.

    python launch/train.py --config=configs/quickstart.py --workdir=runs/quickstart

Any field of the config can be set on the command line: ``--config.train.steps=2000``. The same
command continues an interrupted run. Exits with 128 + the signal's number when interrupted.

On several hosts, start it on each with --multihost. Cloud TPU, SLURM, Kubernetes and Open MPI say
who takes part; elsewhere say it with flags, or set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
JAX_PROCESS_ID:

    python launch/train.py ... --multihost --coordinator=10.0.0.1:1234 --num_processes=2 \
        --process_id=0
"""

import os
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
_MULTIHOST = flags.DEFINE_bool("multihost", False, "Join the other hosts of this job first.")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "host:port of process 0.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many there are.", lower_bound=1)
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which one this is, from 0.", lower_bound=0)
_TIMEOUT = flags.DEFINE_integer(
    "multihost_timeout", 300, "Seconds to wait for hosts that start late.", lower_bound=1
)
_HEARTBEAT = flags.DEFINE_integer(
    "heartbeat_timeout", 100, "Seconds after which a silent host ends the run.", lower_bound=10
)


def main(argv: list[str]) -> None:
    """Runs `mdm_jax.train.loop.train`."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}: settings are --config.field=value")
    logging.set_verbosity(logging.WARNING)
    getLogger("mdm_jax").setLevel("INFO")
    from mdm_jax.train.host_memory import keep_freed_memory

    keep_freed_memory()
    if _MULTIHOST.value:
        join_hosts()
    from mdm_jax.train.interruption import Interrupted
    from mdm_jax.train.loop import train

    try:
        train(_CONFIG.value, _WORKDIR.value)
    except Interrupted as interruption:
        logging.warning("%s", interruption)
        sys.exit(128 + interruption.signum)
    except Exception:
        if not _MULTIHOST.value:
            raise
        logging.exception("this process ends, and with it the run")
        logging.flush()
        os._exit(1)  # Python's own way out waits for the others, and they may wait for this one


def join_hosts() -> None:
    """Makes this process one of several, before anything asks for a device."""
    import jax

    from mdm_jax.train.hosts import find_cluster, roll_call

    cluster = find_cluster(
        *(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value), timeout=_TIMEOUT.value
    )
    roll_call(cluster, _TIMEOUT.value)
    jax.distributed.initialize(
        **cluster.arguments(),
        initialization_timeout=_TIMEOUT.value,
        heartbeat_timeout_seconds=_HEARTBEAT.value,
        shutdown_timeout_seconds=_HEARTBEAT.value,
    )


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main)
