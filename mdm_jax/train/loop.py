"""Training, from a config and a directory to a trained state.

Everything random or read is a function of (config, step), so a run that is killed and started again
by the same command goes through the same states, bit for bit on the same devices.
"""

import logging
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from mdm_jax import data
from mdm_jax.evaluation.bound import bits_per_byte, evaluate_bound
from mdm_jax.train.agreement import check_same
from mdm_jax.train.checkpoints import Checkpoints, save_params
from mdm_jax.train.experiment import Experiment, build
from mdm_jax.train.goodput import Sessions
from mdm_jax.train.interruption import Interrupted, StopRequest
from mdm_jax.train.meshes import batch_ways, read_rows, to_global
from mdm_jax.train.meters import Meter
from mdm_jax.train.metrics import MetricsWriter, Reporter
from mdm_jax.train.mirrors import Mirror
from mdm_jax.train.paths import is_mirrored, run_path
from mdm_jax.train.profiling import Profiler
from mdm_jax.train.state import TrainState, with_params
from mdm_jax.train.step import check_batch
from mdm_jax.train.stopwatch import Stopwatch
from mdm_jax.train.trackers import open_tracker
from mdm_jax.train.trained import load_trained

logger = logging.getLogger(__name__)

EVALUATION_SEED = 0  # the same noise for every run, so that runs compare


class Result(NamedTuple):
    """What a finished run gives back.

    Attributes:
        state: the final state.
        metrics: the last evaluation, as in ``metrics.jsonl``.
        experiment: what was trained.
    """

    state: TrainState
    metrics: dict[str, float]
    experiment: Experiment


def train(
    config: Mapping[str, Any],
    workdir: str | Path,
    *,
    documents: data.Documents | None = None,
) -> Result:
    """Trains as the config says, continuing from the newest checkpoint in `workdir`, if any.

    Writes ``checkpoints/``, ``metrics.jsonl`` (and ``tensorboard/``), ``sessions.jsonl`` (see
    `goodput`), profiles that are asked for (see `profiling`) and, when done, ``params/``: the
    parameters to evaluate and sample with, for `load_params`.

    Args:
        config: a ConfigDict or nested mapping, see `fields.FIELDS`.
        workdir: directory of the run, or its URL: ``gs://bucket/run``, or of any store that fsspec
            reaches (see `mirrors.Mirror`).
        documents: the text, if ``data.source`` is "in_memory".

    Returns:
        `Result`.

    Raises:
        ValueError: if the config does not make sense, does not fit the devices, or is not the
            config of the checkpoints in `workdir`; if the processes of a run differ in config or
            `workdir`; or if fsspec knows no such URL.
        OSError: if `workdir` cannot be written to, or its disk is full.
        ImportError: if the tracker of the config is not installed; RuntimeError if it refuses.
        DivergedError: if a step's loss or gradient is not finite.
        Interrupted: on SIGTERM or SIGINT, after saving.
    """
    stopwatch = Stopwatch()
    if not is_mirrored(workdir):
        return _train(config, run_path(workdir), documents, stopwatch, pushed=None)
    with Mirror(str(workdir)) as mirror:
        mirror.fetch()
        return _train(config, mirror.folder, documents, stopwatch, pushed=mirror.push)


def _train(
    config: Mapping[str, Any],
    workdir: Path,
    documents: data.Documents | None,
    stopwatch: Stopwatch,
    pushed: Callable[[], None] | None,
) -> Result:
    """The same, in a folder or bucket; `pushed` is called when something whole is there."""
    experiment = build(config, documents=documents)
    settings, mesh = experiment.config["train"], experiment.mesh
    _check_batches(experiment)
    record = experiment.config | {"data_fingerprint": experiment.data_fingerprint()}
    check_same(record | {"workdir": str(workdir)})
    with ExitStack() as stack:
        stack.enter_context(stopwatch)
        checkpoints = stack.enter_context(
            Checkpoints(workdir / "checkpoints", **experiment.config["checkpoint"])
        )
        state, start = _restore_or_create(experiment, checkpoints, record)
        if pushed is not None:
            pushed()  # now, too, a bad place shows
        _announce(experiment, start, record)
        writer, profiler = _watching(experiment, workdir, start, stack)
        sessions = stack.enter_context(Sessions(workdir, stopwatch, start=start))
        reporter = stack.enter_context(
            Reporter(
                writer,
                experiment.learning_rate,
                start=start,
                steps=settings["steps"],
                every=settings["log_every"],
                meter=Meter.of(experiment, stopwatch, sessions),
            )
        )
        request = stack.enter_context(StopRequest())
        step_fns = experiment.steps()
        rows = settings["batch_size"]
        batches = data.Batches(experiment.train_data, rows, experiment.config["seed"])
        read = lambda step: read_rows(partial(batches.rows, step), rows, mesh)
        ready = stack.enter_context(data.ReadAhead(read, start, settings["steps"]))
        evaluation = {}
        stopwatch.started()
        for step in range(start, settings["steps"]):
            with stopwatch("profile"):
                profiler.before(step, reporter.flush)
            with stopwatch("data"):
                batch = ready(step)
            reporter.fed()
            with stopwatch("step"), jax.profiler.StepTraceAnnotation("train", step_num=step):
                state, metrics = step_fns[experiment.phase_at(step)](state, batch)
            reporter.submit(step, metrics)
            done = step + 1
            last = done == settings["steps"]
            preempted = request.signum is not None or checkpoints.reached_preemption(done - start)
            if last or done % settings["eval_every"] == 0:
                reporter.flush()
                with stopwatch("evaluation"):
                    evaluation = _evaluate(experiment, state)
                writer.write(done, **evaluation)
            if last or preempted or done % settings["checkpoint_every"] == 0:
                reporter.flush()  # raises before a state that went wrong is saved
                writer.sync()
                with stopwatch("checkpoint"):
                    checkpoints.save(done, state, record)
                    if pushed is not None:
                        checkpoints.wait()
                        pushed()
                sessions.note(done)
            if preempted and not last:
                with stopwatch("checkpoint"):
                    checkpoints.wait()
                sessions.note(done)
                raise Interrupted(request.signum or signal.SIGTERM, done)
        checkpoints.wait()
        save_params(workdir / "params", state.eval_params, record, overwrite=True)
        if pushed is not None:
            writer.sync()
            pushed()
        return Result(state, evaluation or _evaluate(experiment, state), experiment)


def _watching(
    experiment: Experiment, workdir: Path, start: int, stack: ExitStack
) -> tuple[MetricsWriter, Profiler]:
    """What writes records and profiles, opened in `stack`."""
    section = experiment.config["watch"]
    tracker = open_tracker(
        section["tracker"],
        project=section["project"],
        workdir=workdir,
        config=experiment.config,
    )
    writer = MetricsWriter(workdir, resume_step=start, tracker=tracker)
    profiler = Profiler(workdir, steps=section["profile_steps"], first=section["profile_from"])
    return stack.enter_context(writer), stack.enter_context(profiler)


def _check_batches(experiment: Experiment) -> None:
    """Refuses batch sizes that do not divide, before anything is compiled or written."""
    settings, ways = experiment.config["train"], batch_ways(experiment.mesh)
    sizes = {
        "train.batch_size": (settings["batch_size"], settings["accumulate"]),
        "evaluation.batch_size": (experiment.config["evaluation"]["batch_size"], 1),
    }
    together = experiment.family.rows_together
    for name, (rows, parts) in sizes.items():
        check_batch(rows, accumulate=parts, devices=ways)
        if rows % (together * parts * ways):
            raise ValueError(
                f"{name}={rows}: this objective takes {together} rows together; on {ways} "
                f"device(s) with {parts} micro-batch(es) use a multiple of "
                f"{together * parts * ways}"
            )


def _restore_or_create(
    experiment: Experiment,
    checkpoints: Checkpoints,
    record: Mapping[str, Any],
) -> tuple[TrainState, int]:
    """The newest checkpoint, or a new state, which is saved at once: a bad disk shows now."""
    shardings = experiment.shardings()
    abstract = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        jax.eval_shape(experiment.create_state),
        shardings,
    )
    restored = checkpoints.restore(abstract, record)
    if restored is not None:
        return restored
    source = experiment.config["train"]["start_from"]
    if source:
        params = jax.tree.map(np.asarray, load_trained(source).params)  # the same on every host
        begin = lambda params: with_params(experiment.create_state(), params)
        state = jax.jit(begin, out_shardings=shardings)(params)
        logger.info("starting from the parameters of %s", source)
    else:
        state = jax.jit(experiment.create_state, out_shardings=shardings)()
        if experiment.family.teacher_every:
            logger.warning(
                "train.start_from is empty: the first teacher is a model that was never trained"
            )
    checkpoints.save(0, state, record)
    checkpoints.wait()
    return state, 0


def _evaluate(experiment: Experiment, state: TrainState) -> dict[str, float]:
    """The bound on held-out text, of the averaged parameters if there are any."""
    settings, started = experiment.config["evaluation"], time.monotonic()
    report = evaluate_bound(
        experiment.apply,
        state.eval_params,
        experiment.objective,
        data.evaluation_batches(experiment.evaluation_data(), settings["batch_size"]),
        seed=EVALUATION_SEED,
        samples=settings["times"],
        constant=experiment.family.constant,
        place=lambda batch: to_global(batch, experiment.mesh),
    )
    per_token = lambda nats: bits_per_byte(
        nats, experiment.held_out.token_count, experiment.held_out.bytes
    )
    evaluation = {
        "eval_nats_per_token": report.nats_per_token,
        "eval_standard_error": report.standard_error,
        "eval_bits_per_byte": per_token(report.nats_per_token),
        "eval_bits_per_byte_standard_error": per_token(report.standard_error),
        "eval_tokens": report.tokens,
        "eval_seconds": time.monotonic() - started,
    }
    logger.info(
        "held out: %.4f +- %.4f nats per token, %.4f bits per byte",
        *(report.nats_per_token, report.standard_error, evaluation["eval_bits_per_byte"]),
    )
    return evaluation


def _announce(experiment: Experiment, start: int, record: Mapping[str, Any]) -> None:
    """Logs what decides the numbers of this run."""
    network = experiment.network
    logger.info("%s, %s parameters", network.module.config, f"{network.parameters:,}")
    logger.info("process %s", experiment.process)
    logger.info(
        "training on %s, held out %s, fingerprint %s",
        *(experiment.train_data, experiment.held_out, record["data_fingerprint"]),
    )
    logger.info(
        "%d device(s) (%s), mesh %s, jax %s, random numbers %s",
        *(jax.device_count(), jax.devices()[0].device_kind, dict(experiment.mesh.shape)),
        *(jax.__version__, jax.random.key_impl(jax.random.key(0))),
    )
    logger.info("%s at step %d", "continuing" if start else "starting", start)
