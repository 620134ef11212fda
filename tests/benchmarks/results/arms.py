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
from vae2aef.batch import Batch
from vae2aef.comparison.likelihoods import option
from vae2aef.comparison.nets import MLPVAE
from vae2aef.tensors import numel

Loss = Callable[[vae2aef.AEF, Tensor], Tensor]


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        text: one line for the page.
        options: of `wrap`.
        loss: `"aef"`, `"iwae"` (5 draws a datum), `"draws"` (the mean of 4 draws), `"path"` (the path derivative) or
            `"textbook"` (the VAE's, written out).
        sigma: sigma at a share of the training, from 0 to 1; None leaves it.
        features: `"mlp"` for h a network of one hidden layer.
        fixed_scale: the posterior has one scale for all data (SimFlow).
    """

    text: str
    options: dict[str, Any] = field(default_factory=dict)
    loss: str = "aef"
    sigma: Callable[[float], float] | None = None
    features: str | None = None
    fixed_scale: bool = False


def _arm(text: str, core: str, noise: float, flow: str = "none", prior: str | None = None, **more: Any) -> Arm:
    return Arm(text, {"core": core, "noise": noise, "core_flow": flow, "prior": prior}, **more)


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
    "noise-flow": _arm("AEF, σ = 0.3, coupling core flow", "linear", 0.3, "coupling"),
    "noise-flow-path": _arm("the same, path derivative", "linear", 0.3, "coupling", loss="path"),
    "noise-both": _arm("AEF, σ = 0.3, coupling core flow and prior", "linear", 0.3, "coupling", "coupling"),
    "vae-both": _arm("VAE, coupling flow on its posterior and prior", "noise", 1.0, "coupling", "coupling"),
    "aef-both": _arm("the paper's AEF (σ = 0), coupling core flow and prior", "linear", 0.0, "coupling", "coupling"),
    "anneal-down": _arm("AEF, held, σ from 1 to 0.1", "normalized", 1.0, sigma=_cosine(1.0, 0.1)),
    "anneal-up": _arm("AEF, held, σ from 0.1 to 1", "normalized", 0.1, sigma=_cosine(0.1, 1.0)),
    "mlp-features": _arm("AEF, σ = 0.3, h a network", "linear", 0.3, features="mlp"),
    "iwae": _arm("AEF, σ = 0.3, bound of 5 draws", "linear", 0.3, loss="iwae"),
    "vae-iwae": _arm("VAE, bound of 5 draws", "noise", 1.0, loss="iwae"),
    "draws": _arm("AEF, σ = 0.3, mean of 4 draws", "linear", 0.3, loss="draws"),
    "simflow": _arm("AEF, σ = 0.3, one posterior scale, coupling prior", "linear", 0.3, prior="coupling",
                    fixed_scale=True),
    "held-both": _arm("AEF, σ = 1, held, coupling core flow and prior", "normalized", 1.0, "coupling", "coupling"),
    "textbook": _arm("the VAE, by a script that knows nothing of vae2aef's loss", "noise", 1.0, loss="textbook"),
    "center": _arm("AEF, the middle of x as core (exact)", "center", 0.0),
}  # fmt: skip
MAIN = ("vae", "features", "aef", "aef-noise", "held-0", "held-1", "vae-prior", "aef-prior", "noise-prior", "center")
TRIED = tuple(name for name in ARMS if name not in MAIN)


class _OneScale(nn.Module):
    def __init__(self, latents: int) -> None:
        super().__init__()
        self.log_var = nn.Parameter(torch.full((latents,), -2.0))

    def forward(self, hidden: Tensor) -> Tensor:
        return self.log_var.expand(len(hidden), -1)


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
    options = dict(arm.options)
    if arm.features == "mlp":
        size = numel(example.shape[1:])
        options["core"] = nn.Sequential(nn.Flatten(), nn.Linear(size, 256), nn.SiLU(), nn.Linear(256, latents))
    torch.manual_seed(seed + 1000)
    return vae2aef.wrap(
        vae,
        example=example,
        preprocess=copy.deepcopy(preprocess),
        likelihood=option(likelihood, example, bins),
        encoder=vae.encode,  # as they are: a traced forward looks at values, which a captured graph cannot
        decoder=vae.decode,
        encoder_scale="log_var",
        **options,
    )


def loss_of(arm: Arm) -> Loss:
    """Return the function that is minimised."""
    return {"aef": plain, "iwae": iwae, "draws": several_draws, "textbook": textbook, "path": path_derivative}[arm.loss]


def plain(aef: vae2aef.AEF, x: Tensor) -> Tensor:
    """The AEF's own loss, without its look at whether it is finite, which a captured graph cannot take."""
    joint = aef.log_joint(Batch(x, (), {}), aef.noisy)
    return -(joint.prior + joint.residual + joint.log_det + joint.entropy).mean()


def several_draws(aef: vae2aef.AEF, x: Tensor, draws: int = 4) -> Tensor:
    """The mean of the loss over several draws a datum."""
    return plain(aef, x.repeat_interleave(draws, 0))


def iwae(aef: vae2aef.AEF, x: Tensor, draws: int = 5) -> Tensor:
    """The bound of Burda et al. (2016): the log of the mean of importance weights."""
    sigma = aef.core.sigma

    def drawn(name: str, core: Tensor, posterior: Any) -> tuple[Tensor, Tensor]:
        epsilon = torch.randn_like(core)
        density = -0.5 * epsilon.square() - 0.5 * math.log(2 * math.pi) - sigma.log()
        return core + sigma * epsilon, -density.flatten(1).sum(1)

    joint = aef.log_joint(Batch(x.repeat_interleave(draws, 0), (), {}), drawn)
    weights = (joint.prior + joint.residual + joint.log_det + joint.entropy).reshape(len(x), draws)
    return -(weights.logsumexp(1) - math.log(draws)).mean()


def path_derivative(aef: vae2aef.AEF, x: Tensor) -> Tensor:
    """Sticking the landing (Roeder et al., 2017): the loss less the score of q(z | x), whose mean gradient is zero."""
    joint = aef.log_joint(Batch(x, (), {}), aef.noisy)
    loss = -(joint.prior + joint.residual + joint.log_det + joint.entropy).mean()
    y, _ = aef.to_latent_side(x)
    core, shell = aef.split(y)
    posterior = aef.parts.encode(shell)
    z = joint.z["z"].detach()
    w, log_det = aef.core_flow.inverse((z - posterior.loc) / posterior.scale)
    density = (-0.5 * ((w - core["z"]) / aef.core.sigma).square()).sum(1) + log_det - posterior.scale.log().sum(1)
    return loss - (density - density.detach()).mean()


def textbook(aef: vae2aef.AEF, x: Tensor) -> Tensor:
    """The ELBO as a textbook writes it, with the KL in closed form; of our code, only preprocessing and parameters."""
    y = aef.preprocess(x)[0]
    log_det = aef.preprocess(x)[1].mean() if y is not x else 0.0
    mean, log_var = aef.vae.encode(y)
    z = mean + (0.5 * log_var).exp() * torch.randn_like(mean)
    out = aef.vae.decode(z)
    kl = -0.5 * (1 + log_var - mean**2 - log_var.exp()).sum(1).mean()
    return kl - _written_out(aef.likelihood, y, out).flatten(1).sum(1).mean() - log_det


def _written_out(likelihood: nn.Module, x: Tensor, out: Tensor) -> Tensor:
    """Return log p(x | z) of each value."""
    if not hasattr(likelihood, "raw_scale"):
        return -nn.functional.binary_cross_entropy_with_logits(out, x, reduction="none")
    scale = nn.functional.softplus(10 * likelihood.raw_scale) + 1e-5
    if not likelihood.discrete:
        return -0.5 * ((x - out) / scale) ** 2 - scale.log() - 0.5 * math.log(2 * math.pi)
    step = 1 / (likelihood.bins - 1)
    upper, lower = (x - out + step / 2) / scale, (x - out - step / 2) / scale
    # sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a))
    inside = -nn.functional.softplus(-upper) - nn.functional.softplus(lower) + (-torch.expm1(lower - upper)).log()
    ends = torch.where(x > 1 - step / 2, -nn.functional.softplus(lower), inside)
    return torch.where(x < step / 2, -nn.functional.softplus(-upper), ends)
