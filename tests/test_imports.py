"""What may import what, what the core loads, and that every public name is documented."""

import ast
import inspect
import pathlib
import subprocess
import sys

import pytest

import mdm_jax

ROOT = pathlib.Path(mdm_jax.__file__).parent.parent
# Each package may import itself and those before it; data stands beside models.
ALLOWED = {
    "core": set(),
    "models": {"core"},
    "data": {"core"},
    "evaluation": {"core", "models", "data"},
    "train": {"core", "models", "data", "evaluation"},
    "pods": {"core", "models", "data", "evaluation", "train"},
    "configs": set(),
    "launch": {"core", "models", "data", "evaluation", "train", "pods", "configs"},
}
THIRD_PARTY = {
    "core": {"jax", "numpy"},
    "models": {"jax", "numpy", "flax", "ml_dtypes"},
    "data": {
        *("numpy", "grain", "tokenizers", "sentencepiece", "tiktoken", "array_record", "tqdm"),
        *("pyarrow", "zstandard", "tensorflow_datasets", "apache_beam"),
    },
    "configs": {"ml_collections"},
}
FILES = [
    path
    for folder in ("mdm_jax", "configs", "launch")
    for path in sorted((ROOT / folder).rglob("*.py"))
]


def layer_of(module: str) -> str:
    parts = module.split(".")
    if parts[0] != "mdm_jax":
        return parts[0]
    return parts[1] if len(parts) > 1 and parts[1] in ALLOWED else "core"


def imports_of(path: pathlib.Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path):
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    layer = layer_of(module)
    for name in imports_of(path):
        root = name.split(".")[0]
        if root in ("mdm_jax", "configs", "launch"):
            target = layer_of(name)
            assert target == layer or target in ALLOWED[layer], f"{module} imports {name}"
        elif layer in THIRD_PARTY and root not in sys.stdlib_module_names:
            assert root in THIRD_PARTY[layer], f"{module} ({layer}) imports {name}"


def test_the_core_loads_jax_and_nothing_heavier():
    code = (
        "import sys, time, jax; before = set(sys.modules); start = time.perf_counter();"
        "import mdm_jax; seconds = time.perf_counter() - start;"
        "print(seconds, sorted({m.split('.')[0] for m in set(sys.modules) - before}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    seconds, loaded = done.stdout.split(" ", 1)
    assert set(ast.literal_eval(loaded)) <= {"mdm_jax"}, loaded
    assert float(seconds) < 1.0


def test_every_public_name_is_documented_with_an_example():
    for name in mdm_jax.__all__:
        value = getattr(mdm_jax, name)
        text = inspect.getdoc(value) or ""
        assert len(text) > 20, f"mdm_jax.{name} has no docstring"
        # Records are shown by the function that returns them; schedules by their base class.
        shown_elsewhere = name in {"Generation", "NLLBound", "Noised", "Process"} or (
            inspect.isclass(value) and issubclass(value, mdm_jax.Schedule)
        )
        assert ">>>" in text or shown_elsewhere, f"mdm_jax.{name} has no example"


def test_files_stay_short():
    long = {str(p): n for p in FILES if (n := len(p.read_text().splitlines())) > 400}
    assert not long
