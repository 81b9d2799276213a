"""How the C library deals with memory that a CPU's training step frees.

On a CPU, a step's arrays are blocks of the C library, and glibc gives large ones back to the
operating system as soon as they are freed: the next step asks for them again and every page is
cleared and mapped anew. That was a quarter of the quickstart's time (docs/benchmarks.md).
"""

import ctypes
import glob
import sys

import jax

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # of glibc's malloc.h
_ACCELERATORS = ("/dev/nvidia[0-9]*", "/dev/kfd", "/dev/accel*", "/dev/vfio/[0-9]*")


def keep_freed_memory() -> bool:
    """Makes this process keep freed memory for its next step, if it is to compute on the CPU.

    Call it before anything asks JAX for a device, whose threads else have heaps of their own. The
    process then never shrinks: it stays at what its largest step needed, and some more for what
    lies between blocks. With an accelerator nothing is changed, as its steps take their memory
    elsewhere.

    Returns:
        Whether it was done: False with an accelerator, and where the C library is not glibc.

    Examples:
        ::

            keep_freed_memory()  # True on a Linux machine without accelerators
    """
    platforms = jax.config.values["jax_platforms"]
    if platforms != "cpu" and (platforms or any(glob.glob(path) for path in _ACCELERATORS)):
        return False
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    # Never trim; no block mapped on its own; one heap, as only the first can grow large.
    settings = ((_TRIM_THRESHOLD, -1), (_MMAP_MAX, 0), (_ARENA_MAX, 1))
    done = [library.mallopt(*setting) == 1 for setting in settings]
    return all(done)
