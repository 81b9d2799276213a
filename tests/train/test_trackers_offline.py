"""The real packages, with no network: a run and its continuation in processes of their own."""

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys
from mdm_jax.train.metrics import MetricsWriter
from mdm_jax.train.trackers import open_tracker
name, workdir, start = sys.argv[1], sys.argv[2], int(sys.argv[3])
tracker = open_tracker(name, project="tests", workdir=workdir, config={"seed": 3})
with MetricsWriter(workdir, resume_step=start, tracker=tracker) as writer:
    writer.write(start + 1, loss=2.5 - start)
"""


def twice(name, tmp_path):
    pytest.importorskip(name, reason=f"{name} is not installed: pip install 'mdm-jax[{name}]'")
    env = os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "WANDB_MODE": "offline",
        "TRACKIO_DIR": str(tmp_path / "trackio"),
        "HF_HUB_OFFLINE": "1",
    }
    for start in ("0", "1"):
        command = [sys.executable, "-c", PROGRAM, name, str(tmp_path / "mine"), start]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0 and "did not" not in done.stderr, done.stderr
    return json.loads((tmp_path / "mine" / "tracker.json").read_text())["id"]


@pytest.mark.slow
def test_wandb(tmp_path):
    identity = twice("wandb", tmp_path)
    files = list((tmp_path / "mine" / "wandb").glob(f"offline-run-*/run-{identity}.wandb"))
    assert len(files) == 2
    assert all(b"loss" in path.read_bytes() for path in files)


@pytest.mark.slow
def test_trackio(tmp_path):
    identity = twice("trackio", tmp_path)
    with sqlite3.connect(tmp_path / "trackio" / "tests.db") as base:
        rows = base.execute("select run_name, step, metrics from metrics order by step").fetchall()
    base.close()
    assert [(name, step) for name, step, _ in rows] == [(f"mine-{identity}", s) for s in (1, 2)]
    assert [json.loads(metrics)["loss"] for *_, metrics in rows] == [2.5, 1.5]
