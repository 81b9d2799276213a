import json

import pytest

from mdm_jax.train.metrics import MetricsWriter, read_metrics


def test_each_line_is_on_disk_at_once(tmp_path):
    writer = MetricsWriter(tmp_path)
    writer.write(1, loss=2.0)
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "loss": 2.0}
    writer.close()


def test_lines_are_strict_json(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, loss=float("nan"), grad_norm=float("inf"))
    refuse = lambda text: (_ for _ in ()).throw(ValueError(text))
    record = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert record == {"step": 1, "loss": None, "grad_norm": None}


def test_resume_keeps_each_step_once(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        for step in range(1, 6):
            writer.write(step, loss=float(step))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # killed while writing
    with MetricsWriter(tmp_path, resume_step=3) as writer:
        for step in range(4, 8):
            writer.write(step, loss=float(step))
    assert [r["step"] for r in read_metrics(tmp_path)] == list(range(1, 8))


@pytest.mark.parametrize("bad", ['{"step": 2, "lo', "[1, 2]", '{"loss": 1.0}', "\x00\x00"])
def test_a_bad_line_does_not_block_resuming(tmp_path, caplog, bad):
    lines = ['{"step": 1, "loss": 3.0}', bad, '{"step": 3, "loss": 2.0}']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    with MetricsWriter(tmp_path, resume_step=3) as writer:
        writer.write(4, loss=1.0)
    assert f"{tmp_path / 'metrics.jsonl'}, line 2 is no record" in caplog.text
    assert [r["step"] for r in read_metrics(tmp_path)] == [1, 3, 4]


def test_a_new_run_in_an_old_directory_starts_afresh(tmp_path):
    for _ in range(2):
        with MetricsWriter(tmp_path) as writer:
            writer.write(1, loss=1.0)
    assert len(read_metrics(tmp_path)) == 1


def test_tensorboard_gets_the_same_numbers(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, loss=1.0)
    assert list((tmp_path / "tensorboard").glob("events*"))
