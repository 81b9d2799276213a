"""Predictions read in parts, or made where they are read, draw what they draw at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import mdm_jax as mdm
from mdm_jax import draws
from mdm_jax.reading import draw_tokens
from mdm_jax.samplers.table import SAMPLERS

V, L, B, WIDTH = 70, 40, 8, 6  # more positions than are read at a time, more ids than one stage
PROCESSES = {
    mdm.Masked: mdm.Masked(V, mdm.LogLinear()),
    mdm.Uniform: mdm.Uniform(V, mdm.LogLinear()),
    mdm.Hybrid: mdm.Hybrid(V, mdm.Linear(), uniform_share=0.3),
}
MASKED = PROCESSES[mdm.Masked]
KEY = jax.random.key(0)
TABLE = jax.random.normal(jax.random.key(1), (V + 1, WIDTH))
KERNEL = 0.3 * jax.random.normal(jax.random.key(2), (WIDTH, V + 1))
BIAS = jax.random.normal(jax.random.key(3), (V + 1,))


def hidden(tokens, t):
    """Depends on the tokens around."""
    del t
    around = jnp.roll(TABLE[tokens], 1, axis=-2) + jnp.roll(TABLE[tokens], -1, axis=-2)
    return mdm.Hidden(around, KERNEL, BIAS)


def dense(tokens, t):
    states, kernel, bias = hidden(tokens, t)
    return states @ kernel + bias.reshape((1,) * (states.ndim - 1) + (-1,))


def same(run):
    """`run(model)` draws the same tokens from a model that returns hidden states."""
    expected = np.asarray(jax.jit(lambda: run(dense))())
    np.testing.assert_array_equal(jax.jit(lambda: run(hidden))(), expected)
    return expected


# Compiling is what this file's time goes into.
OTHERS = [("first_hitting", mdm.Masked), ("confidence", mdm.Masked), ("path_planning", mdm.Masked)]
OTHERS += [("remasking", mdm.Masked), ("analytic", mdm.Uniform)]
CASES = [("ancestral", mdm.Hybrid)]
CASES += [pytest.param(*case, marks=pytest.mark.slow) for case in OTHERS]


@pytest.mark.parametrize(("name", "kind"), CASES, ids=lambda x: getattr(x, "__name__", x))
def test_logits_made_where_they_are_read_draw_the_same(name, kind):
    process, entry = PROCESSES[kind], SAMPLERS[name]
    sampler = entry.make(process, **entry.options)
    start = process.prior(KEY, jnp.zeros((2, L), jnp.int32))

    def run(model):
        return mdm.generate(KEY, mdm.denoiser(model), sampler, start, mdm.time_grid(6)).tokens

    assert len(np.unique(same(run))) > 10


def test_wrappers_edit_the_logits_that_are_read():
    prompt = jnp.arange(L) < 3
    start = jnp.where(prompt.reshape(1, L), 5, jnp.full((2, L), MASKED.mask_id))

    def run(model):
        model = mdm.unsupervised_guided(model, MASKED, 0.5, prompt=prompt)
        model = mdm.nucleus(mdm.tempered(mdm.forbid(model, [3]), jnp.array([0.8, 0.9])), 0.9)
        sampler = mdm.ancestral(MASKED)
        return mdm.generate(
            KEY, model, sampler, start, mdm.time_grid(4), keep=start != MASKED.mask_id
        ).tokens

    assert not (same(run) == 3).any()


@pytest.mark.slow
def test_rows_blocks_and_speculation_take_hidden_states():
    start = jnp.full((2, L), MASKED.mask_id)
    requests, times = jnp.array([4, 9]), mdm.time_grid(4)

    def run(model):
        denoiser = mdm.denoiser(model)
        sampler = mdm.rowwise(mdm.ancestral(MASKED), requests)
        rows = mdm.generate(KEY, denoiser, sampler, start, times).tokens
        blocks = mdm.generate_blocks(
            KEY, denoiser, mdm.first_hitting(MASKED), start, times, block=4
        ).tokens
        drafted = mdm.speculate(KEY, denoiser, MASKED, start, draft=2).tokens
        guided = mdm.guided(denoiser, mdm.tempered(denoiser, 2.0), 1.0)
        ordered = mdm.generate(KEY, guided, mdm.left_to_right(MASKED), start, times).tokens
        return jnp.stack([rows, blocks, drafted, ordered])

    same(run)


def test_what_needs_all_logits_at_once_is_refused():
    start = jnp.full((2, L), MASKED.mask_id)
    model, times = mdm.denoiser(hidden), mdm.time_grid(2)
    with pytest.raises(TypeError, match="needs all logits at once"):
        edited = mdm.no_repeat(model, MASKED, 2)
        mdm.generate(KEY, edited, mdm.ancestral(MASKED), start, times)
    with pytest.raises(TypeError, match="for rowwise, let the model return logits"):
        rows = mdm.rowwise(mdm.ancestral(MASKED), jnp.arange(2))
        mdm.generate(KEY, mdm.tempered(model, 0.5), rows, start, times)


def test_draws_in_parts_are_those_at_once_on_any_mesh():
    logits = 3.0 * jax.random.normal(KEY, (B, L, V))
    expected = draws.categorical(KEY, logits)
    step = lambda logits: draw_tokens(KEY, logits, lambda part: part)
    np.testing.assert_array_equal(jax.jit(step)(logits), expected)
    for kind in (AxisType.Explicit, AxisType.Auto):
        mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
        with jax.set_mesh(mesh):
            sharded = jax.device_put(logits, NamedSharding(mesh, P("data")))
            np.testing.assert_array_equal(jax.jit(step)(sharded), expected)
    by_shard = jax.shard_map(step, mesh=mesh, in_specs=P("data"), out_specs=P("data"))
    # Each shard draws with the same key: the first one what the first row of the whole does.
    assert jax.jit(by_shard)(logits)[0].tolist() == draws.categorical(KEY, logits[:1])[0].tolist()
