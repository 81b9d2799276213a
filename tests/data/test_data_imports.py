import ast
import os
import subprocess
import sys
from pathlib import Path

import mdm_jax.data

FILES = sorted(Path(mdm_jax.data.__file__).parent.glob("*.py"))


def test_data_imports_numpy_and_grain_only():
    imported = set()
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module)
    own = {name for name in imported if name.split(".")[0] not in sys.stdlib_module_names}
    assert {name for name in own if not name.startswith("mdm_jax.data")} == {
        "grain",
        "numpy",
        "numpy.typing",
    }


def test_data_starts_no_jax_backend():
    """With a platform that does not exist, any use of a device would fail."""
    program = """
from mdm_jax import data
documents = data.in_memory(["some text"] * 4)
packed = data.pack(documents, data.ByteTokenizer(), 4)
assert data.Batches(packed, 2, seed=0)(3)["tokens"].shape == (2, 4)
import jax
try:
    jax.devices()
except RuntimeError:
    print("no devices, no matter")
"""
    result = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"JAX_PLATFORMS": "no_such_platform"},
        cwd=Path(mdm_jax.data.__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stdout == "no devices, no matter\n", result.stderr
