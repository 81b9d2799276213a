"""``launch/sample.py``, ``launch/evaluate.py`` and ``launch/quickstart.py`` on a tiny run."""

import pathlib
import re
import subprocess
import sys

import pytest
from train import tiny

from mdm_jax.train import showcase
from mdm_jax.train.loop import train

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Six steps on a folder of text files."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "text").mkdir()
    for name, text in zip(tiny.documents().names, tiny.documents().texts, strict=True):
        (folder / "text" / f"{name}.txt").write_bytes(text)
    source = {"source": "text_files", "path": str(folder / "text")}
    result = train(tiny.config(data=source), folder / "work")
    return folder / "work", result


def launch(script, *arguments):
    command = [sys.executable, ROOT / "launch" / script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_sample(run, tmp_path):
    page = tmp_path / "page.html"
    template = r"the {{3}}\n____."
    out = launch(
        "sample.py",
        f"--checkpoint={run[0]}",
        f"--template={template}",
        "--batch=2",
        f"--html={page}",
    )
    assert "--- sample 2 ---" in out and out.count("\nthe ") == 2
    assert "first_hitting: 14 tokens in 7 model calls" in out and "tokens/s" in out
    assert str(page) in out and "7 tokens in 7 steps" in page.read_text()


def test_evaluate(run):
    out = launch("evaluate.py", f"--checkpoint={run[0] / 'params'}", "--samples=2", "--windows=8")
    nats, bits = re.search(r"([\d.]+) \+- [\d.]+ nats per token, ([\d.]+) \+-", out).groups()
    # Hardly trained: close to uniform over 256 bytes.
    assert 5.3 < float(nats) < 5.6 and 7.6 < float(bits) < 8.2
    assert "xz -9" in out and "this model" in out


def test_quickstart_shows_what_a_run_learned(run, capsys):
    workdir, result = run
    showcase.show(result.experiment, workdir)
    out = capsys.readouterr().out
    for word in ("read back", "exact numbers of masks", "xz -9", "this model", "unconditional"):
        assert word in out, word
    assert out.count(f"\n{showcase.PROMPT}") == 2 and out.count("\nReturn a new ") == 2
    assert (workdir / "loss.png").stat().st_size > 10_000
    assert "ancestral, 16 tokens in 16 steps" in (workdir / "trajectory.html").read_text()
