"""What the backward pass may keep of a block, and what it computes again: one table for all models.

    policy       kept of each block, in widths D a token        computed again in the backward pass
    "none"       everything XLA wants                           nothing
    "dots"       the stream, all results of matmuls with        norms, activations, the scores and
                 weights and of attention: about 10 (DiT)       softmax of attention
    "attention"  the stream, q, k, v and what attention         norms, the MLP and its matmuls, the
                 returns: 5                                     scores and softmax of attention
    "full"       the stream that enters the block: 1            the whole block

The stream is float32 and the rest in the dtype of the matmuls, which have D in common but for
grouped keys and the hidden width of the MLP. Gradients are the same, up to rounding.
"""

from typing import Any

import jax
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from mdm_jax.models.attention import SAVED

_INPUTS = "attention inputs"

_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names(SAVED),
    ),
    "attention": jax.checkpoint_policies.save_only_these_names(SAVED, _INPUTS),
}
REMAT = ("none", *_POLICIES)
"""Names of the policies."""


def kept(x: Any) -> Any:
    """Marks what goes into attention: "attention" keeps it.

    What comes out is marked by whatever computes attention (`SAVED`), since a kernel keeps it in a
    form of its own.

    Args:
        x: pytree of arrays.

    Returns:
        The same arrays.

    Examples:
        >>> kept(jax.numpy.arange(2))
        Array([0, 1], dtype=int32)
    """
    return jax.tree.map(lambda leaf: checkpoint_name(leaf, _INPUTS), x)


def rematerialized(block: type[nn.Module], remat: str, unroll: int) -> type[nn.Module]:
    """Returns a block that is computed again where `remat` says so.

    Args:
        block: the module to scan over the layers.
        remat: one of `REMAT`.
        unroll: blocks per iteration of the scan.

    Examples:
        >>> rematerialized(nn.Dense, "none", 1) is nn.Dense
        True
    """
    if remat == "none":
        return block
    # A loop body cannot be merged with its backward pass, so CSE is harmless inside a scan
    # and need not be prevented; an unrolled layer has no such boundary.
    return nn.remat(block, prevent_cse=unroll > 1, policy=_POLICIES[remat])


def check_remat(remat: str) -> None:
    """Raises ValueError if there is no such policy.

    Examples:
        >>> check_remat("dots")
    """
    if remat not in REMAT:
        raise ValueError(f"remat must be one of {REMAT}, got {remat!r}.")
