"""The compiled part of sampling: from a canvas and a plan to tokens, and a record of each step."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm.auto import tqdm

import mdm_jax as mdm
from mdm_jax.arrays import Logits, Times, Tokens, last_axis_index
from mdm_jax.blocks import blocks_in, generate_blocks, generate_strided, put, take
from mdm_jax.denoisers import Denoiser
from mdm_jax.evaluation.plans import Plan, make_sampler, make_times
from mdm_jax.models.decoding import generate_autoregressive, generate_permuted


class Inputs(NamedTuple):
    """What a run is fed, apart from its plan.

    Attributes:
        logits_fn: a `jax.tree_util.Partial` over the parameters; None on routes with a cache.
        remembering: likewise, for routes with a cache; None on the others.
        tokens: int32[B, L], the canvas.
        keep: bool[B, L], what is given.
        order: int32[B, L] and int32[B], the places in the order in which an Eso-LM fills them, and
            how many are given; None for all others.
        temperature: float32[].
        nucleus: float32[].
        guidance: float32[].
        schedule: the learned schedules of a GenMD4 model; None for any other.
    """

    logits_fn: Any
    remembering: Any
    tokens: jax.Array
    keep: jax.Array
    order: tuple[jax.Array, jax.Array] | None
    temperature: jax.Array
    nucleus: jax.Array
    guidance: jax.Array
    schedule: Any


class Seen(NamedTuple):
    """What was recorded, W windows of T steps each.

    Attributes:
        start: int32[B, L], the canvas at first.
        after: int32[W, T, B, width], the window after each step.
        probability: float32[W, T, B, width], the model's probability of the token that stands
            there now; NaN where there is none.
        entropy: float32[W, T, B, width], of the model's prediction, in nats.
    """

    start: jax.Array
    after: jax.Array
    probability: jax.Array
    entropy: jax.Array


class Drawn(NamedTuple):
    """What a run returns.

    Attributes:
        tokens: int32[B, L].
        calls: int32[], model calls.
        times: float32[T + 1] or float32[T + 1, B], of a window.
        seen: the record, if the plan asks for one and the route draws from a canvas or window.
    """

    tokens: jax.Array
    calls: jax.Array
    times: jax.Array
    seen: Seen | None


@partial(jax.jit, static_argnames="plan")
def draw(key: jax.Array, inputs: Inputs, *, plan: Plan) -> Drawn:
    """Samples as planned.

    Args:
        key: a PRNG key.
        inputs: `Inputs`.
        plan: `mdm_jax.evaluation.plans.make_plan`'s.

    Returns:
        `Drawn`.
    """
    key_prior, key_times, key_steps = jax.random.split(key, 3)
    denoiser, process, keep = _denoiser(inputs, plan), plan.process, inputs.keep
    start = jnp.where(keep, inputs.tokens, process.prior(key_prior, inputs.tokens))
    if plan.route == "permuted":
        assert inputs.order is not None
        order, given = inputs.order
        counts = np.asarray(plan.counts, np.int32)
        out = generate_permuted(
            key_steps,
            denoiser,
            process,
            start,
            order,
            counts,
            given=given if plan.prefill else None,
        )
        return Drawn(out.tokens, out.calls, mdm.time_grid(plan.most_steps), None)
    if plan.route == "autoregressive":
        out = generate_autoregressive(
            key_steps, denoiser, process, start, keep=keep, prefill=plan.prefill
        )
        return Drawn(out.tokens, out.calls, mdm.time_grid(plan.most_steps), None)
    times = make_times(key_times, start, plan)
    loop = (key_steps, denoiser, make_sampler(plan, inputs.schedule), start, times)
    if plan.watch:
        return _watched(*loop, keep, plan)
    stop = None
    if plan.decides and not plan.every_step:
        stop = mdm.all_decided(process)
    if plan.route == "blocks":
        out = generate_blocks(*loop, block=plan.width, keep=keep, block_stop=stop)
    elif plan.route == "strided":
        stride = plan.width - plan.kept
        out = generate_strided(*loop, window=plan.width, stride=stride, keep=keep, window_stop=stop)
    else:
        out = mdm.generate(*loop, keep=keep, stop=stop)
    return Drawn(out.tokens, out.calls, times, None)


def _denoiser(inputs: Inputs, plan: Plan) -> Denoiser:
    """The model with its edits; -inf for what the process never draws."""
    process = plan.process
    if inputs.remembering is not None:
        denoiser = mdm.predicting(inputs.remembering(**dict(plan.memory)), process)
    elif plan.guide:
        logits_fn, scale = inputs.logits_fn, inputs.guidance
        denoiser = mdm.unsupervised_guided(logits_fn, process, scale, prompt=inputs.keep)
    else:
        denoiser = mdm.predicting(mdm.denoiser(inputs.logits_fn), process)
    if plan.shift and inputs.remembering is None:
        denoiser = mdm.shifted(denoiser, process, first=plan.first)
    if plan.forbid:
        denoiser = mdm.forbid(denoiser, plan.forbid)
    denoiser = mdm.tempered(denoiser, inputs.temperature)
    if plan.top_k:
        denoiser = mdm.top_k(denoiser, plan.top_k)
    if plan.truncate:
        denoiser = mdm.nucleus(denoiser, inputs.nucleus)
    return _ticking(denoiser) if plan.progress else denoiser


def _watched(key, denoiser, sampler, start, times, keep, plan: Plan) -> Drawn:
    """Takes every step of every window, and records them; the tokens are those of `draw`."""
    record = _recorder(plan)
    if plan.route == "canvas":
        seen = mdm.trajectory(key, denoiser, sampler, start, times, keep=keep, select=record)
        calls = jnp.int32(plan.steps * denoiser.calls)
        return Drawn(seen[0][-1], calls, times, Seen(start, *jax.tree.map(lambda x: x[None], seen)))
    remembers = plan.route == "blocks"
    overlap = jnp.broadcast_to(
        last_axis_index(plan.width, start.ndim) < plan.kept, (*start.shape[:-1], plan.width)
    )

    def fill(loop, inputs):
        tokens, carry = loop
        number, offset = inputs
        window = take(tokens, offset, plan.width)
        kept = take(keep, offset, plan.width) | (overlap & (number > 0))
        seen = mdm.trajectory(
            jax.random.fold_in(key, number),
            denoiser._replace(init=lambda _: carry) if remembers else denoiser,
            sampler,
            window,
            times,
            keep=kept,
            select=record,
        )
        if remembers:  # a block that is denoised leaves nothing in the carry until it is committed
            carry = denoiser.commit(seen[0][-1], carry)
        return (put(tokens, seen[0][-1], offset), carry), seen

    offsets = jnp.asarray(plan.offsets, jnp.int32)
    # Windows have the numbers, and so the keys, that the loops without a record give them.
    numbers = offsets // plan.width if remembers else jnp.arange(len(plan.offsets))
    carry = denoiser.init(start) if remembers else ()
    (tokens, carry), seen = jax.lax.scan(fill, (start, carry), (numbers.astype(jnp.int32), offsets))
    calls = jnp.int32(plan.most_steps * denoiser.calls)
    return Drawn(tokens, sum((x.calls for x in blocks_in(carry)), calls), times, Seen(start, *seen))


def _recorder(plan: Plan) -> Callable[[Tokens, Tokens, Logits], tuple]:
    """Picks [B, L] numbers from a step: the tokens, their probability, and the entropy there."""

    def record(before: Tokens, after: Tokens, logits: Logits):
        if plan.scores:  # ratios, not probabilities
            nothing = jnp.full(after.shape, jnp.nan, jnp.float32)
            return after, nothing, nothing
        log_p = jax.nn.log_softmax(plan.process.data_logits(logits), axis=-1)
        entropy = -jnp.sum(jnp.where(log_p > -jnp.inf, jnp.exp(log_p) * log_p, 0.0), axis=-1)
        here = jnp.clip(after, 0, logits.shape[-1] - 1)[..., None]
        drawn = jnp.take_along_axis(log_p, here, axis=-1)[..., 0]
        # A token that the model never predicts is a mask that was put back.
        known = (before != after) & (drawn > -jnp.inf) & (after < logits.shape[-1])
        return after, jnp.where(known, jnp.exp(drawn), jnp.nan), entropy

    return record


bars: list[tqdm] = []
"""Bars of the runs in progress; compiled code cannot hold one of its own."""


def _tick() -> None:
    if bars:
        bars[-1].update()


def _ticking(inner: Denoiser) -> Denoiser:
    """Ticks the bar at every model call."""

    def apply(tokens: Tokens, t: Times, carry: Any):
        jax.debug.callback(_tick)
        return inner.apply(tokens, t, carry)

    return inner._replace(apply=apply)
