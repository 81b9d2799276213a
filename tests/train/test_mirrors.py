"""A run behind a URL, in fsspec's store in memory and in a folder."""

import pytest

from mdm_jax.train import mirrors
from mdm_jax.train.mirrors import Mirror


def write(mirror, name, text):
    path = mirror.folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture(params=["memory", "file"])
def url(request, tmp_path):
    if request.param == "file":
        return (tmp_path / "store" / "run").as_uri()
    return f"memory:/{tmp_path}/run"


def test_what_is_whole_comes_back(url):
    with Mirror(url) as mirror:
        for step in "12":
            write(mirror, f"checkpoints/{step}/state/data", step * 3)
        write(mirror, "metrics.jsonl", "a")
        mirror.push()
        (mirror.folder / "checkpoints/1/state/data").unlink()
        (mirror.folder / "checkpoints/1/state").rmdir()
        (mirror.folder / "checkpoints/1").rmdir()
        write(mirror, "checkpoints/3/state/data", "333")
        write(mirror, "checkpoints/4.orbax-checkpoint-tmp/state/data", "4")
        write(mirror, "metrics.jsonl", "ab")
        mirror.push()
    with Mirror(url) as mirror:
        mirror.fetch()
        names = sorted(path.name for path in (mirror.folder / "checkpoints").iterdir())
        assert names == ["2", "3"]
        assert (mirror.folder / "checkpoints/3/state/data").read_text() == "333"
        assert (mirror.folder / "metrics.jsonl").read_text() == "ab"


def test_a_copy_cut_short_does_not_count(url, monkeypatch):
    with Mirror(url) as mirror:
        write(mirror, "checkpoints/1/a", "1")
        mirror.push()
        write(mirror, "checkpoints/2/a", "2")
        write(mirror, "checkpoints/2/b", "2")
        put = Mirror._put

        def broken(mirror, name):
            if name.endswith("2/b"):
                raise OSError("the line is down")
            put(mirror, name)

        with monkeypatch.context() as patch, pytest.raises(OSError, match="line is down"):
            patch.setattr(Mirror, "_put", broken)
            mirror.push()
    with Mirror(url) as mirror:
        mirror.fetch()
        assert [path.name for path in (mirror.folder / "checkpoints").iterdir()] == ["1"]


def test_several_processes_are_refused(monkeypatch):
    monkeypatch.setattr(mirrors.jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match=r"'memory://run' with 2 processes: .*Mount the store"):
        Mirror("memory://run")
