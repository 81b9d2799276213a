"""How much of the devices a training uses: FLOPs of a step, their peak, their memory."""

from typing import NamedTuple

import jax

from mdm_jax.train import cost
from mdm_jax.train.learners import Learner

# Dense bfloat16 TFLOP/s of what JAX counts as one device, from the makers' data sheets. (A device
# is half a chip on TPU v2 and v3. GPUs of one generation differ: only names seen in data sheets.)
_PEAK_TFLOPS = {
    "TPU v2": 22.5,
    "TPU v3": 61.5,
    "TPU v4": 275.0,
    "TPU v5 lite": 197.0,
    "TPU v5e": 197.0,
    "TPU v5": 459.0,
    "TPU v5p": 459.0,
    "TPU v6 lite": 918.0,
    "TPU v6e": 918.0,
    "NVIDIA A100-SXM4-40GB": 312.0,
    "NVIDIA A100-SXM4-80GB": 312.0,
    "NVIDIA H100 80GB HBM3": 989.0,
    "NVIDIA H100 PCIe": 756.0,
    "NVIDIA H200": 989.0,
}


class StepFlops(NamedTuple):
    """FLOPs of one training step on all devices, by two conventions.

    A backward pass counts as two forward passes; what rematerialization computes again does not
    count.

    Attributes:
        counted: matmuls with weights, and the products inside attention.
        six_n: matmuls with weights alone: the rule "6 N per token", where N is the number of
            weights that a token is multiplied with (the head's among them, an embedding's not).
    """

    counted: float
    six_n: float


def step_flops(learner: Learner) -> StepFlops:
    """Returns the FLOPs of a step of the objective that training ends with.

    They are those of `mdm_jax.train.cost.step_flops`: of every row and position that goes through
    the network, padding too, and of the pairs that attention lets see each other.

    Examples:
        With ``configs/quickstart.py``, 32 windows of 128 bytes::

            step_flops(learner).six_n  # 2.01e10, 6 N x 4096 tokens with N = 819,456
    """
    flops = cost.step_flops(learner)
    return StepFlops(float(flops.total), float(flops.without_attention))


def peak_flops(device_kind: str, tflops: float = 0.0) -> float | None:
    """Returns the peak of one device, in FLOP/s of dense bfloat16 products; None if not known.

    Args:
        device_kind: as ``jax.devices()[0].device_kind`` says.
        tflops: what to take instead, such as a measured rate, in TFLOP/s; 0: the makers' figure.

    Examples:
        >>> peak_flops("TPU v5 lite"), peak_flops("cpu"), peak_flops("cpu", tflops=0.3)
        (197000000000000.0, None, 300000000000.0)
    """
    known = tflops or _PEAK_TFLOPS.get(device_kind)
    return None if not known else 1e12 * known


def device_memory() -> dict[str, float]:
    """Returns the memory of the fullest device of this process, in GiB; nothing where unknown.

    ``memory_gib`` is in use now, ``memory_peak_gib`` was at most, and ``memory_limit_gib`` may be.

    Examples:
        >>> sorted(device_memory()) in ([], ["memory_gib", "memory_limit_gib", "memory_peak_gib"])
        True
    """
    stats = [device.memory_stats() for device in jax.local_devices()]
    names = {
        "memory_gib": "bytes_in_use",
        "memory_peak_gib": "peak_bytes_in_use",
        "memory_limit_gib": "bytes_limit",
    }
    return {
        name: max(one[key] for one in stats if one) / 2**30
        for name, key in names.items()
        if any(stats) and all(key in one for one in stats if one)
    }
