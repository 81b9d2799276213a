r"""Prepares a corpus for training: shards of windows of tokens, and a manifest.

    python launch/prepare_data.py --corpus='jsonl:corpus/*.jsonl.gz' --length=1024 \
        --tokenizer=gpt2/tokenizer.json --packing=mdlm_owt --out=prepared/corpus --workers=8
    python launch/prepare_data.py --corpus=tfds:lm1b@train --held_out=0 \
        --held_out_corpus=tfds:lm1b@test --tokenizer=bert/tokenizer.json --length=128 \
        --packing=mdlm_lm1b --detokenizer=lm1b --out=prepared/lm1b
    python launch/prepare_data.py --verify=prepared/corpus
    python launch/prepare_data.py --benchmark=100000000 --tokenizer=byte --length=128 --workers=2

Then train with --config.data.source=prepared --config.data.path=prepared/corpus and the same
tokenizer, length and held_out. The same command goes on after a kill; shards are the same bytes for
any number of workers. docs/data.md lists the kinds of corpora and the packings.
"""

import tempfile
import time
from pathlib import Path

from absl import app, flags, logging

_CORPUS = flags.DEFINE_string(
    "corpus", "", "KIND:PATH; kinds: text, lines, jsonl, parquet, tinyllama; or tfds:NAME@SPLIT."
)
_OUT = flags.DEFINE_string("out", "", "Folder of the shards and the manifest.")
_TOKENIZER = flags.DEFINE_string("tokenizer", "", 'As config.data.tokenizer: "byte", or a path.')
_LENGTH = flags.DEFINE_integer("length", 1024, "Tokens of a window.")
_PACKING = flags.DEFINE_string("packing", "joined", "A preset, see mdm_jax/data/presets.py.")
_DETOKENIZER = flags.DEFINE_string("detokenizer", "none", "See mdm_jax/data/detokenizers.py.")
_HELD_OUT = flags.DEFINE_float("held_out", 0.0125, "Share of the documents to hold out, by hash.")
_HELD_OUT_CORPUS = flags.DEFINE_string("held_out_corpus", "", "Another corpus to hold out.")
_FIELD = flags.DEFINE_string("field", "text", "Of records: the one with the text, as in meta.text.")
_SKIP = flags.DEFINE_string("skip", "", "field=value of records to leave out.")
_DATA_DIR = flags.DEFINE_string("data_dir", "", "Of TFDS: where prepared datasets are.")
_DOWNLOAD = flags.DEFINE_bool("download", False, "Of TFDS: download what is not there.")
_UNIT_MB = flags.DEFINE_integer("unit_mb", 256, "MiB of the corpus in a shard.", lower_bound=1)
_WORKERS = flags.DEFINE_integer("workers", 1, "Processes.", lower_bound=1)
_BEAM = flags.DEFINE_multi_string(
    "beam", [], "Options of an Apache Beam pipeline to run in, such as --runner=DirectRunner."
)
_VERIFY = flags.DEFINE_string("verify", "", "Only check the shards of this folder by their hashes.")
_BENCHMARK = flags.DEFINE_integer("benchmark", 0, "Only measure, on so many bytes of made-up text.")


def main(argv: list[str]) -> None:
    """Runs `mdm_jax.data.prepare`, or what the flags ask for instead."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    logging.set_verbosity(logging.INFO)
    from mdm_jax import data

    if _VERIFY.value:
        print(f"{_VERIFY.value}: all shards are whole\n{_summary(data.verify(_VERIFY.value))}")
        return
    if not _TOKENIZER.value or not (_BENCHMARK.value or (_CORPUS.value and _OUT.value)):
        raise app.UsageError("--corpus, --tokenizer and --out are needed")
    recipe = data.Recipe(
        corpus=_CORPUS.value,
        tokenizer=_TOKENIZER.value,
        length=_LENGTH.value,
        packing=_PACKING.value,
        detokenizer=_DETOKENIZER.value,
        held_out=_HELD_OUT.value,
        held_out_corpus=_HELD_OUT_CORPUS.value,
        field=_FIELD.value,
        skip=_SKIP.value,
        data_dir=_DATA_DIR.value,
        unit_bytes=_UNIT_MB.value * 2**20,
    )
    if _BENCHMARK.value:
        from mdm_jax.data.throughput import table

        with tempfile.TemporaryDirectory() as folder:
            print(table(recipe, Path(folder), _BENCHMARK.value, _WORKERS.value))
        return
    started = time.perf_counter()
    if _BEAM.value:
        from mdm_jax.data.beam_preparation import prepare_with_beam

        manifest = prepare_with_beam(
            recipe, _OUT.value, options=_BEAM.value, download=_DOWNLOAD.value
        )
    else:
        manifest = data.prepare(
            recipe, _OUT.value, workers=_WORKERS.value, download=_DOWNLOAD.value
        )
    print(f"{_OUT.value}, in {time.perf_counter() - started:.0f} s\n{_summary(manifest)}")


def _summary(manifest) -> str:
    lines = []
    for side, shards in manifest.shards.items():
        total = {n: manifest.total(side, n) for n in ("windows", "documents", "tokens", "bytes")}
        counts = ", ".join(f"{value:,} {name}" for name, value in total.items())
        lines.append(f"  {side}: {counts}, {len(shards)} shard(s)")
    return "\n".join(lines)


if __name__ == "__main__":
    app.run(main)
