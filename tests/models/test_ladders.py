"""Published sizes have the published numbers of parameters and FLOPs."""

import jax
import jax.numpy as jnp
import pytest

from mdm_jax.models import DiT, flops_per_token, parameter_count
from mdm_jax.models.ladders import PUBLISHED, SCALING_LADDER, published_config, training_steps

# The study's JSON files: parameters without the input table (of a total printed with five or six
# digits), forward GFLOP over 2048 tokens, and steps at 1e19 FLOPs and 256 sequences a step.
STUDY = {
    "6M": (14_258_144, 53.03, 245_555),
    "19M": (29_024_216, 108.60, 119_897),
    "34M": (44_963_288, 170.57, 76_337),
    "48M": (58_543_724, 222.75, 58_455),
    "66M": (74_878_160, 285.81, 45_557),
    "75M": (107_368_360, 406.82, 32_006),
    "85M": (91_123_360, 346.38, 37_590),
    "113M": (116_989_232, 449.41, 28_973),
    "142M": (140_022_232, 536.60, 24_265),
    "170M": (163_055_232, 623.78, 20_874),
    "180M": (173_656_104, 671.04, 19_403),
    "206M": (194_323_104, 750.13, 17_358),
    "231M": (214_990_104, 829.21, 15_702),
    "268M": (247_237_976, 960.37, 13_558),
    "302M": (274_002_976, 1063.60, 12_242),
    "336M": (300_768_976, 1166.90, 11_158),
    "472M": (413_262_720, 1618.70, 8_044),
    "551M": (475_244_720, 1860.50, 6_998),
    "571M": (493_509_592, 1940.00, 6_711),
    "629M": (537_225_720, 2102.30, 6_193),
    "666M": (568_176_592, 2232.60, 5_832),
    "761M": (642_844_592, 2525.20, 5_156),
    "831M": (698_878_464, 2754.50, 4_727),
    "944M": (787_412_464, 3102.70, 4_196),
    "1233M": (1_016_354_208, 4025.60, 3_234),
    "1476M": (1_208_661_952, 4806.60, 2_708),
    "1678M": (1_364_461_952, 5425.40, 2_399),
    "2121M": (1_708_865_824, 6805.40, 1_913),
}


@pytest.mark.parametrize("name", SCALING_LADDER)
def test_the_ladder_has_the_published_parameters_and_flops(name):
    without_table, gflops, steps = STUDY[name]
    for family in ("scaling-ar", "scaling-duo"):
        config = published_config(family, name)
        total = without_table + config.num_ids * config.width
        digits = 6 if total < 1e9 else 5  # What the study's counter prints.
        assert f"{parameter_count(config):.{digits - 1}e}" == f"{total:.{digits - 1}e}"
    assert 0.9972 < 2048 * flops_per_token(config, 2048, attention=False) / (gflops * 1e9) < 0.9996
    ours = training_steps(config, 1e19, batch=256, length=2048)
    assert 0 <= ours / steps - 1 < 3.5e-3


def test_every_rung_is_listed():
    assert STUDY.keys() == SCALING_LADDER.keys() and len(STUDY) == 28
    heads = {size["width"] // size["heads"] for size in SCALING_LADDER.values()}
    assert heads == {64, 80, 128}


@pytest.mark.parametrize(
    ("family", "size", "count"),
    [
        ("mdlm", "tiny", 80_061_266),
        ("mdlm", "small", 169_627_218),
        ("mdlm", "medium", 424_477_010),
        ("mdlm-ar", "small", 162_246_482),
        ("duo", "small", 169_627_218),
        ("duo-ar", "small", 162_246_482),
        ("esolm", "small", 169_627_218),
        ("bd3lm", "small", 169_627_218),
    ],
)
def test_gpt2_vocabulary_models_have_the_published_parameters(family, size, count):
    assert parameter_count(published_config(family, size)) == count


def test_the_study_s_largest_model_with_the_nemotron_vocabulary():
    config = published_config("scaling-duo", "2121M", num_ids=131_072)
    total, table = parameter_count(config), config.num_ids * config.width
    assert [round(n / 1e9, 3) for n in (total, total - table, total - 2 * table)] == [
        2.210, 1.924, 1.639,
    ]  # fmt: skip


@pytest.mark.parametrize("family", PUBLISHED)
def test_init_makes_what_every_size_counts(family):
    for size in PUBLISHED[family].sizes:
        config = published_config(family, size, remat="dots")
        shapes = jax.eval_shape(DiT(config).init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
        assert sum(x.size for x in jax.tree.leaves(shapes)) == parameter_count(config), size


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"family must be one of .*'mdlm'.*got 'gpt'"):
        published_config("gpt", "small")
    with pytest.raises(ValueError, match=r"sizes of mdlm are .*'tiny'.*got '6M'"):
        published_config("mdlm", "6M")
    with pytest.raises(ValueError, match="one step costs"):
        training_steps(published_config("mdlm", "small"), 1e9, batch=1, length=1024)
