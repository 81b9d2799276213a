"""A model read back from a run, from one of its checkpoints, and from its export."""

import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from train import tiny

from mdm_jax.evaluation.canvas import canvas
from mdm_jax.evaluation.frontier import judged
from mdm_jax.evaluation.samples import sample_text
from mdm_jax.models import load
from mdm_jax.train.checkpoints import Checkpoints, save_params
from mdm_jax.train.converted import convert
from mdm_jax.train.experiment import build
from mdm_jax.train.trained import load_trained, text_model_of

FAMILIES = {
    "mdlm": {},
    "duo": {"objective": {"name": "duo"}, "model": {"time_conditioning": True}},
    "ar": {
        "objective": {"name": "ar"},
        "model": {"causal": True, "adaln": False},
        "ema": {"decay": 0.0},
    },
}


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with two checkpoints that differ, no export, and leavings of a killed save."""
    workdir = tmp_path_factory.mktemp("run")
    experiment = build(tiny.config(), documents=tiny.documents())
    state = jax.jit(experiment.create_state)()
    state = state._replace(ema=jax.tree.map(lambda x: x + 0.01, state.params))
    later = state._replace(ema=jax.tree.map(lambda x: x + 0.02, state.params))
    record = experiment.config | {"data_fingerprint": "feed"}
    with Checkpoints(workdir / "checkpoints", asynchronous=False) as checkpoints:
        checkpoints.save(2, state, record)
        checkpoints.save(10, later, record)
    (workdir / "checkpoints" / "12.orbax-checkpoint-tmp").mkdir()
    return workdir, experiment, state, later


def test_a_run_is_the_average_of_its_newest_checkpoint(run):
    workdir, experiment, _, later = run
    trained = load_trained(workdir)
    equal(trained.params, later.ema)
    assert trained.config == experiment.config
    assert trained.origin == workdir / "checkpoints" / "10"
    assert trained.data_fingerprint == "feed"
    assert trained.text_model.process == experiment.process
    equal(load_trained(workdir / "checkpoints").params, later.ema)
    assert (workdir / "checkpoints" / "12.orbax-checkpoint-tmp").exists()  # the run may be alive


def test_one_checkpoint_can_be_named(run):
    workdir, _, state, _ = run
    equal(load_trained(workdir / "checkpoints" / "2").params, state.ema)


def test_the_logits_are_those_of_the_experiment(run):
    workdir, experiment, _, later = run
    tokens = jnp.asarray(experiment.held_out.tokens[:2])
    logits = load_trained(workdir).text_model.logits_fn(tokens, jnp.float32(0.5))
    expected = experiment.apply(later.ema, {"tokens": tokens}, None)
    np.testing.assert_allclose(logits, expected, rtol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_exported_and_sampled(tmp_path, family):
    experiment = build(tiny.config(**FAMILIES[family]), documents=tiny.documents())
    save_params(tmp_path / "params", experiment.create_state().eval_params, experiment.config)
    trained = load_trained(tmp_path / "params")
    assert trained.text_model.process == experiment.process
    layout = canvas(trained.text_model.tokenizer, prompt="the", length=8)
    key = jax.random.key(0, impl="unsafe_rbg")
    samples = sample_text(key, trained.text_model, layout, steps=4, batch=2)
    assert samples.tokens.shape == (2, 8) and (samples.tokens < 256).all()
    assert all(text.startswith("the") for text in samples.texts)


def trained_on(**objective):
    """A model of a config, its parameters drawn and not trained."""
    experiment = build(tiny.config(objective=objective), documents=tiny.documents())
    return text_model_of(experiment.config, experiment.create_state().eval_params)


@pytest.mark.parametrize(
    ("objective", "sampler"),
    [
        ({"name": "bd3", "block": 4}, "first_hitting"),
        ({"name": "esolm", "alpha_0": 0.5, "variant": "B"}, "eso_lm"),
    ],
)
def test_models_with_a_cache_are_sampled_with_it(objective, sampler):
    model = trained_on(**objective)
    layout = canvas(model.tokenizer, prompt="the", length=8)
    key = jax.random.key(0, impl="unsafe_rbg")
    samples = sample_text(key, model, layout, steps=2, batch=2)
    assert samples.sampler == sampler and (samples.tokens < 256).all()
    assert all(text.startswith("the") for text in samples.texts)


@pytest.fixture(scope="module")
def prepended():
    """An autoregressive model that reads an id before every text, and the run that has it."""
    config = tiny.config(
        objective={"name": "ar", "prepend": 256}, model={"causal": True, "adaln": False}
    )
    experiment = build(config, documents=tiny.documents())
    params = jax.jit(experiment.create_state)().params
    # Heads start at zero: drawn weights tell right predictions from wrong ones.
    head = params["head"]["logits"]
    head["kernel"] = 5.0 * jax.random.normal(jax.random.key(1), head["kernel"].shape)
    return experiment, params, text_model_of(experiment.config, params)


def test_an_id_before_every_text_is_read_and_makes_all_of_it_likely(prepended):
    """A judge scores the first token too: its mean is that of the objective it was trained on."""
    experiment, params, judge = prepended
    tokens = experiment.held_out.tokens[:3]
    objective, where = experiment.family.objectives[0][1], jnp.ones(tokens.shape, bool)
    key, step = jax.random.key(0), jnp.int32(0)
    inputs, noised = objective.prepare(key, jnp.asarray(tokens), where, step)
    expected = objective.evaluate(experiment.apply(params, inputs, None), noised)
    assert expected.shape == tokens.shape and bool((expected > 0).all())
    np.testing.assert_allclose(judged(judge, tokens), float(expected.mean()), rtol=1e-5)


@pytest.mark.parametrize("prompt", ["", "the"])
def test_an_id_before_every_text_predicts_its_first_token(prepended, prompt):
    """With and without a cache: each token is one that the model gives most of its mass."""
    experiment, params, model = prepended
    layout = canvas(model.tokenizer, prompt=prompt, length=6)
    for sampler in model.samplers:
        samples = sample_text(jax.random.key(0), model, layout, sampler=sampler, temperature=1e-3)
        tokens = samples.tokens
        assert tokens.shape == (1, 6) and (tokens < 256).all()
        assert samples.texts[0].startswith(prompt)
        inputs = jnp.concatenate([jnp.full((1, 1), 256), tokens[:, :-1]], axis=1)
        logits = experiment.apply(params, {"tokens": inputs}, None)[..., :256]
        best = np.asarray(jnp.argmax(logits, axis=-1))
        np.testing.assert_array_equal(tokens[:, len(prompt) :], best[:, len(prompt) :])


@pytest.mark.parametrize(
    ("objective", "why"),
    [
        ({"name": "esolm", "alpha_0": 0.5, "variant": "A"}, "that is for variant B"),
        ({"name": "d3pm", "noise": "masked", "steps": 8}, "may predict the mask"),
    ],
)
def test_models_that_no_sampler_fits_are_refused_with_the_reason(objective, why):
    kind = {"time_conditioning": objective["name"] == "d3pm"}
    config = tiny.config(objective=objective, model=kind)
    experiment = build(config, documents=tiny.documents())
    model = text_model_of(experiment.config, experiment.create_state().eval_params)
    with pytest.raises(ValueError, match=why):
        sample_text(jax.random.key(0), model, canvas(model.tokenizer, length=8))


def test_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="no model at"):
        load_trained(tmp_path)
    (tmp_path / "checkpoints" / "3" / "config").mkdir(parents=True)
    (tmp_path / "checkpoints" / "3" / "config" / "metadata").write_text("{}")
    (tmp_path / "checkpoints" / "3" / "state").mkdir()
    with pytest.raises(OSError, match=r"checkpoints/3 cannot be read.*name another one"):
        load_trained(tmp_path)
    with pytest.raises(ValueError, match=r"'s3://bucket/run': runs.* live in folders"):
        load_trained("s3://bucket/run")


# Readers of damaged files are abandoned half-way; their complaints are not ours to raise.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", ["state", "config"])
def test_damaged_newest_checkpoint_falls_back_and_says_so(run, tmp_path, caplog, damage):
    shutil.copytree(run[0], tmp_path / "run")
    newest = tmp_path / "run" / "checkpoints" / "10"
    if damage == "state":
        truncate(*(newest / "state").rglob("d/*"))
    else:
        truncate(newest / "config" / "metadata")
    with caplog.at_level(logging.WARNING, "mdm_jax"):
        trained = load_trained(tmp_path / "run")
    equal(trained.params, run[2].ema)
    assert trained.origin == newest.parent / "2"
    assert f"{newest} cannot be read" in caplog.text and f"Using {trained.origin}" in caplog.text
    with pytest.raises(OSError, match="checkpoints/10 cannot be read"):
        load_trained(newest)  # named, it is that one or none


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_damaged_export_is_named(tmp_path):
    params = {"w": jax.random.normal(jax.random.key(0), (64, 64))}
    save_params(tmp_path / "params", params, {"seed": 0})
    truncate(*(tmp_path / "params" / "params").rglob("d/*"))
    with pytest.raises(OSError, match=r"parameters in .*/params are damaged"):
        load_trained(tmp_path / "params")
    truncate(tmp_path / "params" / "config.json")
    with pytest.raises(ValueError, match=r"config\.json is damaged: it is not JSON"):
        load_trained(tmp_path / "params")


def truncate(*files):
    for file in files:
        file.write_bytes(file.read_bytes()[:-10])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_can_be_published(tmp_path, family):
    experiment = build(tiny.config(**FAMILIES[family]), documents=tiny.documents())
    params = jax.jit(experiment.create_state)().params
    save_params(tmp_path / "run" / "params", params, experiment.config)
    convert(tmp_path / "run" / "params", tmp_path / "out", format="safetensors")
    model, found = load(tmp_path / "out")
    equal(found, params)
    assert model.config == experiment.network.module.config
    again = load_trained(tmp_path / "out").text_model
    # A published Duo has the schedule that its paper has.
    assert type(again.process) is type(experiment.process)
    assert again.tokenizer == experiment.tokenizer
    with pytest.raises(ValueError, match="what is ours is in Orbax"):
        convert(tmp_path / "run" / "params", tmp_path / "other", format="orbax")
