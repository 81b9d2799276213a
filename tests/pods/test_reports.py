"""Reports, the search and the errors, on a topology that needs no compiler: eight GPUs."""

import itertools
import json
import pathlib
import sys

import jax
import pytest
from train import tiny

from mdm_jax.models.flops import flops_per_token
from mdm_jax.pods import fitting, plans, reports, topologies
from mdm_jax.pods.compiling import TooLargeError, _explained, learner_for
from mdm_jax.train.chips import CHIPS
from mdm_jax.train.cost import step_flops

ROOT = pathlib.Path(__file__).parents[2]
GPUS = topologies.describe("h100:8")


@pytest.fixture(scope="module")
def record():
    config = tiny.config(mesh={"data": 2, "fsdp": 4})
    return reports.report(config, 256, GPUS)


def test_a_gpu_plan_is_lowered_and_says_what_it_does_not_know(record):
    text = reports.text(record)
    assert "lowered for CUDA only" in text and "not known" in text and "not readable" in text
    assert record["mesh"] == {"data": 2, "fsdp": 4} and not record["compiled"]
    learner = learner_for(tiny.config(mesh={"data": 2, "fsdp": 4}), 256, GPUS)
    state = jax.eval_shape(learner.create_state)
    whole = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    part = reports.state_bytes(learner)
    assert whole / 4 <= part < whole  # what no rule shards is on every chip
    assert part < record["bytes"]["arguments"] <= part + 5 * 16 * 16  # ids and marks of 16 rows
    assert json.loads(json.dumps(record))["share"] == record["share"]


def test_flops_of_a_step_are_three_forward_passes_of_what_the_objective_prepares():
    learner = learner_for(tiny.config(), 256, GPUS)
    per_token = flops_per_token(learner.network.module.config, 16)
    assert step_flops(learner).total == 3 * 16 * 16 * per_token
    blocks = tiny.config(objective={"name": "bd3", "weighting": "elbo", "block": 4})
    two = step_flops(learner_for(blocks, 256, GPUS))
    one = step_flops(learner)
    assert two.blocks == 2 * one.blocks and two.head == one.head


def test_verdicts_say_by_how_much_and_what_to_change(record):
    fits = record | {"compiled": True, "share": 0.5}
    assert reports.verdict(fits).startswith("fits: 50 %")
    total, chip = 20 * 2**30, 20 * 2**30
    over = fits | {"share": 1.0, "bytes": {"total": total, "chip": chip}}
    assert "2.0 GiB above 90 %" in reports.verdict(over)
    assert "train.accumulate" in reports.verdict(over)
    error = _explained(
        RuntimeError(
            "RESOURCE_EXHAUSTED: total memory required for HLO temporaries (57.26G) exceeds "
            "available HBM (15.75G)"
        ),
        GPUS,
    )
    assert isinstance(error, TooLargeError) and "57.3 GiB of temporaries" in str(error)
    other = RuntimeError("INTERNAL: something else")
    assert _explained(other, GPUS) is other


def test_a_table_has_a_row_for_each_plan(record, tmp_path):
    calls = []

    def compile_one(plan):
        calls.append(plan)
        return record | {"plan": plan.name, "topology": plan.topology}

    some = [plans.Plan("a.py", "v5e:2x2"), plans.Plan("b.py", "v5e:2x2", {"x.y": 1})]
    path = tmp_path / "records.jsonl"
    for _ in range(2):  # the second time from the file
        found = plans.compile_all(some, path, compile_one=compile_one)
    assert calls == some
    lines = reports.table(found).splitlines()
    assert len(lines) == 4 and "`b.py --config.x.y=1`" in lines[3]


def test_every_plan_is_a_recipe_on_a_slice_it_divides_over():
    for plan in plans.PLANS:
        config = fitting.with_settings(
            plans.read_recipe(plan.recipe, ROOT / "configs"), plan.settings
        )
        chip, sides = topologies.parse(plan.topology)
        chips = 1
        for side in sides:
            chips *= side
        assert config["train"]["batch_size"] % (chips * config["train"]["accumulate"]) == 0
        assert plans.vocabulary(plan.recipe) >= 32_000 and chip in ("v5e", "v5p", "v6e")
    assert len({(plan.name, plan.topology) for plan in plans.PLANS}) == len(plans.PLANS) == 24
    assert len(plans.CHECKED) == 2


def test_candidates_are_ordered_and_all_fit_by_their_state():
    found = fitting.candidates(tiny.config(), 256, GPUS)
    assert [c.tensor for c in found] == sorted(c.tensor for c in found)
    first = [c for c in found if c.tensor == 1]
    assert all(a.seconds <= b.seconds + 1e-4 for a, b in itertools.pairwise(first))
    assert {c.remat for c in found} == set(fitting.REMAT)
    light, heavy = first[0]._replace(remat="full"), first[0]._replace(remat="none")
    assert light.lighter_than(heavy) and not heavy.lighter_than(light)
    with pytest.raises(ValueError, match="--fit needs a compiler for h100:8"):
        fitting.fit(tiny.config(), 256, GPUS)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v9:2x2", r"unknown topology 'v9:2x2': expected .*'v5e', 'v5p', 'v6e'"),
        ("v5p:4x4", "a v5p slice has 3 sides, as in v5p:4x4x8"),
        ("v5e:4", "a v5e slice has 2 sides"),
        ("h100:2x4", "GPUs are counted, as in h100:8"),
    ],
)
def test_topologies_that_are_none(name, message):
    with pytest.raises(ValueError, match=message):
        topologies.describe(name)


def test_more_gpus_than_there_are_devices_to_stand_for_them():
    with pytest.raises(RuntimeError, match="xla_force_host_platform_device_count=64"):
        topologies.describe("h100:64")


def test_a_missing_compiler_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'mdm-jax\[aot\]'"):
        topologies.describe("v5e:2x2")


def test_a_batch_or_a_mesh_that_does_not_divide():
    with pytest.raises(ValueError, match="12 rows does not divide"):
        learner_for(tiny.config(train={"batch_size": 12}), 256, GPUS)
    with pytest.raises(ValueError, match="do not fit 8 device"):
        learner_for(tiny.config(mesh={"fsdp": 3}), 256, GPUS)


def test_settings_and_recipes_that_are_none():
    with pytest.raises(ValueError, match=r"unknown field config\.train\.row"):
        fitting.with_settings(tiny.config(), {"train.row": 1})
    with pytest.raises(FileNotFoundError, match="no recipe"):
        plans.read_recipe("nothing.py", ROOT / "configs")
    with pytest.raises(ValueError, match="give --vocab_size"):
        plans.vocabulary("mine.py")


def test_the_search_stops_at_the_first_that_fits_and_skips_what_cannot(monkeypatch):
    """With a stand-in for the compiler: memory falls with micro-batches and rematerialization."""
    pod = GPUS._replace(name="v5e:2x4", chip=CHIPS["v5e"], sides=(2, 4))
    weight = {"none": 8.0, "dots": 4.0, "attention": 2.0, "full": 1.0}
    asked = []

    def compiler(scale):
        def report(config, vocab_size, topology, *, sampler):
            key = (config["train"]["accumulate"], config["model"]["remat"], config["mesh"]["fsdp"])
            asked.append(key)
            share = scale * weight[key[1]] / key[0]
            if share > 2:
                raise TooLargeError("too large")
            return {"share": share}

        return report

    lines = []
    monkeypatch.setattr(fitting, "report", compiler(1.0))
    found = fitting.fit(tiny.config(), 256, pod, say=lines.append)
    assert found.record["share"] <= reports.LIMIT and len(lines) == len(asked) == len(found.tried)
    shares = [share for _, share in found.tried]
    assert all(share is None or share > reports.LIMIT for share in shares[:-1])
    compiled = [one for one, _ in found.tried]
    for at, one in enumerate(compiled[:-1]):
        assert all(later.lighter_than(one) for later in compiled[at + 1 :])
    monkeypatch.setattr(fitting, "report", compiler(100.0))
    with pytest.raises(ValueError, match=r"no plan of v5e:2x4 fits 90 % .*take more chips"):
        fitting.fit(tiny.config(), 256, pod)
