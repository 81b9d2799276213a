"""Ancestral sampling: walk the reverse process down a time grid."""

from mdm_jax.processes import Process
from mdm_jax.samplers.base import Sampler


def ancestral(process: Process) -> Sampler:
    """Draws x_s from q(x_s | x_t, x_0 ~ model) at every step (MDLM eq. 7, Duo eq. 4, D3PM).

    Exactness: exact in the limit. The step treats positions as independent given x_t, so with T
    steps the law of the samples differs from the model's own by a total variation of O(1 / T).
    Each position decides whether to change before which token to take, so that rare changes keep
    their rate at any T; the last step samples and is not greedy.

    Args:
        process: the process the model was trained with.

    Returns:
        `Sampler` without state. One model call per step.

    Raises:
        TypeError: if `process` is no process.

    Examples:
        >>> import jax, jax.numpy as jnp, mdm_jax as mdm
        >>> process = mdm.Masked(vocab_size=5, schedule=mdm.Linear())
        >>> model = mdm.denoiser(lambda tokens, t: jnp.zeros((*tokens.shape, 5)))
        >>> start = jnp.full((2, 8), process.mask_id)
        >>> out = mdm.generate(
        ...     jax.random.key(0), model, ancestral(process), start, mdm.time_grid(4)
        ... )
        >>> bool((out.tokens < 5).all()), int(out.calls)
        (True, 4)
    """
    if not isinstance(process, Process):
        raise TypeError(f"process={process!r}: expected a Masked or Uniform process")

    def step(key, logits, tokens, state, t, s, **extra):
        del extra
        return process.sample_posterior(key, logits, tokens, t, s), state

    return Sampler(init=lambda tokens: (), step=step)
