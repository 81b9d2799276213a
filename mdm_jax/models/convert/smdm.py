"""SMDM checkpoints: the flat PyTorch state dicts of masked ("mdm-*") and causal ("ar-*") models.

The published repository holds one file per model and no configuration. Everything but the number
of heads follows from the shapes of its tensors, and heads from the published ladder. The two
families differ in one row: the masked model also embeds its mask id, the last one.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mdm_jax.models.convert.family import Family
from mdm_jax.models.convert.hints import Measured, fields_from, shown_by
from mdm_jax.models.convert.leaves import Leaf, Shape, copied, transposed
from mdm_jax.models.smdm import SMDM
from mdm_jax.models.smdm_configs import SMDM_SIZES, SMDMConfig

_EMBEDDING, _HEAD = "transformer.wte.weight", "lm_head.weight"
_QKV = "transformer.h.0.attn.attn.weight"
_GATE = "transformer.h.0.mlp.swiglu.w1.weight"

_HINTS = {
    "width": "n_embd",
    "layers": "n_layer",
    "heads": "n_head",
    "hidden": "intermediate_size",
    "groups": "n_query_groups",
    "vocab_size": "padded_vocab_size",
    "rotary_bf16": "rotary_bf16",
}
"""Published names of the fields; the last is our own, as the published code always rounds."""

_FIXED = {
    "bias": False,
    "rotary_percentage": 1.0,
    "condense_ratio": 1,
    "parallel_residual": False,
    "shared_attention_norm": False,
    "norm_eps": 1e-5,
    "_mlp_class": "LLaMAMLP",
}
"""Options of the published code that all published models set so, and that `SMDM` fixes."""


def smdm_params(state: Mapping[str, np.ndarray], config: SMDMConfig) -> dict[str, Any]:
    """Returns the parameters of an `SMDM` from a published state dict.

    Args:
        state: Arrays by published name.
        config: The architecture they belong to, masked or causal.

    Returns:
        The parameter tree, in NumPy float32; place it on devices as you please.

    Raises:
        ValueError: If a tensor is missing, left over or misshapen; all of them are named.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> config = SMDMConfig(vocab_size=5, width=8, layers=2, heads=2, hidden=12)
        >>> tokens = jnp.zeros((1, 1), jnp.int32)
        >>> params = jax.jit(SMDM(config).init)(jax.random.key(0), tokens)["params"]
        >>> restored = smdm_params(smdm_state_dict(params, config), config)
        >>> jax.tree.all(jax.tree.map(np.array_equal, restored, params))
        True
    """
    return FAMILY.params(state, config)


def smdm_state_dict(params: Mapping[str, Any], config: SMDMConfig) -> dict[str, np.ndarray]:
    """Returns the published state dict of an `SMDM`'s parameters; the inverse of `smdm_params`.

    Args:
        params: The parameter tree.
        config: The architecture it belongs to.

    Returns:
        NumPy float32 arrays by published name.

    Raises:
        ValueError: If `params` is not the tree of this architecture.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> config = SMDMConfig(vocab_size=5, width=8, layers=2, heads=2, hidden=12)
        >>> tokens = jnp.zeros((1, 1), jnp.int32)
        >>> params = jax.jit(SMDM(config).init)(jax.random.key(0), tokens)["params"]
        >>> smdm_state_dict(params, config)["transformer.h.1.attn.attn.weight"].shape
        (24, 8)
    """
    return FAMILY.state_dict(params, config)


def smdm_leaves(config: SMDMConfig) -> list[Leaf]:
    """Returns every parameter of an `SMDM`, in the order of the published module's parameters.

    Args:
        config: The architecture.

    Examples:
        >>> config = SMDMConfig.from_size("1028M")
        >>> sum(len(leaf.names) for leaf in smdm_leaves(config))
        143
    """
    D, F, V, h = config.width, config.hidden, config.vocab_size, config.head_dim
    qkv = (D, config.groups, config.heads // config.groups + 2, h)
    block = [
        copied(["blocks", "norm_attention", "scale"], "norm_1.weight", (D,)),
        transposed(["blocks", "grouped_qkv", "kernel"], "attn.attn.weight", qkv, D),
        transposed(
            ["blocks", "attention_out", "kernel"], "attn.proj.weight", (config.heads, h, D), D
        ),
        copied(["blocks", "norm_mlp", "scale"], "norm_2.weight", (D,)),
        transposed(["blocks", "mlp_gate", "kernel"], "mlp.swiglu.w1.weight", (D, F), D),
        transposed(["blocks", "mlp_up", "kernel"], "mlp.swiglu.w2.weight", (D, F), D),
        transposed(["blocks", "mlp_down", "kernel"], "mlp.swiglu.w3.weight", (F, D), F),
    ]
    return [
        transposed(["head", "logits", "kernel"], _HEAD, (D, V), D),
        copied(["embedding"], _EMBEDDING, (config.num_ids, D)),
        *(x._replace(name=f"transformer.h.{{}}.{x.name}", layers=config.layers) for x in block),
        copied(["head", "norm", "scale"], "transformer.ln_f.weight", (D,)),
    ]


def _is_smdm(shapes: Mapping[str, Shape]) -> bool:
    return {_EMBEDDING, _HEAD, _QKV, _GATE} <= shapes.keys()


def _has_mask_row(shapes: Mapping[str, Shape]) -> bool:
    return shapes[_EMBEDDING][:1] != shapes[_HEAD][:1]


def _config(shapes: Mapping[str, Shape], hints: Mapping[str, Any], *, causal: bool) -> SMDMConfig:
    _check_fixed(hints)
    absent = [name for name in (_EMBEDDING, _HEAD, _QKV, _GATE) if name not in shapes]
    if absent:
        raise ValueError(f"not an SMDM checkpoint: {', '.join(absent)} missing.")
    blocks = {name.split(".")[2] for name in shapes if name.startswith("transformer.h.")}
    measured = {
        "width": shown_by(_EMBEDDING, shapes, 1),
        "layers": Measured(len(blocks), f"there are {len(blocks)} blocks"),
        "hidden": shown_by(_GATE, shapes, 0),
        "vocab_size": shown_by(_HEAD, shapes, 0),
    }
    width, rows = measured["width"].value, shown_by(_QKV, shapes, 0)
    heads = hints.get("n_head") or _published_heads(*(measured[x].value for x in _LADDER_KEY))
    # Rows of queries, width, and of as many keys and values as there are groups.
    groups = max((rows.value - width) * heads // (2 * width), 1)
    measured["groups"] = rows._replace(value=groups)
    fields = fields_from(measured, hints, _HINTS)
    fields["heads"] = heads
    return SMDMConfig(causal=causal, **fields)


_LADDER_KEY = ("layers", "width", "hidden")


def _published_heads(layers: int, width: int, hidden: int) -> int:
    """Returns the heads of the published size of these dimensions."""
    for size in SMDM_SIZES.values():
        if tuple(size[key] for key in _LADDER_KEY) == (layers, width, hidden):
            return size["heads"]
    raise ValueError(
        f"the number of heads cannot be told from the tensors, and {layers} layers of width "
        f"{width} with an MLP of {hidden} are no published size: pass heads=."
    )


def _check_fixed(hints: Mapping[str, Any]) -> None:
    other = {k: hints[k] for k, v in _FIXED.items() if hints.get(k, v) != v}
    if other:
        raise ValueError(
            f"SMDM has no such variant: {other}; it is built for "
            f"{ {k: _FIXED[k] for k in other} }, as in all published models."
        )


def _hints(config: SMDMConfig) -> dict[str, Any]:
    return {name: getattr(config, field) for field, name in _HINTS.items()} | _FIXED


FAMILY = Family(
    name="smdm",
    prefix="",
    recognizes=lambda shapes: _is_smdm(shapes) and _has_mask_row(shapes),
    config=lambda shapes, hints: _config(shapes, hints, causal=False),
    module=SMDM,
    leaves=smdm_leaves,
    configuration=SMDMConfig,
    owns=lambda config: isinstance(config, SMDMConfig) and not config.causal,
    names=_HINTS,
    hints=_hints,
)
"""The masked models, "TransEncoder" in the published code."""

FAMILY_AR = Family(
    name="smdm_ar",
    prefix="",
    recognizes=lambda shapes: _is_smdm(shapes) and not _has_mask_row(shapes),
    config=lambda shapes, hints: _config(shapes, hints, causal=True),
    module=SMDM,
    leaves=smdm_leaves,
    configuration=SMDMConfig,
    owns=lambda config: isinstance(config, SMDMConfig) and config.causal,
    names=_HINTS,
    hints=_hints,
)
"""The autoregressive models, "GPT" in the published code."""
