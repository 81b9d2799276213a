"""The DiT: what it computes, in which dtype, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from mdm_jax import masks
from mdm_jax.models import DiT, DiTConfig


def apply(model, params, tokens, *args, **kwargs):
    return jax.jit(lambda p, *a: model.apply({"params": p}, *a, **kwargs))(params, tokens, *args)


def loss(model, params, tokens):
    logits = model.apply({"params": params}, tokens).astype(jnp.float32)
    return -jnp.mean(jnp.take_along_axis(nn.log_softmax(logits), tokens[..., None], axis=-1))


def test_it_starts_as_the_identity_with_flat_logits(tokens):
    model = DiT(DiTConfig(num_ids=11, width=16, layers=2, heads=2, cond_dim=8, dropout=0.5))
    params = jax.jit(model.init)(jax.random.key(0), tokens)["params"]
    logits, seen = apply(
        model,
        params,
        tokens,
        deterministic=False,
        rngs={"dropout": jax.random.key(1)},
        capture_intermediates=lambda module, _: module.name == "blocks",
        mutable=["intermediates"],
    )
    streams = seen["intermediates"]["blocks"]["__call__"][0][0]  # After each of the two layers.
    assert not jnp.any(logits)
    np.testing.assert_array_equal(streams, jnp.stack([params["embedding"][tokens]] * 2))
    for name in ("qkv", "attention_out", "mlp_in"):
        kernel = params["blocks"][name]["kernel"]
        assert 0.9 / 4 < jnp.abs(kernel).max() <= 1 / 4, name  # U(+-1 / sqrt(fan_in = 16))
        assert not jnp.array_equal(kernel[0], kernel[1]), "layers must be drawn independently"


@pytest.fixture(scope="module")
def plain_gradient(build, tokens):
    model, params = build()
    return jax.jit(jax.value_and_grad(lambda p: loss(model, p, tokens)))(params)


@pytest.mark.parametrize(
    ("remat", "unroll"), [("dots", 1), ("attention", 1), ("full", 1), ("none", 4), ("full", 2)]
)
def test_remat_and_unrolling_change_nothing(build, tokens, plain_gradient, remat, unroll):
    model, params = build(remat=remat, unroll=unroll)
    found = jax.jit(jax.value_and_grad(lambda p: loss(model, p, tokens)))(params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, plain_gradient
    )


@pytest.mark.parametrize("causal", [False, True])
def test_a_position_sees_later_ones_unless_causal(build, causal):
    model, params = build(causal=causal)
    tokens = jnp.arange(6, dtype=jnp.int32)[None]  # Row j of the table is position j's input.

    def logits(table):
        return model.apply({"params": params | {"embedding": table}}, tokens)[0]

    jacobian = jax.jit(jax.jacrev(logits))(params["embedding"])[:, :, :6]  # [L, V, L, D]
    influence = jnp.abs(jacobian).max(axis=(1, 3))
    later = np.triu(np.ones((6, 6), bool), k=1)
    assert np.all(influence[~later] > 0)
    assert np.all((influence[later] == 0) == causal)


def test_bfloat16_rounds_matmuls_but_not_the_stream(build, tokens, sigma):
    exact_model, params = build(time_conditioning=True)
    model, _ = build(time_conditioning=True, dtype="bfloat16")
    exact = apply(exact_model, params, tokens, sigma)
    logits, seen = apply(
        model, params, tokens, sigma, capture_intermediates=True, mutable=["intermediates"]
    )
    assert exact.dtype == jnp.float32 and logits.dtype == jnp.bfloat16
    error = jnp.abs(logits.astype(jnp.float32) - exact)
    assert 0 < error.max() < 0.03 * jnp.abs(exact).max()
    dtypes = {
        jax.tree_util.keystr(path, simple=True, separator="/").split("__call__")[0]: leaf.dtype
        for path, leaf in jax.tree_util.tree_leaves_with_path(seen["intermediates"])
    }
    matmuls = ("qkv", "attention_out", "mlp_in", "mlp_out")
    rounded = {f"blocks/{name}/" for name in matmuls} | {"head/logits/", "head/", ""}
    assert {path for path, dtype in dtypes.items() if dtype == jnp.bfloat16} == rounded
    assert {"blocks/", "blocks/norm_mlp/", "blocks/modulation/", "time/", "time/mlp_in/"} < (
        dtypes.keys() - rounded
    )


def test_dropout_needs_a_key_and_differs_between_layers_and_keys(build, tokens):
    model, params = build(dropout=0.5)

    @jax.jit
    def dropped(seed):
        rngs = {"dropout": jax.random.key(seed)}
        return model.apply({"params": params}, tokens, deterministic=False, rngs=rngs)

    assert jnp.array_equal(dropped(0), dropped(0))
    assert not jnp.array_equal(dropped(0), dropped(1))
    assert not jnp.array_equal(dropped(0), model.apply({"params": params}, tokens))
    with pytest.raises(Exception, match="dropout"):
        model.apply({"params": params}, tokens, deterministic=False)


def test_sigma_matters_exactly_when_the_model_is_conditioned_on_it(build, tokens, sigma):
    conditioned, params = build(time_conditioning=True)
    blind, _ = build()
    zeros = jnp.zeros_like(sigma)
    at_zero = apply(conditioned, params, tokens, zeros)
    np.testing.assert_allclose(apply(blind, params, tokens), at_zero, atol=1e-5)
    np.testing.assert_array_equal(apply(blind, params, tokens, sigma), apply(blind, params, tokens))
    moved = jnp.abs(apply(conditioned, params, tokens, sigma) - at_zero).max(axis=(1, 2))
    assert moved[0] == 0 and jnp.all(moved[1:] > 1e-2)


def test_without_adaln_there_are_no_time_parameters(build, tokens):
    model, params = build(adaln=False)
    assert "time" not in params and "modulation" not in params["blocks"]
    assert apply(model, params, tokens).shape == (8, 6, 11)


def test_bad_inputs_are_refused_with_the_fix(build, tokens, sigma):
    model, params = build(time_conditioning=True)

    def call(*inputs):
        return model.apply({"params": params}, *inputs)

    with pytest.raises(TypeError, match="tokens must be integers, or logits"):
        call(tokens.astype(jnp.float32), sigma)
    with pytest.raises(ValueError, match=r"shape \[B, L\], got \(6,\); add a batch axis"):
        call(tokens[0], sigma)
    with pytest.raises(ValueError, match=r"needs sigma.*process.schedule.sigma\(t\)"):
        call(tokens)
    with pytest.raises(ValueError, match=r"shape \(8,\); got \(8, 1\)"):
        call(tokens, sigma[:, None])


def test_relaxed_tokens_of_no_uncertainty_are_tokens(build, tokens):
    model, params = build()
    certain = 1e4 * jax.nn.one_hot(tokens, 11)
    np.testing.assert_allclose(
        apply(model, params, certain), apply(model, params, tokens), atol=1e-5
    )
    slope = jax.jit(jax.grad(lambda x: model.apply({"params": params}, x).std()))(certain / 1e4)
    assert jnp.all(jnp.any(slope != 0, axis=-1)), "every position has a gradient"


def test_tokens_take_their_positions_along(build, tokens):
    model, params = build()
    order = jnp.stack([jax.random.permutation(jax.random.key(i), 6) for i in range(8)])

    @jax.jit
    def both(tokens, order):
        shuffled = jnp.take_along_axis(tokens, order, axis=1)
        found = model.apply({"params": params}, shuffled, positions=order)
        straight = model.apply({"params": params}, tokens)
        return found, jnp.take_along_axis(straight, order[..., None], axis=1)

    found, expected = both(tokens, order)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert np.abs(np.asarray(found) - apply(model, params, tokens)).max() > 1e-2


def test_block_diffusion_sees_clean_blocks_before_and_its_own_noised_one(build, tokens):
    model, params = build()
    mask = masks.TwoStream(block=2)

    def logits(noised, clean):
        return model.apply({"params": params}, noised, clean=clean, mask=mask)

    run = jax.jit(logits)
    noised, clean = tokens[:1], tokens[1:2]
    before = run(noised, clean)
    for i in range(6):
        changed = clean.at[0, i].set((clean[0, i] + 1) % 11)
        seen = np.abs(np.asarray(run(noised, changed) - before)).max(axis=(0, 2)) > 1e-6
        assert seen.tolist() == [j // 2 > i // 2 for j in range(6)], f"clean token {i}"
        changed = noised.at[0, i].set((noised[0, i] + 1) % 11)
        seen = np.abs(np.asarray(run(changed, clean) - before)).max(axis=(0, 2)) > 1e-6
        assert seen.tolist() == [j // 2 == i // 2 for j in range(6)], f"noised token {i}"


def test_inputs_of_the_wrong_kind_are_refused_with_the_fix(build, tokens):
    model, params = build()

    def call(*inputs, **fields):
        return model.apply({"params": params}, *inputs, **fields)

    with pytest.raises(ValueError, match="logits over all 11 ids, without weights; got 7"):
        call(jnp.zeros((8, 6, 7)))
    with pytest.raises(ValueError, match=r"weights need tokens of the same shape \[B, L, K\]"):
        call(tokens, weights=jnp.ones((8, 6)))
    with pytest.raises(ValueError, match=r"shape \[B, L\], got \(8, 6, 2\)"):
        call(jnp.zeros((8, 6, 2), jnp.int32))
    with pytest.raises(ValueError, match="go together"):
        call(tokens, clean=tokens)
    with pytest.raises(ValueError, match="go together"):
        call(tokens, mask=masks.TwoStream())
    with pytest.raises(
        ValueError, match=r"positions must have shape \(6,\) or \(8, 6\), got \(1, 6\)"
    ):
        call(tokens, positions=jnp.arange(6)[None])
    with pytest.raises(ValueError, match=r"clean must have shape \(8, 6\), got \(8, 5\)"):
        call(tokens, clean=tokens[:, :5], mask=masks.TwoStream())
