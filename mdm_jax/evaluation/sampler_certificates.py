"""Every sampler of the table, measured against the class it states.

Three tokens of three ids, and the ideal denoiser of a random joint law: `measure` draws with the
production loop and compares with the joint law along the sampler's knob. Samplers that state to be
exact are also given conditionals that belong to no joint law, and are held to the model's own
any-order law. `python launch/certify.py` writes what it finds into docs/samplers.md.
"""

import functools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mdm_jax.arrays import Key, Tokens
from mdm_jax.denoisers import Denoiser
from mdm_jax.evaluation.certificates import Certificate, certify, classify
from mdm_jax.evaluation.tabular import (
    any_order_law,
    ideal_denoiser,
    random_conditionals,
    random_joint,
    table_denoiser,
)
from mdm_jax.generation import generate
from mdm_jax.losses.score import mean_log_scores
from mdm_jax.markdown import markdown_table
from mdm_jax.processes import Hybrid, Masked, Process, Uniform
from mdm_jax.samplers.base import Sampler
from mdm_jax.samplers.table import SAMPLERS, Entry
from mdm_jax.schedules import Linear, LogLinear
from mdm_jax.times import time_grid

SIZE, LENGTH = 3, 3
JOINT = random_joint(1, SIZE, LENGTH)
CONDITIONALS = random_conditionals(5, SIZE, LENGTH)
PROCESSES: dict[type[Process], Process] = {
    Masked: Masked(SIZE, Linear()),
    # Scores of uniform noise are finite only if something survives at t = 1.
    Uniform: Uniform(SIZE, LogLinear()),
    Hybrid: Hybrid(SIZE, Linear(), uniform_share=0.3, mixing="constant"),
}

_STEPS = (2, 16, 64)
_LADDERS: dict[str, list[tuple[dict[str, Any], int]]] = {
    "entropy_bound": [({"gamma": 3.0}, 3), ({"gamma": 0.5}, 3), ({"gamma": 0.0}, 3)],
    "threshold": [({"tau": 0.0}, 3), ({"tau": 0.6}, 3), ({"tau": 1.0}, 3)],
    "factor": [({"f": 4.0}, 3), ({"f": 1.5}, 3), ({"f": 1e-6}, 3)],
    # Ten times as many corrections as `forward_backward` take four times as many steps.
    "dfm": [({}, 2), ({}, 16), ({}, 256)],
    "psi": [({"kappa": 0.5}, 2), ({"kappa": 0.95}, 16), ({"kappa": 0.99}, 64)],
}
# Biased for being greedy alone: at temperature 1 these are `confidence`.
_CHOOSE_FIRST = ("dream_topk_margin", "dream_entropy")


class Setting(NamedTuple):
    """One way to run a sampler.

    Attributes:
        options: beside the defaults of its entry.
        steps: of the walk.
        consistent: whether the model is the ideal one of a joint law, or one of no joint law.
    """

    options: dict[str, Any]
    steps: int
    consistent: bool = True

    def __str__(self) -> str:
        """What a reader has to know of it."""
        named = [f"{name}={value}" for name, value in self.options.items()]
        return ", ".join([*named, f"steps={self.steps}"])


class Measured(NamedTuple):
    """What was found of one sampler with one process.

    Attributes:
        name: of the sampler.
        process: of the process.
        stated: its class in the table.
        found: its class by the certificates, "undecided" if they do not tell.
        rows: the settings and their certificates.
    """

    name: str
    process: str
    stated: str
    found: str
    rows: tuple[tuple[Setting, Certificate], ...]


def settings(name: str, entry: Entry) -> list[Setting]:
    """Returns what an entry is measured at: towards its limit, or at its defaults.

    Args:
        name: of the sampler.
        entry: its entry in `SAMPLERS`.

    Raises:
        KeyError: for a limit that is neither of steps nor of a known knob.

    Examples:
        >>> [str(setting) for setting in settings("ancestral", SAMPLERS["ancestral"])]
        ['steps=2', 'steps=16', 'steps=64']
    """
    if entry.exactness == "exact in a limit":
        if name in _LADDERS:
            return [Setting(options, steps) for options, steps in _LADDERS[name]]
        if "steps to infinity" in entry.limit:
            return [Setting({}, steps) for steps in _STEPS]
        raise KeyError(f"{name}: its limit, {entry.limit!r}, has no ladder of settings here")
    if entry.exactness == "heuristic":
        # One position per step is the most careful that a rule can be asked to be.
        if entry.options.get("temperature") != 0.0:
            return [Setting({}, LENGTH)]
        greedy = Setting({"temperature": 0.0}, LENGTH)
        if name in _CHOOSE_FIRST:
            return [greedy]
        return [greedy, Setting({"temperature": 1.0}, LENGTH)]
    return [Setting({}, LENGTH), Setting({}, LENGTH, consistent=False)]


def drawing(sampler: Sampler, process: Process, denoiser: Denoiser, steps: int, length: int):
    """Returns the jitted ``draw(key, samples)`` of `certify`: `generate` from pure noise.

    Args:
        sampler: the sampler.
        process: its process, for the noise to start from.
        denoiser: a tabular denoiser.
        steps: of an even time grid.
        length: L.

    Examples:
        >>> import mdm_jax as mdm
        >>> process = mdm.Masked(2, mdm.Linear())
        >>> model = table_denoiser(random_conditionals(0, 2, 3))
        >>> draw = drawing(mdm.left_to_right(process), process, model, 3, 3)
        >>> draw(jax.random.key(0), 8).shape
        (8, 3)
    """

    @functools.partial(jax.jit, static_argnums=1)
    def draw(key: Key, samples: int) -> Tokens:
        key_prior, key_walk = jax.random.split(key)
        start = process.prior(key_prior, jnp.zeros((samples, length), jnp.int32))
        return generate(key_walk, denoiser, sampler, start, time_grid(steps)).tokens

    return draw


def measure(
    name: str,
    kind: type[Process],
    *,
    samples: int = 2**14,
    seed: int = 0,
    entry: Entry | None = None,
    ends: bool = False,
) -> Measured:
    """Measures one sampler with one process, at all of its `settings`.

    Args:
        name: of the sampler, in `SAMPLERS`.
        kind: of process, one that it fits.
        samples: per setting.
        seed: of the draws.
        entry: instead of the one in the table.
        ends: leave out what lies between the two ends of a knob.

    Raises:
        KeyError: if the name is unknown.

    Examples:
        >>> measure("left_to_right", Masked, samples=4096).found
        'exact for consistent conditionals'
    """
    entry = SAMPLERS[name] if entry is None else entry
    process = PROCESSES[kind]
    rows, ladder = [], settings(name, entry)
    if ends and len(ladder) > 2:
        ladder = [ladder[0], ladder[-1]]
    for setting in ladder:
        sampler = entry.make(process, **{**entry.options, **setting.options})
        if setting.consistent:
            model, law = ideal_denoiser(JOINT, process), JOINT
        else:
            model, law = table_denoiser(CONDITIONALS), any_order_law(CONDITIONALS)
        if entry.scores:
            model = _as_scores(model, process)
        draw = drawing(sampler, process, model, setting.steps, LENGTH)
        rows.append((setting, certify(jax.random.key(seed), draw, law, samples=samples)))
    return Measured(name, kind.__name__, entry.exactness, _found(rows), tuple(rows))


def measure_all(*, samples: int = 2**17, seed: int = 0) -> Iterator[Measured]:
    """Measures every sampler of the table with every process it fits.

    Args:
        samples: per setting.
        seed: of the draws.

    Examples:
        >>> next(measure_all(samples=64)).name
        'first_hitting'
    """
    for name, entry in SAMPLERS.items():
        for kind in entry.processes:
            yield measure(name, kind, samples=samples, seed=seed)


def markdown(measured: list[Measured], samples: int) -> str:
    """Returns the table of docs/samplers.md.

    Args:
        measured: what to list.
        samples: per setting, to be named in the text.

    Examples:
        >>> one = measure("left_to_right", Masked, samples=256)
        >>> markdown([one], 256).splitlines()[2].split("|")[1:4]
        [' sampler ', ' process ', ' stated class ']
    """
    rows = []
    for one in measured:
        for setting, c in one.rows:
            said = str(setting) + ("" if setting.consistent else ", conditionals of no joint law")
            tv = f"{c.tv:.3f} [{c.tv_low:.3f}, {c.tv_high:.3f}]"
            kl = f"{c.kl:.4f} [{c.kl_low:.4f}, {c.kl_high:.4f}]"
            kl = kl if math.isfinite(c.kl) else "infinite"
            rows.append((f"`{one.name}`", one.process, one.stated, said, tv, kl))
    header = ("sampler", "process", "stated class", "setting", "TV", "KL, nats")
    caption = f"V = L = {SIZE}, {samples} samples a row; intervals fail once in a million."
    return f"{caption}\n\n{markdown_table(header, rows)}"


def _found(rows: list[tuple[Setting, Certificate]]) -> str:
    """The class that the certificates show, in the vocabulary of the table."""
    verdict = classify([c for setting, c in rows if setting.consistent])
    others = [c for setting, c in rows if not setting.consistent]
    if verdict != "exact" or not others or all(c.consistent for c in others):
        return verdict
    differ = all(c.tv_low > 0 for c in others)
    return "exact for consistent conditionals" if differ else "undecided"


def _as_scores(denoiser: Denoiser, process: Process) -> Denoiser:
    """A model of x_0 as the model of scores whose own law it is, in SEDD's parameterization."""

    def apply(tokens, t, carry):
        logits, carry = denoiser.apply(tokens, t, carry)
        if isinstance(process, Masked):
            return jax.nn.log_softmax(logits, axis=-1) + np.float32(math.log(SIZE)), carry
        return mean_log_scores(logits, tokens, t, process), carry

    return denoiser._replace(apply=apply)
