"""What a preparation of data does: its settings, and the plan that follows from them.

The plan says which pieces of the corpus make which shards. It is a function of the settings and the
files alone, not of the processes that carry it out.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mdm_jax.data.corpora import Piece, Reading, pieces_of, units_of
from mdm_jax.data.detokenizers import detokenize
from mdm_jax.data.manifests import FORMAT, write_json
from mdm_jax.data.named_tokenizers import open_tokenizer, tokenizer_hash
from mdm_jax.data.packers import make_packer
from mdm_jax.data.presets import packing_preset, special_ids_of

PLAN = "plan.json"


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The settings of a preparation.

    Attributes:
        corpus: see `corpora.pieces_of`.
        tokenizer: see `open_tokenizer`.
        length: tokens of a window.
        packing: one of `presets.PRESETS`.
        detokenizer: one of `detokenizers.DETOKENIZERS`.
        held_out: share of the documents that is held out, by the hash of each, as `split` does. 0
            if none is, or if `held_out_corpus` is given.
        held_out_corpus: another corpus, all of which is held out; "" for none.
        field: of records, the one that holds the text.
        skip: "field=value": records to leave out; "" for none.
        data_dir: of TFDS.
        unit_bytes: bytes of the corpus that make a shard.
    """

    corpus: str
    tokenizer: str
    length: int
    packing: str = "joined"
    detokenizer: str = "none"
    held_out: float = 0.0125
    held_out_corpus: str = ""
    field: str = "text"
    skip: str = ""
    data_dir: str = ""
    unit_bytes: int = 256 * 2**20


class Unit(NamedTuple):
    """What one process does at a time: the pieces of a training and of a held-out shard.

    Attributes:
        number: of the unit.
        pieces: of the corpus.
        side: "held_out" if all of it is held out; "" if documents are split by their hash.
    """

    number: int
    pieces: tuple[Piece, ...]
    side: str


class Plan(NamedTuple):
    """What a preparation does.

    Attributes:
        recipe: the settings.
        tokenizer: "name", "sha256" and "vocab_size".
        reading: of the corpus.
        units: the work, in order.
    """

    recipe: Recipe
    tokenizer: dict[str, Any]
    reading: Reading
    units: tuple[Unit, ...]


def make_plan(recipe: Recipe, *, download: bool = False) -> Plan:
    """Checks the settings and looks at the files, but reads no text.

    Args:
        recipe: the settings.
        download: whether a TFDS dataset that is not there may be downloaded.

    Raises:
        ValueError: if a setting is none of those expected, or there is nothing to read.
        FileNotFoundError: if the corpus or the tokenizer is not there.
        ImportError: if a package that reads them is not installed.

    Examples:
        >>> plan = make_plan(Recipe(f"text:{__file__}", "byte", length=128))
        >>> len(plan.units), plan.tokenizer["vocab_size"]
        (1, 256)
    """
    _check(recipe)
    tokenizer = open_tokenizer(recipe.tokenizer)
    packing = packing_preset(recipe.packing)
    special = special_ids_of(tokenizer, packing)
    make_packer(packing, recipe.length, special)  # refuses a length without room
    detokenize(recipe.detokenizer, b"")
    reading = Reading(
        field=recipe.field,
        skip=recipe.skip,
        data_dir=recipe.data_dir,
        download=download,
        end=tokenizer.eos_id,
        fill=special.begin,
    )
    units: list[Unit] = []
    for corpus, side in ((recipe.corpus, ""), (recipe.held_out_corpus, "held_out")):
        if corpus:
            pieces = pieces_of(corpus, reading, recipe.unit_bytes)
            for one in units_of(pieces, recipe.unit_bytes):
                units.append(Unit(len(units), one, side))
    identity = {
        "name": recipe.tokenizer,
        "sha256": tokenizer_hash(tokenizer),
        "vocab_size": tokenizer.vocab_size,
    }
    return Plan(recipe, identity, reading._replace(download=False), tuple(units))


def start_plan(folder: Path, plan: Plan) -> None:
    """Writes the plan into a folder, or checks that the one begun there is the same.

    Raises:
        ValueError: if the folder was begun with other settings, another tokenizer or other files;
            the message names what differs.

    Examples:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> start_plan(folder, make_plan(Recipe(f"text:{__file__}", "byte", length=128)))
        >>> start_plan(folder, make_plan(Recipe(f"text:{__file__}", "byte", length=64)))
        Traceback (most recent call last):
            ...
        ValueError: ... was begun with other settings: length is 64, was 128. ...
    """
    now, path = _described(plan), folder / PLAN
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        strangers = sorted(name.name for name in folder.iterdir() if name.name[0] != ".")
        if strangers:
            raise ValueError(
                f"{folder} is not empty (it has {strangers[0]!r}) and no preparation was begun in "
                "it: give a new folder"
            )
        write_json(path, now)
        return
    before = json.loads(path.read_text())
    differing = [
        f"{name} is {now.get(name, 'absent')!r}, was {before.get(name, 'absent')!r}"
        for name in dict.fromkeys([*before, *now])
        if before.get(name, "absent") != now.get(name, "absent")
    ]
    if differing:
        raise ValueError(
            f"{folder} was begun with other settings: {', '.join(differing)}. Give the old ones to "
            "go on, or another folder"
        )


def _described(plan: Plan) -> dict[str, Any]:
    """The plan as flat JSON. The tokenizer is told by its content: its file may move."""
    recipe = dataclasses.asdict(plan.recipe)
    recipe["tokenizer"] = f"{plan.tokenizer['vocab_size']} ids, {plan.tokenizer['sha256'][:16]}"
    units = hashlib.sha256(json.dumps(plan.units).encode()).hexdigest()[:16]
    files = f"{len(plan.units)} units, {units}"
    return {"format": FORMAT, **recipe, "files and their sizes": files}


def _check(recipe: Recipe) -> None:
    """Refuses numbers out of range."""
    if recipe.length < 1:
        raise ValueError(f"length={recipe.length}: expected at least one token")
    if recipe.unit_bytes < 1:
        raise ValueError(f"unit_bytes={recipe.unit_bytes}: expected at least one byte")
    if not 0 <= recipe.held_out < 1:
        raise ValueError(f"held_out={recipe.held_out}: expected a share of at least 0, below 1")
    if recipe.held_out and recipe.held_out_corpus:
        raise ValueError(
            f"held_out={recipe.held_out} with held_out_corpus={recipe.held_out_corpus!r}: give "
            "held_out=0, as another corpus is held out"
        )
    if recipe.skip and "=" not in recipe.skip:
        raise ValueError(f"skip={recipe.skip!r}: expected field=value")


def recipe_of(settings: Mapping[str, Any]) -> Recipe:
    """Returns the recipe of a manifest.

    Examples:
        >>> recipe = Recipe("text:corpus", "byte", 128)
        >>> recipe_of(dataclasses.asdict(recipe)) == recipe
        True
    """
    return Recipe(**settings)
