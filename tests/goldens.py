"""Reference numbers: see tests/golden/README.md for where they come from."""

from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

FOLDER = Path(__file__).parent / "golden"


def load(name: str) -> dict[str, np.ndarray]:
    """The tensors of one file; ids as int32, the token type of the library."""
    tensors = load_file(FOLDER / f"{name}.safetensors")
    return {k: v.astype(np.int32) if v.dtype == np.int64 else v for k, v in tensors.items()}


def assert_close(actual, expected, tolerance: float, **kwargs) -> None:
    """The "mixed" tolerance of the golden files: |error| <= tolerance (1 + |expected|)."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance, **kwargs)
