"""How fast a training step is: beside other programs, and beside the device's largest products."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mdm_jax.train.cost import step_flops
from mdm_jax.train.learners import Learner
from mdm_jax.train.meshes import make_mesh


def seconds(
    candidates: Mapping[str, Callable[[], object]], rounds: int, repeats: int = 1
) -> dict[str, float]:
    """Returns the median seconds of each candidate, run in turn after one warm-up each.

    Args:
        candidates: what to time, by name. What they return is waited for.
        rounds: how often each is timed.
        repeats: calls in a row that are timed together, and divided by.

    Examples:
        >>> sorted(seconds({"a": lambda: jnp.zeros(1), "b": lambda: jnp.ones(1)}, rounds=1))
        ['a', 'b']
    """
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(rounds + 1):
        for name, run in candidates.items():
            start = time.perf_counter()
            for _ in range(repeats if number else 1):
                jax.block_until_ready(run())
            if number:  # round 0 compiles
                times[name].append((time.perf_counter() - start) / repeats)
    return {name: statistics.median(values) for name, values in times.items()}


def product(size: int, dtype: str) -> Callable[[], jax.Array]:
    """Returns a function that multiplies two square matrices: 2 size^3 FLOPs.

    Its rate is what a device reaches, which is below what its maker says it could.

    Args:
        size: of the matrices.
        dtype: of the matrices and their product.

    Examples:
        >>> product(4, "bfloat16")().shape
        (4, 4)
    """
    matrix = jnp.ones((size, size), dtype) / size
    square = jax.jit(lambda a: a @ a)
    return lambda: square(matrix)


def stepper(learner: Learner) -> Callable[[], object]:
    """Returns ``step() -> metrics``: the last phase's training step on one batch of random ids.

    The state lives in the function, so that each call is the next step of a run.

    Args:
        learner: what to train; its config gives the batch.

    Examples:
        With the learner of ``configs/quickstart.py``::

            step = stepper(learner)
            step()["loss"].mean()  # 5.57, the entropy of a guess among the bytes
    """
    section = learner.config
    shape = (section["train"]["batch_size"], section["data"]["length"])
    process = learner.process
    size = learner.family.num_ids if process is None else process.vocab_size
    tokens = jax.random.randint(jax.random.key(0), shape, 0, size)
    batch = {"tokens": tokens, "where": jnp.ones(shape, jnp.bool_)}
    state = jax.jit(learner.create_state, out_shardings=learner.shardings())()
    step = learner.steps()[-1]

    def take() -> object:
        nonlocal state  # the step donates its state
        state, metrics = step(state, batch)
        return metrics

    return take


class Utilization(NamedTuple):
    """What a training step makes of a device.

    Attributes:
        seconds: of a step.
        flops: FLOP/s of a step, attention included; rematerialized ones are not counted.
        without_attention: the same without the products inside attention.
        peak: FLOP/s of the large product.
    """

    seconds: float
    flops: float
    without_attention: float
    peak: float

    @property
    def share(self) -> float:
        """Of the measured peak: "MFU" with what was measured in place of the data sheet."""
        return self.flops / self.peak


def utilization(learner: Learner, *, size: int, rounds: int, repeats: int = 1) -> Utilization:
    """Times a training step and a large product of its dtype in turn, on one device.

    Args:
        learner: what to train.
        size: of the product's matrices: 2048 for a CPU, 8192 for an accelerator.
        rounds: how often each is timed.
        repeats: steps, or products, timed together.

    Raises:
        ValueError: if the learner's mesh has several devices.

    Examples:
        With the learner of ``configs/quickstart.py``::

            utilization(learner, size=2048, rounds=5).share  # 0.3 on a 2-core machine
    """
    if learner.mesh.size != 1:
        raise ValueError(
            f"a mesh of {learner.mesh.size} devices: utilization is measured on one, so make one "
            "visible (CUDA_VISIBLE_DEVICES=0, TPU_VISIBLE_CHIPS=0)"
        )
    dtype = learner.config["model"]["dtype"]
    measured = seconds({"step": stepper(learner), "product": product(size, dtype)}, rounds, repeats)
    counted = step_flops(learner)
    return Utilization(
        seconds=measured["step"],
        flops=counted.total / measured["step"],
        without_attention=counted.without_attention / measured["step"],
        peak=2 * size**3 / measured["product"],
    )


def one_device() -> jax.sharding.Mesh:
    """Returns a mesh of the first device, for measurements of one.

    Examples:
        >>> one_device().size
        1
    """
    axes = {"data": 1, "fsdp": 1, "tensor": 1, "sequence": 1}
    return make_mesh(axes, devices=jax.devices()[:1])
