import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file

from mdm_jax.train.optimizers import adamw, learning_rate


def rates(**overrides):
    fields = {"schedule": "cosine", "learning_rate": 2e-4, "min_learning_rate": 2e-5, "warmup": 100}
    return fields | overrides


def adam(**overrides):
    fields = {"b1": 0.9, "b2": 0.95, "eps": 1e-8, "weight_decay": 0.1, "clip": 1.0}
    fields["moments"] = "float32"
    return fields | overrides


@pytest.mark.parametrize(
    ("name", "total", "warmup"), [("total1000_warm100", 1000, 100), ("total8_warm3", 8, 3)]
)
def test_cosine_follows_the_reference(golden, name, total, warmup):
    expected = load_file(golden / "losses_scaling.safetensors")[f"lr.{name}"]
    schedule = learning_rate(rates(warmup=warmup), total)
    steps = np.arange(len(expected))
    np.testing.assert_allclose(schedule(steps), expected, rtol=1e-6)  # float32, as trained
    with jax.enable_x64(True):
        np.testing.assert_allclose(schedule(steps), expected, rtol=1e-12)


def test_constant_and_linear():
    constant = learning_rate(rates(schedule="constant", warmup=0), 10)
    np.testing.assert_allclose([constant(s) for s in (0, 5, 99)], 2e-4, rtol=1e-6)
    linear = learning_rate(rates(schedule="linear", warmup=2), 10)
    np.testing.assert_allclose(
        [linear(s) for s in (0, 1, 2, 6, 10, 11)], [1e-4, 2e-4, 2e-4, 1.1e-4, 2e-5, 2e-5], rtol=1e-6
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"schedule": "cosin"}, "'cosin'.*'constant', 'cosine', 'linear'"),
        ({"warmup": 1000}, "warmup=1000 .* below the number of steps, 1000"),
        ({"warmup": -1}, "warmup=-1"),
        ({"min_learning_rate": 1.0}, "min_learning_rate=1.0"),
    ],
)
def test_bad_schedules_are_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        learning_rate(rates(**overrides), 1000)


def test_clip_is_by_global_norm_before_adam_and_decay_hits_everything():
    params = {"w": jnp.array([1.0, 2.0]), "bias": jnp.array([3.0])}
    grads = {"w": jnp.array([30.0, 0.0]), "bias": jnp.array([40.0])}
    optimizer = adamw(adam(), lambda step: 0.1)
    updates, state = optimizer.update(grads, optimizer.init(params), params)
    # One Adam step moves by lr * sign(g) whatever the scale; the moments show the clipped gradient.
    (moments,) = [
        s for s in jax.tree.leaves(state, is_leaf=lambda s: hasattr(s, "mu")) if hasattr(s, "mu")
    ]
    np.testing.assert_allclose(moments.mu["w"], [0.1 * 0.6, 0.0], rtol=1e-6)
    np.testing.assert_allclose(moments.mu["bias"], [0.1 * 0.8], rtol=1e-6)
    np.testing.assert_allclose(updates["w"], [-0.1 - 0.01, -0.02], rtol=1e-5)
    np.testing.assert_allclose(updates["bias"], [-0.1 - 0.03], rtol=1e-5)


def test_clip_zero_is_off():
    params = {"w": jnp.ones(2)}
    optimizer = adamw(adam(clip=0), lambda step: 0.1)
    _, state = optimizer.update({"w": jnp.array([30.0, 40.0])}, optimizer.init(params), params)
    np.testing.assert_allclose(optax.tree.get(state, "mu")["w"], [3.0, 4.0], rtol=1e-6)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"b1": 1.0}, "b1.*1.0"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"clip": -1.0}, "clip"),
        ({"moments": "float16"}, r"moments 'float16': .* 'bfloat16'"),
    ],
)
def test_bad_optimizers_are_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        adamw(adam(**overrides), lambda step: 0.1)


def test_bfloat16_moments_follow_float32_ones():
    """Forty steps on a noisy slope: the first moment is rounded, and the way hardly changes."""
    target, params = jnp.linspace(-1.0, 1.0, 256), {"w": jnp.zeros(256)}
    noise = jax.random.normal(jax.random.key(0), (40, 256))

    def descend(moments):
        optimizer = adamw(adam(moments=moments, weight_decay=0.0), lambda step: 0.02)

        def step(carry, noise):
            params, state = carry
            grads = {"w": params["w"] - target + 0.3 * noise}
            updates, state = optimizer.update(grads, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), jnp.mean(jnp.square(params["w"] - target))

        return jax.lax.scan(step, (params, optimizer.init(params)), noise)

    (_, state), losses = descend("bfloat16")
    _, expected = descend("float32")
    assert optax.tree.get(state, "mu")["w"].dtype == jnp.bfloat16
    assert optax.tree.get(state, "nu")["w"].dtype == jnp.float32
    assert expected[-1] < 0.2 * expected[0]
    assert not (losses == expected).all()
    np.testing.assert_allclose(losses, expected, rtol=0, atol=2e-3)
