"""Learning-rate schedules and the optimizer: AdamW behind a clip of the global gradient norm.

Both are built from the ``optimizer`` section of a config, which is any mapping.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

# How the learning rate falls after warm-up: progress in [0, 1] -> the share of
# (learning_rate - min_learning_rate) that is left.
DECAYS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "constant": jnp.ones_like,
    "cosine": lambda progress: 0.5 * (1 + jnp.cos(jnp.pi * progress)),
    "linear": lambda progress: 1 - progress,
}

MOMENTS = ("float32", "bfloat16")


def learning_rate(config: Mapping[str, Any], steps: int) -> optax.Schedule:
    """Returns ``schedule(step) -> learning rate``, step counted from 0.

    With w warm-up steps and T steps in all::

        lr(step) = base * (step + 1) / w                              for step < w
                 = low + (base - low) * decay((step - w) / (T - w))   after

    so the first step already moves (lr(0) = base / w), and past T the rate stays where it ended.
    "cosine" is the schedule of the scaling study of masked, uniform and autoregressive models.

    Args:
        config: has ``learning_rate`` (base), ``min_learning_rate`` (low), ``warmup`` (w) and
            ``schedule``, one of "constant" (stays at base), "cosine", "linear".
        steps: T, the length of the run.

    Raises:
        ValueError: if the schedule is unknown, a rate is negative, ``min_learning_rate`` is above
            ``learning_rate``, or not 0 <= warmup < steps.

    Examples:
        >>> config = dict(schedule="cosine", learning_rate=1.0, min_learning_rate=0.0, warmup=2)
        >>> schedule = learning_rate(config, steps=6)
        >>> [round(float(schedule(step)), 3) for step in range(7)]
        [0.5, 1.0, 1.0, 0.854, 0.5, 0.146, 0.0]
    """
    base, low, warmup = (config[n] for n in ("learning_rate", "min_learning_rate", "warmup"))
    if config["schedule"] not in DECAYS:
        raise ValueError(
            f"unknown optimizer.schedule {config['schedule']!r}: expected one of {sorted(DECAYS)}"
        )
    if not 0 <= low <= base:
        raise ValueError(
            f"expected 0 <= min_learning_rate <= learning_rate, got min_learning_rate={low} and "
            f"learning_rate={base}"
        )
    if not 0 <= warmup < steps:
        raise ValueError(
            f"optimizer.warmup={warmup} must be at least 0 and below the number of steps, {steps}: "
            "lower the warm-up or train for longer"
        )
    decay = DECAYS[config["schedule"]]

    def schedule(step: jax.typing.ArrayLike) -> jax.Array:
        step = jnp.asarray(step).astype(float)
        progress = jnp.clip((step - warmup) / (steps - warmup), 0.0, 1.0)
        after = low + (base - low) * decay(progress)
        return jnp.where(step < warmup, base * (step + 1) / max(warmup, 1), after)

    return schedule


def adamw(config: Mapping[str, Any], schedule: optax.Schedule) -> optax.GradientTransformation:
    """Returns AdamW with decoupled decay on every parameter, after clipping the global norm.

    Norms, biases and embeddings decay too: that is what the published runs did.

    Args:
        config: has ``b1``, ``b2``, ``eps``, ``weight_decay``; ``clip``, the largest global
            gradient norm let through (0 turns clipping off); and ``moments``, one of
            `MOMENTS`: the dtype in which the first moment is kept between steps. In "bfloat16" it
            takes 2 bytes a parameter instead of 4 and is rounded to nearest, by 2^-9 of itself at
            most, which is far less than it moves in a step. The second moment stays float32: with
            b2 = 0.999 it moves by at most 2^-10 of itself when it falls, less than bfloat16 can
            tell apart, and would never fall. Parameters are float32 whatever this says.
        schedule: learning rate by step, as from `learning_rate`.

    Raises:
        ValueError: if a number is outside its range, or ``moments`` is unknown.

    Examples:
        >>> config = dict(b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.0, clip=1.0, moments="float32")
        >>> optimizer = adamw(config, lambda step: 0.5)
        >>> params = {"w": jnp.zeros(2)}
        >>> gradient = {"w": jnp.array([3.0, -4.0])}
        >>> updates, _ = optimizer.update(gradient, optimizer.init(params), params)
        >>> updates["w"].round(3).tolist()
        [-0.5, 0.5]
    """
    for name, upper in (("b1", 1.0), ("b2", 1.0), ("eps", 1.0), ("weight_decay", float("inf"))):
        value = config[name]
        if not 0 <= value < upper:
            raise ValueError(f"optimizer.{name} must lie in [0, {upper}), got {value}")
    if config["clip"] < 0:
        raise ValueError(
            f"optimizer.clip must be positive, or 0 for no clipping, got {config['clip']}"
        )
    if config["moments"] not in MOMENTS:
        raise ValueError(
            f"unknown optimizer.moments {config['moments']!r}: expected one of {list(MOMENTS)}"
        )
    update = optax.adamw(
        schedule,
        **{name: config[name] for name in ("b1", "b2", "eps", "weight_decay")},
        mu_dtype=config["moments"],
    )
    if config["clip"] > 0:
        update = optax.chain(_clip_by_global_norm(config["clip"]), update)
    return optax.GradientTransformation(update.init, _standard_promotion(update.update))


def _clip_by_global_norm(limit: float) -> optax.GradientTransformation:
    """Scales gradients down to a global norm of `limit`, as `optax.clip_by_global_norm` does.

    By one number for all, where optax divides every entry by the norm: XLA's CPU compiler then
    writes no clipped copy of the gradient, which is a third of the time of an update.
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        norm = optax.tree.norm(updates)
        factor = jnp.where(norm < limit, 1.0, limit / norm)
        return jax.tree.map(lambda g: g * factor.astype(g.dtype), updates), state

    return optax.GradientTransformation(optax.init_empty_state, update)


def _standard_promotion(update: Callable[..., Any]) -> Callable[..., Any]:
    """Lets optax mix Python floats and integer counts where JAX's strict mode is on."""

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with jax.numpy_dtype_promotion("standard"):
            return update(*args, **kwargs)

    return wrapped
