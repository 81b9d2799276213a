"""Loss of uniform-state diffusion: the Duo / UDLM negative ELBO in a stable form."""

import jax
import jax.numpy as jnp

from mdm_jax.arrays import Logits, PerToken
from mdm_jax.processes import Noised, Uniform
from mdm_jax.processes.base import align

# Keeps K alpha / (1 - alpha) and its inverse finite at both ends of time, in float32.
_SMALLEST = 1e-12


def uniform_elbo(logits: Logits, noised: Noised, process: Uniform) -> PerToken:
    r"""Continuous-time negative ELBO of uniform-state diffusion, per token (Duo eq. 5, UDLM).

    With K = V, z = x_t, r = K alpha / (1 - alpha), a_j = log(1 + r p_j) for the model's
    p = softmax(logits) and b_j = log(1 + r [j = x_0]) for the data, the loss is

        (w / r) e^{-b_z} { K / (1 - alpha) (e^{b_z - a_z} - 1) + K (a_z - b_z)
                           - sum_j a_j + log(1 + r) + r [a_z - a_{x_0} - b_z + log(1 + r)] },

    with w = -alpha' / (1 - alpha). It equals the published form term by term, but every
    difference that vanishes as alpha goes to 0 or 1 is taken through log1p and expm1. One
    reduction over the vocabulary (the sum of a_j) and two gathers beyond the softmax.

    Averaged over t and x_t, the sum over a sequence bounds its negative log-likelihood, up to
    `constant_terms`. The bound is tight for the leave-one-out posterior p(x_0,i | z without i),
    not for p(x_0,i | z).

    Args:
        logits: float[*B, L, W], W at least `vocab_size`; columns beyond are ignored. Positions
            outside `where` may hold NaN.
        noised: the corrupted batch.
        process: the uniform process that made it.

    Returns:
        float32[*B, L], nats; zero outside `where`.

    Raises:
        ValueError: if `logits` are narrower than the vocabulary or shaped unlike the tokens.

    Examples:
        >>> import mdm_jax as mdm
        >>> process = mdm.Uniform(vocab_size=4, schedule=mdm.Linear())
        >>> x = jnp.zeros((1, 3), jnp.int32)
        >>> noised = process.corrupt(jax.random.key(0), x, jnp.array([0.5]))
        >>> bool((uniform_elbo(jnp.zeros((1, 3, 4)), noised, process) > 0).all())
        True
    """
    if logits.shape[:-1] != noised.tokens.shape:
        raise ValueError(
            f"logits have shape {logits.shape} and tokens {noised.tokens.shape}: expected logits "
            "[*B, L, V] over tokens [*B, L]"
        )
    size, where = process.vocab_size, noised.where
    logits = process.data_logits(jnp.where(where[..., None], logits, 0))
    z = jnp.where(where, noised.tokens, 0)
    x0 = jnp.where(where, noised.targets, 0)
    t = align(noised.t, noised.tokens)
    noise = jnp.maximum(process.schedule.noise_rate(t), _SMALLEST)
    alpha = jnp.maximum(process.schedule.alpha(t), _SMALLEST)
    ratio = size * alpha / noise

    log_p = jax.nn.log_softmax(logits, axis=-1)
    a_sum = jnp.sum(jnp.log1p(ratio[..., None] * jnp.exp(log_p)), axis=-1)
    a_z = jnp.log1p(ratio * jnp.exp(_at(log_p, z)))
    a_x0 = jnp.log1p(ratio * jnp.exp(_at(log_p, x0)))
    b_x0 = jnp.log1p(ratio)
    b_z = jnp.where(z == x0, b_x0, 0.0)

    flow = size / noise * jnp.expm1(b_z - a_z) + size * (a_z - b_z)
    relative = b_x0 - a_sum + ratio * (a_z - a_x0 - b_z + b_x0)
    # -alpha' / (K alpha): the weight over the ratio, finite at t = 0 where both are not.
    scale = -process.schedule.alpha_prime(t) / (size * alpha)
    return jnp.where(where, scale * jnp.exp(-b_z) * (flow + relative), 0.0)


def _at(log_p: jax.Array, ids: jax.Array) -> jax.Array:
    return jnp.take_along_axis(log_p, ids[..., None], axis=-1)[..., 0]
