"""The same model and training step in PyTorch, for `launch/benchmark.py --torch` to compare with.

Written as one writes it for speed there: fused attention, norm, cross-entropy and AdamW, foreach
operations over all parameters for clipping and the moving average, in-place updates. Parameters
have the published names, so that `dit_state_dict` of the library's own parameters loads here and
both sides can be seen to compute the same loss and gradient.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdm_jax.models.configs import TIME_FEATURES, DiTConfig
from mdm_jax.models.embeddings import frequencies


class TorchDiT(nn.Module):
    """A masked diffusion `DiT` without time conditioning, in float32."""

    def __init__(self, config: DiTConfig):
        super().__init__()
        self.config = config
        width, cond = config.width, config.cond_dim
        self.vocab_embed = nn.Module()
        self.vocab_embed.embedding = nn.Parameter(torch.zeros(config.num_ids, width))
        self.sigma_map = nn.Module()
        self.sigma_map.mlp = nn.Sequential(
            nn.Linear(TIME_FEATURES, cond), nn.SiLU(), nn.Linear(cond, cond), nn.SiLU()
        )
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.layers))
        self.output_layer = nn.Module()
        self.output_layer.norm_final = nn.LayerNorm(width, bias=False)
        self.output_layer.linear = nn.Linear(width, config.num_ids)
        self.output_layer.adaLN_modulation = nn.Linear(cond, 2 * width)
        rates = torch.from_numpy(frequencies(config.head_dim))
        self.register_buffer("rates", rates, persistent=False)
        # Features of sigma = 0, which a masked model is fed: cosines, then sines.
        features = torch.cat([torch.ones(TIME_FEATURES // 2), torch.zeros(TIME_FEATURES // 2)])
        self.register_buffer("features", features, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Returns the head's inputs, float32[B, L, D], for int64[B, L] tokens."""
        x = F.embedding(tokens, self.vocab_embed.embedding)
        cond = self.sigma_map.mlp(self.features)
        angles = torch.outer(torch.arange(tokens.shape[1], dtype=torch.float32), self.rates)
        angles = torch.cat([angles, angles], dim=-1)
        cos, sin = angles.cos(), angles.sin()
        for block in self.blocks:
            x = block(x, cond, cos, sin)
        shift, scale = self.output_layer.adaLN_modulation(cond).chunk(2)
        return torch.addcmul(shift, self.output_layer.norm_final(x), 1 + scale)

    def logits(self, states: Tensor) -> Tensor:
        """Returns the logits of states, float32[..., num_ids]."""
        return self.output_layer.linear(states)


class _Block(nn.Module):
    """Attention, then an MLP, each on a modulated norm and behind a gate."""

    def __init__(self, config: DiTConfig):
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.norm1 = nn.LayerNorm(width, bias=False)
        self.attn_qkv = nn.Linear(width, 3 * width, bias=False)
        self.attn_out = nn.Linear(width, width, bias=False)
        self.norm2 = nn.LayerNorm(width, bias=False)
        hidden = config.mlp_ratio * width
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, width)
        )
        self.adaLN_modulation = nn.Linear(config.cond_dim, 6 * width)

    def forward(self, x: Tensor, cond: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(cond).chunk(6)
        h = torch.addcmul(shift1, self.norm1(x), 1 + scale1)
        batch, length, width = h.shape
        qkv = self.attn_qkv(h).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k = _rotate(qkv[:2], cos, sin)
        attended = F.scaled_dot_product_attention(q, k, qkv[2])
        attended = self.attn_out(attended.transpose(1, 2).reshape(batch, length, width))
        x = torch.addcmul(x, gate1, attended)
        h = torch.addcmul(shift2, self.norm2(x), 1 + scale2)
        return torch.addcmul(x, gate2, self.mlp(h))


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates [..., L, head_dim] by position, half-split."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def corrupt(tokens: Tensor, mask_id: int, min_time: float) -> tuple[Tensor, Tensor, Tensor]:
    """Draws stratified times and masks; returns the noised tokens, the marks and the times [B]."""
    batch = tokens.shape[0]
    t = (torch.arange(batch) + torch.rand(batch)) / batch
    t = min_time + (1 - min_time) * t
    rate = (1 - 1e-3) * t  # 1 - alpha(t) of the log-linear schedule with eps = 1e-3
    noised = torch.rand(tokens.shape) < rate[:, None]
    return torch.where(noised, mask_id, tokens), noised, t


def mean_loss(
    model: TorchDiT,
    noised_tokens: Tensor,
    targets: Tensor,
    noised: Tensor,
    t: Tensor,
    *,
    elbo: bool,
    skip: bool,
) -> Tensor:
    """Returns the masked loss, in nats per token of the batch.

    Args:
        model: the network, whose last id is the mask.
        noised_tokens: int64[B, L], what it reads.
        targets: int64[B, L], the clean tokens.
        noised: bool[B, L], which were masked.
        t: float32[B], the times.
        elbo: weight each row by 1 / t, the bound; otherwise the plain cross-entropy.
        skip: apply the head at masked positions alone, which published code does not.
    """
    states = model(noised_tokens)
    weight = (1 / t if elbo else torch.ones_like(t))[:, None] * noised
    if skip:
        states, targets, weight = states[noised], targets[noised], weight[noised]
    logits = model.logits(states)
    logits[..., -1] = -torch.inf  # the mask is never predicted
    nats = F.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="none")
    return (nats * weight.flatten()).sum() / noised.numel()


def train_step(
    model: TorchDiT,
    tokens: Tensor,
    *,
    elbo: bool,
    skip: bool = False,
    compiled: bool = False,
    min_time: float = 0.0,
    clip: float = 1.0,
    ema_decay: float = 0.999,
    betas: tuple[float, float] = (0.9, 0.999),
) -> Callable[[], float]:
    """Returns ``step() -> loss``: noise, loss, gradient, clip, AdamW and the moving average.

    Args:
        model: what to train, in place.
        tokens: int64[B, L], the batch of every step.
        elbo: see `mean_loss`.
        skip: see `mean_loss`.
        compiled: run the forward and backward pass through `torch.compile`.
        min_time: the smallest time drawn.
        clip: largest norm of the gradient.
        ema_decay: of the moving average.
        betas: of AdamW.
    """
    parameters = list(model.parameters())
    average = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, betas=betas, weight_decay=0.0, fused=True)
    loss_of = torch.compile(mean_loss) if compiled else mean_loss

    def step() -> float:
        noised_tokens, noised, t = corrupt(tokens, model.config.num_ids - 1, min_time)
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(model, noised_tokens, tokens, noised, t, elbo=elbo, skip=skip)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, clip, foreach=True)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, parameters, 1 - ema_decay)
        return loss.item()

    return step
