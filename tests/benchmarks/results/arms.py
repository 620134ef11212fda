"""The arms of the results page: one VAE, many ways to train it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import vae2aef
from vae2aef.comparison.likelihoods import option
from vae2aef.comparison.nets import MLPVAE
from vae2aef.fan_in import FAN_IN, fan_in_scale
from vae2aef.flows import Bijection, Chain
from vae2aef.tensors import numel


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        text: one line for the page.
        options: of `wrap`.
        loss: `"aef"`, `"weighted"` (with `latent_weight`), `"decoder noise"`, `"jacobian"`, `"iwae"` (5 draws a datum),
            `"draws"` (the mean of 4 draws), `"path"` (the path derivative) or `"textbook"` (the VAE's, written out).
        sigma: sigma at a share of the training, from 0 to 1; None leaves it.
        features: `"mlp"` for h a network of one hidden layer.
        fixed_scale: the posterior has one scale for all data (SimFlow).
        bounded: the log variance of the posterior stays between -8 and 1, so that h cannot shrink at its cost.
        decoder_noise: as a share of the encoder's scale, on the latent that the decoder sees in training, at sigma = 0.
        latent_weight: the weight of prior and log-determinants at a share of the training; None for 1.
        volume_preserving: the core flow shifts only (NICE).
        small_start: h starts with a root mean square of about 0.58, and each of n values of x counts by 256 / n at
            most: what was the default when these arms were run.
    """

    text: str
    options: dict[str, Any] = field(default_factory=dict)
    loss: str = "aef"
    sigma: Callable[[float], float] | None = None
    features: str | None = None
    fixed_scale: bool = False
    bounded: bool = False
    decoder_noise: float = 0.0
    latent_weight: Callable[[float], float] | None = None
    volume_preserving: bool = False
    small_start: bool = False


def _arm(text: str, core: str, noise: float, flow: str = "none", prior: str | None = None, **more: Any) -> Arm:
    return Arm(text, {"core": core, "noise": noise, "core_flow": flow, "prior": prior}, **more)


def _small(text: str, noise: float, flow: str = "none", prior: str | None = None, **more: Any) -> Arm:
    return _arm(f"{text}, small start", "linear", noise, flow, prior, small_start=True, **more)


def _cosine(start: float, end: float) -> Callable[[float], float]:
    return lambda share: end + (start - end) * 0.5 * (1 + math.cos(math.pi * min(share / 0.8, 1.0)))


ARMS = {
    "vae": _arm("the VAE, by its ELBO", "noise", 1.0),
    "features": _arm("VAE with linear features (σ = 1)", "linear", 1.0),
    "aef": _arm("the paper's AEF (σ = 0)", "linear", 0.0),
    "aef-noise": _arm("AEF, σ = 0.3", "linear", 0.3),
    "held-0": _arm("AEF, σ = 0, scale of h held", "normalized", 0.0),
    "held-1": _arm("AEF, σ = 1, scale of h held", "normalized", 1.0),
    "held-0.3": _arm("AEF, σ = 0.3, scale of h held", "normalized", 0.3),
    "held-0.1": _arm("AEF, σ = 0.1, scale of h held", "normalized", 0.1),
    "vae-prior": _arm("VAE, coupling prior", "noise", 1.0, prior="coupling"),
    "aef-prior": _arm("the paper's AEF (σ = 0), coupling prior", "linear", 0.0, prior="coupling"),
    "noise-prior": _arm("AEF, σ = 0.3, coupling prior", "linear", 0.3, prior="coupling"),
    "held-prior": _arm("AEF, σ = 1, held, coupling prior", "normalized", 1.0, prior="coupling"),
    "anneal-down": _arm("AEF, held, σ from 1 to 0.1", "normalized", 1.0, sigma=_cosine(1.0, 0.1)),
    "anneal-up": _arm("AEF, held, σ from 0.1 to 1", "normalized", 0.1, sigma=_cosine(0.1, 1.0)),
    "held-both": _arm("AEF, σ = 1, held, coupling core flow and prior", "normalized", 1.0, "coupling", "coupling"),
    "mlp-features": _arm("AEF, σ = 0.3, h a network", "linear", 0.3, features="mlp"),
    "vae-iwae": _arm("VAE, bound of 5 draws", "noise", 1.0, loss="iwae"),
    "vae-both": _arm("VAE, coupling flow on its posterior and prior", "noise", 1.0, "coupling", "coupling"),
    "textbook": _arm("the VAE, by a script that knows nothing of vae2aef's loss", "noise", 1.0, loss="textbook"),
    "small-features": _small("VAE with linear features (σ = 1)", 1.0),
    "small-aef": _small("the paper's AEF (σ = 0)", 0.0),
    "small-noise": _small("AEF, σ = 0.3", 0.3),
    "small-aef-prior": _small("the paper's AEF (σ = 0), coupling prior", 0.0, prior="coupling"),
    "small-noise-prior": _small("AEF, σ = 0.3, coupling prior", 0.3, prior="coupling"),
    "noise-flow": _small("AEF, σ = 0.3, coupling core flow", 0.3, "coupling"),
    "noise-flow-path": _small("the same, path derivative", 0.3, "coupling", loss="path"),
    "noise-both": _small("AEF, σ = 0.3, coupling core flow and prior", 0.3, "coupling", "coupling"),
    "aef-both": _small("the paper's AEF (σ = 0), coupling core flow and prior", 0.0, "coupling", "coupling"),
    "iwae": _small("AEF, σ = 0.3, bound of 5 draws", 0.3, loss="iwae"),
    "draws": _small("AEF, σ = 0.3, mean of 4 draws", 0.3, loss="draws"),
    "simflow": _small("AEF, σ = 0.3, one posterior scale, coupling prior", 0.3, prior="coupling", fixed_scale=True),
    "bounded-0": _small("AEF, σ = 0, scale of the posterior between 0.02 and 1.6", 0.0, bounded=True),
    "volume-flow-0": _small("AEF, σ = 0, core flow that keeps volumes", 0.0, volume_preserving=True),
    "flow-0": _small("AEF, σ = 0, coupling core flow", 0.0, "coupling"),
    "decoder-noise-0": _small("AEF, σ = 0, noise on what the decoder sees", 0.0, loss="decoder noise",
                              decoder_noise=0.3),
    "jacobian-0": _small("AEF, σ = 0, Jacobian of the decoder penalised", 0.0, loss="jacobian", decoder_noise=0.3),
    "warm-up-0": _small("AEF, σ = 0, weight of the latent's terms from 0.2 to 1", 0.0, loss="weighted",
                        latent_weight=lambda share: min(1.0, 0.2 + 1.6 * share)),
    "center": _arm("AEF, the middle of x as core (exact)", "center", 0.0),
    "gaussian": Arm("no VAE: a Gaussian on x, its covariance by Ledoit and Wolf"),
    "flow": Arm("no VAE: a flow on x, eight affine couplings"),
}  # fmt: skip
DENSITIES = ("gaussian", "flow")
"""Arms that are no VAE."""

MAIN = (
    "vae",
    "features",
    "aef",
    "aef-noise",
    "held-0",
    "held-1",
    "vae-prior",
    "aef-prior",
    "noise-prior",
    "center",
    *DENSITIES,
)
TRIED = tuple(name for name in ARMS if name not in MAIN)


class _OneScale(nn.Module):
    def __init__(self, latents: int) -> None:
        super().__init__()
        self.log_var = nn.Parameter(torch.full((latents,), -2.0))

    def forward(self, hidden: Tensor) -> Tensor:
        return self.log_var.expand(len(hidden), -1)


class _Between(nn.Module):
    """A log variance between two bounds, softly; one of 0, where the VAE starts, becomes -0.3."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.low, self.high = low, high

    def forward(self, log_var: Tensor) -> Tensor:
        below = self.high - nn.functional.softplus(self.high - log_var)
        return self.low + nn.functional.softplus(below - self.low)


class _Shift(Bijection):
    """Additive coupling (Dinh et al., 2015): half of the values moved by a network of the others; log|det| is 0."""

    def __init__(self, features: int, flip: bool) -> None:
        super().__init__()
        kept = torch.arange(features) % 2 == int(flip)
        self.register_buffer("kept", kept)
        self.net = nn.Sequential(nn.Linear(features, 64), nn.SiLU(), nn.Linear(64, features))
        nn.init.zeros_(self.net[2].weight)
        nn.init.zeros_(self.net[2].bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x + torch.where(self.kept, 0.0, self.net(torch.where(self.kept, x, 0.0))), x.new_zeros(len(x))

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return y - torch.where(self.kept, 0.0, self.net(torch.where(self.kept, y, 0.0))), y.new_zeros(len(y))


def build(
    name: str, seed: int, example: Tensor, latents: int, likelihood: str, bins: int, preprocess: Any
) -> vae2aef.AEF:
    """Make an arm; the VAE has the same initial weights in all arms of a seed.

    Raises:
        WrapError: if the likelihood does not go with the arm (a partition of discrete data).
    """
    arm = ARMS[name]
    torch.manual_seed(seed)
    vae = MLPVAE(tuple(example.shape[1:]), latents)
    if preprocess is None:
        vae.standardise(example)
    if arm.fixed_scale:
        vae.to_log_var = _OneScale(latents)
    if arm.bounded:
        vae.to_log_var = nn.Sequential(vae.to_log_var, _Between(-8.0, 1.0))
    options = dict(arm.options)
    if arm.features == "mlp":
        size = numel(example.shape[1:])
        options["core"] = nn.Sequential(nn.Flatten(), nn.Linear(size, 256), nn.SiLU(), nn.Linear(256, latents))
    torch.manual_seed(seed + 1000)
    if arm.volume_preserving:
        options["core_flow"] = Chain(*(_Shift(latents, flip) for flip in (False, True, False, True)))
    aef = vae2aef.wrap(
        vae,
        example=example,
        preprocess=copy.deepcopy(preprocess),
        likelihood=option(likelihood, example, bins),
        encoder=vae.encode,  # as they are: a traced forward looks at values, which a captured graph cannot
        decoder=vae.decode,
        encoder_scale="log_var",
        **options,
    )
    if arm.small_start:
        start_small(aef.core.features)
    return aef


@torch.no_grad()
def start_small(features: Any) -> None:
    """Give linear features the start that they had before: W as torch's linear layer draws it, on data of unit spread.

    Its entries are uniform in +-1 / sqrt(n), so that the largest tells by how much they were scaled.
    """
    values = features.linear.in_features
    drawn = features.linear.weight / features.linear.weight.abs().max() * values**-0.5
    before = min(1.0, FAN_IN / values)
    features.scale.mul_(before / fan_in_scale(values))
    features.linear.weight.copy_(drawn / before)
