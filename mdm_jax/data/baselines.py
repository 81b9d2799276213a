"""What simple models make of a text, in bits per byte: the numbers a trained model has to beat.

The entropies of a text describe that text alone: no unigram (bigram) model does better on it, not
even one that saw it. The cross-entropies are those of a model counted on the training text, like
for like with a trained network. A general-purpose compressor sets the scale.
"""

import numpy as np

# Counts start here, so that a byte not seen in training costs finitely many bits. For bigrams of a
# few hundred kB of English this small value does better than 1 (Laplace).
_PSEUDO_COUNT = 0.01


def unigram_entropy(text: bytes) -> float:
    """Plug-in entropy H(X) of the byte frequencies of `text`, in bits per byte.

    Raises:
        ValueError: If `text` is empty.

    Examples:
        >>> unigram_entropy(b"abcd" * 5)
        2.0
    """
    return _entropy(_unigrams(text))


def bigram_conditional_entropy(text: bytes) -> float:
    """Plug-in conditional entropy H(X2 | X1) of the byte pairs of `text`, in bits per byte.

    Biased low on short texts, where most pairs are seen once or never.

    Raises:
        ValueError: If `text` has fewer than two bytes.

    Examples:
        >>> bigram_conditional_entropy(b"ab" * 5)
        0.0
    """
    pairs = _bigrams(text)
    return _entropy(pairs.ravel()) - _entropy(pairs.sum(axis=1))


def unigram_cross_entropy(train: bytes, held_out: bytes) -> float:
    """Bits per byte of `held_out` under the byte frequencies of `train`.

    Raises:
        ValueError: If either text is empty.

    Examples:
        >>> round(unigram_cross_entropy(b"abcd" * 1000, b"aaaa"), 2)
        2.0
    """
    counts = _unigrams(train) + _PSEUDO_COUNT
    return float(-_unigrams(held_out) @ np.log2(counts / counts.sum()) / len(held_out))


def bigram_cross_entropy(train: bytes, held_out: bytes) -> float:
    """Bits per byte of `held_out`, after its first, under the byte-pair frequencies of `train`.

    Raises:
        ValueError: If either text has fewer than two bytes.

    Examples:
        >>> round(bigram_cross_entropy(b"abacad" * 1000, b"bacad"), 2)
        0.79
    """
    counts = _bigrams(train) + _PSEUDO_COUNT
    logs = np.log2(counts / counts.sum(axis=1, keepdims=True))
    return float(-np.sum(_bigrams(held_out) * logs) / (len(held_out) - 1))


def xz_bits_per_byte(text: bytes) -> float:
    """Bits per byte of `text` compressed by xz at its highest preset, container included.

    Raises:
        ValueError: If `text` is empty.
        ModuleNotFoundError: If this Python was built without `lzma`.

    Examples:
        >>> xz_bits_per_byte(b"a" * 100_000) < 0.02
        True
    """
    import lzma  # here because some Pythons are built without it, and only this needs it

    _require(text, 1)
    return 8 * len(lzma.compress(text, preset=9)) / len(text)


def _require(text: bytes, length: int) -> None:
    if len(text) < length:
        raise ValueError(f"text must have at least {length} bytes, got {len(text)}")


def _unigrams(text: bytes) -> np.ndarray:
    """How often each byte occurs: int64[256]."""
    _require(text, 1)
    return np.bincount(np.frombuffer(text, np.uint8), minlength=256)


def _bigrams(text: bytes) -> np.ndarray:
    """How often byte `j` follows byte `i`: int64[256, 256]."""
    _require(text, 2)
    codes = np.frombuffer(text, np.uint8).astype(np.int64)
    return np.bincount(256 * codes[:-1] + codes[1:], minlength=256 * 256).reshape(256, 256)


def _entropy(counts: np.ndarray) -> float:
    """Entropy in bits of the distribution proportional to `counts` [n]."""
    p = counts[counts > 0] / counts.sum()
    return float(np.sum(p * np.log2(1 / p)))
