"""Where arrays live: the mesh, and path rules that shard a train state over it.

This is the only file that decides sharding. Rows of a batch are spread over the axes "data" and
"fsdp" and their positions over "sequence"; parameters, their moments and their average are spread
over "fsdp" and "tensor" by rules on their paths. The compiler inserts the collectives.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXES = ("data", "fsdp", "tensor", "sequence")
BATCH_AXES = ("data", "fsdp")
Rules: TypeAlias = Sequence[tuple[str, P]]

# `mdm_jax.models.dit.DiT`, whose blocks are stacked along axis 0. Widths are sharded and the
# vocabulary is not, so that any number of ids works on any mesh.
DIT_RULES: Rules = (
    (r"embedding$", P(None, "fsdp")),
    (r"blocks/qkv/kernel$", P(None, "fsdp", None, "tensor", None)),
    (r"blocks/attention_out/kernel$", P(None, "tensor", None, "fsdp")),
    (r"blocks/mlp_in/kernel$", P(None, "fsdp", "tensor")),
    (r"blocks/mlp_in/bias$", P(None, "tensor")),
    (r"blocks/mlp_out/kernel$", P(None, "tensor", "fsdp")),
    (r"blocks/modulation/kernel$", P(None, None, "fsdp")),
    (r"head/logits/kernel$", P("fsdp", None)),
)

# `mdm_jax.models.smdm.SMDM`: the same, with whole groups of heads on a device.
SMDM_RULES: Rules = (
    (r"embedding$", P(None, "fsdp")),
    (r"blocks/grouped_qkv/kernel$", P(None, "fsdp", "tensor", None, None)),
    (r"blocks/attention_out/kernel$", P(None, "tensor", None, "fsdp")),
    (r"blocks/mlp_(gate|up)/kernel$", P(None, "fsdp", "tensor")),
    (r"blocks/mlp_down/kernel$", P(None, "tensor", "fsdp")),
    (r"head/logits/kernel$", P("fsdp", None)),
)

# `mdm_jax.models.md4.MD4`. (`mdm_jax.models.gpt2.GPT2` has the names of `DIT_RULES`.)
MD4_RULES: Rules = (
    (r"embedding/table$", P(None, "fsdp")),
    (r"blocks/qkv/kernel$", P(None, "fsdp", None, "tensor", None)),
    (r"blocks/attention_out/kernel$", P(None, "tensor", None, "fsdp")),
    (r"blocks/mlp_(gate|up)/kernel$", P(None, "fsdp", "tensor")),
    (r"blocks/mlp_down/kernel$", P(None, "tensor", "fsdp")),
    (r"blocks/modulation/kernel$", P(None, None, "fsdp")),
    (r"head/logits/kernel$", P("fsdp", None)),
)


def make_mesh(
    axes: Mapping[str, int] | None = None,
    *,
    slices: int = 1,
    devices: Sequence[Any] | None = None,
    axis_type: AxisType = AxisType.Auto,
) -> Mesh:
    """Returns a mesh over all devices, with Auto axes unless asked otherwise.

    Args:
        axes: size by axis name, of which one may be -1: whatever is left. None is
            ``{"data": -1, "fsdp": 1, "tensor": 1, "sequence": 1}``.
        slices: groups of devices that only a data-center network joins, such as the slices of a
            multi-slice TPU job. "data" is then a multiple of it, and the slices differ in "data"
            alone, so that nothing but the sum of gradients crosses the slow network.
        devices: what to make the mesh of, for instance the devices of a
            `jax.experimental.topologies` description; by default all devices of all processes.
        axis_type: how the compiler treats the axes. (`jax.make_mesh` on its own makes Explicit
            axes. On those a model must say how each operation is sharded: `DiT` runs on them with
            its parameters replicated, and needs Auto axes for "fsdp" and "tensor".)

    Raises:
        ValueError: if the sizes do not multiply to the number of devices, or the devices are not
            in that many slices.

    Examples:
        >>> mesh = make_mesh({"data": -1, "fsdp": 1, "tensor": 1})
        >>> mesh.axis_names, mesh.size == jax.device_count()
        (('data', 'fsdp', 'tensor'), True)
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = mesh_sizes(axes or {"data": -1, "fsdp": 1, "tensor": 1, "sequence": 1}, len(devices))
    if slices == 1:
        # 8 of the 16 chips along a side, where no side of the machine has that size.
        grid = mesh_utils.create_device_mesh(
            tuple(sizes.values()), devices, allow_split_physical_axes=True
        )
    else:
        grid = slice_grid(sizes, slices, devices)
    return Mesh(grid, tuple(sizes), axis_types=(axis_type,) * len(sizes))


def mesh_sizes(axes: Mapping[str, int], devices: int) -> dict[str, int]:
    """Returns the size of each axis of a mesh of so many devices, with -1 worked out.

    Args:
        axes: size by axis name, of which one may be -1: whatever is left.
        devices: how many there are.

    Raises:
        ValueError: if the sizes do not multiply to the number of devices.

    Examples:
        >>> mesh_sizes({"data": -1, "fsdp": 2}, devices=8)
        {'data': 4, 'fsdp': 2}
    """
    sizes = dict(axes)
    free = [name for name, size in sizes.items() if size == -1]
    fixed = math.prod(size for size in sizes.values() if size != -1)
    valid = len(free) <= 1 and all(size >= 1 or size == -1 for size in sizes.values())
    if not valid or devices % fixed or (not free and fixed != devices):
        raise ValueError(
            f"mesh axes {sizes} do not fit {devices} device(s): the sizes must multiply to the "
            "number of devices, and one of them may be -1 (whatever is left)"
        )
    for name in free:
        sizes[name] = devices // fixed
    return sizes


def slice_grid(sizes: Mapping[str, int], slices: int, devices: Sequence[Any]) -> np.ndarray:
    """Returns the devices of a mesh over several slices, which differ in "data" alone.

    Args:
        sizes: size by axis name.
        slices: groups of devices, told apart by their ``slice_index``.
        devices: all of them.

    Raises:
        ValueError: if the devices are not in that many slices of equal size, or "data" is not a
            multiple of it.
    """
    found: dict[Any, int] = {}
    for device in devices:
        index = getattr(device, "slice_index", None)
        found[index] = found.get(index, 0) + 1
    if slices < 1 or None in found or len(found) != slices or len(set(found.values())) != 1:
        said = "not in slices" if None in found else f"in slices of {sorted(found.values())}"
        raise ValueError(
            f"mesh.slices={slices}, but the {len(devices)} device(s) are {said}: set mesh.slices "
            f"to {1 if None in found else len(found)}, or start as many devices in every slice"
        )
    if sizes.get("data", 1) % slices:
        raise ValueError(
            f"mesh.data={sizes.get('data', 1)} does not divide over mesh.slices={slices}: slices "
            f"share nothing but rows of the batch, so mesh.data must be a multiple of {slices}"
        )
    within = [size // slices if name == "data" else size for name, size in sizes.items()]
    across = [slices if name == "data" else 1 for name in sizes]
    return mesh_utils.create_hybrid_device_mesh(
        within, across, devices, allow_split_physical_axes=True
    )


def partition_spec(path: str, rules: Rules) -> P:
    """Returns the spec of the first rule whose pattern occurs in `path`; no match is replicated.

    Args:
        path: the names on the way to the array, joined by "/".
        rules: (regular expression, spec) pairs.

    Examples:
        >>> rules = [(r"head/kernel$", P("fsdp", None))]
        >>> partition_spec("params/head/kernel", rules) == P("fsdp", None)
        True
        >>> partition_spec("params/head/bias", rules) == P()
        True
    """
    for pattern, spec in rules:
        if re.search(pattern, path):
            return spec
    return P()


def state_shardings(abstract_state: Any, mesh: Mesh, rules: Rules) -> Any:
    """Returns a pytree of `NamedSharding`, one per array of the state.

    The rules see the whole path ("params/blocks/...", "opt_state/0/mu/blocks/..."), so one rule
    shards a parameter, its moments and its average alike.

    Args:
        abstract_state: pytree of arrays or `jax.ShapeDtypeStruct`.
        mesh: from `make_mesh`.
        rules: see `partition_spec`.

    Raises:
        ValueError: if a spec has more axes than its array, or a dimension does not divide over
            its mesh axes. The message names the array.

    Examples:
        >>> mesh = make_mesh()
        >>> state = {"head": {"kernel": jax.ShapeDtypeStruct((8, 5), np.float32)}}
        >>> rules = [("kernel", P("fsdp", None))]
        >>> state_shardings(state, mesh, rules)["head"]["kernel"].spec == P("fsdp", None)
        True
    """

    def sharding(path: Any, leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        spec = [_present(entry, mesh) for entry in partition_spec(name, rules)]
        if len(spec) > len(leaf.shape):
            raise ValueError(f"{name} has shape {leaf.shape}: too few dimensions for {P(*spec)}")
        for size, axes in zip(leaf.shape, spec, strict=False):
            ways = math.prod(mesh.shape[axis] for axis in axes)
            if size % ways:
                raise ValueError(
                    f"{name} has shape {leaf.shape}, of which {size} does not divide over the "
                    f"{ways} devices of mesh axes {axes}: change the mesh or the rule"
                )
        return NamedSharding(mesh, P(*(axes or None for axes in spec)))

    return jax.tree_util.tree_map_with_path(sharding, abstract_state)


def _present(entry: str | tuple[str, ...] | None, mesh: Mesh) -> tuple[str, ...]:
    """The mesh axes of one entry of a spec; axes the mesh does not have are left out."""
    axes = () if entry is None else (entry,) if isinstance(entry, str) else entry
    return tuple(axis for axis in axes if axis in mesh.shape)


def batch_sharding(mesh: Mesh, ndim: int = 2) -> NamedSharding:
    """Returns the sharding of an array of a batch, over those axes that the mesh has.

    Rows are spread over "data" and "fsdp", positions over "sequence".

    Args:
        mesh: from `make_mesh`.
        ndim: 2 for [B, L], 1 for [B].

    Examples:
        >>> batch_sharding(make_mesh()).spec == P(("data", "fsdp"), "sequence")
        True
    """
    entries = (_present(BATCH_AXES, mesh), _present("sequence", mesh))[:ndim]
    spec = [axes[0] if len(axes) == 1 else axes or None for axes in entries]
    while spec and spec[-1] is None:
        spec.pop()
    return NamedSharding(mesh, P(*spec))


def batch_ways(mesh: Mesh) -> int:
    """Returns over how many slices of the mesh the rows of a batch are spread.

    Examples:
        >>> batch_ways(make_mesh()) == jax.device_count()
        True
    """
    return math.prod(mesh.shape.get(axis, 1) for axis in BATCH_AXES)


def row_ranges(mesh: Mesh, batch_size: int, devices: Iterable[Any]) -> list[tuple[int, int]]:
    """Returns the rows [start, stop) of a batch that the given devices hold, each range once.

    Devices that differ in "tensor" or "sequence" alone hold the same rows, so the processes of a
    mesh whose such axes span them need overlapping rows, or all of them the same.

    Args:
        mesh: from `make_mesh`.
        batch_size: rows of the global batch.
        devices: of the mesh, for instance those of one process.

    Raises:
        ValueError: if the rows do not divide; check before with `step.check_batch`.

    Examples:
        >>> row_ranges(make_mesh(), 2 * jax.device_count(), jax.devices()[:1])
        [(0, 2)]
    """
    if batch_size % batch_ways(mesh):
        raise ValueError(
            f"{batch_size} rows do not divide over the {batch_ways(mesh)} slices of mesh "
            f"{dict(mesh.shape)}: use a multiple"
        )
    slices = batch_sharding(mesh, 1).devices_indices_map((batch_size,))
    return sorted({slices[device][0].indices(batch_size)[:2] for device in devices})


def read_rows(
    read: Callable[[int, int], Mapping[str, np.ndarray]], batch_size: int, mesh: Mesh
) -> dict[str, jax.Array]:
    """Joins the rows that each process reads into global arrays, sharded by `batch_sharding`.

    Args:
        read: ``read(start, stop)`` gives rows [start, stop) of the batch, [stop - start, ...] each.
            It is asked for what this process's devices hold, and must not depend on the process.
        batch_size: rows of the global batch.
        mesh: from `make_mesh`.

    Raises:
        ValueError: if the rows do not divide; check before with `step.check_batch`.

    Examples:
        >>> rows = np.arange(2 * jax.device_count())
        >>> batch = read_rows(lambda start, stop: {"x": rows[start:stop]}, len(rows), make_mesh())
        >>> bool((batch["x"] == rows).all())
        True
    """
    ranges = row_ranges(mesh, batch_size, batch_sharding(mesh).addressable_devices)
    parts = {part: read(*part) for part in ranges}
    one = next(iter(parts.values()))

    def joined(name: str) -> jax.Array:
        take = lambda index: parts[index[0].indices(batch_size)[:2]][name][:, *index[1:]]
        shape = (batch_size, *one[name].shape[1:])
        return jax.make_array_from_callback(shape, batch_sharding(mesh, len(shape)), take)

    return {name: joined(name) for name in one}


def to_global(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Places a batch that every process holds whole, sharded by `batch_sharding`.

    Args:
        batch: all rows, [B, ...] each, the same on every process.
        mesh: from `make_mesh`.

    Raises:
        ValueError: if the rows do not divide; check before with `step.check_batch`.

    Examples:
        >>> to_global({"tokens": np.zeros((8, 3), np.int32)}, make_mesh())["tokens"].shape
        (8, 3)
    """
    rows = len(next(iter(batch.values())))
    return read_rows(lambda start, stop: {k: x[start:stop] for k, x in batch.items()}, rows, mesh)
