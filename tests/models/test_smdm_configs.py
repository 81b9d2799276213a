"""SMDM's ladder: every size, its parameters against the published ones, and its FLOPs."""

import jax
import jax.numpy as jnp
import pytest

from mdm_jax.models.flops import flops_per_token
from mdm_jax.models.smdm import SMDM
from mdm_jax.models.smdm_configs import (
    SMDM_SIZES,
    SMDMConfig,
    smdm_parameter_count,
)

# Published sizes: layers, heads, width, parameters without embeddings, of the masked model, and of
# the autoregressive one, whose embedding has no mask row.
PUBLISHED = {
    "6M": (6, 4, 256, 6_294_784, 22_679_040, 22_678_784),
    "19M": (8, 6, 384, 18_880_896, 43_457_280, 43_456_896),
    "34M": (8, 8, 512, 33_563_136, 66_331_648, 66_331_136),
    "48M": (9, 9, 576, 47_786_688, 84_651_264, 84_650_688),
    "66M": (10, 10, 640, 65_549_440, 106_510_080, 106_509_440),
    "85M": (13, 10, 640, 85_214_080, 126_174_720, 126_174_080),
    "75M": (16, 8, 640, 75_387_520, 116_348_160, 116_347_520),
    "113M": (12, 12, 768, 113_265_408, 162_418_176, 162_417_408),
    "142M": (15, 12, 768, 141_581_568, 190_734_336, 190_733_568),
    "170M": (18, 12, 768, 169_897_728, 219_050_496, 219_049_728),
    "180M": (14, 14, 896, 179_856_768, 237_201_664, 237_200_768),
    "206M": (16, 14, 896, 205_550_464, 262_895_360, 262_894_464),
    "231M": (18, 14, 896, 231_244_160, 288_589_056, 288_588_160),
    "268M": (16, 16, 1024, 268_469_248, 334_006_272, 334_005_248),
    "302M": (18, 16, 1024, 302_027_776, 367_564_800, 367_563_776),
    "336M": (20, 16, 1024, 335_586_304, 401_123_328, 401_122_304),
    "472M": (18, 10, 1280, 471_906_560, 553_827_840, 553_826_560),
    "551M": (21, 10, 1280, 550_557_440, 632_478_720, 632_477_440),
    "571M": (18, 11, 1408, 571_001_728, 661_115_136, 661_113_728),
    "629M": (24, 10, 1280, 629_208_320, 711_129_600, 711_128_320),
    "666M": (21, 11, 1408, 666_168_448, 756_281_856, 756_280_448),
    "717M": (19, 12, 1536, 717_285_888, 815_591_424, 815_589_888),
    "761M": (24, 11, 1408, 761_335_168, 851_448_576, 851_447_168),
    "831M": (22, 12, 1536, 830_541_312, 928_846_848, 928_845_312),
    "944M": (25, 12, 1536, 943_796_736, 1_042_102_272, 1_042_100_736),
    "1028M": (20, 14, 1792, 1_027_677_952, 1_142_367_744, 1_142_365_952),
    "1233M": (24, 14, 1792, 1_233_213_184, 1_347_902_976, 1_347_901_184),
    "1476M": (22, 16, 2048, 1_476_487_168, 1_607_561_216, 1_607_559_168),
    "1678M": (25, 16, 2048, 1_677_826_048, 1_808_900_096, 1_808_898_048),
    "2121M": (28, 17, 2176, 2_121_393_280, 2_260_659_456, 2_260_657_280),
}


def count(config):
    """The number of parameters that initialization makes, and their dtypes."""
    tokens = jnp.zeros((1, 4), jnp.int32)
    leaves = jax.tree.leaves(jax.eval_shape(SMDM(config).init, jax.random.key(0), tokens))
    assert {leaf.dtype.name for leaf in leaves} == {"float32"}
    return sum(leaf.size for leaf in leaves)


def test_the_ladder_is_the_published_one():
    assert SMDM_SIZES.keys() == PUBLISHED.keys() and len(SMDM_SIZES) == 30
    for size, (layers, heads, width, *_) in PUBLISHED.items():
        config = SMDMConfig.from_size(size)
        assert (config.layers, config.heads, config.width) == (layers, heads, width), size
        assert config.head_dim == {"75M": 80}.get(size, 64 if width <= 1024 else 128), size


@pytest.mark.parametrize("size", PUBLISHED)
def test_parameter_counts_are_the_published_ones(size):
    *_, body, masked, autoregressive = PUBLISHED[size]
    for causal, total in ((False, masked), (True, autoregressive)):
        config = SMDMConfig.from_size(size, causal=causal)
        assert smdm_parameter_count(config, embeddings=False) == body
        assert smdm_parameter_count(config) == total == count(config)


def test_no_two_sizes_share_the_shapes_of_their_weights():
    # Heads cannot be read off a checkpoint: its size must be recognized by everything else.
    shapes = {(s["layers"], s["width"], s["hidden"]) for s in SMDM_SIZES.values()}
    assert len(shapes) == 30


@pytest.mark.parametrize("fields", [{"groups": 2}, {"groups": 1, "hidden": 20}, {"causal": True}])
def test_the_closed_form_counts_what_init_makes(fields):
    base = {"vocab_size": 11, "width": 16, "layers": 3, "heads": 4, "hidden": 40}
    config = SMDMConfig(**(base | fields))
    assert count(config) == smdm_parameter_count(config)


def test_flops_are_two_per_weight_and_four_widths_per_key_and_layer():
    config = SMDMConfig.from_size("170M")
    norms = (2 * config.layers + 1) * config.width
    weights = smdm_parameter_count(config) - norms - config.num_ids * config.width
    assert flops_per_token(config, 2048, attention=False) == 2 * weights
    inside = flops_per_token(config, 2048) - 2 * weights
    assert inside == 18 * 2048 * 4 * 768
    causal = SMDMConfig.from_size("170M", causal=True)
    assert flops_per_token(causal, 5) - 2 * weights == 18 * 3 * 4 * 768  # 3 keys on average


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"width": 0}, "width must be a positive int, got 0"),
        ({"layers": 2.0}, "layers must be a positive int, got 2.0"),
        ({"vocab_size": True}, "vocab_size must be a positive int, got True"),
        ({"heads": 3}, "multiple of 2 \\* heads"),
        ({"groups": 3}, "groups must divide heads=4"),
        ({"groups": -1}, "groups must divide heads=4"),
        ({"groups": 8}, "groups must divide heads=4"),
        ({"dtype": "float16"}, "dtype must be one of"),
        ({"remat": "all"}, "remat must be one of"),
    ],
)
def test_impossible_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        SMDMConfig(**({"width": 16, "layers": 2, "heads": 4, "hidden": 40} | fields))


def test_an_unknown_size_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"one of \('6M', .*'2121M'\), got '7B'"):
        SMDMConfig.from_size("7B")
