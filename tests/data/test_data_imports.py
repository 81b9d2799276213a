import ast
import os
import subprocess
import sys
from pathlib import Path

import mdm_jax.data

FILES = sorted(Path(mdm_jax.data.__file__).parent.glob("*.py"))


def outside_packages(nodes) -> set[str]:
    """Top-level packages imported by `nodes`, other than the standard library."""
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module.split(".")[0])
    return names - sys.stdlib_module_names


def test_data_imports_numpy_and_grain_and_never_jax():
    modules = [ast.parse(file.read_text()) for file in FILES]
    at_import = set().union(*(outside_packages(module.body) for module in modules))
    anywhere = set().union(*(outside_packages(ast.walk(module)) for module in modules))
    assert at_import == {"grain", "mdm_jax", "numpy"}
    tokenizers = {"sentencepiece", "tiktoken", "tokenizers"}  # imported where they are used
    preparing = {"apache_beam", "array_record", "pyarrow", "tensorflow_datasets", "tqdm"}
    assert anywhere - at_import == tokenizers | preparing | {"zstandard"}


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
