"""Ancestral sampling: walk the reverse process down a time grid."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from mdm_jax.arrays import Logits, Tokens
from mdm_jax.processes import Masked, Process
from mdm_jax.processes.base import align
from mdm_jax.reading import over_positions
from mdm_jax.samplers.base import Sampler


def ancestral(process: Process, *, final: Literal["draw", "argmax"] = "draw") -> Sampler:
    """Draws x_s from q(x_s | x_t, x_0 ~ model) at every step (MDLM eq. 7, Duo eq. 4, D3PM).

    Exactness: exact in the limit. The step treats positions as independent given x_t, so with T
    steps the law of the samples differs from the model's own by a total variation of O(1 / T).
    Each position decides whether to change before which token to take, so that rare changes keep
    their rate at any T; the last step samples and is not greedy.

    With ``final="argmax"`` heuristic: the step to s = 0 takes the model's most probable token
    instead of drawing one, for the masks that are left, or for every token of a process whose
    tokens change again. It is what publications call noise removal (MDLM), decoding (MD4) or the
    greedy tail (Duo), done by them in one more call at t = 1e-5: walk down
    ``[..., 1e-5, 0]`` for the same. For no noise removal at all, end the walk at 1e-5.

    Model calls: one per step; for masked noise, one per step in which some mask lifts, in any row
    of the batch, since nothing else reads the logits (MDLM's cached sampler, and for models that
    read t too). With n masks in the batch and T even steps of a linear schedule those are
    T (1 - (1 - 1 / T)^n) on average: all T for n far above T, and no more than n.

    Args:
        process: the process the model was trained with.
        final: how the step to s = 0 picks tokens: "draw" or "argmax".

    Returns:
        `Sampler` without state. Its `idle` is there for `Masked` only: with other noise the model
        has a say in whether a token changes.

    Raises:
        TypeError: if `process` is no process.
        ValueError: if `final` is unknown.

    Examples:
        >>> import mdm_jax as mdm
        >>> process = mdm.Masked(vocab_size=5, schedule=mdm.Linear())
        >>> model = mdm.denoiser(lambda tokens, t: jnp.zeros((*tokens.shape, 5)))
        >>> start = jnp.full((2, 2), process.mask_id)
        >>> out = mdm.generate(
        ...     jax.random.key(0), model, ancestral(process), start, mdm.time_grid(64)
        ... )
        >>> bool((out.tokens < 5).all()), int(out.calls) <= 4
        (True, True)
    """
    if not isinstance(process, Process):
        raise TypeError(f"process={process!r}: expected a Masked, Uniform or Hybrid process")
    if final not in ("draw", "argmax"):
        raise ValueError(f"final={final!r}: expected 'draw' or 'argmax'")

    def step(key, logits, tokens, state, t, s, **extra):
        del extra
        drawn = process.sample_posterior(key, logits, tokens, t, s)
        if final == "draw":
            return drawn, state
        last = align(jnp.asarray(s, jnp.float32) <= 0, tokens)
        best = _most_probable(process, logits, tokens)
        return jnp.where(last, best, drawn), state

    idle = _nothing_lifts(process) if isinstance(process, Masked) else None
    return Sampler(init=lambda tokens: (), step=step, idle=idle)


def _nothing_lifts(process: Masked) -> Callable[..., jax.Array]:
    def idle(key, tokens, state, t, s, *, keep=None):
        del state
        lifted = process.lifts(key, tokens, t, s)
        return ~jnp.any(lifted if keep is None else lifted & ~keep, axis=-1)

    return idle


def _most_probable(process: Process, logits: Logits, tokens: Tokens) -> Tokens:
    """The model's most probable tokens, int32[*B, L]; tokens decided for good are carried over."""

    def read(logits):
        logits = process.data_logits(logits)
        possible = jnp.max(logits, axis=-1) > -jnp.inf  # as in `draws.categorical`, else -1
        return jnp.where(possible, jnp.argmax(logits, axis=-1), -1).astype(tokens.dtype)

    best = over_positions(read, logits)
    if isinstance(process, Masked):
        return jnp.where(process.is_masked(tokens), best, tokens)
    return best
