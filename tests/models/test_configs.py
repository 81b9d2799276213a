"""Configurations, parameter counts and FLOPs, against the published numbers."""

import jax
import jax.numpy as jnp
import pytest

from mdm_jax.models import SIZES, DiT, DiTConfig, flops_per_token, parameter_count


@pytest.mark.parametrize(
    ("size", "overrides", "published"),
    [
        ("small", {}, 169_627_218),
        ("medium", {}, 424_477_010),
        ("small", {"width": 512, "layers": 8, "heads": 8}, 80_061_266),
        ("small", {"adaln": False, "causal": True}, 162_246_482),
    ],
)
def test_parameter_counts_are_the_published_ones(size, overrides, published):
    assert parameter_count(DiTConfig.from_size(size, 50258, **overrides)) == published


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("fields", [{}, {"adaln": False}, {"mlp_ratio": 3, "cond_dim": 20}])
def test_the_closed_form_counts_what_init_makes(size, fields):
    config = DiTConfig.from_size(size, 257, **fields)
    variables = jax.eval_shape(DiT(config).init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
    leaves = jax.tree.leaves(variables)
    assert sum(leaf.size for leaf in leaves) == parameter_count(config)
    assert {leaf.dtype.name for leaf in leaves} == {"float32"}


@pytest.mark.parametrize(
    ("width", "layers", "heads", "gflops", "with_attention"),
    [(256, 6, 4, 53.03, 1.483), (768, 12, 12, 449.41, 1.342), (2176, 28, 17, 6805.40, 1.150)],
)
def test_flops_are_those_of_the_published_scaling_study(
    width, layers, heads, gflops, with_attention
):
    # GFLOP of a forward pass over 2048 tokens. The study also counts norms and activations,
    # 0.05 to 0.27 % of its figures.
    config = DiTConfig(num_ids=32001, width=width, layers=layers, heads=heads)
    matmuls = 2048 * flops_per_token(config, 2048, attention=False)
    assert matmuls == pytest.approx(gflops * 1e9, rel=3e-3)
    assert 2048 * flops_per_token(config, 2048) / (gflops * 1e9) == pytest.approx(
        with_attention, abs=1.5e-3
    )


def test_causal_attention_is_charged_for_the_keys_it_may_see():
    config = DiTConfig.from_size("tiny", 257, causal=True)
    inside = flops_per_token(config, 5) - flops_per_token(config, 5, attention=False)
    keys = (1 + 2 + 3 + 4 + 5) / 5
    assert inside == config.layers * 2 * 2 * keys * config.width


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_ids": 0}, "num_ids must be a positive int, got 0"),
        ({"layers": 2.0}, "layers must be a positive int, got 2.0"),
        ({"unroll": True}, "unroll must be a positive int, got True"),
        ({"heads": 3}, "multiple of 2 \\* heads"),
        ({"width": 12, "heads": 4}, "multiple of 2 \\* heads"),
        ({"dropout": 1.0}, "dropout must lie in"),
        ({"dtype": "float16"}, "dtype must be one of"),
        ({"remat": "all"}, "remat must be one of"),
        ({"adaln": False, "time_conditioning": True}, "needs adaln=True"),
    ],
)
def test_impossible_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        DiTConfig(**({"num_ids": 11, "width": 16, "layers": 2, "heads": 2} | fields))


def test_an_unknown_size_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"one of .*'tiny', 'small', 'medium'.*got 'huge'"):
        DiTConfig.from_size("huge", 257)


def test_equal_configurations_are_one_static_value():
    one, other = (DiTConfig.from_size("tiny", 257) for _ in range(2))
    assert one == other and hash(one) == hash(other)
    assert DiTConfig.from_size("tiny", 257, layers=1).layers == 1
