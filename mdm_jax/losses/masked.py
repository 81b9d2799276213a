"""Losses of masked diffusion: the Rao-Blackwellized NELBO and its low-variance relative."""

import jax
import jax.numpy as jnp

from mdm_jax.arrays import Bool, Logits, PerToken, Tokens
from mdm_jax.processes import Masked, Noised
from mdm_jax.processes.base import Process, align


def negative_log_likelihood(
    logits: Logits, targets: Tokens, active: Bool, process: Process
) -> PerToken:
    """Returns -log softmax(logits)[targets] over the data ids, zero and inert where not active.

    Args:
        logits: float[*B, L, W]; cast to float32. Inactive positions may hold NaN: neither the
            value nor the gradient sees them.
        targets: int32[*B, L].
        active: bool[*B, L].
        process: says which columns are data ids.

    Returns:
        float32[*B, L], nats.

    Raises:
        ValueError: if `logits` are narrower than the vocabulary or shaped unlike the tokens.

    Examples:
        >>> from mdm_jax.schedules import Linear
        >>> process = Masked(vocab_size=2, schedule=Linear())
        >>> logits = jnp.array([[0.0, 0.0, 9.0], [jnp.nan, 0.0, 0.0]])  # last column: the mask id
        >>> nll = negative_log_likelihood(
        ...     logits, jnp.array([1, 0]), jnp.array([True, False]), process
        ... )
        >>> nll.round(4).tolist()
        [0.693..., 0.0]
    """
    if logits.shape[:-1] != targets.shape:
        raise ValueError(
            f"logits have shape {logits.shape} and tokens {targets.shape}: expected logits "
            "[*B, L, V] over tokens [*B, L]"
        )
    logits = process.data_logits(jnp.where(active[..., None], logits, 0))
    targets = jnp.where(active, targets, 0)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    nll = jax.nn.logsumexp(logits, axis=-1) - chosen
    return jnp.where(active, nll, 0.0)


def masked_elbo(logits: Logits, noised: Noised, process: Masked) -> PerToken:
    r"""Continuous-time negative ELBO of masked diffusion, per token.

        w(t) 1[x_t = mask] (-log p(x_0)),   w(t) = -alpha'(t) / (1 - alpha(t))

    Averaged over t uniform on [0, 1] and over x_t, the sum over a sequence bounds its negative
    log-likelihood, up to `constant_terms`. This one expression is MDLM's NELBO (eq. 10), MD4's
    continuous-time loss (eq. 5) and SMDM's loss (eq. 3).

    Args:
        logits: float[*B, L, W], W at least `vocab_size`; the mask column is never a prediction.
        noised: the corrupted batch.
        process: the masked process that made it.

    Returns:
        float32[*B, L], nats; zero where nothing was masked and outside `where`.

    Raises:
        ValueError: if `logits` are narrower than the vocabulary or shaped unlike the tokens.

    Examples:
        >>> import mdm_jax as mdm
        >>> process = mdm.Masked(vocab_size=4, schedule=mdm.Linear())
        >>> x = jnp.zeros((1, 3), jnp.int32)
        >>> noised = process.corrupt(jax.random.key(0), x, jnp.array([1.0]))
        >>> masked_elbo(jnp.zeros((1, 3, 4)), noised, process).round(3).tolist()  # log 4
        [[1.386..., 1.386..., 1.386...]]
    """
    active = noised.noised & noised.where
    nll = negative_log_likelihood(logits, noised.targets, active, process)
    weight = process.schedule.weight(align(noised.t, noised.tokens))
    # The weight is infinite at t = 0, where nothing is masked: drop it before the product.
    return jnp.where(active, weight, 0.0) * nll


def masked_cross_entropy(logits: Logits, noised: Noised, process: Masked) -> PerToken:
    """Cross-entropy at the masked positions with weight 1: the low-variance training objective.

    It drops w(t) from `masked_elbo`. It is no likelihood bound: train with it, evaluate with
    `masked_elbo`. As in the published code, the mean is over all tokens in `where`, not over the
    masked ones, which is what `token_sum(loss, noised.where)` does.

    Args:
        logits: float[*B, L, W].
        noised: the corrupted batch.
        process: the masked process that made it.

    Returns:
        float32[*B, L], nats; zero where nothing was masked and outside `where`.

    Raises:
        ValueError: if `logits` are narrower than the vocabulary or shaped unlike the tokens.

    Examples:
        >>> import mdm_jax as mdm
        >>> process = mdm.Masked(vocab_size=4, schedule=mdm.Linear())
        >>> x = jnp.zeros((1, 2), jnp.int32)
        >>> noised = process.corrupt(jax.random.key(0), x, jnp.array([1.0]))
        >>> masked_cross_entropy(jnp.zeros((1, 2, 4)), noised, process).round(3).tolist()
        [[1.386..., 1.386...]]
    """
    active = noised.noised & noised.where
    return negative_log_likelihood(logits, noised.targets, active, process)
