r"""SMDM's masked and autoregressive models: 30 sizes, and the published budgets of FLOPs.

    python launch/train.py --config=configs/smdm.py:170M --workdir=runs/smdm_170M \
        --config.data.path='slimpajama/*.txt' --config.data.tokenizer=llama/tokenizer.json
    python launch/train.py --config=configs/smdm.py:170M-ar-6e18 ...
    python launch/train.py --config=configs/smdm.py:1028M-3.3e21 ...

The option is <size>[-ar][-<budget>]; `OPTIONS` lists them. The budget, 1e20 by default, gives the
steps: C / (6 N B L) with N the parameters outside the embeddings, B = 256 and L = 2048. The sizes
6M to 2121M have the budgets of the scaling study. 1028M (the paper's "1.1B"), masked, has two more:
1.6e21 with B = 384; and 3.3e21 with B = 1024, where one step in a hundred has shorter windows, and
L is their mean length. Other masked models take --config.objective.random_length=0.01 likewise.

The times and the weight are SMDM's, its eps being the smallest time. The learning rate is the
published code's, 2e-4 falling to 2e-5; the paper says 4e-4 and 4e-5. An autoregressive window gives
2047 predictions here and 2048 there; its parameters are drawn from this repository's seed.

Data: SlimPajama as text files, without its GitHub part as there, and Llama 2's tokenizer as a
tokenizer.json or tokenizer.model (32,000 ids; the mask is one past them). Nothing is downloaded.
Every host reads and tokenizes the whole corpus into its memory at every start; try a part.

Hardware: written for 32 chips at 8 windows each; on fewer raise train.accumulate. From 500M on
parameters are spread over mesh.fsdp=8 chips, with model.remat=full and train.loss_chunk=1024:
1028M and 2121M then fit slices of 256 TPU v5e or v6e chips and of 128 v5p, see docs/pods.md.

Expected: the best size of each budget has held-out nats per token of 3.374, 3.261, 3.040, 2.916 and
2.830 for the masked model at 6e18, 1e19, 3e19, 6e19 and 1e20, and 2.846, 2.749, 2.555, 2.447 and
2.379 for the autoregressive one (read off the published figure, to 0.3 %). Not reproduced in this
repository.
"""

from ml_collections import ConfigDict

from configs.base import base, check_option

PARAMETERS = {  # outside the embeddings
    **{"6M": 6_294_784, "19M": 18_880_896, "34M": 33_563_136, "48M": 47_786_688},
    **{"66M": 65_549_440, "75M": 75_387_520, "85M": 85_214_080, "113M": 113_265_408},
    **{"142M": 141_581_568, "170M": 169_897_728, "180M": 179_856_768, "206M": 205_550_464},
    **{"231M": 231_244_160, "268M": 268_469_248, "302M": 302_027_776, "336M": 335_586_304},
    **{"472M": 471_906_560, "551M": 550_557_440, "571M": 571_001_728, "629M": 629_208_320},
    **{"666M": 666_168_448, "717M": 717_285_888, "761M": 761_335_168, "831M": 830_541_312},
    **{"944M": 943_796_736, "1028M": 1_027_677_952, "1233M": 1_233_213_184},
    **{"1476M": 1_476_487_168, "1678M": 1_677_826_048, "2121M": 2_121_393_280},
}
BUDGETS = {"6e18": 256, "1e19": 256, "3e19": 256, "6e19": 256, "1e20": 256}  # batch sizes
LARGE = {"1.6e21": 384, "3.3e21": 1024}

OPTIONS = (
    *(f"{size}{kind}" for size in PARAMETERS for kind in ("", "-ar")),
    *(f"{size}{kind}-{c}" for size in PARAMETERS for kind in ("", "-ar") for c in BUDGETS),
    *(f"1028M-{c}" for c in LARGE),
)


def get_config(option: str = "170M") -> ConfigDict:
    """Returns the config of one of `OPTIONS`."""
    check_option("smdm", option, OPTIONS)
    size, *rest = option.split("-")
    causal = "ar" in rest
    budget = rest[-1] if rest and rest[-1] != "ar" else "1e20"
    batch, length = (BUDGETS | LARGE)[budget], 2048
    short = 0.01 if budget == "3.3e21" else 0.0
    mean_length = length * (1 - short) + (1 + length) / 2 * short
    steps = int(float(budget) / (6 * PARAMETERS[size] * batch * mean_length))

    config = base()
    config.seed = 3407
    config.model.update({"family": "smdm", "size": size, "causal": causal, "adaln": False})
    config.model.attention = "auto"
    if PARAMETERS[size] > 500_000_000:
        config.model.remat = "full"
        config.train.loss_chunk = 1024
        config.mesh.fsdp = 8
    if causal:
        config.objective.name = "ar"
    else:
        config.objective.update({"name": "mdlm", "min_time": 1e-3, "random_length": short})
    config.schedule.name = "linear"
    config.data.length = length
    config.train.update({"steps": steps, "batch_size": batch})
    config.optimizer.update(
        {
            **{"learning_rate": 2e-4, "min_learning_rate": 2e-5, "schedule": "cosine"},
            **{"warmup": max(100, steps // 100), "b2": 0.95, "weight_decay": 0.1},
        }
    )
    config.ema.decay = 0.0
    return config
