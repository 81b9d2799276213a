"""The step gives the same numbers however the batch is cut: micro-batches, devices, jit or pmap."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from train import toy

from mdm_jax.train.meshes import batch_sharding, make_mesh, state_shardings, to_global
from mdm_jax.train.step import check_batch, jit_train_step, pmap_train_step, train_step

RULES = [("embed/kernel$", PartitionSpec(None, "fsdp")), ("head/kernel$", PartitionSpec("fsdp"))]


@pytest.fixture(scope="module")
def expected():
    """Two steps on one device, in one batch."""
    return run(jit_train_step(**toy.SETTINGS), toy.state())


def run(step, state, place=lambda batch: batch):
    records = []
    for index in range(2):
        state, metrics = step(state, place(toy.batch(index)))
        records.append(jax.tree.map(np.asarray, metrics))
    return jax.tree.map(np.asarray, state), records


def assert_same(got, expected):
    # Sums of some hundred float32 numbers in another order: a few units of 6e-8.
    jax.tree.map(partial(np.testing.assert_allclose, rtol=3e-6, atol=3e-7), got, expected)


def on_mesh(axes, axis_type, **overrides):
    mesh = make_mesh(axes, axis_type=axis_type)
    shardings = state_shardings(jax.eval_shape(toy.state), mesh, RULES)
    step = jit_train_step(
        state_shardings=shardings, batch_sharding=batch_sharding(mesh), **toy.SETTINGS, **overrides
    )
    with jax.set_mesh(mesh):
        return run(step, jax.device_put(toy.state(), shardings), lambda b: to_global(b, mesh))


def test_step_is_gradient_descent_on_the_mean_loss_per_token(expected):
    state, batch = toy.state(), toy.batch(0)
    key = jax.random.split(jax.random.fold_in(jax.random.key(7), 0))[0]
    inputs, noised = toy.OBJECTIVE.prepare(key, batch["tokens"], batch["where"], state.step)

    def mean_loss(params):
        nats = toy.OBJECTIVE.loss(toy.apply(params, inputs, None), noised)
        return jnp.sum(nats) / float(batch["where"].sum())

    loss, grads = jax.jit(jax.value_and_grad(mean_loss))(state.params)
    params = jax.tree.map(lambda p, g: p - 0.5 * g, state.params, grads)
    new, metrics = jit_train_step(**toy.SETTINGS)(state, batch)
    np.testing.assert_allclose(metrics["loss"].mean(), loss, rtol=1e-6)
    assert int(metrics["loss"].weight) == batch["where"].sum()
    norm = np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(grads)))
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-6)
    assert (metrics["step"], new.step) == (0, 1)
    assert_same(new.params, params)
    d = 2 / 11  # the first update of the moving average
    ema = jax.tree.map(lambda old, p: d * old + (1 - d) * p, toy.state().params, params)
    assert_same(new.ema, ema)


def test_micro_batches_change_nothing(expected):
    assert_same(run(jit_train_step(accumulate=4, **toy.SETTINGS), toy.state()), expected)


def test_mean_of_micro_batch_means_would_have_been_caught():
    """The micro-batches of the toy batch hold different numbers of tokens."""
    where = toy.batch(0)["where"]
    assert len({int(where[i::4].sum()) for i in range(4)}) > 1


@pytest.mark.parametrize(
    ("axes", "axis_type", "accumulate"),
    [
        ({"data": -1}, AxisType.Auto, 1),
        ({"data": -1}, AxisType.Explicit, 2),
        ({"data": 2, "fsdp": 2, "tensor": 2}, AxisType.Auto, 2),
    ],
)
def test_meshes_change_nothing(expected, axes, axis_type, accumulate):
    assert_same(on_mesh(axes, axis_type, accumulate=accumulate), expected)


@pytest.mark.parametrize(("check_vma", "accumulate"), [(True, 1), (True, 2), (False, 1)])
def test_shard_map_changes_nothing(expected, check_vma, accumulate):
    mesh = make_mesh({"data": -1})
    step = partial(train_step, axis_name="data", accumulate=accumulate, **toy.SETTINGS)
    spec = PartitionSpec
    mapped = jax.shard_map(
        step, mesh=mesh, in_specs=(spec(), spec("data")), out_specs=spec(), check_vma=check_vma
    )
    state = jax.device_put(toy.state(), NamedSharding(mesh, spec()))
    assert_same(run(jax.jit(mapped), state, lambda b: to_global(b, mesh)), expected)


def test_pmap_changes_nothing(expected):
    assert_same(run(pmap_train_step(accumulate=2, **toy.SETTINGS), toy.state()), expected)


def test_a_batch_without_tokens_has_no_loss_and_no_gradient():
    batch = toy.batch() | {"where": np.zeros((toy.ROWS, toy.LENGTH), bool)}
    new, metrics = jit_train_step(**toy.SETTINGS)(toy.state(), batch)
    assert metrics["loss"].mean() == 0
    assert metrics["grad_norm"] == 0
    jax.tree.map(np.testing.assert_array_equal, new.params, toy.state().params)


def test_noise_differs_between_steps_and_seeds():
    batch, losses = toy.batch(), []
    for seed, steps in ((7, (0, 1)), (8, (0,))):
        step = jit_train_step(**toy.SETTINGS | {"seed": seed})
        for index in steps:
            _, metrics = step(toy.state()._replace(step=jnp.int32(index)), batch)
            losses.append(float(metrics["loss"].mean()))
    assert len(set(losses)) == 3


def test_dropout_differs_between_micro_batches_and_devices():
    """A model that is nothing but noise: cut in other ways, the batch sees other noise."""

    def apply(params, inputs, dropout_key):
        rows = inputs["tokens"].shape[0]
        return jax.random.normal(dropout_key, (rows, toy.LENGTH, toy.PROCESS.num_ids))

    settings = toy.SETTINGS | {"apply": apply}
    totals = {
        float(step(toy.state(), toy.batch())[1]["loss"].total)
        for step in (
            jit_train_step(**settings),
            jit_train_step(accumulate=2, **settings),
            pmap_train_step(**settings),
        )
    }
    assert len(totals) == 3


def test_indivisible_batches_are_refused():
    with pytest.raises(ValueError, match="16 rows does not divide into 3 micro-batch"):
        train_step(toy.state(), toy.batch(), accumulate=3, **toy.SETTINGS)
    odd = jax.tree.map(lambda x: x[:12], toy.batch())
    with pytest.raises(ValueError, match=r"12 rows .* on 8 device.*use a batch of 8 or 16 rows"):
        pmap_train_step(**toy.SETTINGS)(toy.state(), odd)
    with pytest.raises(ValueError, match="0 micro-batch"):
        check_batch(4, accumulate=0)
