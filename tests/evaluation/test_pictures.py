"""The page holds the whole story and no foreign tag; the curve shows what was recorded."""

import json
import re
import sys

import numpy as np
import pytest

from mdm_jax.data import ByteTokenizer
from mdm_jax.evaluation.canvas import canvas
from mdm_jax.evaluation.pictures import loss_curve, samples_html, trajectory_html
from mdm_jax.evaluation.samples import Samples

BYTES = ByteTokenizer()
TEXT = '</script><b>&"\n'


@pytest.fixture
def frames():
    """Masks lifted two at a time."""
    final = BYTES.encode(TEXT)
    order = np.random.default_rng(0).permutation(len(final))
    return np.stack([np.where(order < 2 * i, final, 256) for i in range(len(final) // 2 + 2)])


def story(page):
    found = re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.S)
    return json.loads(found[1])


def test_the_page_replays_to_the_frames(tmp_path, frames):
    times = np.linspace(1, 0, len(frames))
    path = trajectory_html(tmp_path / "new" / "page.html", frames, BYTES, 256, times=times)
    told = story(path.read_text())
    ids = np.array(told["start"])
    for step, changes in enumerate(told["changes"], 1):
        for position, token in changes:
            ids[position] = token
        assert (ids == frames[step]).all()
    assert "".join(told["words"][str(i)] for i in ids) == TEXT
    assert told["mask"] == 256 and told["times"][0] == 1 and len(told["times"]) == len(frames)


def test_text_cannot_break_out_of_the_page(tmp_path, frames):
    path = trajectory_html(
        tmp_path / "page.html", frames, BYTES, 256, title="<i>$title & co", caption="</p>"
    )
    page = path.read_text()
    assert page.count("<script") == page.count("</script>") == 2
    assert "<b>" not in page and "<i>$" not in page and "&lt;i&gt;$title &amp; co" in page
    assert page.count("</p>") == 1
    assert not re.search(r"(src|href)=|https?://|@import|url\(", page)  # nothing is fetched


def test_uniform_noise_has_no_mask(tmp_path, frames):
    path = trajectory_html(tmp_path / "page.html", np.minimum(frames, 255), BYTES)
    told = story(path.read_text())
    assert told["mask"] is None and "255" in told["words"]


@pytest.mark.parametrize(
    ("shape", "extra", "message"),
    [
        ((2, 3, 4), {}, r"\[T \+ 1, L\]"),
        ((0, 3), {}, r"\[T \+ 1, L\]"),
        ((2, 3), {"keep": [True]}, "do not fit"),
        ((2, 3), {"times": [1.0]}, "do not fit"),
    ],
)
def test_shapes_are_checked(tmp_path, shape, extra, message):
    with pytest.raises(ValueError, match=message):
        trajectory_html(tmp_path / "x", np.zeros(shape, int), BYTES, **extra)


def test_samples_without_frames_are_refused(tmp_path):
    blank = Samples(("",), np.zeros((1, 1)), None, np.zeros(2), "ancestral", 1, 1, 1.0, 1.0, 1)
    with pytest.raises(ValueError, match="watch=True"):
        samples_html(tmp_path / "x", blank, None, canvas(BYTES, length=1))


def test_loss_curve(tmp_path):
    records = [{"step": i, "loss": 5 / i} for i in range(1, 40)]
    records += [{"step": 40, "loss": None}]  # a step whose loss was not finite
    records += [{"step": 40, "eval_nats_per_token": 0.5, "eval_standard_error": 0.1}]
    records.insert(20, "not a record")
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (tmp_path / "metrics.jsonl").write_text(lines + '{"step": 41, "lo')
    path = loss_curve(tmp_path, tmp_path / "plots" / "loss.png", levels={"unigrams": 3.0})
    assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 10_000


def test_loss_curve_errors(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="no metrics"):
        loss_curve(tmp_path, tmp_path / "loss.png")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "other": 2}\n')
    with pytest.raises(ValueError, match="nothing to draw"):
        loss_curve(tmp_path, tmp_path / "loss.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ModuleNotFoundError, match=r"mdm-jax\[plot\]"):
        loss_curve(tmp_path, tmp_path / "loss.png")
