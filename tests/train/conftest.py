from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def golden() -> Path:
    """Directory of the reference numbers."""
    return Path(__file__).parents[1] / "golden"
