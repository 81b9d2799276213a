"""Documents packed into one window do not see each other: by gradients, which are exactly zero."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mdm_jax as mdm
from mdm_jax import objectives
from mdm_jax.evaluation.bound import evaluate_bound
from mdm_jax.masks import Segments
from mdm_jax.models import MD4, SMDM, DiT, DiTConfig, MD4Config, SMDMConfig
from mdm_jax.models.attention import attention
from mdm_jax.models.splash import splash_attention
from mdm_jax.train.state import create_state
from mdm_jax.train.step import train_step

V = L = 12
IDS = jnp.array([[1] * 5 + [2] * 4 + [0] * 3])
PROCESS = mdm.Masked(V, mdm.Linear())
SMALL = {"width": 16, "layers": 2, "heads": 2}
BOTH = {"DiT": False, "SMDM": False, "MD4": False, "causal DiT": True, "causal SMDM": True}


def interpreted(q, k, v, mask):
    return splash_attention(q, k, v, mask, interpret=True)


def make(name, attend=attention):
    causal = BOTH[name]
    if "DiT" in name:
        return DiT(DiTConfig(num_ids=V + 1, adaln=False, causal=causal, **SMALL), attend)
    if "SMDM" in name:
        return SMDM(SMDMConfig(vocab_size=V, hidden=24, causal=causal, **SMALL), attend)
    config = MD4Config(vocab_size=V, layers=2, heads=2, features=8, time_conditioning=False)
    return MD4(config, attend)


def drawn(model):
    """Parameters that are nowhere zero, as heads are at initialization."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), IDS)["params"]
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: (0.3 * rng.normal(size=x.shape)).astype(np.float32), shapes)


def influence(model, mask):
    """[documents, L]: how far the outputs of a document move with the embedding of each token.

    Every position holds an id of its own, so the rows of the table are the positions.
    """
    params, tokens = drawn(model), jnp.arange(L)[None]

    def outputs(embedding, document):
        logits = model.apply({"params": params | {"embedding": embedding}}, tokens, mask=mask)
        return jnp.sum(jnp.where((document == IDS)[..., None], jnp.sin(logits), 0.0))

    gradient = jax.jit(jax.grad(outputs))
    tables = [jax.tree.leaves(gradient(params["embedding"], d))[0] for d in (1, 2, 0)]
    return np.abs(np.stack(tables)[:, :L]).sum(-1)


@pytest.mark.parametrize(
    ("name", "attend"),
    [
        ("DiT", attention),
        ("causal SMDM", interpreted),
        *(
            pytest.param(*pair, marks=pytest.mark.slow)
            for pair in [("MD4", attention), ("causal DiT", attention), ("SMDM", interpreted)]
        ),
    ],
)
def test_no_gradient_passes_from_one_document_to_another(name, attend):
    causal = BOTH[name]
    own = np.stack([np.asarray(IDS[0]) == d for d in (1, 2, 0)])
    moved = influence(make(name, attend), Segments(IDS, causal=causal))
    assert (moved[~own] == 0).all()
    assert (moved[own] > 0).all()


def test_without_segments_documents_do_see_each_other():
    assert (influence(make("DiT"), None) > 0).all()


def batch_of(ids=IDS):
    tokens = jax.random.randint(jax.random.key(3), ids.shape, 0, V, jnp.int32)
    return {"tokens": tokens, "where": ids > 0, "segments": ids}


@pytest.mark.parametrize("prepend", [None, V])
def test_documents_in_one_window_cost_what_they_cost_alone(prepend):
    model, packed = make("causal DiT"), batch_of()
    params, objective = drawn(model), mdm.autoregressive_objective(prepend=prepend)
    apply = lambda params, inputs, key: model.apply({"params": params}, **inputs)
    tokens = packed["tokens"][0]
    first = {"tokens": jnp.zeros((1, L), jnp.int32).at[0, :5].set(tokens[:5])}
    second = {"tokens": jnp.zeros((1, L), jnp.int32).at[0, :4].set(tokens[5:9])}
    alone = [
        one | {"where": jnp.arange(L)[None] < length} for one, length in ((first, 5), (second, 4))
    ]
    together = evaluate_bound(apply, params, objective, [packed], seed=0)
    apart = evaluate_bound(apply, params, objective, alone, seed=0)
    assert together.tokens == apart.tokens == (9 if prepend else 7)
    np.testing.assert_allclose(together.nats_per_token, apart.nats_per_token, rtol=1e-5)


def test_a_training_step_does_not_see_other_documents():
    model, optimizer = make("DiT"), optax.sgd(0.0)
    state = create_state(jax.random.key(0), lambda key: drawn(model), optimizer, ema=False)
    apply = lambda params, inputs, key: model.apply({"params": params}, **inputs)
    settings = {"apply": apply, "objective": mdm.masked_objective(PROCESS), "seed": 3}
    step = jax.jit(lambda batch: train_step(state, batch, optimizer=optimizer, **settings))
    loss = lambda batch: float(step(batch)[1]["loss"].total)

    ids = jnp.tile(IDS, (4, 1))  # enough rows for some token of theirs to be masked
    batch = batch_of(ids) | {"where": ids == 1}
    other = batch | {"tokens": jnp.where(ids == 1, batch["tokens"], (batch["tokens"] + 1) % V)}
    assert loss(batch) == loss(other) > 0
    one = {"segments": jnp.ones_like(ids)}
    assert loss(batch | one) != loss(other | one)


def test_a_shorter_window_is_padding_behind_its_documents():
    objective = objectives.with_random_lengths(mdm.masked_objective(PROCESS), 1.0)
    key, step = jax.random.key(0), jnp.int32(0)
    inputs, noised = objectives.prepare_batch(objective, key, batch_of(), step)
    length = int(objective.prepare(key, IDS, IDS > 0, step)[0]["mask"].count[0])
    assert 0 < length < L
    assert inputs["mask"].ids[0, :length].tolist() == IDS[0, :length].tolist()
    assert not inputs["mask"].ids[0, length:].any()
    assert not noised.where[0, length:].any()


@pytest.mark.parametrize(
    "objective",
    [
        objectives.block_objective(PROCESS, 4),
        objectives.esolm_objective(PROCESS, 0.5),
        objectives.learned_objective(PROCESS),
    ],
)
def test_objectives_with_an_order_of_their_own_are_refused(objective):
    with pytest.raises(ValueError, match="cannot keep documents apart"):
        objectives.prepare_batch(objective, jax.random.key(0), batch_of(), jnp.int32(0))


def test_a_causal_model_takes_no_mask_that_looks_ahead():
    model = make("causal SMDM")
    with pytest.raises(ValueError, match=r"Segments\(ids, causal=True\)"):
        model.apply({"params": drawn(model)}, IDS, mask=Segments(IDS))
