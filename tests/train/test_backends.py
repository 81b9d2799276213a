"""Kernels of attention on a mesh, each device on its part."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mdm_jax import masks
from mdm_jax.models.attention import attention
from mdm_jax.train.backends import make_attention
from mdm_jax.train.meshes import make_mesh

B, L, H, G, D = 4, 200, 4, 2, 8


@pytest.fixture(scope="module")
def mesh():
    axes = {"data": 2, "fsdp": 1, "tensor": 2, "sequence": 2}
    return make_mesh(axes)


@pytest.fixture(scope="module")
def splash(mesh):
    return make_attention("splash", mesh, interpret=True)


def arrays():
    rng = np.random.default_rng(0)
    shapes = [(B, L, heads, D) for heads in (H, G, G, H)]
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


@pytest.mark.parametrize("causal", [pytest.param(False, marks=pytest.mark.slow), True])
def test_splash_over_rows_heads_and_queries_is_attention(mesh, splash, causal):
    *qkv, cotangent = arrays()
    ids = (jnp.arange(L)[None, :] >= jnp.array([[10], [100], [150], [199]])).astype(int) + 1
    mask = masks.Segments(ids, causal=causal)

    def both(function):
        out, pull_back = jax.vjp(lambda *x: function(*x, mask), *qkv)
        return out, *pull_back(cotangent)

    placed = NamedSharding(mesh, P(("data", "fsdp"), "sequence"))
    qkv, cotangent = jax.device_put((qkv, cotangent), placed)
    ours, reference = jax.jit(lambda: both(splash))(), jax.jit(lambda: both(attention))()
    for got, expected in zip(ours, reference, strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("length", "mask"),
    [
        pytest.param(200, masks.Bidirectional(), marks=pytest.mark.slow),
        (256, masks.Bidirectional()),  # whole blocks, all visible
        (256, masks.BlockCausal(128)),  # whole blocks, visible or not
        pytest.param(200, masks.TwoStream(4), marks=pytest.mark.slow),
    ],
)
def test_splash_of_a_pattern_is_split_over_queries(splash, length, mask):
    q, k, v, _ = (jnp.pad(x, ((0, 0), (0, length - L), (0, 0), (0, 0))) for x in arrays())

    def both(function):
        out, pull_back = jax.vjp(lambda *x: function(*x, mask), q, k, v)
        return out, *pull_back(jnp.cos(out))

    ours, reference = jax.jit(lambda: both(splash))(), jax.jit(lambda: both(attention))()
    for got, expected in zip(ours, reference, strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5)


def test_what_does_not_divide_over_the_mesh_is_refused(splash):
    q, k, v, _ = arrays()
    with pytest.raises(ValueError, match="3 rows do not divide over the 2 devices"):
        splash(q[:3], k[:3], v[:3], masks.Causal())
    with pytest.raises(ValueError, match="1 key heads do not divide over the 2 devices"):
        splash(q, k[:, :, :1], v[:, :, :1], masks.Causal())
    with pytest.raises(ValueError, match=r"PrefixCausal differs by sequence.*Set 'auto'"):
        splash(q, k, v, masks.PrefixCausal(jnp.zeros(B, int)))


def test_a_kernel_for_other_devices_is_refused(mesh):
    with pytest.raises(ValueError, match=r"'splash' is for tpu devices, and these are cpu"):
        make_attention("splash", mesh)
    with pytest.raises(ValueError, match="'cudnn' is for gpu devices, and these are cpu"):
        make_attention("cudnn", mesh)
    with pytest.raises(ValueError, match=r"unknown model\.attention 'flash'"):
        make_attention("flash", mesh)


def test_auto_says_which_it_is(mesh, caplog):
    with caplog.at_level(logging.INFO):
        assert make_attention("auto", mesh) is attention
    assert "attention: xla (model.attention='auto', devices: cpu)" in caplog.text
