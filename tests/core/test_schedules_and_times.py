"""Schedules are consistent with themselves, precise near t = 0; times are stratified."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mdm_jax as mdm

SCHEDULES = [
    mdm.LogLinear(),
    mdm.LogLinear(eps=0.0),
    mdm.Linear(),
    mdm.Cosine(),
    mdm.CosineSquared(),
    mdm.MaskGITCosine(),
    mdm.Polynomial(2.0),
    mdm.Polynomial(0.5),
    mdm.Geometric(1e-3, 20.0),
    mdm.LinearSigma(1e-3, 7.0),
]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)


@every_schedule
def test_methods_agree_with_each_other(schedule):
    with jax.enable_x64(True):
        t = jnp.linspace(0.01, 0.99, 33)
        alpha = schedule.alpha(t)
        derivative = jax.vmap(jax.grad(schedule.alpha))(t)
        np.testing.assert_allclose(schedule.alpha_prime(t), derivative, rtol=1e-9)
        np.testing.assert_allclose(schedule.noise_rate(t), 1 - alpha, rtol=1e-9)
        np.testing.assert_allclose(schedule.sigma(t), -jnp.log(alpha), rtol=1e-9)
        np.testing.assert_allclose(schedule.weight(t), -derivative / (1 - alpha), rtol=1e-9)
        np.testing.assert_allclose(schedule.inverse(alpha), t, rtol=1e-8)
        np.testing.assert_allclose(schedule.inverse_noise_rate(1 - alpha), t, rtol=1e-8)
        assert bool(jnp.all(jnp.diff(alpha) < 0))


@every_schedule
def test_float32_keeps_its_digits_near_zero(schedule):
    """1 - alpha by subtraction is off by 20% at t = 1e-7; the closed forms are not."""
    small = np.float32([1e-7, 1e-5, 1e-3])
    with jax.enable_x64(True):
        exact = np.asarray(schedule.noise_rate(jnp.asarray(small, jnp.float64)))
        weight = np.asarray(schedule.weight(jnp.asarray(small, jnp.float64)))
    np.testing.assert_allclose(schedule.noise_rate(jnp.asarray(small)), exact, rtol=2e-6)
    np.testing.assert_allclose(schedule.weight(jnp.asarray(small)), weight, rtol=2e-6)
    back = schedule.inverse_noise_rate(schedule.noise_rate(jnp.asarray(small)))
    if not isinstance(schedule, mdm.Geometric | mdm.LinearSigma):  # those have noise at t = 0
        np.testing.assert_allclose(back, small, rtol=4e-6)
    assert schedule.noise_rate(jnp.bfloat16(0.5)).dtype == jnp.bfloat16


@every_schedule
def test_an_equal_schedule_does_not_retrace(schedule):
    traces = []

    @jax.jit
    def weigh(schedule, t):
        traces.append(schedule)
        return schedule.weight(t)

    again = eval(repr(schedule), vars(mdm))
    weigh(schedule, jnp.float32(0.5))
    weigh(again, jnp.float32(0.5))
    assert again == schedule and hash(again) == hash(schedule) and len(traces) == 1


def test_stratified_times_fill_every_stratum_uniformly():
    t = jax.vmap(lambda key: mdm.sample_times(key, (8,)))(jax.random.split(jax.random.key(0), 2000))
    np.testing.assert_array_equal(jnp.floor(t * 8), np.tile(np.arange(8), (2000, 1)))
    inside = np.asarray(t * 8 % 1.0).ravel()
    # Mean and variance of U(0, 1) within five standard errors of 16,000 draws.
    assert abs(inside.mean() - 0.5) < 5 * np.sqrt(1 / 12 / inside.size)
    assert abs(inside.var() - 1 / 12) < 5 * np.sqrt(1 / 180 / inside.size)


def test_times_stay_in_range():
    t = mdm.sample_times(jax.random.key(0), (4, 1000), stratified=False, low=0.25, high=0.75)
    assert t.shape == (4, 1000) and t.dtype == jnp.float32
    assert float(t.min()) >= 0.25 and float(t.max()) < 0.75
    assert float(mdm.sample_times(jax.random.key(1), (1 << 16,), low=0.5).max()) < 1.0
    big = mdm.sample_times(jax.random.key(1), (1 << 16,))
    assert float(big.max()) < 1.0


@pytest.mark.parametrize("spacing", ["uniform", "cosine"])
def test_grids_run_from_one_to_zero(spacing):
    grid = np.asarray(mdm.time_grid(37, spacing=spacing))
    assert grid[0] == 1.0 and grid[-1] == 0.0 and (np.diff(grid) < 0).all() and len(grid) == 38


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mdm.LogLinear(eps=1.0), r"eps=1.0: expected a number in \[0, 1\)"),
        (lambda: mdm.Polynomial(0.0), "power=0.0"),
        (lambda: mdm.Geometric(2.0, 1.0), "0 < sigma_min < sigma_max"),
        (lambda: mdm.sample_times(jax.random.key(0), (2,), low=0.5, high=0.5), "low < high"),
        (lambda: mdm.time_grid(4, spacing="log"), "'uniform' or 'cosine'"),
        (lambda: mdm.time_grid(2.5), "steps=2.5: expected an integer"),
    ],
)
def test_bad_parameters_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
