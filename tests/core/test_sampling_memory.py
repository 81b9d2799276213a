"""What sampling holds in memory, as compiled: the model's logits, and how much beside them."""

import jax
import jax.numpy as jnp
import pytest

import mdm_jax as mdm
from mdm_jax.samplers.table import SAMPLERS

# More positions than are read at a time (32), or nothing would be cut into parts. XLA lays buffers
# out alike with and without the optimizations that the tests switch off.
B, L, V, WIDTH = 2, 256, 1024, 16
LOGITS = 4 * B * L * V  # bytes of one float32[B, L, V]
PART = 4 * B * 32 * V  # of one float32[B, 32, V]
SMALL = 48 * B * L + 200_000  # int32[B, L] and float32[B, L] arrays, and embeddings
SCHEDULE = mdm.LogLinear(1e-3)
PROCESSES = {
    mdm.Masked: mdm.Masked(V - 1, SCHEDULE),
    mdm.Uniform: mdm.Uniform(V, SCHEDULE),
    mdm.Hybrid: mdm.Hybrid(V - 1, SCHEDULE, uniform_share=0.2),
}
# Compiling is what this file's time goes into: other noise than the first is for three of them.
CASES = [
    (name, kind)
    for name, entry in SAMPLERS.items()
    for kind in (
        entry.processes if name in ("ancestral", "analytic", "psi") else entry.processes[:1]
    )
]


def temporaries(run, *, hidden=False):
    """Bytes beside arguments and results of `run(model, tokens)`, whose model is a projection."""

    def whole(table, kernel, tokens):
        def model(tokens, t):
            states = table[tokens]
            return mdm.Hidden(states, kernel) if hidden else states @ kernel

        return run(model, tokens)

    shapes = [(V, WIDTH), (WIDTH, V)]
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    compiled = jax.jit(whole).lower(*arrays, jax.ShapeDtypeStruct((B, L), jnp.int32)).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def make(name, kind):
    entry = SAMPLERS[name]
    return entry.make(PROCESSES[kind], **entry.options)


def generating(name, kind):
    def run(model, tokens):
        sampler, times = make(name, kind), mdm.time_grid(4)
        out = mdm.generate(jax.random.key(0), mdm.denoiser(model), sampler, tokens, times)
        return out.tokens

    return run


@pytest.mark.parametrize(("name", "kind"), CASES, ids=lambda x: getattr(x, "__name__", x))
def test_samplers_hold_the_logits_once(name, kind):
    """And beside them four parts of 32 positions of every row, whatever the sampler."""
    assert LOGITS <= temporaries(generating(name, kind)) <= LOGITS + 4 * PART + SMALL


@pytest.mark.parametrize(
    "name", ["first_hitting", "confidence", "ancestral", "remasking", "path_planning"]
)
def test_models_that_return_hidden_hold_no_logits(name):
    """Logits are made for the positions that are read: a part, or the one that is filled."""
    held = temporaries(generating(name, mdm.Masked), hidden=True)
    assert held <= 4 * PART + SMALL <= LOGITS


@pytest.mark.parametrize("hidden", [False, True])
def test_blocks_hold_little_beside_the_networks_own_logits(hidden):
    """A plain network answers for the whole canvas; the rest is of one block: here 1/32 of it."""

    def run(model, tokens):
        sampler, times = make("ancestral", mdm.Masked), mdm.time_grid(4)
        return mdm.generate_blocks(
            jax.random.key(0), mdm.denoiser(model), sampler, tokens, times, block=8
        ).tokens

    # The block's logits, its table for the draw and the noise, and room for one more.
    beside = 4 * (LOGITS * 8 // L) + SMALL
    assert temporaries(run, hidden=hidden) <= beside + (0 if hidden else LOGITS)


@pytest.mark.parametrize("hidden", [False, True])
def test_speculation_holds_its_canvases(hidden):
    """The logits of draft + 1 canvases, as documented, and float32[B, draft + 1, V] a few times."""

    draft = 3

    def run(model, tokens):
        process = PROCESSES[mdm.Masked]
        return mdm.speculate(jax.random.key(0), model, process, tokens, draft=draft).tokens

    verified = 4 * B * (draft + 1) * V
    canvases = (draft + 1) * ((0 if hidden else LOGITS) + 2 * SMALL)
    assert temporaries(run, hidden=hidden) <= canvases + 8 * verified
