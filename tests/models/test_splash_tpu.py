"""Splash attention compiles for TPUs, forward and backward, on a machine without one."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("splash_for_tpu.py")


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="the TPU compiler is not installed: pip install 'mdm-jax[aot]'",
)
def test_kernels_compile_for_a_tpu_forward_and_backward():
    root = str(PROGRAM.parents[2])
    settings = {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "PYTHONPATH": root}
    settings["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # it compiles beside others that do
    done = subprocess.run(
        [sys.executable, str(PROGRAM)],
        env=os.environ | settings,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    # One kernel forward, and two backward: the gradients of queries, and of keys and values.
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "bidirectional": 3,
        "two streams": 3,
        "causal segments": 3,
        "computed again": 4,
        "saved by name": 3,
        "a model": 3,
    }
