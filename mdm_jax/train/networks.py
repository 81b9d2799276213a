"""From ``config.model`` to a network: the three architectures, called alike."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from mdm_jax.models.attention import Attention, attention
from mdm_jax.models.configs import DiTConfig, parameter_count
from mdm_jax.models.dit import DiT
from mdm_jax.models.md4 import MD4
from mdm_jax.models.md4_configs import MD4Config, md4_parameter_count
from mdm_jax.models.smdm import SMDM
from mdm_jax.models.smdm_configs import SMDMConfig, smdm_parameter_count
from mdm_jax.train.mesh_choice import Divided
from mdm_jax.train.meshes import DIT_RULES, MD4_RULES, SMDM_RULES, Rules
from mdm_jax.train.state import Params

NETWORKS = ("dit", "smdm", "md4")

# What each section of numbers means to the architectures that have it; the others need 0.
_SIZED = {
    "dit": ("width", "layers", "heads", "cond_dim"),
    "smdm": ("width", "layers", "heads"),
    "md4": ("layers", "heads"),
}
_FIXED = {
    "smdm": {"dropout": 0.0, "adaln": False, "time_conditioning": False},
    "md4": {"causal": False, "adaln": True},
}


class Network(NamedTuple):
    """An architecture with its sizes.

    Attributes:
        module: the Linen module.
        rules: how its parameters are sharded.
        parameters: how many it has.
        divided: its sizes that are spread over devices.
    """

    module: nn.Module
    rules: Rules
    parameters: int
    divided: tuple[Divided, ...]

    def init(self, key: jax.Array, length: int) -> Params:
        """Returns parameters drawn for windows of `length`; they depend on `key` alone."""
        # One row, which no mesh divides: a kernel made for one could not take it.
        module = self.module.clone(attention=attention)
        return module.init(key, jnp.zeros((1, length), jnp.int32))["params"]

    def attending(self, attention: Attention) -> "Network":
        """Returns the network with another attention, see `mdm_jax.train.backends`."""
        return self._replace(module=self.module.clone(attention=attention))

    def call(self, params: Params, inputs: Mapping[str, Any], dropout_key: Any, **options) -> Any:
        """Applies the module to the keyword arguments that an objective prepared."""
        training = dropout_key is not None
        return self.module.apply(
            {"params": params},
            **inputs,
            **options,
            deterministic=not training,
            rngs={"dropout": dropout_key} if training else None,
        )


def make_network(section: Mapping[str, Any], vocab_size: int, num_ids: int) -> Network:
    """The ``model`` section; numbers that are 0 come from the size.

    Args:
        section: ``config.model``.
        vocab_size: data ids.
        num_ids: ids the model embeds, the mask among them.

    Raises:
        ValueError: if the family or the size is unknown, or a field is set that the family has
            not, or a value makes no sense.

    Examples:
        With the ``model`` section of ``configs/quickstart.py``::

            make_network(config.model, vocab_size=256, num_ids=257).parameters  # 1,058,881
    """
    family = section["family"]
    if family not in NETWORKS:
        raise ValueError(f"unknown model.family {family!r}: expected one of {list(NETWORKS)}")
    _check_fixed(section)
    fields = {name: section[name] for name in _SIZED[family] if section[name] != 0}
    fields |= {name: section[name] for name in ("dtype", "remat", "unroll")}
    if family == "smdm":
        if "width" in fields:
            fields["hidden"] = 4 * fields["width"]
        config = SMDMConfig.from_size(
            section["size"], vocab_size=vocab_size, causal=section["causal"], **fields
        )
        _check_ids(family, config.num_ids, num_ids)
        name = "model.heads" if config.groups == config.heads else "groups of heads"
        divided = _divided(name, config.groups, config.width, config.hidden)
        return Network(SMDM(config), SMDM_RULES, smdm_parameter_count(config), divided)
    fields |= {name: section[name] for name in ("dropout", "time_conditioning")}
    if family == "md4":
        config = MD4Config.from_size(section["size"], vocab_size, **fields)
        _check_ids(family, config.num_ids, num_ids)
        divided = _divided("model.heads", config.heads, config.width, config.hidden)
        if config.factored_embedding:
            divided += (Divided("features of a head", config.features, ("fsdp",)),)
        return Network(MD4(config), MD4_RULES, md4_parameter_count(config), divided)
    fields |= {name: section[name] for name in ("adaln", "causal")}
    config = DiTConfig.from_size(section["size"], num_ids, **fields)
    divided = _divided("model.heads", config.heads, config.width, config.mlp_ratio * config.width)
    return Network(DiT(config), DIT_RULES, parameter_count(config), divided)


def _divided(name: str, heads: int, width: int, hidden: int) -> tuple[Divided, ...]:
    """What the rules of all families spread: whole heads, the stream and the MLP."""
    return (
        Divided(name, heads, ("tensor",)),
        Divided("model.width", width, ("fsdp",)),
        Divided("width of the MLP", hidden, ("tensor",)),
    )


def _check_fixed(section: Mapping[str, Any]) -> None:
    """Refuses what would be ignored."""
    family = section["family"]
    fixed = dict(_FIXED.get(family, {}))
    fixed |= {name: 0 for name in _SIZED["dit"] if name not in _SIZED[family]}
    for name, value in fixed.items():
        if section[name] != value:
            raise ValueError(
                f"model.{name}={section[name]!r} with model.family={family!r}, which has no such "
                f"choice: set {value!r}"
            )


def _check_ids(family: str, embedded: int, needed: int) -> None:
    if needed > embedded:
        raise ValueError(
            f"model.family={family!r} embeds {embedded} ids and the objective needs {needed}: its "
            "mask is always one past the data ids, and a causal one has none"
        )
