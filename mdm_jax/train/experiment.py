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

SOURCES = ("python_documentation", "text_files", "in_memory", "prepared")


@dataclasses.dataclass(frozen=True, eq=False)
class Experiment(Learner):
    """What a config describes: what is trained, and the text it is trained on.

    Attributes:
        tokenizer: text to ids and back.
        train_data: windows to train on.
        held_out: windows to evaluate on, all of them.
    """

    tokenizer: data.Tokenizer
    train_data: data.Windows
    held_out: data.Windows

    def data_fingerprint(self) -> str:
        """Returns a hash of all windows: equal text, tokenizer and split give equal hashes.

        Of prepared data it comes from the hashes of the manifests, and from the weights.
        """
        digest = hashlib.sha256()
        for packed in (self.train_data, self.held_out):
            if isinstance(packed, data.PreparedWindows | data.Mixture):
                digest.update(packed.fingerprint().encode())
            elif isinstance(packed, data.Packed):
                digest.update(repr(packed.tokens.shape).encode())
                for array in (packed.tokens, packed.where):  # in place: it may be all the memory
                    digest.update(np.ascontiguousarray(array).data.cast("B"))
        return digest.hexdigest()[:16]

    def evaluation_data(self) -> data.Windows:
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
    train_data, held_out = _windows(config["data"], tokenizer, documents)
    return Experiment(
        **{field.name: getattr(learner, field.name) for field in dataclasses.fields(Learner)},
        tokenizer=tokenizer,
        train_data=train_data,
        held_out=held_out,
    )


def _windows(
    section: Mapping[str, Any], tokenizer: data.Tokenizer, documents: data.Documents | None
) -> tuple[data.Windows, data.Windows]:
    """The windows to train on, and those held out."""
    texts = _documents(section, documents)
    if texts is None:
        return _prepared(section, tokenizer)
    train_texts, held_out_texts = data.split(texts, section["held_out"])
    return (
        _packed("training", train_texts, tokenizer, section["length"]),
        _packed("held-out", held_out_texts, tokenizer, section["length"]),
    )


def _prepared(
    section: Mapping[str, Any], tokenizer: data.Tokenizer
) -> tuple[data.Windows, data.Windows]:
    """Prepared windows, once they are known to be what the config says."""
    train = data.open_prepared(section["path"], "train")
    for part in train.parts:
        manifest = part.manifest
        if manifest.tokenizer["sha256"] != data.tokenizer_hash(tokenizer):
            raise ValueError(
                f"{part.folder} was prepared with another tokenizer "
                f"({manifest.tokenizer['name']!r}, {manifest.tokenizer['vocab_size']} ids) than "
                f"data.tokenizer={section['tokenizer']!r} ({tokenizer.vocab_size} ids): name the "
                "one it was prepared with, or prepare it anew"
            )
        expected = {"length": manifest.length, "held_out": manifest.recipe["held_out"]}
        for field, value in expected.items():
            if section[field] != value:
                raise ValueError(
                    f"{part.folder} was prepared with {field}={value}, but data.{field}="
                    f"{section[field]}: set --config.data.{field}={value}, or prepare it anew"
                )
    return train, data.open_prepared(section["path"], "held_out")


def _documents(section: Mapping[str, Any], given: data.Documents | None) -> data.Documents | None:
    """The text of ``data.source``; None if that is windows already."""
    source, path = section["source"], section["path"]
    if source not in SOURCES:
        raise ValueError(f"unknown data.source {source!r}: expected one of {list(SOURCES)}")
    if (source in ("text_files", "prepared")) != bool(path):
        raise ValueError(
            f"data.path={path!r} with data.source={source!r}: text_files and prepared have one, "
            "and no other source"
        )
    if (source == "in_memory") != (given is not None):
        raise ValueError(
            f"data.source={source!r} with documents={given!r}: data.source='in_memory', and no "
            "other, takes its text from the caller: train(config, workdir, documents=...)"
        )
    if given is not None or source == "prepared":
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
