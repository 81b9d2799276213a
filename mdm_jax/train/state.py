"""Everything a run carries from one step to the next, and the moving average of its parameters.

The state holds no functions and no random key: noise and dropout are derived from (seed, step), so
a checkpoint of this tuple is the whole run.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mdm_jax.train.spikes import Guard, new_guard

Params = Any  # a pytree of float32 arrays


class TrainState(NamedTuple):
    """What a checkpoint stores.

    Attributes:
        step: int32[], the number of optimizer steps taken so far.
        params: pytree of float32 arrays.
        opt_state: the optimizer's state.
        ema: exponential moving average, a pytree like `params`; None when it is off.
        teacher: frozen parameters that a distillation learns from, a pytree like `params`; None
            where there is none.
        guard: what `train.skip_above` compares a gradient with; None when it is off.
    """

    step: jax.Array
    params: Params
    opt_state: optax.OptState
    ema: Params | None
    teacher: Params | None = None
    guard: Guard | None = None

    @property
    def eval_params(self) -> Params:
        """The parameters to evaluate and sample with: the average where there is one."""
        return self.params if self.ema is None else self.ema


def create_state(
    key: jax.Array,
    init: Callable[[jax.Array], Params],
    optimizer: optax.GradientTransformation,
    *,
    ema: bool,
    teacher: bool = False,
    guard: bool = False,
) -> TrainState:
    """Returns the state before the first step.

    Args:
        key: typed PRNG key for the parameters.
        init: ``init(key) -> params``.
        optimizer: any optax transformation.
        ema: whether to carry a moving average. It starts at the initial parameters.
        teacher: whether to carry a teacher. It starts there too.
        guard: whether to carry the statistic that `train_step` needs for `skip_above`.

    Examples:
        >>> import optax
        >>> init = lambda key: {"w": jax.random.normal(key, (2,))}
        >>> state = create_state(jax.random.key(0), init, optax.sgd(0.1), ema=True)
        >>> int(state.step), bool((state.ema["w"] == state.params["w"]).all())
        (0, True)
    """
    params = init(key)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        # A copy: a donated state must not hold the same buffer twice.
        ema=jax.tree.map(jnp.copy, params) if ema else None,
        teacher=jax.tree.map(jnp.copy, params) if teacher else None,
        guard=new_guard() if guard else None,
    )


def with_params(state: TrainState, params: Params) -> TrainState:
    """Returns a state before the first step that starts from given parameters.

    Args:
        state: what `create_state` returned.
        params: for the parameters, their average and the teacher alike.

    Raises:
        ValueError: if the parameters are not those of this model; the first that differs is named.

    Examples:
        >>> import optax
        >>> init = lambda key: {"w": jax.random.normal(key, (2,))}
        >>> state = create_state(jax.random.key(0), init, optax.sgd(0.1), ema=True)
        >>> with_params(state, {"w": jnp.ones(2)}).ema["w"].tolist()
        [1.0, 1.0]
    """
    shapes = [
        {jax.tree_util.keystr(path): x.shape for path, x in jax.tree.leaves_with_path(tree)}
        for tree in (state.params, params)
    ]
    if shapes[0] != shapes[1]:
        name = next(k for k in sorted({**shapes[0], **shapes[1]}) if _differs(k, *shapes))
        raise ValueError(
            f"the parameters to start from are those of another model: {name} has shape "
            f"{shapes[1].get(name, 'none')}, and {shapes[0].get(name, 'none')} here"
        )
    copy = lambda kept: None if kept is None else jax.tree.map(jnp.array, params)
    return state._replace(params=copy(()), ema=copy(state.ema), teacher=copy(state.teacher))


def _differs(name: str, ours: dict[str, tuple], theirs: dict[str, tuple]) -> bool:
    return ours.get(name) != theirs.get(name)


def ema_update(
    ema: Params, params: Params, step: jax.Array, decay: float, *, warmup: bool = True
) -> Params:
    """Moves the average towards the parameters: ``ema - (1 - d) * (ema - params)``.

    With `warmup`, ``d = min(decay, (1 + n) / (10 + n))`` where n is the number of updates made,
    this one included (MDLM's ``models/ema.py``; the first update has d = 2 / 11). Early on the
    average thus follows the parameters instead of remembering the initialization.

    Args:
        ema: pytree of float32 arrays.
        params: pytree of the same structure, after the optimizer's update.
        step: int32[], n: the number of optimizer steps taken, this one included.
        decay: the limit of d, in [0, 1).
        warmup: whether d starts small; if not, d = `decay` always.

    Examples:
        >>> ema_update(jnp.float32(0.0), jnp.float32(11.0), jnp.int32(1), 0.9999).round(4).item()
        9.0
    """
    n = jnp.asarray(step, jnp.float32)
    d = jnp.minimum(decay, (1 + n) / (10 + n)) if warmup else decay
    return jax.tree.map(lambda old, new: old - (1 - d) * (old - new), ema, params)
