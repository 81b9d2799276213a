"""Checkpoints: the whole train state with its config, and parameters alone for others to use.

Everything the library knows about Orbax is in this file. A checkpoint is written under a temporary
name and renamed when complete, so a run killed at any moment leaves only whole checkpoints; one
that is damaged later is set aside, loudly, and the one before it is used.
"""

import errno
import gc
import json
import logging
import os
import shutil
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from mdm_jax.train.agreement import failures, first_line
from mdm_jax.train.continuing import Config, ConfigMismatchError, check_config, plain
from mdm_jax.train.paths import is_url, run_path
from mdm_jax.train.state import Params, TrainState

logger = logging.getLogger(__name__)


class _Manager(ocp.CheckpointManager):
    """Orbax's, which asks for a preemption by itself at every save, and counts by steps.

    Two ways of counting would be mixed up: `Checkpoints.reached_preemption` alone asks.
    """

    def reached_preemption(self, step: int) -> bool:
        return False


class Checkpoints:
    """The checkpoints of one run, in one directory.

    Args:
        directory: created if missing.
        keep: how many of the newest checkpoints to keep.
        keep_every: keep for good those whose step is a multiple of this; 0 keeps none for good.
        asynchronous: write in the background. The state is copied before `save` returns, so it may
            be donated right after.

    Raises:
        ValueError: if the directory is a URL other than gs://, or a number is out of range.
        OSError: if the directory cannot be created or written to.

    Examples:
        >>> import tempfile, jax.numpy as jnp
        >>> state = TrainState(jnp.int32(3), {"w": jnp.ones(2)}, (), None)
        >>> with Checkpoints(tempfile.mkdtemp()) as checkpoints:
        ...     checkpoints.save(3, state, {"seed": 0})
        ...     checkpoints.wait()
        ...     restored, step = checkpoints.restore(state, {"seed": 0})
        >>> step, restored.params["w"].tolist()
        (3, [1.0, 1.0])
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        keep: int = 3,
        keep_every: int = 0,
        asynchronous: bool = True,
    ):
        if keep < 1 or keep_every < 0:
            raise ValueError(
                f"expected checkpoint.keep >= 1 and checkpoint.keep_every >= 0, got {keep} and "
                f"{keep_every}"
            )
        self.directory = run_path(directory)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            keep_period=keep_every or None,
            cleanup_tmp_directories=True,
            enable_async_checkpointing=asynchronous,
        )
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._manager = _Manager(self.directory, options=options)
        except OSError as error:
            raise OSError(
                error.errno,
                f"cannot write checkpoints to {self.directory}: {error.strerror or error}. "
                "Choose a --workdir on a disk you may write to",
            ) from error

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, OSError) and jax.process_count() > 1:
            return  # a write waits for all processes, and this one fails alone: it would not end
        try:
            self.close()
        except OSError:
            if error is None:  # else the first error is the one to report
                raise
            logger.exception("while closing the checkpoints after another error")

    def latest_step(self) -> int | None:
        """Returns the step of the newest checkpoint, damaged or not; None if there is none."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState, config: Config) -> None:
        """Writes the state and the config, unless `step` is already there.

        Args:
            step: steps taken; names the checkpoint.
            state: arrays of any sharding.
            config: what `restore` will compare.

        Raises:
            OSError: if this or the previous write failed, for instance on a full disk.
        """
        if step in self._manager.all_steps():
            return
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(_stored(state)), config=ocp.args.JsonSave(plain(config))
        )
        with _WriteErrors(self):
            self._manager.save(step, args=items, force=True)

    def wait(self) -> None:
        """Waits for writes in the background; raises OSError if one failed."""
        with _WriteErrors(self):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for writes and frees the threads; raises OSError if a write failed."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def reached_preemption(self, calls: int) -> bool:
        """Whether the cluster is about to stop this job; the same answer on every process.

        Args:
            calls: how often this process has asked, this time included. The processes agree to
                stop at the call after the last one that any of them had made when the notice
                came. A notice that comes before the first call is for call 1: numbers that begin
                higher, such as the steps of a resumed run, would pass it by.
        """
        return ocp.CheckpointManager.reached_preemption(self._manager, calls)

    def restore(self, abstract_state: TrainState, config: Config) -> tuple[TrainState, int] | None:
        """Reads the newest checkpoint that can be read whole.

        Args:
            abstract_state: a `TrainState` of arrays or `jax.ShapeDtypeStruct` with shardings. The
                arrays are laid out as it says, whatever mesh wrote them.
            config: must agree with the saved one, see `check_config`.

        Returns:
            The state and its step, or None if the directory holds no checkpoint.

        Raises:
            ConfigMismatchError: if the checkpoint was written by another config.
            OSError: if there are checkpoints, but none can be read. They are left as they are:
                starting over would overwrite them.
        """
        self.wait()
        damaged: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            state, error = self._read(step, abstract_state, config)
            reasons = failures(error)  # the processes go back together, or they would part here
            if isinstance(error, ConfigMismatchError):
                raise error
            elsewhere = [r for r in reasons.values() if r.startswith(ConfigMismatchError.__name__)]
            if elsewhere:
                raise ConfigMismatchError(f"on another process: {elsewhere[0]}")
            if state is not None and not reasons:
                self._set_aside(damaged)
                return state, step
            del state  # its memory is for the one before it
            damaged[step] = "; ".join(
                f"process {process}: {reason}" if jax.process_count() > 1 else reason
                for process, reason in reasons.items()
            )
            logger.warning(
                "checkpoint %d in %s cannot be read (%s): trying the one before it",
                *(step, self.directory, damaged[step]),
            )
        if damaged:
            steps = "; ".join(f"step {step}: {reason}" for step, reason in damaged.items())
            raise OSError(f"no checkpoint in {self.directory} can be read. {steps}")
        return None

    def _read(
        self, step: int, abstract_state: TrainState, config: Config
    ) -> tuple[TrainState | None, Exception | None]:
        """This process's part of a checkpoint, or why it cannot be read.

        Not through the manager, which waits for all processes after a read: the others would wait
        for one that failed.
        """
        folder: Any = self.directory / str(step)
        handler = ocp.StandardCheckpointHandler()
        try:
            check_config(_read_config(folder / "config" / "metadata"), config)
            args = ocp.args.StandardRestore(_stored(abstract_state))
            state = TrainState(**handler.restore(epath.Path(folder / "state"), args=args))
        except Exception as error:  # whatever a damaged file makes its reader raise
            return None, error
        finally:
            handler.close()
        return state, None

    def _set_aside(self, damaged: Iterable[int]) -> None:
        """Renames damaged checkpoints, so that the run can write those steps again."""
        for step in damaged:
            path, aside = self.directory / str(step), self.directory / f"damaged-{step}"
            if jax.process_index() == 0:
                if aside.exists():
                    epath.Path(aside).rmtree()
                path.rename(aside)
            logger.warning("damaged checkpoint %d is now %s; delete it when you like", step, aside)
        if damaged:
            multihost_utils.sync_global_devices("damaged checkpoints set aside")
            self._manager.reload()


def _stored(state: TrainState) -> dict[str, Any]:
    """The state as it lies in a checkpoint: without a guard, as before there were guards."""
    stored = state._asdict()
    if state.guard is None:
        del stored["guard"]
    return stored


class _WriteErrors:
    """Turns whatever a failed write raises into an OSError that says what to do."""

    def __init__(self, checkpoints: Checkpoints):
        self.checkpoints = checkpoints

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if not isinstance(error, Exception):
            return
        directory = self.checkpoints.directory
        self.checkpoints._manager.reload()
        steps = self.checkpoints._manager.all_steps()
        free = ""
        if not is_url(directory):
            free = f" ({shutil.disk_usage(directory).free / 2**20:.0f} MiB free)"
        code, reason = getattr(error, "errno", None) or errno.EIO, first_line(error)
        if "No space left" in str(error):  # TensorStore's errors carry no errno
            code, reason = errno.ENOSPC, os.strerror(errno.ENOSPC)
        # Writers abandoned half-way would otherwise complain by the hundred when Python exits.
        traceback.clear_frames(error.__traceback__)
        error.__traceback__ = None
        del error
        gc.collect()
        raise OSError(
            code,
            f"could not write a checkpoint to {directory}{free}. Whole checkpoints there: "
            f"{sorted(steps) or 'none'}. Free space or choose another disk, then run the "
            f"same command to resume. The reason: {reason}",
        ) from None


def save_params(
    path: str | Path, params: Params, config: Config, *, overwrite: bool = False
) -> None:
    """Writes parameters alone, with the config that says what they are parameters of.

    Args:
        path: a directory.
        params: pytree of arrays; for sampling, usually ``state.eval_params``.
        config: JSON-serializable.
        overwrite: whether to replace parameters that are already there.

    Raises:
        ValueError: if there are parameters at `path` and `overwrite` is False, or it is a URL
            other than gs://.

    Examples:
        >>> import tempfile, jax.numpy as jnp
        >>> path = tempfile.mkdtemp() + "/params"
        >>> save_params(path, {"w": jnp.arange(2.0)}, {"size": "tiny"})
        >>> load_params(path)
        ({'w': Array([0., 1.], dtype=float32)}, {'size': 'tiny'})
    """
    path = run_path(path)
    # Few bytes in flight, and no snapshot to go on training from: what memory allows is a model.
    largest = max((x.nbytes for x in jax.tree.leaves(params)), default=0)
    handler = ocp.PyTreeCheckpointHandler(save_concurrent_gb=1 + largest // 10**9)
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(path / "params", args=ocp.args.PyTreeSave(params), force=overwrite)
    if jax.process_index() == 0:
        (path / "config.json").write_text(json.dumps(plain(config), indent=2) + "\n")


def load_params(path: str | Path) -> tuple[Params, dict[str, Any]]:
    """Reads what `save_params` wrote, onto the default device, whatever mesh wrote it.

    Args:
        path: the directory given to `save_params`.

    Returns:
        (params, config). `params` is a pytree of dicts.

    Raises:
        FileNotFoundError: if there is no such directory.
        ValueError: if its config.json is damaged, or `path` is a URL other than gs://.
        OSError: if the parameters are damaged.
    """
    path = run_path(path)
    if not (path / "config.json").is_file():
        raise FileNotFoundError(f"no parameters at {path}: expected what save_params writes")
    config = _read_config(path / "config.json")
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with ocp.StandardCheckpointer() as checkpointer:
        try:
            abstract = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device),
                checkpointer.metadata(path / "params").item_metadata.tree,
            )
            return checkpointer.restore(path / "params", abstract), config
        except Exception as error:  # whatever a damaged file makes its reader raise
            raise OSError(
                f"the parameters in {path / 'params'} are damaged or incomplete "
                f"({first_line(error)}): export or copy them again"
            ) from error


def load_checkpoint_params(checkpoint: Path) -> tuple[Params, dict[str, Any]]:
    """Reads the parameters to sample with out of one checkpoint, and nothing else of it.

    Args:
        checkpoint: the folder of one step, ``checkpoints/<step>``. Its run may be in progress.

    Returns:
        (params, config): the averaged parameters if there are any, on the default device; and what
        `Checkpoints.save` was given.

    Raises:
        OSError: if the checkpoint is damaged.
    """
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    # The handler and not a Checkpoints: opening one of those tidies up after dead runs, and this
    # run may be alive.
    handler = ocp.PyTreeCheckpointHandler()
    state: Any = checkpoint / "state"  # typed as Orbax's own kind of path, of which this is one
    try:
        config = _read_config(checkpoint / "config" / "metadata")
        saved = handler.metadata(state).tree
        name = "ema" if saved.get("ema") else "params"
        wanted = {
            name: jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), saved[name]
            )
        }
        restored = handler.restore(
            state,
            args=ocp.args.PyTreeRestore(
                item=wanted,
                restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
                partial_restore=True,
            ),
        )
    except Exception as error:  # whatever a damaged file makes its reader raise
        raise OSError(
            f"checkpoint {checkpoint} cannot be read ({first_line(error)}): name another one, "
            f"{checkpoint.parent}/<step>"
        ) from error
    finally:
        handler.close()
    return restored[name], config


def _read_config(file: Path) -> dict[str, Any]:
    """The mapping in a JSON file; ValueError naming the file if it is none."""
    try:
        config = json.loads(file.read_text())
    except ValueError as error:  # of decoding, too
        raise ValueError(f"{file} is damaged: it is not JSON ({error})") from error
    if not isinstance(config, dict):
        raise ValueError(f"{file} is damaged: expected a mapping of fields, got {config!r:.60}")
    return config
