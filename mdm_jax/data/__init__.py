"""Text in, batches out: documents, tokenizers, packing, and batches as a function of the step.

    documents = data.python_documentation()
    train, held_out = data.split(documents)
    packed = data.pack(train, data.ByteTokenizer(), length=256)
    batches = data.Batches(packed, batch_size=64, seed=0)
    batches(step)        # {"tokens": int32[64, 256], "where": bool[64, 256]}

Everything here is NumPy; nothing here imports JAX or touches a device. (Grain, which shuffles,
does import JAX for its tree functions, but starts no backend.)
"""

from mdm_jax.data.baselines import (
    bigram_conditional_entropy,
    bigram_cross_entropy,
    unigram_cross_entropy,
    unigram_entropy,
    xz_bits_per_byte,
)
from mdm_jax.data.batches import Batches, evaluation_batches
from mdm_jax.data.packing import Packed, check_ids, evenly_spaced, pack
from mdm_jax.data.sources import Documents, in_memory, python_documentation, split, text_files
from mdm_jax.data.tokenizer_files import JsonTokenizer
from mdm_jax.data.tokenizers import ByteTokenizer, Tokenizer

__all__ = [
    "Batches",
    "ByteTokenizer",
    "Documents",
    "JsonTokenizer",
    "Packed",
    "Tokenizer",
    "bigram_conditional_entropy",
    "bigram_cross_entropy",
    "check_ids",
    "evaluation_batches",
    "evenly_spaced",
    "in_memory",
    "pack",
    "python_documentation",
    "split",
    "text_files",
    "unigram_cross_entropy",
    "unigram_entropy",
    "xz_bits_per_byte",
]
