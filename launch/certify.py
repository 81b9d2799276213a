"""Measures samplers, wrappers and caches against their laws, and writes the table into the docs.

    python launch/certify.py --page=docs/samplers.md

Without --page the table is printed. A minute or two on a CPU; samplers whose certificates show
another class than the stated one are named, and the exit status is 1.
"""

import pathlib
import sys

from absl import app, flags

_SAMPLES = flags.DEFINE_integer("samples", 2**14, "Samples per setting, an even number.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the draws.")
_PAGE = flags.DEFINE_string("page", None, "A Markdown page with the markers of the table.")


def main(argv: list[str]) -> None:
    """Measures, prints or writes, and complains."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    from mdm_jax.evaluation import sampler_certificates as certificates
    from mdm_jax.evaluation.cache_certificates import CACHES, measure_cache
    from mdm_jax.evaluation.wrapper_certificates import measure_wrapper, wrapper_cases
    from mdm_jax.markdown import fill_between_markers

    size = {"samples": _SAMPLES.value, "seed": _SEED.value}
    measured = list(certificates.measure_all(**size))
    measured += [measure_wrapper(*case, **size) for case in wrapper_cases()]
    measured += [measure_cache(name, **size) for name in CACHES]
    table = certificates.markdown(measured, _SAMPLES.value)
    if _PAGE.value is None:
        print(table)
    else:
        fill_between_markers(pathlib.Path(_PAGE.value), "certificates", table)
    wrong = [one for one in measured if one.found != one.stated]
    for one in wrong:
        print(
            f"{one.name} ({one.process}): stated {one.stated}, found {one.found}", file=sys.stderr
        )
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    app.run(main)
