"""Eight devices train as one: loss curves of every kind of mesh, and what the compiler gathers."""

import functools
import re

import jax
import numpy as np
import pytest
from train import tiny

from mdm_jax.train.fields import checked
from mdm_jax.train.learners import build_learner
from mdm_jax.train.meshes import make_mesh, to_global
from mdm_jax.train.step import pmap_train_step

STEPS, ROWS, LENGTH, VOCAB = 20, 8, 16, 13

MODELS = {
    "dit": {"model": {"layers": 2}, "train": {}, "objective": {"weighting": "cross_entropy"}},
    "smdm": {
        "model": {"family": "smdm", "size": "6M", "layers": 2, "cond_dim": 0, "adaln": False},
        "train": {"loss_chunk": 32},
        "objective": {"weighting": "cross_entropy"},
    },
    "uniform": {
        "model": {"layers": 2, "time_conditioning": True},
        "train": {"loss_chunk": 32},
        "objective": {"name": "duo"},
    },
}


def learner(kind, mesh, **train):
    sections = MODELS[kind] | {"train": MODELS[kind]["train"] | train}
    config = tiny.config(**sections)
    config.train.batch_size, config.train.steps = ROWS, STEPS
    # Adam moves an entry whose gradient is rounding noise as far as any other; this eps keeps such
    # entries still, which differ between devices from the first step on.
    config.optimizer.update({"learning_rate": 1e-2, "warmup": 5, "eps": 1e-2})
    return build_learner(checked(config), VOCAB, mesh)


def batch(step):
    rng = np.random.default_rng(step)
    lengths = rng.integers(LENGTH // 2, LENGTH + 1, ROWS)
    return {
        # Counting, from anywhere: something to learn.
        "tokens": (rng.integers(0, VOCAB, (ROWS, 1)) + np.arange(LENGTH)[None]).astype(np.int32)
        % VOCAB,
        "where": np.arange(LENGTH)[None, :] < lengths[:, None],
    }


def curve(kind, mesh):
    """Losses of twenty steps on a mesh, and the last state."""
    one = learner(kind, mesh)
    state = jax.jit(one.create_state, out_shardings=one.shardings())()
    (step,) = one.steps()
    return run(step, state, lambda batch: to_global(batch, mesh))


def run(step, state, place):
    losses = []
    for index in range(STEPS):
        state, metrics = step(state, place(batch(index)))
        losses.append(metrics["loss"].mean())
    return np.asarray(losses), jax.tree.map(np.asarray, state)


MIXED = {"data": 2, "fsdp": 2, "tensor": 2}


@functools.cache
def on_one_device(kind):
    return curve(kind, make_mesh(devices=jax.devices()[:1]))


def assert_trains_as_one(kind, axes):
    expected, _ = on_one_device(kind)
    if kind != "uniform":  # whose loss is too noisy to tell
        assert expected[-5:].mean() < expected[:5].mean() - 0.05  # it learns: the steps matter
    axes = {"data": 1, "fsdp": 1, "tensor": 1, "sequence": 1} | axes
    losses, _ = curve(kind, make_mesh(axes))
    np.testing.assert_allclose(losses, expected, rtol=0, atol=1e-5)


def test_a_mixed_mesh_trains_as_one_device():
    assert_trains_as_one("dit", MIXED)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "axes"),
    [
        ("dit", {"data": 8}),
        ("dit", {"fsdp": 8}),
        ("dit", {"data": 4, "tensor": 2}),
        ("dit", {"data": 2, "sequence": 4}),
        ("dit", {"fsdp": 2, "tensor": 2, "sequence": 2}),
        ("smdm", {"data": 2, "fsdp": 2, "tensor": 2}),
        ("smdm", {"data": 2, "fsdp": 2, "sequence": 2}),
        ("uniform", {"fsdp": 4, "sequence": 2}),
    ],
    ids=str,
)
def test_eight_devices_train_as_one(kind, axes):
    assert_trains_as_one(kind, axes)


@pytest.mark.slow
def test_pmap_trains_as_jit_does():
    one = learner("dit", make_mesh(devices=jax.devices()[:1]))
    step = pmap_train_step(
        apply=one.apply,
        objective=one.objective,
        optimizer=one.optimizer,
        seed=one.config["seed"],
        ema_decay=one.config["ema"]["decay"],
        ema_warmup=one.config["ema"]["warmup"],
    )
    losses, state = run(step, jax.jit(one.create_state)(), lambda batch: batch)
    expected, expected_state = on_one_device("dit")
    np.testing.assert_allclose(losses, expected, rtol=0, atol=1e-5)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, state.params, expected_state.params)


@pytest.mark.slow
def test_the_same_mesh_gives_the_same_bits():
    mesh = make_mesh(MIXED)
    first, second = curve("dit", mesh), curve("dit", mesh)
    jax.tree.map(np.testing.assert_array_equal, first, second)


COLLECTIVE = re.compile(r"= (.*?) (all-gather|all-reduce)(?:-start)?\(")
SHAPE = re.compile(r"\w+\[([\d,]*)\]")


def gathered_outside_loops(text):
    """Shapes of what is gathered by computations that are no loop's body or condition."""
    inside = set(re.findall(r"(?:body|condition)=%?([\w.-]+)", text))
    shapes, name = [], ""
    for line in text.splitlines():
        if line and not line[0].isspace():
            name = line.replace("ENTRY ", "").split(" ")[0].lstrip("%")
        found = COLLECTIVE.search(line)
        if found and found[2] == "all-gather" and name not in inside:
            shapes += [tuple(map(int, s.split(","))) for s in SHAPE.findall(found[1]) if s]
    return shapes


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dit", "smdm"])
def test_stacked_parameters_are_gathered_inside_the_layer_loop_alone(kind, optimized):
    """One layer at a time: a gather of all of them would need the memory that fsdp saves."""
    mesh = make_mesh({"data": 2, "fsdp": 4, "tensor": 1, "sequence": 1})
    one = learner(kind, mesh)
    (step,) = one.steps()
    state = jax.eval_shape(one.create_state)
    text = step.lower(state, batch(0)).compile().as_text()
    assert "all-gather" in text
    stacked = {leaf.shape for leaf in jax.tree.leaves(state.params["blocks"]) if leaf.ndim > 2}
    sizes = {int(np.prod(shape)) for shape in stacked}
    found = gathered_outside_loops(text)
    assert not [shape for shape in found if int(np.prod(shape)) >= min(sizes)]
