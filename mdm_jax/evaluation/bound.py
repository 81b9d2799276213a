"""The bound of a model on held-out data, in nats per token and bits per byte, with its error."""

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from mdm_jax.objectives import Objective, prepare_batch

# Training step i folds i into the key of its seed. Evaluation folds this in first, so that its
# noise is not the noise of training steps where the seeds are equal.
_EVALUATION_FOLD = 2**32 - 2


class BoundReport(NamedTuple):
    """A bound on the negative log-likelihood per token, and how sure it is.

    Attributes:
        nats_per_token: mean over scored tokens, constant terms included.
        standard_error: of `nats_per_token`, from the spread over sequences; it covers the draw of
            the noise and of the sequences. NaN for fewer than two sequences.
        tokens: number of scored tokens.
    """

    nats_per_token: float
    standard_error: float
    tokens: int


def evaluate_bound(
    apply: Callable[[Any, dict[str, jax.Array], None], Any],
    params: Any,
    objective: Objective,
    batches: Iterable[Mapping[str, Any]],
    *,
    seed: int,
    samples: int = 1,
    constant: float = 0.0,
    place: Callable[[Any], Any] = lambda batch: batch,
) -> BoundReport:
    """Estimates the bound on all sequences of `batches`.

    The noise depends on (seed, index of the batch) alone, so two models are compared, and one model
    is followed over training, on the same noise.

    Args:
        apply: ``apply(params, inputs, None) -> outputs``. Use the same function object in every
            call: a new one is compiled again.
        params: the model's parameters.
        objective: its `evaluate` is averaged.
        batches: ``{"tokens": int32[B, L], "where": bool[B, L]}`` each; rows without a True are
            padding and count for nothing. With ``segments`` int32[B, L], documents do not see
            each other (see `mdm_jax.objectives.prepare_batch`).
        seed: of the noise.
        samples: noise draws per sequence.
        constant: nats per token to add, see `mdm_jax.constant_terms`.
        place: puts a batch on devices, for instance `mdm_jax.train.meshes.to_global`.

    Returns:
        `BoundReport`.

    Raises:
        ValueError: if there is no token to score, or `samples` is below 1.

    Examples:
        >>> import mdm_jax as mdm
        >>> objective = mdm.masked_objective(mdm.Masked(vocab_size=4, schedule=mdm.Linear()))
        >>> flat = lambda params, inputs, key: jnp.zeros((*inputs["tokens"].shape, 4))
        >>> tokens = jnp.zeros((64, 32), jnp.int32)
        >>> batch = {"tokens": tokens, "where": tokens == 0}
        >>> report = evaluate_bound(flat, None, objective, [batch], seed=0)
        >>> abs(report.nats_per_token - math.log(4)) < 3 * report.standard_error
        True
    """
    if samples < 1:
        raise ValueError(f"samples={samples}: expected at least one noise draw per sequence")
    key = jax.random.fold_in(jax.random.key(seed), _EVALUATION_FOLD)
    nats, tokens = [], []
    for index, batch in enumerate(batches):
        sums = _row_sums(
            params,
            place(batch),
            jax.random.fold_in(key, index),
            apply=apply,
            objective=objective,
            samples=samples,
        )
        rows = [np.asarray(multihost_utils.process_allgather(x, tiled=True)) for x in sums]
        nats.append(rows[0].astype(np.float64))
        tokens.append(rows[1].astype(np.float64))
    return _report(np.concatenate([*nats, ()]), np.concatenate([*tokens, ()]), constant)


@partial(jax.jit, static_argnames=("apply", "objective", "samples"))
def _row_sums(
    params: Any, batch: Any, key: jax.Array, *, apply: Callable, objective: Objective, samples: int
) -> tuple[jax.Array, jax.Array]:
    """Nats and scored tokens of each row, float32[B] each; nats are the mean over noise draws."""

    def draw(index: jax.Array) -> tuple[jax.Array, jax.Array]:
        draw_key = jax.random.fold_in(key, index)
        step = jnp.zeros((), jnp.int32)
        inputs, noised = prepare_batch(objective, draw_key, batch, step, evaluation=True)
        nats = objective.evaluate(apply(params, inputs, None), noised)
        counts = noised.where.astype(jnp.float32)
        return jnp.where(noised.where, nats, 0.0).sum(-1), counts.sum(-1)

    nats, counts = jax.lax.map(draw, jnp.arange(samples))
    return nats.mean(0), counts.mean(0)


def _report(nats: np.ndarray, tokens: np.ndarray, constant: float) -> BoundReport:
    """Ratio estimate sum(nats) / sum(tokens) over sequences, and its standard error."""
    nats, tokens = nats[tokens > 0], tokens[tokens > 0]
    rows, total = len(tokens), tokens.sum()
    if rows == 0:
        raise ValueError("the evaluation batches hold no token to score: every `where` is False")
    mean = nats.sum() / total
    spread = np.square(nats - mean * tokens).sum() * rows / (rows - 1) if rows > 1 else math.nan
    return BoundReport(float(mean) + constant, float(np.sqrt(spread) / total), int(total))


def bits_per_byte(nats_per_token: float, tokens: int, num_bytes: int) -> float:
    """Converts a bound to bits per byte of the text.

    Args:
        nats_per_token: for instance ``report.nats_per_token``.
        tokens: number of tokens the text was cut into, ends of documents included.
        num_bytes: bytes of the text.

    Raises:
        ValueError: if `num_bytes` is not positive.

    Examples:
        >>> bits_per_byte(math.log(2), tokens=8, num_bytes=8)
        1.0
    """
    if num_bytes < 1:
        raise ValueError(f"num_bytes={num_bytes}: expected the number of bytes of the text")
    return nats_per_token * tokens / num_bytes / math.log(2)
