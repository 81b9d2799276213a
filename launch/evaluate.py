"""Bounds the negative log-likelihood of a trained model on the held-out text of its run.

    python launch/evaluate.py --checkpoint=runs/quickstart --samples=8

Prints nats per token and bits per byte with standard errors, and simple models of the same text.
For an autoregressive model the number is its likelihood, not a bound.
"""

from pathlib import Path

from absl import app, flags, logging

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "A run, one of its checkpoints, or a folder of exported params."
)
_SAMPLES = flags.DEFINE_integer("samples", 8, "Noise draws per window, an even number.")
_STRATA = flags.DEFINE_enum(
    "strata",
    "auto",
    ["auto", "count", "time"],
    "What the draws are spread over: the number of masks (masked models only) or the time.",
)
_WINDOWS = flags.DEFINE_integer("windows", 0, "Held-out windows to use, evenly spaced; 0: all.")
_BATCH = flags.DEFINE_integer("batch", 64, "Windows per model call.")
_TEXT = flags.DEFINE_string(
    "text", "", "The text of a run of launch/compare.py, which does not know where it came from."
)
_SEED = flags.DEFINE_integer("seed", 0, "Of the noise.")


def main(argv: list[str]) -> None:
    """Loads, evaluates, prints."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    logging.set_verbosity(logging.WARNING)
    from mdm_jax.data import evenly_spaced
    from mdm_jax.evaluation.held_out import baselines, held_out_bound, objective_bound, table
    from mdm_jax.train.comparison import pieces
    from mdm_jax.train.experiment import build
    from mdm_jax.train.trained import load_trained

    trained = load_trained(_CHECKPOINT.value)
    in_memory = trained.config["data"]["source"] == "in_memory"
    if in_memory != bool(_TEXT.value):
        raise app.UsageError(
            f"data.source={trained.config['data']['source']!r} with --text={_TEXT.value!r}: runs "
            "of launch/compare.py, and no others, need --text"
        )
    documents = pieces(Path(_TEXT.value).read_bytes()) if in_memory else None
    experiment = build(trained.config, documents=documents)
    if trained.data_fingerprint not in ("", experiment.data_fingerprint()):
        logging.warning(
            "%s was trained on other text than is here now (fingerprint %s, now %s): some of what "
            "is held out now may have been trained on",
            *(trained.origin, trained.data_fingerprint, experiment.data_fingerprint()),
        )
    packed = evenly_spaced(experiment.held_out, _WINDOWS.value)
    draws = 1 if experiment.process is None else _SAMPLES.value  # a likelihood draws no noise
    settings = {"samples": draws, "batch_size": _BATCH.value, "seed": _SEED.value}
    apart = "segments" in packed[0]  # which only the objective knows how to keep
    if experiment.family.plain and not experiment.family.own_bound and not apart:
        bound = held_out_bound(trained.text_model, packed, strata=_STRATA.value, **settings)
    elif _STRATA.value != "count":
        bound = objective_bound(
            *(experiment.apply, trained.params, experiment.objective, packed),
            constant=experiment.family.constant,
            **settings,
        )
    else:
        name = trained.config["objective"]["name"]
        raise app.UsageError(
            f"--strata=count does not fit objective.name={name!r}, or documents "
            "that are kept apart: leave it out"
        )
    rivals = baselines(experiment.train_data, packed, experiment.tokenizer)
    print(f"{trained.origin}\n{bound.summary()}\n")
    print(table(bound.bits_per_byte, bound.bits_per_byte_error, rivals))


if __name__ == "__main__":
    flags.mark_flag_as_required("checkpoint")
    app.run(main)
