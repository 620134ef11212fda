"""A zoo of VAEs, written differently on purpose, known only by their forward: `CONVERTIBLE` and `REFUSED` by name.

Each convertible one says by `described()` what a person who knows it would pass to `wrap`.
"""

import dataclasses
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import (
    Bernoulli,
    Gamma,
    Independent,
    MultivariateNormal,
    Normal,
    Poisson,
    VonMises,
)
from torch.utils.checkpoint import checkpoint

EVENT, HIDDEN, LATENTS = (1, 4, 4), 12, 4
PIXELS = 16


class Base(nn.Module):
    """A body and a head each way; what is done with them differs below."""

    kind = "log_var"
    heads = 2

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, HIDDEN), nn.Tanh())
        self.head = nn.Linear(HIDDEN, self.heads * LATENTS)
        self.tail = nn.Sequential(nn.Linear(LATENTS, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, PIXELS))

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.head(self.body(x)).chunk(2, 1)

    def draw(self, loc: Tensor, log_var: Tensor) -> Tensor:
        return loc + (0.5 * log_var).exp() * torch.randn_like(loc)

    def data(self, z: Tensor) -> Tensor:
        return self.tail(z).view(-1, *EVENT)

    def forward(self, x: Tensor) -> Any:
        loc, log_var = self.split(x)
        return self.data(self.draw(loc, log_var)), loc, log_var

    def described(self) -> dict[str, Any]:
        return {"encoder": self.split, "decoder": self.data, "encoder_scale": self.kind}


class LogVar(Base):
    """The most usual one."""


class LogStdNamedLogVar(Base):
    kind = "log_std"

    def draw(self, loc: Tensor, logvar: Tensor) -> Tensor:
        eps = torch.randn(loc.shape, device=loc.device, dtype=loc.dtype)
        return eps * logvar.exp() + loc


class Softplus(Base):
    def draw(self, loc: Tensor, raw: Tensor) -> Tensor:
        eps = torch.empty_like(loc).normal_()
        return torch.addcmul(loc, F.softplus(raw), eps)

    def described(self) -> dict[str, Any]:
        def encoder(x: Tensor) -> tuple[Tensor, Tensor]:
            loc, raw = self.split(x)
            return loc, F.softplus(raw)

        return {"encoder": encoder, "decoder": self.data, "encoder_scale": "std"}


class Variance(Base):
    """The paper's own habit: a variance with a floor."""

    kind = "var"

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        loc, raw = super().split(x)
        return loc, F.softplus(raw) + 1e-4

    def draw(self, loc: Tensor, var: Tensor) -> Tensor:
        return torch.sqrt(var) * torch.randn_like(var) + loc


class Chunked(Base):
    """One tensor to chunk, an inner encoder, and a scale halved in place."""

    def forward(self, x: Tensor) -> Tensor:
        both = self.head(self.body(x))
        std = both[:, LATENTS:].mul(0.5).exp_()
        z = torch.randn_like(std).mul_(std).add_(both[:, :LATENTS])
        return self.data(z)


class Interleaved(Base):
    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        both = self.head(self.body(x))
        return both[:, ::2], both[:, 1::2]


class DictWithLoss(Base):
    """Computes its own loss in forward and returns a dict; the loss sees data and z, the reconstruction only z."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        loc, log_var = self.split(x)
        z = self.draw(loc, log_var)
        recon = torch.sigmoid(self.data(z))
        kl = -0.5 * (1 + log_var - loc.square() - log_var.exp()).sum()
        return {"loss": F.binary_cross_entropy(recon, x, reduction="sum") + kl, "recon_x": recon, "z": z}

    def described(self) -> dict[str, Any]:
        return {**super().described(), "decoder": lambda z: torch.sigmoid(self.data(z)), "likelihood": "bernoulli"}


class BareLogits(Base):
    """Flattened logits, with the loss elsewhere: nothing in forward says that they are logits."""

    def data(self, z: Tensor) -> Tensor:
        return self.tail(z)


class Rsample(Base):
    def draw(self, loc: Tensor, log_var: Tensor) -> Tensor:
        return Independent(Normal(loc, (0.5 * log_var).exp()), 1).rsample()


class OldVariable(Base):
    """As one wrote it in 2017."""

    def draw(self, loc: Tensor, log_var: Tensor) -> Tensor:
        std = log_var.mul(0.5).exp_()
        eps = torch.autograd.Variable(std.data.new(std.size()).normal_())
        return eps.mul(std).add_(loc)


class VariableOfRandn(Base):
    def draw(self, loc: Tensor, log_var: Tensor) -> Tensor:
        eps = torch.autograd.Variable(torch.randn(loc.size(), dtype=loc.dtype))
        return loc + torch.exp(log_var / 2) * eps


class StandardNormalSample(Base):
    """Normal(0, 1).sample() draws under no_grad; that is sound, since there is nothing to differentiate."""

    def __init__(self) -> None:
        super().__init__()
        self.normal = Normal(0.0, 1.0)

    def draw(self, loc: Tensor, log_var: Tensor) -> Tensor:
        return loc + torch.exp(log_var / 2) * self.normal.sample(loc.shape).to(loc)


class NoGradDraw(Base):
    def draw(self, loc: Tensor, log_var: Tensor) -> Tensor:
        with torch.no_grad():
            eps = 2.0 * torch.randn_like(loc)
        return loc + 0.5 * torch.exp(log_var / 2) * eps


class NormalOfConstants(Base):
    def draw(self, loc: Tensor, log_var: Tensor) -> Tensor:
        eps = torch.normal(torch.zeros_like(loc), torch.ones_like(loc))
        return loc + torch.exp(log_var / 2) * eps


class NarrowNoise(Base):
    """Draws with a standard deviation of its own: sigma is dz/du of *standard* noise."""

    def draw(self, loc: Tensor, log_var: Tensor) -> Tensor:
        return loc + (0.5 * log_var).exp() * torch.normal(0.0, 0.5, loc.shape, dtype=loc.dtype)

    def described(self) -> dict[str, Any]:
        def encoder(x: Tensor) -> tuple[Tensor, Tensor]:
            loc, log_var = self.split(x)
            return loc, 0.5 * (0.5 * log_var).exp()

        return {"encoder": encoder, "decoder": self.data, "encoder_scale": "std"}


class Conditional(Base):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, LATENTS)

    def forward(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        c = self.embed(labels)
        loc, log_var = self.split(x)
        z = self.draw(loc + c, log_var)
        return self.data(z * c.cos()), z

    def described(self) -> dict[str, Any]:
        def encoder(x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            loc, log_var = self.split(x)
            return loc + self.embed(labels), log_var

        def decoder(z: Tensor, labels: Tensor) -> Tensor:
            return self.data(z * self.embed(labels).cos())

        return {"encoder": encoder, "decoder": decoder, "encoder_scale": "log_var"}


class Spatial(nn.Module):
    """A spatial latent, scaled for the decoder as latent diffusion does."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(1, 4, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(2, 1, 4, stride=2, padding=1)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return tuple(self.down(x).chunk(2, 1))

    def data(self, z: Tensor) -> Tensor:
        return self.up(z / 0.18215)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        loc, log_var = self.split(x)
        std = log_var.clamp(-30, 20).mul(0.5).exp()
        return self.data(loc + std * torch.randn(loc.shape, dtype=loc.dtype)), loc, log_var

    def described(self) -> dict[str, Any]:
        return {"encoder": self.split, "decoder": self.data, "encoder_scale": "log_var"}


class Recurrent(nn.Module):
    """1-D: sequences (batch, time, features), a latent a step, recurrent networks each way."""

    event = (6, 2)

    def __init__(self) -> None:
        super().__init__()
        self.encode_steps = nn.GRU(2, 4, batch_first=True)
        self.to_loc, self.to_raw = nn.Linear(4, 2), nn.Linear(4, 2)
        self.decode_steps = nn.LSTM(2, 2, batch_first=True)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h, _ = self.encode_steps(x)
        return self.to_loc(h), self.to_raw(h)

    def data(self, z: Tensor) -> Tensor:
        return self.decode_steps(z)[0]

    def forward(self, x: Tensor) -> list[Tensor]:
        loc, raw = self.split(x)
        return [loc, raw, self.data(Normal(loc, raw.exp()).rsample())]

    def described(self) -> dict[str, Any]:
        return {"encoder": self.split, "decoder": self.data, "encoder_scale": "log_std"}


class OnlyWhenTraining(Base):
    """Draws in training mode only; dropout below it must stay asleep in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.tail.insert(1, nn.Dropout(0.5))

    def draw(self, loc: Tensor, log_var: Tensor) -> Tensor:
        return super().draw(loc, log_var) if self.training else loc


class SamplerModule(nn.Module):
    def forward(self, loc: Tensor, log_var: Tensor) -> Tensor:
        if not self.training:
            return loc
        return loc + (0.5 * log_var).exp() * torch.randn_like(loc)


class SamplerAsLayer(Base):
    def __init__(self) -> None:
        super().__init__()
        self.sampler = SamplerModule()

    def draw(self, loc: Tensor, log_var: Tensor) -> Tensor:
        return self.sampler(loc, log_var)


class BatchNormAndInPlace(Base):
    """Batch normalisation each way, and a decoder that begins with an operation in place on z."""

    def __init__(self) -> None:
        super().__init__()
        self.body.append(nn.BatchNorm1d(HIDDEN))
        self.tail = nn.Sequential(
            nn.ReLU(inplace=True), nn.Linear(LATENTS, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.Tanh(),
            nn.Linear(HIDDEN, PIXELS),
        )  # fmt: skip

    def described(self) -> dict[str, Any]:
        return {**super().described(), "decoder": lambda z: self.data(z.clone())}


class NormalDecoder(Base):
    """Returns a distribution of the data, and one of the latents."""

    def forward(self, x: Tensor) -> dict[str, Any]:
        loc, log_var = self.split(x)
        q = Normal(loc, (0.5 * log_var).exp())
        return {"p": Independent(Normal(self.data(q.rsample()), 0.7), 3), "q": q}

    def described(self) -> dict[str, Any]:
        data = self.data
        return {
            **super().described(),
            "likelihood": "decoder",
            "decoder_scale": "std",
            "decoder": lambda z: (data(z), torch.full_like(data(z), 0.7)),
        }


@dataclasses.dataclass
class Output:
    mu: Tensor
    reconstruction: Tensor


class Dataclass(Base):
    """Keeps intermediate results in itself, too."""

    def forward(self, x: Tensor) -> Output:
        self.mu, log_var = self.split(x)
        return Output(self.mu, self.data(self.draw(self.mu, log_var)).view_as(x))


class ZeroInitialised(Base):
    """Location zero and a free, shared scale at the start: z *is* the noise, by numbers, until it is trained."""

    heads = 1

    def __init__(self) -> None:
        super().__init__()
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.log_std = nn.Parameter(torch.zeros(LATENTS))

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        loc = self.head(self.body(x))
        return loc, self.log_std.expand_as(loc)

    kind = "log_std"

    def draw(self, loc: Tensor, log_std: Tensor) -> Tensor:
        return loc + self.log_std.exp() * torch.randn_like(loc)


class FrozenZeroInitialised(ZeroInitialised):
    """The same behind a frozen body run without gradients: autograd's graph does not tell either."""

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            h = self.body(x)
        loc = self.head(h)
        return loc, self.log_std.expand_as(loc)


class CheckpointedDecoder(Base):
    reentrant = False

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        loc, log_var = self.split(x)
        z = self.draw(loc, log_var)
        return checkpoint(self.data, z, use_reentrant=self.reentrant), loc, log_var


class ReentrantCheckpoint(CheckpointedDecoder):
    reentrant = True


CONVERTIBLE: dict[str, type[nn.Module]] = {
    cls.__name__: cls
    for cls in (
        LogVar, LogStdNamedLogVar, Softplus, Variance, Chunked, Interleaved, DictWithLoss, BareLogits, Rsample,
        OldVariable, VariableOfRandn, StandardNormalSample, NoGradDraw,
        NormalOfConstants, NarrowNoise, Conditional, Spatial, Recurrent,
        OnlyWhenTraining, SamplerAsLayer, BatchNormAndInPlace, NormalDecoder, Dataclass, ZeroInitialised,
        FrozenZeroInitialised, CheckpointedDecoder,
    )
}  # fmt: skip


def example(vae: nn.Module, rows: int = 5) -> tuple:
    """Data in (0, 1) and conditions for a VAE of the zoo."""
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(rows, *getattr(vae, "event", EVENT), generator=generator, dtype=torch.get_default_dtype())
    return (x, torch.arange(rows) % 5) if isinstance(vae, Conditional) else (x,)


# ---------------------------------------------------------------------------------------------- to be refused


class VectorQuantised(Base):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h, book = self.split(x)
        code = self.head.weight[:, :LATENTS][torch.cdist(h, self.head.weight[:, :LATENTS]).argmin(1)]
        return self.data(h + (code - h).detach()), book


class Deterministic(Base):
    """Its noise was left out, as when a flag says `sample=False`."""

    def draw(self, loc: Tensor, log_var: Tensor) -> Tensor:
        return loc


class Categorical(Base):
    def draw(self, loc: Tensor, log_var: Tensor) -> Tensor:
        return F.gumbel_softmax(loc, tau=0.5)


class GammaLatent(Base):
    def draw(self, loc: Tensor, log_var: Tensor) -> Tensor:
        return Gamma(loc.exp(), log_var.exp()).rsample()


class VonMisesLatent(Base):
    def draw(self, loc: Tensor, log_var: Tensor) -> Tensor:
        return VonMises(loc, log_var.exp()).sample()


class LaplaceLatent(Base):
    def draw(self, loc: Tensor, log_var: Tensor) -> Tensor:
        return torch.distributions.Laplace(loc, log_var.exp()).rsample()


class Counts(Base):
    def forward(self, x: Tensor) -> dict[str, Any]:
        loc, log_var = self.split(x)
        return {"p": Poisson(self.data(self.draw(loc, log_var)).exp())}


class BernoulliOnly(Base):
    def forward(self, x: Tensor) -> tuple[Any, ...]:
        loc, log_var = self.split(x)
        return Bernoulli(logits=self.data(self.draw(loc, log_var))), loc, log_var


class LogitsInLoss(Base):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        loc, log_var = self.split(x)
        logits = self.data(self.draw(loc, log_var))
        return F.binary_cross_entropy_with_logits(logits, x), logits


class SampleWithoutGradient(Base):
    def draw(self, loc: Tensor, log_var: Tensor) -> Tensor:
        return Normal(loc, (0.5 * log_var).exp()).sample()


class NormalOfOutputs(Base):
    def draw(self, loc: Tensor, log_var: Tensor) -> Tensor:
        return torch.normal(loc, (0.5 * log_var).exp())


class NoGradSampling(Base):
    def draw(self, loc: Tensor, log_var: Tensor) -> Tensor:
        eps = torch.randn_like(loc)
        with torch.no_grad():
            return loc + (0.5 * log_var).exp() * eps


class DetachedLatent(Base):
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        loc, log_var = self.split(x)
        return self.data(self.draw(loc, log_var).detach()), loc, log_var


class DetachedLatentAndData(Base):
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        loc, log_var = self.split(x)
        return self.data(self.draw(loc, log_var).detach()) + x, loc, log_var


class TwoSamplers(Base):
    """Draws in training mode only, and only if two modules agree."""

    def __init__(self) -> None:
        super().__init__()
        self.sampler = SamplerModule()

    def draw(self, loc: Tensor, log_var: Tensor) -> Tensor:
        return self.sampler(loc, log_var) if self.training else loc


class NoiseAfterZ(Base):
    def data(self, z: Tensor) -> Tensor:
        return super().data(z + 0.1 * torch.randn_like(z))


class TwoLatents(Base):
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        loc, log_var = self.split(x)
        first = self.draw(loc, log_var)
        return self.data(self.draw(first.tanh(), log_var) + first), loc, log_var


class SameNoiseForAll(Base):
    def draw(self, loc: Tensor, log_var: Tensor) -> Tensor:
        return loc + (0.5 * log_var).exp() * torch.randn(LATENTS, dtype=loc.dtype)


class NoiseReachesDecoder(Base):
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        loc, log_var = self.split(x)
        eps = torch.randn_like(loc)
        return self.data(loc + (0.5 * log_var).exp() * eps) + eps.sum(), loc, log_var


class CheckpointedDraw(Base):
    def draw(self, loc: Tensor, log_var: Tensor) -> Tensor:
        return checkpoint(super().draw, loc, log_var, use_reentrant=False)


class CheckpointedDrawWhenTraining(Base):
    def draw(self, loc: Tensor, log_var: Tensor) -> Tensor:
        return (
            checkpoint(super().draw, loc, log_var, use_reentrant=False) if self.training else super().draw(loc, log_var)
        )


class Rematerialised(torch.autograd.Function):
    """Somebody's own checkpoint: forgets the noise, and draws other noise in the backward pass."""

    @staticmethod
    def forward(ctx: Any, loc: Tensor, log_var: Tensor) -> Tensor:
        ctx.save_for_backward(log_var)
        return log_var

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        return grad, grad * torch.randn_like(grad)


class RepeatedDraw(Base):
    """With dropout, so that in training mode random gradients say nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.tail.insert(1, nn.Dropout(0.5))

    def draw(self, loc: Tensor, log_var: Tensor) -> Tensor:
        return super().draw(loc, Rematerialised.apply(loc, log_var))


class FullCovariance(Base):
    def draw(self, loc: Tensor, log_var: Tensor) -> Tensor:
        lower = torch.diag_embed((0.5 * log_var).exp()) + torch.ones(LATENTS, LATENTS, dtype=loc.dtype).tril(-1)
        return MultivariateNormal(loc, scale_tril=lower).rsample()


class Quadratic(Base):
    def draw(self, loc: Tensor, log_var: Tensor) -> Tensor:
        eps = torch.randn_like(loc)
        return loc + eps * ((0.5 * log_var).exp() + 0.1 * eps)


class PosteriorFlow(Base):
    """A flow after the affine map that sees the data, and is the identity at the start."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(HIDDEN + LATENTS, LATENTS)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        loc, log_var = self.split(x)
        z = self.draw(loc, log_var)
        z = z * self.gate(torch.cat([self.body(x), z], 1)).exp()
        return self.data(z), loc, log_var


class FlowWithoutData(Base):
    """A flow after the affine map that does not see the data: the latent is what it ends in."""

    def __init__(self) -> None:
        super().__init__()
        self.planar = nn.Linear(LATENTS, LATENTS)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        z = self.draw(*self.split(x))
        z = z + 0.1 * self.planar(z).tanh()
        return {"recon": self.data(z), "z": z}


class ManySamples(Base):
    """Draws several latents for importance weighting, and returns the reconstruction of the first."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        loc, log_var = (t[:, None].repeat(1, 5, 1) for t in self.split(x))
        z = loc + (0.5 * log_var).exp() * torch.randn_like(loc)
        return self.tail(z)[:, 0].view_as(x), loc


class SkipConnection(Base):
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        loc, log_var = self.split(x)
        return self.data(self.draw(loc, log_var)) + 0.1 * x, loc, log_var


class DataInNumbers(Base):
    """The decoder sees the data through a Python number, which no graph shows."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        loc, log_var = self.split(x)
        return self.data(self.draw(loc, log_var)) * x.mean().item(), loc, log_var


class DataDetached(Base):
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        loc, log_var = self.split(x)
        return self.data(self.draw(loc, log_var)) * x.detach().mean(), loc, log_var


class NegativeScale(Base):
    def draw(self, loc: Tensor, log_var: Tensor) -> Tensor:
        return loc - (0.5 * log_var).exp() * torch.randn_like(loc)


class ScaleOfAnySign(Base):
    def draw(self, loc: Tensor, raw: Tensor) -> Tensor:
        return loc + raw * torch.randn_like(loc)


class NumpyNoise(Base):
    def draw(self, loc: Tensor, log_var: Tensor) -> Tensor:
        return loc + (0.5 * log_var).exp() * torch.from_numpy(np.random.randn(*loc.shape)).to(loc)


class FunctionalDropout(Base):
    def data(self, z: Tensor) -> Tensor:
        return F.dropout(super().data(z), 0.5)


class EditsItsInput(Base):
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return super().forward(x.mul_(2).sub_(1))


class TwoReconstructions(Base):
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        loc, log_var = self.split(x)
        logits = self.data(self.draw(loc, log_var))
        return logits, torch.sigmoid(logits), loc


class WrongShape(Base):
    def data(self, z: Tensor) -> Tensor:
        return super().data(z)[..., :3]


class NeedsLabels(Base):
    def forward(self, x: Tensor, labels: Tensor) -> Any:
        return super().forward(x + labels)


class DrawsTwiceWhenTraining(Base):
    def forward(self, x: Tensor) -> Any:
        if self.training:
            x = x + 0.1 * torch.randn_like(x)
        return super().forward(x)


class AnotherPathWhenTraining(Base):
    def draw(self, loc: Tensor, log_var: Tensor) -> Tensor:
        eps = torch.randn_like(loc)
        return loc + (0.5 * log_var).exp() * (eps * 2 if self.training else eps)


class NoiseOnly(Base):
    """Its encoder is not connected."""

    def draw(self, loc: Tensor, log_var: Tensor) -> Tensor:
        return torch.randn_like(loc) * 1.0


# For each the likelihood that must be taken from its forward.
DISCRETE: dict[type[nn.Module], str] = {
    Counts: "own density",
    BernoulliOnly: "own density",
    LogitsInLoss: "Bernoulli",
}


# For each what must be said.
REFUSED: dict[type[nn.Module], str] = {
    VectorQuantised: "draws no noise",
    Deterministic: "draws no noise",
    Categorical: "gumbel_softmax, which is not Gaussian",
    GammaLatent: "_standard_gamma, which is not Gaussian",
    VonMisesLatent: "not Gaussian",
    LaplaceLatent: "not Gaussian",
    SampleWithoutGradient: "drawn without gradients",
    NormalOfOutputs: "drawn without gradients",
    NoGradSampling: "gradients off",
    DetachedLatent: "no gradient flows",
    DetachedLatentAndData: "the data or the noise still enters",
    TwoSamplers: "in training mode only, and no single module",
    NoiseAfterZ: "expected one Gaussian draw, got 2",
    TwoLatents: "expected one Gaussian draw, got 2",
    SameNoiseForAll: "expected a draw of the batch's size",
    NoiseReachesDecoder: "the data or the noise still enters",
    CheckpointedDraw: "inside torch.utils.checkpoint",
    CheckpointedDrawWhenTraining: "in training mode z is made inside torch.utils.checkpoint",
    RepeatedDraw: "gradients change with the random state",
    ReentrantCheckpoint: "set use_reentrant=False",
    FullCovariance: "no elementwise affine map",
    Quadratic: "no elementwise affine map",
    PosteriorFlow: "no elementwise affine map",
    FlowWithoutData: "a posterior flow",
    ManySamples: "only 4 of 20 latent variables",
    SkipConnection: "the data or the noise still enters",
    DataInNumbers: "the decoder sees the data beside z",
    DataDetached: "the data or the noise still enters",
    NegativeScale: "dz/du > 0",
    ScaleOfAnySign: "dz/du > 0",
    NumpyNoise: "no draw is seen",
    FunctionalDropout: "it is random",
    EditsItsInput: "changes its input in place",
    TwoReconstructions: "several outputs are shaped like the data",
    WrongShape: "no output is shaped like the data",
    NeedsLabels: "example=\\(x, \\*conditions\\)",
    DrawsTwiceWhenTraining: "in training mode",
    AnotherPathWhenTraining: "in training mode",
    NoiseOnly: "depends on the noise alone",
}
