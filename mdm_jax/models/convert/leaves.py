"""Where parameters lie in a published file and where they lie here, and the way between the two.

A published state dict is flat and holds one tensor per block; a parameter tree here is nested and
has the blocks stacked along axis 0. A family lists its parameters once, as leaves; reading,
writing, checking and counting all follow from that list. Everything stays in host memory.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

Shape = tuple[int, ...]

_EXACT_IN_FLOAT32 = ("float32", "float16", "bfloat16")


class Leaf(NamedTuple):
    """Where one parameter lies in both layouts.

    Attributes:
        path: Keys into the parameter tree.
        name: Published name, without the family's prefix; "{}" stands for the block, if stacked.
        shape: Shape here, without the axis of stacked blocks.
        published: Shape of a published tensor.
        load: Maps a published tensor to the layout here; may return a view.
        store: Maps an array of ours to the published layout; may return a view.
        layers: Number of blocks stacked along axis 0 here; None for a parameter of its own.

    Examples:
        >>> leaf = transposed(("blocks", "mlp", "kernel"), "h.{}.fc.weight", (2, 3), 2, layers=2)
        >>> leaf.names, leaf.published, leaf.stacked
        (['h.0.fc.weight', 'h.1.fc.weight'], (3, 2), (2, 2, 3))
    """

    path: tuple[str, ...]
    name: str
    shape: Shape
    published: Shape
    load: Callable[[np.ndarray], np.ndarray]
    store: Callable[[np.ndarray], np.ndarray]
    layers: int | None = None

    @property
    def names(self) -> list[str]:
        """Published names, one per block where the parameter is stacked."""
        if self.layers is None:
            return [self.name]
        return [self.name.format(i) for i in range(self.layers)]

    @property
    def stacked(self) -> Shape:
        """Shape in the parameter tree."""
        return self.shape if self.layers is None else (self.layers, *self.shape)


def copied(path: Sequence[str], name: str, shape: Shape, *, layers: int | None = None) -> Leaf:
    """Returns the leaf of a parameter that is the same in both layouts.

    Args:
        path: Keys into the parameter tree.
        name: Published name, "{}" for the block.
        shape: Shape in both, without the axis of stacked blocks.
        layers: Number of stacked blocks, or None.

    Examples:
        >>> copied(["norm"], "ln_f.weight", (4,)).published
        (4,)
    """
    return Leaf(tuple(path), name, shape, shape, lambda x: x, lambda x: x, layers)


def transposed(
    path: Sequence[str], name: str, shape: Shape, rows: int, *, layers: int | None = None
) -> Leaf:
    """Returns the leaf of a linear layer's kernel, which PyTorch stores as [out, in].

    Args:
        path: Keys into the parameter tree.
        name: Published name, "{}" for the block.
        shape: Shape here, [*in, *out], where heads may be axes of their own.
        rows: Number of input features, the product of the axes that are inputs.
        layers: Number of stacked blocks, or None.

    Examples:
        >>> transposed(["head"], "lm_head.weight", (4, 10), 4).published
        (10, 4)
    """
    published = (int(np.prod(shape)) // rows, rows)
    return Leaf(
        tuple(path),
        name,
        shape,
        published,
        lambda x: x.T.reshape(shape),
        lambda x: x.reshape(rows, -1).T,
        layers,
    )


def from_state_dict(
    state: Mapping[str, Any],
    leaves: Sequence[Leaf],
    *,
    owner: str,
    buffers: Mapping[str, np.ndarray | None] | None = None,
    aliases: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Returns a parameter tree from a published state dict, one tensor in memory at a time.

    Args:
        state: Tensors by published name without prefix. A value is an array, or anything with
            `shape`, `dtype` and `__array__` that is read when it is needed.
        leaves: Every parameter of the model.
        owner: Whose parameters these are, for messages.
        buffers: Tensors the model derives itself and a file may hold: name to the value that it
            must have (relative tolerance 1e-5), or None where any value is accepted.
        aliases: Second names of tied parameters, which a file may hold: name to the name of a
            leaf, whose value it must have.

    Returns:
        The tree, NumPy float32. Other dtypes are widened, which loses nothing.

    Raises:
        ValueError: If a tensor is missing, left over or misshapen (all are named), has a dtype
            that float32 cannot hold, or if a buffer or an alias has another value.

    Examples:
        >>> leaf = transposed(["head"], "lm_head.weight", (1, 2), 1)
        >>> from_state_dict({"lm_head.weight": np.array([[1.0], [2.0]], "f4")}, [leaf], owner="x")
        {'head': array([[1., 2.]], dtype=float32)}
    """
    buffers, aliases = buffers or {}, aliases or {}
    check_names_and_shapes(
        {name: tuple(value.shape) for name, value in state.items()},
        leaves,
        owner=owner,
        optional={*buffers, *aliases},
    )
    _check_buffers(state, buffers, owner)
    _check_aliases(state, aliases, owner)
    params: dict[str, Any] = {}
    for leaf in leaves:
        node = params
        for key in leaf.path[:-1]:
            node = node.setdefault(key, {})
        array = np.empty(leaf.stacked, np.float32)
        for i, name in enumerate(leaf.names):
            array[... if leaf.layers is None else i] = leaf.load(_float32(name, state[name]))
        node[leaf.path[-1]] = array
    return params


def to_state_dict(
    params: Mapping[str, Any], leaves: Sequence[Leaf], *, owner: str
) -> dict[str, np.ndarray]:
    """Returns the published state dict of a parameter tree; the inverse of `from_state_dict`.

    Args:
        params: The tree.
        leaves: Every parameter of the model.
        owner: Whose parameters these should be, for messages.

    Returns:
        Contiguous NumPy float32 arrays by published name, without prefix.

    Raises:
        ValueError: If `params` has other parameters or shapes than `leaves`.

    Examples:
        >>> leaf = transposed(["head"], "lm_head.weight", (1, 2), 1)
        >>> to_state_dict({"head": np.ones((1, 2), np.float32)}, [leaf], owner="x")
        {'lm_head.weight': array([[1.], [1.]], dtype=float32)}
    """
    return dict(published_tensors(params, leaves, owner=owner))


def published_tensors(
    params: Mapping[str, Any], leaves: Sequence[Leaf], *, owner: str
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields what `to_state_dict` returns, one tensor at a time, in the order of `leaves`.

    Args:
        params: The tree.
        leaves: Every parameter of the model.
        owner: Whose parameters these should be, for messages.

    Yields:
        Published name without prefix, and a contiguous NumPy float32 array.

    Raises:
        ValueError: As `to_state_dict`.

    Examples:
        >>> leaf = copied(["g"], "h.{}.g", (1,), layers=2)
        >>> [name for name, _ in published_tensors({"g": np.ones((2, 1))}, [leaf], owner="x")]
        ['h.0.g', 'h.1.g']
    """
    found, expected = flat_shapes(params), {"/".join(x.path): x.stacked for x in leaves}
    if found != expected:
        differing = sorted(
            k for k in found.keys() | expected.keys() if found.get(k) != expected.get(k)
        )
        raise ValueError(f"params are not those of {owner}: {', '.join(differing)} differ.")
    for leaf in leaves:
        node: Any = params
        for key in leaf.path:
            node = node[key]
        array = np.asarray(node, np.float32)
        for i, name in enumerate(leaf.names):
            layer = array if leaf.layers is None else array[i]
            yield name, np.ascontiguousarray(leaf.store(layer))


def parameter_names(leaves: Sequence[Leaf]) -> list[str]:
    """Returns published names in the order of `module.parameters()`, which unnamed lists follow.

    Args:
        leaves: The parameters in their order of registration; neighbors that are stacked belong
            to the same blocks, and are listed block by block.

    Examples:
        >>> a, b = (copied([x], "h.{}." + x, (1,), layers=2) for x in "ab")
        >>> parameter_names([copied(["e"], "e", (1,)), a, b])
        ['e', 'h.0.a', 'h.0.b', 'h.1.a', 'h.1.b']
    """
    names: list[str] = []
    block: list[Leaf] = []
    for leaf in [*leaves, None]:
        if leaf is not None and leaf.layers is not None:
            block.append(leaf)
            continue
        names += [name for layer in zip(*(x.names for x in block), strict=True) for name in layer]
        block = []
        names += [] if leaf is None else leaf.names
    return names


def check_names_and_shapes(
    shapes: Mapping[str, Shape],
    leaves: Sequence[Leaf],
    *,
    owner: str,
    optional: set[str] | frozenset[str] = frozenset(),
) -> None:
    """Checks that a file holds exactly the tensors of a model.

    Args:
        shapes: Shapes by published name.
        leaves: Every parameter of the model.
        owner: The model, for messages.
        optional: Further names that a file may hold.

    Raises:
        ValueError: Naming every tensor that is missing, left over or misshapen.

    Examples:
        >>> check_names_and_shapes({"b": (2,)}, [copied(["a"], "a", (1,))], owner="this")
        Traceback (most recent call last):
        ValueError: the state dict does not fit this: missing: a; left over: b.
    """
    expected = {name: leaf.published for leaf in leaves for name in leaf.names}
    problems = {
        "missing": sorted(expected.keys() - shapes.keys()),
        "left over": sorted(shapes.keys() - expected.keys() - optional),
        "misshapen": [
            f"{name} {shapes[name]} instead of {shape}"
            for name, shape in expected.items()
            if name in shapes and shapes[name] != shape
        ],
    }
    if any(problems.values()):
        listed = "; ".join(f"{k}: {', '.join(v)}" for k, v in problems.items() if v)
        raise ValueError(f"the state dict does not fit {owner}: {listed}.")


def flat_shapes(tree: Any) -> dict[str, Shape]:
    """Returns the shapes of a tree by "/"-joined path.

    Args:
        tree: Arrays, or anything with a shape, in nested dicts.

    Examples:
        >>> flat_shapes({"a": {"b": np.ones((2, 3))}})
        {'a/b': (2, 3)}
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in leaves
    }


def _float32(name: str, value: Any) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype.name not in _EXACT_IN_FLOAT32:
        raise ValueError(
            f"{name} is {array.dtype.name}; parameters are one of {', '.join(_EXACT_IN_FLOAT32)}."
        )
    return array.astype(np.float32, copy=False)


def _check_buffers(
    state: Mapping[str, Any], buffers: Mapping[str, np.ndarray | None], owner: str
) -> None:
    for name, expected in buffers.items():
        if name not in state or expected is None:
            continue
        found = np.asarray(state[name])
        # Buffers of half-precision files are rounded as the parameters are.
        rtol = {"bfloat16": 2.0**-7, "float16": 2.0**-10}.get(found.dtype.name, 1e-5)
        found = found.astype(np.float32)
        if found.shape != expected.shape or not np.allclose(found, expected, rtol=rtol, atol=0):
            raise ValueError(
                f"{name} is not that of {owner}: got {found}, expected {expected}. Check the sizes."
            )


def _check_aliases(state: Mapping[str, Any], aliases: Mapping[str, str], owner: str) -> None:
    for name, target in aliases.items():
        if name in state and not np.array_equal(np.asarray(state[name]), np.asarray(state[target])):
            raise ValueError(
                f"{name} differs from {target}, but {owner} ties them: these are the weights of "
                f"an untied model."
            )
