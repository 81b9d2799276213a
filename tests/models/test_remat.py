"""Each policy keeps for the backward pass what its table says."""

import jax
import jax.numpy as jnp
import pytest

from mdm_jax.masks import Bidirectional
from mdm_jax.models.attention import attention
from mdm_jax.models.configs import DiTConfig
from mdm_jax.models.embeddings import rotary_angles
from mdm_jax.models.layers import Block
from mdm_jax.models.remat import REMAT, rematerialized

BATCH, LENGTH, WIDTH = 2, 8, 16


def kept_widths(remat):
    """How many arrays of [B, L, D] a block keeps for its backward pass, its input among them."""
    config = DiTConfig(num_ids=5, width=WIDTH, layers=1, heads=2, adaln=False)
    block = rematerialized(Block, remat, 1)(config, True, attention)
    x = jnp.zeros((BATCH, LENGTH, WIDTH))
    rest = (None, rotary_angles(jnp.arange(LENGTH), config.head_dim), Bidirectional(), None, None)
    params = block.init(jax.random.key(0), x, *rest)
    out = lambda params, x: block.apply(params, x, *rest)[0].sum()
    kept = jax.eval_shape(lambda params, x: jax.vjp(out, params, x)[1], params, x)
    arrays = [leaf.size for leaf in jax.tree.leaves(kept) if leaf.shape[:2] == (BATCH, LENGTH)]
    return sum(size for size in arrays if size >= x.size) / x.size


@pytest.mark.parametrize(("remat", "widths"), [("attention", 4), ("dots", 9)])
def test_what_a_block_keeps_beside_its_input(remat, widths):
    assert kept_widths(remat) - kept_widths("full") == widths


def test_every_policy_has_a_case():
    assert set(REMAT) == {"none", "full", "attention", "dots"}
    assert kept_widths("none") > kept_widths("dots")
