"""The library on a tiny state space: tabular denoisers, and expected losses by quadrature."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import tabular

import mdm_jax as mdm

V, L = 3, 3
PROCESSES = {
    "masked": mdm.Masked(V, mdm.Linear()),
    "uniform": mdm.Uniform(V, mdm.Linear()),
}
JOINT = tabular.random_joint(seed=1, vocab_size=V, length=L)
CLEAN = tabular.sequences(V, L)
CONDITIONALS = tabular.masked_conditionals(JOINT, V, L)


def arbitrary_conditionals(seed=5):
    """A denoiser that is the conditional of no joint, as networks are."""
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.ones(V), size=((V + 1) ** L, L))


def tabular_logits(table):
    """`(tokens, t) -> logits` from a table indexed by the state."""
    logits = jnp.log(jnp.asarray(table, jnp.float32))
    size = round(table.shape[0] ** (1 / L))

    def logits_fn(tokens, t):
        row = sum(tokens[..., i] * size ** (L - 1 - i) for i in range(L))
        return logits[row]

    return logits_fn


def expected_loss(process, logits_at, x, nodes=120):
    """Integral over t of E[sum of per-token losses], with the production loss on every state."""
    kind = "masked" if isinstance(process, mdm.Masked) else "uniform"
    u, weights = np.polynomial.legendre.leggauss(nodes)
    # t = u^3 flattens the logarithmic singularity at t = 0.
    u, weights = (u + 1) / 2, weights / 2
    times, weights = u**3, weights * 3 * u**2
    states = tabular.sequences(process.num_ids, L)
    total = 0.0
    for t, weight in zip(times, weights, strict=True):
        alpha = float(process.schedule.alpha(jnp.float32(t)))
        law = tabular.sequence_law(tabular.token_channel(kind, V, alpha), x, states)
        total += weight * np.sum(law * state_losses(process, logits_at(t, alpha), x, t))
    return total


@functools.partial(jax.jit, static_argnums=0)
def _losses(process, logits, states, x, t):
    targets = jnp.broadcast_to(x, states.shape)
    times = jnp.full(states.shape[:1], t)
    noised_flag = (
        states != targets if isinstance(process, mdm.Uniform) else states == process.mask_id
    )
    noised = mdm.Noised(states, targets, times, noised_flag, jnp.ones_like(states, bool))
    return mdm.elbo(logits, noised, process).sum(-1)


def state_losses(process, table, x, t):
    states = jnp.asarray(tabular.sequences(process.num_ids, L))
    logits = jnp.log(jnp.asarray(table, jnp.float32))
    return np.float64(_losses(process, logits, states, jnp.asarray(x), jnp.float32(t)))
