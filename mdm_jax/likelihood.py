"""Likelihood bounds of given sequences, with their standard errors."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from mdm_jax import draws, losses
from mdm_jax.arrays import Bool, Key, Logits, Times, Tokens
from mdm_jax.processes import Masked, Noised, Process
from mdm_jax.times import in_stratum


class NLLBound(NamedTuple):
    """Upper bounds on negative log-likelihoods, one per sequence.

    Attributes:
        nats: float32[*B], the Monte Carlo estimate of the bound on -log p(x), in nats per sequence.
        standard_error: float32[*B], its standard error (conservative: strata are compared in
            pairs, so that the variance between neighboring strata is counted as noise).
    """

    nats: jax.Array
    standard_error: jax.Array


def nll_bound(
    key: Key,
    logits_fn: Callable[[Tokens, Times], Logits],
    process: Process,
    tokens: Tokens,
    *,
    where: Bool | None = None,
    samples: int,
    strata: Literal["auto", "count", "time"] = "auto",
) -> NLLBound:
    r"""Estimates the negative ELBO of each sequence from stratified noise.

    "time" draws t stratified over the samples, corrupts, and averages `elbo` plus
    `constant_terms`.

    "count" (masked processes only) stratifies the *number* k of masked tokens instead: uniform on
    1..n for the n tokens in `where`, with weight n / k. Each token gets a uniform score, the k
    smallest are masked, and t is the time at which 1 - alpha(t) is the k-th smallest score: that is
    Beta(k, n - k + 1), the law of t given k, and independent of which tokens they are. The
    expectation is the bound of a schedule that runs from
    alpha = 1 to alpha = 0, without constants. The variance is far smaller than with Bernoulli
    masks, whose 1 / t weights meet random counts. If n divides `samples`, every count is visited
    equally often.

    Args:
        key: a PRNG key.
        logits_fn: ``(tokens int32[*B, L], t float32[*B]) -> logits float[*B, L, V]``.
        process: the process of the model.
        tokens: int32[*B, L], clean sequences.
        where: bool[*B, L], the tokens to score given the others; all by default.
        samples: number of model calls per sequence; even, at least 2.
        strata: "count", "time", or "auto" for "count" where the process is masked.

    Returns:
        `NLLBound` with float32[*B] fields; zero for rows in which `where` is empty.

    Raises:
        ValueError: if `samples` is odd or below 2, or `strata` is unknown.
        ValueError: if shapes do not fit or (outside `jax.jit`) a token in `where` is no data id.
        TypeError: if `strata` is "count" and the process is not masked, or dtypes do not fit.

    Examples:
        >>> import mdm_jax as mdm
        >>> process = mdm.Masked(vocab_size=4, schedule=mdm.LogLinear())
        >>> flat = lambda tokens, t: jnp.zeros((*tokens.shape, 4))
        >>> x = jnp.zeros((1, 8), jnp.int32)
        >>> bound = nll_bound(jax.random.key(0), flat, process, x, samples=8)
        >>> [round(float(v), 3) for v in (bound.nats[0], bound.standard_error[0])]  # 8 log 4
        [11.09, 0.0]
    """
    if samples < 2 or samples % 2:
        raise ValueError(f"samples={samples}: expected an even number, at least 2")
    if strata not in ("auto", "count", "time"):
        raise ValueError(f"strata={strata!r}: expected 'auto', 'count' or 'time'")
    if strata == "count" and not isinstance(process, Masked):
        raise TypeError(f"strata='count' needs a Masked process, not {process!r}: use 'time'")
    if strata == "auto":
        strata = "count" if isinstance(process, Masked) else "time"
    where = jnp.ones_like(tokens, dtype=jnp.bool_) if where is None else where
    process.check_data(tokens, where)
    estimate = _by_count if strata == "count" else _by_time

    def sample(index):
        # One uniform per row and stratum: stratum `index` of `samples` equal parts of [0, 1).
        key_stratum, key_noise = jax.random.split(jax.random.fold_in(key, index))
        jitter = jax.random.uniform(key_stratum, tokens.shape[:-1], jnp.float32)
        u = in_stratum(index, jitter, samples)
        return estimate(key_noise, logits_fn, process, tokens, where, u)

    estimates = jax.lax.map(sample, jnp.arange(samples, dtype=jnp.int32))
    pairs = estimates.reshape(samples // 2, 2, *estimates.shape[1:])
    squares = jnp.sum(jnp.square(pairs[:, 0] - pairs[:, 1]), axis=0)
    return NLLBound(jnp.mean(estimates, axis=0), jnp.sqrt(squares) / samples)


def _by_time(key, logits_fn, process, tokens, where, u) -> jax.Array:
    noised = process.corrupt(key, tokens, u, where=where)
    values = losses.elbo(logits_fn(noised.tokens, noised.t), noised, process)
    scored = jnp.sum(where, axis=-1).astype(jnp.float32)
    return jnp.sum(values, axis=-1) + scored * losses.constant_terms(process)


def _by_count(key, logits_fn, process, tokens, where, u) -> jax.Array:
    n = jnp.sum(where, axis=-1, keepdims=True)
    count = jnp.clip((u[..., None] * n.astype(jnp.float32)).astype(n.dtype), 0, n - 1) + 1
    noised = _with_exact_count(key, process, tokens, where, count)
    nll = losses.masked_cross_entropy(logits_fn(noised.tokens, noised.t), noised, process)
    masked = jnp.maximum(jnp.sum(noised.noised, axis=-1), 1).astype(jnp.float32)
    return n[..., 0].astype(jnp.float32) / masked * jnp.sum(nll, axis=-1)


def _with_exact_count(key, process: Masked, tokens, where, count) -> Noised:
    """Masks the `count` [*B, 1] positions of `where` whose uniform scores are smallest."""
    score = draws.uniform(key, tokens.shape)
    score = jnp.where(where, score, 2.0)
    index = jnp.clip(count - 1, 0, tokens.shape[-1] - 1)
    threshold = jnp.take_along_axis(jnp.sort(score, axis=-1), index, axis=-1)
    noised = where & (score <= threshold)
    noisy_tokens = jnp.where(noised, process.prior(key, tokens), tokens)
    t = process.schedule.inverse_noise_rate(jnp.minimum(threshold[..., 0], 1.0))
    return Noised(noisy_tokens, tokens, jnp.clip(t, 0.0, 1.0), noised, where)
