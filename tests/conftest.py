"""Eight virtual devices and JAX's strict modes, set before any test touches a device."""

import gc
import mmap
import os
import tempfile
from pathlib import Path

# Before JAX looks for devices, and for the processes that tests start: with libtpu installed and no
# TPU, JAX's profiler would crash. JAX_PLATFORMS=cuda,cpu runs the tests of a GPU as well.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jaxlib
import pytest

# A collective blocks a thread until all devices join it, and XLA starts several at once on each
# device: with as many threads as devices, which is all that a small machine gets, they deadlock.
os.environ.setdefault("NPROC", "64")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
# Most of a test's time is compilation, and tiny shapes gain nothing from XLA's optimizations: three
# times as fast without, and twice as fast again with XLA's older way to emit loops.
# MDM_TEST_OPTIMIZED=1 compiles as users do.
FAST = not os.environ.get("MDM_TEST_OPTIMIZED")
jax.config.update("jax_disable_most_optimizations", FAST)

# What is compiled once in this process, such as the step of one config, is not compiled again.
COMPILED = tempfile.TemporaryDirectory()
jax.config.update("jax_compilation_cache_dir", COMPILED.name)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def is_flag(name: str) -> bool:
    """Whether this XLA has a flag: it ends the process if it is given one that it does not know."""
    library = Path(jaxlib.__file__).parent / "libjax_common.so"
    if not library.exists():
        return False
    with (
        library.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        return content.find(name.encode()) >= 0


# The workers of pytest-xdist have it from the process that starts them.
LOOPS = "xla_cpu_use_fusion_emitters"
given = os.environ.get("XLA_FLAGS", "")
if FAST and LOOPS not in given and is_flag(LOOPS):
    os.environ["XLA_FLAGS"] = f"{given} --{LOOPS}=false"


def pytest_collection_finish():
    gc.freeze()  # what is imported stays: the collector need not look at it again and again


def pytest_unconfigure():
    COMPILED.cleanup()


@pytest.fixture
def optimized():
    """XLA's optimizations, for a test that computes longer than it compiles."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
