"""The whole program in this process: it learns, stops, resumes, and refuses."""

import json
import shutil
import signal

import fsspec
import jax
import numpy as np
import pytest
from train import tiny

from mdm_jax import data
from mdm_jax.train import loop
from mdm_jax.train.checkpoints import load_params
from mdm_jax.train.interruption import Interrupted
from mdm_jax.train.loop import train
from mdm_jax.train.metrics import DivergedError, read_metrics


def losses(workdir):
    return {r["step"]: r["loss"] for r in read_metrics(workdir) if "loss" in r}


def checkpoints(workdir):
    return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir())


def at_step(patch, step, action):
    """Calls `action` while the given step runs."""
    submit = loop.Reporter.submit

    def hooked(reporter, index, metrics):
        if index == step:
            action()
        submit(reporter, index, metrics)

    patch.setattr(loop.Reporter, "submit", hooked)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An uninterrupted run."""
    workdir = tmp_path_factory.mktemp("finished")
    return workdir, train(tiny.config(), workdir, documents=tiny.documents())


def test_what_a_run_leaves(finished):
    workdir, result = finished
    assert int(result.state.step) == 6
    assert list(losses(workdir)) == [1, 2, 3, 4, 5, 6]
    assert checkpoints(workdir) == [2, 4, 6]
    evaluations = [r for r in read_metrics(workdir) if "eval_nats_per_token" in r]
    assert [r["step"] for r in evaluations] == [3, 6]
    last = evaluations[-1]
    assert last == {"step": 6, **result.metrics}
    bits = last["eval_nats_per_token"] / np.log(2) / result.experiment.held_out.bytes_per_token
    assert last["eval_bits_per_byte"] == pytest.approx(bits)
    assert last["eval_nats_per_token"] < evaluations[0]["eval_nats_per_token"]
    params, config = load_params(workdir / "params")
    jax.tree.map(np.testing.assert_array_equal, params, result.state.ema)
    fingerprint = result.experiment.data_fingerprint()
    assert config == result.experiment.config | {"data_fingerprint": fingerprint}


def test_signal_saves_and_the_same_call_continues(tmp_path, monkeypatch, finished):
    """Stopped between two checkpoints and two evaluations; the end is the same, bit for bit."""
    with monkeypatch.context() as patch:
        at_step(patch, 4, lambda: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(Interrupted, match="after 5 steps, which are saved") as stopped:
            train(tiny.config(), tmp_path, documents=tiny.documents())
    assert stopped.value.signum == signal.SIGTERM
    assert checkpoints(tmp_path) == [2, 4, 5]
    result = train(tiny.config(), tmp_path, documents=tiny.documents())
    jax.tree.map(np.testing.assert_array_equal, result.state, finished[1].state)
    assert losses(tmp_path) == losses(finished[0])


def test_a_finished_run_is_left_as_it_is(finished):
    workdir, result = finished
    before = read_metrics(workdir)
    again = train(tiny.config(), workdir, documents=tiny.documents())
    jax.tree.map(np.testing.assert_array_equal, again.state, result.state)
    assert read_metrics(workdir) == before
    assert again.metrics["eval_nats_per_token"] == result.metrics["eval_nats_per_token"]


def test_nan_stops_at_once_and_keeps_the_checkpoints_before(tmp_path):
    """A step so large that the parameters overflow in the forward pass of the next one."""
    config = tiny.config(
        optimizer={"learning_rate": 1e36, "schedule": "constant", "warmup": 3}, train={"steps": 50}
    )
    with pytest.raises(DivergedError, match=r"step (\d+): the loss is (nan|inf)") as diverged:
        train(config, tmp_path, documents=tiny.documents())
    step = int(str(diverged.value).split()[1].rstrip(":"))
    assert 0 < step < 49
    assert checkpoints(tmp_path)
    assert max(checkpoints(tmp_path)) <= step
    assert read_metrics(tmp_path)[-1]["step"] == step + 1


def test_another_config_is_refused(finished):
    workdir, _ = finished
    config = tiny.config(optimizer={"b2": 0.99}, train={"log_every": 2})
    with pytest.raises(ValueError, match=r"optimizer\.b2 is 0\.99, was 0\.95\. Restore"):
        train(config, workdir, documents=tiny.documents())


def test_other_text_is_refused(finished):
    workdir, _ = finished
    texts = [text + b"!" for text in tiny.documents().texts]
    with pytest.raises(ValueError, match="data_fingerprint is"):
        train(tiny.config(), workdir, documents=loop.data.in_memory(texts))


def test_prepared_text_trains_to_the_same_parameters(tmp_path, finished):
    """Read from shards, window by window. The folder may move; other windows are refused."""
    lines = [json.dumps({"text": text.decode()}) for text in tiny.documents().texts]
    (tmp_path / "text.jsonl").write_text("\n".join(lines))
    recipe = data.Recipe(f"jsonl:{tmp_path}/text.jsonl", "byte", 16, held_out=0.3)
    data.prepare(recipe, tmp_path / "a")
    config = lambda path: tiny.config(data={"source": "prepared", "path": str(path)})
    result = train(config(tmp_path / "a"), tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, result.state.params, finished[1].state.params)
    assert losses(tmp_path / "run") == losses(finished[0])
    bits = "eval_bits_per_byte"
    assert result.metrics[bits] == finished[1].metrics[bits]
    shutil.move(tmp_path / "a", tmp_path / "b")
    assert int(train(config(tmp_path / "b"), tmp_path / "run").state.step) == 6
    with pytest.raises(ValueError, match="data_fingerprint"):
        train(config(f"{tmp_path}/b=1,{tmp_path}/b=2"), tmp_path / "run")


def test_batches_that_do_not_divide_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"12 rows .* on 8 device.*8 or 16 rows"):
        train(tiny.config(train={"batch_size": 12}), tmp_path, documents=tiny.documents())
    with pytest.raises(ValueError, match=r"mesh axes .*'data': 3.* do not fit 8 device"):
        train(tiny.config(mesh={"data": 3}), tmp_path, documents=tiny.documents())
    assert not list(tmp_path.iterdir())


def test_a_run_continues_from_its_url(tmp_path, monkeypatch, finished):
    """On another machine, which has nothing but the URL: the same end, bit for bit."""
    url = f"memory:/{tmp_path}/run"
    with monkeypatch.context() as patch:
        at_step(patch, 4, lambda: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(Interrupted, match="after 5 steps, which are saved"):
            train(tiny.config(), url, documents=tiny.documents())
    result = train(tiny.config(), url, documents=tiny.documents())
    jax.tree.map(np.testing.assert_array_equal, result.state, finished[1].state)
    store, root = fsspec.url_to_fs(url)
    whole = {path.rpartition("/")[2] for path in store.glob(f"{root}/checkpoints/*.whole.json")}
    assert whole == {f"{step}.whole.json" for step in (4, 5, 6)}
    assert store.exists(f"{root}/params.whole.json")
    store.get_file(f"{root}/metrics.jsonl", str(tmp_path / "metrics.jsonl"))
    assert losses(tmp_path) == losses(finished[0])


def test_a_url_that_leads_nowhere():
    with pytest.raises(ValueError, match="Protocol not known: nowhere"):
        train(tiny.config(), "nowhere://bucket/run", documents=tiny.documents())


def test_unwritable_workdir(tmp_path):
    file = tmp_path / "file"
    file.write_text("not a directory")
    with pytest.raises(OSError, match=r"cannot write checkpoints to .*Choose a --workdir"):
        train(tiny.config(), file / "run", documents=tiny.documents())


def test_sharded_parameters_give_the_same_losses(tmp_path, finished):
    config = tiny.config(mesh={"data": 2, "fsdp": 2, "tensor": 2})
    train(config, tmp_path, documents=tiny.documents())
    expected = losses(finished[0])
    assert losses(tmp_path) == pytest.approx(expected, rel=2e-5)
