"""Measures the figures of docs/benchmarks.md on this machine, and prints them as Markdown.

    python launch/benchmark.py
    python launch/benchmark.py --losses  # the losses from hidden states: 170M parameters, 4 GB
    python launch/benchmark.py --torch  # the train step beside PyTorch's: needs torch, 10 GB
    python launch/benchmark.py --mfu  # 170M and 1028M on one accelerator
    python launch/benchmark.py --mfu --models=configs/quickstart.py --rows=32 --size=2048
    python launch/benchmark.py --speculation --checkpoint=runs/mdlm  # of a trained masked model

Every comparison interleaves its candidates round by round in one process and reports medians, so
that a machine whose speed drifts favors neither. Compilation is not timed.
"""

import functools
import importlib
import pathlib
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from absl import app, flags, logging

import mdm_jax as mdm
from mdm_jax import draws
from mdm_jax.markdown import markdown_table
from mdm_jax.models.configs import DiTConfig
from mdm_jax.models.dit import DiT
from mdm_jax.models.flops import flops_per_token
from mdm_jax.models.unembedding import unembedding
from mdm_jax.train.fields import checked
from mdm_jax.train.host_memory import keep_freed_memory
from mdm_jax.train.learners import build_learner
from mdm_jax.train.state import create_state
from mdm_jax.train.step import jit_train_step
from mdm_jax.train.timing import one_device, seconds, utilization

# The configs and the baseline are not installed with the package.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

_ROUNDS = flags.DEFINE_integer("rounds", 7, "Rounds per comparison.", lower_bound=1)
_LOSSES = flags.DEFINE_bool("losses", False, "Only the losses from hidden states.")
_TORCH = flags.DEFINE_bool("torch", False, "Only the train step beside PyTorch's.")
_LAYERS = flags.DEFINE_integer("layers", 12, "Of --torch: layers of the large model.")
_COMPILE = flags.DEFINE_bool("compile", True, "Of --torch: torch.compile at the small config too.")
_MFU = flags.DEFINE_bool("mfu", False, "Only the share of a large product's rate, of --models.")
_MODELS = flags.DEFINE_list(
    "models", ["configs/mdlm_owt.py", "configs/smdm.py:1028M"], "Of --mfu: configs."
)
_ROWS = flags.DEFINE_integer("rows", 8, "Of --mfu: rows of a batch.", lower_bound=1)
_SIZE = flags.DEFINE_integer("size", 8192, "Of --mfu: of the product's matrices.", lower_bound=1)
_REMAT = flags.DEFINE_string("remat", "dots", "Of --mfu: model.remat.")
_SPECULATION = flags.DEFINE_bool("speculation", False, "Only speculation, with --checkpoint.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", "", "Of --speculation: as in launch/sample.py.")
_BATCH = flags.DEFINE_integer("batch", 1, "Of --speculation: rows.", lower_bound=1)
_LENGTH = flags.DEFINE_integer("length", 0, "Of --speculation: tokens; 0: as in training.")


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
    return markdown_table(
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
    return markdown_table(("sampler", "tokens/s", "model calls"), rows)


def speculation_table(
    logits_fn: Callable, process: mdm.Masked, batch: int, length: int, drafts: tuple, rounds: int
) -> str:
    """Sequential calls and acceptance by drafts per round, beside one token at a time.

    Examples:
        >>> flat = lambda tokens, t: jnp.zeros((*tokens.shape, 4))
        >>> table = speculation_table(flat, mdm.Masked(4, mdm.Linear()), 1, 4, (2,), 1)
        >>> [line.split(" | ")[:3] for line in table.splitlines()[2:]]
        [['| one at a time', '4', '1.00'], ['| 2', '2', '2.00']]
    """
    canvas = jnp.full((batch, length), process.mask_id, jnp.int32)

    @functools.partial(jax.jit, static_argnums=1)
    def run(key, draft):
        if draft:
            return mdm.speculate(key, logits_fn, process, canvas, draft=draft)
        key_times, key = jax.random.split(key)
        times = mdm.hitting_times(key_times, process, canvas, length)
        denoiser = mdm.denoiser(logits_fn)
        return mdm.generate(key, denoiser, mdm.first_hitting(process), canvas, times)

    candidates = {k: functools.partial(run, jax.random.key(0), k) for k in (0, *drafts)}
    measured = seconds(candidates, rounds)
    rows = [("one at a time", f"{length}", "1.00", "", f"{measured[0]:.2f}", "1.00")]
    for draft in drafts:
        # Over many keys: how many calls there are is a matter of chance.
        outs = [run(jax.random.key(seed), draft) for seed in range(rounds)]
        calls = sum(int(out.calls) for out in outs) / rounds
        tested, accepted = (sum(o[i].sum(0) for o in outs) for i in (2, 3))
        depths = [1 << i for i in range(draft.bit_length())]
        rates = ", ".join(f"{accepted[i - 1] / tested[i - 1]:.2f}" for i in depths)
        ratio = f"{measured[draft] / measured[0]:.2f}"
        per_call, time = f"{length / calls:.2f}", f"{measured[draft]:.2f}"
        rows.append((f"{draft}", f"{calls:.0f}", per_call, rates, time, ratio))
    names = ("drafts", "calls", "tokens per call and row", "accepted at depth 1, 2, 4...")
    return markdown_table((*names, "s", "ratio"), rows)


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
    return markdown_table(("V", "draw", "us per row", "ratio"), lines)


def loss_memory_table(positions: int, width: int, chunk: int) -> str:
    """Temporaries of a loss's value and gradient by states and head in bfloat16: compiled, not run.

    Examples:
        >>> print(loss_memory_table(64, 8, 16).splitlines()[0])
        | V | one-hot, MiB | logsumexp and gather, MiB | chunked, MiB | chunked / one-hot |
    """
    lines = []
    for size in (32_001, 50_258, 131_072):
        process = mdm.Masked(size, mdm.Linear(), mask_id=size - 1)
        loss = functools.partial(mdm.masked_cross_entropy, process=process)

        def one_hot(states, kernel, noised, size=size):
            log_p = jax.nn.log_softmax((states @ kernel).astype(jnp.float32), axis=-1)
            return -jnp.sum(jax.nn.one_hot(noised.targets, size) * log_p, axis=-1)

        def chunked(states, kernel, noised, loss=loss):
            hidden = mdm.Hidden(states, kernel)
            return mdm.from_hidden(loss, hidden, noised, chunk=chunk, active=noised.noised)

        def gathered(states, kernel, noised, loss=loss):
            return loss(states @ kernel, noised)

        weights = ((positions, width), (width, size))
        mebibytes = [
            _temporaries(function, weights, positions) / 2**20
            for function in (one_hot, gathered, chunked)
        ]
        ratio = f"{mebibytes[2] / mebibytes[0]:.2f}"
        lines.append((f"{size:,}", *(f"{value:,.0f}" for value in mebibytes), ratio))
    forms = ("one-hot, MiB", "logsumexp and gather, MiB", "chunked, MiB", "chunked / one-hot")
    return markdown_table(("V", *forms), lines)


def _temporaries(loss: Callable, weights: tuple, positions: int) -> int:
    """Returns the bytes a compiled value and gradient holds beside its inputs and outputs."""
    ids = jax.ShapeDtypeStruct((positions,), jnp.int32)
    marks = jax.ShapeDtypeStruct((positions,), jnp.bool_)
    noised = mdm.Noised(ids, ids, jax.ShapeDtypeStruct((1,), jnp.float32), marks, marks)
    states, kernel = (jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in weights)
    function = jax.value_and_grad(lambda *a: loss(*a).sum(), argnums=(0, 1))
    compiled = jax.jit(function).lower(states, kernel, noised).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def loss_step_table(config: DiTConfig, batch: int, length: int, chunk: int, rounds: int) -> str:
    """One masked train step with the dense head, in chunks, and in chunks with skipping."""
    model = DiT(config)
    process = mdm.Masked(config.num_ids - 1, mdm.LogLinear())
    objective, optimizer = mdm.masked_objective(process), optax.adamw(1e-4)
    tokens = jax.random.randint(jax.random.key(0), (batch, length), 0, process.vocab_size)
    data = {"tokens": tokens, "where": jnp.ones_like(tokens, jnp.bool_)}
    init = lambda key: model.init(key, tokens)["params"]
    state = create_state(jax.random.key(0), init, optimizer, ema=False)

    def logits(params, inputs, key):
        return model.apply({"params": params}, inputs["tokens"])

    def hidden(params, inputs, key):
        states = model.apply({"params": params}, inputs["tokens"], unembed=False)
        return mdm.Hidden(states, *unembedding(params))

    def take(step):
        nonlocal state  # the step donates its state, which all candidates share
        state, metrics = step(state, data)
        state = state._replace(step=jnp.zeros_like(state.step))  # the same noise for everyone
        return metrics

    candidates = {
        "dense": (logits, objective),
        f"chunks of {chunk}": (hidden, mdm.chunked(objective, chunk)),
        f"chunks of {chunk}, unmasked positions skipped": (
            hidden,
            mdm.chunked(objective, chunk, skip_unnoised=True),
        ),
    }
    steps = {
        name: functools.partial(
            take,
            jit_train_step(apply=apply, objective=objective, optimizer=optimizer, seed=0),
        )
        for name, (apply, objective) in candidates.items()
    }
    measured = seconds(steps, rounds)
    return markdown_table(
        ("head and loss", "ms/step", "ratio"),
        [
            (name, f"{1e3 * measured[name]:,.0f}", f"{measured[name] / measured['dense']:.2f}")
            for name in steps
        ],
    )


def mfu_table(models: list[str], rows: int, size: int, remat: str, rounds: int) -> str:
    """The share of a large product's rate that train steps reach on one device.

    Args:
        models: config files, with their options after a colon.
        rows: of a batch.
        size: of the product's matrices.
        remat: what the backward pass may keep.
        rounds: how often each is timed.
    """
    from mdm_jax.pods.plans import vocabulary

    lines = []
    for model in models:
        file, _, option = model.partition(":")
        module = importlib.import_module(f"configs.{pathlib.Path(file).stem}")
        config = module.get_config(*([option] if option else []))
        config.model.update({"attention": "auto", "remat": remat})
        config.train.update({"batch_size": rows, "accumulate": 1})
        config.train.loss_chunk = config.train.loss_chunk or 2048
        learner = build_learner(checked(config), vocabulary(model), one_device())
        found = utilization(learner, size=size, rounds=rounds, repeats=3)
        lines.append(
            (
                f"{model}, {learner.network.parameters / 1e6:,.0f}M",
                f"{rows} x {config.data.length}",
                f"{1e3 * found.seconds:,.0f}",
                f"{found.flops / 1e12:,.2f}",
                f"{found.peak / 1e12:,.2f}",
                f"{found.share:.2f}",
                f"{found.without_attention / found.peak:.2f}",
            )
        )
    names = ("ms/step", "TFLOP/s", f"product {size}", "MFU", "MFU without attention")
    return markdown_table(("model", "batch", *names), lines)


def main(argv: list[str]) -> None:
    """Prints every table."""
    del argv
    logging.set_verbosity(logging.WARNING)
    rounds = _ROUNDS.value
    keep_freed_memory()
    print(f"jax {jax.__version__}, {jax.device_count()} {jax.devices()[0].device_kind} device(s)\n")
    if _LOSSES.value:
        print("## Losses from hidden states\n\n" + loss_memory_table(8192, 2048, 512), flush=True)
        config = DiTConfig.from_size("small", 50_258, dtype="float32")
        print("\n" + loss_step_table(config, 4, 128, 64, rounds), flush=True)
        return
    if _TORCH.value:
        from launch.torch_baseline import tables

        tables(rounds, _LAYERS.value, compiled=_COMPILE.value)
        return
    if _MFU.value:
        print(mfu_table(_MODELS.value, _ROWS.value, _SIZE.value, _REMAT.value, rounds))
        return
    if _SPECULATION.value:
        from mdm_jax.train.trained import load_trained

        trained = load_trained(_CHECKPOINT.value)
        model, length = trained.text_model, _LENGTH.value or trained.config["data"]["length"]
        if not isinstance(model.process, mdm.Masked):
            raise app.UsageError(f"{trained.origin} is not a masked model: {model.process!r}")
        shape = (_BATCH.value, length, (1, 2, 4, 8, 16), rounds)
        print("## Speculation\n\n" + speculation_table(model.logits_fn, model.process, *shape))
        return
    config = DiTConfig.from_size("tiny", 257)
    print("## Train step\n\n" + train_step_table(config, 32, 128, rounds), flush=True)
    print("\n## Sampling\n\n" + sampling_table(config, 16, 128, max(rounds // 2, 1)), flush=True)
    print("\n## Categorical draws\n\n" + draws_table(512, rounds), flush=True)


if __name__ == "__main__":
    app.run(main)
