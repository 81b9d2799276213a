"""Rows of a batch stay on their devices all through a network.

Parameters sharded over "fsdp" and activations sharded by rows over the same devices compete: left
alone, the compiler lets the embedding's shards decide, keeps every row on every device, and sums
partial products of the whole batch. Saying where the residual stream lives settles it: the weights
of a layer are gathered when the layer runs, and nothing else moves.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
from flax import linen as nn
from jax.sharding import Mesh

from mdm_jax.train.meshes import batch_sharding, batch_ways

_MODULES = ("Block", "Head")  # of every network: what the residual stream passes through


def rows_in_place(mesh: Mesh) -> AbstractContextManager:
    """A context in which networks are applied: their residual streams are sharded like batches.

    The models know no mesh; their modules are watched as they are called. Streams whose rows do
    not divide over the mesh are left to the compiler.

    Args:
        mesh: from `mdm_jax.train.meshes.make_mesh`, with Auto axes.

    Examples:
        Inside a function under ``jit``::

            with rows_in_place(mesh):
                logits = model.apply({"params": params}, tokens)
    """
    if mesh.size == 1:
        return nullcontext()
    sharding, ways = batch_sharding(mesh), batch_ways(mesh)

    def placed(x: Any) -> Any:
        if getattr(x, "ndim", 0) != 3 or x.shape[0] % ways:
            return x
        return jax.lax.with_sharding_constraint(x, sharding)

    def watched(call: Callable, args: tuple, kwargs: dict[str, Any], context: Any) -> Any:
        if context.method_name != "__call__" or type(context.module).__name__ not in _MODULES:
            return call(*args, **kwargs)
        out = call(placed(args[0]), *args[1:], **kwargs)
        return (placed(out[0]), *out[1:]) if isinstance(out, tuple) else placed(out)

    return nn.intercept_methods(watched)
