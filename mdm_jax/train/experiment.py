"""The one place where the strings and numbers of a config become objects."""

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from jax.sharding import Mesh

from mdm_jax import data
from mdm_jax.train.fields import checked
from mdm_jax.train.learners import Learner, build_learner

SOURCES = ("python_documentation", "text_files", "in_memory")


@dataclasses.dataclass(frozen=True, eq=False)
class Experiment(Learner):
    """What a config describes: what is trained, and the text it is trained on.

    Attributes:
        tokenizer: text to ids and back.
        train_data: windows to train on.
        held_out: windows to evaluate on, all of them.
    """

    tokenizer: data.Tokenizer
    train_data: data.Packed
    held_out: data.Packed

    def data_fingerprint(self) -> str:
        """Returns a hash of all windows: equal text, tokenizer and split give equal hashes."""
        digest = hashlib.sha256()
        for packed in (self.train_data, self.held_out):
            digest.update(repr(packed.tokens.shape).encode())
            for array in (packed.tokens, packed.where):  # hashed in place: it may be all the memory
                digest.update(np.ascontiguousarray(array).data.cast("B"))
        return digest.hexdigest()[:16]

    def evaluation_data(self) -> data.Packed:
        """Returns ``evaluation.max_windows`` held-out windows, evenly spaced; all if that is 0."""
        return data.evenly_spaced(self.held_out, self.config["evaluation"]["max_windows"])


def build(
    config: Mapping[str, Any],
    *,
    documents: data.Documents | None = None,
    mesh: Mesh | None = None,
) -> Experiment:
    """Builds everything a config describes, with no array on a device yet.

    Args:
        config: a ConfigDict or nested mapping with the fields of `fields.FIELDS`.
        documents: the text, if ``data.source`` is "in_memory".
        mesh: the devices to train on; by default those here, as ``config.mesh`` says.

    Raises:
        ValueError: if a field is unknown, missing or of another type; if a name is unknown; or if
            two fields contradict each other. The message names the fields and what is valid.
        FileNotFoundError: if there is no text at ``data.path``.

    Examples:
        With the config of ``configs/quickstart.py``::

            experiment = build(get_config())
            experiment.process  # Masked(vocab_size=256, schedule=LogLinear(eps=0.001), ...)

        >>> build({"seed": 0, "sede": 1})
        Traceback (most recent call last):
            ...
        ValueError: unknown field config.sede: the fields of config are seed, model, ...
    """
    config = checked(config)
    tokenizer = make_tokenizer(config["data"]["tokenizer"])
    learner = build_learner(config, tokenizer.vocab_size, mesh)
    length = config["data"]["length"]
    texts = _documents(config["data"], documents)
    train_texts, held_out_texts = data.split(texts, config["data"]["held_out"])
    return Experiment(
        **{field.name: getattr(learner, field.name) for field in dataclasses.fields(Learner)},
        tokenizer=tokenizer,
        train_data=_packed("training", train_texts, tokenizer, length),
        held_out=_packed("held-out", held_out_texts, tokenizer, length),
    )


def _documents(section: Mapping[str, Any], given: data.Documents | None) -> data.Documents:
    """The text of ``data.source``."""
    source, path = section["source"], section["path"]
    if source not in SOURCES:
        raise ValueError(f"unknown data.source {source!r}: expected one of {list(SOURCES)}")
    if (source == "text_files") != bool(path):
        raise ValueError(
            f"data.path={path!r} with data.source={source!r}: text_files alone has one"
        )
    if (source == "in_memory") != (given is not None):
        raise ValueError(
            f"data.source={source!r} with documents={given!r}: data.source='in_memory', and no "
            "other, takes its text from the caller: train(config, workdir, documents=...)"
        )
    if given is not None:
        return given
    return data.text_files(path) if source == "text_files" else data.python_documentation()


def _packed(
    side: str, documents: data.Documents, tokenizer: data.Tokenizer, length: int
) -> data.Packed:
    """The windows of one side of the split, which errors name."""
    try:
        return data.pack(documents, tokenizer, length)
    except ValueError as error:
        raise ValueError(
            f"{side} side of the split: {error} (data.length, data.held_out)"
        ) from error


def make_tokenizer(name: str) -> data.Tokenizer:
    """The tokenizer of ``data.tokenizer``, see `data.open_tokenizer`."""
    try:
        return data.open_tokenizer(name)
    except ValueError as error:
        raise ValueError(f"data.tokenizer: {error}") from error
