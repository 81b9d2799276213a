"""Eight virtual devices and JAX's strict modes, set before any test touches a device."""

import os

# Before JAX looks for devices, and for the processes that tests start: with libtpu installed and no
# TPU, JAX's profiler would crash. JAX_PLATFORMS=cuda,cpu runs the tests of a GPU as well.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest

# A collective blocks a thread until all devices join it, and XLA starts several at once on each
# device: with as many threads as devices, which is all that a small machine gets, they deadlock.
os.environ.setdefault("NPROC", "64")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
# Most of a test's time is compilation, and tiny shapes gain nothing from XLA's optimizations: three
# times as fast without. MDM_TEST_OPTIMIZED=1 compiles as users do.
jax.config.update("jax_disable_most_optimizations", not os.environ.get("MDM_TEST_OPTIMIZED"))


@pytest.fixture
def optimized():
    """XLA's optimizations, for a test that computes longer than it compiles."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
