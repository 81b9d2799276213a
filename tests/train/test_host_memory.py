"""What a step frees is there for the next, on a CPU alone. In processes of their own: it lasts."""

import json
import os
import subprocess
import sys

import pytest

PROGRAM = """
import json, resource, sys
import jax, jax.numpy as jnp
from mdm_jax.train.host_memory import keep_freed_memory
done = keep_freed_memory() if "keep" in sys.argv else False
if "platforms" not in sys.argv:
    step = jax.jit(lambda x: jnp.sin(x).reshape(4, -1) @ jnp.cos(x).reshape(-1, 4) + x.sum())
    x = jnp.ones(2**22)
    def faults():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(5):
            step(x).block_until_ready()
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    print(json.dumps([done, [faults() for _ in range(8)][-1]]))
else:
    print(json.dumps([done, 0]))
"""


def ran(*arguments, platforms="cpu"):
    environment = os.environ | {"JAX_PLATFORMS": platforms, "JAX_NUM_CPU_DEVICES": "1"}
    command = [sys.executable, "-c", PROGRAM, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the C library is not glibc")
def test_a_step_finds_the_memory_of_the_one_before():
    """After a few that still find its two arrays of 16 MiB, 8192 pages, their places."""
    done, kept = ran("keep")
    _, returned = ran()
    assert done and kept < 500 < 5 * 4096 < returned


def test_with_an_accelerator_nothing_is_changed():
    assert ran("keep", "platforms", platforms="cuda,cpu") == [False, 0]
