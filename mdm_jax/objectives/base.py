"""What an objective is, and the corruption that most of them share."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax

from mdm_jax.arrays import Bool, Key, PerToken, Tokens
from mdm_jax.masks import Segments
from mdm_jax.processes import Noised, Process
from mdm_jax.times import sample_times

# Keyword arguments of one call of the model; every array has the leading axis B. A tuple of them
# stands for as many calls, whose outputs are a tuple too.
Inputs: TypeAlias = dict[str, Any] | tuple[dict[str, Any], ...]
Prepare: TypeAlias = Callable[[Key, Tokens, Bool, jax.Array], tuple[Inputs, Noised]]
Apart: TypeAlias = Callable[[Inputs, Noised, jax.Array], tuple[Inputs, Noised]]


class Objective(NamedTuple):
    """A training objective as pure functions around the model, which they never call.

    Attributes:
        prepare: ``(key, tokens int32[B, L], where bool[B, L], step int32[]) -> (inputs, noised)``.
            `inputs` are the model's keyword arguments (``tokens``; ``sigma`` float32[B] for a
            model conditioned on time; ``mask``, ``positions``, ``clean`` where the family has
            them), or a tuple of such dicts: one call of the model for each. Every array in both
            has its rows along axis 0, in the same order, so that a micro-batch is a slice.
        loss: ``(outputs, noised) -> float32[B, L]`` nats to descend; count with `noised.where`.
            `outputs` is what the model returned: logits, or a tuple of them.
        evaluate: ``(outputs, noised) -> float32[B, L]`` nats of the bound; same count.
        prepare_evaluation: as `prepare`, for `evaluate`; None where training sees what evaluation
            sees. (Clipped times, relaxed tokens and short windows are for training alone.)
        apart: ``(inputs, noised, segments int32[B, L]) -> (inputs, noised)``, what keeps the
            documents of a window from seeing each other; None where the objective cannot, see
            `prepare_batch`.

    Examples:
        >>> import jax.numpy as jnp
        >>> import mdm_jax as mdm
        >>> objective = mdm.masked_objective(mdm.Masked(vocab_size=4, schedule=mdm.Linear()))
        >>> x = jnp.zeros((2, 3), jnp.int32)
        >>> inputs, noised = objective.prepare(jax.random.key(0), x, x == 0, jnp.int32(0))
        >>> objective.loss(jnp.zeros((2, 3, 4)), noised).shape
        (2, 3)
    """

    prepare: Prepare
    loss: Callable[[Any, Noised], PerToken]
    evaluate: Callable[[Any, Noised], PerToken]
    prepare_evaluation: Prepare | None = None
    apart: Apart | None = None


def prepare_batch(
    objective: Objective,
    key: Key,
    batch: Mapping[str, jax.Array],
    step: jax.Array,
    *,
    evaluation: bool = False,
) -> tuple[Inputs, Noised]:
    """Prepares a batch, whose documents are kept apart if it says which they are.

    Args:
        objective: what the model is fed.
        key: of the noise.
        batch: ``tokens`` int32[B, L], ``where`` bool[B, L] and, to keep documents apart,
            ``segments`` int32[B, L]: the document of each position, from 1 in each window; 0 is
            padding.
        step: int32[], of training.
        evaluation: prepare for `Objective.evaluate`.

    Returns:
        The model's inputs, with a `Segments` mask where there are segments, and the noised batch.

    Raises:
        ValueError: if there are segments and the objective cannot keep documents apart.

    Examples:
        >>> import jax.numpy as jnp
        >>> import mdm_jax as mdm
        >>> objective = mdm.masked_objective(mdm.Masked(vocab_size=4, schedule=mdm.Linear()))
        >>> x = jnp.zeros((1, 3), jnp.int32)
        >>> batch = {"tokens": x, "where": x == 0, "segments": jnp.array([[1, 1, 2]])}
        >>> inputs, _ = prepare_batch(objective, jax.random.key(0), batch, jnp.int32(0))
        >>> inputs["mask"].ids.tolist()
        [[1, 1, 2]]
    """
    segments = batch.get("segments")
    if segments is not None and objective.apart is None:
        raise ValueError(
            "the batch has segments, and this objective cannot keep documents apart: its inputs "
            "have a mask, an order or a second stream of their own. Pack without segments, or "
            "choose an objective that can (mdlm, duo, d3pm, sedd, gidd, ar)"
        )
    prepare = objective.prepare
    if evaluation and objective.prepare_evaluation is not None:
        prepare = objective.prepare_evaluation
    inputs, noised = prepare(key, batch["tokens"], batch["where"], step)
    if segments is None or objective.apart is None:
        return inputs, noised
    return objective.apart(inputs, noised, segments)


def hide_others(inputs: Inputs, noised: Noised, segments: jax.Array) -> tuple[Inputs, Noised]:
    """An `Objective.apart` for inputs that are the window itself: other documents are masked.

    Args:
        inputs: of one call of the model or of several, without a mask.
        noised: the noised batch.
        segments: int32[B, L].

    Examples:
        >>> import jax.numpy as jnp
        >>> hide_others({"tokens": jnp.zeros((1, 2), int)}, None, jnp.array([[1, 2]]))[0]["mask"]
        Segments(ids=Array([[1, 2]], dtype=int32), causal=False)
    """
    if isinstance(inputs, tuple):
        return tuple({**one, "mask": Segments(segments)} for one in inputs), noised
    return {**inputs, "mask": Segments(segments)}, noised


def corrupting(
    process: Process, *, time_conditioning: bool, low: float = 0.0, high: float = 1.0
) -> Prepare:
    """A `prepare` that draws one stratified time per sequence and corrupts to it.

    Args:
        process: the noise.
        time_conditioning: whether the model is fed ``sigma(t)``.
        low: smallest time.
        high: largest time.

    Examples:
        >>> import jax.numpy as jnp
        >>> import mdm_jax as mdm
        >>> prepare = corrupting(mdm.Masked(4, mdm.Linear()), time_conditioning=False)
        >>> x = jnp.zeros((2, 3), jnp.int32)
        >>> inputs, noised = prepare(jax.random.key(0), x, x == 0, jnp.int32(0))
        >>> sorted(inputs), noised.t.shape
        (['tokens'], (2,))
    """

    def prepare(key: Key, tokens: Tokens, where: Bool, step: jax.Array) -> tuple[Inputs, Noised]:
        del step
        key_time, key_noise = jax.random.split(key)
        t = sample_times(key_time, tokens.shape[:1], low=low, high=high)
        noised = process.corrupt(key_noise, tokens, t, where=where)
        return model_inputs(process, noised, time_conditioning), noised

    return prepare


def trained_late(
    process: Process, *, time_conditioning: bool, min_time: float
) -> dict[str, Prepare]:
    """`prepare`, and `prepare_evaluation` where training leaves out the times below `min_time`.

    Args:
        process: the noise.
        time_conditioning: whether the model is fed ``sigma(t)``.
        min_time: smallest time to train on; 0 for all.

    Returns:
        Keyword arguments of `Objective`.

    Raises:
        ValueError: if `min_time` lies outside [0, 1).

    Examples:
        >>> import mdm_jax as mdm
        >>> process = mdm.Masked(4, mdm.Linear())
        >>> sorted(trained_late(process, time_conditioning=False, min_time=1e-3))
        ['prepare', 'prepare_evaluation']
    """
    if not 0 <= min_time < 1:
        raise ValueError(f"min_time={min_time}: expected a time in [0, 1)")
    everything = corrupting(process, time_conditioning=time_conditioning)
    if min_time == 0:
        return {"prepare": everything}
    late = corrupting(process, time_conditioning=time_conditioning, low=min_time)
    return {"prepare": late, "prepare_evaluation": everything}


def model_inputs(process: Process, noised: Noised, time_conditioning: bool) -> dict[str, Any]:
    """What a plain model is fed: the noised tokens, and sigma(t) where it is told the time.

    Args:
        process: the noise.
        noised: the corrupted batch, with one time per sequence.
        time_conditioning: whether ``sigma`` is among the inputs.

    Examples:
        >>> import jax.numpy as jnp
        >>> import mdm_jax as mdm
        >>> process, x = mdm.Masked(4, mdm.LogLinear()), jnp.zeros((1, 3), jnp.int32)
        >>> noised = process.corrupt(jax.random.key(0), x, jnp.array([0.5]))
        >>> sorted(model_inputs(process, noised, True))
        ['sigma', 'tokens']
    """
    inputs: dict[str, Any] = {"tokens": noised.tokens}
    if time_conditioning:
        inputs["sigma"] = process.schedule.sigma(noised.t)
    return inputs
