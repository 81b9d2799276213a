"""Text in, batches out: documents, tokenizers, packing, and batches as a function of the step.

    documents = data.python_documentation()
    train, held_out = data.split(documents)
    packed = data.pack(train, data.ByteTokenizer(), length=256)
    batches = data.Batches(packed, batch_size=64, seed=0)
    batches(step)        # {"tokens": int32[64, 256], "where": bool[64, 256]}

Corpora that do not fit in memory are prepared first, and then read window by window:

    data.prepare(data.Recipe("jsonl:corpus/*.jsonl.gz", "gpt2/tokenizer.json", 1024), "prepared")
    batches = data.Batches(data.PreparedWindows("prepared", "train"), batch_size=64, seed=0)

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
from mdm_jax.data.detokenizers import DETOKENIZERS, detokenize
from mdm_jax.data.gpt2_files import Gpt2FilesTokenizer
from mdm_jax.data.manifests import Manifest, read_manifest
from mdm_jax.data.mask_ids import mask_id_for
from mdm_jax.data.named_tokenizers import open_tokenizer, tokenizer_hash
from mdm_jax.data.packing import Packed, Windows, check_ids, evenly_spaced, pack, sample_windows
from mdm_jax.data.preparation import prepare, verify
from mdm_jax.data.prepared import Mixture, PreparedWindows, open_prepared
from mdm_jax.data.presets import PRESETS
from mdm_jax.data.read_ahead import ReadAhead
from mdm_jax.data.recipes import Recipe
from mdm_jax.data.sentencepiece_files import SentencePieceTokenizer
from mdm_jax.data.sources import Documents, in_memory, python_documentation, split, text_files
from mdm_jax.data.tiktoken_files import GPT2_PATTERN, TiktokenTokenizer
from mdm_jax.data.tokenizer_files import JsonTokenizer
from mdm_jax.data.tokenizers import ByteTokenizer, CharTokenizer, Tokenizer

__all__ = [
    "DETOKENIZERS",
    "GPT2_PATTERN",
    "PRESETS",
    "Batches",
    "ByteTokenizer",
    "CharTokenizer",
    "Documents",
    "Gpt2FilesTokenizer",
    "JsonTokenizer",
    "Manifest",
    "Mixture",
    "Packed",
    "PreparedWindows",
    "ReadAhead",
    "Recipe",
    "SentencePieceTokenizer",
    "TiktokenTokenizer",
    "Tokenizer",
    "Windows",
    "bigram_conditional_entropy",
    "bigram_cross_entropy",
    "check_ids",
    "detokenize",
    "evaluation_batches",
    "evenly_spaced",
    "in_memory",
    "mask_id_for",
    "open_prepared",
    "open_tokenizer",
    "pack",
    "prepare",
    "python_documentation",
    "read_manifest",
    "sample_windows",
    "split",
    "text_files",
    "tokenizer_hash",
    "unigram_cross_entropy",
    "unigram_entropy",
    "verify",
    "xz_bits_per_byte",
]
