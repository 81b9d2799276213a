"""Prepared data in an experiment: what does not fit the config is refused. See also test_loop."""

import json
import math

import jax.numpy as jnp
import pytest
from jax.tree_util import Partial
from train import tiny

import mdm_jax as mdm
from mdm_jax import data
from mdm_jax.evaluation.held_out import baselines, held_out_bound
from mdm_jax.evaluation.samples import TextModel
from mdm_jax.train.experiment import build


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The text of `tiny`, in one unit, so that windows run on as they do in memory."""
    folder = tmp_path_factory.mktemp("prepared")
    lines = [json.dumps({"text": text.decode()}) for text in tiny.documents().texts]
    (folder / "text.jsonl").write_text("\n".join(lines))
    for name, packing in (("joined", "joined"), ("apart", "separate")):
        recipe = data.Recipe(f"jsonl:{folder}/text.jsonl", "byte", 16, packing, held_out=0.3)
        data.prepare(recipe, folder / name)
    return folder


def config(path, **fields):
    return tiny.config(data={"source": "prepared", "path": str(path)} | fields)


def test_simple_models_and_bounds_of_what_is_not_in_memory(prepared):
    experiment = build(config(prepared / "joined"))
    train_data, held_out = data.split(tiny.documents(), held_out=0.3)
    train_data, held_out = (
        data.pack(side, data.ByteTokenizer(), 16) for side in (train_data, held_out)
    )
    tokenizer = experiment.tokenizer
    assert baselines(experiment.train_data, experiment.held_out, tokenizer) == baselines(
        train_data, held_out, tokenizer
    )
    flat = Partial(lambda tokens, t: jnp.zeros((*tokens.shape, 256)))
    model = TextModel(flat, mdm.Masked(256, mdm.Linear()), tokenizer)
    one, two = (
        held_out_bound(model, windows, samples=2, batch_size=16)
        for windows in (experiment.held_out, held_out)
    )
    assert one == two and one.nats_per_token == pytest.approx(math.log(256))
    assert len(experiment.evaluation_data()) == 8
    apart = build(config(prepared / "apart")).held_out
    with pytest.raises(ValueError, match="these windows have segments"):
        held_out_bound(model, apart, samples=2)


def test_batches_have_segments_where_documents_are_kept_apart(prepared):
    for name, names in (
        ("joined", {"tokens", "where"}),
        ("apart", {"tokens", "where", "segments"}),
    ):
        experiment = build(config(prepared / name))
        assert set(data.Batches(experiment.train_data, 4, 0)(0)) == names
        (batch, *_) = data.evaluation_batches(experiment.evaluation_data(), 4)
        assert set(batch) == names


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"tokenizer": "text8"},
            r"another tokenizer \('byte', 256 ids\) than data.tokenizer='text8'",
        ),
        (
            {"length": 32},
            r"prepared with length=16, but data\.length=32: set --config\.data\.length",
        ),
        ({"held_out": 0.1}, r"prepared with held_out=0\.3, but data\.held_out=0\.1"),
        ({"path": ""}, r"data\.path='' with data\.source='prepared'"),
        (
            {"path": "{here}/joined=0.5,{here}/apart=0.5"},
            "cannot be mixed: keeping documents apart",
        ),
        ({"source": "python_documentation"}, "text_files and prepared have one"),
    ],
)
def test_what_does_not_fit_the_config_is_refused(prepared, fields, message):
    fields = {k: v.format(here=prepared) if k == "path" else v for k, v in fields.items()}
    with pytest.raises(ValueError, match=message):
        build(config(**({"path": prepared / "joined"} | fields)))


def test_data_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"launch/prepare_data\.py"):
        build(config(tmp_path))
