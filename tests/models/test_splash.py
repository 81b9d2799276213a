"""Splash attention, its kernel run as plain JAX, against attention written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdm_jax import masks
from mdm_jax.models.attention import attention
from mdm_jax.models.splash import refusal, splash_attention

B, L, H, G, D = 2, 150, 4, 2, 16  # L is no multiple of a block
IDS = np.array([[1] * 60 + [2] * 70 + [0] * 20, [1] * 150], np.int32)
MASKS = {
    "bidirectional": masks.Bidirectional(),
    "causal": masks.Causal(),
    "block causal": masks.BlockCausal(16),
    "two streams": masks.TwoStream(15),
    "filled": masks.Filled(jnp.array([70, 150])),
    "segments": masks.Segments(jnp.asarray(IDS)),
    "causal segments": masks.Segments(jnp.asarray(IDS), causal=True),
}


def arrays(length=L):
    rng = np.random.default_rng(0)
    shapes = [(B, length, heads, D) for heads in (H, G, G, H)]
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def interpreted(q, k, v, mask):
    return splash_attention(q, k, v, mask, interpret=True)


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_values_and_gradients_are_those_of_attention_written_out(mask):
    *qkv, cotangent = arrays()

    def both(function):
        out, pull_back = jax.vjp(lambda *x: function(*x, mask), *qkv)
        return out, *pull_back(cotangent)

    ours, reference = jax.jit(lambda: both(interpreted))(), jax.jit(lambda: both(attention))()
    for got, expected in zip(ours, reference, strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5)


def test_fewer_queries_than_keys_and_lengths_of_several_blocks():
    q, k, v, _ = arrays(length=600)
    for mask in (masks.Bidirectional(), masks.Causal(), masks.Filled(jnp.array([1, 599]))):
        got = interpreted(q[:, :3], k, v, mask)
        np.testing.assert_allclose(got, attention(q[:, :3], k, v, mask), atol=1e-5)


@pytest.mark.parametrize(
    ("mask", "why"),
    [
        (masks.Causal(start=jnp.zeros(B, int)), "Causal with `start`"),
        (masks.TwoStream(15, cut=jnp.zeros(B, int)), "TwoStream with `cut`"),
        (masks.PrefixBidirectional(jnp.zeros(B, int)), "PrefixBidirectional"),
        (masks.PrefixCausal(jnp.zeros(B, int)), "PrefixCausal"),
    ],
)
def test_a_mask_it_cannot_do_is_refused_by_name(mask, why):
    q, k, v, _ = arrays()
    assert why in refusal(mask)
    with pytest.raises(ValueError, match=r"model\.attention='auto'"):
        interpreted(q, k, v, mask)


def test_a_mask_that_does_not_fit_is_refused():
    q, k, v, _ = arrays()
    with pytest.raises(ValueError, match="a multiple of block=16"):
        interpreted(q, k, v, masks.TwoStream(16))
    with pytest.raises(ValueError, match="150 positions; got 149"):
        interpreted(q[:, 1:], k, v, MASKS["segments"])
