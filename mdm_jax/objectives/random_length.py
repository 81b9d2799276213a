"""Short batches now and then, so that a model also learns texts shorter than its window (SMDM)."""

import jax
import jax.numpy as jnp

from mdm_jax import draws
from mdm_jax.arrays import Bool, Key
from mdm_jax.masks import Filled
from mdm_jax.objectives.base import Objective, hide_others

# With these the first columns are not the first tokens, or visibility is settled already.
_OWN_ORDER = ("mask", "clean", "positions")


def with_random_lengths(objective: Objective, share: float) -> Objective:
    """Cuts the whole batch to its first l tokens in a share of the steps, l uniform on 1 to L.

    Masked models trained on full windows alone do worse on shorter texts; SMDM found 1 % of short
    batches to be enough (Nie et al., 2024, section 5). The cut is made in static shapes: tokens
    from l on are neither noised nor scored, and no position sees them (`Filled`), so that the first
    l logits are those of a batch of length l. In all other steps l = L; the structure is the same.
    A short step weighs as much as a full one, as its loss is the mean over its own tokens.

    For models that see both directions and take `mask`: a causal model would lose its own mask.
    The evaluation is that of `objective`, on full windows.

    Args:
        objective: its inputs must be one dict without ``mask``, ``clean`` or ``positions``.
        share: of the steps that are cut, 0.01 in SMDM.

    Returns:
        `Objective`.

    Raises:
        ValueError: if `share` lies outside [0, 1]; when used, if the inputs are of another kind.

    Examples:
        >>> import mdm_jax as mdm
        >>> process = mdm.Masked(vocab_size=4, schedule=mdm.Linear())
        >>> objective = with_random_lengths(mdm.masked_objective(process), 1.0)
        >>> x = jnp.zeros((2, 8), jnp.int32)
        >>> inputs, noised = objective.prepare(jax.random.key(0), x, x == 0, jnp.int32(0))
        >>> length = inputs["mask"].count
        >>> bool((noised.where.sum(-1) == length).all()), bool(length[0] == length[1])
        (True, True)
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share={share}: expected the share of short steps, in [0, 1]")

    def prepare(key, tokens, where: Bool, step):
        key_length, key_noise = jax.random.split(key)
        rows, size = tokens.shape
        length = _length(key_length, size, share)
        inside = jnp.arange(size, dtype=jnp.int32)[None] < length
        inputs, noised = objective.prepare(key_noise, tokens, where & inside, step)
        if not isinstance(inputs, dict) or any(name in inputs for name in _OWN_ORDER):
            kind = sorted(inputs) if isinstance(inputs, dict) else f"{len(inputs)} calls"
            raise ValueError(
                f"the objective feeds its model {kind}: random lengths need the inputs of one "
                "call, in the order of the text and without a mask of their own"
            )
        return inputs | {"mask": Filled(jnp.full((rows,), length))}, noised

    def apart(inputs, noised, segments):
        filled = inputs.get("mask")
        if filled is not None:  # What lies past the shorter window is padding.
            inside = jnp.arange(segments.shape[1], dtype=jnp.int32)[None] < filled.count[:, None]
            segments = jnp.where(inside, segments, 0)
        return hide_others(inputs, noised, segments)

    return objective._replace(
        prepare=prepare,
        prepare_evaluation=objective.prepare_evaluation or objective.prepare,
        apart=None if objective.apart is None else apart,
    )


def _length(key: Key, size: int, share: float) -> jax.Array:
    """int32[]: uniform on 1 to `size` with probability `share`, else `size`."""
    key_whether, key_length = jax.random.split(key)
    short = draws.uniform(key_whether, ()) < share
    length = jax.random.randint(key_length, (), 1, size + 1, jnp.int32)
    return jnp.where(short, length, jnp.int32(size))
