"""Wrapped denoisers, drawn with the production loops and measured against the law of their edits.

`mdm_jax.evaluation.sampler_certificates` measures samplers on a bare model. Here the model is
wrapped, and the law is that of its predictions edited in float64, by the definition of the edit.
`python launch/certify.py` writes what is found into docs/samplers.md.
"""

import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from mdm_jax import edits, guidance, repeats
from mdm_jax.arrays import Key, Tokens
from mdm_jax.denoisers import Denoiser, predicting
from mdm_jax.evaluation.certificates import certify, classify
from mdm_jax.evaluation.sampler_certificates import (
    JOINT,
    LENGTH,
    PROCESSES,
    SIZE,
    Measured,
    Setting,
)
from mdm_jax.evaluation.tabular import (
    any_order_law,
    ideal_denoiser,
    random_conditionals,
    sequences,
    table_denoiser,
)
from mdm_jax.generation import generate
from mdm_jax.processes import Masked, Process
from mdm_jax.samplers.ancestral import ancestral
from mdm_jax.samplers.first_hitting import first_hitting
from mdm_jax.times import time_grid

STEPS = 4  # of ancestral walks, whose law in so many steps is enumerated
_PROMPT = 1  # the id that stands first where there is a prompt

Wrap = Callable[[Denoiser, Process], Denoiser]
Edit = Callable[[np.ndarray, np.ndarray, Process], np.ndarray]


def other_table(process: Process) -> np.ndarray:
    """Predictions of another model, to be guided away from: float64[N^L, L, V].

    Examples:
        >>> other_table(PROCESSES[Masked]).shape
        (64, 3, 3)
    """
    if isinstance(process, Masked):
        return random_conditionals(6, SIZE, LENGTH)
    flat = np.ones(SIZE)
    return np.random.default_rng(6).dirichlet(flat, size=(process.num_ids**LENGTH, LENGTH))


def _truncated(p: np.ndarray, mass: float) -> np.ndarray:
    order = np.sort(p, axis=-1)[..., ::-1]
    size = (order.cumsum(-1) < mass * (1 - 1e-6)).sum(-1, keepdims=True)
    return np.where(p >= np.take_along_axis(order, size, -1) * (1 - 1e-6), p, 0.0)


def _seen(states: np.ndarray) -> np.ndarray:
    """Which ids a row holds, bool[N^L, 1, V]."""
    return (states[:, :, None] == np.arange(SIZE)).any(axis=1, keepdims=True)


def _without_prompt(states: np.ndarray, p: np.ndarray, process: Process) -> np.ndarray:
    """The predictions for the same states with their first token masked."""
    hidden = states.copy()
    hidden[:, 0] = SIZE
    places = process.num_ids ** np.arange(LENGTH - 1, -1, -1)
    return p[hidden @ places]


# name: the wrapper, and what it makes of predictions p float64[N^L, L, V] at all states. What the
# edit returns need not be normalized.
WRAPPERS: dict[str, tuple[Wrap, Edit]] = {
    "predicting": (predicting, lambda p, z, process: p),
    "tempered(0.5)": (lambda d, _: edits.tempered(d, 0.5), lambda p, z, process: p**2),
    "nucleus(0.7)": (lambda d, _: edits.nucleus(d, 0.7), lambda p, z, process: _truncated(p, 0.7)),
    "top_k(2)": (
        lambda d, _: edits.top_k(d, 2),
        lambda p, z, process: np.where(p > p.min(-1, keepdims=True), p, 0.0),
    ),
    "forbid(1)": (
        lambda d, _: edits.forbid(d, [1]),
        lambda p, z, process: p * np.array([1.0, 0.0, 1.0]),
    ),
    "guided(1)": (
        lambda d, process: guidance.guided(d, table_denoiser(other_table(process)), 1.0),
        lambda p, z, process: p**2 / other_table(process),
    ),
    "unsupervised_guided(1)": (
        lambda d, process: guidance.unsupervised_guided(
            d, process, 1.0, prompt=np.arange(LENGTH) == 0
        ),
        lambda p, z, process: p**2 / _without_prompt(z, p, process),
    ),
    "repetition_penalty(4)": (
        lambda d, process: repeats.repetition_penalty(d, process, 4.0),  # type: ignore[arg-type]
        lambda p, z, process: np.where(_seen(z), p / 4.0, p),
    ),
    "no_repeat(1)": (
        lambda d, process: repeats.no_repeat(d, process, 1),  # type: ignore[arg-type]
        lambda p, z, process: np.where(_seen(z), 0.0, p),
    ),
}
_MASKED_ONLY = ("repetition_penalty(4)", "no_repeat(1)")
_WITH_MASK = ("unsupervised_guided(1)",)


def wrapper_cases() -> list[tuple[str, type[Process], str]]:
    """Every wrapper with every process it fits, as (wrapper, process, sampler).

    Examples:
        >>> len(wrapper_cases()) > 2 * len(WRAPPERS)
        True
    """
    cases = []
    for name in WRAPPERS:
        for kind, process in PROCESSES.items():
            if name in _MASKED_ONLY and not isinstance(process, Masked):
                continue
            if name in _WITH_MASK and not hasattr(process, "mask_id"):
                continue
            samplers = ("first_hitting", "ancestral") if kind is Masked else ("ancestral",)
            cases += [(name, kind, sampler) for sampler in samplers]
    return cases


def measure_wrapper(
    name: str, kind: type[Process], sampler: str, *, samples: int = 2**14, seed: int = 0
) -> Measured:
    """Measures one wrapper around the ideal model of a joint law.

    The first token is given, so that there is a prompt to guide by. `first_hitting` is held to the
    any-order law of the edited predictions, `ancestral` to the law of its walk in `STEPS` steps.

    Args:
        name: in `WRAPPERS`.
        kind: of process.
        sampler: "first_hitting" or "ancestral".
        samples: how many.
        seed: of the draws.

    Returns:
        `Measured`, stated to be "exact": the law is that of the edited predictions.

    Examples:
        >>> measure_wrapper("tempered(0.5)", Masked, "first_hitting", samples=4096).found
        'exact'
    """
    process, (wrap, edit) = PROCESSES[kind], WRAPPERS[name]
    model = ideal_denoiser(JOINT, process)
    states = sequences(process.num_ids, LENGTH)

    def predictions(t: float) -> np.ndarray:
        logits, _ = model.apply(jnp.asarray(states), jnp.float32(t), ())
        p = np.asarray(jax.nn.softmax(logits, axis=-1), np.float64)[..., :SIZE]
        edited = edit(p / p.sum(-1, keepdims=True), states, process)
        total = edited.sum(-1, keepdims=True)
        # Where nothing is left to draw no walk comes, or it is at tokens that are decided.
        return np.where(total > 0, edited / np.where(total > 0, total, 1.0), 1.0 / SIZE)

    masked = sampler == "first_hitting"
    steps = LENGTH - 1 if masked else STEPS
    made = first_hitting(process) if masked else ancestral(process)  # type: ignore[arg-type]
    law = _prompted_law(predictions(0.5)) if masked else walk_law(process, predictions, STEPS)
    denoiser = wrap(model, process)
    keep = np.arange(LENGTH) == 0

    @functools.partial(jax.jit, static_argnums=1)
    def draw(key: Key, samples: int) -> Tokens:
        key_prior, key_walk = jax.random.split(key)
        canvas = jnp.zeros((samples, LENGTH), jnp.int32)
        given = jnp.broadcast_to(jnp.asarray(keep).reshape(1, -1), canvas.shape)
        start = jnp.where(given, _PROMPT, process.prior(key_prior, canvas))
        return generate(key_walk, denoiser, made, start, time_grid(steps), keep=given).tokens

    certificate = certify(jax.random.key(seed), draw, law, samples=samples)
    found = classify([certificate])
    row = (Setting({}, steps), certificate)
    return Measured(f"{sampler} of {name}", kind.__name__, "exact", found, (row,))


def _prompted_law(table: np.ndarray) -> np.ndarray:
    """The any-order law of the rest, given the first token."""
    rest = table.reshape(*(SIZE + 1,) * LENGTH, LENGTH, SIZE)[_PROMPT][..., 1:, :]
    law = np.zeros((SIZE,) * LENGTH)
    law[_PROMPT] = any_order_law(rest.reshape(-1, LENGTH - 1, SIZE))
    return law


def walk_law(
    process: Process, predictions: Callable[[float], np.ndarray], steps: int
) -> np.ndarray:
    """The law of ancestral sampling in so many steps, given the first token, float64[V, ..., V].

    Args:
        process: whose posteriors the steps are.
        predictions: t to probabilities of the clean token at every state, float64[N^L, L, V].
        steps: of an even time grid.

    Examples:
        >>> flat = lambda t: np.full((64, LENGTH, SIZE), 1 / SIZE)
        >>> law = walk_law(PROCESSES[Masked], flat, 2)
        >>> law.shape, round(float(law.sum()), 6), round(float(law[_PROMPT].sum()), 6)
        ((3, 3, 3), 1.0, 1.0)
    """
    size, states = process.num_ids, sequences(process.num_ids, LENGTH)
    noise = _prior_of_one(process)
    first = np.eye(size)[_PROMPT]
    law = np.einsum("a,b,c->abc", first, noise, noise).reshape(-1)
    times = np.asarray(time_grid(steps))
    for t, s in itertools.pairwise(times):
        with np.errstate(divide="ignore"):
            logits = np.log(predictions(float(t)))
        q = process.posterior(jnp.asarray(logits, jnp.float32), jnp.asarray(states), t, s)
        q = np.exp(np.asarray(q, np.float64))
        q[:, 0] = np.eye(size)[states[:, 0]]
        law = np.einsum("z,za,zb,zc->abc", law, *np.moveaxis(q, 1, 0)).reshape(-1)
    return law.reshape((size,) * LENGTH)[(slice(SIZE),) * LENGTH]


def _prior_of_one(process: Process) -> np.ndarray:
    if isinstance(process, Masked):
        return np.eye(SIZE + 1)[SIZE]
    if not hasattr(process, "shares"):
        return np.full(SIZE, 1 / SIZE)
    _, masked, uniform = (float(x) for x in process.shares(jnp.float32(1.0)))  # type: ignore
    prior = np.array([uniform / SIZE] * SIZE + [masked])
    return prior / prior.sum()
