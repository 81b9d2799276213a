"""Measures the figures of docs/benchmarks.md on this machine, and prints them as Markdown.

    python launch/benchmark.py

Every comparison interleaves its candidates round by round in one process and reports medians, so
that a machine whose speed drifts favors neither. Compilation is not timed.
"""

import functools
import statistics
import time
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax
from absl import app, flags, logging

import mdm_jax as mdm
from mdm_jax import draws
from mdm_jax.models.configs import DiTConfig, flops_per_token
from mdm_jax.models.dit import DiT
from mdm_jax.train.state import create_state
from mdm_jax.train.step import jit_train_step

_ROUNDS = flags.DEFINE_integer("rounds", 7, "Rounds per comparison.", lower_bound=1)


def seconds(candidates: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Returns the median seconds of each candidate, run in turn after one warm-up each.

    Examples:
        >>> sorted(seconds({"a": lambda: jnp.zeros(1), "b": lambda: jnp.ones(1)}, rounds=1))
        ['a', 'b']
    """
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(rounds + 1):
        for name, run in candidates.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            if number:  # round 0 compiles
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def train_step_table(config: DiTConfig, batch: int, length: int, rounds: int) -> str:
    """The train step's FLOP/s beside a large matmul's in the same process."""
    model = DiT(config)
    process = mdm.Masked(config.num_ids - 1, mdm.LogLinear())
    optimizer = optax.adamw(1e-3)
    tokens = jax.random.randint(jax.random.key(0), (batch, length), 0, process.vocab_size)
    data = {"tokens": tokens, "where": jnp.ones_like(tokens, jnp.bool_)}
    step = jit_train_step(
        apply=lambda params, inputs, key: model.apply({"params": params}, inputs["tokens"]),
        objective=mdm.masked_objective(process, "cross_entropy"),
        optimizer=optimizer,
        seed=0,
        ema_decay=0.999,
    )
    init = lambda key: model.init(key, tokens)["params"]
    state = create_state(jax.random.key(0), init, optimizer, ema=True)

    def take_step():
        nonlocal state  # the step donates its state
        state, metrics = step(state, data)
        return metrics

    size = 2048
    matrix = jax.random.normal(jax.random.key(1), (size, size))
    square = jax.jit(lambda a: a @ a)
    measured = seconds({"step": take_step, "matmul": lambda: square(matrix)}, rounds)
    step_flops = 3 * flops_per_token(config, length) * batch * length
    step_rate, peak = step_flops / measured["step"], 2 * size**3 / measured["matmul"]
    return _table(
        ("batch", "tokens/s", "ms/step", "GFLOP/s", f"matmul {size} GFLOP/s", "fraction"),
        [
            (
                f"{batch} x {length}",
                f"{batch * length / measured['step']:,.0f}",
                f"{1e3 * measured['step']:.0f}",
                f"{step_rate / 1e9:.0f}",
                f"{peak / 1e9:.0f}",
                f"{step_rate / peak:.2f}",
            )
        ],
    )


def sampling_table(config: DiTConfig, batch: int, length: int, rounds: int) -> str:
    """Tokens per second and model calls of the samplers, on an untrained model."""
    model = DiT(config)
    process = mdm.Masked(config.num_ids - 1, mdm.LogLinear())
    params = model.init(jax.random.key(0), jnp.zeros((1, length), jnp.int32))["params"]
    samplers = {
        "first_hitting": (mdm.first_hitting(process), length),
        "first_hitting, 4 per step": (mdm.first_hitting(process, per_step=4), length // 4),
        f"ancestral, {length // 2} steps": (mdm.ancestral(process), length // 2),
        f"ancestral, {length} steps": (mdm.ancestral(process), length),
        f"ancestral, {4 * length} steps": (mdm.ancestral(process), 4 * length),
    }

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def run(sampler, steps):
        start = jnp.full((batch, length), process.mask_id, jnp.int32)
        denoiser = mdm.denoiser(lambda x, t: model.apply({"params": params}, x))
        stop = mdm.all_decided(process)
        key = jax.random.key(0)
        return mdm.generate(key, denoiser, sampler, start, mdm.time_grid(steps), stop=stop)

    candidates = {name: functools.partial(run, *choice) for name, choice in samplers.items()}
    measured = seconds(candidates, rounds)
    rows = [
        (name, f"{batch * length / measured[name]:,.0f}", f"{int(candidates[name]().calls)}")
        for name in samplers
    ]
    return _table(("sampler", "tokens/s", "model calls"), rows)


def draws_table(rows: int, rounds: int) -> str:
    """One categorical draw per row: JAX's, JAX's with high-resolution noise, and two-stage."""
    methods = {
        "jax.random.categorical": jax.random.categorical,
        'jax.random.categorical, mode="high"': functools.partial(
            jax.random.categorical, mode="high"
        ),
        "mdm_jax.draws.categorical": draws.categorical,
    }
    lines = []
    for size in (257, 50_257):
        logits = jax.random.normal(jax.random.key(0), (rows, size))
        candidates = {
            name: functools.partial(jax.jit(method), jax.random.key(1), logits)
            for name, method in methods.items()
        }
        measured = seconds(candidates, rounds)
        base = measured["jax.random.categorical"]
        lines += [
            (
                f"{size:,}",
                name,
                f"{1e6 * measured[name] / rows:.1f}",
                f"{measured[name] / base:.2f}",
            )
            for name in methods
        ]
    return _table(("V", "draw", "us per row", "ratio"), lines)


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main(argv: list[str]) -> None:
    """Prints every table."""
    del argv
    logging.set_verbosity(logging.WARNING)
    rounds = _ROUNDS.value
    print(f"jax {jax.__version__}, {jax.device_count()} {jax.devices()[0].device_kind} device(s)\n")
    config = DiTConfig.from_size("tiny", 257)
    print("## Train step\n\n" + train_step_table(config, 32, 128, rounds), flush=True)
    print("\n## Sampling\n\n" + sampling_table(config, 16, 128, max(rounds // 2, 1)), flush=True)
    print("\n## Categorical draws\n\n" + draws_table(512, rounds), flush=True)


if __name__ == "__main__":
    app.run(main)
