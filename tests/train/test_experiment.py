"""Config strings become the right objects, and wrong ones are refused with what is valid."""

import dataclasses
import hashlib
import tracemalloc

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from train import tiny

import mdm_jax as mdm
from configs.base import base
from mdm_jax import data
from mdm_jax.train.builders import SCHEDULES
from mdm_jax.train.experiment import build
from mdm_jax.train.families import NEUTRAL, RECIPES
from mdm_jax.train.fields import FIELDS, checked
from mdm_jax.train.step import train_step

TIMED = {"model": {"time_conditioning": True}}
SMDM = {"family": "smdm", "size": "6M", "cond_dim": 0, "adaln": False}
MD4 = {"family": "md4", "size": "small", "width": 0, "cond_dim": 0}
CURRICULUM = {
    **{"name": "duo", "curriculum_steps": 3, "temperature_until": 3},
    **{"temperature_start": 0.1, "temperature_end": 0.01},
}


def objective(name, **fields):
    return {"objective": {"name": name, **fields}}


FAMILIES = {
    "mdlm": {},
    "mdlm, drawn by importance": objective("mdlm", times="importance", min_time=1e-3) | TIMED,
    "mdlm, short windows, smdm": objective("mdlm", random_length=0.5) | {"model": SMDM},
    "mdlm in steps, md4": objective("mdlm", steps=4) | {"model": MD4},
    "duo": objective("duo") | TIMED,
    "duo with a curriculum": {"objective": CURRICULUM} | TIMED,
    "duo_distilled": objective(
        "duo_distilled", steps=8, teacher_every=2, divergence="forward", noise_over_mask=True
    )
    | TIMED,
    "ar": objective("ar") | {"model": {"causal": True, "adaln": False}},
    "d3pm": objective("d3pm", noise="masked", steps=4) | TIMED,
    "sedd": objective("sedd", noise="uniform") | TIMED,
    "genmd4": objective("genmd4", min_time=1e-3) | {"model": MD4 | TIMED["model"]},
    "esolm": objective("esolm", variant="A", alpha_0=0.5),
    "bd3": objective("bd3", block=4, low=0.4, high=0.9),
    "gidd": objective("gidd", uniform_share=0.1, mixing="gidd") | TIMED,
}


def built(**overrides):
    return build(tiny.config(**overrides), documents=tiny.documents())


def test_every_objective_has_a_case():
    named = {overrides.get("objective", {}).get("name", "mdlm") for overrides in FAMILIES.values()}
    assert named == set(RECIPES)


@pytest.mark.parametrize("family", FAMILIES)
def test_families_train(family):
    """Shapes and types of a whole step of the first phase, without compiling it."""
    experiment = built(**FAMILIES[family])
    state = jax.eval_shape(experiment.create_state)
    batch = experiment.train_data[:16]
    step = lambda state: train_step(
        state,
        batch,
        apply=experiment.apply,
        objective=experiment.family.objectives[0][1],
        optimizer=experiment.optimizer,
        seed=0,
        ema_decay=0.9,
        accumulate=2,
        teacher_every=experiment.family.teacher_every,
    )
    new, metrics = jax.eval_shape(step, state)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), new) == jax.tree.map(
        lambda x: (x.shape, x.dtype), state
    )
    assert metrics["loss"].total.shape == ()


def test_objects_follow_the_config():
    experiment = built(schedule={"name": "cosine", "eps": 0.01}, ema={"decay": 0.0})
    assert experiment.process == mdm.Masked(256, mdm.Cosine(0.01))
    assert experiment.network.module.config.num_ids == 257
    assert experiment.network.module.config.width == tiny.MODEL["width"]
    assert jax.eval_shape(experiment.create_state).ema is None
    assert experiment.family.constant == pytest.approx(
        float(mdm.constant_terms(experiment.process))
    )
    uniform = built(**FAMILIES["duo"])
    assert isinstance(uniform.process, mdm.Uniform)
    assert uniform.network.module.config.num_ids == 256
    autoregressive = built(**FAMILIES["ar"])
    assert autoregressive.process is None
    assert autoregressive.family.constant == 0


def test_d3pm_adds_the_prior_alone_as_its_loss_reconstructs():
    noisy_start = {"name": "linear_sigma", "sigma_min": 0.1, "sigma_max": 2.0}
    family = built(**FAMILIES["d3pm"], schedule=noisy_start).family
    assert family.constant == pytest.approx(np.exp(-2.0) * np.log(256), rel=1e-5)


def test_models_that_are_fed_something_else_are_not_plain():
    """`nll_bound` and the samplers would call them with tokens and sigma(t)."""
    change = objective("mdlm", times="change_of_variables", min_time=1e-3)
    assert built(**change).family.plain and not built(**change, **TIMED).family.plain
    assert built(**FAMILIES["ar"]).family.plain
    assert not built(**FAMILIES["ar"] | objective("ar", prepend=256)).family.plain


def test_noise_over_the_mask_has_its_id():
    for mask_id, ids in ((-1, 257), (300, 301), (3, 256)):
        fields = {"noise_over_mask": True, "mask_id": mask_id}
        assert built(**objective("duo", **fields), **TIMED).process.vocab_size == ids


@pytest.mark.parametrize("field", NEUTRAL)
def test_a_field_that_is_not_read_must_be_neutral(field):
    """By the first objective that does not read it, whatever its value."""
    kind = FIELDS["objective"][field]
    value = {str: "other", int: 7, float: 0.125, bool: True}[kind]
    name = next(name for name, recipe in RECIPES.items() if field not in recipe.reads)
    with pytest.raises(
        ValueError, match=rf"objective\.{field}=.*set {NEUTRAL[field]!r} for {name}"
    ):
        built(**objective(name, **{field: value}))


def test_sizes_give_what_is_left_at_zero():
    config = build(
        tiny.config(model={"width": 0, "layers": 2, "heads": 0}), documents=tiny.documents()
    ).network.module.config
    assert (config.width, config.layers, config.heads, config.cond_dim) == (128, 2, 4, 8)


def test_every_schedule_can_be_named():
    for name in SCHEDULES:
        schedule = SCHEDULES[name]({"eps": 1e-3, "power": 2.0, "sigma_min": 1e-3, "sigma_max": 9.0})
        assert isinstance(schedule, mdm.Schedule)


def test_seeds_give_other_parameters():
    config = tiny.config()
    config.seed = 1
    embedding = lambda e: jax.jit(lambda: e.create_state().params["embedding"])()
    other = build(config, documents=tiny.documents())
    assert (embedding(built()) != embedding(other)).all()


def test_fingerprint_tells_data_apart():
    assert built().data_fingerprint() == built().data_fingerprint()
    assert built().data_fingerprint() != built(data={"length": 8}).data_fingerprint()


def test_fingerprint_is_taken_in_place():
    """Text may fill most of the memory."""
    experiment = built()
    packed = data.Packed(np.zeros((1000, 64), np.int32), np.ones((1000, 64), bool), 64_000)
    experiment = dataclasses.replace(experiment, train_data=packed, held_out=packed)
    tracemalloc.start()
    fingerprint = experiment.data_fingerprint()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20_000
    digest = hashlib.sha256()
    for _ in range(2):
        digest.update(b"(1000, 64)" + packed.tokens.tobytes() + packed.where.tobytes())
    assert fingerprint == digest.hexdigest()[:16]


def test_evaluation_windows_are_spread_over_the_text():
    experiment = built(evaluation={"max_windows": 3})
    held_out, chosen = experiment.held_out, experiment.evaluation_data()
    assert len(chosen) == 3
    np.testing.assert_array_equal(chosen.tokens[0], held_out.tokens[0])
    np.testing.assert_array_equal(chosen.tokens[2], held_out.tokens[-1])
    everything = built(evaluation={"max_windows": 0})
    assert everything.evaluation_data() is everything.held_out


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (objective("sed"), r"'sed'.*'mdlm', 'duo', "),
        (objective("duo"), r"'duo' needs model\.time_conditioning=True"),
        ({"objective": {"name": "ar"}}, r"'ar' needs model\.causal=True"),
        (
            FAMILIES["ar"] | {"objective": {"name": "ar", "weighting": "cross_entropy"}},
            r"weighting='cross_entropy' is read by .*'gidd'.* only: set 'elbo'",
        ),
        (objective("mdlm", times="late"), r"'mdlm': objective\.times='late'"),
        (objective("mdlm", times="importance"), r"times='importance' needs .*min_time above 0"),
        (
            objective("mdlm", times="importance", steps=4),
            r"steps=4 needs objective\.times='uniform'",
        ),
        (objective("mdlm", steps=4, weighting="cross_entropy"), r"uniform, continuous times"),
        (objective("mdlm", steps=4, min_time=0.1), r"min_time is for continuous time"),
        (objective("mdlm", weighting="dynamic"), r"'mdlm': .*'dynamic'"),
        (objective("mdlm", random_length=1.5), r"'mdlm': share=1\.5"),
        (objective("mdlm", random_length=0.1) | {"model": MD4}, r"random_length .*not md4"),
        (objective("mdlm") | {"model": {"causal": True}}, r"'mdlm' with model\.causal=True"),
        (objective("duo", mask_id=3) | TIMED, r"mask_id=3 with uniform noise"),
        (objective("duo", top_k=3) | TIMED, r"top_k needs objective\.curriculum_steps"),
        (objective("duo", temperature_start=0.1) | TIMED, r"temperature_start needs"),
        ({"objective": CURRICULUM | {"temperature_end": 0.0}} | TIMED, r"positive temperatures"),
        ({"objective": CURRICULUM | {"top_k": 256}} | TIMED, r"top_k=256: expected"),
        (objective("duo") | {"model": MD4 | TIMED["model"]}, r"can be trained on \['dit'\]"),
        (objective("duo_distilled", steps=8) | TIMED, r"teacher_every=0.*steps of a round"),
        (objective("duo_distilled", steps=8, teacher_every=1) | TIMED, r"divergence=''"),
        (FAMILIES["ar"] | objective("ar", prepend=257), r"prepend=257: expected a token id"),
        (objective("d3pm", steps=4) | TIMED, r"noise='': expected one of \['masked', 'uniform'\]"),
        (objective("d3pm", noise="masked") | TIMED, r"'d3pm': steps=0"),
        (
            objective("sedd", noise="masked", noise_over_mask=True) | TIMED,
            r"noise_over_mask=True is for objective\.noise='uniform'",
        ),
        (objective("sedd", noise="masked"), r"'sedd' needs model\.time_conditioning=True: a score"),
        (
            objective("genmd4", min_time=1e-3) | {"schedule": {"name": "cosine"}},
            r"'genmd4': schedule=Cosine.*give the process LogLinear",
        ),
        (objective("esolm", alpha_0=0.5), r"'esolm': variant='': expected 'A' or 'B'"),
        (objective("esolm", variant="A", alpha_0=2.0), r"'esolm': alpha_0=2\.0"),
        (objective("esolm", variant="A") | TIMED, r"time_conditioning=False: its sequential half"),
        (objective("bd3", block=5), r"block=5 does not divide data\.length=16"),
        (objective("bd3", block=4, low=0.9, high=0.4), r"'bd3': low=0\.9, high=0\.4"),
        (objective("gidd", mixing="gidd", uniform_share=2.0) | TIMED, r"'gidd': .*2\.0"),
        (objective("gidd", uniform_share=0.1) | TIMED, r"'gidd': .*mixing=''"),
        (FAMILIES["d3pm"] | {"train": {"loss_chunk": 4}}, r"loss_chunk=4 with .*'d3pm'"),
        (objective("genmd4"), r"'genmd4': min_time=0\.0: expected a time in \(0, 1\)"),
        ({"model": {"family": "unet"}}, r"'unet': it can be trained on \['dit', 'smdm', 'md4'\]"),
        ({"model": SMDM | {"dropout": 0.1}}, r"dropout=0\.1 with model\.family='smdm'"),
        ({"model": MD4 | {"width": 8}}, r"model\.width=8 with model\.family='md4'"),
        ({"model": MD4 | {"adaln": False}}, r"model\.adaln=False with model\.family='md4'"),
        (
            objective("ar", prepend=256) | {"model": SMDM | {"causal": True}},
            r"embeds 256 ids and the objective needs 257",
        ),
        ({"schedule": {"name": "sqrt"}}, r"'sqrt'.*'log_linear', 'linear'"),
        ({"data": {"tokenizer": "bpe"}}, r"'bpe'.*'byte'"),
        ({"data": {"source": "web"}}, r"'web'.*'python_documentation', 'text_files', 'in_memory'"),
        ({"data": {"source": "text_files"}}, r"data\.path=''"),
        ({"data": {"source": "python_documentation"}}, r"no other, takes its text from the caller"),
        ({"data": {"length": 100_000}}, "training side of the split: .*shorter than one window"),
        ({"data": {"length": 4000}}, "held-out side of the split: .*shorter than one window"),
        (
            {"schedule": {"name": "linear"}, "model": {"time_conditioning": True}},
            r"schedule\.name='linear' with model\.time_conditioning=True.*infinite",
        ),
        (
            FAMILIES["duo"] | {"schedule": {"name": "polynomial"}},
            r"schedule\.name='polynomial' with model\.time_conditioning=True",
        ),
        (
            {"evaluation": {"max_windows": -1}},
            r"evaluation\.max_windows must be at least 0",
        ),
        ({"checkpoint": {"keep": 0}}, r"checkpoint\.keep must be at least 1, got 0"),
        ({"checkpoint": {"keep_every": -1}}, r"checkpoint\.keep_every must be at least 0, got -1"),
        ({"optimizer": {"clip": -1.0}}, r"optimizer\.clip must be at least 0, got -1"),
        ({"optimizer": {"eps": float("nan")}}, r"optimizer\.eps must be a finite number, got nan"),
        ({"optimizer": {"clip": float("inf")}}, r"optimizer\.clip must be a finite number"),
        ({"model": {"size": "giant"}}, r"'tiny'.*'giant'"),
        ({"model": {"heads": 3}}, "heads=3"),
        ({"optimizer": {"schedule": "exp"}}, "'exp'"),
        ({"optimizer": {"warmup": 6}}, "warmup=6"),
        ({"train": {"steps": 0}}, r"train\.steps must be at least 1, got 0"),
        ({"ema": {"decay": 1.0}}, r"ema\.decay must lie in \[0, 1\)"),
    ],
)
def test_contradictions_are_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        built(**overrides)


def test_in_memory_needs_documents():
    with pytest.raises(ValueError, match=r"train\(config, workdir, documents=\.\.\.\)"):
        build(tiny.config())


def edited(path, value):
    config = tiny.config().to_dict()
    *sections, field = path.split(".")
    inner = config
    for section in sections:
        inner = inner[section]
    if value is None:
        del inner[field]
    else:
        inner[field] = value
    return config


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("train.stesp", 5, r"unknown field config\.train\.stesp: the fields of config\.train are"),
        ("modle", {}, r"unknown field config\.modle: the fields of config are seed, model"),
        ("train.steps", None, r"missing field config\.train\.steps"),
        ("mesh", None, r"missing field config\.mesh"),
        ("mesh", 3, r"config\.mesh must be a mapping with the fields data, fsdp, tensor, sequence"),
        ("train.steps", 5.0, r"config\.train\.steps must be of type int, got 5\.0"),
        ("model.adaln", 1, r"config\.model\.adaln must be of type bool, got 1"),
        ("seed", True, r"config\.seed must be of type int, got True"),
        ("seed", -1, r"seed must lie from 0"),
        ("model.size", 7, r"config\.model\.size must be of type str, got 7"),
    ],
)
def test_fields_are_checked(path, value, message):
    with pytest.raises(ValueError, match=message):
        checked(edited(path, value))


def test_whole_numbers_pass_for_floats():
    assert type(checked(edited("optimizer.weight_decay", 0))["optimizer"]["weight_decay"]) is float


def test_quickstart_has_every_field_with_a_value():
    """A field whose default is None could not be set on the command line."""
    config = tiny.get_config()
    assert isinstance(config, ConfigDict)
    assert set(checked(config)) == set(FIELDS)


def test_the_base_of_the_recipes_sets_no_field_of_an_objective():
    assert base().objective.to_dict() == NEUTRAL | {"name": "mdlm"}
