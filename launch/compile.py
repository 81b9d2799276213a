"""Compiles a config's train step for a machine that is not here: does it fit, how fast could it be?

    python launch/compile.py --config=configs/scaling.py:mdlm-1.7B-phase1 --topology=v5e:16x16
    python launch/compile.py --config=configs/smdm.py:1028M --topology=v5p:4x4x8 --fit
    python launch/compile.py --table --records=runs/pods.jsonl --page=docs/pods.md

Needs libtpu (``pip install 'mdm-jax[aot]'``) and no TPU. Any field of the config can be set, as in
launch/train.py. A GPU topology such as h100:8 is lowered and estimated, not compiled. The exit
status is 1 if the plan does not fit.
"""

import json
import os
import pathlib
import re
import sys

from absl import app, flags, logging
from ml_collections import config_flags

# The configs import one another as configs.<name>, which is not installed with the package.
ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

_CONFIG = config_flags.DEFINE_config_file("config", None, "File with the training config.")
_TOPOLOGY = flags.DEFINE_string("topology", "v5e:16x16", "TPU slice, or GPUs as in h100:8.")
_VOCAB = flags.DEFINE_integer("vocab_size", 0, "Ids of the tokenizer; 0: as the recipe has it.")
_FIT = flags.DEFINE_bool("fit", False, "Search micro-batches, remat and mesh for the fastest plan.")
_SAMPLER = flags.DEFINE_bool("sampler", True, "Compile a step of sampling too.")
_JSON = flags.DEFINE_string("json", "", "Write the record to this file.")
_TABLE = flags.DEFINE_bool("table", False, "Compile every plan of docs/pods.md.")
_RECORDS = flags.DEFINE_string("records", "runs/pods.jsonl", "Of --table: where records are kept.")
_PAGE = flags.DEFINE_string("page", "", "Of --table: a Markdown page with the table's markers.")


def _one() -> dict:
    """The record of --config on --topology."""
    from mdm_jax.pods import fitting, plans, reports, topologies

    name = config_flags.get_config_filename(flags.FLAGS["config"])
    vocab_size = _VOCAB.value or plans.vocabulary(name)
    topology = topologies.describe(_TOPOLOGY.value, _CONFIG.value.mesh.get("slices", 1))
    if not _FIT.value:
        return reports.report(_CONFIG.value, vocab_size, topology, sampler=_SAMPLER.value)
    found = fitting.fit(_CONFIG.value, vocab_size, topology, say=print)
    settings = " ".join(f"--config.{name}={x}" for name, x in found.chosen.settings.items())
    print(f"fastest that fits: {settings}\n")
    return found.record


def _all() -> None:
    """Every plan of the docs, printed or put into the page."""
    from mdm_jax.markdown import fill_between_markers
    from mdm_jax.pods import plans, reports

    records = plans.compile_all(
        plans.PLANS,
        pathlib.Path(_RECORDS.value),
        say=lambda line: print(line, flush=True),
        compile_one=lambda plan: plans.compile_plan(plan, ROOT / "configs"),
    )
    table = reports.table(records)
    if _PAGE.value:
        fill_between_markers(pathlib.Path(_PAGE.value), "plans", table)
    else:
        print(table)
    wrong = [r for r in records if r["share"] > reports.LIMIT]
    for record in wrong:
        print(f"{record['plan']} on {record['topology']} {reports.verdict(record)}")
    sys.exit(1 if wrong else 0)


def main(argv: list[str]) -> None:
    """Compiles one plan, or all of them."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}: settings are --config.field=value")
    if (_CONFIG.value is None) != _TABLE.value:
        raise app.UsageError("give either --config or --table")
    logging.set_verbosity(logging.WARNING)
    # Before jax is imported: the compiler runs beside the CPU, asks no metadata server, and shares
    # its lock file with other compilers, as there is no TPU that they could fight for.
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    gpus = re.fullmatch(r"[ah]\d+:(\d+)", _TOPOLOGY.value)
    if gpus:
        count = f"--xla_force_host_platform_device_count={gpus[1]}"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {count}".strip()
    if _TABLE.value:
        _all()
        return
    from mdm_jax.pods import compiling, reports

    try:
        record = _one()
    except (compiling.TooLargeError, ModuleNotFoundError, ValueError) as error:
        sys.exit(f"{_TOPOLOGY.value}: {error}")
    print(reports.text(record))
    if _JSON.value:
        pathlib.Path(_JSON.value).write_text(json.dumps(record, indent=1) + "\n")
    sys.exit(1 if record["compiled"] and record["share"] > reports.LIMIT else 0)


if __name__ == "__main__":
    app.run(main)
