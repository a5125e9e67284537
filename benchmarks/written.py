"""Models as people write them by hand: architectures, tricks and loops that no library's configuration contains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

Make = Callable[[], tuple[nn.Module, Any]]


def _random(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ---- pictures ----------------------------------------------------------------------------------------------
class UNet(nn.Module):
    """Down, up by transposed convolutions, skips by concatenation; sizes that do not divide are padded."""

    def __init__(self) -> None:
        super().__init__()

        def block(a: int, b: int) -> nn.Module:
            return nn.Sequential(
                nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU(inplace=True), nn.Dropout2d(0.1)
            )

        self.down = nn.ModuleList([block(3, 4), block(4, 8)])
        self.middle = block(8, 16)
        self.up = nn.ModuleList([nn.ConvTranspose2d(16, 8, 2, stride=2), nn.ConvTranspose2d(8, 4, 2, stride=2)])
        self.back = nn.ModuleList([block(16, 8), block(8, 4)])
        self.out = nn.Conv2d(4, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skips = []
        for block in self.down:
            x = block(x)
            skips.append(x)
            x = F.max_pool2d(x, 2)
        x = self.middle(x)
        for up, block, skip in zip(self.up, self.back, reversed(skips), strict=True):
            x = up(x)
            x = F.pad(x, [0, skip.shape[-1] - x.shape[-1], 0, skip.shape[-2] - x.shape[-2]])
            x = block(torch.cat([skip, x], dim=1))
        return self.out(x)


class DenseNet(nn.Module):
    """Every layer sees all before it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(3 + 4 * k), nn.ReLU(), nn.Conv2d(3 + 4 * k, 4, 3, padding=1)) for k in range(3)
        )
        self.head = nn.Linear(15, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = [x]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        return self.head(F.adaptive_avg_pool2d(torch.cat(features, 1), 1).flatten(1))


class SqueezeExcite(nn.Module):
    """Gated channels, stochastic depth by hand, a residual that is written in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.gate = nn.Sequential(nn.Linear(4, 2), nn.SiLU(), nn.Linear(2, 4), nn.Sigmoid())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        y = y * self.gate(y.mean((2, 3)))[:, :, None, None]
        if self.training:
            keep = torch.rand(x.shape[0], 1, 1, 1, dtype=x.dtype, device=x.device).add_(0.8).floor_()
            y = y.div(0.8) * keep
        y += x
        return y.relu_()


class SpatialTransformer(nn.Module):
    """A grid that a network predicts, and a picture sampled at it."""

    def __init__(self) -> None:
        super().__init__()
        self.locate = nn.Linear(2 * 5 * 6, 6)
        self.conv = nn.Conv2d(2, 3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        theta = 0.3 * self.locate(x.flatten(1)).view(-1, 2, 3) + torch.eye(2, 3, dtype=x.dtype)
        grid = F.affine_grid(theta, list(x.shape), align_corners=False)
        return self.conv(F.grid_sample(x, grid, align_corners=False))


class PatchMixer(nn.Module):
    """einsum for everything, patches by unfold and by reshape."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.channels = nn.Parameter(_random(4, 4)), nn.Parameter(_random(12, 8, seed=2))
        self.heads = nn.Parameter(_random(2, 8, 3, seed=3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, c, h, w = x.shape
        p = x.reshape(b, c, h // 2, 2, w // 2, 2)
        p = torch.einsum("bchpwq->bhwpqc", p).reshape(b, -1, 4 * c)
        p = torch.einsum("bnc,cd->bnd", p, self.channels)
        p = torch.einsum("...nd,mn->...md", p, self.tokens).tanh()
        q = torch.einsum("bnd,hde->bhne", p, self.heads)
        a = torch.einsum("bhne,bhme->bhnm", q, q).softmax(-1)
        u = F.unfold(x, 2, stride=2).transpose(1, 2)
        return torch.einsum("bhnm,bhme,bnc->bhec", a, q, u)


# ---- sequences ---------------------------------------------------------------------------------------------
class Seq2Seq(nn.Module):
    """LSTM encoder, a decoder unrolled over LSTMCell with additive attention and teacher forcing."""

    def __init__(self) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(9, 4, padding_idx=0), nn.Embedding(9, 4)
        self.encoder = nn.LSTM(4, 3, 2, bidirectional=True, batch_first=True, dropout=0.2)
        self.cell = nn.LSTMCell(4 + 6, 6)
        self.query, self.key, self.score = nn.Linear(6, 5), nn.Linear(6, 5, bias=False), nn.Linear(5, 1)
        self.out = nn.Linear(12, 9)

    def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        memory, (h, c) = self.encoder(self.source(source))
        state = (torch.cat([h[-2], h[-1]], 1), torch.cat([c[-2], c[-1]], 1))
        keys, mask = self.key(memory), source.eq(0)
        context, losses = memory.new_zeros(memory.shape[0], 6), []
        for t in range(target.shape[1] - 1):
            state = self.cell(torch.cat([self.target(target[:, t]), context], 1), state)
            scores = self.score(torch.tanh(self.query(state[0])[:, None] + keys)).squeeze(-1)
            weights = scores.masked_fill(mask, float("-inf")).softmax(-1)
            context = torch.bmm(weights[:, None], memory).squeeze(1)
            logits = self.out(torch.cat([state[0], context], 1))
            losses.append(F.cross_entropy(logits, target[:, t + 1], ignore_index=0))
        return torch.stack(losses).mean()


class CharCnnTagger(nn.Module):
    """Characters by convolution and maximum over time, words by a packed GRU, tags by CRF-like log-sums."""

    def __init__(self) -> None:
        super().__init__()
        self.chars, self.conv = nn.Embedding(12, 4), nn.Conv1d(4, 5, 3, padding=1)
        self.rnn, self.emit = nn.GRU(5, 4, batch_first=True, bidirectional=True), nn.Linear(8, 3)
        self.moves = nn.Parameter(_random(3, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, t, k = x.shape
        words = self.conv(self.chars(x.view(b * t, k)).transpose(1, 2)).amax(-1).view(b, t, -1)
        packed = nn.utils.rnn.pack_padded_sequence(words, [t, t - 2], batch_first=True)
        hidden, _ = nn.utils.rnn.pad_packed_sequence(self.rnn(packed)[0], batch_first=True)
        emitted = self.emit(hidden)
        alpha = emitted[:, 0]
        for step in range(1, t):
            alpha = torch.logsumexp(alpha[:, :, None] + self.moves + emitted[:, step, None], dim=1)
        return alpha.logsumexp(1).mean()


class Rotary(nn.Module):
    """Causal attention with rotated queries, by complex numbers, and a cache of past keys written in place."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, t, d = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, 2, 4).unbind(2)
        angles = torch.outer(torch.arange(t, dtype=x.dtype), 1.0 / 100 ** (torch.arange(0, 4, 2, dtype=x.dtype) / 4))
        turn = torch.polar(torch.ones_like(angles), angles)[None, :, None]

        def rotated(z: torch.Tensor) -> torch.Tensor:
            pairs = torch.view_as_complex(z.reshape(b, t, 2, 2, 2))
            return torch.view_as_real(pairs * turn).flatten(3)

        q, k = rotated(q), rotated(k)
        cache = torch.zeros(b, t + 2, 2, 4, dtype=x.dtype)
        cache[:, :t] = k
        scores = torch.einsum("bqhd,bkhd->bhqk", q, cache[:, :t]) / 2.0
        scores = scores.masked_fill(torch.triu(torch.ones(t, t, dtype=torch.bool), 1), float("-inf"))
        mixed = torch.einsum("bhqk,bkhd->bqhd", F.dropout(scores.softmax(-1), 0.1, self.training), v)
        return self.out(mixed.reshape(b, t, d))


class Spectral(nn.Module):
    """A layer in the Fourier domain with complex weights kept as pairs of real ones."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.5 * _random(3, 3, 4, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        modes = torch.fft.rfft(x, dim=-1)
        mixed = torch.einsum("bim,iom->bom", modes[..., :4], torch.view_as_complex(self.weight))
        full = torch.zeros(x.shape[0], 3, modes.shape[-1], dtype=mixed.dtype)
        full[..., :4] = mixed
        return torch.fft.irfft(full, n=x.shape[-1], dim=-1) + x


class StateSpace(nn.Module):
    """A diagonal linear recurrence, as a loop over steps and as a convolution by the Fourier transform."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Parameter(_random(4, seed=s)) for s in (1, 2, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        decay, state, outputs = torch.sigmoid(self.a), x.new_zeros(x.shape[0], 4), []
        for u in x.unbind(1):
            state = decay * state + self.b * u[:, None]
            outputs.append((state * self.c).sum(-1))
        slow = torch.stack(outputs, 1)
        n = x.shape[1]
        kernel = torch.einsum("s,sn->n", self.b * self.c, decay[:, None] ** torch.arange(n, dtype=x.dtype))
        fast = torch.fft.irfft(torch.fft.rfft(x, 2 * n) * torch.fft.rfft(kernel, 2 * n), 2 * n)[:, :n]
        return slow + 0.5 * fast


# ---- likelihoods and games ---------------------------------------------------------------------------------
class Vae(nn.Module):
    """The reparametrised sample, and the bound in closed form."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(6, 8), nn.Sequential(nn.Linear(4, 6), nn.Sigmoid())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean, logvar = self.encode(x).chunk(2, -1)
        z = mean + torch.randn_like(logvar) * (0.5 * logvar).exp()
        loss = F.binary_cross_entropy(self.decode(z), x.sigmoid(), reduction="sum")
        return (loss - 0.5 * torch.sum(1 + logvar - mean.pow(2) - logvar.exp())) / len(x)


class VaeByDistributions(Vae):
    """The same by torch.distributions."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean, logvar = self.encode(x).chunk(2, -1)
        q = torch.distributions.Normal(mean, (0.5 * logvar).exp(), validate_args=False)
        p = torch.distributions.Normal(torch.zeros_like(mean), 1.0, validate_args=False)
        z = q.rsample()
        seen = torch.distributions.Bernoulli(logits=self.decode[0](z), validate_args=False).log_prob(
            x.sigmoid().round()
        )
        return (torch.distributions.kl_divergence(q, p).sum(-1) - seen.sum(-1)).mean()


class Gan(nn.Module):
    """The generator's and the discriminator's loss in one step, with spectral and weight normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Sequential(
            nn.Linear(3, 5), nn.BatchNorm1d(5), nn.LeakyReLU(0.2), nn.Linear(5, 4), nn.Tanh()
        )
        self.critic = nn.Sequential(
            parametrizations.spectral_norm(nn.Linear(4, 5)),
            nn.LeakyReLU(0.2),
            parametrizations.weight_norm(nn.Linear(5, 1)),
        )

    def forward(self, real: torch.Tensor) -> torch.Tensor:
        fake = self.generator(torch.randn(real.shape[0], 3, dtype=real.dtype))
        score_real, score_fake = self.critic(real), self.critic(fake.detach())
        ones, zeros = torch.ones_like(score_real), torch.zeros_like(score_fake)
        d = F.binary_cross_entropy_with_logits(score_real, ones) + F.binary_cross_entropy_with_logits(score_fake, zeros)
        return d + F.softplus(-self.critic(fake)).mean() + F.relu(1 - score_real).mean()


class Siamese(nn.Module):
    """Shared weights on both sides, a contrastive loss over all pairs, a temperature that is learned."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.scale = (
            nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 4)),
            nn.Parameter(torch.tensor(1.5)),
        )

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        x, y = F.normalize(self.body(a), dim=-1), F.normalize(self.body(b), dim=-1)
        logits = self.scale.exp().clamp(max=100) * x @ y.t()
        labels = torch.arange(len(a))
        both = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.t(), labels)) / 2
        return both + F.triplet_margin_loss(x, y, y.roll(1, 0)) + F.cosine_embedding_loss(x, y, torch.ones(len(a)))


class MixtureDensity(nn.Module):
    """Mixture weights, means and scales from one head; the likelihood by logsumexp and cumulative sums."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 9)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight, mean, scale = self.head(x).split(3, dim=-1)
        z = (x[:, :1] - mean.cumsum(-1)) / F.softplus(scale).clamp_min(1e-2)
        density = -0.5 * z**2 - torch.log(F.softplus(scale).clamp_min(1e-2)) - 0.9189385332046727
        return -torch.logsumexp(F.log_softmax(weight, -1) + density, -1).mean()


# ---- routing, graphs, memory -------------------------------------------------------------------------------
class Experts(nn.Module):
    """Top-k routing with rows gathered for each expert and added back, and a loss for balance."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(6, 4, bias=False)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(6, 8), nn.SiLU(), nn.Linear(8, 6)) for _ in range(4))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        probabilities = self.router(x).softmax(-1)
        weight, chosen = probabilities.topk(2, dim=-1)
        weight = weight / weight.sum(-1, keepdim=True)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            rows, place = torch.where(chosen == number)
            if rows.numel():
                out.index_add_(0, rows, expert(x[rows]) * weight[rows, place, None])
        share = F.one_hot(chosen, 4).to(x.dtype).mean((0, 1))
        return out, (share * probabilities.mean(0)).sum() * 4


class DenseExperts(Experts):
    """The same without a look at values: every expert on every row, weights placed by scatter."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        weight, chosen = self.router(x).topk(2, dim=-1)
        gates = torch.zeros(len(x), 4, dtype=x.dtype).scatter(1, chosen, weight.softmax(-1))
        return torch.einsum("ne,end->nd", gates, torch.stack([expert(x) for expert in self.experts]))


class GraphNet(nn.Module):
    """Messages along edges: gather, scatter by sum, mean and maximum, degrees, attention over neighbours."""

    EDGES = torch.tensor([[0, 1, 2, 3, 4, 0, 2], [1, 2, 0, 4, 3, 3, 4]])

    def __init__(self) -> None:
        super().__init__()
        self.message, self.update = nn.Linear(8, 4), nn.GRUCell(8, 4)
        self.score = nn.Linear(8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        source, target = self.EDGES
        for _ in range(2):
            pair = torch.cat([x[source], x.index_select(0, target)], -1)
            m = F.leaky_relu(self.message(pair))
            raw = self.score(pair).squeeze(-1)
            top = torch.full((len(x),), -1e9, dtype=x.dtype).scatter_reduce(0, target, raw, "amax")
            e = (raw - top[target]).exp()
            total = torch.zeros(len(x), dtype=x.dtype).index_add_(0, target, e)
            a = e / total[target]
            mixed = torch.zeros_like(x).scatter_add(0, target[:, None].expand(-1, 4), a[:, None] * m)
            degree = torch.bincount(target, minlength=len(x)).clamp(min=1).to(x.dtype)
            mean = torch.zeros_like(x).index_add(0, target, m) / degree[:, None]
            x = self.update(torch.cat([mixed, mean], -1), x)
        return x


class Memory(nn.Module):
    """A moving average of keys that is updated by hand, a counter, and a queue that is written in place."""

    keys: torch.Tensor
    queue: torch.Tensor
    steps: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 4)
        self.register_buffer("keys", _random(5, 4))
        self.register_buffer("queue", _random(8, 4, seed=2))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.body(x)
        distance = torch.cdist(z, self.keys)
        nearest = distance.argmin(-1)
        quantised = z + (self.keys[nearest] - z).detach()
        if self.training:
            with torch.no_grad():
                hot = F.one_hot(nearest, 5).to(z.dtype)
                self.keys.mul_(0.9).add_(hot.t() @ z, alpha=0.1)
                self.queue[: len(z)] = z
                self.queue.copy_(self.queue.roll(3, 0))
                self.steps += 1
        logits = torch.cat([(quantised * z).sum(-1, keepdim=True), quantised @ self.queue.clone().detach().t()], 1)
        return F.cross_entropy(logits / 0.2, torch.zeros(len(x), dtype=torch.long)) + F.mse_loss(z, quantised.detach())


# ---- tricks ------------------------------------------------------------------------------------------------
class Rounded(torch.autograd.Function):
    """Rounds, and lets the gradient through."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scale: float) -> torch.Tensor:
        ctx.save_for_backward(x)
        ctx.scale = scale
        return (x / scale).round() * scale

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (x,) = ctx.saved_tensors
        return grads[0] * (x.abs() < 2).to(x.dtype), None


class Quantised(nn.Module):
    """Straight-through estimates: by a Function and by detach; a gradient that is turned around."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        w = self.first.weight
        binary = w + (w.sign() * w.abs().mean() - w).detach()
        y: Any = Rounded.apply(F.linear(x, binary, self.first.bias).clamp(-3, 3), 0.1)
        hard = F.gumbel_softmax(y, hard=True)
        return self.second(y + hard) - 0.1 * self.second(2 * y.detach() - y)


class Checkpointed(nn.Module):
    """Parts that are computed again on the way back, with dropout inside."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Dropout(0.2)) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for k, block in enumerate(self.blocks):
            y: Any = checkpoint(block, x, use_reentrant=k == 0)
            x = x + y
        return x


class Containers(nn.Module):
    """Parameters in lists and dicts, modules in dicts, a parameter that is used under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.scales = nn.ParameterList([nn.Parameter(_random(6, seed=s)) for s in (1, 2)])
        self.named = nn.ParameterDict(
            {"left": nn.Parameter(_random(6, 3)), "right": nn.Parameter(_random(3, 6, seed=4))}
        )
        self.heads = nn.ModuleDict({"a": nn.Linear(6, 6), "b": nn.Linear(6, 6, bias=False)})
        self.heads["b"].weight = self.heads["a"].weight
        self.frozen = nn.Linear(6, 6).requires_grad_(False)

    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        for scale in self.scales:
            x = x * scale
        low = torch.linalg.multi_dot([x, self.named["left"], self.named["right"]])
        return {"out": [self.heads["a"](low), self.heads["b"](self.frozen(x))], "size": x.shape[0]}


class InPlace(nn.Module):
    """Views that are written through, masks that are filled, a result that is assembled piece by piece."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.body(x).clone()
        left, right = y[:, :3], y[:, 3:]
        left.mul_(2).sub_(right)
        right[right > 0.5] = 0.25
        y.view(-1, 2, 3)[:, 1] += left * 0.5
        y.masked_fill_(y < -1, -1.0)
        out = y.new_empty(len(y), 4)
        for k in range(4):
            out[:, k] = y[:, k] * y[:, k + 1].exp().clamp(max=3) if k % 2 else y[:, k].square()
        out[0].zero_()
        out[1, 1:3] = torch.stack([y[0, 0], y[1, 1]])
        out.t_()
        return F.relu_(out.add_(0.3)).transpose(0, 1)


class Hyper(nn.Module):
    """One network makes the weights of another, called by functional_call on a template."""

    def __init__(self) -> None:
        super().__init__()
        self.maker, self.template = nn.Linear(3, 6 * 2 + 2), [nn.Linear(6, 2)]
        self.code = nn.Parameter(_random(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made = self.maker(self.code)
        given = {"weight": made[:12].view(2, 6), "bias": made[12:]}
        return torch.func.functional_call(self.template[0], given, (x,)).tanh()


class Ode(nn.Module):
    """Runge-Kutta steps through a field, and the divergence of that field by a probe."""

    def __init__(self) -> None:
        super().__init__()
        self.field = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = 0.25
        for _ in range(4):
            a = self.field(x)
            b = self.field(x + h / 2 * a)
            c = self.field(x + h / 2 * b)
            x = x + h / 6 * (a + 2 * b + 2 * c + self.field(x + h * c))
        return x


class Implicit(nn.Module):
    """Linear algebra inside: a Gaussian process's likelihood, a whitening, a solve, an orthogonal layer."""

    def __init__(self) -> None:
        super().__init__()
        self.length, self.noise = nn.Parameter(torch.tensor(0.3)), nn.Parameter(torch.tensor(-1.0))
        self.turn = parametrizations.orthogonal(nn.Linear(3, 3, bias=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.turn(x)
        k = torch.exp(-0.5 * torch.cdist(y, y).square() / F.softplus(self.length) ** 2)
        k = k + F.softplus(self.noise) * torch.eye(len(x), dtype=x.dtype)
        low = torch.linalg.cholesky(k)
        alpha = torch.cholesky_solve(x[:, :1], low)
        fit = (x[:, :1] * alpha).sum() + 2 * low.diagonal().log().sum()
        centred = y - y.mean(0)
        values, vectors = torch.linalg.eigh(centred.t() @ centred / len(x) + 0.1 * torch.eye(3, dtype=x.dtype))
        white = centred @ vectors @ torch.diag(values.rsqrt()) @ vectors.t()
        singular = torch.linalg.svdvals(y)
        return fit + white.pow(3).mean() + singular.sum() + torch.linalg.matrix_exp(0.1 * (y.t() @ y)).trace()


class Contrast(nn.Module):
    """CTC over characters with lengths, label smoothing, focal and dice losses, quantiles and sorting."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.body(x)  # (time, batch, classes)
        labels = torch.tensor([[1, 2], [3, 3]])
        ctc = F.ctc_loss(z.log_softmax(-1), labels, torch.tensor([6, 5]), torch.tensor([2, 1]), zero_infinity=True)
        p, t = z[..., 0].sigmoid(), (x[..., 0] > 0).to(x.dtype)
        focal = ((1 - p * t - (1 - p) * (1 - t)) ** 2 * F.binary_cross_entropy(p, t, reduction="none")).mean()
        dice = 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)
        ordered = z.flatten().sort(descending=True).values
        spread = torch.quantile(z[..., 1], 0.8) - z[..., 1].median() + ordered[:5].mean() - ordered.kthvalue(3).values
        return ctc + focal + dice + spread + F.huber_loss(z[..., 2], x[..., 1], delta=0.7)


class Bags(nn.Module):
    """EmbeddingBag with offsets and weights, an embedding with a bound on its norm left alone, a factor model."""

    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(10, 4, mode="sum", include_last_offset=True)
        self.mean, self.most = nn.EmbeddingBag(10, 4, mode="mean", padding_idx=0), nn.EmbeddingBag(10, 4, mode="max")
        self.weight = nn.Parameter(_random(6))
        self.mix = nn.Bilinear(4, 4, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        flat = ids.flatten()[:6]
        summed = self.bag(flat, torch.tensor([0, 2, 2, 6]), per_sample_weights=self.weight)
        return self.mix(summed[: len(ids)], self.mean(ids)) + self.most(ids)[:, :3]


def written() -> dict[str, Make]:
    """name -> the maker of a model and what it is called with."""
    ids = torch.tensor([[1, 2, 8, 0, 3], [4, 5, 0, 0, 0]])
    edges = _random(5, 4)
    batches: dict[type[nn.Module], Any] = {
        UNet: _random(2, 3, 10, 9),
        DenseNet: _random(2, 3, 6, 6),
        SqueezeExcite: _random(3, 4, 5, 5),
        SpatialTransformer: _random(2, 2, 5, 6),
        PatchMixer: _random(2, 3, 4, 4),
        Seq2Seq: (ids, torch.tensor([[1, 3, 4, 2], [1, 5, 2, 0]])),
        CharCnnTagger: torch.arange(48).reshape(2, 4, 6) % 12,
        Rotary: _random(2, 5, 8),
        Spectral: _random(2, 3, 12),
        StateSpace: _random(2, 7),
        Vae: _random(4, 6),
        VaeByDistributions: _random(4, 6),
        Gan: _random(5, 4),
        Siamese: (_random(4, 6), _random(4, 6, seed=2)),
        MixtureDensity: _random(5, 3),
        Experts: _random(7, 6),
        DenseExperts: _random(7, 6),
        GraphNet: edges,
        Memory: _random(4, 6),
        Quantised: _random(4, 6),
        Checkpointed: _random(4, 6),
        Containers: _random(4, 6),
        InPlace: _random(4, 6),
        Hyper: _random(4, 6),
        Ode: _random(4, 3),
        Implicit: _random(5, 3),
        Contrast: _random(6, 2, 4),
        Bags: ids,
    }

    def make(cls: type[nn.Module], batch: Any) -> Make:
        return lambda: (cls(), batch)

    return {cls.__name__: make(cls, batch) for cls, batch in batches.items()}
