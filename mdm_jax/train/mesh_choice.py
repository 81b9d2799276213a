"""Which mesh to train on: the checks every mesh must pass, and the smallest one that fits."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from mdm_jax.train.meshes import AXES, mesh_sizes

STATE_SHARE = 0.5
"""Share of a device's memory that the state may take; activations and logits have the rest."""


class Divided(NamedTuple):
    """Something that the devices along some axes share, and that must divide over them.

    Attributes:
        field: what it is, such as "model.heads".
        size: how many there are.
        axes: the axes of the mesh that share them.
        unit: how many stay together on a device.

    Examples:
        >>> Divided("model.heads", 12, ("tensor",)).fits({"tensor": 4})
        True
    """

    field: str
    size: int
    axes: tuple[str, ...]
    unit: int = 1

    def fits(self, sizes: Mapping[str, int]) -> bool:
        """Whether it divides over a mesh, given as size by axis."""
        return self.size % (self.unit * self.ways(sizes)) == 0

    def ways(self, sizes: Mapping[str, int]) -> int:
        """Returns over how many devices of a mesh it is spread."""
        return math.prod(sizes.get(axis, 1) for axis in self.axes)


def check_mesh(sizes: Mapping[str, int], divided: Iterable[Divided]) -> None:
    """Checks that a mesh divides what it should.

    Args:
        sizes: size by axis name, as in ``mesh.shape``.
        divided: what must divide.

    Raises:
        ValueError: naming the first field that does not, and the nearest values that would.

    Examples:
        >>> check_mesh({"tensor": 8}, [Divided("model.heads", 12, ("tensor",))])
        Traceback (most recent call last):
            ...
        ValueError: model.heads=12 does not divide over mesh.tensor=8: set mesh.tensor to 6 or 12,
        or model.heads to 8 or 16
    """
    for one in divided:
        if one.fits(sizes):
            continue
        ways, name = one.ways(sizes), " x ".join(f"mesh.{axis}" for axis in one.axes)
        together = f" in units of {one.unit}" if one.unit > 1 else ""
        advice = f"{one.field} to {_nearest(one.size, one.unit * ways)}"
        if one.size % one.unit == 0:
            advice = f"{name} to {_nearest_divisors(one.size // one.unit, ways)}, or {advice}"
        raise ValueError(
            f"{one.field}={one.size} does not divide over {name}={ways}{together}: set {advice}"
        )


def choose_mesh(
    axes: Mapping[str, int],
    divided: Sequence[Divided],
    *,
    devices: int,
    state_bytes: int,
    memory: int | None,
    slices: int = 1,
) -> dict[str, int]:
    """Returns the size of each axis, with those that are 0 chosen.

    Of the meshes that divide what must divide and whose every device holds its part of the state
    in `STATE_SHARE` of its memory, it is the one with the smallest "sequence", then the smallest
    "tensor", then the smallest "fsdp"; "data" has the rest. For "data" moves the least between
    devices: gradients, once a step. "fsdp" gathers the parameters too, but a step's worth of
    work hides it; it is as large as memory asks for and no larger. "tensor" and "sequence" move
    activations in every layer: they come in only where rows of the batch or widths do not divide
    further. What is not 0 stays as it was asked for. The choice knows nothing of speeds.

    Args:
        axes: size by name; 0 is chosen; -1 is whatever is left, beside a 0 for "data" alone.
        divided: what must divide, rows of the batch among it.
        devices: how many there are.
        state_bytes: parameters, moments, averages and one gradient, all together.
        memory: bytes of one device; None where unknown, and then enough.
        slices: see `meshes.make_mesh`; "data" is a multiple of it.

    Raises:
        ValueError: if no mesh will do. The message says what stands in the way.

    Examples:
        A billion parameters in float32 with AdamW and a gradient, on devices of 16 GiB:

        >>> rows = Divided("train.batch_size", 256, ("data", "fsdp"))
        >>> axes = {"data": 0, "fsdp": 0, "tensor": 0, "sequence": 0}
        >>> choose_mesh(axes, [rows], devices=64, state_bytes=16 * 10**9, memory=16 * 2**30)
        {'data': 32, 'fsdp': 2, 'tensor': 1, 'sequence': 1}
    """
    axes = {name: axes[name] for name in AXES}
    if 0 not in axes.values():
        return mesh_sizes(axes, devices)
    if any(size < 0 and (name != "data" or size != -1) for name, size in axes.items()):
        raise ValueError(
            f"mesh {axes}: beside an axis that is chosen (0) only mesh.data may be -1, and no "
            "axis is below that"
        )
    fixed = {name: size for name, size in axes.items() if size > 0}
    candidates = [
        sizes
        for sizes in _factored(devices, AXES)
        if sizes["data"] % slices == 0 and fixed.items() <= sizes.items()
    ]
    dividing = [sizes for sizes in candidates if all(one.fits(sizes) for one in divided)]
    room = math.inf if memory is None else STATE_SHARE * memory
    fitting = [sizes for sizes in dividing if _per_device(state_bytes, sizes) <= room]
    if fitting:
        return min(fitting, key=lambda s: (s["sequence"], s["tensor"], s["fsdp"]))
    if dividing:
        least = min(_per_device(state_bytes, sizes) for sizes in dividing)
        raise ValueError(
            f"no mesh of {devices} device(s) fits mesh {axes}: the smallest part of the state is "
            f"{least / 2**30:.1f} GiB a device, and it may take {room / 2**30:.1f} GiB, "
            f"{STATE_SHARE:.0%} of the memory. Use more devices, optimizer.moments='bfloat16' or a "
            "smaller model; or set the axes of the mesh yourself"
        )
    if not candidates:
        raise ValueError(
            f"no mesh of {devices} device(s) in {slices} slice(s) has the axes {fixed}: their "
            f"product must divide {devices // slices} (times mesh.slices, with mesh.data)"
        )
    names = sorted({one.field for one in divided})
    raise ValueError(
        f"no mesh of {devices} device(s) with mesh {axes} divides {', '.join(names)}: make "
        f"train.batch_size a multiple of {devices}, or use fewer devices"
    )


def _per_device(state_bytes: int, sizes: Mapping[str, int]) -> float:
    return state_bytes / (sizes["fsdp"] * sizes["tensor"])


def _factored(number: int, names: Sequence[str]) -> Iterator[dict[str, int]]:
    """All ways to write a number as a product of one factor to a name."""
    if len(names) == 1:
        yield {names[0]: number}
        return
    for factor in _divisors(number):
        for rest in _factored(number // factor, names[1:]):
            yield {names[0]: factor, **rest}


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def _nearest(size: int, step: int) -> str:
    """The multiples of `step` around `size`."""
    lower = size // step * step
    return f"{lower} or {lower + step}" if lower else f"{step}"


def _nearest_divisors(size: int, ways: int) -> str:
    """The divisors of `size` around `ways`."""
    lower = max(n for n in _divisors(size) if n < ways)
    return " or ".join(str(n) for n in (lower, *[n for n in _divisors(size) if n > ways][:1]))
