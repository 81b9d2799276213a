"""The records of a run, sent to a tracking service as well: Weights & Biases, or trackio.

``metrics.jsonl`` is the record of a run; a tracker is a copy to look at. So a tracker that cannot
be opened stops the command before it trains, with what to do; one that fails later is warned
about, training goes on, and what it missed is counted when it closes.
"""

import importlib
import json
import logging
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from mdm_jax.train.paths import is_url, run_path

logger = logging.getLogger(__name__)

TRACKERS = ("wandb", "trackio")


class Tracker:
    """A run of a tracking service; see `open_tracker`.

    Args:
        name: of the service, for messages.
        run: what takes the numbers: ``run.log(numbers, step=...)`` and ``run.finish()``.

    Examples:
        >>> class Run:
        ...     log = lambda self, numbers, step: print(step, numbers)
        ...     finish = lambda self: print("finished")
        >>> tracker = Tracker("my service", Run())
        >>> tracker.log(1, {"loss": 2.5})
        1 {'loss': 2.5}
        >>> tracker.close()
        finished
    """

    def __init__(self, name: str, run: Any):
        self._name, self._run = name, run
        self._missed = 0

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Sends one record; a failure is logged, and counted."""
        try:
            self._run.log(dict(scalars), step=step)
        except Exception as error:  # of any kind: they are the service's
            self._missed += 1
            logger.warning("%s did not take the record of step %d: %s", self._name, step, error)

    def close(self) -> None:
        """Sends what is left, and says how much went missing."""
        try:
            self._run.finish()
        except Exception as error:
            logger.warning("%s did not finish: %s", self._name, error)
        if self._missed:
            logger.warning(
                "%d record(s) did not reach %s; metrics.jsonl has them all",
                *(self._missed, self._name),
            )


def open_tracker(
    name: str, *, project: str, workdir: str | Path, config: Mapping[str, Any]
) -> Tracker | None:
    """Starts or continues a run of a tracking service; only on process 0.

    The run has the name of the workdir, and in every session of the workdir the same identity
    (``tracker.json``), so that a resumed run is one curve.

    Args:
        name: one of `TRACKERS`; "": none.
        project: to file it under.
        workdir: of the run; W&B keeps its files in ``wandb/`` there, or, if it is a
            URL, in the current folder.
        config: to show beside it.

    Returns:
        A tracker; None if `name` is "", and on processes other than 0.

    Raises:
        ValueError: if the name is unknown.
        ImportError: if its package is not installed.
        RuntimeError: if the service refuses, for instance because nobody is logged in.

    Examples:
        >>> open_tracker("", project="mdm", workdir="runs/mine", config={}) is None
        True
    """
    if not name:
        return None
    if name not in TRACKERS:
        raise ValueError(f"unknown watch.tracker {name!r}: expected one of {['', *TRACKERS]}")
    if jax.process_index() != 0:
        return None
    try:
        service = importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"watch.tracker={name!r} needs a package that is not here ({error}): run pip install "
            f"'mdm-jax[{name}]', or set watch.tracker=''"
        ) from error
    workdir = run_path(workdir)
    identity = _identity(workdir)
    given: dict[str, Any] = {"project": project, "config": dict(config)}
    if name == "wandb":
        given |= {"name": workdir.name, "id": identity}
        if not is_url(workdir):
            given["dir"] = str(workdir)
    else:  # trackio knows a run by its name
        given["name"] = f"{workdir.name}-{identity}"
    try:
        run = service.init(**given, resume="allow")
    except Exception as error:
        raise RuntimeError(
            f"{name} did not start ({error}): log in to it, work offline (WANDB_MODE=offline), or "
            "set watch.tracker=''"
        ) from error
    return Tracker(name, run)


def _identity(workdir: Path) -> str:
    """The same for every session of a workdir, and for no other workdir."""
    path = workdir / "tracker.json"
    if not path.exists():
        workdir.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"id": uuid.uuid4().hex[:8]}) + "\n")
    return json.loads(path.read_text())["id"]
