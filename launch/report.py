"""Says where the time of a run went, finished or going on: goodput, its parts, speed, MFU.

python launch/report.py --workdir=runs/mine
"""

from absl import app, flags

from mdm_jax.train.summaries import summary

_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.", required=True)


def main(argv: list[str]) -> None:
    """Prints `mdm_jax.train.summaries.summary`."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    print(summary(_WORKDIR.value))


if __name__ == "__main__":
    app.run(main)
