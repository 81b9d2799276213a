"""Runs ``launch/train.py`` as a user does, in processes of its own."""

import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from train import tiny

from mdm_jax.train.checkpoints import load_params
from mdm_jax.train.metrics import read_metrics

ROOT = Path(__file__).parents[2]


class Launcher:
    """Starts runs of one config, which share their text and their compiled steps.

    Args:
        directory: of the runs.
        steps: of a whole run.
        **fields: further fields of the config, "__" for the dot.
    """

    def __init__(self, directory: Path, steps: int, **fields: object):
        self.directory = directory
        text = directory / "text"
        text.mkdir()
        for i, document in enumerate(tiny.documents().texts):
            (text / f"{i}.txt").write_bytes(document)
        given = {name.replace("__", "."): value for name, value in fields.items()}
        fields = {f"model.{name}": value for name, value in tiny.MODEL.items()}
        fields |= {"data.source": "text_files", "data.path": text, "data.length": 16}
        fields |= {"data.held_out": 0.3, "optimizer.warmup": 5, "train.steps": steps}
        fields |= {"train.batch_size": 128, "train.log_every": 1, "train.eval_every": 25}
        fields |= {"train.checkpoint_every": 7, "evaluation.max_windows": 8}
        fields |= given
        self.steps = steps
        self.flags = [f"--config.{name}={value}" for name, value in fields.items()]

    def start(
        self, name: str, devices: int = 1, *flags: str, host: int | None = None
    ) -> subprocess.Popen:
        command = [sys.executable, ROOT / "launch" / "train.py"]
        command += [f"--config={ROOT / 'configs' / 'quickstart.py'}", *self.flags, *flags]
        env = os.environ | {
            "PYTHONPATH": str(ROOT),
            "JAX_NUM_CPU_DEVICES": str(devices),
            "JAX_COMPILATION_CACHE_DIR": str(self.directory / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        }
        if host is not None:  # as one of two tasks of a SLURM step
            command.append("--multihost")
            task = {"PROCID": host, "LOCALID": host, "NTASKS": 2, "JOB_ID": os.getpid()}
            env |= {f"SLURM_{k}": str(v) for k, v in task.items()}
            env["SLURM_STEP_NODELIST"] = "localhost"
        command.append(f"--workdir={self.directory / name}")
        with (self.directory / f"{name}.log").open("a") as log:
            return subprocess.Popen(command, env=env, stdout=log, stderr=log)

    def finish(self, name: str, devices: int = 1) -> None:
        code = self.start(name, devices).wait(timeout=120)
        assert code == 0, (self.directory / f"{name}.log").read_text()[-3000:]

    def stop(self, name: str, step: int, signum: int, devices: int = 1) -> int:
        """Signals a run as soon as it has recorded `step`; returns its exit status."""
        (code,) = self.signaled(name, step, signum, [self.start(name, devices)])
        return code

    def signaled(self, name: str, step: int, signum: int, processes: list) -> list[int]:
        """Signals the last of a run's processes at `step`; returns all their exit statuses.

        At a step of theirs: what stopped processes recorded before does not count, or a signal
        could meet a process that is still importing.
        """
        recorded = [r["step"] for r in read_metrics(self.directory / name)]
        step = max([step, *(before + 1 for before in recorded)])
        deadline = time.monotonic() + 120
        try:
            while not any(r["step"] >= step for r in read_metrics(self.directory / name)):
                running = all(process.poll() is None for process in processes)
                assert running, (self.directory / f"{name}.log").read_text()[-3000:]
                assert time.monotonic() < deadline
                time.sleep(0.005)
            processes[-1].send_signal(signum)
            return [process.wait(timeout=60) for process in processes]
        finally:
            for process in processes:
                process.kill()
                process.wait()

    def losses(self, name: str) -> list[float]:
        records = [r for r in read_metrics(self.directory / name) if "loss" in r]
        assert [r["step"] for r in records] == list(range(1, self.steps + 1))
        return [r["loss"] for r in records]

    def params(self, name: str):
        return load_params(self.directory / name / "params")[0]

    def state(self, name: str):
        """The whole state of the last checkpoint: parameters, average, moments, step."""
        path = self.directory / name / "checkpoints" / str(self.steps) / "state"
        handler = ocp.PyTreeCheckpointHandler()
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        args = jax.tree.map(
            lambda _: ocp.ArrayRestoreArgs(sharding=device), handler.metadata(path).tree
        )
        return handler.restore(path, args=ocp.args.PyTreeRestore(restore_args=args))
