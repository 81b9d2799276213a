"""A spike of a gradient is not followed; a z-loss is descended and not reported as loss."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from train import tiny, toy

import mdm_jax as mdm
from mdm_jax.train.checkpoints import Checkpoints
from mdm_jax.train.continuing import ConfigMismatchError, check_config
from mdm_jax.train.fields import checked
from mdm_jax.train.learners import build_learner
from mdm_jax.train.meshes import make_mesh, to_global
from mdm_jax.train.metrics import MetricsWriter, Reporter, read_metrics
from mdm_jax.train.optimizers import adamw
from mdm_jax.train.spikes import GUARD_DECAY, GUARD_STEPS, Guard, new_guard, usual_norm, watched
from mdm_jax.train.state import create_state
from mdm_jax.train.step import jit_train_step, pmap_train_step, train_step

ABOVE, WEIGHT = 4.0, 0.25
SECTION = {"b1": 0.9, "b2": 0.95, "eps": 1e-8, "weight_decay": 0.1, "clip": 1.0}
OPTIMIZER = adamw(SECTION | {"moments": "float32"}, lambda step: 0.1 / (1 + step))
EQUAL = partial(jax.tree.map, np.testing.assert_array_equal)


def apply(params, inputs, dropout_key):
    """The toy, with a knob on its logits: a batch of token 4 has a gradient 1000 times as large."""
    logits = toy.apply(params, inputs, dropout_key)
    poisoned = (inputs["tokens"] == 4).any()
    return logits + jnp.where(poisoned, 1e3, 0.0) * (logits - jax.lax.stop_gradient(logits))


GUARDED = toy.SETTINGS | {"apply": apply, "optimizer": OPTIMIZER, "skip_above": ABOVE}


def start(*, taken=GUARD_STEPS, norm=1.0):
    """A state whose guard has seen `taken` steps of this norm."""
    state = create_state(jax.random.key(0), toy.init, OPTIMIZER, ema=True, guard=True)
    average = np.float32(norm * (1 - GUARD_DECAY**taken))
    return state._replace(guard=Guard(jnp.float32(average), jnp.int32(taken), jnp.int32(0)))


def batch(poisoned, seed=0):
    batch = toy.batch(seed)
    return batch | {"tokens": np.where(poisoned, 4, batch["tokens"] % 4).astype(np.int32)}


def mapped():
    mesh, spec = make_mesh({"data": -1}), PartitionSpec
    step = jax.shard_map(
        partial(train_step, axis_name="data", **GUARDED),
        mesh=mesh,
        in_specs=(spec(), spec("data")),
        out_specs=spec(),
    )
    put = lambda state: jax.device_put(state, NamedSharding(mesh, spec()))
    return lambda state, batch: jax.jit(step)(put(state), to_global(batch, mesh))


@pytest.fixture(scope="module")
def step():
    return jax.jit(partial(train_step, **GUARDED))  # not donated: states are compared


@pytest.mark.parametrize("kind", ["jit", "shard_map", "pmap"])
def test_exactly_the_poisoned_step_is_skipped(step, kind):
    step = {"jit": lambda: step, "shard_map": mapped, "pmap": lambda: pmap_train_step(**GUARDED)}[
        kind
    ]()
    before, metrics = step(start(), batch(False))
    assert int(metrics["skipped"]) == 0 and float(metrics["grad_norm"]) < ABOVE
    assert not np.array_equal(before.params["head"]["kernel"], start().params["head"]["kernel"])
    after, metrics = step(before, batch(True))
    assert int(metrics["skipped"]) == 1 and float(metrics["grad_norm"]) > ABOVE
    assert int(after.step) == 2 and int(after.guard.skipped) == 1
    same = {"step": before.step, "guard": before.guard._replace(skipped=after.guard.skipped)}
    EQUAL(after._replace(**same), before._replace(guard=same["guard"]))
    EQUAL(after.guard, same["guard"])  # a skipped norm is not in the mean
    counts = [int(x) for x in jax.tree.leaves(after.opt_state) if x.dtype == jnp.int32]
    assert counts == [1, 1]  # Adam's and the schedule's
    last, metrics = step(after, batch(False, seed=1))
    assert int(metrics["skipped"]) == 1
    assert not np.array_equal(last.params["head"]["kernel"], after.params["head"]["kernel"])


def test_a_step_that_is_taken_is_the_step_without_a_guard(step):
    bare = GUARDED | {"skip_above": 0.0}
    plain, _ = jit_train_step(**bare)(start()._replace(guard=None), batch(False))
    taken, _ = step(start(), batch(False))
    close = partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7)
    jax.tree.map(close, taken._replace(guard=None), plain)


def test_first_steps_are_always_taken_and_nothing_hides_what_is_not_finite():
    early = Guard(jnp.float32(0.5), jnp.int32(GUARD_STEPS - 1), jnp.int32(0))
    assert not watched(early, jnp.float32(1e6), ABOVE)[1]
    assert watched(early._replace(taken=jnp.int32(GUARD_STEPS)), jnp.float32(1e6), ABOVE)[1]
    for norm in (np.inf, np.nan):
        assert not watched(start().guard, jnp.float32(norm), ABOVE)[1]


def test_the_usual_norm_is_the_weighted_mean():
    guard, norms = new_guard(), np.random.default_rng(0).uniform(1, 2, 7)
    for norm in norms:
        guard, _ = watched(guard, jnp.float32(norm), ABOVE)
    weights = GUARD_DECAY ** np.arange(7)[::-1]
    np.testing.assert_allclose(usual_norm(guard), np.average(norms, weights=weights), rtol=1e-5)


def test_a_resumed_run_skips_the_same_steps(step, tmp_path):
    batches = [batch(False), batch(True), batch(False, 1), batch(True, 1)]
    states = [start(taken=GUARD_STEPS - 1)]
    for one in batches:
        states.append(step(states[-1], one)[0])
    assert int(states[-1].guard.skipped) == 2
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(2, states[2], {})
        checkpoints.wait()
        resumed, _ = checkpoints.restore(states[0], {})
    EQUAL(resumed, states[2])
    for one in batches[2:]:
        resumed, _ = step(resumed, one)
    EQUAL(resumed, states[-1])


class Older(NamedTuple):
    """A train state of before there were guards."""

    step: Any
    params: Any
    opt_state: Any
    ema: Any
    teacher: Any


def test_checkpoints_from_before_there_were_guards_are_read(tmp_path, monkeypatch):
    state = toy.state()
    with Checkpoints(tmp_path) as checkpoints:
        with monkeypatch.context() as before:
            before.setattr("mdm_jax.train.checkpoints._stored", lambda state: Older(*state[:5]))
            checkpoints.save(0, state, {"train": {}})
            checkpoints.wait()
        config = {"train": {"skip_above": 0.0, "z_loss": 0.0}, "optimizer": {"moments": "float32"}}
        restored, _ = checkpoints.restore(state, config)
        EQUAL(restored, state)
        with pytest.raises(ConfigMismatchError, match=r"train\.skip_above is 4\.0, was 0\.0"):
            checkpoints.restore(start(), {"train": {"skip_above": ABOVE}})
    with pytest.raises(ConfigMismatchError, match=r"optimizer\.moments is 'bfloat16', was 'flo"):
        check_config({}, {"optimizer": {"moments": "bfloat16"}})


def test_a_guard_and_its_setting_come_together():
    with pytest.raises(ValueError, match=r"skip_above=4\.0 with state\.guard=None"):
        train_step(toy.state(), toy.batch(), **GUARDED)
    with pytest.raises(ValueError, match=r"skip_above=0\.0 with state\.guard=Guard"):
        train_step(start(), toy.batch(), **toy.SETTINGS)


def test_records_have_what_was_skipped_and_the_learning_rate_that_was_taken(tmp_path):
    sums = mdm.WeightedSum(jnp.float32(4.0), jnp.float32(8.0))
    metrics = {"loss": sums, "z_loss": sums, "grad_norm": 1.0, "skipped": jnp.int32(3)}
    with (
        MetricsWriter(tmp_path) as writer,
        Reporter(writer, lambda step: 1.0 * step, start=7, steps=8, every=1) as reporter,
    ):
        reporter.submit(7, metrics)
        reporter.flush()
    record = read_metrics(tmp_path)[-1]
    assert (record["skipped"], record["z_loss"], record["learning_rate"]) == (3, 0.5, 4.0)


def test_z_loss_has_the_gradient_of_its_formula():
    state, batch = toy.state(), toy.batch()
    key = jax.random.split(jax.random.fold_in(jax.random.key(7), 0))[0]
    inputs, noised = toy.OBJECTIVE.prepare(key, batch["tokens"], batch["where"], state.step)
    count = float(batch["where"].sum())

    def terms(params):
        logits = toy.apply(params, inputs, None)
        squares = jnp.log(jnp.sum(jnp.exp(logits), axis=-1)) ** 2
        squares = jnp.sum(jnp.where(batch["where"], squares, 0.0)) / count
        nats = jnp.sum(toy.OBJECTIVE.loss(logits, noised)) / count
        return nats + WEIGHT * squares, (nats, squares)

    grads, (nats, squares) = jax.jit(jax.grad(terms, has_aux=True))(state.params)
    expected = jax.tree.map(lambda p, g: p - 0.5 * g, state.params, grads)
    close = partial(np.testing.assert_allclose, rtol=3e-6, atol=3e-7)
    steps = [
        jit_train_step(z_loss=WEIGHT, **toy.SETTINGS),
        pmap_train_step(z_loss=WEIGHT, accumulate=2, **toy.SETTINGS),
    ]
    for step in steps:
        new, metrics = step(toy.state(), batch)
        jax.tree.map(close, new.params, expected)
        close(metrics["loss"].mean(), nats)  # as without
        close(metrics["z_loss"].mean(), squares)
        assert int(metrics["z_loss"].weight) == count


def test_options_that_are_off_leave_no_trace():
    metrics = jax.eval_shape(partial(train_step, **toy.SETTINGS), toy.state(), toy.batch())[1]
    assert set(metrics) == {"loss", "grad_norm", "step"}


def test_outputs_that_are_not_one_array_of_logits_have_no_z_loss():
    pairs = lambda *arguments: (toy.apply(*arguments),) * 2
    hidden = lambda *arguments: mdm.Hidden(toy.apply(*arguments), jnp.zeros((6, 6)), None)
    first = lambda outputs, noised: jax.tree.leaves(outputs)[0][..., 0]
    objective = toy.OBJECTIVE._replace(loss=first)
    for outputs in (pairs, hidden):
        settings = toy.SETTINGS | {"apply": outputs, "objective": objective, "z_loss": WEIGHT}
        with pytest.raises(TypeError, match="one array of logits"):
            jax.eval_shape(partial(train_step, **settings), toy.state(), toy.batch())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"train": {"z_loss": 0.1, "loss_chunk": 8}},
            r"train\.z_loss=0\.1 with train\.loss_chunk=8",
        ),
        (
            {
                "train": {"z_loss": 0.1},
                "objective": {"name": "sedd", "noise": "masked"},
                "model": {"time_conditioning": True},
            },
            r"train\.z_loss=0\.1 with objective\.name='sedd'",
        ),
        (
            {
                "train": {"z_loss": 0.1},
                "objective": {"name": "esolm", "alpha_0": 0.5, "variant": "B"},
            },
            r"train\.z_loss=0\.1 with objective\.name='esolm'",
        ),
        ({"train": {"z_loss": -0.1}}, r"train\.z_loss must be at least 0"),
        ({"train": {"skip_above": -1.0}}, r"train\.skip_above must be at least 0"),
        ({"train": {"skip_above": 1.0}}, r"train\.skip_above .* above 1"),
    ],
)
def test_configs_that_cannot_be_are_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        build_learner(checked(tiny.config(**overrides)), 256)


def test_a_config_says_both():
    config = checked(tiny.config(train={"z_loss": 0.1, "skip_above": 3.0}))
    learner = build_learner(config, 256)
    batch = {"tokens": np.zeros((16, 16), np.int32), "where": np.ones((16, 16), bool)}
    state, metrics = jax.eval_shape(learner.steps()[0], jax.eval_shape(learner.create_state), batch)
    assert {"z_loss", "skipped"} <= set(metrics) and state.guard is not None
    plain = build_learner(checked(tiny.config()), 256)
    assert jax.eval_shape(plain.create_state).guard is None
