"""Mask and uniform noise mixed: generalized interpolating discrete diffusion (GIDD)."""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from mdm_jax import draws
from mdm_jax.arrays import Key, Logits, LogProbs, PerToken, Times, Tokens, last_axis_index
from mdm_jax.processes.base import align, check_times
from mdm_jax.processes.masked import WithMask
from mdm_jax.reading import draw_tokens, log_prob_at

# Keeps ratios of shares finite at both ends of time, in float32.
_SMALLEST = 1e-20


class Shares(NamedTuple):
    """What a token has become by time t; the three sum to 1.

    Attributes:
        clean: float32, probability that it was never redrawn.
        masked: float32, probability that it is the mask.
        uniform: float32, probability that it is uniform noise, over all data ids together.
    """

    clean: jax.Array
    masked: jax.Array
    uniform: jax.Array


@dataclasses.dataclass(frozen=True)
class Hybrid(WithMask):
    r"""q(x_t | x_0) keeps a token, masks it, or draws a uniform data id (GIDD).

    With n the noise rate of the base schedule and p the uniform share,

        "gidd":      clean = (1 - n) / (1 + c),  masked = n / (1 + c),  uniform = c / (1 + c),
                     c = 2^gamma p / (1 - p) (n (1 - n))^(gamma / 2);
        "constant":  clean = 1 - n,  masked = (1 - p) n,  uniform = p n.

    "gidd" is the published mixing: a share p of all tokens is uniform noise where n = 1/2, and none
    at either end, so that generation starts from masks. With "constant", a share p of the noise is
    uniform at all times: p = 0 is `Masked` and p = 1 is `Uniform`, with a mask id that never
    occurs. A token that was redrawn may be redrawn again: masks turn into ids, and ids into masks.

    `schedule` is the base schedule. It is the clock, and its sigma(t) is what a model is
    conditioned on, as for every process. The probability to survive is ``shares(t).clean``, which
    "gidd" makes smaller than ``schedule.alpha(t)``.

    Near t = 0 the uniform noise of "gidd" leaves at a rate like 1 / sqrt(t). Ancestral sampling
    with T steps is off by O(1 / T) on the grid ``time_grid(T) ** 2``, by O(1 / sqrt(T)) on
    ``time_grid(T)``. "constant" is as regular as `Uniform`.

    Attributes:
        vocab_size: number of data ids, V.
        schedule: the base schedule.
        mask_id: defaults to `vocab_size`; it may lie inside the data ids, as for `Masked`.
        uniform_share: p, in [0, 1]; below 1 for "gidd".
        mixing: how the share of uniform noise moves over time.
        gamma: how fast "gidd" moves to its peak and back, in (0, 2]; 1 in the paper.

    Raises:
        TypeError: if `uniform_share` is missing.
        ValueError: if a field lies outside its range.

    Examples:
        >>> from mdm_jax.schedules import Linear
        >>> process = Hybrid(vocab_size=256, schedule=Linear(), uniform_share=0.2)
        >>> process.num_ids
        257
        >>> [round(float(x), 3) for x in process.shares(jnp.float32(0.5))]
        [0.4, 0.4, 0.2]
        >>> [round(float(x), 3) for x in process.shares(jnp.float32(1.0))]
        [0.0, 1.0, 0.0]
    """

    uniform_share: float = dataclasses.field(kw_only=True)
    mixing: Literal["gidd", "constant"] = dataclasses.field(default="gidd", kw_only=True)
    gamma: float = dataclasses.field(default=1.0, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        if self.mixing not in ("gidd", "constant"):
            raise ValueError(f"mixing={self.mixing!r}: expected 'gidd' or 'constant'")
        # Written so that NaN fails.
        if not 0 <= self.uniform_share <= 1:
            raise ValueError(f"uniform_share={self.uniform_share}: expected a share in [0, 1]")
        if self.mixing == "gidd" and self.uniform_share == 1:
            raise ValueError(
                "uniform_share=1 leaves no room for masks in the middle of time: take a share "
                "below 1, or mixing='constant'"
            )
        if not 0 < self.gamma <= 2:
            raise ValueError(
                f"gamma={self.gamma}: expected a number in (0, 2]; beyond 2 the uniform noise "
                "would have to be taken back"
            )

    @property
    def data_ids(self) -> int:
        """The number of ids that are data, hence of uniform noise: V, less a mask id inside."""
        return self.vocab_size - (self.mask_id < self.vocab_size)

    def shares(self, t: jax.Array) -> Shares:
        """Returns the probabilities of the three fates at time t, each shaped like `t`."""
        noise, clean = self.schedule.noise_rate(t), self.schedule.alpha(t)
        if self.mixing == "constant":
            return Shares(clean, (1.0 - self.uniform_share) * noise, self.uniform_share * noise)
        c = self._bump(noise, clean)
        return Shares(clean / (1.0 + c), noise / (1.0 + c), c / (1.0 + c))

    def noise_rate(self, t: jax.Array) -> jax.Array:
        """Returns 1 - shares(t).clean without cancellation, shaped like `t`."""
        _, masked, uniform = self.shares(t)
        return masked + uniform

    def growth(self, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns d/dt of log(masked / clean) and of log(uniform / clean), shaped like `t`.

        They are the rates at which each kind of noise is drawn, over its share.
        """
        noise = jnp.maximum(self.schedule.noise_rate(t), _SMALLEST)
        clean = jnp.maximum(self.schedule.alpha(t), _SMALLEST)
        masked = -self.schedule.alpha_prime(t) / (noise * clean)
        if self.mixing == "constant":
            return masked, masked
        return masked, masked * (0.5 * self.gamma * clean + (1.0 - 0.5 * self.gamma) * noise)

    def prior(self, key: Key, like: Tokens) -> Tokens:
        """Draws pure noise, int32[*B, L]: masks, and uniform ids in their share at t = 1."""
        return self.noise(key, like, jnp.float32(1.0))

    def noise(self, key: Key, like: Tokens, t: Times) -> Tokens:
        """Draws what a position redrawn by time t holds, int32[*B, L]: the mask or a data id."""
        self._check_dtype(like)
        key_which, key_id = jax.random.split(key)
        _, masked, uniform = self.shares(align(t, like))
        u = draws.uniform(key_which, like.shape) * (masked + uniform)
        return jnp.where(u < uniform, self._data_noise(key_id, like), self.mask_id)

    def posterior(self, logits: Logits, tokens: Tokens, t: Times, s: Times) -> LogProbs:
        r"""Returns log q(x_s | x_t, x_0 ~ softmax(logits)) for s < t, by Bayes' rule.

        From s to t a token survives with probability a = clean_t / clean_s, else it is redrawn:
        as a mask with probability r_m = masked_t - a masked_s, or uniformly with
        r_u = uniform_t - a uniform_s. With z = x_t, p = softmax(logits), N data ids and r = r_m
        if z is the mask, else r_u, the probability of id v is proportional to

            [v = z] stay + r (clean_s p_v + masked_s [v = mask] + uniform_s / N [v is data]),

        where stay is a masked_s if z is the mask, else N clean_t p_z + a uniform_s. At s = 0 the
        data is clean. A token that could not have occurred stays; a mask takes the model's law.

        Args:
            logits: float[*B, L, W].
            tokens: int32[*B, L], x_t.
            t: float32 time of `tokens`, broadcast from the left.
            s: float32 earlier time, likewise.

        Returns:
            float32[*B, L, num_ids], normalized log-probabilities.

        Raises:
            ValueError: if `logits` are narrower than the vocabulary or times do not broadcast.

        Examples:
            >>> from mdm_jax.schedules import Linear
            >>> process = Hybrid(2, Linear(), uniform_share=0.5, mixing="constant")
            >>> q = process.posterior(jnp.zeros((1, 2)), jnp.array([2]), jnp.array(1.0), 0.5)
            >>> jnp.exp(q).round(4).tolist()
            [[0.375, 0.375, 0.25]]
        """
        log_p = self.log_probs(logits)
        log_p_z = jnp.take_along_axis(log_p, tokens[..., None], axis=-1)[..., 0]
        stay, model, masked, uniform = self._mixture(log_p_z, tokens, t, s)
        log_total = jnp.log(stay + model + masked + uniform)
        ids = last_axis_index(self.num_ids, tokens.ndim + 1)
        noise = jnp.where(
            ids == self.mask_id, masked[..., None], uniform[..., None] / self.data_ids
        )
        at_z = jnp.where(ids == tokens[..., None], stay[..., None], 0.0)
        return jnp.log(at_z + model[..., None] * jnp.exp(log_p) + noise) - log_total[..., None]

    def sample_posterior(
        self, key: Key, logits: Logits, tokens: Tokens, t: Times, s: Times
    ) -> Tokens:
        """Draws x_s from `posterior`, int32[*B, L].

        The posterior is a mixture of staying, of the model's law, of the mask and of uniform noise.
        Drawing the component first keeps rare changes at their exact rate.
        """
        key_when, key_model, key_uniform = jax.random.split(key, 3)
        log_p_z = log_prob_at(logits, tokens, self.log_probs)
        stay, model, masked, uniform = self._mixture(log_p_z, tokens, t, s)
        u = draws.uniform(key_when, tokens.shape) * (stay + model + masked + uniform)
        drawn = draw_tokens(key_model, logits, self.data_logits).astype(tokens.dtype)
        noise = self._data_noise(key_uniform, tokens)
        changed = jnp.where(u < model + uniform, noise, self.mask_id)
        changed = jnp.where(u < model, drawn, changed)
        return jnp.where(u < model + uniform + masked, changed, tokens)

    def _mixture(
        self, log_p_z: PerToken, tokens: Tokens, t: Times, s: Times
    ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """Unnormalized weights, float32[*B, L]: staying, the model's law, the mask, uniform.

        Of the prediction they read log p(x_t) alone.
        """
        t = align(check_times("t", t, tokens), tokens)
        s = align(check_times("s", s, tokens), tokens)
        survive, to_mask, to_uniform = self._step(t, s)
        clean_s, masked_s, uniform_s = (
            jnp.where(s <= 0, end, share)
            for end, share in zip((1.0, 0.0, 0.0), self.shares(s), strict=True)
        )
        is_masked = self.is_masked(tokens)
        kept = self.data_ids * self.shares(t).clean * jnp.exp(log_p_z) + survive * uniform_s
        stay = jnp.where(is_masked, survive * masked_s, kept)
        redrawn = jnp.where(is_masked, to_mask, to_uniform)
        model, masked, uniform = redrawn * clean_s, redrawn * masked_s, redrawn * uniform_s
        impossible = stay + model + masked + uniform <= 0
        stay = jnp.where(impossible & ~is_masked, 1.0, stay)
        return stay, jnp.where(impossible & is_masked, 1.0, model), masked, uniform

    def _step(self, t: jax.Array, s: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Probabilities to survive from s to t, to be redrawn as a mask, and uniformly."""
        noise_t, noise_s = self.schedule.noise_rate(t), self.schedule.noise_rate(s)
        noise_s = jnp.where(s <= 0, 0.0, noise_s)
        clean_s = jnp.where(s <= 0, 1.0, jnp.maximum(self.schedule.alpha(s), _SMALLEST))
        lost = jnp.clip((noise_t - noise_s) / clean_s, 0.0, 1.0)
        if self.mixing == "constant":
            return 1.0 - lost, (1.0 - self.uniform_share) * lost, self.uniform_share * lost
        c_t, c_s = self._bump(noise_t, self.schedule.alpha(t)), self._bump(noise_s, clean_s)
        to_uniform = jnp.maximum(c_t - c_s * (1.0 - lost), 0.0)
        total = 1.0 + c_t
        return (1.0 - lost) * (1.0 + c_s) / total, lost / total, to_uniform / total

    def _bump(self, noise: jax.Array, clean: jax.Array) -> jax.Array:
        """The odds of uniform noise against everything else: zero at both ends of time."""
        height = 2.0**self.gamma * self.uniform_share / (1.0 - self.uniform_share)
        return height * (noise * clean) ** (0.5 * self.gamma)

    def _data_noise(self, key: Key, like: Tokens) -> Tokens:
        """Uniform data ids, shaped and sharded like `like`."""
        ids = jax.random.randint(key, like.shape, 0, self.data_ids, dtype=like.dtype)
        if self.mask_id < self.vocab_size:
            ids = ids + (ids >= self.mask_id).astype(ids.dtype)
        # Adding zeros made from `like` gives the noise its sharding and varying axes.
        return jnp.zeros_like(like) + ids
