"""How a canvas is filled: a sampler by name, its options, and the loop that fits the model."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

import mdm_jax as mdm
from mdm_jax.arrays import Times, Tokens
from mdm_jax.evaluation.canvas import Canvas
from mdm_jax.evaluation.editing import Edits
from mdm_jax.evaluation.text_models import TextModel
from mdm_jax.samplers.table import SAMPLERS
from mdm_jax.token_schedules import TokenPolynomial

Route: TypeAlias = Literal["canvas", "strided", "blocks", "permuted", "autoregressive"]

_OTHERS: dict[str, dict[str, Any]] = {"eso_lm": {"alpha_0": 1.0}}
"""Default options of samplers that are not in the table: loops of their own."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything static about a run.

    Attributes:
        route: which loop fills the canvas.
        process: of the canvas: for autoregressive models, one with a mask.
        shift: whether the model predicts the next token.
        first: the id that it reads before the canvas; None if there is none.
        scores: whether the model's outputs are scores.
        sampler: its name.
        options: of the sampler, (name, value) each.
        steps: of every window.
        width: tokens of a window: the canvas, MDLM's stride window, or a block.
        offsets: where the windows begin.
        kept: leading tokens of each window but the first that the window before has filled.
        hidden: tokens at the front and at the back of the canvas that are not shown.
        memory: settings of the cache, (name, value) each.
        prefill: tokens at the front that are given and read at once.
        counts: tokens to draw at each step, of an Eso-LM.
        forbid: ids that are never drawn.
        top_k: as in `Edits`; 0 for none.
        truncate: whether there is a nucleus.
        guide: whether there is guidance.
        every_step: whether steps that need no model call make one all the same.
        watch: whether every step is recorded.
        progress: whether model calls tick a bar.
    """

    route: Route
    process: Any
    shift: bool
    scores: bool
    sampler: str
    options: tuple[tuple[str, Any], ...]
    steps: int
    width: int
    offsets: tuple[int, ...] = (0,)
    kept: int = 0
    hidden: tuple[int, int] = (0, 0)
    memory: tuple[tuple[str, int], ...] = ()
    prefill: int = 0
    counts: tuple[int, ...] = ()
    first: int | None = None
    forbid: tuple[int, ...] = ()
    top_k: int = 0
    truncate: bool = False
    guide: bool = False
    every_step: bool = False
    watch: bool = False
    progress: bool = False

    @property
    def most_steps(self) -> int:
        """Steps in all windows."""
        return len(self.counts) if self.counts else self.steps * len(self.offsets)

    @property
    def decides(self) -> bool:
        """Whether a token that is no mask stays, so that a canvas without masks is finished."""
        entry = SAMPLERS.get(self.sampler)
        walks = self.sampler in ("ancestral", "analytic", "learned_ancestral")
        fills = walks or (entry is not None and entry.per_position)
        return fills and isinstance(self.process, mdm.Masked)

    @property
    def note(self) -> str:
        """What a reader of the samples should know about them; "" if nothing."""
        if self.route == "strided":
            return (
                f"longer than the {self.width} tokens of training: {len(self.offsets)} windows, "
                f"each with the last {self.kept} tokens of the one before; what is farther back is "
                "not seen"
            )
        if self.route == "blocks":
            capacity = dict(self.memory)["capacity"]
            if self.offsets[-1] + self.width > capacity:
                return f"longer than training: each block sees the last {capacity} tokens"
        return ""


def sampler_options(name: str, given: Mapping[str, Any] | Sequence[str]) -> dict[str, Any]:
    """The options of a sampler that differ from its defaults, checked and typed.

    Args:
        name: a name in `SAMPLERS`; other samplers have no options.
        given: values by name, or ``name=value`` texts, typed like the defaults.

    Raises:
        ValueError: if the sampler has no such option, or the value is of another type.

    Examples:
        >>> sampler_options("entropy_bound", ["gamma=0.3", "block=none"])
        {'gamma': 0.3, 'block': None}
    """
    known = dict(SAMPLERS[name].options) if name in SAMPLERS else _OTHERS.get(name, {})
    if not isinstance(given, Mapping):
        pairs = [text.partition("=") for text in given]
        for option, sign, _ in pairs:
            if not sign:
                raise ValueError(f"option {option!r}: expected name=value")
        given = {option.strip(): value.strip() for option, _, value in pairs}
    for option in given:
        if option not in known:
            raise ValueError(
                f"sampler {name!r} has no option {option!r}: "
                + (f"expected one of {sorted(known)}" if known else "it has none")
            )
    return {k: _typed(k, v, known[k]) if isinstance(v, str) else v for k, v in given.items()}


def _typed(option: str, text: str, default: Any) -> Any:
    """A value of the type of the default; None may be none, a number or a word."""
    if isinstance(default, str):
        return text
    if text.lower() == "none" and default is None:
        return None
    if isinstance(default, bool):
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
    elif default is None or isinstance(default, int | float):
        kinds = (int, float, str) if default is None else (type(default),)
        for kind in kinds:
            try:
                return kind(text)
            except ValueError:
                continue
    raise ValueError(f"option {option}={text!r}: expected a value such as {default!r}")


def make_plan(
    model: TextModel,
    canvas: Canvas,
    *,
    sampler: str = "auto",
    options: Mapping[str, Any] | Sequence[str] = (),
    steps: int = 0,
    stride: int = 0,
    edits: Edits | None = None,
) -> tuple[Plan, Canvas]:
    """Decides how to fill a canvas, and lays it out for that.

    Args:
        model: the model.
        canvas: what is given and what is to be filled in.
        sampler: "auto" for the first of ``model.samplers``, or one of them.
        options: of the sampler, see `sampler_options`.
        steps: most steps of each window; 0: one per open token, and at least 64 on a grid of times.
        stride: tokens that are new in each window of a canvas longer than the model; 0: half.
        edits: of the predictions.

    Returns:
        `Plan`, and the canvas with what the route needs beyond the text (`Plan.hidden`).

    Raises:
        ValueError: if something does not fit the model or the canvas. The message says what does.

    Examples:
        >>> from mdm_jax.data import ByteTokenizer
        >>> from mdm_jax.evaluation.canvas import canvas
        >>> masked = TextModel(None, mdm.Masked(256, mdm.Linear()), ByteTokenizer(), length=8)
        >>> plan, laid_out = make_plan(masked, canvas(masked.tokenizer, length=14))
        >>> plan.route, plan.offsets, len(laid_out.keep), plan.hidden
        ('strided', (0, 4, 8), 16, (0, 2))
    """
    edits = edits or Edits()
    name = _named(model, sampler)
    if not canvas.open:
        raise ValueError("the canvas has no open token: there is nothing to sample")
    if steps < 0 or stride < 0:
        raise ValueError(f"steps={steps}, stride={stride}: expected numbers, or 0 for the default")
    route = _route(model, name, len(canvas.keep))
    layout, canvas = _laid_out(route, model, canvas, stride)
    width, process = layout["width"], model.process
    _check_guidance(edits, model, canvas, route)
    given = sampler_options(name, options)
    windows = [canvas.keep[at : at + width] for at in layout["offsets"]]
    most_open = max(int((~keep).sum()) for keep in windows)
    steps, given = _steps(name, given, steps, most_open)
    plan = Plan(
        route=route,
        process=process or mdm.Masked(model.tokenizer.vocab_size, mdm.Linear()),
        shift=process is None,
        first=model.first,
        scores=model.scores,
        sampler=name,
        options=tuple(sorted(given.items())),
        steps=steps,
        forbid=tuple(sorted(edits.forbid)),
        top_k=edits.top_k,
        truncate=edits.nucleus < 1,
        guide=edits.guidance > 0,
        **layout,
    )
    return plan, canvas


def _named(model: TextModel, sampler: str) -> str:
    names = model.samplers
    name = names[0] if sampler == "auto" else sampler
    if name not in names:
        family = "an autoregressive model" if model.process is None else f"{model.process}"
        raise ValueError(f"sampler {sampler!r} does not fit {family}: choose from {list(names)}")
    return name


def _route(model: TextModel, name: str, length: int) -> Route:
    if name == "autoregressive":
        return "autoregressive"
    if name == "eso_lm":
        return "permuted"
    if model.block:
        return "blocks"
    return "strided" if model.process and 0 < model.length < length else "canvas"


def _laid_out(
    route: Route, model: TextModel, canvas: Canvas, stride: int
) -> tuple[dict[str, Any], Canvas]:
    """Windows, hidden tokens and cache of a route, and the canvas for them."""
    length = len(canvas.keep)
    if stride and route != "strided":
        raise ValueError(
            f"stride={stride} is for a masked or uniform model and a canvas longer than its "
            f"{model.length or 'unknown number of'} tokens; this one has {length}"
        )
    if route == "strided":
        stride = stride or max(model.length // 2, 1)
        if stride > model.length:
            raise ValueError(f"stride={stride}: expected at most the model's {model.length} tokens")
        extra = -(length - model.length) % stride
        offsets = tuple(range(0, length + extra - model.length + 1, stride))
        layout = {"width": model.length, "offsets": offsets, "kept": model.length - stride}
        return layout | {"hidden": (0, extra)}, _opened(canvas, extra)
    if route == "blocks":
        block, extra = model.block, -length % model.block
        canvas = _opened(canvas, extra)
        capacity = min(model.length or length + extra, length + extra)
        given = _leading(canvas.keep) // block * block
        prefill = min(given, capacity)
        memory = (("capacity", capacity), ("prefill", prefill))
        layout = {"width": block, "offsets": tuple(range(prefill, length + extra, block))}
        return layout | {"hidden": (0, extra), "memory": memory, "prefill": prefill}, canvas
    hidden = (0, 0)
    if model.process is None:
        if (np.diff(canvas.keep.astype(np.int8)) > 0).any():
            raise ValueError(
                "an autoregressive model sees only what is on the left, so it cannot fill a gap "
                "before given text: give a prompt, or sample from a masked model"
            )
        start = _start(model, canvas, route)
        if start is not None:
            canvas = Canvas(np.insert(canvas.tokens, 0, start), np.insert(canvas.keep, 0, True))
            hidden = (1, 0)
    # How much is read at once is static, so a plan says it on the routes alone that ask for it.
    prefill = _leading(canvas.keep) if route == "autoregressive" else 0
    layout = {"width": len(canvas.keep), "offsets": (0,), "hidden": hidden}
    return layout | {"prefill": prefill}, canvas


def _start(model: TextModel, canvas: Canvas, route: Route) -> int | None:
    """What predicts the first token: the id of the model's training, or a document's end."""
    if model.first is None:
        return None if canvas.keep[0] else model.tokenizer.eos_id
    return model.first if route == "autoregressive" else None  # `shifted` feeds it itself


def _opened(canvas: Canvas, extra: int) -> Canvas:
    """The canvas with `extra` open tokens behind it."""
    tokens = np.pad(canvas.tokens, (0, extra), mode="edge")
    return Canvas(tokens, np.pad(canvas.keep, (0, extra), constant_values=False))


def _leading(keep: np.ndarray) -> int:
    return int(np.cumprod(keep).sum())


def _check_guidance(edits: Edits, model: TextModel, canvas: Canvas, route: Route) -> None:
    if not edits.guidance:
        return
    if route != "canvas" or not isinstance(model.process, mdm.Masked | mdm.Hybrid):
        raise ValueError(
            f"guidance={edits.guidance} masks what is given and compares: it needs a masked model "
            "and a canvas that the model sees whole"
        )
    if not canvas.keep.any():
        raise ValueError(f"guidance={edits.guidance}: nothing is given, so there is no condition")


def _steps(name: str, given: dict[str, Any], steps: int, most_open: int) -> tuple[int, dict]:
    """Steps of a window, and the options with the number of positions per step."""
    entry = SAMPLERS.get(name)
    if name == "autoregressive":
        if steps:
            raise ValueError(f"steps={steps}: an autoregressive model takes one for each token")
        return most_open, given
    if entry is None or not entry.per_position:
        return steps or max(most_open, 64), given
    if "per_step" not in entry.options:
        return min(steps or most_open, most_open), given
    if "per_step" in given:
        if steps:
            raise ValueError(f"steps={steps} and per_step={given['per_step']}: give one of them")
        return -(-most_open // max(given["per_step"], 1)), given
    per_step = -(-most_open // min(steps or most_open, most_open))
    return -(-most_open // per_step), given | {"per_step": per_step}


def make_sampler(plan: Plan, schedule: TokenPolynomial | None) -> mdm.Sampler:
    """The sampler of a plan.

    Args:
        plan: the plan.
        schedule: the learned schedules of a GenMD4 model; None for any other.

    Raises:
        ValueError: if an option has a value that the sampler refuses.
    """
    if schedule is not None:
        sampler = mdm.learned_ancestral(plan.process, schedule)
    else:
        entry = SAMPLERS[plan.sampler]
        sampler = entry.make(plan.process, **(entry.options | dict(plan.options)))
    return sampler._replace(idle=None) if plan.every_step else sampler


def make_times(key: jax.Array, start: Tokens, plan: Plan) -> Times:
    """Times that agree with how many masks are left, for models conditioned on time.

    Args:
        key: a PRNG key, for the times at which masks lift under first-hitting.
        start: int32[B, L], the canvas.
        plan: the plan.

    Returns:
        float32[T + 1] or float32[T + 1, B].
    """
    entry = SAMPLERS.get(plan.sampler)
    if entry is None or not entry.per_position or not isinstance(plan.process, mdm.Masked):
        return mdm.time_grid(plan.steps)
    alone = plan.route == "canvas" and dict(plan.options).get("per_step") == 1
    if plan.sampler == "first_hitting" and alone:
        return mdm.hitting_times(key, plan.process, start, plan.steps)
    left = mdm.time_grid(plan.steps)  # the share of the masks that is left
    noise = left * plan.process.schedule.noise_rate(jnp.float32(1.0))
    times = jnp.clip(plan.process.schedule.inverse(1.0 - noise), 0.0, 1.0)
    return jnp.where(left > 0, times, 0.0)
