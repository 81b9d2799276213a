import sys

import numpy as np
import pytest

from mdm_jax import data


def markov_text(length: int) -> tuple[bytes, float]:
    """Text of a two-state Markov chain, and its entropy rate in bits per byte.

    The chain stays with probability 0.9, so single bytes are uniform and pairs are not.
    """
    flips = np.random.default_rng(0).random(length) < 0.1
    states = np.cumsum(flips) % 2
    rate = -0.9 * np.log2(0.9) - 0.1 * np.log2(0.1)
    return np.where(states, b"x", b"y").tobytes(), float(rate)


def test_entropies_of_a_known_source():
    text, rate = markov_text(200_000)
    train, held_out = text[:100_000], text[100_000:]
    assert data.unigram_entropy(text) == pytest.approx(1, abs=1e-3)
    assert data.bigram_conditional_entropy(text) == pytest.approx(rate, abs=0.01)
    assert data.unigram_cross_entropy(train, held_out) == pytest.approx(1, abs=1e-3)
    assert data.bigram_cross_entropy(train, held_out) == pytest.approx(rate, abs=0.01)
    assert rate < data.xz_bits_per_byte(text) < 1


def test_a_models_cost_is_never_below_the_entropy_of_the_text():
    text = b"the cat sat on the mat, and the dog sat on the cat"
    train, held_out = text[:25], text[25:]
    assert data.unigram_cross_entropy(train, held_out) > data.unigram_entropy(held_out)
    assert data.bigram_cross_entropy(train, held_out) > data.bigram_conditional_entropy(held_out)
    # Counted on the text itself, all that is left is the pseudo-count.
    assert data.unigram_cross_entropy(text, text) == pytest.approx(
        data.unigram_entropy(text), abs=0.1
    )


def test_bigrams_predict_forward():
    """After b always comes a; after a, each of b, c and d a third of the time."""
    text = b"abacad" * 1000
    assert data.bigram_cross_entropy(text, b"ba") == pytest.approx(0, abs=0.01)
    assert data.bigram_cross_entropy(text, b"ab") == pytest.approx(np.log2(3), abs=0.01)
    assert data.bigram_conditional_entropy(b"abac") == pytest.approx(2 / 3)  # a: b or c; b: a
    assert data.bigram_conditional_entropy(b"baca") == pytest.approx(0)


def test_a_byte_never_seen_costs_finitely_many_bits():
    assert 10 < data.unigram_cross_entropy(b"a" * 100, b"b") < 20
    assert 5 < data.bigram_cross_entropy(b"a" * 100, b"ab") < 20


@pytest.mark.skipif(sys.version_info[:3] != (3, 11, 7), reason="the text of Python 3.11.7")
def test_the_reference_numbers_of_the_python_topics():
    """Counts of the first 95% of the topics, on the last 5%; figures computed independently."""
    from pydoc_data.topics import topics

    train, held_out = data.split(data.in_memory(["".join(topics.values())]), held_out=0.05)
    (train,), (held_out,) = train.texts, held_out.texts
    assert data.unigram_cross_entropy(train, held_out) == pytest.approx(4.59, abs=0.005)
    assert data.bigram_cross_entropy(train, held_out) == pytest.approx(3.23, abs=0.005)
    assert data.xz_bits_per_byte(held_out) == pytest.approx(2.13, abs=0.005)


@pytest.mark.parametrize("text", [b"", b"a"])
def test_texts_too_short_to_count(text):
    with pytest.raises(ValueError, match=f"at least 2 bytes, got {len(text)}"):
        data.bigram_conditional_entropy(text)
    with pytest.raises(ValueError, match=f"at least 2 bytes, got {len(text)}"):
        data.bigram_cross_entropy(b"ab", text)


def test_an_empty_text_has_no_entropy():
    for measure in (data.unigram_entropy, data.xz_bits_per_byte):
        with pytest.raises(ValueError, match="at least 1 bytes, got 0"):
            measure(b"")
