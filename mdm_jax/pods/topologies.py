"""Descriptions of machines: TPU slices that libtpu compiles for, and groups of GPUs."""

import math
import re
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from mdm_jax.train.chips import CHIPS, Chip

EXAMPLES = ("v5e:16x16", "v5p:4x4x8", "v6e:16x16", "h100:8")


class Topology(NamedTuple):
    """A machine to compile for.

    Attributes:
        name: as given, such as "v5e:16x16".
        chip: what it is made of.
        sides: chips along each axis of a slice; of GPUs, (number,).
        slices: slices of that shape, joined by a data-center network.
        devices: of a TPU, the compiler's stand-ins; of GPUs, CPU devices that stand for them.
    """

    name: str
    chip: Chip
    sides: tuple[int, ...]
    slices: int
    devices: tuple[Any, ...]

    @property
    def chips(self) -> int:
        """How many chips there are."""
        return len(self.devices)

    @property
    def compiles(self) -> bool:
        """Whether there is a compiler for it here; a GPU's needs the GPU."""
        return self.chip.axes > 0


def parse(name: str) -> tuple[str, tuple[int, ...]]:
    """Returns the chip's name in `CHIPS` and the sides of a topology.

    Raises:
        ValueError: if the chip is unknown, or the sides are not of its shape.

    Examples:
        >>> parse("v5p:4x4x8")
        ('v5p', (4, 4, 8))
        >>> parse("v5e:16")
        Traceback (most recent call last):
            ...
        ValueError: topology 'v5e:16': a v5e slice has 2 sides, as in v5e:16x16
    """
    match = re.fullmatch(r"([a-z]\w*):(\d+(?:x\d+)*)", name)
    if match is None or match[1] not in CHIPS:
        raise ValueError(
            f"unknown topology {name!r}: expected <chip>:<sides> with a chip of {list(CHIPS)}, "
            f"such as {', '.join(EXAMPLES)}"
        )
    chip, sides = match[1], tuple(int(side) for side in match[2].split("x"))
    axes = CHIPS[chip].axes
    if len(sides) != (axes or 1) or min(sides) < 1:
        example = {0: "8", 2: "16x16", 3: "4x4x8"}[axes]
        shape = f"a {chip} slice has {axes} sides" if axes else "GPUs are counted"
        raise ValueError(f"topology {name!r}: {shape}, as in {chip}:{example}")
    return chip, sides


def describe(name: str, slices: int = 1) -> Topology:
    """Returns the topology of a name.

    Args:
        name: "v5e:16x16", "v5p:4x4x8", "v6e:16x16": TPU slices by their sides; "h100:8": GPUs.
        slices: how many such slices, for ``config.mesh.slices``.

    Raises:
        ValueError: if the name is unknown, or no slice has that shape.
        ModuleNotFoundError: if libtpu is missing; the message names the extra to install.
        RuntimeError: if this process has fewer CPU devices than there are GPUs to stand for.
    """
    chip, sides = parse(name)
    if not CHIPS[chip].axes:
        needed, here = math.prod(sides) * slices, jax.devices("cpu")
        if len(here) < needed:
            raise RuntimeError(
                f"{name} needs {needed} CPU devices to stand for its GPUs, and there are "
                f"{len(here)}: set XLA_FLAGS=--xla_force_host_platform_device_count={needed}"
            )
        return Topology(name, CHIPS[chip], sides, slices, tuple(here[:needed]))
    try:
        import libtpu  # noqa: F401
    except ImportError as error:
        raise ModuleNotFoundError(
            "compiling for a TPU needs its compiler, libtpu, which runs on any Linux machine: "
            "pip install 'mdm-jax[aot]'"
        ) from error
    options = {"num_slices": slices} if slices > 1 else {}
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    except Exception as error:  # the runtime's own error type, with its words for what is wrong
        raise ValueError(f"topology {name!r}: {error}") from error
    return Topology(name, CHIPS[chip], sides, slices, tuple(found.devices))
