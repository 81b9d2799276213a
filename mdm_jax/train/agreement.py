"""What the processes of a run must agree on before they compute together."""

import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

_LONGEST = 400  # bytes of a failure that are passed on


def failures(error: Exception | None) -> dict[int, str]:
    """Tells every process what went wrong on which; all must call it.

    Args:
        error: of this process; None if there is none.

    Returns:
        The first line of each error by process, the same on all of them; empty if there is none.

    Examples:
        >>> failures(None), failures(ValueError("no such step"))
        ({}, {0: 'ValueError: no such step'})
    """
    text = b"" if error is None else first_line(error).encode()[:_LONGEST]
    row = np.zeros(_LONGEST, np.uint8)
    row[: len(text)] = np.frombuffer(text, np.uint8)
    return {process: text for process, text in enumerate(_all_rows(row)) if text}


def check_same(record: Mapping[str, Any]) -> None:
    """Checks that all processes were started with the same settings; all must call it.

    Args:
        record: flat or nested, JSON-serializable; what a run is made of.

    Raises:
        ValueError: on every process, naming one that differs from process 0, and how.

    Examples:
        >>> check_same({"seed": 0})
    """
    text = json.dumps(record, sort_keys=True, default=str).encode()
    sizes = np.asarray(multihost_utils.process_allgather(np.int32(len(text)))).reshape(-1)
    row = np.zeros(int(sizes.max()), np.uint8)
    row[: len(text)] = np.frombuffer(text, np.uint8)
    first, *others = [json.loads(text) for text in _all_rows(row)]
    for process, other in enumerate(others, 1):
        differing = ", ".join(_differing("", first, other))
        if differing:
            raise ValueError(
                f"process {process} was started with other settings than process 0: {differing}. "
                "Start all of them with the same command, on the same text"
            )


def first_line(error: BaseException) -> str:
    r"""Returns one line of an error's text, without the dumps some readers add.

    Examples:
        >>> first_line(OSError("no manifest\n  at 0x7f"))
        'OSError: no manifest'
    """
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:300]}"


def _all_rows(row: np.ndarray) -> list[str]:
    """The text that each process put into its row of bytes."""
    rows = np.asarray(multihost_utils.process_allgather(row)).reshape(jax.process_count(), -1)
    return [bytes(row).rstrip(b"\0").decode(errors="replace") for row in rows]


def _differing(name: str, first: Any, other: Any) -> list[str]:
    """What differs between two nested mappings, as "a.b is 2, not 1"."""
    if not (isinstance(first, Mapping) and isinstance(other, Mapping)):
        return [] if first == other else [f"{name} is {other!r}, not {first!r}"]
    return [
        text
        for key in sorted(first.keys() | other.keys())
        for text in _differing(f"{name}.{key}".lstrip("."), first.get(key), other.get(key))
    ]
