"""The model families whose published files are read, and which of them a file belongs to."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from mdm_jax.models.convert import dit, gpt2, smdm
from mdm_jax.models.convert.family import Family
from mdm_jax.models.convert.leaves import Shape


def _preset(name: str, **fields: Any) -> Family:
    """Returns the DiT family with the fields that tensors do not show set as `name` has them."""

    def config(shapes: Mapping[str, Shape], hints: Mapping[str, Any]) -> Any:
        said = dit.renamed_hints(hints)
        for field, value in fields.items():
            hint = dit.FAMILY.names[field]
            if said.get(hint) not in (None, value):
                raise ValueError(
                    f"the config says {hint} = {said[hint]!r}, but a {name} has {value!r}: "
                    f"it is of another family."
                )
        return dataclasses.replace(dit.FAMILY.config(shapes, hints), **fields)

    return dataclasses.replace(dit.FAMILY, name=name, config=config)


FAMILIES: dict[str, Family] = {
    family.name: family for family in (dit.FAMILY, smdm.FAMILY, smdm.FAMILY_AR, gpt2.FAMILY)
}
"""The families that are recognized by their tensors, by name."""

PRESETS: dict[str, Family] = {
    family.name: family
    for family in (
        _preset("mdlm", time_conditioning=False, causal=False),
        _preset("bd3lm", time_conditioning=False, causal=False),
        _preset("esolm", time_conditioning=False, causal=False),
        _preset("sedd", time_conditioning=True, causal=False),
        _preset("duo", time_conditioning=True, causal=False),
        _preset("ar", time_conditioning=False, causal=True),
    )
}
"""Families that share the DiT's tensors and differ in how they are fed, by name."""


def family_of(shapes: Mapping[str, Shape], name: str | None = None) -> Family:
    """Returns the family that tensors belong to.

    Args:
        shapes: Shapes by published name, prefix included.
        name: The family they should belong to; None to recognize it.

    Raises:
        ValueError: If there is no such family, or the tensors are not of that family, or of any.

    Examples:
        >>> shapes = {"backbone.vocab_embed.embedding": (5, 8)}
        >>> family_of(shapes | {"backbone.blocks.0.attn_qkv.weight": (24, 8)}).name
        'dit'
        >>> family_of({"w": (3,)}, "mdlm")
        Traceback (most recent call last):
        ValueError: these are no tensors of a mdlm: vocab_embed.embedding missing (w, ...).
    """
    known = FAMILIES | PRESETS
    if name is not None and name not in known:
        raise ValueError(f"unknown family {name!r}: expected one of {list(known)}.")
    fitting = [family for family in FAMILIES.values() if _recognizes(family, shapes)]
    first = ", ".join(sorted(shapes)[:3])
    if name is not None:
        if not _recognizes(known[name], shapes):
            why = f"they are those of {fitting[0].name}" if fitting else _lack(known[name], shapes)
            raise ValueError(f"these are no tensors of a {name}: {why} ({first}, ...).")
        return known[name]
    if len(fitting) != 1:
        names = [family.name for family in fitting]
        raise ValueError(
            f"the family of these tensors ({first}, ...) cannot be told"
            + (f" between {names}" if names else "")
            + f": pass family=, one of {list(known)}."
        )
    return fitting[0]


def preset_in(hints: Mapping[str, Any]) -> str | None:
    """Returns what a file says that its DiT was trained as, where it does not say how it is fed.

    Args:
        hints: What the file says of itself.

    Examples:
        >>> preset_in({"model_type": "MDLM"})
        'mdlm'
        >>> preset_in({"model_type": "gpt2"})
    """
    said = dit.renamed_hints(hints)
    if said.get("time_conditioning") is not None:
        return None
    names = [str(said.get(key)).lower() for key in ("model_type", "name")]
    return next((name for name in names if name in PRESETS), None)


def family_for(config: Any) -> Family:
    """Returns the family that a configuration belongs to.

    Args:
        config: A model's configuration.

    Raises:
        ValueError: If it belongs to none.

    Examples:
        >>> from mdm_jax.models.configs import DiTConfig
        >>> family_for(DiTConfig(num_ids=5, width=8, layers=2, heads=2)).name
        'dit'
    """
    for family in FAMILIES.values():
        if family.owns(config):
            return family
    raise ValueError(f"no family has models with a {type(config).__name__}: {list(FAMILIES)}.")


def without_prefix(family: Family, shapes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a mapping with the family's prefix taken off its names.

    Args:
        family: The family.
        shapes: Anything by published name.

    Examples:
        >>> without_prefix(FAMILIES["dit"], {"backbone.a": 1, "b": 2})
        {'a': 1, 'b': 2}
    """
    return {name.removeprefix(family.prefix): value for name, value in shapes.items()}


def _recognizes(family: Family, shapes: Mapping[str, Shape]) -> bool:
    return family.recognizes(without_prefix(family, shapes))


def _lack(family: Family, shapes: Mapping[str, Shape]) -> str:
    """Returns why tensors that no family recognizes are not this family's."""
    try:
        family.config(without_prefix(family, shapes), {})
    except KeyError as error:
        return f"{error.args[0]} missing"
    except ValueError as error:
        return str(error).removesuffix(".")
    return "nor of any other"
