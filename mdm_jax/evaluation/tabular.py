"""State spaces small enough to write every law down, and the ideal models of them.

A joint law over sequences of L tokens is an array float64[V, ..., V] with L axes. Its ideal
denoiser is a table, and what a sampler makes of it can be compared with the law: see `certify`.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from mdm_jax.arrays import Times, Tokens
from mdm_jax.denoisers import Denoiser, denoiser
from mdm_jax.processes import Hybrid, Masked, Process, Uniform


def sequences(size: int, length: int) -> np.ndarray:
    """Returns all sequences of `length` ids below `size`, int32[size^length, length], in order.

    Examples:
        >>> sequences(2, 2).tolist()
        [[0, 0], [0, 1], [1, 0], [1, 1]]
    """
    return np.array(list(itertools.product(range(size), repeat=length)), np.int32)


def random_joint(seed: int, vocab_size: int, length: int, concentration: float = 0.5) -> np.ndarray:
    """Returns a law over sequences from a symmetric Dirichlet distribution, float64[V, ..., V].

    Args:
        seed: of NumPy's generator.
        vocab_size: V.
        length: L, the number of axes.
        concentration: positive; small ones give laws with strong dependence.

    Examples:
        >>> random_joint(0, 2, 3).shape
        (2, 2, 2)
    """
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.full(vocab_size**length, concentration))
    return weights.reshape((vocab_size,) * length)


def random_conditionals(seed: int, vocab_size: int, length: int) -> np.ndarray:
    """Returns predictions of clean tokens that are the conditionals of no joint law.

    Networks are like that. Flat Dirichlet draws, float64[(V + 1)^L, L, V], one row per canvas of
    `Masked(V, ...)`.

    Examples:
        >>> random_conditionals(0, 2, 3).shape
        (27, 3, 2)
    """
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.ones(vocab_size), size=((vocab_size + 1) ** length, length))


def table_denoiser(table: np.ndarray | jax.Array) -> Denoiser:
    """Lifts a table of predictions, one for each state, to a denoiser that does not read t.

    Args:
        table: float[N^L, L, V], probabilities of the clean token, in the order of `sequences`.

    Returns:
        `Denoiser` of logits float32[*B, L, V].

    Raises:
        ValueError: if the table does not have N^L rows for some N.

    Examples:
        >>> d = table_denoiser(random_conditionals(0, 2, 3))
        >>> d.apply(jnp.array([[2, 0, 2]]), jnp.float32(1.0), ())[0].shape
        (1, 3, 2)
    """
    rows, length = table.shape[:2]
    size = round(rows ** (1 / length))
    if size**length != rows:
        raise ValueError(f"table has shape {table.shape}: expected [N^L, L, V]")
    logits = jnp.log(jnp.asarray(table, jnp.float32))
    return denoiser(lambda tokens, t: logits[_index(tokens, size)])


def ideal_denoiser(joint: np.ndarray, process: Process) -> Denoiser:
    """The denoiser whose bound is tight: p(x_i | every token of x_t but the i-th), for all i.

    For masked noise these are the conditionals of `joint` given the unmasked tokens, and do not
    depend on t. For others they are the leave-one-out posteriors, which do.

    Args:
        joint: float64[V, ..., V], the law of clean sequences.
        process: a process whose mask id, if it has one, is V.

    Returns:
        `Denoiser` of logits float32[*B, L, V]; t is one number for all rows.

    Raises:
        ValueError: if the vocabulary does not fit, or (when applied) rows have times of their own.

    Examples:
        >>> import mdm_jax as mdm
        >>> joint = np.array([[0.5, 0.0], [0.25, 0.25]])
        >>> d = ideal_denoiser(joint, mdm.Masked(2, mdm.Linear()))
        >>> logits, _ = d.apply(jnp.array([[1, 2]]), jnp.float32(0.5), ())
        >>> jax.nn.softmax(logits)[0, 1].tolist()
        [0.5, 0.5]
    """
    size, length = joint.shape[0], joint.ndim
    mask_id = getattr(process, "mask_id", size)
    if joint.shape != (size,) * length or process.vocab_size != size or mask_id != size:
        raise ValueError(
            f"joint has shape {joint.shape} and the process is {process!r}: expected [V, ..., V] "
            "for its vocabulary, and a mask id of V"
        )
    predictions = functools.partial(_leave_one_out, joint, process)
    if isinstance(process, Masked):
        return table_denoiser(predictions(jnp.float32(0.5)))

    def apply(tokens: Tokens, t: Times, carry: tuple[()]) -> tuple[jax.Array, tuple[()]]:
        if jnp.ndim(t):
            raise ValueError(f"t has shape {jnp.shape(t)}: expected one time for all rows")
        table = jnp.log(predictions(jnp.asarray(t, jnp.float32)))
        return table[_index(tokens, process.num_ids)], carry

    return Denoiser(init=lambda tokens: (), apply=apply, commit=lambda tokens, carry: carry)


def any_order_law(table: np.ndarray, *, block: int | None = None) -> np.ndarray:
    """The model's own law: every order of the positions is equally probable.

    That is the average over orders of prod_i p(x_pi(i) | x_pi(<i)), which the masked bound bounds.

    Args:
        table: float64[(V + 1)^L, L, V], predictions for every canvas of a masked process.
        block: if given, orders that fill blocks of so many positions one after the other, from
            the left: what `generate_blocks` draws from.

    Returns:
        float64[V, ..., V].

    Examples:
        >>> law = any_order_law(random_conditionals(0, 2, 3))
        >>> law.shape, round(float(law.sum()), 6)
        ((2, 2, 2), 1.0)
    """
    _, length, size = table.shape
    reached = np.zeros((size + 1,) * length)
    reached[(size,) * length] = 1.0
    states = sequences(size + 1, length)
    predictions = np.asarray(table, np.float64).reshape(*reached.shape, length, size)
    for state in sorted(map(tuple, states), key=lambda z: -z.count(size)):
        masks = [i for i in range(length) if state[i] == size]
        if block is not None and masks:
            masks = [i for i in masks if i // block == masks[0] // block]
        for i, v in itertools.product(masks, range(size)):
            after = (*state[:i], v, *state[i + 1 :])
            reached[after] += reached[state] * predictions[state][i, v] / len(masks)
    return reached[(slice(size),) * length]


def _index(tokens: Tokens, size: int) -> jax.Array:
    """The row of `sequences` in which each sequence stands, int32[*B]."""
    length = tokens.shape[-1]
    return sum(
        (tokens[..., i] * size ** (length - 1 - i) for i in range(length)),
        jnp.zeros_like(tokens[..., 0]),
    )


def _leave_one_out(joint: np.ndarray, process: Process, t: jax.Array) -> jax.Array:
    """p(x_i | z without z_i) for every state z, float32[num_ids^L, L, V]."""
    size, length = joint.shape[0], joint.ndim
    clean, states = sequences(size, length), sequences(process.num_ids, length)
    fates = _token_channel(process, t)[clean[None], states[:, None]]  # [states, clean, L]
    law = jnp.asarray(joint.reshape(1, -1), jnp.float32)
    columns = []
    for i in range(length):
        others = [fates[..., j] for j in range(length) if j != i]
        weights = functools.reduce(jnp.multiply, others, law + jnp.zeros_like(fates[..., 0]))
        seen = np.eye(size, dtype=np.float32)[clean[:, i]]
        columns.append(jnp.matmul(weights, seen, precision="highest"))
    table = jnp.stack(columns, axis=1)
    total = jnp.sum(table, axis=-1, keepdims=True)
    # A state that cannot be at time t may be told anything, but not NaN.
    return jnp.where(total > 0, table / jnp.where(total > 0, total, 1.0), 1.0 / size)


def _token_channel(process: Process, t: jax.Array) -> jax.Array:
    """q(x_t | x_0) of one token, float32[V, num_ids]."""
    size = process.vocab_size
    clean, noise = process.schedule.alpha(t), process.schedule.noise_rate(t)
    if isinstance(process, Hybrid):
        clean, masked, uniform = process.shares(t)
    elif isinstance(process, Uniform):
        masked, uniform = jnp.zeros_like(noise), noise
    else:
        masked, uniform = noise, jnp.zeros_like(noise)
    kept = clean * jnp.eye(size, process.num_ids)
    is_mask = np.arange(process.num_ids).reshape(1, -1) == size
    return kept + jnp.where(is_mask, masked, uniform / size)
