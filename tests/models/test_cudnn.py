"""Attention of cuDNN: what it is asked for anywhere, what it computes where there is a GPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdm_jax import masks
from mdm_jax.models.attention import attention
from mdm_jax.models.cudnn import cudnn_attention, refusal

B, L, H, G, D = 2, 128, 4, 2, 64
IDS = jnp.asarray(np.repeat([[1, 2], [1, 1]], L // 2, axis=1))
MASKS = {
    "bidirectional": masks.Bidirectional(),
    "causal": masks.Causal(),
    "two streams": masks.TwoStream(16),
    "filled": masks.Filled(jnp.array([70, 128])),
    "segments": masks.Segments(IDS),
    "causal segments": masks.Segments(IDS, causal=True),
    "prefix": masks.PrefixCausal(jnp.array([10, 100])),
}
HAS_GPU = any(device.platform == "gpu" for device in jax.devices())


def arrays():
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = [(B, L, heads, D) for heads in (H, G, G)]
    pairs = zip(keys, shapes, strict=True)
    return [jax.random.normal(k, shape, jnp.bfloat16) for k, shape in pairs]


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_the_gradient_is_lowered_for_a_gpu_that_is_not_here(mask, monkeypatch):
    """Shapes, dtypes and the custom calls are right; the compiler and the kernel are not run."""
    # Lowering asks for the version of a library that only machines with a GPU have.
    where = "jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version"
    monkeypatch.setattr(where, lambda: 91000)
    loss = lambda q, k, v: cudnn_attention(q, k, v, mask).astype(jnp.float32).sum()
    traced = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2))).trace(*arrays())
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "__cudnn$fmha" in text
    assert "Backward" in text


@pytest.mark.skipif(not HAS_GPU, reason="cuDNN needs an NVIDIA GPU, and there is none here")
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_values_and_gradients_are_those_of_attention_written_out(mask):
    qkv = arrays()

    def both(function):
        out, pull_back = jax.vjp(lambda *x: function(*x, mask), *qkv)
        return out, *pull_back(jnp.ones_like(out))

    ours, reference = jax.jit(lambda: both(cudnn_attention))(), jax.jit(lambda: both(attention))()
    for got, expected in zip(ours, reference, strict=True):
        got, expected = (np.asarray(x, np.float32) for x in (got, expected))
        np.testing.assert_allclose(got, expected, atol=0.05, rtol=0.05)


def test_what_it_cannot_do_is_refused_by_name():
    q, k, v = arrays()
    assert refusal(q, k, masks.Causal()) == ""
    assert "features" in refusal(q[..., :12], k[..., :12], masks.Causal())
    assert "are not even" in refusal(q[:, 1:], k, masks.PrefixCausal(jnp.zeros(B, int)))
    with pytest.raises(ValueError, match="float32 is none of bfloat16"):
        cudnn_attention(*(x.astype(jnp.float32) for x in (q, k, v)), masks.Causal())
