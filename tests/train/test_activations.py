"""Rows of a batch stay on their devices while sharded parameters come to them."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from train import tiny

from mdm_jax.train.activations import rows_in_place
from mdm_jax.train.fields import checked
from mdm_jax.train.learners import build_learner

ROWS, LENGTH, WIDTH = 48, 24, 40


@pytest.mark.parametrize("family", ["dit", "smdm"])
def test_no_device_holds_the_streams_of_all_rows(family):
    model = {"width": WIDTH, "heads": 5, "remat": "full", "layers": 2}
    if family == "smdm":
        model |= {"family": "smdm", "size": "6M", "adaln": False, "cond_dim": 0}
    config = tiny.config(
        model=model,
        mesh={"data": 1, "fsdp": 8},
        data={"length": LENGTH},
        train={"batch_size": ROWS},
    )
    learner = build_learner(checked(config), 256)
    shape = (ROWS, LENGTH)
    batch = {
        "tokens": jax.ShapeDtypeStruct(shape, jnp.int32),
        "where": jax.ShapeDtypeStruct(shape, jnp.bool_),
    }
    step = learner.steps()[0].lower(jax.eval_shape(learner.create_state), batch)
    text = step.compile().as_text()
    whole = set(re.findall(rf"\w+\[{ROWS},{LENGTH},[\d,]+\]", text))
    # Token ids alone are gathered, for the lookup in the embedding's shards, and what it gives.
    assert whole <= {f"s32[{ROWS},{LENGTH},1]", f"f32[{ROWS},{LENGTH},{WIDTH // 8}]"}, whole
    assert re.search(rf"f32\[{ROWS // 8},{LENGTH},{WIDTH}\]", text)


def test_rows_that_do_not_divide_are_left_alone():
    config = tiny.config(mesh={"data": 8})
    learner = build_learner(checked(config), 256)
    params = jax.jit(learner.init)(jax.random.key(0))
    tokens = jnp.asarray(np.arange(3 * 16).reshape(3, 16), jnp.int32)
    logits = jax.jit(lambda p: learner.apply(p, {"tokens": tokens}, None))(params)
    assert logits.shape[0] == 3 and bool(jnp.isfinite(logits).all())


def test_one_device_needs_nothing():
    with rows_in_place(jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])) as context:
        assert context is None
