"""From ``config.objective`` to objects: a process and objectives, for each name of an objective."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

import mdm_jax as mdm
from mdm_jax import objectives

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


class Family(NamedTuple):
    """What ``config.objective`` describes.

    Attributes:
        process: the noise, which samplers walk back; None for the autoregressive objective.
        objectives: (first step, objective) of each phase of the training, the first at step 0.
        num_ids: ids the model embeds.
        constant: nats per token to add to the evaluation, so that it is a bound.
        plain: whether the model is a plain ``(tokens, t) -> logits``, whose bound
            `mdm_jax.nll_bound` and whose samples the samplers of its process give.
        own_bound: whether the objective's own bound is another than `mdm_jax.nll_bound`: that of
            a number of steps.
        one_call: whether the objective calls the model once and is pointwise in its logits, so
            that ``train.loss_chunk`` fits.
        logits: whether the model's outputs are logits, and not the ratios of SEDD.
        rows_together: rows that the objective takes together, 2 for pairs.
        learned_noise: the process whose noise is trained too (GenMD4); None for all others.
        teacher_every: optimizer steps between two copies of the student into the teacher; 0: none.
    """

    process: mdm.Process | None
    objectives: tuple[tuple[int, mdm.Objective], ...]
    num_ids: int
    constant: float
    plain: bool = True
    own_bound: bool = False
    one_call: bool = True
    logits: bool = True
    rows_together: int = 1
    learned_noise: mdm.Masked | None = None
    teacher_every: int = 0


def _schedule(config: Mapping[str, Any]) -> mdm.Schedule:
    """The schedule; with a time-conditioned model, one whose sigma(1) is finite."""
    section = config["schedule"]
    if section["name"] not in SCHEDULES:
        raise ValueError(
            f"unknown schedule.name {section['name']!r}: expected one of {list(SCHEDULES)}"
        )
    schedule = SCHEDULES[section["name"]](section)
    if config["model"]["time_conditioning"] and not np.isfinite(schedule.sigma(jnp.float32(1.0))):
        raise ValueError(
            f"schedule.name={section['name']!r} with model.time_conditioning=True: the model is "
            "told sigma(t) = -log alpha(t), which is infinite at t = 1, where sampling starts. "
            "Choose a schedule that keeps a share of the tokens there (log_linear), or set "
            "model.time_conditioning=False (mdlm)"
        )
    return schedule


def _mask_id(config: Mapping[str, Any], vocab_size: int) -> int:
    given = config["objective"]["mask_id"]
    return vocab_size if given == -1 else given


def _masked(config: Mapping[str, Any], vocab_size: int) -> mdm.Masked:
    return mdm.Masked(vocab_size, _schedule(config), _mask_id(config, vocab_size))


def _uniform(
    config: Mapping[str, Any], vocab_size: int, schedule: mdm.Schedule | None = None
) -> mdm.Uniform:
    """Noise over the ids of the tokenizer, or, if asked for, over the mask as well."""
    section = config["objective"]
    if section["mask_id"] != -1 and not section["noise_over_mask"]:
        raise ValueError(
            f"objective.mask_id={section['mask_id']} with uniform noise: no token is masked, and "
            "the mask would be one more id to draw as noise. Set it to -1; or, to repeat the "
            "published scaling study, which does draw it, set objective.noise_over_mask=True"
        )
    size = vocab_size
    if section["noise_over_mask"]:
        size = max(vocab_size, _mask_id(config, vocab_size) + 1)
    return mdm.Uniform(size, schedule or _schedule(config))


def _noise(config: Mapping[str, Any], vocab_size: int) -> mdm.Masked | mdm.Uniform:
    kinds = {"masked": _masked, "uniform": _uniform}
    noise = config["objective"]["noise"]
    if noise not in kinds:
        raise ValueError(f"objective.noise={noise!r}: expected one of {list(kinds)}")
    if noise == "masked" and config["objective"]["noise_over_mask"]:
        raise ValueError("objective.noise_over_mask=True is for objective.noise='uniform'")
    return kinds[noise](config, vocab_size)


def _of(process: mdm.Process, *phases: tuple[int, mdm.Objective], **rest: Any) -> Family:
    rest = {"constant": float(mdm.constant_terms(process))} | rest
    return Family(process, phases, process.num_ids, **rest)


def mdlm(config: Mapping[str, Any], vocab_size: int) -> Family:
    """Masked diffusion in continuous or discrete time, with the times drawn as asked for."""
    section, process = config["objective"], _masked(config, vocab_size)
    conditioned = config["model"]["time_conditioning"]
    if section["times"] not in ("uniform", "importance", "change_of_variables"):
        raise ValueError(
            f"objective.times={section['times']!r}: expected 'uniform', 'importance' or "
            "'change_of_variables'"
        )
    if section["steps"] and section["times"] != "uniform":
        raise ValueError(f"objective.steps={section['steps']} needs objective.times='uniform'")
    other = section["steps"] or section["times"] != "uniform"
    if other and section["weighting"] != "elbo":
        raise ValueError(
            f"objective.weighting={section['weighting']!r} is for uniform, continuous times: set "
            "'elbo'"
        )
    if section["steps"]:
        if section["min_time"]:
            raise ValueError("objective.min_time is for continuous time: set 0.0 with steps")
        objective = objectives.discrete_objective(
            process, section["steps"], time_conditioning=conditioned
        )
    elif section["times"] != "uniform":
        if not section["min_time"]:
            raise ValueError(
                f"objective.times={section['times']!r} needs an objective.min_time above 0 (1e-3): "
                "it spreads the logarithm of the noise, which has no end at time 0"
            )
        objective = objectives.importance_objective(
            process,
            low=section["min_time"],
            change_of_variables=section["times"] == "change_of_variables",
            time_conditioning=conditioned,
        )
    else:
        objective = mdm.masked_objective(
            process,
            section["weighting"],
            time_conditioning=conditioned,
            min_time=section["min_time"],
        )
    if section["random_length"]:
        if config["model"]["family"] == "md4":
            raise ValueError("objective.random_length needs a model with masks of its own: not md4")
        objective = objectives.with_random_lengths(objective, section["random_length"])
    # Samplers and `nll_bound` tell a model sigma(t), which is not what this one was trained on.
    plain = section["times"] != "change_of_variables" or not conditioned
    return _of(process, (0, objective), plain=plain, own_bound=section["steps"] > 0)


def ar(config: Mapping[str, Any], vocab_size: int) -> Family:
    """The next token, with or without an id before the first."""
    prepend = config["objective"]["prepend"]
    if prepend < -1 or prepend > vocab_size:
        raise ValueError(
            f"objective.prepend={prepend}: expected a token id, vocab_size={vocab_size} for an id "
            "of its own, or -1 for none"
        )
    objective = mdm.autoregressive_objective(prepend=None if prepend == -1 else prepend)
    # A model that always read the id first has never seen a text without it.
    plain, num_ids = prepend == -1, max(vocab_size, prepend + 1)
    return Family(None, ((0, objective),), num_ids, constant=0.0, plain=plain)


def duo(config: Mapping[str, Any], vocab_size: int) -> Family:
    """Uniform-state diffusion, after a curriculum of relaxed tokens if there is one."""
    section, process = config["objective"], _uniform(config, vocab_size)
    objective = mdm.uniform_objective(process, min_time=section["min_time"])
    steps = section["curriculum_steps"]
    if not steps:
        for field in section:
            if (field.startswith("temperature") or field == "top_k") and section[field]:
                raise ValueError(f"objective.{field} needs objective.curriculum_steps")
        return _of(process, (0, objective))
    curriculum = objectives.curriculum_objective(
        mdm.Uniform(process.vocab_size, mdm.ArgmaxGaussian.covering(process.vocab_size)),
        process,
        temperature=objectives.log_linear_temperature(
            section["temperature_start"],
            section["temperature_end"],
            section["temperature_from"],
            section["temperature_until"],
        ),
        top_k=section["top_k"],
        min_time=section["min_time"],
    )
    return _of(process, (0, curriculum), (steps, objective))


def distilled(config: Mapping[str, Any], vocab_size: int) -> Family:
    """Uniform-state diffusion in fewer and fewer steps: a student that follows a teacher."""
    section, process = config["objective"], _uniform(config, vocab_size)
    if section["teacher_every"] < 1 or section["steps"] < 2:
        raise ValueError(
            f"objective.teacher_every={section['teacher_every']}, objective.steps="
            f"{section['steps']}: expected the steps of a round (10000) and of time (512)"
        )
    # The published path from -4 to -1 at 50,258 ids, as the levels it passes: nearly all of time.
    path = mdm.ArgmaxGaussian.covering(process.vocab_size, low=0.006, high=0.9987)
    objective = objectives.distillation_objective(
        mdm.Uniform(process.vocab_size, path),
        process,
        time_step=objectives.doubling_time_step(section["steps"], section["teacher_every"]),
        divergence=section["divergence"],
    )
    return _of(process, (0, objective), one_call=False, teacher_every=section["teacher_every"])


def d3pm(config: Mapping[str, Any], vocab_size: int) -> Family:
    """Discrete time; masked noise without SUBS, so that the mask may be predicted."""
    section, process = config["objective"], _noise(config, vocab_size)
    objective = objectives.d3pm_objective(
        process, section["steps"], time_conditioning=config["model"]["time_conditioning"]
    )
    if isinstance(process, mdm.Uniform):
        return _of(process, (0, objective), own_bound=True)
    # The masked form predicts the mask too, which no sampler of the process allows for. Its
    # reconstruction is the model's, and part of the loss: of the constants the prior alone is left.
    ids = int(process.predictable(process.num_ids).sum())
    prior = float(process.schedule.alpha(jnp.float32(1.0))) * math.log(ids)
    return _of(process, (0, objective), constant=prior, plain=False, one_call=False)


def sedd(config: Mapping[str, Any], vocab_size: int) -> Family:
    """Score entropy, for a model of ratios."""
    process = _noise(config, vocab_size)
    objective = objectives.sedd_objective(process, min_time=config["objective"]["min_time"])
    return _of(process, (0, objective), plain=False, logits=False)


def genmd4(config: Mapping[str, Any], vocab_size: int) -> Family:
    """Masked diffusion whose noise is learned, a power for each id."""
    section, process = config["objective"], _masked(config, vocab_size)
    objective = objectives.learned_objective(
        process,
        min_time=section["min_time"],
        time_conditioning=config["model"]["time_conditioning"],
    )
    return _of(process, (0, objective), plain=False, one_call=False, learned_noise=process)


def esolm(config: Mapping[str, Any], vocab_size: int) -> Family:
    """Diffusion for a share of the text and one by one for the rest."""
    section, process = config["objective"], _masked(config, vocab_size)
    objective = objectives.esolm_objective(
        process,
        section["alpha_0"],
        variant=section["variant"],
        weighting=section["weighting"],
        min_time=section["min_time"],
    )
    constant = float(objectives.esolm_constant_terms(process, section["alpha_0"]))
    pairs = section["alpha_0"] not in (0.0, 1.0)
    return _of(
        process,
        (0, objective),
        constant=constant,
        plain=False,
        one_call=not pairs,
        rows_together=2 if pairs else 1,
    )


def bd3(config: Mapping[str, Any], vocab_size: int) -> Family:
    """Masked diffusion inside blocks, which follow one another from left to right."""
    section, process = config["objective"], _masked(config, vocab_size)
    if section["block"] < 1 or config["data"]["length"] % section["block"]:
        raise ValueError(
            f"objective.block={section['block']} does not divide data.length="
            f"{config['data']['length']}: choose a block that does"
        )
    objective = objectives.block_objective(
        process,
        section["block"],
        low=section["low"],
        high=section["high"],
        weighting=section["weighting"],
    )
    return _of(process, (0, objective), plain=False)


def gidd(config: Mapping[str, Any], vocab_size: int) -> Family:
    """Noise that masks some tokens and redraws others."""
    section = config["objective"]
    process = mdm.Hybrid(
        vocab_size,
        _schedule(config),
        _mask_id(config, vocab_size),
        uniform_share=section["uniform_share"],
        mixing=section["mixing"],
    )
    objective = objectives.hybrid_objective(
        process,
        section["weighting"],
        time_conditioning=config["model"]["time_conditioning"],
        min_time=section["min_time"],
    )
    return _of(process, (0, objective))
