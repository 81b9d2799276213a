"""Trains every objective on one text and prints the table of their bounds.

    python launch/compare.py --text=tinyshakespeare.txt
    python launch/compare.py --text=tinyshakespeare.txt --only=mdlm,duo,ar --steps=200

The configs are those of `configs/compare.py`. Exits with 1 if a bound is not finite or has not
fallen.
"""

import math
import sys
from pathlib import Path

from absl import app, flags, logging

# The configs import one another as configs.<name>, which is not installed with the package.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

_TEXT = flags.DEFINE_string("text", None, "A text file of at least some 100 kB.")
_ONLY = flags.DEFINE_list("only", [], "Names of configs/compare.py; all by default.")
_STEPS = flags.DEFINE_integer("steps", 0, "Optimizer steps of each; 0: as in the config.")
_WORKDIR = flags.DEFINE_string("workdir", "runs/compare", "Directory of the runs.")

# Distillation starts from what it distills.
_STARTS = {"duo-distilled": "duo"}


def main(argv: list[str]) -> None:
    """Trains, prints."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    logging.set_verbosity(logging.WARNING)
    from configs.compare import OPTIONS, get_config
    from mdm_jax.train.comparison import HEADER, compare, pieces, row, stretch
    from mdm_jax.train.host_memory import keep_freed_memory

    keep_freed_memory()
    configs = {name: get_config(name).to_dict() for name in _ONLY.value or OPTIONS}
    if _STEPS.value:
        for config in configs.values():
            stretch(config, _STEPS.value)
    documents = pieces(Path(_TEXT.value).read_bytes())
    print(HEADER, flush=True)
    trouble = []
    for outcome in compare(configs, documents, _WORKDIR.value, _STARTS):
        print(row(outcome), flush=True)
        if not ((outcome.falling or outcome.start) and math.isfinite(outcome.bounds[-1])):
            trouble.append(outcome.name)
    if trouble:
        sys.exit(f"not falling, or not finite: {', '.join(trouble)}")


if __name__ == "__main__":
    flags.mark_flag_as_required("text")
    app.run(main)
