"""How much of the devices a training uses: FLOPs of a step, their peak, their memory."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mdm_jax.models.configs import DiTConfig, flops_per_token
from mdm_jax.models.smdm_configs import SMDMConfig, smdm_flops_per_token
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


def step_flops(learner: Learner) -> StepFlops | None:
    """Returns the FLOPs of a step of the objective that training ends with.

    They are those of every row and position that goes through the network, padding too: both
    streams of block diffusion, each call of an objective with several, each noise of GenMD4, and a
    forward pass of the teacher. Attention that is not plainly causal counts as if it saw all.

    Returns:
        `StepFlops`, or None where the FLOPs of the network are not known.

    Examples:
        With ``configs/quickstart.py``, 32 windows of 128 bytes::

            step_flops(learner).six_n  # 2.01e10, 6 N x 4096 tokens with N = 819,456
    """
    config, section = learner.network.module.config, learner.config
    rows = (section["train"]["batch_size"], section["data"]["length"])
    tokens, where = (jax.ShapeDtypeStruct(rows, dtype) for dtype in (jnp.int32, jnp.bool_))
    inputs = jax.eval_shape(
        lambda tokens, where: _arrays(
            learner.objective.prepare(jax.random.key(0), tokens, where, jnp.int32(0))[0]
        ),
        tokens,
        where,
    )
    # A teacher reads, and learns nothing.
    passes = (3, 1) if learner.family.teacher_every else (3,) * len(inputs)
    counted = six_n = 0.0
    for factor, call in zip(passes, inputs, strict=True):
        flops = _call_flops(config, call)
        if flops is None:
            return None
        counted += factor * flops.counted
        six_n += factor * flops.six_n
    return StepFlops(counted, six_n)


def _arrays(inputs: Any) -> tuple[dict[str, jax.Array], ...]:
    """The arrays of each call of the model, without the descriptions of masks."""
    calls = inputs if isinstance(inputs, tuple) else (inputs,)
    return tuple({k: v for k, v in call.items() if isinstance(v, jax.Array)} for call in calls)


def _call_flops(config: Any, inputs: Mapping[str, jax.ShapeDtypeStruct]) -> StepFlops | None:
    """FLOPs of one forward call."""
    per_token = {DiTConfig: flops_per_token, SMDMConfig: smdm_flops_per_token}.get(type(config))
    if per_token is None:
        return None
    rows, length = inputs["tokens"].shape[:2]
    rows *= inputs["uniforms"].shape[1] if "uniforms" in inputs else 1
    length *= 2 if "clean" in inputs else 1
    counts = [rows * length * per_token(config, length, attention=a) for a in (True, False)]
    return StepFlops(*counts)


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
