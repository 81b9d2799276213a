"""The one place where the strings and numbers of a config become objects."""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import mdm_jax as mdm
from mdm_jax import data
from mdm_jax.models.configs import DiTConfig
from mdm_jax.models.dit import DiT
from mdm_jax.train.fields import checked
from mdm_jax.train.optimizers import adamw, learning_rate
from mdm_jax.train.state import Params, TrainState, create_state
from mdm_jax.train.step import Apply

# Each makes a schedule from the ``schedule`` section; fields it does not name are unused.
SCHEDULES: dict[str, Callable[[Mapping[str, Any]], mdm.Schedule]] = {
    "log_linear": lambda c: mdm.LogLinear(c["eps"]),
    "linear": lambda c: mdm.Linear(),
    "cosine": lambda c: mdm.Cosine(c["eps"]),
    "cosine_squared": lambda c: mdm.CosineSquared(c["eps"]),
    "maskgit_cosine": lambda c: mdm.MaskGITCosine(c["eps"]),
    "polynomial": lambda c: mdm.Polynomial(c["power"]),
    "geometric": lambda c: mdm.Geometric(c["sigma_min"], c["sigma_max"]),
    "linear_sigma": lambda c: mdm.LinearSigma(c["sigma_min"], c["sigma_max"]),
}
OBJECTIVES = ("mdlm", "duo", "ar")
SOURCES = ("python_documentation", "text_files", "in_memory")

_INIT_FOLD = 2**32 - 1  # no training step has this number, so no noise shares the key


@dataclasses.dataclass(frozen=True, eq=False)
class Experiment:
    """What a config describes.

    Attributes:
        config: the checked config, as plain dicts.
        process: the noise process; None for the autoregressive objective.
        objective: what the model is trained on.
        model: the Linen module.
        apply: ``apply(params, inputs, dropout_key or None) -> logits``.
        init: ``init(key) -> params``.
        optimizer: the optax transformation.
        learning_rate: its learning rate by step.
        tokenizer: text to ids and back.
        train_data: windows to train on.
        held_out: windows to evaluate on, all of them.
        constant: nats per token that `mdm_jax.constant_terms` adds to the bound.
    """

    config: dict[str, Any]
    process: mdm.Process | None
    objective: mdm.Objective
    model: DiT
    apply: Apply
    init: Callable[[jax.Array], Params]
    optimizer: optax.GradientTransformation
    learning_rate: optax.Schedule
    tokenizer: data.Tokenizer
    train_data: data.Packed
    held_out: data.Packed
    constant: float

    def create_state(self) -> TrainState:
        """Returns the state before the first step, a function of the config alone."""
        key = jax.random.fold_in(jax.random.key(self.config["seed"]), _INIT_FOLD)
        average = self.config["ema"]["decay"] > 0
        return create_state(key, self.init, self.optimizer, ema=average)

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


def build(config: Mapping[str, Any], *, documents: data.Documents | None = None) -> Experiment:
    """Builds everything a config describes, with no array on a device yet.

    Args:
        config: a ConfigDict or nested mapping with the fields of `fields.FIELDS`.
        documents: the text, if ``data.source`` is "in_memory".

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
    process, objective = make_family(config, tokenizer.vocab_size)
    num_ids = tokenizer.vocab_size if process is None else process.num_ids
    model = DiT(make_model_config(config["model"], num_ids))
    length = config["data"]["length"]
    texts = _documents(config["data"], documents)
    train_texts, held_out_texts = data.split(texts, config["data"]["held_out"])
    rate = learning_rate(config["optimizer"], config["train"]["steps"])

    def apply(params: Params, inputs: dict[str, jax.Array], dropout_key: jax.Array | None) -> Any:
        training = dropout_key is not None
        return model.apply(
            {"params": params},
            inputs["tokens"],
            inputs.get("sigma"),  # left out where the model takes no time
            deterministic=not training,
            rngs={"dropout": dropout_key} if training else None,
        )

    def init(key: jax.Array) -> Params:
        return model.init(key, jnp.zeros((1, length), jnp.int32))["params"]

    return Experiment(
        config=config,
        process=process,
        objective=objective,
        model=model,
        apply=apply,
        init=init,
        optimizer=adamw(config["optimizer"], rate),
        learning_rate=rate,
        tokenizer=tokenizer,
        train_data=_packed("training", train_texts, tokenizer, length),
        held_out=_packed("held-out", held_out_texts, tokenizer, length),
        constant=0.0 if process is None else float(mdm.constant_terms(process)),
    )


def make_family(
    config: Mapping[str, Any], vocab_size: int
) -> tuple[mdm.Process | None, mdm.Objective]:
    """The process and the objective of ``objective.name``."""
    name, weighting = config["objective"]["name"], config["objective"]["weighting"]
    conditioned, causal = config["model"]["time_conditioning"], config["model"]["causal"]
    if name not in OBJECTIVES:
        raise ValueError(f"unknown objective.name {name!r}: expected one of {list(OBJECTIVES)}")
    if name != "mdlm" and weighting != "elbo":
        raise ValueError(
            f"objective.weighting={weighting!r} is for mdlm only: set 'elbo' for {name}"
        )
    if name == "ar":
        if not causal or conditioned:
            raise ValueError(
                "objective.name='ar' needs model.causal=True (a model that sees the next token "
                "has nothing to predict) and model.time_conditioning=False (there is no time)"
            )
        return None, mdm.autoregressive_objective()
    schedule = _choose("schedule.name", config["schedule"]["name"], SCHEDULES)(config["schedule"])
    if conditioned and not np.isfinite(schedule.sigma(jnp.float32(1.0))):
        raise ValueError(
            f"schedule.name={config['schedule']['name']!r} with model.time_conditioning=True: the "
            "model is told sigma(t) = -log alpha(t), which is infinite at t = 1, where sampling "
            "starts. Choose a schedule that keeps a share of the tokens there (log_linear), or set "
            "model.time_conditioning=False (mdlm)"
        )
    if name == "mdlm":
        masked = mdm.Masked(vocab_size, schedule)
        return masked, mdm.masked_objective(masked, weighting, time_conditioning=conditioned)
    if not conditioned:
        raise ValueError(
            "objective.name='duo' needs model.time_conditioning=True: uniform noise does not show "
            "in the tokens, so the model must be told how much there is"
        )
    uniform = mdm.Uniform(vocab_size, schedule)
    return uniform, mdm.uniform_objective(uniform)


def make_model_config(section: Mapping[str, Any], num_ids: int) -> DiTConfig:
    """The ``model`` section; numbers that are 0 come from the size."""
    sized = ("width", "layers", "heads", "cond_dim")
    overrides = {k: v for k, v in section.items() if k != "size" and (v != 0 or k not in sized)}
    return DiTConfig.from_size(section["size"], num_ids, **overrides)


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


def _choose(field: str, name: str, options: Mapping[str, Any]) -> Any:
    if name not in options:
        raise ValueError(f"unknown {field} {name!r}: expected one of {list(options)}")
    return options[name]
