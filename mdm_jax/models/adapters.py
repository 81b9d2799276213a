"""Adapters: a model of any framework as the `(tokens, t) -> logits` that the core asks for.

    denoiser = mdm.denoiser(linen(model, params, process))

Each takes the process of the noise last. With it the model is called with a second argument, the
noise level sigma(t) = -log alpha(t), float32[B]; without it, with the tokens alone. Dropout is the
model's business: put an NNX or Equinox model into inference mode before adapting it.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mdm_jax.arrays import Logits, Times, Tokens
from mdm_jax.processes import Process

LogitsFn = Callable[[Tokens, Times], Logits]


def linen(model: nn.Module, params: Any, process: Process | None = None) -> LogitsFn:
    """Adapts a Flax Linen module, called as `model.apply({"params": params}, tokens, sigma)`.

    A model whose `config.time_conditioning` is False reads no sigma, so it may be given a process
    all the same.

    Args:
        model: The module; it maps int32[B, L] to [B, L, V].
        params: Its parameters.
        process: The process whose sigma(t) the module is fed, or None if it takes no time.

    Returns:
        A function `(tokens, t) -> logits`, with t a scalar or float32[B].

    Raises:
        ValueError: If the module is fed sigma and sigma(1) is infinite; when called, if t has
            another shape.

    Examples:
        >>> import mdm_jax as mdm
        >>> from mdm_jax.models import DiT, DiTConfig
        >>> process = mdm.Masked(vocab_size=4, schedule=mdm.LogLinear())
        >>> model = DiT(DiTConfig.from_size("tiny", process.num_ids, layers=1))
        >>> tokens = process.prior(jax.random.key(0), jnp.zeros((2, 3), jnp.int32))
        >>> params = jax.jit(model.init)(jax.random.key(0), tokens)["params"]
        >>> linen(model, params, process)(tokens, 1.0).shape
        (2, 3, 5)
    """
    if not getattr(getattr(model, "config", None), "time_conditioning", True):
        process = None
    return function(lambda *inputs: model.apply({"params": params}, *inputs), process)


def nnx(model: Callable[..., jax.Array], process: Process | None = None) -> LogitsFn:
    """Adapts a Flax NNX module, called as `model(tokens, sigma)`.

    Args:
        model: The module, in evaluation mode (`model.eval()`); it maps int32[B, L] to [B, L, V].
        process: The process whose sigma(t) the module is fed, or None if it takes no time.

    Returns:
        A function `(tokens, t) -> logits`, with t a scalar or float32[B].

    Raises:
        ValueError: As `linen`.

    Examples:
        >>> from flax import nnx as flax_nnx
        >>> model = flax_nnx.Embed(5, 5, rngs=flax_nnx.Rngs(0))
        >>> nnx(model)(jnp.zeros((2, 3), jnp.int32), 1.0).shape
        (2, 3, 5)
    """
    return function(model, process)


def equinox(model: Callable[..., jax.Array], process: Process | None = None) -> LogitsFn:
    """Adapts an Equinox module, which by convention sees one sequence and no batch axis.

    Args:
        model: The module, in inference mode; it maps int32[L], and a sigma float32[], to [L, V].
        process: The process whose sigma(t) the module is fed, or None if it takes no time.

    Returns:
        A function `(tokens, t) -> logits`, with t a scalar or float32[B].

    Raises:
        ValueError: As `linen`.

    Examples:
        >>> model = lambda tokens: jax.nn.one_hot(tokens, 5)
        >>> equinox(model)(jnp.zeros((2, 3), jnp.int32), 1.0).shape
        (2, 3, 5)
    """
    return function(jax.vmap(model), process)


def function(f: Callable[..., Any], process: Process | None = None) -> LogitsFn:
    """Adapts a plain function of a batch, called as `f(tokens, sigma)`.

    Args:
        f: Maps int32[B, L], and a sigma float32[B], to [B, L, V].
        process: The process whose sigma(t) the function is fed, or None if it takes no time.

    Returns:
        A function `(tokens, t) -> logits`, with t a scalar or float32[B].

    Raises:
        ValueError: As `linen`.

    Examples:
        >>> echo = lambda tokens: jax.nn.one_hot(tokens, 5)
        >>> function(echo)(jnp.zeros((2, 3), jnp.int32), 1.0).shape
        (2, 3, 5)
    """
    if process is None:
        return lambda tokens, t: f(tokens)
    _check_finite(process)
    return lambda tokens, t: f(tokens, _sigma(process, tokens, t))


def _sigma(process: Process, tokens: Tokens, t: Times) -> jax.Array:
    """Returns sigma(t), float32[B], for one time or one time per sequence."""
    t = jnp.asarray(t, jnp.float32)
    if t.shape not in ((), tokens.shape[:1]):
        raise ValueError(
            f"t must be one time, or one per sequence, shape {tokens.shape[:1]}; got {t.shape}."
        )
    return jnp.broadcast_to(process.schedule.sigma(t), tokens.shape[:1])


def _check_finite(process: Process) -> None:
    """Raises ValueError if sigma(1) is infinite, as its sinusoidal features would be NaN."""
    with jax.ensure_compile_time_eval():
        if not jnp.isfinite(process.schedule.sigma(jnp.float32(1.0))):
            raise ValueError(
                f"{process.schedule} has sigma(1) = inf, which no model can be conditioned on. "
                f"Use a schedule that keeps alpha(1) > 0, such as LogLinear(eps=1e-3), or leave "
                f"process out if the model takes no time."
            )
