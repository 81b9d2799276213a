"""Speed against quality: a sweep of samplers, steps and temperatures on one model.

Quality is what an autoregressive judge makes of the samples, its exact likelihood, beside their
unigram entropy: repetitive text has a low likelihood loss, so that two numbers are compared at
equal entropy, that of real text. Cost is model calls, FLOPs and seconds. All settings are run in
turn, round after round, in one process, so that a machine whose speed drifts favors none;
compilation and a first round are not timed.
"""

import dataclasses
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from mdm_jax.evaluation.canvas import canvas
from mdm_jax.evaluation.samples import Samples, TextModel, sample_text
from mdm_jax.evaluation.text_models import next_token_nats
from mdm_jax.evaluation.text_statistics import distinct, repetition, unigram_entropy
from mdm_jax.markdown import markdown_table


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """One way to sample.

    Attributes:
        sampler: a name that fits the model.
        steps: as in `sample_text`; 0 for the default.
        temperature: divides the logits.
        options: of the sampler, (name, value) each.
        every_step: whether idle steps call the model all the same.
    """

    sampler: str
    steps: int = 0
    temperature: float = 1.0
    options: tuple[tuple[str, Any], ...] = ()
    every_step: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """What a setting cost, and how good its samples are.

    Attributes:
        name: of the model.
        setting: what was run.
        samples: rows that quality was measured on.
        length: tokens of a row.
        judge_nats: of the judge, per token; None without a judge.
        entropy: `unigram_entropy` of the rows, in nats.
        repetition: `repetition` for n = 2, 3, 4.
        distinct: `distinct` for n = 1, 2.
        calls: model calls of a batch, mean over rounds.
        flops: per row, None where the model's sizes are not known. Attention is counted over the
            whole canvas; with a cache, over all of its slots, as it is computed.
        seconds: of a whole batch, median of the rounds.
        latency: seconds of a single row, likewise; None if not measured.
        tokens_per_second: generated tokens of the batch over `seconds`.
        compile_seconds: apart from `seconds`.
    """

    name: str
    setting: Setting
    samples: int
    length: int
    judge_nats: float | None
    entropy: float
    repetition: tuple[float, float, float]
    distinct: tuple[float, float]
    calls: float
    flops: float | None
    seconds: float
    latency: float | None
    tokens_per_second: float
    compile_seconds: float

    def record(self) -> dict[str, Any]:
        """The point as one flat dict of numbers and words, for a line of JSON."""
        fields = dataclasses.asdict(self)
        setting = fields.pop("setting")
        setting["options"] = dict(setting["options"])
        return {"name": fields.pop("name"), **setting, **fields}


def judged(judge: TextModel, tokens: np.ndarray, *, batch_size: int = 64) -> float:
    """The negative log-likelihood of texts under an autoregressive model, in nats per token.

    The first token of a row is read and not scored, as the model has no prediction for it, unless
    it was trained with an id before each text (`TextModel.first`).

    Args:
        judge: an autoregressive model of the same tokens.
        tokens: int[N, L].
        batch_size: rows per model call.

    Raises:
        ValueError: if the judge is not autoregressive.

    Examples:
        >>> from mdm_jax.data import ByteTokenizer
        >>> flat = Partial(lambda tokens, t: jnp.zeros((*tokens.shape, 256)))
        >>> judge = TextModel(flat, None, ByteTokenizer())
        >>> round(judged(judge, np.zeros((3, 4), np.int32)) / float(np.log(256)), 4)
        1.0
    """
    if judge.process is not None:
        raise ValueError(
            f"the judge is a model of {judge.process}, whose likelihood is a bound: take an "
            "autoregressive one (objective.name='ar')"
        )
    function = judge.logits_fn
    function = function if isinstance(function, Partial) else Partial(function)
    tokens, batch_size = np.asarray(tokens), min(batch_size, len(tokens))
    total = 0.0
    for start in range(0, len(tokens), batch_size):
        rows = tokens[start : start + batch_size]
        padded = np.pad(rows, ((0, batch_size - len(rows)), (0, 0)))
        nats = _nats(function, padded, first=judge.first)
        total += float(np.asarray(nats, np.float64)[: len(rows)].sum())
    return total / (tokens.shape[0] * (tokens.shape[1] - (judge.first is None)))


@partial(jax.jit, static_argnames="first")
def _nats(logits_fn, tokens, *, first):
    everywhere = jnp.ones_like(tokens, jnp.bool_)
    return jnp.sum(next_token_nats(logits_fn, tokens, everywhere, first)[0], axis=-1)


def sweep(
    samplers: Sequence[str], steps: Sequence[int], temperatures: Sequence[float]
) -> list[Setting]:
    """All combinations, with one value of `steps` for samplers that take none.

    Args:
        samplers: names; "autoregressive" takes no steps.
        steps: numbers of steps; 0 for a sampler's default.
        temperatures: positive numbers.

    Examples:
        >>> len(sweep(["ancestral", "autoregressive"], [8, 16], [1.0]))
        3
    """
    return [
        Setting(sampler=sampler, steps=number, temperature=temperature)
        for sampler in samplers
        for number in ([0] if sampler == "autoregressive" else steps)
        for temperature in temperatures
    ]


def measure(
    key: jax.Array,
    candidates: Sequence[tuple[str, TextModel, Setting]],
    *,
    length: int,
    batch: int = 16,
    rounds: int = 3,
    judge: TextModel | None = None,
    latency: bool = True,
    progress: Callable[[str], None] = lambda message: None,
) -> list[Point]:
    """Runs every candidate in turn, round after round, and measures it.

    Args:
        key: a PRNG key. Quality is measured on the rows of all rounds.
        candidates: (name of the model, model, setting) each; an autoregressive baseline with the
            sampler "autoregressive" has a cache.
        length: tokens of a row.
        batch: rows of a batch.
        rounds: timed rounds, after one that is not.
        judge: an autoregressive model of the same tokens; None for no judge.
        latency: whether single rows are timed too.
        progress: told of every round.

    Returns:
        One `Point` for each candidate.

    Raises:
        ValueError: if there is no candidate or round, a tokenizer is another than the judge's, or a
            setting does not fit its model.
    """
    if not candidates or rounds < 1:
        raise ValueError(f"{len(candidates)} candidates, rounds={rounds}: expected at least one")
    if judge is not None:
        for name, model, _ in candidates:
            if model.tokenizer != judge.tokenizer:
                raise ValueError(
                    f"{name} speaks {model.tokenizer} and the judge {judge.tokenizer}: the judge "
                    "scores tokens, so it must have the same ones"
                )
    runs: list[list[Samples]] = [[] for _ in candidates]
    single: list[list[Samples]] = [[] for _ in candidates]
    for number in range(rounds + 1):
        progress(f"round {number} of {rounds}")
        for index, (_, model, setting) in enumerate(candidates):
            here = jax.random.fold_in(jax.random.fold_in(key, number), index)
            runs[index].append(_run(here, model, setting, length, batch))
            if latency:
                single[index].append(_run(jax.random.fold_in(here, 1), model, setting, length, 1))
    return [
        _point(name, model, setting, length, runs[index], single[index], judge)
        for index, (name, model, setting) in enumerate(candidates)
    ]


def _run(key: jax.Array, model: TextModel, setting: Setting, length: int, batch: int) -> Samples:
    return sample_text(
        key,
        model,
        canvas(model.tokenizer, length=length),
        sampler=setting.sampler,
        options=dict(setting.options),
        steps=setting.steps,
        temperature=setting.temperature,
        batch=batch,
        every_step=setting.every_step,
    )


def _point(
    name: str,
    model: TextModel,
    setting: Setting,
    length: int,
    runs: Sequence[Samples],
    single: Sequence[Samples],
    judge: TextModel | None,
) -> Point:
    tokens = np.concatenate([run.tokens for run in runs])
    flops = model.flops(model.length if 0 < model.length < length else length)
    processed = statistics.fmean(run.processed for run in runs)
    seconds = statistics.median(run.seconds for run in runs[1:])
    return Point(
        name=name,
        setting=setting,
        samples=len(tokens),
        length=length,
        judge_nats=None if judge is None else judged(judge, tokens),
        entropy=unigram_entropy(tokens),
        repetition=(repetition(tokens, 2), repetition(tokens, 3), repetition(tokens, 4)),
        distinct=(distinct(tokens, 1), distinct(tokens, 2)),
        calls=statistics.fmean(run.calls for run in runs),
        flops=None if flops is None else flops * processed,
        seconds=seconds,
        latency=statistics.median(run.seconds for run in single[1:]) if single else None,
        tokens_per_second=runs[0].generated / seconds,
        compile_seconds=runs[0].compile_seconds,
    )


def at_entropy(points: Iterable[Point], entropy: float) -> dict[tuple, float | None]:
    """The judge's nats of each curve where its unigram entropy is the given one.

    A curve is the points of one model, sampler, number of steps and options over temperatures; the
    value lies on the line between the two points around `entropy`.

    Args:
        points: of `measure`, with a judge.
        entropy: in nats, such as `unigram_entropy` of real text of the same length.

    Returns:
        (name, sampler, steps, options, every_step) to nats per token; None for a curve that does
        not reach the entropy.

    Examples:
        >>> at_entropy([], 5.4)
        {}
    """
    curves: dict[tuple, list[tuple[float, float]]] = {}
    for point in points:
        curve = curves.setdefault(curve_of(point), [])
        if point.judge_nats is not None:
            curve.append((point.entropy, point.judge_nats))
    return {name: _interpolated(sorted(curve), entropy) for name, curve in curves.items()}


def curve_of(point: Point) -> tuple:
    """What all points of a curve share: all but the temperature.

    Args:
        point: of `measure`.
    """
    setting = point.setting
    return (point.name, setting.sampler, setting.steps, setting.options, setting.every_step)


def _interpolated(curve: Sequence[tuple[float, float]], at: float) -> float | None:
    if not curve or not curve[0][0] <= at <= curve[-1][0]:
        return None
    entropies, nats = np.array(curve).T
    return float(np.interp(at, entropies, nats))


def best(points: Sequence[Point], cost: Callable[[Point], float | None]) -> list[Point]:
    """The Pareto front: points that no other beats in both cost and the judge's nats.

    Args:
        points: of `measure`.
        cost: what a point costs; points without a cost, or not judged, are left out.

    Returns:
        From the cheapest on.

    Examples:
        >>> best([], lambda point: point.flops)
        []
    """
    rated = [(c, p.judge_nats, i) for i, p in enumerate(points) if (c := cost(p)) is not None]
    front, least = [], float("inf")
    for _, nats, index in sorted(r for r in rated if r[1] is not None):
        if nats is not None and nats < least:
            front.append(points[index])
            least = nats
    return front


def table(points: Sequence[Point], matched: Mapping[tuple, float | None] | None = None) -> str:
    """The points as a Markdown table.

    Args:
        points: of `measure`.
        matched: of `at_entropy`; None leaves the column out.

    Examples:
        >>> print(table([]).splitlines()[0][:39])
        | model | sampler | steps | temperature
    """
    header = ["model", "sampler", "steps", "temperature", "judge, nats", "entropy", "rep-2/3/4"]
    header += ["distinct-1/2", "calls", "GFLOP/row", "ms/row, alone", "tokens/s"]
    header += [] if matched is None else ["judge at equal entropy"]
    rows = []
    for point in points:
        setting = point.setting
        options = "".join(f" {name}={value}" for name, value in setting.options)
        row = [
            point.name,
            setting.sampler + options + (" (every step)" if setting.every_step else ""),
            str(setting.steps or "default"),
            f"{setting.temperature:g}",
            _number(point.judge_nats, ".3f"),
            f"{point.entropy:.3f}",
            " / ".join(f"{value:.3f}" for value in point.repetition),
            " / ".join(f"{value:.3f}" for value in point.distinct),
            f"{point.calls:.1f}",
            _number(None if point.flops is None else point.flops / 1e9, ",.3g"),
            _number(None if point.latency is None else 1e3 * point.latency, ",.3g"),
            f"{point.tokens_per_second:,.0f}",
        ]
        if matched is not None:
            row.append(_number(matched.get(curve_of(point)), ".3f"))
        rows.append(row)
    return markdown_table(header, rows)


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
