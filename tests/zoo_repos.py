"""VAEs in the styles of public repositories (docs/wild.md), one short class of our own for each."""

from typing import Any

import torch
import torch.nn.functional as F
import zoo
from torch import Tensor, nn
from torch.distributions import Bernoulli, Distribution, Normal, constraints

WORDS, LENGTH = 7, 5


# ---------------------------------------------------------------------- another entry than forward


class ForwardWithoutNoise(zoo.Base):
    """Like disent: forward is for looking at, training takes other methods."""

    def encode_dists(self, x: Tensor) -> tuple[Normal, Normal]:
        loc, log_var = self.split(x)
        return Normal(loc, (0.5 * log_var).exp()), Normal(torch.zeros_like(loc), torch.ones_like(loc))

    def forward(self, x: Tensor) -> Tensor:
        return self.data(self.split(x)[0])

    def trained(self, x: Tensor) -> Tensor:
        return self.data(self.encode_dists(x)[0].rsample())


class NoModule:
    """Like pixyz: an object that holds two networks, whose parameters are dicts, and a loss with its own `eval`."""

    class Loss(nn.Module):
        def eval(self, x: Any) -> Any:  # type: ignore[override]
            raise ValueError(f"expected a dict, got {x}")

    def __init__(self) -> None:
        self.net, self.loss = zoo.Base(), self.Loss()

    def encode(self, x: Tensor) -> dict[str, Tensor]:
        loc, log_var = self.net.split(x)
        return {"loc": loc, "scale": (0.5 * log_var).exp()}

    def decode(self, z: Tensor) -> Tensor:
        return self.net.data(z)

    def run(self, x: Tensor) -> Tensor:
        return self.decode(Normal(**self.encode(x)).rsample())


class SampleAxis(zoo.Base):
    """Like altosaar's: an axis of samples between rows and latents."""

    samples = 1

    def forward(self, x: Tensor) -> Tensor:
        loc, log_var = (t[:, None] for t in self.split(x))
        z = loc + (0.5 * log_var).exp() * torch.randn(len(loc), self.samples, loc.shape[-1])
        return self.tail(z)


# ---------------------------------------------------------------------- draws that the mean does not depend on


class SamplesBits(zoo.Base):
    """Returns a sample of x before its mean."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean = self.data(self.draw(*self.split(x))).sigmoid()
        return Bernoulli(mean).sample(), mean


class SamplesGaussian(zoo.Base):
    def __init__(self) -> None:
        super().__init__()
        self.log_std = nn.Parameter(torch.zeros(zoo.EVENT))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        mean = self.data(self.draw(*self.split(x)))
        return {"x": mean + self.log_std.exp() * torch.randn_like(mean), "mean": mean}


class PriorFirst(zoo.Base):
    """Draws from the prior, for a penalty and to show new data, before it draws z."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        fresh = torch.randn(len(x), zoo.LATENTS)
        loc, log_var = self.split(x)
        z = self.draw(loc, log_var)
        return self.data(fresh), self.data(z), (z.mean() - fresh.mean()).square()


class CoarseAndFine(zoo.Base):
    """Two latents; the first alone makes a reconstruction too. The second is as large as x, but no sample of it."""

    def __init__(self) -> None:
        super().__init__()
        self.more = nn.Linear(zoo.PIXELS, zoo.PIXELS)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        coarse = self.data(self.draw(*self.split(x)))
        second = coarse + torch.randn_like(coarse)
        return coarse, coarse + self.more(second.flatten(1)).view_as(coarse)


ONE_OF_SEVERAL_DRAWS = (SamplesBits, SamplesGaussian, PriorFirst)


# ---------------------------------------------------------------------- no draw at all


class BatchNormAutoencoder(zoo.Deterministic):
    def __init__(self) -> None:
        super().__init__()
        self.body.append(nn.BatchNorm1d(zoo.HIDDEN))


class MovingCodebook(zoo.Deterministic):
    """A codebook that every training pass moves: as a buffer, in place, and as a parameter that is replaced."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("sizes", torch.ones(3))
        self.book = nn.Embedding(3, zoo.LATENTS)
        self.weights = nn.Parameter(torch.ones(3), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        z = self.split(x)[0]
        nearest = torch.cdist(z, self.book.weight / self.sizes[:, None] / self.weights[:, None]).argmin(1)
        code = self.book(nearest)
        if self.training:
            self.sizes.mul_(0.9).add_(0.1 * F.one_hot(nearest, 3).sum(0))
            self.weights = nn.Parameter(0.9 * self.weights + 0.1, requires_grad=False)
            self.book.weight.data.mul_(0.9)
        return self.data(z + (code - z).detach())


def scripted_noise(like: Tensor) -> Tensor:
    return torch.randn_like(like)


class ScriptedDraw(zoo.Base):
    """Like vdvae: the draw is scripted, if scripting is on, and no mode of Python sees into it."""

    def __init__(self) -> None:
        super().__init__()
        self.noise = torch.jit.script(scripted_noise)

    def draw(self, loc: Tensor, log_var: Tensor) -> Tensor:
        return loc + (0.5 * log_var).exp() * self.noise(loc)


# ---------------------------------------------------------------------- other data


class Tokens(nn.Module):
    """Words in, logits of words out."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, 3)
        self.head, self.tail = nn.Linear(3 * LENGTH, 2 * zoo.LATENTS), nn.Linear(zoo.LATENTS, WORDS * LENGTH)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        loc, log_var = self.head(self.words(x).flatten(1)).chunk(2, 1)
        z = loc + (0.5 * log_var).exp() * torch.randn_like(loc)
        return self.logits(z, x), loc

    def logits(self, z: Tensor, x: Tensor) -> Tensor:
        return self.tail(z).view(-1, LENGTH, WORDS)


class TeacherForcing(Tokens):
    """Like Sentence-VAE: the decoder is shown the words before."""

    def logits(self, z: Tensor, x: Tensor) -> Tensor:
        before = F.pad(self.words(x).sum(-1), (1, -1))
        return super().logits(z, x) + before[..., None]


class Nodes(zoo.Base):
    """Like VGAE: rows are the nodes of one graph."""

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        x = x + x[edges[0]].mean(0)
        return self.data(self.draw(*self.split(x)))


class Graphs(nn.Module):
    """One graph a row, its edges a condition."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.tail = nn.Linear(2, 4), nn.Linear(2, 2)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        loc, log_var = (edges @ self.head(x)).chunk(2, -1)
        return edges @ self.tail(loc + (0.5 * log_var).exp() * torch.randn_like(loc))


class Shapeless(Distribution):
    """Like those of scvi-tools, which do not say their shape."""

    support = constraints.nonnegative_integer
    arg_constraints: dict = {}  # noqa: RUF012

    def __init__(self, rate: Tensor) -> None:
        super().__init__(validate_args=False)
        self.inner = torch.distributions.Poisson(rate)
        self.rate = rate

    @property
    def mean(self) -> Tensor:
        return self.rate

    @property
    def variance(self) -> Tensor:
        return self.rate

    def log_prob(self, x: Tensor) -> Tensor:
        return self.inner.log_prob(x)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self.inner.sample(sample_shape)


class ShapelessCounts(zoo.Base):
    def forward(self, x: Tensor) -> Shapeless:
        return Shapeless(self.data(self.draw(*self.split(x))).exp())


class SinglePrecisionNoise(zoo.Base):
    """Draws in float32, whatever the data are in."""

    def draw(self, loc: Tensor, log_var: Tensor) -> Tensor:
        return torch.randn(loc.shape, dtype=torch.float32).mul((0.5 * log_var).exp()).add(loc)


class SmallLinearDecoder(zoo.Base):
    def __init__(self) -> None:
        super().__init__()
        self.tail = nn.Linear(zoo.LATENTS, zoo.PIXELS)
        with torch.no_grad():
            self.tail.weight.mul_(1e-6)
            self.tail.bias.fill_(0.5)
