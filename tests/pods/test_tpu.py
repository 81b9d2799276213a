"""Steps compiled by the real TPU compiler, in processes of their own: it must see no other JAX."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

from mdm_jax.pods import plans, reports

ROOT = pathlib.Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu, the TPU compiler, is not installed: pip install 'mdm-jax[aot]'",
)


def compiled(*flags, status=0):
    """What launch/compile.py prints, with the record it writes."""
    environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    command = [sys.executable, ROOT / "launch" / "compile.py", *flags]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=900, cwd=ROOT, env=environment
    )
    assert done.returncode == status, done.stderr
    return done.stdout + done.stderr


def test_a_step_with_splash_attention_compiles_for_a_slice(tmp_path):
    path = tmp_path / "record.json"
    out = compiled(
        "--config=configs/quickstart.py",
        "--config.model.layers=1",
        "--config.model.unroll=1",
        "--config.model.remat=full",
        "--config.model.attention=splash",
        "--config.train.batch_size=8",
        "--config.mesh.fsdp=2",
        "--topology=v5e:2x2",
        "--nosampler",
        f"--json={path}",
    )
    record = json.loads(path.read_text())
    assert "fits: " in out and "4 x TPU v5e, mesh {'data': 2, 'fsdp': 2}" in out
    assert record["compiled"] and record["attention"] == "splash"
    assert record["share"] < reports.LIMIT and record["bytes"]["temporaries"] > 0
    assert record["collectives"]["all-gather"][0] > 0  # parameters come to the rows


@pytest.mark.slow
@pytest.mark.parametrize("plan", plans.CHECKED, ids=lambda plan: plan.recipe)
def test_a_plan_of_the_docs_fits(plan, tmp_path):
    path = tmp_path / "record.json"
    settings = [f"--config.{name}={value}" for name, value in plan.settings.items()]
    compiled(
        f"--config=configs/{plan.recipe}",
        *settings,
        f"--topology={plan.topology}",
        f"--json={path}",
    )
    record = json.loads(path.read_text())
    assert record["share"] < reports.LIMIT
    page = (ROOT / "docs" / "pods.md").read_text()
    assert f"`{plan.name}` | {plan.topology}" in page


@pytest.mark.slow
def test_the_search_leaves_what_does_not_fit(tmp_path):
    """A batch whose activations need rematerialization or micro-batches on so few chips."""
    out = compiled(
        "--config=configs/scaling.py:mdlm-6M",
        "--config.train.batch_size=256",
        "--config.train.loss_chunk=1024",
        "--topology=v5e:2x2",
        "--fit",
    )
    assert "fastest that fits: --config.train.accumulate=" in out and "fits: " in out
