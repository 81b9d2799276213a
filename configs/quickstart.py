"""A byte-level masked diffusion model of Python's own documentation, on a laptop CPU.

    python launch/train.py --config=configs/quickstart.py --workdir=runs/quickstart

The text ships with every Python, so nothing is downloaded. Kill it and run the same command again:
it continues from the last checkpoint, to the same numbers. `make quickstart` runs it and then shows
what the model learned.

Hardware: two CPU cores, about three and a half minutes (1.1M parameters, 4.1M bytes seen).

Expected: see docs/benchmarks.md for the held-out bits per byte and the command that measured them.
The low-variance weighting, the high learning rate and the short average suit a run this short.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the config; every field can be set on the command line (--config.seed=1)."""
    return ConfigDict(
        {
            "seed": 0,
            "model": {
                "size": "tiny",
                "width": 0,  # 0 here and below: as the size has it
                "layers": 0,
                "heads": 0,
                "cond_dim": 0,
                "dropout": 0.0,
                "adaln": True,
                "time_conditioning": False,
                "causal": False,
                "dtype": "float32",
                "remat": "none",
                "unroll": 4,  # no loop over the four layers: faster on a CPU
            },
            "objective": {"name": "mdlm", "weighting": "cross_entropy"},
            "schedule": {
                "name": "log_linear",
                "eps": 1e-3,
                "power": 1.0,
                "sigma_min": 1e-3,
                "sigma_max": 10.0,
            },
            "data": {
                "source": "python_documentation",
                "path": "",
                "tokenizer": "byte",
                "length": 128,
                "held_out": 0.05,
            },
            "train": {
                "steps": 1000,
                "batch_size": 32,
                "accumulate": 1,
                "log_every": 10,
                "eval_every": 500,
                "checkpoint_every": 500,
            },
            "optimizer": {
                "learning_rate": 3e-3,
                "schedule": "cosine",
                "warmup": 100,
                "min_learning_rate": 1e-4,
                "b1": 0.9,
                "b2": 0.95,
                "eps": 1e-8,
                "weight_decay": 0.0,
                "clip": 1.0,
            },
            "ema": {"decay": 0.995, "warmup": True},
            "evaluation": {"batch_size": 64, "max_windows": 256, "times": 1},
            "checkpoint": {"keep": 3, "keep_every": 0},
            "mesh": {"data": -1, "fsdp": 1, "tensor": 1},
        }
    )
