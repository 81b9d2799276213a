"""Uniform-state noise: a token survives, or is redrawn uniformly from the vocabulary."""

import dataclasses

import jax
import jax.numpy as jnp

from mdm_jax import draws
from mdm_jax.arrays import Key, Logits, LogProbs, PerToken, Times, Tokens, last_axis_index
from mdm_jax.processes.base import Process, align, check_times
from mdm_jax.reading import draw_tokens, log_prob_at


@dataclasses.dataclass(frozen=True)
class Uniform(Process):
    """q(x_t | x_0) keeps each token with probability alpha(t), else draws a uniform id (Duo, UDLM).

    Attributes:
        vocab_size: number of ids, V; every id is a data id and every id is noise.
        schedule: the noise schedule.

    Examples:
        >>> from mdm_jax.schedules import LogLinear
        >>> Uniform(vocab_size=256, schedule=LogLinear()).num_ids
        256
    """

    def prior(self, key: Key, like: Tokens) -> Tokens:
        """Draws uniform ids, int32[*B, L], shaped and sharded like `like`."""
        self._check_dtype(like)
        noise = jax.random.randint(key, like.shape, 0, self.vocab_size, dtype=like.dtype)
        # Adding zeros made from `like` gives the noise its sharding and varying axes.
        return jnp.zeros_like(like) + noise

    def posterior(self, logits: Logits, tokens: Tokens, t: Times, s: Times) -> LogProbs:
        r"""Returns log q(x_s | x_t, x_0 ~ softmax(logits)) for s < t (Duo, eq. 4).

        With K = V, z = x_t, p = softmax(logits) and a = alpha_t / alpha_s, the probability of id v
        is proportional to

            [v = z] (K alpha_t p_z + a - alpha_t) + (alpha_s - alpha_t) p_v
                + (1 - a) (1 - alpha_s) / K,

        and the three terms sum to K alpha_t p_z + 1 - alpha_t.

        Args:
            logits: float[*B, L, W].
            tokens: int32[*B, L], x_t.
            t: float32 time of `tokens`, broadcast from the left.
            s: float32 earlier time, likewise.

        Returns:
            float32[*B, L, V], normalized log-probabilities.

        Raises:
            ValueError: if `logits` are narrower than the vocabulary or times do not broadcast.

        Examples:
            >>> from mdm_jax.schedules import Linear
            >>> process = Uniform(vocab_size=2, schedule=Linear())
            >>> q = process.posterior(jnp.zeros((1, 2)), jnp.array([0]), jnp.array(1.0), 0.0)
            >>> jnp.exp(q).tolist()
            [[0.5, 0.5]]
        """
        log_p = self.log_probs(logits)
        log_p_z = jnp.take_along_axis(log_p, tokens[..., None], axis=-1)[..., 0]
        stay, model, uniform = self._mixture(log_p_z, tokens, t, s)
        total = stay + model + uniform
        ids = last_axis_index(self.vocab_size, tokens.ndim + 1)
        at_z = jnp.where(ids == tokens[..., None], stay[..., None], 0.0)
        spread = model[..., None] * jnp.exp(log_p) + uniform[..., None] / self.vocab_size
        return jnp.log(at_z + spread) - jnp.log(total)[..., None]

    def sample_posterior(
        self, key: Key, logits: Logits, tokens: Tokens, t: Times, s: Times
    ) -> Tokens:
        """Draws x_s from `posterior`, int32[*B, L].

        The posterior is a mixture of staying, of the model's law and of uniform noise. Drawing the
        component first keeps rare changes (probability about 1 / T per step) at their exact rate.
        """
        key_when, key_model, key_uniform = jax.random.split(key, 3)
        log_p_z = log_prob_at(logits, tokens, self.log_probs)
        stay, model, uniform = self._mixture(log_p_z, tokens, t, s)
        u = draws.uniform(key_when, tokens.shape) * (stay + model + uniform)
        drawn = draw_tokens(key_model, logits, self.data_logits).astype(tokens.dtype)
        noise = self.prior(key_uniform, tokens)
        return jnp.where(u < model, drawn, jnp.where(u < model + uniform, noise, tokens))

    def _mixture(
        self, log_p_z: PerToken, tokens: Tokens, t: Times, s: Times
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Unnormalized weights, float32[*B, L], of staying, the model's law and uniform noise.

        Of the prediction they read log p(x_t) alone.
        """
        t = align(check_times("t", t, tokens), tokens)
        s = align(check_times("s", s, tokens), tokens)
        alpha_t, alpha_s = self.schedule.alpha(t), self.schedule.alpha(s)
        noise_t, noise_s = self.schedule.noise_rate(t), self.schedule.noise_rate(s)
        lost = jnp.maximum(noise_t - noise_s, 0.0)  # alpha_s - alpha_t
        stay = self.vocab_size * alpha_t * jnp.exp(log_p_z) + alpha_t * noise_s / alpha_s
        uniform = lost / alpha_s * noise_s
        broadcast = jnp.zeros_like(stay)
        return stay, lost + broadcast, uniform + broadcast
