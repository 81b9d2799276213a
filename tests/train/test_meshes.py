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
from mdm_jax.train.meshes import (
    DIT_RULES,
    batch_sharding,
    batch_ways,
    make_mesh,
    read_rows,
    row_ranges,
    state_shardings,
    to_global,
)
from mdm_jax.train.state import create_state


def abstract_state():
    model = DiT(DiTConfig(num_ids=7, width=16, layers=3, heads=2, cond_dim=4))
    init = lambda key: model.init(key, jnp.zeros((1, 4), jnp.int32))["params"]
    create = lambda: create_state(jax.random.key(0), init, optax.adam(1e-3), ema=True)
    return jax.eval_shape(create)


def paths(tree):
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): leaf for p, leaf in flat}


def test_every_rule_is_used_and_every_matrix_of_a_block_is_sharded():
    state = abstract_state()
    names = paths(state.params)
    for pattern, _ in DIT_RULES:
        assert any(re.search(pattern, name) for name in names), pattern
    shardings = paths(
        state_shardings(state, make_mesh({"data": 2, "fsdp": 2, "tensor": 2}), DIT_RULES)
    )
    for name, leaf in paths(state).items():
        if leaf.ndim >= 2 and name.endswith("kernel") and "/blocks/" in name:
            assert shardings[name].spec != P(), name
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
