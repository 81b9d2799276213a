import contextlib
import logging
import resource
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from train import toy

from mdm_jax.train.checkpoints import Checkpoints, check_config, load_params, save_params
from mdm_jax.train.meshes import make_mesh, state_shardings
from mdm_jax.train.state import TrainState

CONFIG = {"seed": 0, "model": {"width": 8}, "train": {"steps": 10, "log_every": 5}}


def state(step):
    """A state whose numbers tell its step."""
    return TrainState(
        jnp.int32(step), {"w": jnp.full((64, 32), float(step))}, (jnp.float32(step),), None
    )


def abstract(shardings=None):
    shapes = jax.eval_shape(lambda: state(0))
    if shardings is None:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), shapes)
    like = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
    return jax.tree.map(like, shapes, shardings)


def one_device():
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return abstract(jax.tree.map(lambda _: place, jax.eval_shape(lambda: state(0))))


def written(directory, steps, **options):
    with Checkpoints(directory, **options) as checkpoints:
        for step in steps:
            checkpoints.save(step, state(step), CONFIG)


def largest_file(directory: Path) -> Path:
    return max((p for p in directory.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def test_nothing_to_restore(tmp_path):
    with Checkpoints(tmp_path / "new") as checkpoints:
        assert checkpoints.latest_step() is None
        assert checkpoints.restore(one_device(), CONFIG) is None


def test_newest_is_restored_and_old_ones_go(tmp_path):
    written(tmp_path, [2, 4, 6, 8, 10], keep=2, keep_every=4)
    assert {int(p.name) for p in tmp_path.iterdir()} == {4, 8, 10}
    with Checkpoints(tmp_path) as checkpoints:
        restored, step = checkpoints.restore(one_device(), CONFIG)
    assert step == 10
    jax.tree.map(np.testing.assert_array_equal, restored, state(10))


def test_saving_a_step_again_keeps_the_first(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state(1), CONFIG)
        checkpoints.save(1, state(5), CONFIG)
        restored, _ = checkpoints.restore(one_device(), CONFIG)
    assert restored.step == 1


def test_a_donated_state_is_saved_as_it_was(tmp_path):
    """The background write must not see the buffers the next step writes into."""
    advance = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    with Checkpoints(tmp_path) as checkpoints:
        current = state(0)
        for step in range(1, 4):
            current = advance(current)
            checkpoints.save(step, current, CONFIG)
        advance(current)
        checkpoints.wait()
        restored, _ = checkpoints.restore(one_device(), CONFIG)
    jax.tree.map(np.testing.assert_array_equal, restored, state(3))


def test_state_moves_between_meshes(tmp_path):
    rules = [("w$", PartitionSpec("fsdp", "tensor"))]
    sharded = lambda axes: abstract(state_shardings(abstract(), make_mesh(axes), rules))
    eight, other = sharded({"fsdp": 8}), sharded({"fsdp": 2, "tensor": 4})
    placed = jax.device_put(state(3), jax.tree.map(lambda x: x.sharding, eight))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, placed, CONFIG)
        checkpoints.wait()
        for target in (eight, other, one_device()):
            restored, _ = checkpoints.restore(target, CONFIG)
            jax.tree.map(np.testing.assert_array_equal, restored, state(3))
            assert restored.params["w"].sharding == target.params["w"].sharding


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_eight_devices_are_restored_on_fewer(tmp_path, devices):
    rules = [("w$", PartitionSpec("fsdp"))]
    kinds = (jax.sharding.AxisType.Auto,)
    few = jax.make_mesh((devices,), ("fsdp",), kinds, devices=jax.devices()[:devices])
    eight = state_shardings(abstract(), make_mesh({"fsdp": 8}), rules)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, jax.device_put(state(3), eight), CONFIG)
        target = abstract(state_shardings(abstract(), few, rules))
        restored, _ = checkpoints.restore(target, CONFIG)
    jax.tree.map(np.testing.assert_array_equal, restored, state(3))
    assert len(restored.params["w"].devices()) == devices


# Readers of damaged files are abandoned half-way; their complaints are not ours to raise.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", ["truncated data", "no config", "no state"])
def test_damaged_newest_falls_back_loudly(tmp_path, caplog, damage):
    written(tmp_path, [1, 2, 3])
    if damage == "truncated data":
        file = largest_file(tmp_path / "3" / "state")
        file.write_bytes(file.read_bytes()[:-10])
    elif damage == "no config":
        (tmp_path / "3" / "config" / "metadata").unlink()
    else:
        (tmp_path / "3" / "state").rename(tmp_path / "elsewhere")
    with caplog.at_level(logging.WARNING, "mdm_jax"), Checkpoints(tmp_path) as checkpoints:
        restored, step = checkpoints.restore(one_device(), CONFIG)
        assert step == 2
        assert restored.step == 2
        assert "checkpoint 3" in caplog.text
        assert "damaged-3" in caplog.text
        checkpoints.save(3, state(3), CONFIG)  # the run gets there again
        checkpoints.wait()
        assert checkpoints.restore(one_device(), CONFIG)[1] == 3


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_nothing_readable_is_an_error_not_a_fresh_start(tmp_path):
    written(tmp_path, [1, 2])
    for step in "12":
        file = largest_file(tmp_path / step / "state")
        file.write_bytes(b"")
    unreadable = pytest.raises(
        OSError, match=r"no checkpoint in .* can be read. step 2: .*step 1: "
    )
    with Checkpoints(tmp_path) as checkpoints, unreadable:
        checkpoints.restore(one_device(), CONFIG)
    assert (tmp_path / "1").is_dir()
    assert (tmp_path / "2").is_dir()


def test_half_written_checkpoint_is_cleaned_up(tmp_path):
    written(tmp_path, [1])
    half = tmp_path / "2.orbax-checkpoint-tmp" / "state.orbax-checkpoint-tmp"
    half.mkdir(parents=True)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(one_device(), CONFIG)[1] == 1
        checkpoints.save(2, state(2), CONFIG)
        checkpoints.wait()
        assert checkpoints.latest_step() == 2


def test_other_config_is_refused_by_field(tmp_path):
    written(tmp_path, [1])
    other = CONFIG | {"model": {"width": 16}, "seed": 1}
    refused = pytest.raises(ValueError, match=r"model\.width is 16, was 8, seed is 1, was 0")
    with Checkpoints(tmp_path) as checkpoints, refused:
        checkpoints.restore(one_device(), other)


def test_which_fields_may_change():
    longer = CONFIG | {"train": {"steps": 20, "log_every": 1}, "mesh": {"data": 4}}
    check_config(CONFIG, longer)
    chunks = [{"train": {"loss_chunk": chunk}} for chunk in (0, 512)]
    check_config(*chunks)  # for a run that ran out of memory
    with pytest.raises(ValueError, match=r"train\.steps is 10, was 20"):
        check_config(longer, CONFIG)
    with pytest.raises(ValueError, match=r"ema\.decay is 0\.9, was 'absent'"):
        check_config(CONFIG, CONFIG | {"ema": {"decay": 0.9}})


def test_micro_batches_may_change_where_there_is_no_dropout():
    config = lambda accumulate, dropout: {
        "train": {"accumulate": accumulate},
        "model": {"dropout": dropout},
    }
    check_config(config(1, 0.0), config(2, 0.0))
    with pytest.raises(ValueError, match=r"train\.accumulate is 2, was 1"):
        check_config(config(1, 0.1), config(2, 0.1))


def test_a_moved_text_is_told_by_its_fingerprint():
    config = lambda path, tokenizer, **fields: {
        "data": {"path": path, "tokenizer": tokenizer},
        **fields,
    }
    old = config("a", "a/t.json", data_fingerprint="feed")
    check_config(old, config("b", "b/t.json", data_fingerprint="feed"))
    with pytest.raises(ValueError, match="data_fingerprint is 'f00d', was 'feed'"):
        check_config(old, config("b", "b/t.json", data_fingerprint="f00d"))
    with pytest.raises(ValueError, match=r"data\.tokenizer is 'byte'"):
        check_config(old, config("b", "byte", data_fingerprint="feed"))
    with pytest.raises(ValueError, match=r"data\.path is 'b', was 'a'"):
        check_config(config("a", "byte"), config("b", "byte"))


def test_urls_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in ("s3://bucket/run", Path("s3://bucket/run"), "memory://run"):
        for use in (Checkpoints, load_params, lambda p: save_params(p, {}, {})):
            with pytest.raises(ValueError, match=r"://?.*run': .*live in folders"):
                use(path)
    assert not list(tmp_path.iterdir())


@contextlib.contextmanager
def full_disk(free_bytes):
    """Makes the kernel refuse to write files longer than this, as it does on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (free_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("asynchronous", [True, False])
def test_full_disk_says_so_and_keeps_the_previous_one(tmp_path, asynchronous):
    noise = jax.random.normal(jax.random.key(0), (64, 1024))  # does not compress
    big = lambda step: state(step)._replace(params={"w": noise})
    checkpoints = Checkpoints(tmp_path, asynchronous=asynchronous)
    checkpoints.save(1, big(1), CONFIG)
    checkpoints.wait()
    message = r"could not write .*MiB free.*there: \[1\]. Free space"
    with full_disk(100_000), pytest.raises(OSError, match=message):
        checkpoints.save(2, big(2), CONFIG)
        checkpoints.wait()
    with contextlib.suppress(OSError):
        checkpoints.close()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == 1


def test_directory_that_cannot_be_made(tmp_path):
    file = tmp_path / "file"
    file.write_text("not a directory")
    with pytest.raises(OSError, match=r"cannot write checkpoints to .*Choose a --workdir"):
        Checkpoints(file / "run")


def test_bad_retention():
    with pytest.raises(ValueError, match=r"checkpoint\.keep >= 1"):
        Checkpoints("unused", keep=0)


def test_params_alone_come_back_on_one_device(tmp_path):
    mesh = make_mesh({"fsdp": 8})
    params = {"a": {"w": jnp.arange(16.0)}, "b": jnp.ones((8, 2))}
    placed = jax.device_put(params, jax.sharding.NamedSharding(mesh, PartitionSpec("fsdp")))
    save_params(tmp_path / "params", placed, {"dims": (1, 2)})
    loaded, config = load_params(tmp_path / "params")
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    assert loaded["a"]["w"].devices() == {jax.devices()[0]}
    assert config == {"dims": [1, 2]}
    with pytest.raises(FileNotFoundError, match="no parameters at"):
        load_params(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="exists"):
        save_params(tmp_path / "params", params, {})


def test_toy_state_with_optimizer_and_average(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, toy.state(), CONFIG)
        checkpoints.wait()
        restored, _ = checkpoints.restore(toy.state(), CONFIG)
    assert jax.tree.structure(restored) == jax.tree.structure(toy.state())
    jax.tree.map(np.testing.assert_array_equal, restored, toy.state())
