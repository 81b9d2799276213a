"""Text in, text out: sampling from a trained model of any family.

The families differ in what they can do. Masked models fill gaps anywhere, in any order, and so do
uniform-state and hybrid models, whose tokens change again and again; block diffusion writes block
by block; an Eso-LM writes in an order that is drawn first; autoregressive models continue text.
"""

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from tqdm.auto import tqdm

from mdm_jax.data import Tokenizer
from mdm_jax.evaluation.canvas import Canvas
from mdm_jax.evaluation.drawing import Inputs, Seen, bars, draw
from mdm_jax.evaluation.editing import Edits
from mdm_jax.evaluation.plans import Plan, make_plan
from mdm_jax.evaluation.text_models import TextModel, samplers_for
from mdm_jax.models.orders import eso_plan

__all__ = ["Edits", "Samples", "TextModel", "readable", "sample_text", "samplers_for"]

END = "<end>"  # how the end of a document reads in a sample


class Samples(NamedTuple):
    """Sampled texts and what they cost.

    Attributes:
        texts: one per row, given text included; ends of documents read "<end>".
        tokens: int32[B, L].
        frames: int32[T + 1, B, L], the canvas and what it was after each step; None if not watched.
        times: float32[T + 1], the times of the frames in the first row.
        sampler: name of the sampler used.
        steps: most steps it may take.
        calls: model calls, each for the whole batch.
        seconds: of sampling, without compilation.
        compile_seconds: of tracing and compilation; about 0 the second time.
        generated: tokens drawn; given ones do not count.
        probability: float32[T, B, L], the model's probability of each token at the step that put
            it there, NaN where the step put none; None if not watched, or not known.
        entropy: float32[T, B, L], of the model's prediction there, in nats, NaN where it was not
            asked; None like `probability`.
        processed: tokens that model calls evaluated, per row: what a call costs, in tokens.
        note: what to know about the text, such as that the model sees a part of it only.
    """

    texts: tuple[str, ...]
    tokens: np.ndarray
    frames: np.ndarray | None
    times: np.ndarray
    sampler: str
    steps: int
    calls: int
    seconds: float
    compile_seconds: float
    generated: int
    probability: np.ndarray | None = None
    entropy: np.ndarray | None = None
    processed: int = 0
    note: str = ""

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens per second of sampling."""
        return self.generated / max(self.seconds, 1e-9)

    def show(self) -> str:
        """The texts, each under a heading."""
        return "\n".join(f"--- sample {i} ---\n{text}" for i, text in enumerate(self.texts, 1))

    def summary(self) -> str:
        """One line on what was done and how fast, and the note if there is one."""
        return (
            f"{self.sampler}: {self.generated:,} tokens in {self.calls} model calls and "
            f"{self.seconds:.2f} s, {self.tokens_per_second:,.0f} tokens/s "
            f"(compilation {self.compile_seconds:.1f} s apart)"
        ) + (f"\nnote: {self.note}" if self.note else "")


def sample_text(
    key: jax.Array,
    model: TextModel,
    canvas: Canvas,
    *,
    sampler: str = "auto",
    options: Mapping[str, Any] | Sequence[str] = (),
    steps: int = 0,
    stride: int = 0,
    temperature: float = 1.0,
    top_k: int = 0,
    nucleus: float = 1.0,
    guidance: float = 0.0,
    forbid: Sequence[int] = (),
    batch: int = 1,
    watch: bool = False,
    progress: bool = False,
    every_step: bool = False,
) -> Samples:
    """Fills in a canvas `batch` times, independently.

    Sampling with another key, or on a canvas of the same length with as many gaps, does not compile
    again (with `steps` given, neither does any canvas of the same length). An Eso-LM is the
    exception: how many tokens each step draws is drawn first, and compiled.

    A masked or uniform model is extended to a canvas longer than in training by windows that
    overlap (`mdm_jax.generate_strided`); a block diffusion model goes on block by block.

    Args:
        key: a PRNG key.
        model: the model.
        canvas: what is given and what is to be filled in, see `mdm_jax.evaluation.canvas.canvas`.
        sampler: "auto" for the first of ``model.samplers``, or one of them.
        options: of the sampler, by name, or as ``name=value`` texts; `SAMPLERS` has the defaults.
        steps: most model calls, of each window or block if there are several. 0 means one per open
            token, and at least 64 on a grid of times. Fewer than there are open tokens is faster
            and draws several tokens at once.
        stride: new tokens of each window, where the canvas is longer than the model; 0: half.
        temperature: divides the logits.
        top_k: keeps so many of the most probable ids; 0 keeps all.
        nucleus: keeps the smallest set of tokens with this mass, after the temperature; 1 keeps
            all.
        guidance: scale of guidance toward what is given, at twice the rows per call; 0 is none.
        forbid: ids that are never drawn.
        batch: rows.
        watch: keep what every step left (`Samples.frames`); takes every step even if done early.
        progress: show a bar over the model calls, where a terminal or notebook watches.
        every_step: call the model at every step, also where nothing reads what it says. It changes
            no sample; it is there to be measured.

    Returns:
        `Samples`.

    Raises:
        ValueError: if the sampler does not fit the model, or has no such option; if an
            autoregressive model is asked to fill a gap before given text, which it cannot see; or a
            number makes no sense.

    Examples:
        >>> import mdm_jax as mdm
        >>> from mdm_jax.data import ByteTokenizer
        >>> from mdm_jax.evaluation.canvas import canvas
        >>> only_x = Partial(lambda tokens, t: 50.0 * jax.nn.one_hot(tokens * 0 + 120, 257))
        >>> model = TextModel(only_x, mdm.Masked(256, mdm.Linear()), ByteTokenizer())
        >>> gap = canvas(model.tokenizer, template="f(___)")
        >>> samples = sample_text(jax.random.key(0), model, gap)
        >>> samples.texts, samples.calls
        (('f(xxx)',), 3)
    """
    edits = Edits(
        temperature=temperature,
        top_k=top_k,
        nucleus=nucleus,
        guidance=guidance,
        forbid=tuple(int(i) for i in forbid),
    )
    if batch < 1:
        raise ValueError(f"batch={batch}: expected at least one row")
    plan, canvas = make_plan(
        model, canvas, sampler=sampler, options=options, steps=steps, stride=stride, edits=edits
    )
    plan = dataclasses.replace(plan, watch=watch, progress=progress, every_step=every_step)
    inputs, plan = _inputs(key, model, canvas, edits, batch, plan)
    started = time.monotonic()
    compiled = draw.lower(key, inputs, plan=plan).compile()
    compiled_at = time.monotonic()
    with _bar(plan):
        drawn = jax.block_until_ready(compiled(key, inputs))
        jax.effects_barrier()  # the last ticks of the bar
    seconds = time.monotonic() - compiled_at
    tokens, frames, seen = np.asarray(drawn.tokens), None, (None, None)
    if watch:
        frames, seen = _frames(plan, canvas, tokens, drawn.seen, inputs.order)
    # The first token of an autoregressive canvas may be the start symbol, which is not text.
    shown = slice(plan.hidden[0], len(canvas.keep) - plan.hidden[1])
    frames, *seen = (None if x is None else x[..., shown] for x in (frames, *seen))
    calls = int(drawn.calls)
    return Samples(
        texts=tuple(readable(row, model.tokenizer) for row in tokens[:, shown]),
        tokens=tokens[:, shown],
        frames=frames,
        times=_times(np.asarray(drawn.times), plan),
        sampler=plan.sampler,
        steps=plan.most_steps,
        calls=calls,
        seconds=seconds,
        compile_seconds=compiled_at - started,
        generated=batch * int((~canvas.keep[shown]).sum()),
        probability=seen[0],
        entropy=seen[1],
        processed=_processed(plan, calls),
        note=plan.note,
    )


def readable(tokens: np.ndarray, tokenizer: Tokenizer) -> str:
    """The text of int[L] ids, with "<end>" for the ids that end a document.

    Examples:
        >>> from mdm_jax.data import ByteTokenizer
        >>> readable(np.array([104, 105, 0, 72]), ByteTokenizer())
        'hi<end>H'
    """
    tokens = np.asarray(tokens)
    ends = np.flatnonzero(tokens == tokenizer.eos_id)
    pieces = np.split(tokens, ends)
    return END.join(
        [tokenizer.decode(pieces[0]), *(tokenizer.decode(piece[1:]) for piece in pieces[1:])]
    )


def _inputs(
    key: jax.Array, model: TextModel, canvas: Canvas, edits: Edits, batch: int, plan: Plan
) -> tuple[Inputs, Plan]:
    """Arrays of a run; for an Eso-LM also the order, whose counts the plan gets."""
    remembers = plan.route not in ("canvas", "strided")
    function = model.remembering if remembers else model.logits_fn
    function = function if isinstance(function, Partial) else Partial(function)
    order = None
    if plan.route == "permuted":
        order, counts = _eso_order(key, model, canvas, batch, plan)
        plan = dataclasses.replace(plan, counts=counts, prefill=int(canvas.keep.sum()))
    inputs = Inputs(
        logits_fn=None if remembers else function,
        remembering=function if remembers else None,
        tokens=jnp.asarray(np.broadcast_to(canvas.tokens, (batch, len(canvas.tokens)))),
        keep=jnp.asarray(np.broadcast_to(canvas.keep, (batch, len(canvas.keep)))),
        order=order,
        temperature=jnp.float32(edits.temperature),
        nucleus=jnp.float32(edits.nucleus),
        guidance=jnp.float32(edits.guidance),
        schedule=model.schedule,
    )
    return inputs, plan


def _eso_order(
    key: jax.Array, model: TextModel, canvas: Canvas, batch: int, plan: Plan
) -> tuple[tuple[jax.Array, jax.Array], tuple[int, ...]]:
    """Order and counts of `eso_plan` over the open places, behind the given ones."""
    seed = np.asarray(jax.random.bits(key, (2,), jnp.uint32)).tolist()
    alpha_0 = float(dict(plan.options).get("alpha_0", model.alpha_0))
    opened, given = np.flatnonzero(~canvas.keep), np.flatnonzero(canvas.keep)
    among, counts = eso_plan(
        np.random.default_rng(seed),
        plan.process.schedule,
        (batch, len(opened)),
        plan.steps,
        alpha_0=alpha_0,
    )
    order = np.concatenate([np.broadcast_to(given, (batch, len(given))), opened[among]], axis=1)
    number = jnp.full((batch,), len(given), jnp.int32)
    return (jnp.asarray(order, jnp.int32), number), tuple(counts.tolist())


def _frames(
    plan: Plan, canvas: Canvas, tokens: np.ndarray, seen: Seen | None, order: Any
) -> tuple[np.ndarray, tuple[np.ndarray | None, np.ndarray | None]]:
    """The canvas at first and after each step, and the numbers of each step where there are any."""
    if seen is None:  # the order of what was drawn is all there is to know
        counts = np.array(plan.counts or (1,) * plan.most_steps)
        places = np.arange(len(canvas.keep))[None] if order is None else np.asarray(order[0])
        given = int(canvas.keep.sum())
        rank = np.argsort(np.broadcast_to(places, tokens.shape), axis=1)
        ends = given + np.concatenate([[0], np.cumsum(counts)])
        drawn = rank[None] < ends.reshape(-1, 1, 1)
        return np.where(drawn, tokens[None], plan.process.mask_id), (None, None)
    start, after, probability, entropy = (np.asarray(x) for x in seen)
    frames = np.repeat(start[None], plan.most_steps + 1, axis=0)
    numbers = np.full((2, plan.most_steps, *tokens.shape), np.nan, np.float32)
    for window, offset in enumerate(plan.offsets):
        here = slice(offset, offset + plan.width)
        at = slice(window * plan.steps, (window + 1) * plan.steps)
        frames[at.start + 1 :] = frames[at.start]
        frames[at.start + 1 : at.stop + 1, :, here] = after[window]
        frames[at.stop :] = frames[at.stop]
        numbers[0, at, :, here], numbers[1, at, :, here] = probability[window], entropy[window]
    return frames, (None, None) if plan.scores else (numbers[0], numbers[1])


def _times(times: np.ndarray, plan: Plan) -> np.ndarray:
    """The times of all frames in the first row: those of a window, window after window."""
    first = times.reshape(len(times), -1)[:, 0]
    windows = 1 if plan.counts else len(plan.offsets)
    return np.concatenate([first[:1], *([first[1:]] * windows)])


def _processed(plan: Plan, calls: int) -> int:
    """Tokens that the model evaluated for each row."""
    if plan.route == "autoregressive":
        return calls - 1 + plan.prefill
    if plan.route == "permuted":
        pairs = zip((0, *plan.counts[:-1]), plan.counts, strict=True)
        return sum(before + count for before, count in pairs) + plan.prefill
    if plan.route == "blocks":
        return (calls - (plan.prefill > 0)) * plan.width + plan.prefill
    return calls * plan.width * (1 + plan.guide)  # guidance reads every row twice


@contextlib.contextmanager
def _bar(plan: Plan) -> Iterator[None]:
    """A bar for the ticks of `draw`; None as `disable` asks whether somebody watches."""
    with tqdm(total=plan.most_steps, unit="call", disable=None if plan.progress else True) as bar:
        bars.append(bar)
        try:
            yield
        finally:
            bars.remove(bar)
