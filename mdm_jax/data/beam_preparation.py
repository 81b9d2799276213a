"""Preparing a corpus with Apache Beam, on more machines than one; needs the `apache-beam` package.

The work is that of `preparation`, unit by unit, so the shards are the same bytes. All workers must
see the corpus, the tokenizer and the output folder under the same paths.
"""

import functools
import os
from collections.abc import Sequence
from pathlib import Path

from mdm_jax.data.manifests import Manifest
from mdm_jax.data.preparation import finish, pending_units, prepare_unit
from mdm_jax.data.recipes import Recipe, make_plan, start_plan


def prepare_with_beam(
    recipe: Recipe,
    folder: str | os.PathLike[str],
    *,
    options: Sequence[str] = (),
    download: bool = False,
) -> Manifest:
    """Prepares a corpus as `prepare` does, in a Beam pipeline.

    Args:
        recipe: the settings.
        folder: where shards and manifest go: a folder that all workers see.
        options: of the pipeline, as on a command line: ``["--runner=DirectRunner"]``.
        download: as in `prepare`.

    Returns:
        The manifest, which is also written.

    Raises:
        ImportError: if apache-beam is not installed.
        ValueError: as `prepare`.

    Examples:
        On a cluster that runs Flink, with a folder that its machines share::

            options = ["--runner=FlinkRunner", "--flink_master=host:8081"]
            prepare_with_beam(recipe, "/shared/prepared", options=options)
    """
    try:
        import apache_beam as beam  # pyright: ignore[reportMissingImports]
        from apache_beam.options import pipeline_options  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            "preparing with Beam needs the apache-beam package: pip install 'mdm-jax[beam]'"
        ) from error
    folder = Path(folder).absolute()
    plan = make_plan(recipe, download=download)
    start_plan(folder, plan)
    work = functools.partial(prepare_unit, plan._replace(units=()), folder)
    with beam.Pipeline(options=pipeline_options.PipelineOptions(list(options))) as pipeline:
        units = pipeline | "units" >> beam.Create(pending_units(plan, folder))
        # Without a shuffle, Beam would fuse the steps and give all units to one worker.
        _ = units | beam.Reshuffle() | "prepare" >> beam.Map(work)
    return finish(plan, folder)
