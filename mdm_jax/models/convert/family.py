"""What has to be known of a model family to read its published files and to write them."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from flax import linen as nn

from mdm_jax.models.convert import leaves as leaf_lists
from mdm_jax.models.convert.leaves import Leaf, Shape


def _no_buffers(config: Any) -> dict[str, np.ndarray | None]:
    return {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """A model family and its published layout.

    Names are published names without the prefix.

    Attributes:
        name: What users call it.
        prefix: What names may begin with in a file, and do when written by `save`.
        recognizes: Whether tensors of these names and shapes can only be this family's.
        config: The configuration from names and shapes, with the hints that a `config.json` holds
            (empty without one); what shapes do not fix, such as heads, comes from the hints or
            from the published sizes. Raises ValueError if hints and shapes contradict each other.
        module: The Linen module of a configuration.
        leaves: Every parameter of a configuration, in the order of `module.parameters()` there.
        buffers: Tensors a file may hold that are no parameters: their value, or None for any.
        aliases: Second names of tied parameters: name to the name of the parameter.
        configuration: Class of its configurations.
        owns: Whether a configuration is one of this family.
        names: What a `config.json` calls the fields that it can set.
        hints: The configuration as the family's own `config.json` has it.
    """

    name: str
    prefix: str
    recognizes: Callable[[Mapping[str, Shape]], bool]
    config: Callable[[Mapping[str, Shape], Mapping[str, Any]], Any]
    module: Callable[[Any], nn.Module]
    leaves: Callable[[Any], list[Leaf]]
    configuration: type
    owns: Callable[[Any], bool]
    names: Mapping[str, str]
    hints: Callable[[Any], dict[str, Any]]
    buffers: Callable[[Any], Mapping[str, np.ndarray | None]] = _no_buffers
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def params(self, state: Mapping[str, Any], config: Any) -> dict[str, Any]:
        """Returns the parameter tree, NumPy float32, of a published state dict.

        Args:
            state: Tensors by published name, with or without the prefix; see `from_state_dict`.
            config: The architecture they belong to.

        Raises:
            ValueError: As `from_state_dict`.
        """
        return leaf_lists.from_state_dict(
            {name.removeprefix(self.prefix): value for name, value in state.items()},
            self.leaves(config),
            owner=str(config),
            buffers=self.buffers(config),
            aliases=self.aliases,
        )

    def tensors(self, params: Mapping[str, Any], config: Any) -> Iterator[tuple[str, np.ndarray]]:
        """Yields the published tensors of a parameter tree, prefixed, one at a time.

        Buffers of known value come first, as published files hold them.

        Args:
            params: The parameter tree.
            config: The architecture it belongs to.

        Raises:
            ValueError: If `params` is not the tree of this architecture.
        """
        for name, value in self.buffers(config).items():
            if value is not None:
                yield self.prefix + name, value
        leaves = self.leaves(config)
        for name, value in leaf_lists.published_tensors(params, leaves, owner=str(config)):
            yield self.prefix + name, value

    def state_dict(self, params: Mapping[str, Any], config: Any) -> dict[str, np.ndarray]:
        """Returns `tensors` as a dict: the inverse of `params`.

        Args:
            params: The parameter tree.
            config: The architecture it belongs to.

        Raises:
            ValueError: If `params` is not the tree of this architecture.
        """
        return dict(self.tensors(params, config))

    def parameter_names(self, config: Any) -> list[str]:
        """Returns published names, without prefix, in the order of unnamed lists of averages.

        Args:
            config: The architecture.
        """
        return leaf_lists.parameter_names(self.leaves(config))
