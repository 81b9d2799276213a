"""One plan, compiled, as a record of numbers; and records as text and as a table."""

from collections.abc import Mapping
from typing import Any

import jax

from mdm_jax.markdown import markdown_table
from mdm_jax.models.flops import Flops, block_weights
from mdm_jax.pods import roofline
from mdm_jax.pods.collectives import Traffic
from mdm_jax.pods.compiling import Compiled, compile_sample, compile_train, learner_for
from mdm_jax.pods.topologies import Topology
from mdm_jax.train.cost import step_flops
from mdm_jax.train.learners import Learner

LIMIT = 0.9
"""The share of a chip's memory that a plan may use: the rest is for what is not compiled here."""


def report(
    config: Mapping[str, Any], vocab_size: int, topology: Topology, *, sampler: bool = True
) -> dict[str, Any]:
    """Compiles the train step of a config, and a sampling step, and says what they take.

    Args:
        config: with every field.
        vocab_size: data ids of its tokenizer.
        topology: from `mdm_jax.pods.topologies.describe`.
        sampler: whether to compile the sampling step too.

    Returns:
        A record of plain numbers, which `text` and `table` print.

    Raises:
        TooLargeError: if the step does not fit a chip at all.
        ValueError: if the config is not valid, or does not fit the topology.
    """
    learner = learner_for(config, vocab_size, topology)
    compiled = compile_train(learner, topology)
    record = _record(learner, topology, compiled)
    if sampler:
        one = compile_sample(learner, topology)
        record["sampler"] = {"bytes": one.memory.total, "seconds": one.seconds}
    return record


def layout(learner: Learner, state: int) -> dict[str, Any]:
    """What `mdm_jax.pods.roofline` asks of a plan.

    Args:
        learner: from `learner_for`.
        state: bytes of the train state on a chip.
    """
    config: Any = learner.network.module.config  # pyright: ignore[reportAttributeAccessIssue]
    section = learner.config
    mesh, flops = dict(learner.mesh.shape), step_flops(learner)
    sharers = learner.mesh.size // mesh.get("tensor", 1)
    tokens = section["train"]["batch_size"] * section["data"]["length"] / sharers
    streams = flops.blocks / (3 * 2 * config.layers * block_weights(config)) / (tokens * sharers)
    return {
        "parameters": learner.network.parameters,
        "state": state,
        "tokens": tokens * streams,
        "logits": tokens * config.num_ids,
        "layers": config.layers,
        "width": config.width,
        "heads": config.heads,
        "length": section["data"]["length"],
        "tensor": mesh.get("tensor", 1),
        "accumulate": section["train"]["accumulate"],
        "remat": section["model"]["remat"],
        "writes_scores": writes_scores(section),
    }


def writes_scores(config: Mapping[str, Any]) -> bool:
    """Whether attention computes every pair and keeps the scores, as XLA's does."""
    return config["model"]["attention"] == "xla"


def bound(
    shape: Mapping[str, Any],
    flops: Flops,
    topology: Topology,
    mesh: Mapping[str, int],
    traffic: Traffic | None = None,
) -> roofline.Roofline:
    """Returns the roofline of a plan.

    Args:
        shape: from `layout`.
        flops: from `mdm_jax.train.cost.step_flops`.
        topology: the machine.
        mesh: size by axis.
        traffic: the collectives of the compiled step; without them the network's seconds are an
            estimate from the config.
    """
    if traffic is not None:
        network = roofline.network_seconds(traffic, topology)
    else:
        network = roofline.sharded_traffic(shape, topology, mesh)
    ran = roofline.executed(flops, shape["remat"], writes_scores=shape["writes_scores"])
    return roofline.Roofline(
        compute=ran / topology.chips / topology.chip.flops,
        memory=roofline.hbm_bytes(shape) / topology.chip.bandwidth,
        network=network,
        flops=flops.total / topology.chips,
        peak=topology.chip.flops,
    )


def state_bytes(learner: Learner) -> int:
    """Returns the bytes of the train state on one chip, from its shardings."""
    total = 0
    state = jax.eval_shape(learner.create_state)
    for leaf, place in zip(
        jax.tree.leaves(state), jax.tree.leaves(learner.shardings()), strict=True
    ):
        size = leaf.dtype.itemsize
        for side in place.shard_shape(leaf.shape):
            size *= side
        total += size
    return total


def _record(learner: Learner, topology: Topology, compiled: Compiled) -> dict[str, Any]:
    config, memory, traffic = learner.config, compiled.memory, compiled.traffic
    flops, shape = step_flops(learner), layout(learner, memory.arguments)
    line = bound(shape, flops, topology, learner.mesh.shape, traffic)
    rows, length = config["train"]["batch_size"], config["data"]["length"]
    low, high = line.mfu
    return {
        "topology": topology.name,
        "chip": topology.chip.name,
        "chips": topology.chips,
        "mesh": {name: size for name, size in learner.mesh.shape.items() if size > 1},
        "objective": config["objective"]["name"],
        "parameters": learner.network.parameters,
        "rows": rows,
        "length": length,
        "accumulate": config["train"]["accumulate"],
        "loss_chunk": config["train"]["loss_chunk"],
        "remat": config["model"]["remat"],
        "attention": config["model"]["attention"],
        "dtype": config["model"]["dtype"],
        "bytes": {**memory._asdict(), "total": memory.total, "chip": topology.chip.memory},
        "share": memory.total / topology.chip.memory,
        "compiled": topology.compiles,
        "flops": {
            "with_attention": flops.total,
            "without_attention": flops.without_attention,
            "executed": roofline.executed(
                flops, shape["remat"], writes_scores=shape["writes_scores"]
            ),
        },
        "collectives": None if traffic is None else traffic.by_kind(),
        "open_loops": None if traffic is None else traffic.loops,
        "seconds": {"compute": line.compute, "memory": line.memory, "network": line.network},
        "step_seconds": [line.step, line.apart],
        "mfu": [low, high],
        "tokens_per_second": [rows * length / line.apart, rows * length / line.step],
        "compile_seconds": compiled.seconds,
        "jax": jax.__version__,
    }


def verdict(record: Mapping[str, Any]) -> str:
    """Says whether a plan fits, and if not by how much and what to change.

    Examples:
        >>> verdict({"share": 0.5, "compiled": True, "bytes": {"total": 8, "chip": 16}})
        'fits: 50 % of the memory of a chip, at most 90 % are allowed'
    """
    share, sizes = record["share"], record["bytes"]
    if not record["compiled"]:
        return (
            "not known: the state alone takes "
            f"{100 * share:.0f} % of the memory, and a GPU's temporaries need its compiler"
        )
    if share <= LIMIT:
        return f"fits: {100 * share:.0f} % of the memory of a chip, at most 90 % are allowed"
    over = (sizes["total"] - LIMIT * sizes["chip"]) / 2**30
    return (
        f"does not fit: {over:.1f} GiB above 90 % of the memory of a chip. Raise train.accumulate "
        "or mesh.fsdp, set model.remat=full or train.loss_chunk=1024, or let --fit choose"
    )


def text(record: Mapping[str, Any]) -> str:
    """Returns a record as lines to read, with what the estimates assume."""
    gib = {name: size / 2**30 for name, size in record["bytes"].items()}
    tokens = record["rows"] * record["length"]
    flops, seconds = record["flops"], record["seconds"]
    lines = [
        f"{record['topology']}: {record['chips']} x {record['chip']}, mesh {record['mesh']}",
        f"  model       {record['parameters']:,} parameters, objective {record['objective']}, "
        f"{record['dtype']} matmuls, attention {record['attention']}",
        f"  batch       {record['rows']} x {record['length']} = {tokens:,} tokens in "
        f"{record['accumulate']} micro-batch(es), remat {record['remat']}, "
        f"loss_chunk {record['loss_chunk']}",
        f"  bytes       {gib['total']:.2f} of {gib['chip']:.2f} GiB on a chip: "
        f"{gib['arguments']:.2f} state and batch, {gib['temporaries']:.2f} temporaries, "
        f"{gib['outputs']:.2f} outputs, {gib['code']:.2f} code",
        f"  verdict     {verdict(record)}",
        f"  FLOPs       {flops['with_attention']:.3e} a step, {flops['without_attention']:.3e} "
        f"without attention, {flops['executed']:.3e} executed (recomputation, hidden pairs)",
        f"  collectives {_said(record)}",
        f"  roofline    {1e3 * seconds['compute']:.0f} ms arithmetic, "
        f"{1e3 * seconds['memory']:.0f} ms memory, {1e3 * seconds['network']:.0f} ms network",
        f"  step        {1e3 * record['step_seconds'][0]:.0f} ms if all overlaps, "
        f"{1e3 * record['step_seconds'][1]:.0f} ms if nothing does: MFU at most "
        f"{100 * record['mfu'][1]:.0f} % and {100 * record['mfu'][0]:.0f} %",
    ]
    if record["compiled"]:
        lines.append(f"  compiled    in {record['compile_seconds']:.0f} s, jax {record['jax']}")
    else:
        lines.append("  compiled    no: lowered for CUDA only; memory and network are estimates")
    if "sampler" in record:
        size, took = record["sampler"]["bytes"] / 2**30, record["sampler"]["seconds"]
        lines.append(f"  sampling    {size:.2f} GiB on a chip, compiled in {took:.0f} s")
    lines.append(
        "  assumed     peaks of the data sheet; bytes of XLA's usual fusions; rings over the "
        "fewest axes, no latency; the head at every position. Bounds, not a measurement"
    )
    return "\n".join(lines)


def _said(record: Mapping[str, Any]) -> str:
    found = record["collectives"]
    if found is None:
        return "not readable"
    parts = [f"{count} {kind} of {size / 1e9:.2f} GB" for kind, (count, size) in found.items()]
    loops = record["open_loops"]
    open_ = f"; {loops} loop(s) of unknown length counted once" if loops else ""
    return (", ".join(parts) or "none") + open_


def table(records: list[Mapping[str, Any]]) -> str:
    """Returns plans as a Markdown table.

    Args:
        records: of `report`, each with its ``plan``, the recipe and what is set beside it.
    """
    header = (
        *("recipe", "slice", "mesh", "batch", "remat", "GiB per chip", "of HBM"),
        *("step, ms", "MFU at most", "sampling, GiB", "compiled, s"),
    )
    rows = []
    for record in records:
        mesh = " x ".join(f"{name} {size}" for name, size in record["mesh"].items()) or "1"
        micro = f" / {record['accumulate']}" if record["accumulate"] > 1 else ""
        rows.append(
            (
                f"`{record['plan']}`",
                f"{record['topology']}",
                mesh,
                f"{record['rows']} x {record['length']}{micro}",
                record["remat"],
                f"{record['bytes']['total'] / 2**30:.2f}",
                f"{100 * record['share']:.0f} %",
                f"{1e3 * record['step_seconds'][0]:.0f} to {1e3 * record['step_seconds'][1]:.0f}",
                f"{100 * record['mfu'][0]:.0f} to {100 * record['mfu'][1]:.0f} %",
                f"{record['sampler']['bytes'] / 2**30:.2f}" if "sampler" in record else "",
                f"{record['compile_seconds']:.0f}",
            )
        )
    return markdown_table(header, rows)
