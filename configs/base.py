"""What the recipes share: every field of a config, at a value that changes nothing.

A recipe takes this, sets what it uses, and says so in its docstring. It trains nothing as it is:
``model.size`` and ``data.tokenizer`` are the recipe's.
"""

from collections.abc import Collection

from ml_collections import ConfigDict


def base() -> ConfigDict:
    """Returns all fields; `mdm_jax.train.fields.FIELDS` says what they mean."""
    return ConfigDict(
        {
            "seed": 1,
            "model": {
                "family": "dit",
                "size": "small",
                "width": 0,  # 0 here and in the next three: as the size has it
                "layers": 0,
                "heads": 0,
                "cond_dim": 0,
                "dropout": 0.0,
                "adaln": True,
                "time_conditioning": False,
                "causal": False,
                "dtype": "bfloat16",
                "remat": "none",
                "unroll": 1,
                "attention": "xla",
            },
            "objective": {
                "name": "mdlm",
                "weighting": "elbo",
                "noise": "",
                "mask_id": -1,  # one past the data ids
                "noise_over_mask": False,
                "min_time": 0.0,
                "times": "uniform",
                "steps": 0,
                "random_length": 0.0,
                "prepend": -1,
                "alpha_0": 1.0,
                "variant": "",
                "block": 0,
                "low": 0.0,
                "high": 1.0,
                "uniform_share": 0.0,
                "mixing": "",
                "curriculum_steps": 0,
                "temperature_start": 0.0,
                "temperature_end": 0.0,
                "temperature_from": 0,
                "temperature_until": 0,
                "top_k": 0,
                "teacher_every": 0,
                "divergence": "",
            },
            "schedule": {
                "name": "log_linear",
                "eps": 1e-3,
                "power": 1.0,
                "sigma_min": 1e-3,
                "sigma_max": 20.0,
            },
            "data": {
                "source": "text_files",
                "path": "",  # set it on the command line
                "tokenizer": "tokenizer.json",
                "length": 1024,
                "held_out": 0.0125,
            },
            "train": {
                "steps": 1_000_000,
                "batch_size": 512,
                "accumulate": 1,
                "loss_chunk": 0,
                "z_loss": 0.0,
                "skip_above": 0.0,
                "start_from": "",
                "log_every": 100,
                "eval_every": 10_000,
                "checkpoint_every": 5_000,
            },
            "optimizer": {
                "learning_rate": 3e-4,
                "schedule": "constant",
                "warmup": 2500,
                "min_learning_rate": 3e-4,
                "b1": 0.9,
                "b2": 0.999,
                "eps": 1e-8,
                "weight_decay": 0.0,
                "clip": 1.0,
                "moments": "float32",
            },
            "ema": {"decay": 0.9999, "warmup": True},
            "evaluation": {"batch_size": 512, "max_windows": 4096, "times": 1},
            "checkpoint": {"keep": 3, "keep_every": 100_000},
            "mesh": {"data": -1, "fsdp": 1, "tensor": 1, "sequence": 1, "slices": 1},
            "watch": {
                "profile_from": 0,
                "profile_steps": 3,
                "tracker": "",
                "project": "mdm_jax",
                "peak_tflops": 0.0,
            },
        }
    )


def check_option(file: str, option: str, options: Collection[str]) -> None:
    """Checks what follows the colon in ``--config=configs/<file>.py:<option>``.

    Raises:
        ValueError: if it is not one of `options`, which the message lists.
    """
    if option not in options:
        raise ValueError(f"configs/{file}.py:{option}: expected one of {list(options)}")
