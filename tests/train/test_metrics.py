import json

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


def test_a_new_run_in_an_old_directory_starts_afresh(tmp_path):
    for _ in range(2):
        with MetricsWriter(tmp_path) as writer:
            writer.write(1, loss=1.0)
    assert len(read_metrics(tmp_path)) == 1


def test_tensorboard_gets_the_same_numbers(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, loss=1.0)
    assert list((tmp_path / "tensorboard").glob("events*"))
