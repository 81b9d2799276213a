"""Embeddings against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np

from mdm_jax.models import embeddings


def test_time_features_are_the_published_ones():
    # sigma = log 2: entries 0, 1, 127 (cosines) and 128, 129, 255 (sines) of 256.
    features = embeddings.time_features(jnp.log(jnp.full(1, 2.0)), 256)[0]
    expected = [0.769238901, 0.799085707, 0.999999997, 0.638961276, 0.601217126, 7.44861386e-05]
    np.testing.assert_allclose(features[jnp.array([0, 1, 127, 128, 129, 255])], expected, rtol=1e-6)


def test_rotation_is_a_complex_product_of_the_two_halves():
    x = np.asarray(jax.random.normal(jax.random.key(0), (2, 5, 3, 8)))
    rotated = embeddings.rotate(jnp.asarray(x), *embeddings.rotary_angles(jnp.arange(5), 8))
    phase = np.exp(1j * np.arange(5)[:, None] * 10_000.0 ** -(np.arange(4) / 4))
    expected = (x[..., :4] + 1j * x[..., 4:]) * phase[None, :, None, :]
    np.testing.assert_allclose(rotated[..., :4], expected.real, atol=1e-6)
    np.testing.assert_allclose(rotated[..., 4:], expected.imag, atol=1e-6)


def test_rotated_products_depend_on_the_distance_only():
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 8))

    def product(i, j):
        turned_q = embeddings.rotate(q, *embeddings.rotary_angles(jnp.array([i]), 8))
        turned_k = embeddings.rotate(k, *embeddings.rotary_angles(jnp.array([j]), 8))
        return float(jnp.sum(turned_q * turned_k))

    assert abs(product(3, 1) - product(42, 40)) < 1e-5
    assert abs(product(3, 1) - product(3, 2)) > 1e-2


def test_rotation_of_bfloat16_rounds_once():
    x = jax.random.normal(jax.random.key(0), (1, 1, 1, 64), jnp.bfloat16)
    angles = embeddings.rotary_angles(jnp.array([2047]), 64)
    exact = embeddings.rotate(x.astype(jnp.float32), *angles)
    assert jnp.array_equal(embeddings.rotate(x, *angles), exact.astype(jnp.bfloat16))


def test_ids_outside_the_table_give_nan():
    rows = embeddings.lookup(jnp.ones((3, 2)), jnp.array([0, 3, -1]))
    np.testing.assert_array_equal(jnp.isnan(rows), [[False] * 2, [True] * 2, [True] * 2])
