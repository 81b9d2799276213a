"""A trained model of any family as something to sample text from."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import mdm_jax as mdm
from mdm_jax.arrays import Bool, Logits, PerToken, Times, Tokens
from mdm_jax.data import Tokenizer
from mdm_jax.denoisers import Denoiser
from mdm_jax.models.configs import DiTConfig
from mdm_jax.models.flops import flops_per_token
from mdm_jax.models.md4_configs import MD4Config
from mdm_jax.models.smdm_configs import SMDMConfig
from mdm_jax.processes import Process
from mdm_jax.samplers.table import SAMPLERS
from mdm_jax.token_schedules import TokenPolynomial


class TextModel(NamedTuple):
    """A trained model and what its numbers mean.

    Attributes:
        logits_fn: ``(tokens int32[B, L], t) -> logits float[B, L, V]``. Best a
            `jax.tree_util.Partial` over the parameters, so that they are arguments of compiled
            code and not constants in it.
        process: the noise process; None for an autoregressive (next-token) model.
        tokenizer: text to ids and back.
        scores: whether the outputs of `logits_fn` parameterize scores (SEDD) and not a softmax.
        schedule: the learned schedules of a GenMD4 model; None for any other.
        remembering: makes a denoiser with a cache, best a `Partial` over the parameters: for models
            of blocks ``(capacity=, prefill=) -> Denoiser``, for all others ``() -> Denoiser`` of
            `mdm_jax.models.decoding`. None if there is none.
        block: tokens in a block, of a block diffusion model; 0 for any other.
        alpha_0: share of the text that diffusion writes, of an Eso-LM; None for any other.
        first: the id that an autoregressive model reads before every text, so that the text's first
            token is predicted too; None for one that does not, and for all other models.
        length: tokens seen at a time in training; 0 if not known.
        config: sizes of the network, for `flops`; None if not known.
    """

    logits_fn: Callable[[Tokens, Times], Logits]
    process: Process | None
    tokenizer: Tokenizer
    scores: bool = False
    schedule: TokenPolynomial | None = None
    remembering: Callable[..., Denoiser] | None = None
    block: int = 0
    alpha_0: float | None = None
    first: int | None = None
    length: int = 0
    config: Any = None

    @property
    def samplers(self) -> tuple[str, ...]:
        """Names of the samplers that fit, the default one first."""
        if self.schedule is not None:
            return ("learned_ancestral",)
        if self.alpha_0 is not None:
            return ("eso_lm",)
        if self.process is None and self.remembering is not None:
            return ("left_to_right", "autoregressive")
        return samplers_for(self.process, scores=self.scores)

    def flops(self, length: int) -> int | None:
        """FLOPs per token of one forward pass over `length` tokens; None if they are not known."""
        if isinstance(self.config, DiTConfig | SMDMConfig | MD4Config):
            return flops_per_token(self.config, length)
        return None


def next_token_nats(
    logits_fn: Callable[[Tokens, Times], Logits], tokens: Tokens, where: Bool, first: int | None
) -> tuple[PerToken, Bool]:
    """The negative log-likelihood of texts under an autoregressive model, token by token.

    Args:
        logits_fn: as in `TextModel`.
        tokens: int32[B, L].
        where: bool[B, L], the tokens to score.
        first: as in `TextModel`. Without it the first token of a row is read and not scored.

    Returns:
        float32[B, L], nats, and bool[B, L], where they are scored; zero elsewhere.

    Examples:
        >>> import jax.numpy as jnp
        >>> flat = lambda tokens, t: jnp.zeros((*tokens.shape, 4))
        >>> x = jnp.zeros((1, 3), jnp.int32)
        >>> for first in (None, 4):
        ...     nats, scored = next_token_nats(flat, x, x == 0, first)
        ...     int(scored.sum()), round(float(nats.sum() / jnp.log(4.0)), 3)
        (2, 2.0)
        (3, 3.0)
    """
    t = jnp.zeros(tokens.shape[:1], jnp.float32)
    if first is None:
        scored = mdm.scored_by_next_token(where)
        return mdm.autoregressive(logits_fn(tokens, t), tokens, scored), scored
    objective = mdm.autoregressive_objective(prepend=first)
    _, noised = objective.prepare(jax.random.key(0), tokens, where, jnp.int32(0))  # no noise
    return objective.loss(logits_fn(noised.tokens, t), noised), noised.where


def samplers_for(process: Process | None, *, scores: bool = False) -> tuple[str, ...]:
    """Names in `SAMPLERS` that fit a process, the default one first.

    Args:
        process: the process of the model; None for an autoregressive one.
        scores: whether the model's outputs are scores.

    Examples:
        >>> samplers_for(mdm.Masked(vocab_size=4, schedule=mdm.Linear()))[0]
        'first_hitting'
        >>> samplers_for(None)
        ('left_to_right',)
    """
    if process is None:
        return ("left_to_right",)
    default = "first_hitting" if isinstance(process, mdm.Masked) else "ancestral"
    fitting = [
        name
        for name, entry in SAMPLERS.items()
        if isinstance(process, entry.processes) and entry.scores == scores
    ]
    return tuple(sorted(fitting, key=lambda name: name != default))
