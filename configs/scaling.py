r"""The scaling study of masked, uniform, Eso-LM and autoregressive models: its runs, and its 1.7B.

    python launch/train.py --config=configs/scaling.py:duo-170M-1e19 --workdir=runs/duo_170M \
        --config.data.path='slimpajama/*.txt' --config.data.tokenizer=llama/tokenizer.json
    python launch/train.py --config=configs/scaling.py:mdlm-1.7B-phase1 --workdir=runs/phase1 ...
    python launch/train.py --config=configs/scaling.py:mdlm-1.7B-phase2 --workdir=runs/phase2 \
        --config.train.start_from=runs/phase1 ...

The option is <family>-<size>[-<budget>], the family being ar, mdlm, duo or esolm, and the budget,
1e20 by default, FLOPs that give the study's number of steps (they count no attention products);
`OPTIONS` lists them. mdlm descends the low-variance loss; the study's other MDLM is
--config.objective.weighting=elbo. esolm is variant B with alpha_0 = 1, of low variance too. duo
draws the mask as noise like any other id, as the study does (the study also keeps its logit at
-1e6; here it is a logit like any other). The study's autoregressive model embeds the mask as well,
unused; this one has no such row. All have adaLN.

The 1.7B models (size 2121M) have two phases. The published first one is planned for 1,280,000 steps
and stopped after 500,000: stop it by hand, the learning rate follows the plan. One in a hundred
micro-batches is shortened in mdlm, in esolm, and in the second phase of duo: here in mdlm alone,
where it is a whole step; the others have no such option.

Data: for the study SlimPajama as text files and Llama 2's tokenizer (32,000 ids, the mask is id
32,000); for 1.7B a corpus and a tokenizer of 131,072 ids that are not public in this form, whose id
3 is the mask: another one takes --config.objective.mask_id=-1. Nothing is downloaded. Every host
reads and tokenizes the whole corpus into its memory at every start; try a part.

Hardware: for the study written for 32 chips at 8 windows each (published: 8 GPUs, 32 windows each).
The 1.7B runs are set for 256 TPU v5e or v6e chips at 4 windows, or 128 v5p at 8 (published: 128
chips at 2 windows, four times a step, which gives the same numbers): parameters over mesh.fsdp=8,
model.remat=full, train.loss_chunk=1024. docs/pods.md has what they take; on fewer chips raise
train.accumulate.

Expected: the best size of each budget has held-out nats per token, at 6e18, 1e19, 3e19, 6e19 and
1e20, of 2.857, 2.750, 2.543, 2.433, 2.364 (ar); 3.376, 3.245, 3.042, 2.921, 2.826 (mdlm); 3.543,
3.420, 3.165, 3.030, 2.938 (duo); 3.60, 3.468, 3.228, 3.090, 3.010 (esolm), read off the published
figure, to 1 or 2 %. Not reproduced in this repository.
"""

from ml_collections import ConfigDict

from configs.base import base, check_option

STEPS = {  # of 256 windows of 2048, for 1e21 FLOPs; budgets are shares of it
    **{"6M": 24_555_563, "19M": 11_989_718, "34M": 7_633_718, "48M": 5_845_575, "66M": 4_555_795},
    **{"75M": 3_200_625, "85M": 3_759_095, "113M": 2_897_318, "142M": 2_426_563, "170M": 2_087_413},
    **{
        "180M": 1_940_395,
        "206M": 1_735_818,
        "231M": 1_570_268,
        "268M": 1_355_818,
        "302M": 1_224_225,
    },
    **{"336M": 1_115_845, "472M": 804_405, "551M": 699_855, "571M": 671_175, "629M": 619_363},
    **{"666M": 583_213, "761M": 515_637, "831M": 472_713, "944M": 419_663, "1233M": 323_455},
    **{"1476M": 270_895, "1678M": 239_995, "2121M": 191_332},
}
BUDGETS = {"6e18": 6, "1e19": 10, "3e19": 30, "6e19": 60, "1e20": 100}
PHASES = ("phase1", "phase2")

_LOW_VARIANCE = {"weighting": "cross_entropy", "min_time": 1e-3}
FAMILIES = {
    "ar": {"name": "ar"},
    "mdlm": {"name": "mdlm", **_LOW_VARIANCE},
    "duo": {"name": "duo", "min_time": 1e-3, "noise_over_mask": True, "mask_id": 32_000},
    "esolm": {"name": "esolm", "variant": "B", "alpha_0": 1.0, **_LOW_VARIANCE},
}
OPTIONS = (
    *(f"{family}-{size}" for family in FAMILIES for size in STEPS),
    *(f"{family}-{size}-{c}" for family in FAMILIES for size in STEPS for c in BUDGETS),
    *(f"{family}-1.7B-{phase}" for family in FAMILIES for phase in PHASES),
)


def get_config(option: str = "mdlm-170M") -> ConfigDict:
    """Returns the config of one of `OPTIONS`."""
    check_option("scaling", option, OPTIONS)
    family, size, *rest = option.split("-")
    large = size == "1.7B"
    config = base()
    config.model.update({"size": "2121M" if large else size, "causal": family == "ar"})
    config.model.time_conditioning = family == "duo"
    config.model.attention = "auto"
    config.objective.update(FAMILIES[family])
    config.data.length = 2048
    config.ema.decay = 0.0
    config.optimizer.update({"schedule": "cosine", "b2": 0.95, "weight_decay": 0.1})
    if large:
        _set_large(config, rest[0])
        return config
    steps = STEPS[size] * BUDGETS[rest[0] if rest else "1e20"] // 1000
    config.train.update({"steps": steps, "batch_size": 256})
    config.optimizer.update(
        {"learning_rate": 2e-4, "min_learning_rate": 2e-5, "warmup": max(100, steps // 100)}
    )
    return config


def _set_large(config: ConfigDict, phase: str) -> None:
    """What the 1.7B runs have of their own."""
    first = phase == "phase1"
    config.train.update({"steps": 1_280_000 if first else 350_000, "batch_size": 1024})
    # What fits 16 GB of a v5e chip at 4 windows: see docs/pods.md.
    config.model.remat = "full"
    config.train.loss_chunk = 1024
    config.mesh.fsdp = 8
    config.optimizer.update({"learning_rate": 4e-4 if first else 3e-4, "warmup": 2000})
    config.optimizer.min_learning_rate = 1e-4 if first else 4e-5
    if config.objective.name != "ar":
        config.objective.mask_id = 3
    if config.objective.name == "mdlm":
        config.objective.random_length = 0.01
