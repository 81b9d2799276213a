"""DiT checkpoints: the published PyTorch state dict (MDLM, Duo, their scaling study) and back.

A linear layer is stored transposed there, [out, in]; its query, key and value rows are stacked as
(three, head, dim). Here kernels are [in, out] with heads as an axis of their own, and the blocks
are stacked along axis 0. Everything stays in host memory, as float32.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mdm_jax.models import embeddings
from mdm_jax.models.configs import DiTConfig
from mdm_jax.models.dit import DiT

PREFIX = "backbone."
"""What published names begin with, in Lightning and Hugging Face checkpoints alike."""


class _Leaf(NamedTuple):
    """Where one parameter lies in both layouts.

    Attributes:
        path: Keys into the parameter tree.
        name: Published name; "{}" stands for the block, where there is one.
        shape: Shape here, without the axis of stacked blocks.
        rows: For a kernel, its number of input features; None for whatever is copied unchanged.
    """

    path: tuple[str, ...]
    name: str
    shape: tuple[int, ...]
    rows: int | None

    @property
    def published_shape(self) -> tuple[int, ...]:
        """Shape in a published checkpoint."""
        return (
            self.shape if self.rows is None else (int(np.prod(self.shape)) // self.rows, self.rows)
        )

    def load(self, tensor: np.ndarray) -> np.ndarray:
        """Returns a published tensor in the layout used here."""
        return (tensor if self.rows is None else tensor.T).reshape(self.shape)

    def store(self, array: np.ndarray) -> np.ndarray:
        """Returns an array of ours in the published layout."""
        return array if self.rows is None else np.ascontiguousarray(array.reshape(self.rows, -1).T)


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
        >>> config = DiTConfig(num_ids=5, width=8, layers=2, heads=2, cond_dim=4)
        >>> tokens = jnp.zeros((1, 1), jnp.int32)
        >>> params = jax.jit(DiT(config).init)(jax.random.key(0), tokens)["params"]
        >>> state = dit_state_dict(params, config)
        >>> restored = dit_params(state, config)
        >>> jax.tree.all(jax.tree.map(np.array_equal, restored, params))
        True
    """
    state = {name.removeprefix(PREFIX): np.asarray(value) for name, value in state.items()}
    _check_rotary(state.pop("rotary_emb.inv_freq", None), config)
    leaves = _leaves(config)
    _check_names_and_shapes(state, leaves, config)
    params: dict[str, Any] = {}
    for leaf in leaves:
        tensors = [leaf.load(state[name].astype(np.float32)) for name in _published(leaf, config)]
        node = params
        for key in leaf.path[:-1]:
            node = node.setdefault(key, {})
        node[leaf.path[-1]] = np.stack(tensors) if leaf.path[0] == "blocks" else tensors[0]
    return params


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
        >>> config = DiTConfig(num_ids=5, width=8, layers=2, heads=2, cond_dim=4)
        >>> tokens = jnp.zeros((1, 1), jnp.int32)
        >>> params = jax.jit(DiT(config).init)(jax.random.key(0), tokens)["params"]
        >>> dit_state_dict(params, config)["backbone.blocks.1.attn_qkv.weight"].shape
        (24, 8)
    """
    flat, expected = (_flat_shapes(tree) for tree in (params, _abstract(config)))
    if flat != expected:
        differing = sorted(
            k for k in flat.keys() | expected.keys() if flat.get(k) != expected.get(k)
        )
        raise ValueError(f"params are not those of {config}: {', '.join(differing)} differ.")
    state = {"rotary_emb.inv_freq": embeddings.frequencies(config.head_dim)}
    for leaf in _leaves(config):
        node: Any = params
        for key in leaf.path:
            node = node[key]
        array = np.asarray(node, np.float32)
        layers = array if leaf.path[0] == "blocks" else array[None]
        for name, layer in zip(_published(leaf, config), layers, strict=True):
            state[name] = leaf.store(layer)
    return {PREFIX + name: value for name, value in state.items()}


def _names(config: DiTConfig) -> dict[str, str]:
    """Returns published module names by ours, for the modules the architecture has."""
    names = {
        "blocks/norm_attention": "blocks.{}.norm1",
        "blocks/qkv": "blocks.{}.attn_qkv",
        "blocks/attention_out": "blocks.{}.attn_out",
        "blocks/norm_mlp": "blocks.{}.norm2",
        "blocks/mlp_in": "blocks.{}.mlp.0",
        "blocks/mlp_out": "blocks.{}.mlp.2",
        "head/norm": "output_layer.norm_final",
        "head/logits": "output_layer.linear",
    }
    if config.adaln:
        names |= {
            "time/mlp_in": "sigma_map.mlp.0",
            "time/mlp_out": "sigma_map.mlp.2",
            "blocks/modulation": "blocks.{}.adaLN_modulation",
            "head/modulation": "output_layer.adaLN_modulation",
        }
    return names


def _leaves(config: DiTConfig) -> list[_Leaf]:
    """Returns every parameter of the architecture."""
    names = _names(config)
    leaves = []
    for joined, shape in _flat_shapes(_abstract(config)).items():
        path = tuple(joined.split("/"))
        shape = shape[1:] if path[0] == "blocks" else shape
        if joined == "embedding":
            leaves.append(_Leaf(path, "vocab_embed.embedding", shape, rows=None))
            continue
        *module, kind = path
        suffix = "bias" if kind == "bias" else "weight"
        rows = None
        if kind == "kernel":
            rows = config.width if module[-1] == "attention_out" else shape[0]
        leaves.append(_Leaf(path, f"{names['/'.join(module)]}.{suffix}", shape, rows))
    return leaves


def _published(leaf: _Leaf, config: DiTConfig) -> list[str]:
    """Returns the published names of a parameter, one per block where it is stacked."""
    if leaf.path[0] == "blocks":
        return [leaf.name.format(i) for i in range(config.layers)]
    return [leaf.name]


def _check_names_and_shapes(
    state: Mapping[str, np.ndarray], leaves: list[_Leaf], config: DiTConfig
) -> None:
    expected = {name: leaf.published_shape for leaf in leaves for name in _published(leaf, config)}
    missing = sorted(expected.keys() - state.keys())
    extra = sorted(state.keys() - expected.keys())
    misshapen = [
        f"{name} {state[name].shape} instead of {shape}"
        for name, shape in expected.items()
        if name in state and state[name].shape != shape
    ]
    problems = {"missing": missing, "left over": extra, "misshapen": misshapen}
    if any(problems.values()):
        listed = "; ".join(f"{k}: {', '.join(v)}" for k, v in problems.items() if v)
        raise ValueError(f"the state dict does not fit {config}: {listed}.")


def _check_rotary(frequencies: np.ndarray | None, config: DiTConfig) -> None:
    if frequencies is not None and not (
        frequencies.shape == (config.head_dim // 2,)
        and np.allclose(frequencies, embeddings.frequencies(config.head_dim), rtol=1e-5, atol=0)
    ):
        raise ValueError(
            f"rotary_emb.inv_freq is not that of heads of width {config.head_dim} and base 10000: "
            f"got {frequencies}. Check width and heads."
        )


def _abstract(config: DiTConfig) -> Any:
    """Returns the shapes of the parameters, without computing any."""
    tokens = jnp.zeros((1, 1), jnp.int32)
    return jax.eval_shape(DiT(config).init, jax.random.key(0), tokens)["params"]


def _flat_shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Returns shapes by "/"-joined path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in leaves
    }
