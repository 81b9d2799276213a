r"""MDLM on OpenWebText, with the published hyper-parameters (170M parameters, 524B tokens).

    python launch/train.py --config=configs/mdlm_owt.py --workdir=runs/mdlm_owt \
        --config.data.path='owt/*.txt' --config.data.tokenizer=gpt2/tokenizer.json

Data: OpenWebText as text files, one document per file, and GPT-2's tokenizer.json (50,257 ids; the
mask is id 50,257, which gives the published 169,627,218 parameters). Nothing is downloaded. The
published run frames every window of 1024 with <|endoftext|> and holds out the last 100,000
documents; here documents are packed end to end and held out by hash.

Memory and time: every host reads and tokenizes the whole corpus into its memory at every start, in
one process and with nothing kept on disk: the text, 5 bytes per token, and copies of both while
packing. All of OpenWebText (about 40 GB, 9B tokens) takes well over 100 GB and hours; try a part.

Hardware: written for 64 TPU chips at 8 windows each; on fewer devices raise train.accumulate.

Expected: held-out perplexity at most 23.21, that is 3.14 nats per token (MDLM, table 2; 22.98 in
the re-evaluation by BD3-LM). Not reproduced in this repository.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the config."""
    return ConfigDict(
        {
            "seed": 1,
            "model": {
                "size": "small",
                "width": 0,  # 0 here and in the next three: as the size has it
                "layers": 0,
                "heads": 0,
                "cond_dim": 0,
                "dropout": 0.1,
                "adaln": True,
                "time_conditioning": False,
                "causal": False,
                "dtype": "bfloat16",
                "remat": "none",
                "unroll": 1,
            },
            "objective": {"name": "mdlm", "weighting": "elbo"},
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
            },
            "ema": {"decay": 0.9999, "warmup": True},
            "evaluation": {"batch_size": 512, "max_windows": 4096, "times": 1},
            "checkpoint": {"keep": 3, "keep_every": 100_000},
            "mesh": {"data": -1, "fsdp": 1, "tensor": 1},
        }
    )
