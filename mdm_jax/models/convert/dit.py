"""DiT checkpoints: the published PyTorch state dict (MDLM, Duo, their scaling study) and back.

A linear layer is stored transposed there, [out, in]; its query, key and value rows are stacked as
(three, head, dim). Here kernels are [in, out] with heads as an axis of their own, and the blocks
are stacked along axis 0. Everything stays in host memory, as float32.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mdm_jax.models import embeddings
from mdm_jax.models.configs import SIZES, TIME_FEATURES, DiTConfig
from mdm_jax.models.convert.family import Family
from mdm_jax.models.convert.hints import Measured, fields_from, shown_by
from mdm_jax.models.convert.leaves import Leaf, Shape, copied, transposed
from mdm_jax.models.dit import DiT
from mdm_jax.models.ladders import PUBLISHED

PREFIX = "backbone."
"""What published names begin with, in Lightning and Hugging Face checkpoints alike."""


def dit_params(state: Mapping[str, np.ndarray], config: DiTConfig) -> dict[str, Any]:
    """Returns the parameters of a `DiT` from a published state dict.

    Args:
        state: Arrays by published name, with or without the prefix "backbone.".
        config: The architecture they belong to.

    Returns:
        The parameter tree, in NumPy float32; place it on devices as you please.

    Raises:
        ValueError: If a tensor is missing, left over or misshapen (all of them are named), or if
            the rotary frequencies stored beside them are not those of `DiT`.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> config = DiTConfig(num_ids=5, width=8, layers=2, heads=2, cond_dim=4)
        >>> tokens = jnp.zeros((1, 1), jnp.int32)
        >>> params = jax.jit(DiT(config).init)(jax.random.key(0), tokens)["params"]
        >>> state = dit_state_dict(params, config)
        >>> restored = dit_params(state, config)
        >>> jax.tree.all(jax.tree.map(np.array_equal, restored, params))
        True
    """
    return FAMILY.params(state, config)


def dit_state_dict(params: Mapping[str, Any], config: DiTConfig) -> dict[str, np.ndarray]:
    """Returns the published state dict of a `DiT`'s parameters; the inverse of `dit_params`.

    The rotary frequencies, which published dicts hold as a buffer, are included.

    Args:
        params: The parameter tree.
        config: The architecture it belongs to.

    Returns:
        NumPy float32 arrays by published name, with the prefix "backbone.".

    Raises:
        ValueError: If `params` is not the tree of this architecture.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> config = DiTConfig(num_ids=5, width=8, layers=2, heads=2, cond_dim=4)
        >>> tokens = jnp.zeros((1, 1), jnp.int32)
        >>> params = jax.jit(DiT(config).init)(jax.random.key(0), tokens)["params"]
        >>> dit_state_dict(params, config)["backbone.blocks.1.attn_qkv.weight"].shape
        (24, 8)
    """
    return FAMILY.state_dict(params, config)


def dit_leaves(config: DiTConfig) -> list[Leaf]:
    """Returns every parameter of a `DiT`, in the order of the published module's parameters.

    Args:
        config: The architecture.

    Examples:
        >>> config = DiTConfig(num_ids=5, width=8, layers=2, heads=2, cond_dim=4)
        >>> dit_leaves(config)[0].name
        'vocab_embed.embedding'
    """
    leaves = [copied(["embedding"], "vocab_embed.embedding", (config.num_ids, config.width))]
    if config.adaln:
        leaves += _dense(["time", "mlp_in"], "sigma_map.mlp.0", TIME_FEATURES, config.cond_dim)
        leaves += _dense(["time", "mlp_out"], "sigma_map.mlp.2", config.cond_dim, config.cond_dim)
    return leaves + _block(config) + _head(config)


def _block(config: DiTConfig) -> list[Leaf]:
    width, hidden, layers = config.width, config.mlp_ratio * config.width, config.layers
    heads = (config.heads, config.head_dim)
    leaves = [
        copied(["blocks", "norm_attention", "scale"], "blocks.{}.norm1.weight", (width,)),
        transposed(
            ["blocks", "qkv", "kernel"], "blocks.{}.attn_qkv.weight", (width, 3, *heads), width
        ),
        transposed(
            ["blocks", "attention_out", "kernel"],
            "blocks.{}.attn_out.weight",
            (*heads, width),
            width,
        ),
        copied(["blocks", "norm_mlp", "scale"], "blocks.{}.norm2.weight", (width,)),
        *_dense(["blocks", "mlp_in"], "blocks.{}.mlp.0", width, hidden),
        *_dense(["blocks", "mlp_out"], "blocks.{}.mlp.2", hidden, width),
    ]
    if config.adaln:
        leaves += _dense(
            ["blocks", "modulation"], "blocks.{}.adaLN_modulation", config.cond_dim, 6 * width
        )
    return [leaf._replace(layers=layers) for leaf in leaves]


def _head(config: DiTConfig) -> list[Leaf]:
    width = config.width
    leaves = [
        copied(["head", "norm", "scale"], "output_layer.norm_final.weight", (width,)),
        *_dense(["head", "logits"], "output_layer.linear", width, config.num_ids),
    ]
    if config.adaln:
        leaves += _dense(
            ["head", "modulation"], "output_layer.adaLN_modulation", config.cond_dim, 2 * width
        )
    return leaves


def _dense(path: list[str], name: str, rows: int, columns: int) -> list[Leaf]:
    return [
        transposed([*path, "kernel"], f"{name}.weight", (rows, columns), rows),
        copied([*path, "bias"], f"{name}.bias", (columns,)),
    ]


def _buffers(config: DiTConfig) -> dict[str, np.ndarray | None]:
    # BD3-LM files also hold the noise levels it was trained between, which no forward pass reads.
    trained = dict.fromkeys(("sampling_eps_min", "sampling_eps_max"))
    return {"rotary_emb.inv_freq": embeddings.frequencies(config.head_dim), **trained}


def _recognizes(shapes: Mapping[str, Shape]) -> bool:
    return "vocab_embed.embedding" in shapes and "blocks.0.attn_qkv.weight" in shapes


def _config(shapes: Mapping[str, Shape], hints: Mapping[str, Any]) -> DiTConfig:
    table = "vocab_embed.embedding"
    width = shown_by(table, shapes, 1)
    blocks = {name.split(".")[1] for name in shapes if name.startswith("blocks.")}
    measured = {
        "num_ids": shown_by(table, shapes, 0),
        "width": width,
        "layers": Measured(len(blocks), f"there are {len(blocks)} blocks"),
        "adaln": Measured("sigma_map.mlp.0.weight" in shapes, "sigma_map.mlp.0.weight shows it"),
    }
    if measured["adaln"].value:
        measured["cond_dim"] = shown_by("sigma_map.mlp.0.weight", shapes, 0)
    if "blocks.0.mlp.0.weight" in shapes:
        hidden = shown_by("blocks.0.mlp.0.weight", shapes, 0)
        measured["mlp_ratio"] = hidden._replace(value=hidden.value // width.value)
    if "rotary_emb.inv_freq" in shapes:
        pairs = shown_by("rotary_emb.inv_freq", shapes, 0)
        measured["heads"] = pairs._replace(value=width.value // (2 * pairs.value))
    fields = fields_from(measured, renamed_hints(hints), _HINTS)
    if "heads" not in fields:
        fields["heads"] = _published_heads(fields["width"], fields["layers"])
    # The published models without time parameters are the autoregressive baselines.
    fields.setdefault("causal", not fields["adaln"])
    return DiTConfig(**fields)


def renamed_hints(hints: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the hints under the names of Hugging Face configs, wherever they come from.

    Training configs, which Lightning checkpoints hold and SEDD publishes, are nested and have
    other names for some fields.

    Args:
        hints: What a file says of itself.

    Examples:
        >>> renamed_hints({"model": {"hidden_size": 768}})["hidden_dim"]
        768
    """
    sections = [hints.get("model"), hints.get("algo"), hints]
    flat: dict[str, Any] = {}
    for section in sections:
        flat |= section if isinstance(section, Mapping) else {}
    other = {"hidden_size": "hidden_dim", "causal_attention": "causal", "adaLN": "adaln"}
    flat = {other.get(name, name): value for name, value in flat.items()}
    if flat.get("parameterization") == "ar":
        flat["causal"] = True
    return flat


def _published_heads(width: int, layers: int) -> int:
    """Returns the heads of the published size with this width and depth."""
    for size in (
        *SIZES.values(),
        *(x for known in PUBLISHED.values() for x in known.sizes.values()),
    ):
        if (size["width"], size["layers"]) == (width, layers):
            return size["heads"]
    raise ValueError(
        f"the number of heads cannot be told from the tensors, and width {width} with {layers} "
        f"layers is no published size: pass heads=."
    )


def _hints(config: DiTConfig) -> dict[str, Any]:
    return {name: getattr(config, field) for field, name in _HINTS.items()}


_HINTS = {
    "num_ids": "vocab_size",
    "width": "hidden_dim",
    "cond_dim": "cond_dim",
    "layers": "n_blocks",
    "heads": "n_heads",
    "dropout": "dropout",
    "time_conditioning": "time_conditioning",
    "causal": "causal",
    "adaln": "adaln",
}

FAMILY = Family(
    name="dit",
    prefix=PREFIX,
    recognizes=_recognizes,
    config=_config,
    module=DiT,
    leaves=dit_leaves,
    configuration=DiTConfig,
    owns=lambda config: isinstance(config, DiTConfig),
    buffers=_buffers,
    names=_HINTS,
    hints=_hints,
)
"""The DiT as the published masked, uniform-state and autoregressive models have it."""
