"""GPT-2 checkpoints in the layout of Hugging Face's `transformers`, and back.

There a linear layer is a "Conv1D", stored [in, out] as kernels are here, with queries, keys and
values side by side. The head is the embedding, and a file may hold it twice.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mdm_jax.models.convert.family import Family
from mdm_jax.models.convert.hints import Measured, fields_from, shown_by
from mdm_jax.models.convert.leaves import Leaf, Shape, copied
from mdm_jax.models.gpt2 import GPT2
from mdm_jax.models.gpt2_configs import GPT2_SIZES, GPT2Config


def gpt2_leaves(config: GPT2Config) -> list[Leaf]:
    """Returns every parameter of a `GPT2`, in the order of the published module's parameters.

    Args:
        config: The architecture.

    Examples:
        >>> config = GPT2Config(vocab_size=5, positions=4, width=8, layers=2, heads=2)
        >>> [leaf.name for leaf in gpt2_leaves(config)][:3]
        ['wte.weight', 'wpe.weight', 'h.{}.ln_1.weight']
    """
    width = config.width
    heads = (config.heads, config.head_dim)
    block = [
        *_norm(["blocks", "norm_attention"], "h.{}.ln_1", width),
        *_conv(["blocks", "qkv"], "h.{}.attn.c_attn", (width,), (3, *heads)),
        *_conv(["blocks", "attention_out"], "h.{}.attn.c_proj", heads, (width,)),
        *_norm(["blocks", "norm_mlp"], "h.{}.ln_2", width),
        *_conv(["blocks", "mlp_in"], "h.{}.mlp.c_fc", (width,), (4 * width,)),
        *_conv(["blocks", "mlp_out"], "h.{}.mlp.c_proj", (4 * width,), (width,)),
    ]
    return [
        copied(["embedding"], "wte.weight", (config.vocab_size, width)),
        copied(["positions"], "wpe.weight", (config.positions, width)),
        *(leaf._replace(layers=config.layers) for leaf in block),
        *_norm(["norm"], "ln_f", width),
    ]


def _norm(path: list[str], name: str, width: int) -> list[Leaf]:
    return [
        copied([*path, "scale"], f"{name}.weight", (width,)),
        copied([*path, "bias"], f"{name}.bias", (width,)),
    ]


def _conv(path: list[str], name: str, inputs: Shape, outputs: Shape) -> list[Leaf]:
    rows, columns = int(np.prod(inputs)), int(np.prod(outputs))
    return [
        _reshaped([*path, "kernel"], f"{name}.weight", (*inputs, *outputs), (rows, columns)),
        _reshaped([*path, "bias"], f"{name}.bias", outputs, (columns,)),
    ]


def _reshaped(path: list[str], name: str, shape: Shape, published: Shape) -> Leaf:
    return Leaf(
        tuple(path),
        name,
        shape,
        published,
        lambda x: x.reshape(shape),
        lambda x: x.reshape(published),
    )


def _buffers(config: GPT2Config) -> dict[str, np.ndarray | None]:
    """Causal masks and their fill values, which older files hold; attention makes its own."""
    names = ("attn.bias", "attn.masked_bias")
    return {f"h.{i}.{name}": None for i in range(config.layers) for name in names}


def _recognizes(shapes: Mapping[str, Shape]) -> bool:
    return {"wte.weight", "wpe.weight", "h.0.attn.c_attn.weight"} <= shapes.keys()


def _config(shapes: Mapping[str, Shape], hints: Mapping[str, Any]) -> GPT2Config:
    _check_hints(hints)
    blocks = {name.split(".")[1] for name in shapes if name.startswith("h.")}
    measured = {
        "vocab_size": shown_by("wte.weight", shapes, 0),
        "width": shown_by("wte.weight", shapes, 1),
        "positions": shown_by("wpe.weight", shapes, 0),
        "layers": Measured(len(blocks), f"there are {len(blocks)} blocks"),
    }
    fields = fields_from(measured, hints, _HINTS)
    if "heads" not in fields:
        fields["heads"] = _published_heads(fields["width"], fields["layers"])
    return GPT2Config(**fields)


def _published_heads(width: int, layers: int) -> int:
    """Returns the heads of the published size with this width and depth."""
    for size in GPT2_SIZES.values():
        if (size["width"], size["layers"]) == (width, layers):
            return size["heads"]
    raise ValueError(
        f"the number of heads cannot be told from the tensors, and width {width} with {layers} "
        f"layers is no published size: pass heads=."
    )


def _check_hints(hints: Mapping[str, Any]) -> None:
    """Raises if a config.json asks for a variant that `GPT2` is not."""
    for name, only in _FIXED.items():
        if hints.get(name, only) != only:
            raise ValueError(
                f"the config says {name} = {hints[name]!r}, but GPT2 computes {only!r} only."
            )
    inner, width = hints.get("n_inner"), hints.get("n_embd")
    if inner is not None and width is not None and inner != 4 * width:
        raise ValueError(f"the config says n_inner = {inner}, but GPT2's MLP is {4 * width} wide.")


def _hints(config: GPT2Config) -> dict[str, Any]:
    named = {name: getattr(config, field) for field, name in _HINTS.items()}
    return {"model_type": "gpt2"} | named | _FIXED


_HINTS = {
    "vocab_size": "vocab_size",
    "positions": "n_positions",
    "width": "n_embd",
    "layers": "n_layer",
    "heads": "n_head",
}
_FIXED = {
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}

FAMILY = Family(
    name="gpt2",
    prefix="transformer.",
    recognizes=_recognizes,
    config=_config,
    module=GPT2,
    leaves=gpt2_leaves,
    configuration=GPT2Config,
    owns=lambda config: isinstance(config, GPT2Config),
    names=_HINTS,
    buffers=_buffers,
    aliases={"lm_head.weight": "wte.weight"},
    hints=_hints,
)
"""GPT-2 as `transformers` publishes it, with or without the prefix of its language model."""
