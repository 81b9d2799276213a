"""How well a trained model predicts held-out text, and what simple models make of the same text."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from tqdm.auto import tqdm

import mdm_jax as mdm
from mdm_jax import data
from mdm_jax.evaluation.bound import evaluate_bound
from mdm_jax.evaluation.samples import TextModel
from mdm_jax.evaluation.text_models import next_token_nats

_LOOKED_AT = 4096  # windows of data that are not in memory, for simple models


class HeldOut(NamedTuple):
    """The bound of a model on a text; for an autoregressive model, its likelihood itself.

    Attributes:
        nats_per_token: upper bound on the mean negative log-likelihood.
        standard_error: of `nats_per_token`, from the spread over windows: how far another sample of
            such text, and of the noise, might be. NaN for a single window.
        noise_error: the part of it that is due to the noise alone, which more samples shrink. 0 for
            an autoregressive model, which draws none; None where it was not measured.
        tokens: scored tokens.
        bytes_per_token: of the text.
    """

    nats_per_token: float
    standard_error: float
    noise_error: float | None
    tokens: int
    bytes_per_token: float

    @property
    def bits_per_byte(self) -> float:
        """The bound in bits per byte of text."""
        return self.nats_per_token / math.log(2) / self.bytes_per_token

    @property
    def bits_per_byte_error(self) -> float:
        """Standard error of `bits_per_byte`."""
        return self.standard_error / math.log(2) / self.bytes_per_token

    def summary(self) -> str:
        """One line with both units."""
        noise = self.noise_error
        share = "" if noise is None else f"; {noise:.4f} nats of the error is the noise"
        return (
            f"{self.nats_per_token:.4f} +- {self.standard_error:.4f} nats per token, "
            f"{self.bits_per_byte:.4f} +- {self.bits_per_byte_error:.4f} bits per byte "
            f"({self.tokens:,} tokens{share})"
        )


def held_out_bound(
    model: TextModel,
    packed: data.Windows,
    *,
    samples: int = 8,
    strata: Literal["auto", "count", "time"] = "auto",
    batch_size: int = 64,
    seed: int = 0,
) -> HeldOut:
    """Bounds the negative log-likelihood of every window with `mdm_jax.nll_bound`.

    Args:
        model: the model.
        packed: held-out windows.
        samples: model calls per window, even; an autoregressive model needs only one.
        strata: "count" stratifies the number of masks (exact counts, masked models only), "time"
            the time; "auto" takes "count" where it fits.
        batch_size: windows per model call.
        seed: of the noise.

    Returns:
        `HeldOut`.

    Raises:
        ValueError: if `samples` is odd or below 2, nothing is scored, or attention must keep the
            documents of a window apart.
        TypeError: if `strata` is "count" and the process is not masked.

    Examples:
        >>> flat = TextModel(
        ...     Partial(lambda tokens, t: jnp.zeros((*tokens.shape, 256))),
        ...     mdm.Masked(256, mdm.Linear()),
        ...     data.ByteTokenizer(),
        ... )
        >>> packed = data.pack(data.in_memory(["some text"]), data.ByteTokenizer(), length=10)
        >>> round(held_out_bound(flat, packed, samples=2).nats_per_token / math.log(256), 4)
        1.0
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: expected at least one window")
    batch_size = min(batch_size, len(packed))
    logits_fn = model.logits_fn
    logits_fn = logits_fn if isinstance(logits_fn, Partial) else Partial(logits_fn)
    key, rows = jax.random.key(seed), []
    batches = data.evaluation_batches(packed, batch_size)
    total = -(-len(packed) // batch_size)
    for index, batch in enumerate(tqdm(batches, total=total, unit="batch", disable=None)):
        if "segments" in batch:
            raise ValueError(
                "these windows have segments, and a model that is called with tokens and a time "
                "would let their documents see each other: use `objective_bound`"
            )
        rows.append(
            _batch_bound(
                jax.random.fold_in(key, index),
                logits_fn,
                batch["tokens"],
                batch["where"],
                process=model.process,
                samples=samples,
                strata=strata,
                first=model.first,
            )
        )
    nats, errors, tokens = (
        np.concatenate([np.asarray(part, np.float64) for part in parts])
        for parts in zip(*rows, strict=True)
    )
    return _summed(nats, errors, tokens, packed.bytes_per_token)


def objective_bound(
    apply: Callable[[Any, Any, None], Any],
    params: Any,
    objective: mdm.Objective,
    packed: data.Windows,
    *,
    constant: float,
    samples: int = 8,
    batch_size: int = 64,
    seed: int = 0,
) -> HeldOut:
    """Bounds the negative log-likelihood with the objective's own estimate, whatever the family.

    For models that are more than ``(tokens, t) -> logits``, such as block diffusion or Eso-LM;
    `held_out_bound` has the smaller variance where it applies.

    Args:
        apply: ``apply(params, inputs, None) -> outputs``.
        params: the model's parameters.
        objective: its `evaluate` is averaged.
        packed: held-out windows.
        constant: nats per token to add, so that the number is a bound.
        samples: noise draws per window.
        batch_size: windows per model call.
        seed: of the noise.

    Returns:
        `HeldOut`, its `noise_error` not measured.

    Raises:
        ValueError: as `mdm_jax.evaluation.bound.evaluate_bound`.

    Examples:
        >>> objective = mdm.autoregressive_objective()
        >>> flat = lambda params, inputs, key: jnp.zeros((*inputs["tokens"].shape, 256))
        >>> packed = data.pack(data.in_memory(["some text"]), data.ByteTokenizer(), length=10)
        >>> bound = objective_bound(flat, None, objective, packed, constant=0.0, samples=1)
        >>> round(bound.nats_per_token / math.log(256), 4)
        1.0
    """
    # An even number of rows, as Eso-LM takes them in pairs; what is added counts for nothing.
    rows = min(batch_size, len(packed) + len(packed) % 2)
    batches = data.evaluation_batches(packed, rows)
    report = evaluate_bound(
        apply, params, objective, batches, seed=seed, samples=samples, constant=constant
    )
    return HeldOut(
        nats_per_token=report.nats_per_token,
        standard_error=report.standard_error,
        noise_error=None,
        tokens=report.tokens,
        bytes_per_token=packed.bytes_per_token,
    )


@partial(jax.jit, static_argnames=("process", "samples", "strata", "first"))
def _batch_bound(key, logits_fn, tokens, where, *, process, samples, strata, first):
    """Nats, their standard error due to noise, and scored tokens of each row: float32[B] each."""
    if process is None:
        nats, scored = next_token_nats(logits_fn, tokens, where, first)
        nats = jnp.sum(nats, axis=-1)
        return nats, jnp.zeros_like(nats), jnp.sum(scored, axis=-1)
    bound = mdm.nll_bound(
        key, logits_fn, process, tokens, where=where, samples=samples, strata=strata
    )
    return bound.nats, bound.standard_error, jnp.sum(where, axis=-1)


def _summed(
    nats: np.ndarray, errors: np.ndarray, tokens: np.ndarray, bytes_per_token: float
) -> HeldOut:
    """Ratio estimate over windows; rows without tokens are padding."""
    real = tokens > 0
    nats, errors, tokens = nats[real], errors[real], tokens[real]
    rows, total = len(tokens), tokens.sum()
    if not rows:
        raise ValueError("there is no token to score: every window is empty, or one token long")
    mean = nats.sum() / total
    spread = np.square(nats - mean * tokens).sum() * rows / (rows - 1) if rows > 1 else math.nan
    return HeldOut(
        nats_per_token=float(mean),
        standard_error=float(np.sqrt(spread) / total),
        noise_error=float(np.sqrt(np.square(errors).sum()) / total),
        tokens=int(total),
        bytes_per_token=bytes_per_token,
    )


def baselines(
    train: data.Windows, held_out: data.Windows, tokenizer: data.Tokenizer
) -> dict[str, float]:
    """Bits per byte of the held-out text under simple models, from worst to best as a rule.

    Of windows that are not in memory, at most 4096 of each side are looked at, evenly spaced.

    Args:
        train: windows the counted models are counted on.
        held_out: windows to score: the same bytes a trained model is scored on.
        tokenizer: ids back to text.

    Returns:
        Name to bits per byte. "counted on the training text" is like for like with a trained
        model; "of the text itself" is what no unigram (bigram) model can beat on this text.

    Examples:
        >>> packed = data.pack(data.in_memory(["abab" * 9]), data.ByteTokenizer(), length=8)
        >>> names = baselines(packed, packed, data.ByteTokenizer())
        >>> names["unigrams of the text itself"] > names["bigrams of the text itself"]
        True
    """
    counted, text = _text(train, tokenizer), _text(held_out, tokenizer)
    return {
        "unigrams counted on the training text": data.unigram_cross_entropy(counted, text),
        "unigrams of the text itself": data.unigram_entropy(text),
        "bigrams counted on the training text": data.bigram_cross_entropy(counted, text),
        "bigrams of the text itself": data.bigram_conditional_entropy(text),
        "xz -9 of the text itself": data.xz_bits_per_byte(text),
    }


def table(bits_per_byte: float, error: float, rivals: Mapping[str, float]) -> str:
    """The model's bits per byte beside those of the baselines, as lines of text.

    Examples:
        >>> print(table(2.5, 0.01, {"unigrams": 4.0}))
        bits per byte of held-out text   (model minus baseline)
          unigrams      4.000   (-1.500, better)
          this model    2.500 +- 0.010
    """
    width = max(map(len, [*rivals, "this model"]))
    lines = ["bits per byte of held-out text   (model minus baseline)"]
    for name, value in rivals.items():
        gap = bits_per_byte - value
        verdict = "better" if gap < -2 * error else "worse" if gap > 2 * error else "a tie"
        lines.append(f"  {name:<{width}}  {value:7.3f}   ({gap:+.3f}, {verdict})")
    lines.append(f"  {'this model':<{width}}  {bits_per_byte:7.3f} +- {error:.3f}")
    return "\n".join(lines)


def _text(windows: data.Windows, tokenizer: data.Tokenizer) -> bytes:
    """The bytes of the real tokens, ends of documents included."""
    in_memory = isinstance(windows, data.Packed)
    packed = windows if in_memory else data.sample_windows(windows, _LOOKED_AT)
    ids = packed.tokens[packed.where]
    if isinstance(tokenizer, data.ByteTokenizer):
        return tokenizer.decode_bytes(ids)  # exact, even where the text is not UTF-8
    return tokenizer.decode(ids).encode()
