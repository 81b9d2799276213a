"""A page on a run, from the records in its workdir."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mdm_jax.train.goodput import account, read_sessions
from mdm_jax.train.metrics import read_metrics

_RECENT = 20  # reports whose median is the speed of now


def summary(workdir: str | Path) -> str:
    """Returns Markdown: where the wall time went, and how fast the last reports were.

    Args:
        workdir: of a run, finished or going on.

    Raises:
        FileNotFoundError: if there are no sessions in `workdir`.

    Examples:
        >>> summary("no/such/run")
        Traceback (most recent call last):
            ...
        FileNotFoundError: no sessions.jsonl in no/such/run: expected the --workdir of a run
    """
    sessions, metrics = read_sessions(workdir), read_metrics(workdir)
    if not sessions:
        raise FileNotFoundError(f"no sessions.jsonl in {workdir}: expected the --workdir of a run")
    total = account(sessions)
    parts = {"training steps that counted": total.useful, "steps taken again": total.lost}
    parts |= {name: seconds for name, seconds in total.overhead.items() if seconds > 0}
    parts["nothing ran, or no record of it"] = total.down
    title = (
        f"{workdir}: step {sessions[-1]['step']:,}, {total.sessions} session(s), "
        f"goodput {total.goodput:.1%}"
    )
    lines = [title, "", "| wall time | seconds | share |", "| --- | ---: | ---: |"]
    for name, seconds in {**parts, "all": total.wall}.items():
        lines.append(f"| {name} | {seconds:,.1f} | {seconds / max(total.wall, 1e-9):.1%} |")
    reports = [record for record in metrics if "tokens_per_second" in record][-_RECENT:]
    lines += ["", f"| median of the last {len(reports)} report(s) | |", "| --- | ---: |"]
    for name, field, form in (
        ("tokens/s", "tokens_per_second", ",.0f"),
        ("tokens/s and device", "tokens_per_second_per_device", ",.0f"),
        ("MFU, attention counted", "mfu", ".1%"),
        ("MFU, 6 N", "mfu_6n", ".1%"),
        ("training time spent waiting for data", "starved", ".1%"),
        ("memory of a device at most, GiB", "memory_peak_gib", ".2f"),
    ):
        value = _median(reports, field)
        if value is not None:
            lines.append(f"| {name} | {value:{form}} |")
    return "\n".join(lines)


def _median(records: Sequence[dict[str, Any]], field: str) -> float | None:
    values = [record[field] for record in records if record.get(field) is not None]
    return statistics.median(values) if values else None
