"""What a run says of itself: where the time went, what was for nothing, and profiles on request."""

import dataclasses
import json
import re
import signal
import sys
import time
import types

import jax
import jax.numpy as jnp
import pytest
from train import tiny

from mdm_jax.train import loop, utilization
from mdm_jax.train.cost import step_flops
from mdm_jax.train.goodput import Sessions, account, read_sessions
from mdm_jax.train.loop import train
from mdm_jax.train.meters import Meter
from mdm_jax.train.metrics import MetricsWriter, read_metrics
from mdm_jax.train.profiling import Profiler
from mdm_jax.train.stopwatch import PHASES, PRODUCTIVE, Stopwatch
from mdm_jax.train.summaries import summary
from mdm_jax.train.trackers import open_tracker
from mdm_jax.train.utilization import peak_flops


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self, now=0.0):
        self.now = now

    def __call__(self):
        return self.now


# Stopwatch


def test_compiling_is_not_counted_for_what_it_interrupts():
    """Real compilations: one in a block, functions inside functions counted once."""

    @jax.jit
    def inner(x):
        return jnp.sin(x) * 3

    with Stopwatch() as stopwatch:
        stopwatch.started()
        began = time.monotonic()
        with stopwatch("step"):
            jax.jit(lambda x: inner(inner(x)) + inner(2 * x))(jnp.ones(7)).block_until_ready()
        passed = time.monotonic() - began
        first = stopwatch.seconds()
        with stopwatch("step"):
            time.sleep(0.02)
        second = stopwatch.seconds()
    assert first["compile"] > 0 and first["step"] >= 0
    assert first["compile"] + first["step"] <= passed
    assert second["compile"] == first["compile"]
    assert second["step"] - first["step"] >= 0.02


def test_nested_durations_count_once():
    """As JAX reports them: the inner function first, then what holds it."""
    clock = Clock()
    stopwatch = Stopwatch(clock=clock)
    event = "/jax/core/compile/jaxpr_trace_duration"
    with stopwatch("step"):
        clock.now = 4.0
        stopwatch._note(event, 1.0)  # from 3 to 4
        clock.now = 6.0
        stopwatch._note(event, 1.5)  # from 4.5 to 6
        clock.now = 7.0
        stopwatch._note(event, 5.0)  # from 2 to 7, with both inside
        stopwatch._note("/jax/compilation_cache/compile_time_saved_sec", 100.0)
        clock.now = 9.0
    seconds = stopwatch.seconds()
    assert (seconds["compile"], seconds["step"]) == (5.0, 4.0)


def test_an_unknown_phase_is_named():
    with (
        pytest.raises(ValueError, match=r"phase='eval': expected one of \('startup', "),
        Stopwatch()("eval"),
    ):
        pass


# Goodput


def session(directory, clock, start, until, *, note_every=1, step_seconds=2.0, setup=3.0):
    """A session of steps that take `step_seconds` each, after a start that takes `setup`."""
    stopwatch = Stopwatch(clock=clock)
    clock.now += setup
    with Sessions(directory, stopwatch, start=start, clock=clock) as sessions:
        stopwatch.started()
        goodput = None
        for step in range(start, until):
            with stopwatch("step"):
                clock.now += step_seconds
            if (step + 1) % note_every == 0:
                goodput = sessions.note(step + 1)
    return goodput


def test_goodput_over_restarts(tmp_path):
    """Killed at step 10, resumed from 6, again from 4 (6 was damaged): 6 + 4 steps are lost."""
    clock = Clock(1000.0)
    assert session(tmp_path, clock, 0, 10) == pytest.approx(20 / 23)
    clock.now += 50.0  # nothing runs
    session(tmp_path, clock, 6, 8)
    clock.now += 10.0
    last = session(tmp_path, clock, 4, 12)
    total = account(read_sessions(tmp_path))
    assert total.useful == pytest.approx(2.0 * 12)
    assert total.lost == pytest.approx(2.0 * (6 + 2))
    assert total.overhead["startup"] == pytest.approx(9.0)
    assert total.down == pytest.approx(60.0)
    assert total.sessions == 3
    assert total.wall == pytest.approx(24 + 16 + 9 + 60)
    assert last == pytest.approx(total.goodput) == pytest.approx(24 / 109)


def test_steps_between_two_lines_are_shared_out(tmp_path):
    """Resumed from a step that no line names."""
    clock = Clock()
    session(tmp_path, clock, 0, 10, note_every=5)
    session(tmp_path, clock, 7, 10, note_every=5)
    total = account(read_sessions(tmp_path))
    assert (total.useful, total.lost) == (pytest.approx(20.0), pytest.approx(6.0))


def test_a_half_line_is_no_line_and_swallows_none(tmp_path):
    session(tmp_path, Clock(), 0, 2)
    with (tmp_path / "sessions.jsonl").open("a") as file:
        file.write('{"step": 3, "sess')
    session(tmp_path, Clock(100.0), 2, 3)
    assert [r["step"] for r in read_sessions(tmp_path)] == [0, 1, 2, 2, 3]


def test_a_session_without_steps_leaves_nothing(tmp_path):
    session(tmp_path, Clock(), 5, 5)
    assert not list(tmp_path.iterdir())


# FLOPs, peaks and memory


def test_peak_of_this_device_is_not_guessed():
    assert peak_flops(jax.devices()[0].device_kind) is None
    assert peak_flops("TPU v6 lite") == 918e12


def test_memory_of_the_fullest_device(monkeypatch):
    stats = [
        {"bytes_in_use": 2**30, "peak_bytes_in_use": 3 * 2**30, "bytes_limit": 16 * 2**30},
        {"bytes_in_use": 2**31, "peak_bytes_in_use": 2**31, "bytes_limit": 16 * 2**30},
    ]
    devices = [types.SimpleNamespace(memory_stats=lambda one=one: one) for one in stats]
    monkeypatch.setattr(utilization.jax, "local_devices", lambda: devices)
    expected = {"memory_gib": 2.0, "memory_peak_gib": 3.0, "memory_limit_gib": 16.0}
    assert utilization.device_memory() == expected
    monkeypatch.setattr(
        utilization.jax, "local_devices", lambda: [types.SimpleNamespace(memory_stats=lambda: None)]
    )
    assert utilization.device_memory() == {}


# A whole run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Six steps, with a planned profile, and two more that are asked for while it runs."""
    workdir = tmp_path_factory.mktemp("watched")
    watch = {"peak_tflops": 0.5, "profile_from": 1, "profile_steps": 1}
    submit = loop.Reporter.submit

    def hooked(reporter, step, metrics):
        if step == 2:
            signal.raise_signal(signal.SIGUSR1)
        if step == 4:
            (workdir / "profile").touch()
        submit(reporter, step, metrics)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Reporter, "submit", hooked)
        patch.setattr("mdm_jax.train.profiling._LOOK_EVERY", 0.0)
        before = signal.getsignal(signal.SIGUSR1)
        result = train(tiny.config(watch=watch), workdir, documents=tiny.documents())
        assert signal.getsignal(signal.SIGUSR1) == before
    return workdir, result


def test_every_second_is_accounted_for(run):
    records = [r for r in read_metrics(run[0]) if "loss" in r]
    for record in records:
        parts = {name: record[f"seconds_{name}"] for name in PHASES}
        assert all(value >= 0 for value in parts.values())
        assert sum(parts.values()) == pytest.approx(record["seconds"])
        productive = sum(parts[name] for name in PRODUCTIVE)
        flops = step_flops(run[1].experiment)
        assert record["mfu"] == pytest.approx(flops.total / (productive * 0.5e12 * 8))
        assert record["mfu_6n"] / record["mfu"] == pytest.approx(
            flops.without_attention / flops.total
        )
        rate = record["tokens_per_second_per_device"]
        assert rate * 8 == pytest.approx(record["tokens_per_second"])
        assert 0 <= record["starved"] <= 1 and 0 < record["goodput"] < 1
    assert records[0]["seconds_startup"] > 0 and records[0]["seconds_compile"] > 0
    assert sum(r["seconds_evaluation"] for r in records) > 0  # of step 3; that of 6 comes later
    assert sum(r["seconds_checkpoint"] for r in records) > 0
    assert all(r["seconds_startup"] == 0 for r in records[1:])
    total = account(read_sessions(run[0]))
    assert total.lost == 0 and total.sessions == 1
    assert total.down == pytest.approx(0, abs=0.01)  # lines are rounded


def test_profiles_on_demand(run):
    """One was planned, one a signal asked for, one a file."""
    folders = {path.name for path in run[0].glob("profile*")}
    assert folders == {"profile-1", "profile-3", "profile-5"}
    for name in folders:
        traces = list((run[0] / name).rglob("*.xplane.pb"))
        assert traces and all(trace.stat().st_size > 1000 for trace in traces)


def test_tensorboard_has_the_timing(run):
    events = b"".join(p.read_bytes() for p in (run[0] / "tensorboard").glob("events*"))
    assert all(name in events for name in (b"mfu_6n", b"goodput", b"seconds_data"))


def test_a_failing_profiler_does_not_stop_the_run(tmp_path, caplog, monkeypatch):
    def refuse(folder):
        raise RuntimeError("Only one profile may be run at a time.")

    monkeypatch.setattr(jax.profiler, "start_trace", refuse)
    with Profiler(tmp_path, steps=2, first=1) as profiler:
        for step in range(4):
            profiler.before(step, wait=lambda: None)
    assert caplog.text.count("no profile of step 1") == 1


def test_a_bad_field_is_refused_before_anything_is_written(tmp_path):
    for fields, message in (
        ({"tracker": "mlflow"}, r"watch\.tracker must be '' for none or one of .*got 'mlflow'"),
        ({"profile_steps": 0}, r"watch\.profile_steps must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            train(tiny.config(watch=fields), tmp_path, documents=tiny.documents())
    assert not list(tmp_path.iterdir())


# Trackers


@dataclasses.dataclass
class Service:
    """A stand-in for wandb and trackio: the functions of theirs that are called."""

    calls: list
    fail: bool = False

    def init(self, **given):
        self.calls.append(("init", given))
        return self

    def log(self, numbers, step):
        if self.fail:
            raise ConnectionError("no network")
        self.calls.append(("log", step, numbers))

    def finish(self):
        self.calls.append(("finish",))


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_tracker_gets_every_record(tmp_path, monkeypatch, name):
    service = Service([])
    monkeypatch.setitem(sys.modules, name, service)
    for start in (0, 1):  # a run, and its continuation
        tracker = open_tracker(name, project="p", workdir=tmp_path / "mine", config={"seed": 3})
        with MetricsWriter(tmp_path / "mine", resume_step=start, tracker=tracker) as writer:
            writer.write(start + 1, loss=2.5)
    kinds = [call[0] for call in service.calls]
    assert kinds == ["init", "log", "finish"] * 2
    first, second = (call[1] for call in service.calls if call[0] == "init")
    assert first == second
    assert (
        first["name"].startswith("mine")
        and first["config"] == {"seed": 3}
        and first["project"] == "p"
    )
    identity = json.loads((tmp_path / "mine" / "tracker.json").read_text())["id"]
    assert identity in (first.get("id", first["name"]))
    assert service.calls[4] == ("log", 2, {"loss": 2.5})


def test_a_failing_tracker_loses_no_record(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "wandb", Service([], fail=True))
    tracker = open_tracker("wandb", project="p", workdir=tmp_path, config={})
    with MetricsWriter(tmp_path, tracker=tracker) as writer:
        writer.write(1, loss=2.5)
        writer.write(2, loss=2.25)
    assert [r["loss"] for r in read_metrics(tmp_path)] == [2.5, 2.25]
    assert "did not take the record of step 1: no network" in caplog.text
    assert "2 record(s) did not reach wandb" in caplog.text


def test_a_tracker_that_is_not_there_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", None)  # as if it were not installed
    with pytest.raises(ImportError, match=r"pip install 'mdm-jax\[trackio\]', or set watch\."):
        open_tracker("trackio", project="p", workdir=tmp_path, config={})


def test_a_tracker_that_refuses_says_what_to_do(tmp_path, monkeypatch):
    def init(**_):
        raise PermissionError("api_key not configured")

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    with pytest.raises(RuntimeError, match=r"api_key not configured\): log in .*WANDB_MODE"):
        open_tracker("wandb", project="p", workdir=tmp_path, config={})


def test_identities_stay_with_the_workdir(tmp_path, monkeypatch):
    service = Service([])
    monkeypatch.setitem(sys.modules, "wandb", service)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        open_tracker("wandb", project="p", workdir=tmp_path / name, config={})
    ids = [json.loads((tmp_path / n / "tracker.json").read_text())["id"] for n in "ab"]
    assert len(set(ids)) == 2 and [call[1]["id"] for call in service.calls] == ids


def test_a_page_on_a_run(run):
    page = summary(run[0])
    assert page.startswith(f"{run[0]}: step 6, 1 session(s), goodput ")
    shares = [float(x) for x in re.findall(r"\| ([\d.]+)% \|", page.split("median")[0])]
    assert shares[-1] == 100 and sum(shares[:-1]) == pytest.approx(100, abs=0.5)
    assert "| MFU, 6 N | " in page and "| tokens/s and device | " in page


def test_getting_a_batch_counts_as_waiting_when_the_devices_are_idle():
    clock = Clock()
    meter = Meter(Stopwatch(clock=clock))
    meter.stopwatch.started()
    for seconds, idle in ((1.0, True), (2.0, False), (0.5, True)):
        with meter.stopwatch("data"):
            clock.now += seconds
        meter.fed(idle=idle)
    clock.now += 2.5
    assert meter.report(3)["starved"] == (1.0 + 0.5) / 6.0
    clock.now += 1.0
    assert meter.report(4)["starved"] == 0
