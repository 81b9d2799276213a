"""The rule by which a mesh is chosen, case by case, and the messages of meshes that do not fit."""

import pytest
from train import tiny

from mdm_jax.train.experiment import build
from mdm_jax.train.mesh_choice import Divided, check_mesh, choose_mesh

GIB = 2**30
FREE = {"data": 0, "fsdp": 0, "tensor": 0, "sequence": 0}


def chosen(state, *, devices=8, rows=64, heads=4, length=16, memory=16, slices=1, **axes):
    """Sizes of (data, fsdp, tensor, sequence) for GiB of state on devices of GiB of memory."""
    divided = [
        Divided("train.batch_size", rows, ("data", "fsdp")),
        Divided("model.heads", heads, ("tensor",)),
        Divided("data.length", length, ("sequence",)),
    ]
    sizes = choose_mesh(
        FREE | axes,
        divided,
        devices=devices,
        state_bytes=state * GIB,
        memory=memory and memory * GIB,
        slices=slices,
    )
    return tuple(sizes.values())


def test_what_fits_is_replicated():
    assert chosen(8) == (8, 1, 1, 1)


def test_fsdp_is_as_small_as_fits():
    assert chosen(9) == (4, 2, 1, 1)
    assert chosen(60) == (1, 8, 1, 1)


def test_memory_unknown_is_enough():
    assert chosen(1000, memory=None) == (8, 1, 1, 1)


def test_tensor_comes_in_where_rows_run_out_and_sequence_where_heads_do():
    assert chosen(1, rows=4) == (4, 1, 2, 1)
    assert chosen(1, rows=2) == (2, 1, 4, 1)
    assert chosen(1, rows=1) == (1, 1, 4, 2)
    assert chosen(33, rows=4) == (1, 4, 2, 1)  # tensor halves the state too


def test_slices_share_rows_alone():
    assert chosen(60, devices=16, slices=2) == (2, 8, 1, 1)
    assert chosen(60, devices=16) == (2, 8, 1, 1)
    with pytest.raises(ValueError, match=r"the smallest part of the state is 9\.4 GiB"):
        chosen(150, devices=32, slices=2)


def test_what_is_asked_for_stays():
    assert chosen(1, fsdp=4) == (2, 4, 1, 1)
    assert chosen(1, tensor=2, data=-1) == (4, 1, 2, 1)
    assert chosen(1, data=-1, fsdp=2, tensor=1, sequence=2) == (2, 2, 1, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"state": 100},
            r"smallest part of the state is 12\.5 GiB a device, and it may take 8\.0 GiB, 50%",
        ),
        ({"state": 1, "rows": 3, "heads": 1, "length": 3}, r"divides data\.length, model\.heads"),
        ({"state": 1, "tensor": 3}, r"has the axes {'tensor': 3}"),
        ({"state": 1, "fsdp": -1}, r"only mesh\.data may be -1"),
        ({"state": 1, "data": 3, "fsdp": 1, "tensor": 1, "sequence": 1}, "do not fit 8 device"),
    ],
)
def test_impossible_wishes_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        chosen(arguments.pop("state"), **arguments)


def test_units_stay_together():
    check_mesh({"data": 4}, [Divided("train.batch_size", 24, ("data", "fsdp"), unit=6)])
    with pytest.raises(
        ValueError,
        match=r"train\.batch_size=30 .* mesh\.data x mesh\.fsdp=4 in units of 6: set "
        r"mesh\.data x mesh\.fsdp to 1 or 5, or train\.batch_size to 24 or 48",
    ):
        check_mesh({"data": 4}, [Divided("train.batch_size", 30, ("data", "fsdp"), unit=6)])


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        (
            {"tensor": 4},
            r"model\.heads=2 .* mesh\.tensor=4: set mesh\.tensor to 2, or model\.heads",
        ),
        ({"fsdp": 8}, r"model\.width=20 .* mesh\.fsdp=8: set .* to 5 or 10, or .* to 16 or 24"),
        ({"sequence": 8}, r"data\.length=20 .* mesh\.sequence=8: set mesh\.sequence to 5 or 10"),
    ],
)
def test_the_field_that_does_not_divide_is_named_at_the_start(mesh, message):
    model = {"width": 20, "heads": 2}
    with pytest.raises(ValueError, match=message):
        build(tiny.config(mesh=mesh, model=model, data={"length": 20}), documents=tiny.documents())


def test_an_experiment_chooses_its_mesh():
    """On CPUs, whose memory is unknown: by the rows alone."""
    config = tiny.config(mesh=FREE, train={"batch_size": 4})
    mesh = build(config, documents=tiny.documents()).mesh
    assert dict(mesh.shape) == {"data": 4, "fsdp": 1, "tensor": 2, "sequence": 1}
