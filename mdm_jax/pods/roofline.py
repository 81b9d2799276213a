"""How long a step must take at least: arithmetic, memory and network at their peaks.

These are bounds from data sheets, not predictions: published runs of such models reach 0.35 to 0.6
of the peak. They compare plans with one another.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from mdm_jax.models.flops import Flops
from mdm_jax.pods.collectives import Traffic
from mdm_jax.pods.topologies import Topology

# Bytes a layer moves per token and unit of width in the forward pass, float32 residual stream and
# bfloat16 branches, every fused group of operations reading its inputs and writing its outputs
# once: two norms (6 each), qkv (8), rotation (8), attention (8), its projection (4), two additions
# to the stream (10 each), and an MLP four widths wide (10 in, 10 out). A backward pass moves twice
# as much.
_LAYER_BYTES = 80
_AGAIN = ("full", "attention")  # policies under which blocks are computed again
_SCORE_BYTES = 12  # per pair and head where attention writes its scores out: float32 and bfloat16
_LOGIT_BYTES = 12  # per logit: written, read for the loss, and the gradient likewise


class Roofline(NamedTuple):
    """Seconds of a step on every chip, each resource at its peak and alone.

    Attributes:
        compute: arithmetic, recomputation with it.
        memory: bytes moved to and from HBM, an estimate (see the module's constants).
        network: bytes over the links between chips.
        flops: of the model, per chip, without recomputation; attention's visible pairs counted.
        peak: FLOP/s of the chip.
    """

    compute: float
    memory: float
    network: float
    flops: float
    peak: float

    @property
    def step(self) -> float:
        """The slowest of the three: everything overlaps."""
        return max(self.compute, self.memory, self.network)

    @property
    def apart(self) -> float:
        """Their sum: nothing overlaps."""
        return self.compute + self.memory + self.network

    @property
    def mfu(self) -> tuple[float, float]:
        """The MFU of these two, the lower first."""
        return self.flops / self.apart / self.peak, self.flops / self.step / self.peak


def executed(flops: Flops, remat: str, *, writes_scores: bool) -> int:
    """Returns the FLOPs that a step runs, given those of its forward and backward pass.

    Args:
        flops: from `mdm_jax.train.cost.step_flops`.
        remat: the policy of `mdm_jax.models.remat`. "full" runs the blocks' forward pass again,
            "attention" about half of their matmuls. Both that and "dots" keep what a kernel of
            attention returned, while scores that were written out are made again.
        writes_scores: True of attention that computes every pair and keeps the scores (XLA's);
            False of a kernel that skips hidden pairs and makes scores again in its backward pass,
            which takes 7 products there in place of 4.

    Examples:
        >>> step = Flops(blocks=300, head=30, attention=30, pairs=60)
        >>> executed(step, "none", writes_scores=True), executed(step, "full", writes_scores=True)
        (390, 510)
    """
    forward = (flops.pairs if writes_scores else flops.attention) // 3
    attention = forward * 3 if writes_scores else forward + forward * 7 // 2
    again = {"none": 0, "full": forward}.get(remat, forward // 2 if writes_scores else 0)
    blocks = {"full": flops.blocks // 3, "attention": flops.blocks // 6}.get(remat, 0)
    return flops.without_attention + attention + again + blocks


def hbm_bytes(shape: Mapping[str, Any]) -> float:
    """Returns an estimate of the bytes that a step moves to and from the HBM of each chip.

    Args:
        shape: ``parameters`` of the model; ``state``, bytes of the train state on a chip;
            ``tokens`` that a chip feeds to the blocks in a step; ``logits`` it makes; ``layers``,
            ``width``, ``heads``; ``length`` of a row; ``tensor``, over how many chips a layer is
            spread; ``accumulate``; ``remat``; ``writes_scores``.
    """
    passes = 4 if shape["remat"] in _AGAIN else 3
    weights = shape["parameters"] / shape["tensor"]
    # Weights in bfloat16 in every pass of every micro-batch, gathered (written) and read; gradients
    # in float32 written and read; the state read and written once.
    moved = shape["accumulate"] * weights * (passes * 2 * 2 + 8) + 2 * shape["state"]
    layer = _LAYER_BYTES * shape["width"]
    if shape["writes_scores"]:
        layer += _SCORE_BYTES * shape["heads"] * shape["length"]
    moved += passes * shape["tokens"] * shape["layers"] * layer / shape["tensor"]
    return moved + _LOGIT_BYTES * shape["logits"] / shape["tensor"]


def network_seconds(traffic: Traffic, topology: Topology) -> float:
    """Returns the seconds that the collectives take on rings over the links, at their peak.

    A ring goes both ways around every axis of the torus that its group must span; GPUs have a
    switch. One link's latency, and the data-center network between slices, are left out.

    Args:
        traffic: from `mdm_jax.pods.collectives.read`.
        topology: of the machine.
    """
    total = 0.0
    for one in traffic.found:
        if one.group < 2:
            continue
        if one.kind == "collective-permute":
            total += one.times * one.size / topology.chip.link
            continue
        share = (one.group - 1) / one.group
        twice = 2 if one.kind == "all-reduce" else 1
        wire = one.times * one.size * share * twice
        total += wire / ring_bandwidth(topology, one.group)
    return total


def sharded_traffic(shape: Mapping[str, Any], topology: Topology, mesh: Mapping[str, int]) -> float:
    """Returns the network seconds of sharded parameters, from the config alone.

    Two gathers (three where blocks are computed again) and one reduction of bfloat16 weights and
    float32 gradients for each micro-batch over "fsdp", and their sum over "data" once.
    """
    fsdp, data = mesh.get("fsdp", 1), mesh.get("data", 1)
    weights = shape["parameters"] / shape["tensor"]
    seconds = 0.0
    if fsdp > 1:
        gathers = 3 if shape["remat"] in _AGAIN else 2
        wire = shape["accumulate"] * weights * (2 * gathers + 4) * (fsdp - 1) / fsdp
        seconds += wire / ring_bandwidth(topology, fsdp)
    if data > 1:
        wire = 2 * 4 * weights / fsdp * (data - 1) / data
        seconds += wire / ring_bandwidth(topology, data)
    return seconds


def ring_bandwidth(topology: Topology, group: int) -> float:
    """Bytes/s at which a group of chips gathers: both ways around each axis it must span.

    Examples:
        >>> from mdm_jax.train.chips import CHIPS
        >>> pod = Topology("v5e:4x4", CHIPS["v5e"], (4, 4), 1, (None,) * 16)
        >>> ring_bandwidth(pod, 4) / 1e9, ring_bandwidth(pod, 16) / 1e9
        (100.0, 200.0)
    """
    chip = topology.chip
    if not chip.axes:
        return chip.link
    sides = sorted(topology.sides, reverse=True)
    spanned = next((n for n in range(1, len(sides)) if math.prod(sides[:n]) >= group), len(sides))
    return 2 * chip.link * spanned
