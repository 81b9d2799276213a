"""Runs in a bucket: the part that needs no bucket, and a checkpoint in an emulated one."""

import socket

import jax.numpy as jnp
import numpy as np
import pytest

from mdm_jax.train import paths
from mdm_jax.train.checkpoints import Checkpoints, load_params, save_params
from mdm_jax.train.metrics import MetricsWriter, read_metrics
from mdm_jax.train.state import TrainState


class Stored:
    """An object of a bucket: read and written whole."""

    def __init__(self, text=None):
        self.text, self.writes = text, 0

    def exists(self):
        return self.text is not None

    def read_text(self):
        return self.text

    def write_text(self, text):
        self.text, self.writes = text, self.writes + 1


def test_an_object_grows_by_being_written_again(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(paths.time, "monotonic", lambda: now[0])
    stored = Stored("a\n")
    with paths.open_growing(stored) as file:
        file.write("b\n")
        file.flush()
        assert (stored.text, stored.writes) == ("a\n", 0)
        now[0] = 31.0
        file.flush()
        file.flush()
        assert (stored.text, stored.writes) == ("a\nb\n", 1)
        file.write("c\n")
        paths.sync(file)
        assert (stored.text, stored.writes) == ("a\nb\nc\n", 2)
        file.write("d\n")
    assert (stored.text, stored.writes) == ("a\nb\nc\nd\n", 3)


def test_a_bucket_needs_its_package(monkeypatch):
    monkeypatch.setattr(paths.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"'gs://bucket/run' needs gcsfs: pip install"):
        paths.run_path("gs://bucket/run")


@pytest.fixture
def bucket(monkeypatch):
    pytest.importorskip("gcsfs", reason="pip install gcsfs gcp-storage-emulator")
    emulator = pytest.importorskip("gcp_storage_emulator.server")
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    address = f"http://localhost:{port}"
    for variable in ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL"):
        monkeypatch.setenv(variable, address)
    monkeypatch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "none")
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    monkeypatch.setenv("TENSORSTORE_GCS_REQUEST_CONCURRENCY", "1")  # the emulator's races
    server = emulator.create_server("localhost", port, in_memory=True, default_bucket="bucket")
    server.start()
    yield "gs://bucket/run"
    server.stop()


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_run_in_a_bucket(bucket):
    state = lambda step: TrainState(jnp.int32(step), {"w": jnp.full(64, float(step))}, (), None)
    with Checkpoints(f"{bucket}/checkpoints", keep=2) as checkpoints:
        for step in (3, 5, 7):
            checkpoints.save(step, state(step), {"seed": 0})
    folder = paths.run_path(f"{bucket}/checkpoints")
    assert sorted(path.name for path in folder.iterdir()) == ["5", "7"]
    (folder / "7" / "config" / "metadata").write_text("{")
    with Checkpoints(f"{bucket}/checkpoints") as checkpoints:
        restored, step = checkpoints.restore(state(0), {"seed": 0})
    assert step == 5
    np.testing.assert_array_equal(restored.params["w"], np.full(64, 5.0))
    assert (folder / "damaged-7").is_dir()
    save_params(f"{bucket}/params", {"w": jnp.arange(2.0)}, {"seed": 0})
    assert load_params(f"{bucket}/params")[1] == {"seed": 0}
    for start, last in ((0, 3), (2, 4)):
        with MetricsWriter(bucket, resume_step=start) as writer:
            for step in range(start, last):
                writer.write(step + 1, loss=1.0)
    assert [record["step"] for record in read_metrics(bucket)] == [1, 2, 3, 4]
