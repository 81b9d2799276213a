"""Masked (absorbing) noise: a token survives, or becomes the mask id and stays it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from mdm_jax import draws
from mdm_jax.arrays import Key, Logits, LogProbs, Times, Tokens, last_axis_index
from mdm_jax.processes.base import Process, align, check_times
from mdm_jax.reading import draw_tokens


@dataclasses.dataclass(frozen=True)
class WithMask(Process):
    """A process one of whose ids, the mask, is noise and never data."""

    mask_id: int = None  # type: ignore[assignment]  # None means vocab_size: see __post_init__

    def __post_init__(self):
        super().__post_init__()
        if self.mask_id is None:
            object.__setattr__(self, "mask_id", self.vocab_size)
        if not 0 <= self.mask_id <= self.vocab_size:
            raise ValueError(
                f"mask_id={self.mask_id}: expected vocab_size={self.vocab_size} (one past the data "
                "ids) or an id below it"
            )

    @property
    def num_ids(self) -> int:
        """The number of ids a model has to embed: data ids and the mask id."""
        return max(self.vocab_size, self.mask_id + 1)

    def predictable(self, width: int) -> np.ndarray:
        """Returns bool[width]: the data ids without the mask id."""
        return super().predictable(width) & (np.arange(width) != self.mask_id)

    def is_masked(self, tokens: Tokens) -> jax.Array:
        """Returns bool[*B, L]: where `tokens` are the mask id."""
        return tokens == self.mask_id


@dataclasses.dataclass(frozen=True)
class Masked(WithMask):
    """q(x_t | x_0) keeps each token with probability alpha(t) and masks it otherwise.

    The parameterization is SUBS (MDLM, section 3.2.3): the mask id is never predicted, and tokens
    that are not masked are carried over.

    Attributes:
        vocab_size: number of data ids, V.
        schedule: the noise schedule.
        mask_id: defaults to `vocab_size`, one past the data ids. It may lie inside them (BERT's
            [MASK] = 103) and is then never predicted and no longer a data id.

    Raises:
        ValueError: if `mask_id` is negative or larger than `vocab_size`.

    Examples:
        >>> from mdm_jax.schedules import Linear
        >>> Masked(vocab_size=256, schedule=Linear()).num_ids
        257
        >>> Masked(vocab_size=30522, schedule=Linear(), mask_id=103).num_ids
        30522
    """

    def prior(self, key: Key, like: Tokens) -> Tokens:
        """Returns all masks, int32[*B, L], shaped and sharded like `like` (`key` is not used)."""
        del key
        self._check_dtype(like)
        return jnp.full_like(like, self.mask_id)

    def posterior(self, logits: Logits, tokens: Tokens, t: Times, s: Times) -> LogProbs:
        r"""Returns log q(x_s | x_t, x_0 ~ softmax(logits)) for s < t (MDLM eq. 7).

        A masked position becomes id v with probability p(v) (alpha_s - alpha_t) / (1 - alpha_t)
        and stays masked with (1 - alpha_s) / (1 - alpha_t); any other token stays.

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
            >>> process = Masked(vocab_size=2, schedule=Linear())
            >>> q = process.posterior(jnp.zeros((1, 2)), jnp.array([2]), jnp.array(1.0), 0.5)
            >>> jnp.exp(q).tolist()
            [[0.25, 0.25, 0.5]]
        """
        unmask = self._unmask_rate(tokens, t, s)[..., None]
        ids = last_axis_index(self.num_ids, tokens.ndim + 1)
        log_p = self.log_probs(logits) + jnp.log(unmask)
        masked_row = jnp.where(ids == self.mask_id, jnp.log1p(-unmask), log_p)
        carried_row = jnp.where(ids == tokens[..., None], 0.0, -jnp.inf)
        return jnp.where(self.is_masked(tokens)[..., None], masked_row, carried_row)

    def sample_posterior(
        self, key: Key, logits: Logits, tokens: Tokens, t: Times, s: Times
    ) -> Tokens:
        """Draws x_s from `posterior`, int32[*B, L]: first which masks lift, then their tokens."""
        lifted = self.lifts(key, tokens, t, s)
        _, key_what = jax.random.split(key)
        drawn = draw_tokens(key_what, logits, self.data_logits).astype(tokens.dtype)
        return jnp.where(lifted, drawn, tokens)

    def lifts(self, key: Key, tokens: Tokens, t: Times, s: Times) -> jax.Array:
        """Draws which masks lift between t and s, bool[*B, L]: no model has a say in it.

        `sample_posterior` with the same key lifts these and no others.

        Args:
            key: a PRNG key.
            tokens: int32[*B, L], x_t.
            t: float32 time of `tokens`, broadcast from the left.
            s: float32 earlier time, likewise.

        Raises:
            ValueError: if times do not broadcast.

        Examples:
            >>> from mdm_jax.schedules import Linear
            >>> process = Masked(vocab_size=2, schedule=Linear())
            >>> process.lifts(jax.random.key(0), jnp.array([2, 1, 2]), 1.0, 0.0).tolist()
            [True, False, True]
        """
        key_when, _ = jax.random.split(key)
        u = draws.uniform(key_when, tokens.shape)
        return self.is_masked(tokens) & (u < self._unmask_rate(tokens, t, s))

    def _unmask_rate(self, tokens: Tokens, t: Times, s: Times) -> jax.Array:
        """(alpha_s - alpha_t) / (1 - alpha_t), and 1 at s = 0, where the data is clean."""
        t = align(check_times("t", t, tokens), tokens)
        s = align(check_times("s", s, tokens), tokens)
        noise_t, noise_s = self.schedule.noise_rate(t), self.schedule.noise_rate(s)
        certain = (s <= 0) | (noise_t <= 0)
        rate = (noise_t - noise_s) / jnp.where(certain, 1.0, noise_t)
        return jnp.where(certain, 1.0, jnp.clip(rate, 0.0, 1.0))
