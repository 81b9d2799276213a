"""Reading the records of a run, one JSON object per line."""

import json
import logging
from pathlib import Path

logger = logging.getLogger(__name__)


def read_records(path: str | Path) -> list[dict[str, float]]:
    r"""Returns the records of a ``metrics.jsonl``, in the order written.

    A last line without its end, left by a killed process, is not a record. Any other line that is
    no record (half-written before a power cut, say) is left out with a warning.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: if there is no such file.

    Examples:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "metrics.jsonl"
        >>> _ = path.write_text('{"step": 1, "loss": 2.5}\n{"st\n{"step": 2, "lo')
        >>> read_records(path)
        [{'step': 1, 'loss': 2.5}]
    """
    path = Path(path) if isinstance(path, str) else path
    if not path.is_file():
        raise FileNotFoundError(f"no metrics at {path}: expected the metrics.jsonl of a run")
    records = []
    lines = path.read_bytes().decode(errors="replace").split("\n")[:-1]
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records.append(record)
        else:
            logger.warning("%s, line %d is no record and is left out: %.60r", path, number, line)
    return records
