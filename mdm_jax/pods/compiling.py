"""Compiles a train step, and a step of sampling, for a machine that is not here."""

import re
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import mdm_jax as mdm
from mdm_jax import draws
from mdm_jax.pods import collectives
from mdm_jax.pods.collectives import Traffic
from mdm_jax.pods.topologies import Topology
from mdm_jax.train.activations import rows_in_place
from mdm_jax.train.families import make_family
from mdm_jax.train.fields import checked
from mdm_jax.train.learners import Learner, build_learner, choose_axes
from mdm_jax.train.meshes import batch_sharding, batch_ways, make_mesh
from mdm_jax.train.networks import make_network
from mdm_jax.train.step import check_batch


class Memory(NamedTuple):
    """Bytes on one chip while a program runs.

    Attributes:
        arguments: the train state, the batch.
        temporaries: what is made and forgotten inside; 0 if not known.
        outputs: results that take no argument's place.
        code: the program.
    """

    arguments: int
    temporaries: int = 0
    outputs: int = 0
    code: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self)


class Compiled(NamedTuple):
    """What the compiler says about a program.

    Attributes:
        memory: bytes on a chip.
        traffic: its collectives, or None if its text could not be read.
        seconds: how long it took to compile here; 0.0 if it was only lowered.
    """

    memory: Memory
    traffic: Traffic | None
    seconds: float


class TooLargeError(ValueError):
    """A program that the compiler could not fit into the memory of a chip.

    Attributes:
        needed: bytes of its temporaries, as far as the compiler said; 0 if it did not.
    """

    def __init__(self, message: str, needed: int = 0):
        super().__init__(message)
        self.needed = needed


def learner_for(config: Mapping[str, Any], vocab_size: int, topology: Topology) -> Learner:
    """Builds what a config trains on the mesh it names, of a topology's chips.

    Args:
        config: with every field, as of a recipe.
        vocab_size: data ids, those of its tokenizer.
        topology: from `mdm_jax.pods.topologies.describe`.

    Raises:
        ValueError: if the config is not valid, its mesh does not fit the topology, or its batch
            does not divide over mesh and micro-batches. The message names the fields.
    """
    whole = checked(config)
    family = make_family(whole, vocab_size)
    size = vocab_size if family.process is None else family.process.vocab_size
    network = make_network(whole["model"], size, family.num_ids)
    axes = choose_axes(whole, family, network, devices=topology.chips, memory=topology.chip.memory)
    mesh = make_mesh(axes, slices=whole["mesh"]["slices"], devices=topology.devices)
    learner = build_learner(whole, vocab_size, mesh=mesh)
    train = whole["train"]
    ways = batch_ways(mesh) * learner.family.rows_together
    check_batch(train["batch_size"], accumulate=train["accumulate"], devices=ways)
    return learner


def compile_train(learner: Learner, topology: Topology, phase: int = -1) -> Compiled:
    """Compiles the very step that a run calls, for shapes alone.

    Args:
        learner: from `learner_for`.
        topology: the machine; one without a compiler here is lowered only.
        phase: index in ``learner.family.objectives``, the last by default.

    Raises:
        TooLargeError: if it does not fit, with what to change.
    """
    rows, length = learner.config["train"]["batch_size"], learner.config["data"]["length"]
    batch = {
        "tokens": jax.ShapeDtypeStruct((rows, length), jnp.int32),
        "where": jax.ShapeDtypeStruct((rows, length), jnp.bool_),
    }
    state = jax.eval_shape(learner.create_state)
    placed = (learner.shardings(), batch_sharding(learner.mesh))
    return _compiled(learner.steps()[phase], (state, batch), placed, topology)


def compile_sample(learner: Learner, topology: Topology, rows: int = 1) -> Compiled:
    """Compiles one step of sampling: a call of the model, and the draw of the next tokens.

    The draw is the ancestral one of the process, or that of the next token. Objectives whose
    samplers need more than a plain call (blocks, Eso-LM's order, scores) compile the call alone.

    Args:
        learner: from `learner_for`.
        topology: the machine.
        rows: sequences on each slice of the mesh.

    Raises:
        TooLargeError: if it does not fit.
    """
    mesh, config = learner.mesh, learner.config
    shape = (rows * batch_ways(mesh), config["data"]["length"])
    sharding = batch_sharding(mesh)
    step = jax.jit(
        sampling_step(learner),
        in_shardings=(learner.shardings().params, None, sharding, None, None),
    )
    params = jax.eval_shape(learner.create_state).params
    key = jax.eval_shape(lambda: jax.random.key(0))
    time_ = jax.ShapeDtypeStruct((), jnp.float32)
    arguments = (params, key, jax.ShapeDtypeStruct(shape, jnp.int32), time_, time_)
    placed = (learner.shardings().params, None, sharding, None, None)
    return _compiled(step, arguments, placed, topology)


def sampling_step(learner: Learner) -> Callable[..., jax.Array]:
    """Returns ``(params, key, tokens int32[B, L], t, s) -> tokens``, see `compile_sample`.

    Where there is a call alone, it returns the most probable token at every position.
    """
    process, network = learner.process, learner.network
    sampler = None
    if learner.family.plain and process is not None:
        sampler = mdm.ancestral(process)

    def step(params: Any, key: jax.Array, tokens: jax.Array, t: jax.Array, s: jax.Array) -> Any:
        inputs: dict[str, Any] = {"tokens": tokens}
        if learner.config["model"]["time_conditioning"] and process is not None:
            inputs["sigma"] = jnp.broadcast_to(process.schedule.sigma(t), tokens.shape[:1])
        if learner.family.learned_noise is not None:
            params = params["denoiser"]
        with rows_in_place(learner.mesh):
            logits = network.call(params, inputs, None)
        if sampler is not None:
            return sampler.step(key, logits, tokens, sampler.init(tokens), t, s, keep=None)[0]
        if process is None:
            return draws.categorical(key, logits[:, -1])
        return jnp.argmax(logits, axis=-1)

    return step


def _compiled(step: Any, arguments: Any, placed: Any, topology: Topology) -> Compiled:
    """Lowers and compiles; without a compiler, the arguments' bytes are all that is known."""
    if not topology.compiles:
        step.trace(*arguments).lower(lowering_platforms=("cuda",))
        return Compiled(Memory(_argument_bytes(arguments, placed)), None, 0.0)
    lowered = step.lower(*arguments)
    start = time.perf_counter()
    try:
        compiled = lowered.compile()
    except Exception as error:
        raise _explained(error, topology) from error
    seconds = time.perf_counter() - start
    found = compiled.memory_analysis()
    memory = Memory(
        arguments=found.argument_size_in_bytes,
        temporaries=found.temp_size_in_bytes,
        outputs=found.output_size_in_bytes - found.alias_size_in_bytes,
        code=found.generated_code_size_in_bytes,
    )
    try:
        text = compiled.as_text()
    except Exception:  # of some modules the compiler gives no text: said in the report
        text = None
    traffic = None if text is None else collectives.read(text, topology.chips)
    return Compiled(memory, traffic, seconds)


def _argument_bytes(arguments: Any, placed: Any) -> int:
    """Bytes of the arguments on one device, from their shardings."""
    total = 0
    for argument, sharding in zip(arguments, placed, strict=True):
        leaves = jax.tree.leaves(argument)
        places = jax.tree.leaves(sharding)
        if len(places) != len(leaves):
            places = [sharding] * len(leaves)
        for leaf, place in zip(leaves, places, strict=True):
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                continue
            shape = leaf.shape if place is None else place.shard_shape(leaf.shape)
            size = leaf.dtype.itemsize
            for side in shape:
                size *= side
            total += size
    return total


def _explained(error: Exception, topology: Topology) -> Exception:
    """An error of the compiler as one that says what to change, or the error itself."""
    text = str(error)
    if "RESOURCE_EXHAUSTED" not in text and "out of memory" not in text.lower():
        return error
    sizes = [_bytes(*found) for found in re.findall(r"\(?([\d.]+)([KMGT])\)?", text)]
    needed = max(sizes, default=0)
    over = f"{needed / 2**30:.1f} GiB of temporaries" if needed else "more memory"
    return TooLargeError(
        f"the step does not fit {topology.chip.name}: it needs {over}, and a chip has "
        f"{topology.chip.memory / 2**30:.1f} GiB in all. Raise train.accumulate or mesh.fsdp, set "
        "model.remat=full or train.loss_chunk=1024, or let --fit choose",
        needed,
    )


def _bytes(number: str, unit: str) -> int:
    return int(float(number) * 2 ** (10 * ("KMGT".index(unit) + 1)))
