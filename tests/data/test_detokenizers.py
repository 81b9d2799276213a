"""The published rewriting rules, each on a line that only it explains."""

import pytest

from mdm_jax.data import DETOKENIZERS, detokenize

CASES = [
    ("wikitext", "the s ' end", "the s' end"),
    ("wikitext", "1 @,@ 000 @.@ 5 well @-@ known", "1,000.5 well-known"),
    ("wikitext", "a : b ; c . d ! e ? f , g", "a: b; c. d! e? f, g"),
    ("wikitext", "( a ) [ b ] { c } \" d \" ' e '", "(a) [b] {c} \"d\" 'e'"),
    ("wikitext", " = = = = H = = = = \n x", " ==== H ====\nx"),
    ("wikitext", "20 ° C , N N times", "20°C, 1 N times"),
    ("wikitext", "dogs 's N of", "dogs's 1 of"),
    ("ptb", "it 's did n't \\/ <unk>", "it's didn't / ?"),
    ("ptb", "a N N N b \n c", "a 1 1 1 b\nc"),
    ("ptb", "$ N million # N", "$1 million # N"),
    ("lm1b", "see http : / / x and https : / / y", "see http://x and https://y"),
    ("lm1b", "he 's here . Now ? Yes ! So , a : b ; c / d", "he's here. Now? Yes! So, a: b; c/d"),
    ("lm1b", '" q " ( r ) [ s ] $ 5 £ 6 ?', '"q" (r) [s] $5 £6?'),
    ("lambada", " \u201cYes\u201d, he said ", '\n"Yes", he said'),
    ("scientific_papers", "a @-@ b , $ 5 .", "a-b, $5."),
    ("none", " as   it , is ", " as   it , is "),
]


@pytest.mark.parametrize(("name", "text", "expected"), CASES)
def test_rules(name, text, expected):
    assert detokenize(name, text.encode()).decode() == expected


def test_every_detokenizer_is_tested():
    assert {name for name, _, _ in CASES} == set(DETOKENIZERS)


def test_bytes_stay_where_nothing_is_rewritten():
    assert detokenize("none", b"\xff") == b"\xff"
    with pytest.raises(ValueError, match=r"unknown detokenizer 'c4': expected one of .*'lm1b'"):
        detokenize("c4", b"")
