"""What launch/benchmark.py compares and measures, on a tiny model."""

import jax
import pytest
from train import tiny

from mdm_jax.train import timing
from mdm_jax.train.cost import step_flops
from mdm_jax.train.fields import checked
from mdm_jax.train.learners import build_learner


def learner(**sections):
    return build_learner(checked(tiny.config(**sections)), 256, timing.one_device())


@pytest.mark.parametrize("weighting", ["elbo", "cross_entropy"])
def test_torch_computes_the_same(weighting):
    """The loss with the head everywhere and at masked positions, and the norm of the gradient."""
    pytest.importorskip("torch")
    from launch import torch_baseline

    ours = learner(objective={"weighting": weighting}, train={"loss_chunk": 16})
    params = jax.jit(ours.init)(jax.random.key(0))
    moved = lambda x: x + 0.02 * jax.random.normal(jax.random.key(x.size), x.shape)
    loss, difference = torch_baseline.agreement(ours, jax.tree.map(moved, params))
    assert loss > 1
    assert difference < 1e-5


def test_torch_step_descends():
    pytest.importorskip("torch")
    from launch import torch_baseline

    ours = learner(objective={"weighting": "cross_entropy"})
    params = jax.jit(ours.init)(jax.random.key(0))
    torch_baseline.torch.manual_seed(0)
    candidates = torch_baseline.steps(ours, params, compiled=False, learning_rate=0.01)
    for step in candidates.values():
        losses = [step() for _ in range(40)]
        assert sum(losses[-10:]) < sum(losses[:10])


def test_utilization():
    ours = learner()
    found = timing.utilization(ours, size=64, rounds=1)
    assert found.flops * found.seconds == pytest.approx(step_flops(ours).total)
    assert found.without_attention < found.flops
    assert found.share == found.flops / found.peak


def test_utilization_is_of_one_device():
    with pytest.raises(ValueError, match="a mesh of 8 devices"):
        several = build_learner(checked(tiny.config()), 256)
        timing.utilization(several, size=64, rounds=1)
