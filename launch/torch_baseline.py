"""The same model and training step in PyTorch, for `launch/benchmark.py --torch` to compare with.

Written as one writes it for speed there: fused attention, norm, cross-entropy and AdamW, foreach
operations over all parameters for clipping and the moving average, in-place updates. Parameters
have the published names, so that `dit_state_dict` of the library's own parameters loads here and
both sides can be seen to compute the same loss and gradient.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from mdm_jax.markdown import markdown_table
from mdm_jax.models.configs import TIME_FEATURES, DiTConfig
from mdm_jax.models.convert.dit import dit_state_dict
from mdm_jax.models.embeddings import frequencies
from mdm_jax.train.cost import step_flops
from mdm_jax.train.fields import checked
from mdm_jax.train.learners import Learner, build_learner
from mdm_jax.train.timing import one_device, product, seconds, stepper


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
        x = functional.embedding(tokens, self.vocab_embed.embedding)
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
        attended = functional.scaled_dot_product_attention(q, k, qkv[2])
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
    nats = functional.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="none")
    return (nats * weight.flatten()).sum() / noised.numel()


class Trained:
    """A model with its optimizer and moving average, in place.

    Attributes:
        model: the network.
        parameters: its parameters.
        average: their moving average.
        optimizer: AdamW, fused.
    """

    def __init__(self, model: TorchDiT, betas: tuple[float, float], learning_rate: float = 1e-4):
        self.model = model
        self.parameters = list(model.parameters())
        self.average = [p.detach().clone() for p in self.parameters]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=learning_rate, betas=betas, weight_decay=0.0, fused=True
        )


def train_step(
    trained: Trained,
    tokens: Tensor,
    *,
    elbo: bool,
    skip: bool = False,
    compiled: bool = False,
    min_time: float = 0.0,
    clip: float = 1.0,
    ema_decay: float = 0.999,
) -> Callable[[], float]:
    """Returns ``step() -> loss``: noise, loss, gradient, clip, AdamW and the moving average.

    Args:
        trained: what to train.
        tokens: int64[B, L], the batch of every step.
        elbo: see `mean_loss`.
        skip: see `mean_loss`.
        compiled: run the forward and backward pass through `torch.compile`.
        min_time: the smallest time drawn.
        clip: largest norm of the gradient.
        ema_decay: of the moving average.
    """
    model, parameters, optimizer = trained.model, trained.parameters, trained.optimizer
    loss_of = torch.compile(mean_loss) if compiled else mean_loss

    def step() -> float:
        noised_tokens, noised, t = corrupt(tokens, model.config.num_ids - 1, min_time)
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(model, noised_tokens, tokens, noised, t, elbo=elbo, skip=skip)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, clip, foreach=True)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(trained.average, parameters, 1 - ema_decay)
        return loss.item()

    return step


def model_of(params: dict, config: DiTConfig) -> TorchDiT:
    """Returns the module with the library's own parameters."""
    model = TorchDiT(config)
    state = dit_state_dict(params, config)
    state = {name.removeprefix("backbone."): value for name, value in state.items()}
    del state["rotary_emb.inv_freq"]
    model.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in state.items()})
    return model


def agreement(learner: Learner, params: dict) -> tuple[float, float]:
    """Compares both sides on the same parameters and noise, in nats per token.

    Args:
        learner: a masked model's, with or without ``train.loss_chunk``.
        params: its parameters. Those at initialization will not do: their logits are all zero.

    Returns:
        The library's loss, and the largest relative difference: of the loss, with the head
        everywhere and at masked positions alone, and of the norm of the gradient.
    """
    section = learner.config
    rows = (section["train"]["batch_size"], section["data"]["length"])
    size = learner.process.vocab_size  # pyright: ignore[reportOptionalMemberAccess]
    tokens = jax.random.randint(jax.random.key(2), rows, 0, size)
    where = jnp.ones(rows, jnp.bool_)
    inputs, noised = learner.objective.prepare(jax.random.key(3), tokens, where, jnp.int32(0))

    def loss(params):
        return learner.objective.loss(learner.apply(params, inputs, None), noised).mean()

    ours, gradient = jax.jit(jax.value_and_grad(loss))(params)
    norm = jnp.sqrt(sum(jnp.vdot(g, g) for g in jax.tree.leaves(gradient)))
    model = model_of(params, learner.network.module.config)  # pyright: ignore
    convert = lambda x: torch.from_numpy(np.array(x))
    arrays = [convert(inputs["tokens"]).long(), convert(tokens).long()]
    arrays += [convert(noised.noised), convert(noised.t).flatten()]
    differences = []
    for skip in (False, True):
        model.zero_grad()
        elbo = section["objective"]["weighting"] == "elbo"
        theirs = mean_loss(model, *arrays, elbo=elbo, skip=skip)
        theirs.backward()
        squares = [p.grad.square().sum() for p in model.parameters() if p.grad is not None]
        pairs = ((theirs.item(), ours), (sum(squares).sqrt().item(), norm))
        differences += [abs(a / float(b) - 1) for a, b in pairs]
    return float(ours), max(differences)


def steps(
    learner: Learner, params: dict, *, compiled: bool, learning_rate: float = 1e-4
) -> dict[str, Callable[[], float]]:
    """Returns the steps to time, by name: the head everywhere, at masked positions, and compiled.

    Args:
        learner: whose batch, weighting, clip and average they have.
        params: what they start from.
        compiled: with one through `torch.compile`, which needs a C++ compiler.
        learning_rate: the same at every step, as it changes no time.
    """
    section = learner.config
    config = learner.network.module.config  # pyright: ignore
    rows = (section["train"]["batch_size"], section["data"]["length"])
    step = partial(
        train_step,
        tokens=torch.randint(0, config.num_ids - 1, rows),
        elbo=section["objective"]["weighting"] == "elbo",
        min_time=section["objective"]["min_time"],
        clip=section["optimizer"]["clip"],
        ema_decay=section["ema"]["decay"],
    )
    # One model for all: each takes its own step from where the last left off, to save memory.
    model = model_of(params, config)
    betas = (section["optimizer"]["b1"], section["optimizer"]["b2"])
    trained = Trained(model, betas, learning_rate)
    candidates = {
        "PyTorch": step(trained),
        "PyTorch, head on noised positions only": step(trained, skip=True),
    }
    if compiled:
        candidates["PyTorch, torch.compile"] = step(trained, compiled=True)
    return candidates


def table(config: dict, vocab_size: int, rounds: int, *, compiled: bool) -> str:
    """The library's train step beside PyTorch's, and beside a large product's rate.

    Args:
        config: as in launch/train.py; one device, no dropout, float32.
        vocab_size: data ids.
        rounds: how often each is timed.
        compiled: `torch.compile` too.
    """
    learner = build_learner(checked(config), vocab_size, one_device())
    params = jax.jit(learner.init)(jax.random.key(0))
    moved = lambda x: x + 0.02 * jax.random.normal(jax.random.key(x.size), x.shape)
    loss, difference = agreement(learner, jax.tree.map(moved, params))
    print(f"On the same weights and noise the loss is {loss:.4f}; it and the gradient's norm agree")
    print(f"to {difference:.0e}.\n", flush=True)
    if difference > 1e-3:
        raise AssertionError("the two sides do not compute the same thing: nothing to compare")
    name, size = "mdm_jax", 2048
    candidates = {name: stepper(learner), f"product {size}": product(size, "float32")}
    candidates |= steps(learner, params, compiled=compiled)
    measured = seconds(candidates, rounds)
    flops, peak = step_flops(learner).total, 2 * size**3 / measured.pop(f"product {size}")
    lines = [
        (
            label,
            f"{1e3 * value:,.0f}",
            f"{measured[name] / value:.2f}",
            f"{flops / value / peak:.2f}",
        )
        for label, value in measured.items()
    ]
    header = ("train step", "ms", "mdm_jax's time / this", f"of a {size} product's rate")
    return markdown_table(header, lines)


def tables(rounds: int, layers: int, *, compiled: bool) -> None:
    """Prints `table` of the quickstart and of MDLM's base model on 4 x 128 tokens."""
    from configs import mdlm_owt, quickstart

    small = quickstart.get_config()
    small.train.loss_chunk = 512
    print("### quickstart\n\n" + table(small, 256, rounds, compiled=compiled), flush=True)
    large = mdlm_owt.get_config()
    large.model.update({"dtype": "float32", "dropout": 0.0, "layers": layers})
    large.train.update({"batch_size": 4, "loss_chunk": 64})
    large.data.length = 128
    print(f"\n### MDLM small, {layers} layers, 4 x 128 tokens\n", flush=True)
    print(table(large, 50_257, rounds, compiled=False), flush=True)
