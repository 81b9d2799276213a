"""The counts of `mdm_jax.models.flops` against the traced program's matmuls and XLA's own count."""

import jax
import jax.extend as jex
import jax.numpy as jnp
import pytest

from mdm_jax.masks import BlockCausal, Causal, PrefixCausal, TwoStream
from mdm_jax.models import MD4, SMDM, DiT, DiTConfig, MD4Config, SMDMConfig
from mdm_jax.models.flops import Flops, block_weights, call_flops, flops_per_token

ROWS, LENGTH = 2, 16
SHAPE = {"layers": 2, "heads": 2, "unroll": 2}
CONFIGS = {
    "dit": DiTConfig(num_ids=50, width=32, adaln=False, **SHAPE),
    "causal dit": DiTConfig(num_ids=50, width=32, adaln=False, causal=True, **SHAPE),
    "smdm": SMDMConfig(vocab_size=50, width=32, hidden=80, **SHAPE),
    "grouped smdm": SMDMConfig(vocab_size=50, width=32, hidden=80, groups=1, **SHAPE),
    "md4": MD4Config(vocab_size=50, features=16, time_conditioning=False, **SHAPE),
}
MODULES = {DiTConfig: DiT, SMDMConfig: SMDM, MD4Config: MD4}


def forward(config, **inputs):
    """(function of the parameters, abstract parameters) of one call."""
    model = MODULES[type(config)](config)
    tokens = inputs.pop("tokens", jnp.zeros((ROWS, LENGTH), jnp.int32))
    plain = jnp.zeros((1, LENGTH), jnp.int32)
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), plain)["params"])
    return lambda p: model.apply({"params": p}, tokens, **inputs), params


def matmuls_of(jaxpr):
    """FLOPs of every dot_general of a traced program, loops unrolled."""
    total = 0
    for equation in jaxpr.eqns:
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            depth = 1
            for axis in contracted:
                depth *= left[axis]
            total += 2 * equation.outvars[0].aval.size * depth
        for inner in jex.core.jaxprs_in_params(equation.params):
            total += times * matmuls_of(inner)
    return total


@pytest.mark.parametrize("name", CONFIGS)
def test_counts_are_the_traced_matmuls(name):
    config = CONFIGS[name]
    flops = call_flops(config, {"tokens": jnp.zeros((ROWS, LENGTH), jnp.int32)})
    call, params = forward(config)
    # The reference attention computes every pair and then hides some.
    assert matmuls_of(jax.make_jaxpr(call)(params).jaxpr) == flops.without_attention + flops.pairs
    assert flops.total == ROWS * LENGTH * flops_per_token(config, LENGTH)
    gradient = jax.grad(lambda p: call(p).astype(jnp.float32).sum())
    executed = flops.without_attention + flops.pairs
    assert matmuls_of(jax.make_jaxpr(gradient)(params).jaxpr) == pytest.approx(
        3 * executed, rel=0.02
    )


def test_xla_counts_the_same_in_an_unrolled_model():
    # Wide enough for norms, softmax and activations, which XLA counts too, to be a few percent.
    config = DiTConfig(num_ids=512, width=256, layers=2, heads=2, unroll=2, adaln=False)
    call, params = forward(config)
    counted = jax.jit(call).lower(params).cost_analysis()["flops"]
    flops = call_flops(config, {"tokens": jnp.zeros((ROWS, LENGTH), jnp.int32)})
    assert 1.0 <= counted / (flops.without_attention + flops.pairs) < 1.05


def test_streams_masks_and_relaxed_tokens_are_counted():
    config, tokens = CONFIGS["dit"], jnp.zeros((ROWS, LENGTH), jnp.int32)
    inputs = {"tokens": tokens, "clean": tokens, "mask": TwoStream(block=4)}
    two, one = call_flops(config, inputs), call_flops(config, {"tokens": tokens})
    call, params = forward(config, **inputs)
    assert matmuls_of(jax.make_jaxpr(call)(params).jaxpr) == two.without_attention + two.pairs
    assert (two.blocks, two.head, two.pairs) == (2 * one.blocks, one.head, 4 * one.pairs)
    of_the_data = PrefixCausal(jnp.zeros(ROWS, jnp.int32))  # charged in full
    shares = ((Causal(), 17 / 32), (BlockCausal(8), 3 / 4), (of_the_data, 1.0))
    for mask, share in shares:
        count = call_flops(config, {"tokens": tokens, "mask": mask})
        assert count.attention == share * one.attention, mask
    assert two.attention == one.attention * (4 * 4 * 4 * 5) // (16 * 16)
    relaxed = {"tokens": jnp.zeros((ROWS, LENGTH, 50))}
    call, params = forward(config, **relaxed)
    soft = call_flops(config, relaxed)
    assert matmuls_of(jax.make_jaxpr(call)(params).jaxpr) == soft.without_attention + soft.pairs


def test_counts_add_and_scale():
    one = Flops(1, 2, 3, 4)
    assert one.plus(one) == one.times(2) == Flops(2, 4, 6, 8)


def test_another_kind_of_config_is_refused():
    with pytest.raises(TypeError, match=r"config is a dict: expected one of .*SMDMConfig"):
        block_weights({})
