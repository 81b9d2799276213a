import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from mdm_jax.models.configs import DiTConfig
from mdm_jax.models.dit import DiT
from mdm_jax.models.gpt2 import GPT2
from mdm_jax.models.gpt2_configs import GPT2Config
from mdm_jax.models.md4 import MD4
from mdm_jax.models.md4_configs import MD4Config
from mdm_jax.models.smdm import SMDM
from mdm_jax.models.smdm_configs import SMDMConfig
from mdm_jax.train.meshes import (
    DIT_RULES,
    MD4_RULES,
    SMDM_RULES,
    batch_sharding,
    batch_ways,
    make_mesh,
    read_rows,
    row_ranges,
    slice_grid,
    state_shardings,
    to_global,
)
from mdm_jax.train.state import create_state

FAMILIES = {
    "dit": (DiT(DiTConfig(num_ids=7, width=16, layers=3, heads=2, cond_dim=4)), DIT_RULES),
    "smdm": (SMDM(SMDMConfig(vocab_size=7, width=16, layers=3, heads=2, hidden=24)), SMDM_RULES),
    "md4": (
        MD4(MD4Config(vocab_size=7, features=8, layers=3, heads=2, time_conditioning=True)),
        MD4_RULES,
    ),
    "gpt2": (GPT2(GPT2Config(vocab_size=7, width=16, layers=3, heads=2, positions=8)), DIT_RULES),
}


def abstract_state(model=FAMILIES["dit"][0]):
    init = lambda key: model.init(key, jnp.zeros((1, 4), jnp.int32))["params"]
    create = lambda: create_state(jax.random.key(0), init, optax.adam(1e-3), ema=True)
    return jax.eval_shape(create)


def paths(tree):
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): leaf for p, leaf in flat}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_rule_is_used_and_every_matrix_of_a_block_is_sharded(family):
    model, rules = FAMILIES[family]
    state = abstract_state(model)
    names = paths(state.params)
    for pattern, _ in rules:
        if family == "gpt2" and re.search("modulation|head", pattern):
            continue  # it has no time, and its head is the embedding
        assert any(re.search(pattern, name) for name in names), pattern
    shardings = paths(state_shardings(state, make_mesh({"data": 2, "fsdp": 2, "tensor": 2}), rules))
    for name, leaf in paths(state).items():
        if leaf.ndim >= 3 and name.endswith("kernel") and "/blocks/" in name:
            assert {"fsdp"} <= set(jax.tree.leaves(tuple(shardings[name].spec))), name
    assert shardings["step"].spec == P()


def test_moments_and_average_live_where_their_parameter_lives():
    state = state_shardings(abstract_state(), make_mesh({"fsdp": 2, "data": 4}), DIT_RULES)
    for other in (state.ema, state.opt_state[0].mu, state.opt_state[0].nu):
        assert jax.tree.all(jax.tree.map(lambda a, b: a.spec == b.spec, state.params, other))


def test_what_does_not_fit_is_named():
    mesh = make_mesh({"data": 1, "fsdp": 8})
    leaf = {"head": {"kernel": jax.ShapeDtypeStruct((12, 5), np.float32)}}
    with pytest.raises(ValueError, match=r"head/kernel has shape \(12, 5\), of which 12 .* 8 dev"):
        state_shardings(leaf, mesh, [("kernel", P("fsdp"))])
    with pytest.raises(ValueError, match=r"head/kernel has shape \(12, 5\): too few dimensions"):
        state_shardings(leaf, mesh, [("kernel", P(None, None, "fsdp"))])


@pytest.mark.parametrize("axes", [{"data": 3}, {"data": -1, "fsdp": -1}, {"data": 0}, {"data": 16}])
def test_meshes_that_do_not_fit_are_refused(axes):
    with pytest.raises(ValueError, match=r"do not fit 8 device\(s\)"):
        make_mesh(axes)


def test_axes_are_auto_unless_asked():
    assert set(make_mesh().axis_types) == {AxisType.Auto}
    assert set(make_mesh(axis_type=AxisType.Explicit).axis_types) == {AxisType.Explicit}


def test_rows_are_spread_over_data_and_fsdp():
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    rows = np.arange(8 * 3).reshape(8, 3)
    placed = to_global({"tokens": rows}, mesh)["tokens"]
    np.testing.assert_array_equal(placed, rows)
    assert batch_ways(mesh) == 4
    assert placed.sharding == batch_sharding(mesh)
    assert {shard.data.shape for shard in placed.addressable_shards} == {(2, 3)}


@pytest.mark.parametrize(
    ("axes", "devices_each", "expected"),
    [
        (
            {"data": 8},
            4,
            [[(0, 2), (2, 4), (4, 6), (6, 8)], [(8, 10), (10, 12), (12, 14), (14, 16)]],
        ),
        ({"data": 2, "fsdp": 2, "tensor": 2}, 4, [[(0, 4), (4, 8)], [(8, 12), (12, 16)]]),
        ({"tensor": 8}, 4, [[(0, 16)], [(0, 16)]]),  # a model axis that spans both processes
        ({"data": 2, "tensor": 4}, 2, [[(0, 8)], [(0, 8)], [(8, 16)], [(8, 16)]]),
        ({"tensor": 2, "data": 4}, 4, [[(0, 4), (4, 8), (8, 12), (12, 16)]] * 2),
    ],
)
def test_each_process_supplies_the_rows_its_devices_hold(axes, devices_each, expected):
    """Processes are stood in for by runs of devices, in the order of their ids."""
    mesh = make_mesh(axes)
    found = [
        row_ranges(mesh, 16, jax.devices()[i : i + devices_each]) for i in range(0, 8, devices_each)
    ]
    assert found == expected


def test_positions_are_spread_over_the_sequence():
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 1, "sequence": 2})
    rows = np.arange(8 * 6).reshape(8, 6)
    placed = to_global({"tokens": rows, "id": rows[:, 0]}, mesh)
    np.testing.assert_array_equal(placed["tokens"], rows)
    np.testing.assert_array_equal(placed["id"], rows[:, 0])
    assert batch_ways(mesh) == 4
    assert placed["tokens"].sharding == batch_sharding(mesh)
    assert {shard.data.shape for shard in placed["tokens"].addressable_shards} == {(2, 3)}
    assert {shard.data.shape for shard in placed["id"].addressable_shards} == {(2,)}


@dataclasses.dataclass(frozen=True)
class Device:
    """Stands in for a device of a slice."""

    id: int
    slice_index: int
    platform: str = "none"
    device_kind: str = "none"
    process_index: int = 0
    coords: tuple[int, int, int] = (0, 0, 0)
    core_on_chip: int = 0


@pytest.mark.parametrize("slices", [1, 2])
def test_an_axis_may_be_part_of_a_side_of_the_machine(slices):
    """No side of 16 x 16 chips has eight, but eight neighbors do."""
    tpu = {"platform": "tpu", "device_kind": "TPU v6 lite"}
    devices = [
        Device(256 * s + i, s, **tpu, coords=(i % 16, i // 16, 0))
        for s in range(slices)
        for i in range(256)
    ]
    sizes = {"data": 32 * slices, "fsdp": 8, "tensor": 1, "sequence": 1}
    mesh = make_mesh(sizes, slices=slices, devices=devices)
    assert dict(mesh.shape) == sizes
    for group in mesh.devices.reshape(-1, 8):
        places = np.array([device.coords for device in group])
        assert (np.ptp(places, axis=0) < 8).all()
        assert len({device.slice_index for device in group}) == 1


def test_slices_differ_in_data_alone():
    """And whatever else the mesh has lies within one of them."""
    devices = [Device(i, i // 4) for i in range(8)][::-1]
    grid = slice_grid({"data": 4, "fsdp": 2, "tensor": 1, "sequence": 1}, 2, devices)
    assert grid.shape == (4, 2, 1, 1)
    slices = np.vectorize(lambda device: device.slice_index, otypes=[int])(grid)
    np.testing.assert_array_equal(slices[:, :, 0, 0], [[0, 0], [0, 0], [1, 1], [1, 1]])


@pytest.mark.parametrize(
    ("axes", "slices", "of", "message"),
    [
        ({"data": 8}, 4, 4, r"mesh\.slices=4, .* in slices of \[4, 4\]: set mesh\.slices to 2"),
        (
            {"data": 8},
            2,
            5,
            r"mesh\.slices=2, .* in slices of \[3, 5\]: .* as many devices in every",
        ),
        ({"data": 1, "fsdp": 8}, 2, 4, r"mesh\.data=1 does not divide over mesh\.slices=2"),
    ],
)
def test_slices_that_do_not_fit_are_refused(axes, slices, of, message):
    with pytest.raises(ValueError, match=message):
        slice_grid(axes, slices, [Device(i, i // of) for i in range(8)])


def test_devices_without_slices_are_told():
    with pytest.raises(ValueError, match=r"8 device\(s\) are not in slices: set mesh\.slices to 1"):
        make_mesh(slices=2)


def test_a_mesh_is_made_of_the_devices_given():
    assert list(make_mesh(devices=jax.devices()[2:4]).devices.flat) == jax.devices()[2:4]


def test_no_range_of_rows_is_read_twice():
    asked = []

    def read(start, stop):
        asked.append((start, stop))
        return {"x": np.arange(start, stop, dtype=np.int32)[:, None]}

    batch = read_rows(read, 8, make_mesh({"data": 2, "fsdp": 2, "tensor": 2}))
    assert asked == [(0, 2), (2, 4), (4, 6), (6, 8)]
    np.testing.assert_array_equal(batch["x"][:, 0], np.arange(8))


def test_rows_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match=r"12 rows do not divide over the 8 slices"):
        to_global({"x": np.zeros((12, 1))}, make_mesh())
