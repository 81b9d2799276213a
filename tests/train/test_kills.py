"""Two real processes of four devices, killed at random times: the same losses, bit for bit."""

import json
import random
import shutil
import signal
import time

import jax
import numpy as np
import pytest
from train.launcher import Launcher

from mdm_jax.train.metrics import read_metrics

TRIALS, STEPS, SEED = 20, 240, 0
EVERY = 7  # steps between checkpoints
PATIENCE = ("--heartbeat_timeout=10", "--multihost_timeout=60")
LATE = 120  # seconds after which a process that should have ended is said to hang
WHOLE = 600  # seconds that a whole run may take on a busy machine

pytestmark = pytest.mark.slow


class Pair(Launcher):
    """Runs of two processes, whose parameters are spread over both."""

    def both(self, name, *flags):
        return [self.start(name, 4, *PATIENCE, *flags, host=host) for host in (0, 1)]

    def finish_both(self, name):
        self.ended(name, self.both(name), within=WHOLE, wanted=[0, 0])

    def ended(self, name, processes, within=LATE, wanted=None):
        """The exit statuses of processes that must end by themselves."""
        try:
            codes = [process.wait(timeout=within) for process in processes]
        finally:
            for process in processes:
                process.kill()
                process.wait()
        assert wanted in (None, codes), (self.directory / f"{name}.log").read_text()[-5000:]
        return codes

    def recorded(self, name):
        return {r["step"]: r["loss"] for r in read_metrics(self.directory / name) if "loss" in r}

    def last(self, name):
        return max(self.recorded(name), default=0)

    def trial(self, name, rng):
        """Starts both, and stops one or both after some steps, or while they still start."""
        before, processes = self.last(name), self.both(name)
        signum = rng.choice([signal.SIGKILL, signal.SIGTERM])
        victims = rng.choice([(0,), (1,), (0, 1)])
        early = rng.random() < 0.2
        further = 0 if early else rng.randint(1, 11)
        begun, deadline = time.monotonic(), time.monotonic() + WHOLE
        try:
            while self.last(name) < before + further:
                assert all(process.poll() is None for process in processes), self.tail(name)
                assert time.monotonic() < deadline, self.tail(name)
                time.sleep(0.01)
            time.sleep(rng.uniform(0.0, 15.0 if early else 0.3))
            at = self.last(name)
            for victim in victims:
                processes[victim].send_signal(signum)
            sent = time.monotonic()
        except BaseException:
            self.ended(name, processes)
            raise
        codes = self.ended(name, processes)
        return {
            **{"signal": signal.Signals(signum).name, "processes": victims, "early": early},
            **{"step": at, "codes": codes, "ran": round(sent - begun, 1)},
            "ended_after": round(time.monotonic() - sent, 1),
        }

    def tail(self, name):
        return (self.directory / f"{name}.log").read_text()[-5000:]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    fields = {"mesh__data": 1, "mesh__fsdp": 8, "train__checkpoint_every": EVERY}
    pair = Pair(tmp_path_factory.mktemp("kills"), STEPS, **fields)
    pair.finish_both("uninterrupted")
    return pair


@pytest.fixture(scope="module")
def killed(pair):
    """A run killed 20 times, and a copy of it half-way."""
    rng, expected, trials = random.Random(SEED), pair.recorded("uninterrupted"), []
    for number in range(TRIALS):
        trials.append(pair.trial("killed", rng))
        for step, loss in pair.recorded("killed").items():
            assert loss == expected[step], (trials, step)
        if number == TRIALS // 2:
            shutil.copytree(pair.directory / "killed", pair.directory / "half-way")
    pair.finish_both("killed")
    print("".join(f"\n{json.dumps(trial)}" for trial in trials))
    return trials


def test_it_ends_with_the_same_bits(pair, killed):
    assert {trial["signal"] for trial in killed} == {"SIGKILL", "SIGTERM"}
    assert pair.losses("killed") == pair.losses("uninterrupted")
    expected = pair.state("uninterrupted")
    jax.tree.map(np.testing.assert_array_equal, pair.state("killed"), expected)


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_one_process_continues(pair, killed, devices):
    """What eight devices of two processes saved, on fewer; sums are added up in another order."""
    name = f"moved-{devices}"
    shutil.copytree(pair.directory / "half-way", pair.directory / name)
    mesh = ("--config.mesh.data=1", f"--config.mesh.fsdp={devices}")
    code = pair.start(name, devices, *mesh).wait(timeout=WHOLE)
    assert code == 0, pair.tail(name)
    np.testing.assert_allclose(pair.losses(name), pair.losses("uninterrupted"), rtol=1e-4)


def test_both_go_back_when_the_newest_is_damaged(pair, killed):
    name = "damaged"
    shutil.copytree(pair.directory / "half-way", pair.directory / name)
    checkpoints = pair.directory / name / "checkpoints"
    newest = max(int(path.name) for path in checkpoints.iterdir() if path.name.isdigit())
    for file in (path for path in (checkpoints / str(newest) / "state" / "d").iterdir()):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    pair.finish_both(name)
    assert (checkpoints / f"damaged-{newest}").is_dir()
    log = (pair.directory / f"{name}.log").read_text()
    assert f"checkpoint {newest} in {checkpoints} cannot be read (process " in log
    assert pair.losses(name) == pair.losses("uninterrupted")
