"""``launch/train.py`` as a user runs it: killed again and again, it ends as if it had not been."""

import random
import signal

import jax
import numpy as np
import pytest
from train.launcher import Launcher

STEPS = 48


@pytest.fixture(scope="module")
def launcher(tmp_path_factory):
    launcher = Launcher(tmp_path_factory.mktemp("launch"), STEPS)
    launcher.finish("uninterrupted")
    return launcher


def test_killed_at_random_steps_it_ends_with_the_same_bits(launcher):
    rng = random.Random(0)
    kills = [rng.randrange(low, low + 8) for low in (3, 18, 33)]
    codes = [launcher.stop("killed", step, signal.SIGKILL) for step in kills]
    assert codes == [-signal.SIGKILL] * 3
    launcher.finish("killed")
    assert launcher.losses("killed") == launcher.losses("uninterrupted")
    expected = launcher.params("uninterrupted")
    jax.tree.map(np.testing.assert_array_equal, launcher.params("killed"), expected)
    state, expected = launcher.state("killed"), launcher.state("uninterrupted")
    assert {"params", "opt_state", "ema", "step"} <= set(expected)
    jax.tree.map(np.testing.assert_array_equal, state, expected)


def test_signals_save_and_exit_non_zero_and_other_machines_continue(launcher):
    """From eight devices, to two hosts of two devices each, to one device, to a split model."""
    assert launcher.stop("moved", 5, signal.SIGTERM, devices=8) == 128 + signal.SIGTERM
    hosts = [launcher.start("moved", 2, host=host) for host in (0, 1)]
    codes = launcher.signaled("moved", 12, signal.SIGTERM, hosts)  # one host alone gets it
    assert codes == [128 + signal.SIGTERM] * 2
    assert launcher.stop("moved", 20, signal.SIGINT, devices=1) == 128 + signal.SIGINT
    # Each host holds half of every layer, and so needs all rows, to train on and to evaluate.
    halves = [launcher.start("moved", 1, "--config.mesh.tensor=2", host=host) for host in (0, 1)]
    try:
        codes = [half.wait(timeout=120) for half in halves]
    finally:
        for half in halves:
            half.kill()
            half.wait()
    log = (launcher.directory / "moved.log").read_text()
    assert codes == [0, 0], log[-3000:]
    assert log.count("which are saved: run the same command to continue") == 4
    # Other devices add up in another order; Adam turns last bits of a gradient into more.
    np.testing.assert_allclose(
        launcher.losses("moved"), launcher.losses("uninterrupted"), rtol=1e-4
    )


def test_a_wrong_field_is_named(launcher):
    process = launcher.start("wrong", 1, "--config.objective.name=sed")
    assert process.wait(timeout=60) != 0
    assert "expected one of ['mdlm', 'duo', " in (launcher.directory / "wrong.log").read_text()


def test_a_host_that_stays_away_is_named(launcher):
    process = launcher.start("alone", 1, "--multihost_timeout=1", host=0)
    assert process.wait(timeout=60) == 1
    log = (launcher.directory / "alone.log").read_text()
    assert "MissingHostsError: process 1 of 2 did not come to localhost:" in log
