"""What a published file will hold, name by name, before any of it is written."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mdm_jax.models.convert.family import Family
from mdm_jax.models.convert.files import read_checkpoint
from mdm_jax.models.convert.leaves import Shape
from mdm_jax.models.convert.tensors import DTYPES, StoredTensor, dtype_name


@dataclasses.dataclass(frozen=True)
class Layout:
    """What a file will hold.

    Attributes:
        names: The full names that each parameter is written under, by its published name without
            prefix. There are two where a file holds a tied parameter twice.
        others: What is written besides parameters, by full name.
        shapes: Shapes by full name.
        dtypes: Dtypes by full name, keys of `DTYPES`.
    """

    names: dict[str, list[str]]
    others: dict[str, np.ndarray | StoredTensor]
    shapes: dict[str, Shape]
    dtypes: dict[str, str]

    def tensors(
        self, family: Family, params: Mapping[str, Any], config: Any
    ) -> Iterator[tuple[str, np.ndarray | StoredTensor]]:
        """Yields everything to write by full name, one tensor at a time.

        Args:
            family: The family of the model.
            params: Its parameters.
            config: Its configuration.

        Raises:
            ValueError: If `params` are not those of `config`.
        """
        yield from self.others.items()
        for name, value in family.tensors(params, config):
            for full in self.names.get(name.removeprefix(family.prefix), []):
                yield full, value


def layout_of(
    family: Family, config: Any, like: str | Path | Mapping[str, str] | None, dtype: str
) -> Layout:
    """Returns what to write for a model.

    Args:
        family: The family of the model.
        config: Its configuration.
        like: A checkpoint to follow in names, dtypes and further tensors; or dtypes by full name;
            or None for the family's own names and further tensors, all in one dtype.
        dtype: That dtype, a key of `DTYPES`.

    Raises:
        ValueError: If the dtype is none a file can have, or `like` has other tensors than the
            model.

    Examples:
        >>> from mdm_jax.models.configs import DiTConfig
        >>> from mdm_jax.models.convert.families import FAMILIES
        >>> config = DiTConfig(num_ids=5, width=8, layers=2, heads=2, cond_dim=4)
        >>> layout_of(FAMILIES["dit"], config, None, "BF16").names["vocab_embed.embedding"]
        ['backbone.vocab_embed.embedding']
    """
    leaves = family.leaves(config)
    shapes = {name: leaf.published for leaf in leaves for name in leaf.names}
    buffers = family.buffers(config)
    stored: Mapping[str, StoredTensor] = {}
    if like is None:
        known = [name for name, value in buffers.items() if value is not None]
        dtypes = {family.prefix + name: dtype for name in (*shapes, *known)}
    elif isinstance(like, Mapping):
        dtypes = dict(like)
    else:
        stored = read_checkpoint(like).tensors
        dtypes = {name: dtype_name(tensor.dtype) for name, tensor in stored.items()}
    unknown = sorted({value for value in dtypes.values() if value not in DTYPES})
    if unknown:
        raise ValueError(f"unknown dtype {unknown}: expected one of {list(DTYPES)}.")
    names: dict[str, list[str]] = {name: [] for name in shapes}
    others: dict[str, np.ndarray | StoredTensor] = {}
    for full in dtypes:
        bare = full.removeprefix(family.prefix)
        target = bare if bare in names else family.aliases.get(bare)
        if target in names:
            names[target].append(full)
        elif bare in buffers and full in stored:
            others[full] = stored[full]
        elif (value := buffers.get(bare)) is not None:
            others[full] = value
        else:
            raise ValueError(f"{full} is no tensor of {config}.")
    absent = sorted(name for name, written in names.items() if not written)
    if absent:
        raise ValueError(f"the layout to follow lacks {', '.join(absent)}, which {config} has.")
    full_shapes = {full: shapes[bare] for bare, written in names.items() for full in written}
    full_shapes |= {full: tuple(value.shape) for full, value in others.items()}
    return Layout(names, others, full_shapes, dtypes)
