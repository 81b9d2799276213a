"""The plans of docs/pods.md: which recipe on which slice, and how to read a recipe by name."""

import importlib.util
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from mdm_jax.pods.fitting import with_settings
from mdm_jax.pods.reports import report
from mdm_jax.pods.topologies import describe

_IDS = {"owt": 50_257, "lm1b": 30_522, "text8": 27, "smdm": 32_000, "scaling": 32_000}
_LARGE_IDS = 131_072  # of the scaling study's 1.7B runs


class Plan(NamedTuple):
    """A recipe on a slice.

    Attributes:
        recipe: as after ``--config=configs/``, such as "smdm.py:1028M".
        topology: such as "v5e:16x16".
        settings: fields that differ from the recipe's, by their dotted names.
    """

    recipe: str
    topology: str
    settings: Mapping[str, Any] = {}

    @property
    def name(self) -> str:
        """The recipe, and what is set beside it."""
        return " ".join(
            [self.recipe, *(f"--config.{name}={x}" for name, x in self.settings.items())]
        )


_PODS = ("v5e:16x16", "v5p:4x4x8", "v6e:16x16")
_LARGE = (
    *("smdm.py:1028M-3.3e21", "smdm.py:2121M"),
    *(f"scaling.py:{family}-1.7B-phase1" for family in ("ar", "mdlm", "duo", "esolm")),
)
_SMALL = ("mdlm_owt.py", "duo_owt.py")
_SMALL_SETTINGS = {"train.loss_chunk": 1024, "model.remat": "dots"}
PLANS: tuple[Plan, ...] = (
    *(Plan(recipe, pod) for pod in _PODS for recipe in _LARGE),
    *(
        Plan(recipe, part, _SMALL_SETTINGS)
        for part in ("v5e:4x8", "v5p:2x2x4", "v6e:4x4")
        for recipe in _SMALL
    ),
)
"""Every plan of the table."""

CHECKED = tuple(plan for plan in PLANS if plan.topology == "v6e:4x4")
"""Those that the test suite compiles: the quickest."""


def vocabulary(recipe: str) -> int:
    """Returns the ids of the tokenizer that a recipe is written for.

    Args:
        recipe: "<file>.py[:option]", with or without its folder.

    Raises:
        ValueError: if it is not a recipe whose tokenizer is known here.

    Examples:
        >>> vocabulary("mdlm_owt.py"), vocabulary("configs/scaling.py:ar-1.7B-phase1")
        (50257, 131072)
    """
    file, _, option = recipe.partition(":")
    stem = pathlib.PurePath(file).stem
    if "1.7B" in option:
        return _LARGE_IDS
    if stem in ("quickstart", "compare"):
        return 256  # bytes
    kind = stem.split("_")[-1]
    if kind not in _IDS:
        raise ValueError(
            f"the vocabulary of {recipe!r} is not known: give --vocab_size, the ids of its "
            "tokenizer"
        )
    return _IDS[kind]


def read_recipe(recipe: str, folder: str | pathlib.Path = "configs") -> Any:
    """Returns the config of "<file>.py[:option]".

    Args:
        recipe: the file's name in `folder`, and what follows the colon.
        folder: where the recipes are; what they import must be importable.

    Raises:
        FileNotFoundError: if there is no such file.
    """
    file, _, option = recipe.partition(":")
    path = pathlib.Path(folder) / file
    if not path.is_file():
        raise FileNotFoundError(f"no recipe {path}: start from the repository's root")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(*([option] if option else []))


def compile_plan(plan: Plan, folder: str | pathlib.Path = "configs") -> dict[str, Any]:
    """Compiles a plan, and returns its record with its name.

    Raises:
        ValueError: as `mdm_jax.pods.reports.report`.
    """
    config = with_settings(read_recipe(plan.recipe, folder), plan.settings)
    slices = config["mesh"].get("slices", 1)
    record = report(config, vocabulary(plan.recipe), describe(plan.topology, slices))
    return {"plan": plan.name, **record}


def compile_all(
    plans: Iterable[Plan],
    records: pathlib.Path,
    *,
    say: Callable[[str], None] = lambda line: None,
    compile_one: Callable[[Plan], dict[str, Any]] = compile_plan,
) -> list[dict[str, Any]]:
    """Compiles plans one after another, each record kept at once, so that a kill loses one.

    Args:
        plans: what to compile.
        records: a file of one JSON record a line. Plans that are in it are not compiled again:
            remove it where the code or the compiler has changed.
        say: called before each compilation.
        compile_one: makes the record of a plan.

    Returns:
        The records, in the order of `plans`.
    """
    known = {}
    if records.exists():
        lines = [json.loads(line) for line in records.read_text().splitlines() if line]
        known = {(one["plan"], one["topology"]): one for one in lines}
    records.parent.mkdir(parents=True, exist_ok=True)
    plans = list(plans)
    for plan in plans:
        if (plan.name, plan.topology) in known:
            continue
        say(f"compiling {plan.name} for {plan.topology}")
        record = json.loads(json.dumps(compile_one(plan)))
        with records.open("a") as file:
            file.write(json.dumps(record) + "\n")
        known[(plan.name, plan.topology)] = record
    return [known[(plan.name, plan.topology)] for plan in plans]
