"""Configurations from what a file shows (shapes) and what it says of itself (config.json)."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Measured(NamedTuple):
    """What a tensor shows about the architecture.

    Attributes:
        value: Value of a field.
        evidence: The tensor and its shape, for messages.
    """

    value: Any
    evidence: str


def fields_from(
    measured: Mapping[str, Measured], hints: Mapping[str, Any], names: Mapping[str, str]
) -> dict[str, Any]:
    """Returns the fields of a configuration: measured where shapes show them, else hinted.

    Args:
        measured: What the tensors show, by field.
        hints: What the file says of itself, by its own names; the empty mapping if nothing.
        names: The file's own name of each field that a hint can give.

    Returns:
        Values by field, for every field that is measured or hinted.

    Raises:
        ValueError: If a hint contradicts a tensor; both are named.

    Examples:
        >>> width = Measured(8, "embedding has shape (5, 8)")
        >>> fields_from({"width": width}, {"n_heads": 2}, {"heads": "n_heads"})
        {'heads': 2, 'width': 8}
        >>> fields_from({"width": width}, {"hidden_dim": 16}, {"width": "hidden_dim"})
        Traceback (most recent call last):
        ValueError: the config says hidden_dim = 16, but embedding has shape (5, 8), ...
    """
    fields = {field: hints[name] for field, name in names.items() if hints.get(name) is not None}
    for field, (value, evidence) in measured.items():
        if field in fields and fields[field] != value:
            raise ValueError(
                f"the config says {names[field]} = {fields[field]!r}, but {evidence}, "
                f"which makes it {value}."
            )
        fields[field] = value
    return fields


def shown_by(name: str, shapes: Mapping[str, tuple[int, ...]], axis: int) -> Measured:
    """Returns what one axis of a tensor shows.

    Args:
        name: The tensor.
        shapes: Shapes of all tensors.
        axis: The axis whose length is the value.

    Raises:
        ValueError: If the tensor has no such axis.

    Examples:
        >>> shown_by("embedding", {"embedding": (5, 8)}, 1)
        Measured(value=8, evidence='embedding has shape (5, 8)')
    """
    shape = shapes[name]
    if len(shape) <= axis:
        raise ValueError(f"{name} has shape {shape}; expected at least {axis + 1} axes.")
    return Measured(shape[axis], f"{name} has shape {shape}")
