"""Networks with a cache, drawn with the production loops and measured against the same without.

The law is enumerated from forward passes of whole canvases. Approximate caches are measured where
they state to be exact, refreshed at every step; in between, `cache_drift` is the meter.
`python launch/certify.py` writes what is found into docs/samplers.md.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mdm_jax.arrays import Key, Tokens
from mdm_jax.blocks import generate_blocks
from mdm_jax.denoisers import Denoiser
from mdm_jax.evaluation.certificates import certify, classify
from mdm_jax.evaluation.sampler_certificates import Measured, Setting
from mdm_jax.evaluation.tabular import any_order_law, sequences
from mdm_jax.generation import generate
from mdm_jax.masks import Causal, TwoStream
from mdm_jax.models.approximate_caches import delayed_cached, dual_cached, prefix_cached
from mdm_jax.models.block_decoding import block_cached
from mdm_jax.models.configs import DiTConfig
from mdm_jax.models.decoding import cached, generate_autoregressive, generate_permuted
from mdm_jax.models.dit import DiT
from mdm_jax.processes import Masked
from mdm_jax.samplers.first_hitting import first_hitting
from mdm_jax.schedules import Linear
from mdm_jax.times import time_grid

_SIZE, _LENGTH, _BLOCK = 3, 4, 2  # ids, and positions in blocks
_FIRST = 1  # what stands first where a model needs something to begin with
_ORDER, _COUNTS = np.array([2, 0, 3, 1]), np.array([1, 2, 1])  # of an Eso-LM
_PROCESS = Masked(_SIZE, Linear())
_SAMPLER = first_hitting(_PROCESS)

# Draws so many rows of tokens.
Run = Callable[[Key, int], Tokens]


@functools.cache
def _network(causal: bool = False) -> tuple[DiT, Any]:
    """A small DiT whose parameters are all drawn, large enough to say something."""
    config = DiTConfig(num_ids=_SIZE + 1, width=16, layers=2, heads=2, cond_dim=8, causal=causal)
    model = DiT(config)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    rng = np.random.default_rng(3)
    draw = lambda leaf: jnp.asarray(rng.normal(0.0, 0.5, leaf.shape), jnp.float32)
    return model, jax.tree.map(draw, shapes)


def _says(rows: np.ndarray, *, causal: bool = False, **inputs: Any) -> np.ndarray:
    """What the network predicts without a cache, float64[N, L, V]."""
    model, params = _network(causal)
    logits: Any = model.apply({"params": params}, jnp.asarray(rows), **inputs)
    return np.asarray(jax.nn.softmax(logits[..., :_SIZE], axis=-1), np.float64)


def _canvases(samples: int, token: int) -> jax.Array:
    return jnp.full((samples, _LENGTH), token, jnp.int32)


def _autoregressive() -> tuple[Run, np.ndarray]:
    rows = sequences(_SIZE, _LENGTH)
    p = _says(rows, causal=True)
    law = np.where(rows[:, 0] == _FIRST, 1.0, 0.0)
    for i in range(_LENGTH - 1):
        law = law * np.take_along_axis(p[:, i], rows[:, i + 1, None], -1)[:, 0]
    model, params = _network(causal=True)

    def run(key, samples):
        denoiser = cached(model, params, _PROCESS)
        return generate_autoregressive(key, denoiser, _PROCESS, _canvases(samples, _FIRST)).tokens

    return run, law.reshape((_SIZE,) * _LENGTH)


def _permuted() -> tuple[Run, np.ndarray]:
    """A step draws its tokens from masks that see what is earlier in the order."""
    drawn = sequences(_SIZE, _LENGTH)[:, _ORDER]  # in the order of generation
    law, done = np.ones(len(drawn)), 0
    for count in _COUNTS:
        rows = np.where(np.arange(_LENGTH) < done, drawn, _SIZE).astype(np.int32)
        positions = jnp.broadcast_to(jnp.asarray(_ORDER, jnp.int32), rows.shape)
        p = _says(rows, positions=positions, mask=Causal())
        for i in range(done, done + count):
            law = law * np.take_along_axis(p[:, i], drawn[:, i, None], -1)[:, 0]
        done += count
    model, params = _network()

    def run(key, samples):
        start = _canvases(samples, _SIZE)
        order = jnp.broadcast_to(jnp.asarray(_ORDER, jnp.int32), start.shape)
        denoiser = cached(model, params, _PROCESS)
        return generate_permuted(key, denoiser, _PROCESS, start, order, _COUNTS).tokens

    return run, law.reshape((_SIZE,) * _LENGTH)


def _by_blocks(denoiser: Denoiser) -> Run:
    def run(key, samples):
        start, times = _canvases(samples, _SIZE), time_grid(_BLOCK)
        return generate_blocks(key, denoiser, _SAMPLER, start, times, block=_BLOCK).tokens

    return run


def _block_cached() -> tuple[Run, np.ndarray]:
    rows = sequences(_SIZE + 1, _LENGTH)
    table = _says(rows, clean=jnp.asarray(rows), mask=TwoStream(_BLOCK))
    return _by_blocks(block_cached(*_network(), block=_BLOCK)), any_order_law(table, block=_BLOCK)


def _refreshed(make: Callable[..., Denoiser]) -> tuple[Run, np.ndarray]:
    law = any_order_law(_says(sequences(_SIZE + 1, _LENGTH)), block=_BLOCK)
    return _by_blocks(make(*_network(), _PROCESS, refresh=1)), law


def _delayed() -> tuple[Run, np.ndarray]:
    denoiser = delayed_cached(*_network(), _PROCESS, widths=[2, 3], refresh=1)

    def run(key, samples):
        return generate(
            key, denoiser, _SAMPLER, _canvases(samples, _SIZE), time_grid(_LENGTH)
        ).tokens

    return run, any_order_law(_says(sequences(_SIZE + 1, _LENGTH)))


# What draws, and the law it must have.
CACHES: dict[str, Callable[[], tuple[Run, np.ndarray]]] = {
    "generate_autoregressive, cached": _autoregressive,
    "generate_permuted, cached": _permuted,
    "generate_blocks, block_cached": _block_cached,
    "generate_blocks, prefix_cached(refresh=1)": functools.partial(_refreshed, prefix_cached),
    "generate_blocks, dual_cached(refresh=1)": functools.partial(_refreshed, dual_cached),
    "generate, delayed_cached(refresh=1)": _delayed,
}


def measure_cache(name: str, *, samples: int = 2**14, seed: int = 0) -> Measured:
    """Measures a network with a cache against the law of the same network without one.

    Args:
        name: in `CACHES`.
        samples: how many.
        seed: of the draws.

    Returns:
        `Measured`, stated to be "exact": the law is that of the same loop without a cache.

    Raises:
        KeyError: if the name is unknown.

    Examples:
        >>> measure_cache("generate_autoregressive, cached", samples=4096).found
        'exact'
    """
    run, law = CACHES[name]()
    certificate = certify(
        jax.random.key(seed), jax.jit(run, static_argnums=1), law, samples=samples
    )
    row = (Setting({}, law.ndim), certificate)
    return Measured(name, "Masked", "exact", classify([certificate]), (row,))
