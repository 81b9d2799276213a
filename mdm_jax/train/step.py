"""One training step, as a pure function of (state, batch).

The same function runs under ``jit`` on any mesh (where a batch is one global array) and, given an
`axis_name`, under ``shard_map`` and ``pmap`` (where a batch is this device's rows). It gives the
same numbers in all of them, and for any number of micro-batches, because

* the noise is drawn once, for the whole global batch, from (seed, step); and
* sums of losses, weights and gradients are added up everywhere before the one division.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax

from mdm_jax.objectives import Objective, prepare_batch
from mdm_jax.train.spikes import watched
from mdm_jax.train.state import Params, TrainState, ema_update
from mdm_jax.weighted import WeightedSum, token_sum

# apply(params, inputs, dropout_key or None) -> the model's outputs
Apply: TypeAlias = Callable[[Params, dict[str, jax.Array], jax.Array | None], Any]
# {"tokens": int32[B, L], "where": bool[B, L]}, and "segments": int32[B, L] to keep documents apart
Batch: TypeAlias = dict[str, jax.Array]
Metrics: TypeAlias = dict[str, Any]


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    apply: Apply,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    seed: int,
    ema_decay: float = 0.0,
    ema_warmup: bool = True,
    accumulate: int = 1,
    teacher_every: int = 0,
    z_loss: float = 0.0,
    skip_above: float = 0.0,
    axis_name: str | None = None,
) -> tuple[TrainState, Metrics]:
    """Takes one optimizer step on the mean loss per token of the global batch.

    Args:
        state: the state before the step.
        batch: ``tokens`` int32[B, L] and ``where`` bool[B, L], the positions that count; and, if
            documents of a window must not see each other, ``segments`` int32[B, L] (see
            `mdm_jax.objectives.prepare_batch`). Under `axis_name`, the rows of this device.
        apply: ``apply(params, inputs, dropout_key) -> outputs``, where `inputs` comes from
            ``objective.prepare``.
        objective: what the model is fed, and its per-token loss in nats.
        optimizer: an optax transformation.
        seed: with ``state.step``, determines the noise and the dropout of the step.
        ema_decay: decay of the moving average; unused when ``state.ema`` is None.
        ema_warmup: see `ema_update`.
        accumulate: number of micro-batches the batch is cut into, to save memory. It changes
            nothing but the order of additions (and the dropout masks).
        teacher_every: steps after which the parameters become the teacher's, if ``state.teacher``
            is not None. Of the two calls that the objective then prepares, the second is the
            teacher's.
        z_loss: weight of the mean over tokens of ``logsumexp(logits)**2``, which is descended with
            the loss; 0 for none. It keeps logits from drifting. The model must return one array
            of logits.
        skip_above: a step whose gradient norm exceeds this many times the usual one (see `spikes`)
            leaves parameters, `opt_state` and `ema` as they are; 0 takes every step. Learning-rate
            schedules that count in `opt_state` do not count such a step, ``state.step`` does.
        axis_name: name of the mapped axis under ``shard_map`` or ``pmap``; None under ``jit``.

    Returns:
        The new state and the metrics ``loss`` (`WeightedSum` of nats over tokens, global),
        ``grad_norm`` (float32[], of what is descended, before clipping) and ``step`` (int32[], the
        index of the step taken). With `z_loss` also ``z_loss`` (`WeightedSum` of nats squared over
        tokens, not weighted; it is not part of ``loss``), with `skip_above` also ``skipped``
        (int32[], steps skipped so far). A batch whose `where` is all False has loss and gradient
        zero.

    Raises:
        ValueError: if the batch does not divide into `accumulate` micro-batches, or only one of
            `skip_above` and ``state.guard`` is there.
        TypeError: if there is a `z_loss` and the model's outputs are not one array of logits.

    Examples:
        On each device of a mesh, with explicit collectives (see `jit_train_step` for the usual
        way)::

            step = partial(train_step, axis_name="data", **settings)
            specs = (P(), P("data"))  # the state is replicated, the batch is split
            step = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=P()))
    """
    if (skip_above > 0) != (state.guard is not None):
        raise ValueError(
            f"skip_above={skip_above} with state.guard={state.guard}: a guard is for skip_above > "
            "0 alone, which needs one. Make the state by create_state(..., guard=skip_above > 0)"
        )
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    noise_key, dropout_key = jax.random.split(key)
    inputs, noised = _prepare(objective, noise_key, batch, state.step, axis_name)
    # The sums start from zeros that vary over the axis, and so do the parameters: else shard_map
    # would add up the gradients by itself, and psum would count them twice.
    names = ("loss", "z_loss") if z_loss else ("loss",)
    start = (state.params, {name: WeightedSum(jnp.float32(0), jnp.float32(0)) for name in names})
    start = (state.params, jax.tree.map(jnp.zeros_like, start))
    if axis_name is not None:
        dropout_key = jax.random.fold_in(dropout_key, jax.lax.axis_index(axis_name))
        start = jax.lax.pcast(start, axis_name, to="varying")

    def loss(params: Params, inputs: Any, noised: Any, index: jax.typing.ArrayLike) -> Any:
        dropout = jax.random.fold_in(dropout_key, index)
        if state.teacher is None:
            outputs = apply(params, inputs, dropout)
        else:
            student, teacher = inputs
            outputs = apply(params, student, dropout), apply(state.teacher, teacher, None)
        sums = {"loss": token_sum(objective.loss(outputs, noised), noised.where)}
        if not z_loss:
            return sums["loss"].total, sums
        sums["z_loss"] = token_sum(_squared_log_partition(outputs, noised.where), noised.where)
        return sums["loss"].total + z_loss * sums["z_loss"].total, sums

    gradient = jax.grad(loss, has_aux=True)
    grads, summed = _accumulated(gradient, start, (inputs, noised), accumulate)
    if axis_name is not None:
        grads, summed = jax.lax.psum((grads, summed), axis_name)
    weight = summed["loss"].weight
    scale = jnp.where(weight > 0, 1 / jnp.maximum(weight, 1e-30), 0.0)
    grads = jax.tree.map(lambda g: g * scale.astype(g.dtype), grads)

    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    step = state.step + 1
    ema = state.ema
    if ema is not None:
        ema = ema_update(ema, params, step, ema_decay, warmup=ema_warmup)
    metrics = {**summed, "grad_norm": optax.tree.norm(grads), "step": state.step}
    guard = state.guard
    if guard is not None:
        guard, skip = watched(guard, metrics["grad_norm"], skip_above)
        metrics["skipped"] = guard.skipped
        before = (state.params, state.opt_state, state.ema)
        kept = jax.tree.map(partial(jnp.where, skip), before, (params, opt_state, ema))
        params, opt_state, ema = kept
    teacher = state.teacher
    if teacher is not None:
        refresh = step % teacher_every == 0
        teacher = jax.tree.map(lambda old, new: jnp.where(refresh, new, old), teacher, params)
    return TrainState(step, params, opt_state, ema, teacher, guard), metrics


def _squared_log_partition(outputs: Any, where: jax.Array) -> jax.Array:
    """Returns float32[B, L], nats squared: how far logits are from log-probabilities."""
    if not isinstance(outputs, jax.Array) or outputs.shape[:-1] != where.shape:
        raise TypeError(
            f"z_loss: expected one array of logits [B, L, V] from the model over tokens "
            f"{where.shape}, got {jax.tree.map(jnp.shape, outputs)} "
            f"({type(outputs).__name__}). Set z_loss (train.z_loss) to 0 for this objective, and "
            "train.loss_chunk to 0 for a model that returns Hidden"
        )
    return jnp.square(jax.nn.logsumexp(outputs.astype(jnp.float32), axis=-1))


def _prepare(
    objective: Objective, key: jax.Array, batch: Batch, step: jax.Array, axis_name: str | None
) -> Any:
    """Draws the noise of the whole global batch; under an axis, keeps this device's rows."""
    if axis_name is None:
        return prepare_batch(objective, key, batch, step)
    ways = jax.lax.axis_size(axis_name)
    batch = jax.lax.all_gather(batch, axis_name, tiled=True)
    prepared = prepare_batch(objective, key, batch, step)

    def own(x: jax.Array) -> jax.Array:
        rows = x.shape[0] // ways  # not the batch's, where an objective makes pairs of rows
        return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(axis_name) * rows, rows)

    return jax.tree.map(own, prepared)


def _accumulated(gradient: Callable, start: Any, prepared: Any, parts: int) -> Any:
    """Sums ``gradient(params, inputs, noised, index)`` over the micro-batches of `prepared`."""
    params, zeros = start
    if parts == 1:
        return gradient(params, *prepared, 0)
    inputs, noised = prepared
    check_batch(noised.where.shape[0], accumulate=parts)

    def cut(x: jax.Array) -> jax.Array:
        # Strided, so that every device finds its part of each micro-batch among its own rows.
        return jnp.swapaxes(x.reshape(-1, parts, *x.shape[1:]), 0, 1)

    def body(sums: Any, micro_batch: Any) -> Any:
        return jax.tree.map(jnp.add, sums, gradient(params, *micro_batch)), None

    micro_batches = (*jax.tree.map(cut, (inputs, noised)), jnp.arange(parts))
    return jax.lax.scan(body, zeros, micro_batches)[0]


def check_batch(batch_size: int, *, accumulate: int = 1, devices: int = 1) -> None:
    """Checks that a global batch divides over micro-batches and devices.

    Args:
        batch_size: rows of the global batch.
        accumulate: number of micro-batches.
        devices: number of devices (or slices of the mesh) the rows are spread over.

    Raises:
        ValueError: if it does not, naming the numbers and the nearest sizes that do.

    Examples:
        >>> check_batch(64, accumulate=2, devices=8)
        >>> check_batch(20, devices=8)
        Traceback (most recent call last):
            ...
        ValueError: a batch of 20 rows does not divide into 1 micro-batch(es) on 8 device(s): ...
    """
    parts = accumulate * devices
    if accumulate < 1 or devices < 1 or batch_size < 1 or batch_size % parts:
        lower = batch_size // max(parts, 1) * parts
        sizes = f"{lower} or {lower + parts}" if lower > 0 else f"{parts}"
        raise ValueError(
            f"a batch of {batch_size} rows does not divide into {accumulate} micro-batch(es) on "
            f"{devices} device(s): use a batch of {sizes} rows, fewer micro-batches "
            "(train.accumulate) or fewer devices (mesh)"
        )


def jit_train_step(
    *, state_shardings: Any = None, batch_sharding: Any = None, **settings: Any
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Compiles `train_step` for global arrays. The state is donated: its buffers are reused.

    Args:
        state_shardings: a `TrainState` of shardings, see `meshes.state_shardings`; None on one
            device, or to keep the shardings the arguments come with.
        batch_sharding: sharding of each array of the batch, see `meshes.batch_sharding`.
        **settings: the keyword arguments of `train_step`.

    Returns:
        ``step(state, batch) -> (state, metrics)``.

    Examples:
        >>> import mdm_jax as mdm
        >>> from mdm_jax.train.state import create_state
        >>> process = mdm.Masked(4, mdm.LogLinear())
        >>> apply = lambda params, inputs, key: params["table"][inputs["tokens"]]
        >>> init = lambda key: {"table": jax.random.normal(key, (5, 5))}
        >>> optimizer = optax.sgd(0.1)
        >>> state = create_state(jax.random.key(0), init, optimizer, ema=False)
        >>> step = jit_train_step(
        ...     apply=apply, objective=mdm.masked_objective(process), optimizer=optimizer, seed=0)
        >>> tokens = jnp.zeros((2, 8), jnp.int32)
        >>> state, metrics = step(state, {"tokens": tokens, "where": tokens == 0})
        >>> int(state.step), float(metrics["loss"].weight)
        (1, 16.0)
    """
    step = partial(train_step, **settings)
    if state_shardings is None:
        return jax.jit(step, donate_argnums=0)
    return jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(state_shardings, batch_sharding),
        out_shardings=(state_shardings, None),
    )


def pmap_train_step(
    **settings: Any,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Maps `train_step` over all local devices with ``jax.pmap``, for programs written that way.

    New code should prefer `jit_train_step` on a mesh: it shards the state and donates it.

    Args:
        **settings: the keyword arguments of `train_step` but `axis_name`.

    Returns:
        ``step(state, batch) -> (state, metrics)``: the state is one copy, as under ``jit``, and the
        batch is the whole batch, cut over the devices here (ValueError if it does not divide).
    """
    mapped = jax.pmap(
        partial(train_step, axis_name="batch", **settings),
        axis_name="batch",
        in_axes=(None, 0),
        out_axes=None,
    )

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        devices = jax.local_device_count()
        check_batch(
            batch["tokens"].shape[0], accumulate=settings.get("accumulate", 1), devices=devices
        )
        return mapped(state, jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), batch))

    return step
