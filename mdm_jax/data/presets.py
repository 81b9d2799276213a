"""Published ways to make windows of documents, by name, and the ids they put in."""

import dataclasses
from collections.abc import Mapping

from mdm_jax.data.packers import Packing, SpecialIds
from mdm_jax.data.tokenizers import Tokenizer

_BEGIN = ("[CLS]", "<s>", "<|begin_of_text|>", "[BOS]")
_FRAMED = Packing(frame=True, group=1000, drop=True)

# What each leaves out, and where this differs from the published code, is in docs/data.md.
PRESETS: Mapping[str, Packing] = {
    "joined": Packing(),
    "separate": Packing(layout="apart"),
    "mdlm_owt": _FRAMED,  # MDLM, SEDD, Duo and BD3-LM, on all corpora but LM1B
    "mdlm_lm1b": Packing(layout="single", ends=False, frame=True, pad="pad"),
    "duo_lm1b_wrap": dataclasses.replace(_FRAMED, end_is_begin=True),
    "esolm_owt": Packing(group=1000, drop=True),
    "md4_owt": Packing(drop=True),
    "smdm": Packing(skip=1, pad="begin"),
    "scaling": Packing(drop=True),
}


def packing_preset(name: str) -> Packing:
    """Returns the packing of a name.

    Raises:
        ValueError: if it is none of `PRESETS`, which the message lists.

    Examples:
        >>> packing_preset("mdlm_owt")
        Packing(layout='joined', ends=True, frame=True, group=1000, drop=True, ...)
    """
    if name not in PRESETS:
        raise ValueError(f"unknown packing {name!r}: expected one of {list(PRESETS)}")
    return PRESETS[name]


def special_ids_of(tokenizer: Tokenizer, packing: Packing) -> SpecialIds:
    """Returns the ids that a packing takes from a tokenizer.

    The beginning is ``[CLS]``, ``<s>``, ``<|begin_of_text|>`` or ``[BOS]``, whichever the tokenizer
    has, and else its end, as in GPT-2's vocabulary, where one token is both. Padding is never
    scored; without a padding token it is made of the end.

    Examples:
        >>> from mdm_jax.data import ByteTokenizer
        >>> special_ids_of(ByteTokenizer(), packing_preset("mdlm_owt"))
        SpecialIds(begin=0, end=0, pad=0)
    """
    special = tokenizer.special_ids
    begin = next((special[name] for name in _BEGIN if name in special), tokenizer.eos_id)
    end = begin if packing.end_is_begin else tokenizer.eos_id
    pad = {"begin": begin, "end": end}.get(packing.pad)
    if pad is None:
        pad = special.get("[PAD]", special.get("<pad>", end))
    return SpecialIds(begin, end, pad)
