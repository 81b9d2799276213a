"""Reading the collectives of compiled programs, and how long they take at least."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mdm_jax.models.flops import Flops
from mdm_jax.pods import collectives, roofline
from mdm_jax.pods.collectives import Collective
from mdm_jax.pods.topologies import Topology
from mdm_jax.train.chips import CHIPS
from mdm_jax.train.meshes import make_mesh

POD = Topology("v5e:4x8", CHIPS["v5e"], (4, 8), 1, (None,) * 32)


def test_a_loop_over_layers_counts_each_of_its_gathers():
    """Three stacked weights, sharded over all devices, each gathered when its turn comes."""
    mesh = make_mesh({"fsdp": 8})
    layers, width, rows = 3, 16, 8

    @functools.partial(
        jax.jit, in_shardings=(NamedSharding(mesh, P(None, "fsdp")), NamedSharding(mesh, P("fsdp")))
    )
    def forward(weights, x):
        def layer(x, w):
            x = jax.lax.with_sharding_constraint(x @ w, NamedSharding(mesh, P("fsdp")))
            return jnp.tanh(x), None

        return jax.lax.scan(layer, x, weights)[0]

    shapes = (layers, width, width), (rows, width)
    compiled = forward.lower(*(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes)).compile()
    traffic = collectives.read(compiled.as_text(), 8)
    gathered = [one for one in traffic.found if one.kind == "all-gather"]
    assert sum(one.times for one in gathered) == layers
    assert {(one.size, one.group) for one in gathered} == {(width * width * 4, 8)}
    assert traffic.by_kind()["all-gather"] == (layers, layers * width * width * 4)


MODULE = """
%sum (a: f32[], b: f32[]) -> f32[] {
  ROOT %add = f32[] add(%a, %b)
}

%condition (s: (s32[], f32[4])) -> pred[] {
  %end = s32[]{:T(128)} constant(5)
  %i = s32[]{:T(128)} get-tuple-element(%s), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %end), direction=LT
}

%unknown (s: (s32[], f32[4])) -> pred[] {
  %end = s32[] get-tuple-element(%s), index=1
  ROOT %lt = pred[] compare(%i, %end), direction=LT
}

%all-reduce-scatter.1 (x: f32[64]) -> f32[8] {
  %sum.1 = f32[64]{0} all-reduce(%x), replica_groups=mesh['d'=4,'f'=8] {'f'}, to_apply=%sum
  ROOT %part = f32[8]{0} dynamic-slice(%sum.1, %i)
}

%body (s: (s32[], f32[4])) -> (s32[], f32[4]) {
  %g = (bf16[4]{0}, bf16[32]{0}) all-gather-start(%x), replica_groups=[4,8]<=[32], dimensions={0}
  %r = f32[8]{0} fusion(%y), kind=kCustom, calls=%all-reduce-scatter.1
  ROOT %t = (s32[], f32[4]) tuple(%i, %z)
}

%chunks (s: (s32[], f32[4])) -> (s32[], f32[4]) {
  ROOT %p = (f32[4]{0}, f32[4]{0}) collective-permute-start(%x), source_target_pairs={{0,1}}
}

ENTRY %main (x: f32[4]) -> f32[4] {
  %w = (s32[], f32[4]) while(%t), condition=%condition, body=%body
  %v = (s32[], f32[4]) while(%t), condition=%unknown, body=%chunks
  ROOT %all = (f32[4]{0}, f32[2]{0}) all-reduce(%x, %y), replica_groups={}, to_apply=%sum
}
"""


def test_the_forms_that_a_tpu_module_has():
    traffic = collectives.read(MODULE, 32)
    assert traffic.found == (
        Collective("all-gather", 64, 8, 5),
        Collective("reduce-scatter", 256, 8, 5),
        Collective("collective-permute", 16, 32, 1),
        Collective("all-reduce", 24, 32, 1),
    )
    assert traffic.loops == 1
    with pytest.raises(ValueError, match="no ENTRY computation"):
        collectives.read("nothing", 8)


def test_a_sum_costs_two_gathers_and_a_wider_group_has_more_links():
    gather = collectives.Traffic((Collective("all-gather", 10**9, 8, 2),), 0)
    seconds = roofline.network_seconds(gather, POD)
    assert seconds == pytest.approx(2 * 1e9 * (7 / 8) / (2 * 50e9))  # one axis of 8, both ways
    total = collectives.Traffic((Collective("all-reduce", 10**9, 8, 2),), 0)
    assert roofline.network_seconds(total, POD) == pytest.approx(2 * seconds)
    wide = collectives.Traffic((Collective("all-gather", 10**9, 32, 1),), 0)
    assert roofline.network_seconds(wide, POD) == pytest.approx(1e9 * (31 / 32) / (4 * 50e9))
    alone = collectives.Traffic((Collective("all-reduce", 10**9, 1, 1),), 0)
    assert roofline.network_seconds(alone, POD) == 0.0


def test_what_is_executed_beside_the_model():
    step = Flops(blocks=300, head=30, attention=30, pairs=60)
    for remat, scores, expected in (
        ("none", True, 330 + 60),
        ("dots", True, 330 + 60 + 10),  # the scores, not what they are multiplied with
        ("attention", True, 330 + 60 + 10 + 50),
        ("dots", False, 330 + 10 + 35),  # a kernel's results are kept
        ("full", True, 330 + 60 + 20 + 100),
        ("none", False, 330 + 10 + 35),
        ("full", False, 330 + 10 + 35 + 10 + 100),
    ):
        assert roofline.executed(step, remat, writes_scores=scores) == expected, (remat, scores)


def test_bounds_follow_the_slowest():
    line = roofline.Roofline(compute=2.0, memory=1.0, network=0.5, flops=1e12, peak=1e12)
    assert (line.step, line.apart) == (2.0, 3.5)
    assert np.allclose(line.mfu, (1 / 3.5, 1 / 2))
