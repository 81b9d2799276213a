"""The fastest plan that fits: micro-batches, rematerialization and mesh, compiled until one does.

Every candidate computes the same step. Candidates are ordered by their roofline, from the config
alone, and compiled in that order; one that the state alone rules out is not compiled, nor one that
needs more memory than another that was compiled and did not fit.
"""

import copy
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from mdm_jax.pods.compiling import TooLargeError, learner_for
from mdm_jax.pods.reports import LIMIT, bound, layout, report, state_bytes
from mdm_jax.pods.topologies import Topology
from mdm_jax.train.cost import step_flops
from mdm_jax.train.meshes import batch_ways

REMAT = ("none", "dots", "attention", "full")  # in the order of their memory, most first


class Candidate(NamedTuple):
    """A way to carry out a step.

    Attributes:
        accumulate: micro-batches.
        remat: policy, one of `REMAT`.
        fsdp: chips that share the parameters.
        tensor: chips that share a layer's heads and widths.
        seconds: the roofline's, all overlapping.
        state: bytes of the train state on a chip.
    """

    accumulate: int
    remat: str
    fsdp: int
    tensor: int
    seconds: float
    state: int

    @property
    def settings(self) -> dict[str, Any]:
        """The fields of a config that say so."""
        return {
            "train.accumulate": self.accumulate,
            "model.remat": self.remat,
            "mesh.data": -1,
            "mesh.fsdp": self.fsdp,
            "mesh.tensor": self.tensor,
        }

    def lighter_than(self, other: "Candidate") -> bool:
        """Whether this needs less memory in some respect: only then might it fit."""
        return (
            self.accumulate > other.accumulate
            or REMAT.index(self.remat) > REMAT.index(other.remat)
            or self.fsdp * self.tensor > other.fsdp * other.tensor
        )


class Fit(NamedTuple):
    """What a search found.

    Attributes:
        record: `mdm_jax.pods.reports.report` of the fastest plan that fits.
        chosen: its settings.
        tried: every candidate that was compiled, with its share of a chip's memory, or None if it
            was too large to compile.
    """

    record: dict[str, Any]
    chosen: Candidate
    tried: tuple[tuple[Candidate, float | None], ...]


def fit(
    config: Mapping[str, Any],
    vocab_size: int,
    topology: Topology,
    *,
    most: int = 12,
    say: Callable[[str], None] = lambda line: None,
) -> Fit:
    """Searches for the fastest plan under 90 % of a chip's memory.

    Args:
        config: with every field; its own settings of what is searched are not read.
        vocab_size: data ids of its tokenizer.
        topology: a TPU slice.
        most: candidates to compile before giving up.
        say: called with a line for each candidate.

    Raises:
        ValueError: if there is no compiler for the topology here, the batch fits no mesh of it, or
            nothing that was compiled fits: by how much the smallest did not, and what to change.
    """
    if not topology.compiles:
        raise ValueError(
            f"--fit needs a compiler for {topology.name}: a GPU's is there only where the GPU is. "
            "TPU topologies can be searched anywhere"
        )
    tried: list[tuple[Candidate, float | None]] = []
    for one in candidates(config, vocab_size, topology):
        failed = [c for c, share in tried if share is None or share > LIMIT]
        if not all(one.lighter_than(other) for other in failed):
            continue
        if len(tried) == most:
            break
        try:
            tuned = with_settings(config, one.settings)
            record = report(tuned, vocab_size, topology, sampler=False)
        except TooLargeError:
            tried.append((one, None))
            say(f"{one.settings}: too large to compile")
            continue
        tried.append((one, record["share"]))
        say(f"{one.settings}: {100 * record['share']:.0f} % of a chip's memory")
        if record["share"] <= LIMIT:
            return Fit(record, one, tuple(tried))
    shares = [share for _, share in tried if share is not None]
    nearest = f"the nearest took {100 * min(shares):.0f} %" if shares else "none could be compiled"
    raise ValueError(
        f"no plan of {topology.name} fits {100 * LIMIT:.0f} % of a chip's memory ({len(tried)} "
        f"compiled; {nearest}): take more chips, or set train.loss_chunk=1024, a smaller "
        "train.batch_size or a smaller model"
    )


def candidates(config: Mapping[str, Any], vocab_size: int, topology: Topology) -> list[Candidate]:
    """Returns what could be tried, the fastest first; of equal ones that with more memory to spare.

    Args:
        config: with every field.
        vocab_size: data ids.
        topology: of the machine.

    Raises:
        ValueError: if the batch divides over no mesh of the topology.
    """
    found, problem, rows = [], "", config["train"]["batch_size"]
    for fsdp, tensor in _meshes(topology.chips):
        plain = Candidate(1, "none", fsdp, tensor, 0.0, 0)
        try:
            learner = learner_for(with_settings(config, plain.settings), vocab_size, topology)
            state = state_bytes(learner)
        except ValueError as error:  # rows, widths or heads that do not divide
            problem = str(error)
            continue
        if state > LIMIT * topology.chip.memory:
            problem = f"the state takes {state / 2**30:.1f} GiB of a chip at mesh.fsdp={fsdp}"
            continue
        shape, flops, mesh = layout(learner, state), step_flops(learner), learner.mesh.shape
        least = batch_ways(learner.mesh) * learner.family.rows_together
        for accumulate, remat in itertools.product((1, 2, 4, 8, 16), REMAT):
            if rows % (least * accumulate):
                continue
            way = shape | {"accumulate": accumulate, "remat": remat}
            seconds = bound(way, flops, topology, mesh).step
            found.append(Candidate(accumulate, remat, fsdp, tensor, seconds, state))
    if not found:
        raise ValueError(
            f"no mesh of the {topology.chips} chips of {topology.name} takes this config: {problem}"
        )
    return sorted(found, key=lambda c: (c.tensor, round(c.seconds, 4), c.state, c.accumulate))


def with_settings(config: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a copy of a config in which dotted fields are set.

    Raises:
        ValueError: if there is no such field.

    Examples:
        >>> with_settings({"train": {"steps": 1}}, {"train.steps": 2})
        {'train': {'steps': 2}}
    """
    as_dict = getattr(config, "to_dict", None)  # a ConfigDict's sections are copied by reference
    plain = copy.deepcopy(as_dict() if as_dict is not None else dict(config))
    for path, value in settings.items():
        section, _, name = path.partition(".")
        if not isinstance(plain.get(section), dict) or name not in plain[section]:
            raise ValueError(f"unknown field config.{path}: expected one of a config's fields")
        plain[section][name] = value
    return plain


def _meshes(chips: int) -> Iterator[tuple[int, int]]:
    """(fsdp, tensor), powers of two that divide the chips; a layer is split over at most 8."""
    powers = [2**n for n in range(chips.bit_length()) if chips % 2**n == 0]
    for index, fsdp in enumerate(powers):
        # Steps of 4 keep the list short; all of the chips is always there.
        if fsdp == chips or index % 2 == 1 or fsdp == 1:
            yield from ((fsdp, n) for n in powers[:4] if chips % (fsdp * n) == 0)
