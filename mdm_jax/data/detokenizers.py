r"""The rewriting that published evaluations do to tokenized corpora before they tokenize them anew.

Penn Treebank, WikiText and LM1B are distributed with spaces around their punctuation. Perplexities
compare only between runs that undo this in the same way, so the rules are the published ones, in
their order, also where a rule is odd: a number written ``N`` becomes a 1.
"""

import re
from collections.abc import Callable, Mapping

Rules = tuple[tuple[str, str], ...]  # regular expressions and what replaces them, in order


def _words(*pairs: tuple[str, str]) -> Rules:
    """Rules that replace words as they stand."""
    return tuple((re.escape(old), new.replace("\\", r"\\")) for old, new in pairs)


_WIKITEXT: Rules = (
    *_words(("s '", "s'"), (" @-@ ", "-"), (" @,@ ", ","), (" @.@ ", ".")),
    *_words(*((f" {mark} ", f"{mark} ") for mark in ":;.!?,")),
    (r"\(\s*([^\)]*?)\s*\)", r"(\1)"),
    (r"\[\s*([^\]]*?)\s*\]", r"[\1]"),
    (r"\{\s*([^}]*?)\s*\}", r"{\1}"),
    (r"\"\s*([^\"]*?)\s*\"", r'"\1"'),
    (r"'\s*([^']*?)\s*'", r"'\1'"),
    *_words(("= = = =", "===="), ("= = =", "==="), ("= =", "==")),
    *_words((" ° ", "°"), (" \n", "\n"), ("\n ", "\n"), (" N ", " 1 "), (" 's", "'s")),
)
_PTB: Rules = (
    *_words((" 's", "'s"), ("s ' ", "s' "), (" n't", "n't"), (" \n ", "\n"), ("\\/", "/")),
    *(10 * _words((" N ", " 1 "))),  # each pass leaves every second of a row of them
    *_words(("$ 1", "$1"), ("# 1", "#1"), ("<unk>", "?")),
)
_LM1B: Rules = (
    *_words(("http : / / ", "http://"), ("https : / / ", "https://")),
    (r" '(\w+)", r"'\1"),
    (r" (\w+) \. ", r" \1. "),
    (r" (\w+) \.$", r" \1."),
    *_words((" ? ", "? ")),
    (r" \?$", "?"),
    *_words((" ! ", "! ")),
    (r" !$", "!"),
    *_words((" , ", ", "), (" : ", ": "), (" ; ", "; "), (" / ", "/")),
    (r'" ([^"]+) "', r'"\1"'),
    (r"' ([^']+) '", r"'\1'"),
    (r"\( ([^()]+) \)", r"(\1)"),
    (r"\[ ([^\[\]]+) \]", r"[\1]"),
    *_words(("$ ", "$"), ("£ ", "£")),
)


def _rewrites(rules: Rules) -> Callable[[str], str]:
    compiled = [(re.compile(pattern), new) for pattern, new in rules]

    def rewrite(text: str) -> str:
        for pattern, new in compiled:
            text = pattern.sub(new, text)
        return text

    return rewrite


def _lambada(text: str) -> str:
    return "\n" + text.replace("\u201c", '"').replace("\u201d", '"').strip()


DETOKENIZERS: Mapping[str, Callable[[str], str]] = {
    "none": lambda text: text,
    "wikitext": _rewrites(_WIKITEXT),
    "ptb": _rewrites(_PTB),
    "lm1b": _rewrites(_LM1B),
    "lambada": _lambada,
    "scientific_papers": _rewrites(_WIKITEXT + _LM1B),
}


def detokenize(name: str, text: bytes) -> bytes:
    r"""Returns a document with the spaces of a tokenized corpus taken out.

    Args:
        name: one of `DETOKENIZERS`; "none" leaves every byte as it is.
        text: the document; bytes that are not UTF-8 are read as U+FFFD.

    Raises:
        ValueError: if there is no such detokenizer.

    Examples:
        >>> detokenize("wikitext", b"a well @-@ known fact ( so they say ) , of 1 @,@ 000")
        b'a well-known fact (so they say), of 1,000'
        >>> detokenize("lm1b", b'it is " so " , he said .')
        b'it is "so", he said.'
    """
    if name not in DETOKENIZERS:
        raise ValueError(f"unknown detokenizer {name!r}: expected one of {list(DETOKENIZERS)}")
    if name == "none":
        return text
    return DETOKENIZERS[name](text.decode(errors="replace")).encode()
