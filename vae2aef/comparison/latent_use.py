"""What a VAE makes of its latents: which of them it uses, and whether the aggregate posterior is the prior."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vae2aef.aef import AEF
from vae2aef.batch import Batch
from vae2aef.chain import Generate
from vae2aef.modes import evaluation_mode, own_random_state
from vae2aef.priors import StandardNormal

ACTIVE = 0.01
"""Variance over data of the posterior mean, from which on a latent counts as used (Burda et al., 2016)."""

PIECE = 128


class LatentUse(NamedTuple):
    """Statistics of D latents over n data.

    Attributes:
        mean_variance: variance over data of the posterior mean, `(D,)`.
        mean: of samples of the aggregate posterior q(z), the mixture of the posteriors of all data, `(D,)`.
        std: likewise.
        prior_mean: of the prior, `(D,)`: known for a standard normal, else of as many samples of it.
        prior_std: likewise.
        rate: KL in nats from the standard normal of Gaussians with these means and standard deviations, one a latent,
            summed; what q(z) differs by beyond that, correlations above all, is not in it. NaN for another prior.
        by_chance: what `rate` would be on average if q(z) were the prior, from n being finite: D / n.
    """

    mean_variance: Tensor
    mean: Tensor
    std: Tensor
    prior_mean: Tensor
    prior_std: Tensor
    rate: float
    by_chance: float

    @property
    def active(self) -> int:
        """How many latents are used: Burda, Grosse, Salakhutdinov, *Importance weighted autoencoders*, 2016."""
        return int((self.mean_variance > ACTIVE).sum())


@torch.no_grad()
def latent_use(aef: AEF, x: Tensor, seed: int = 0) -> LatentUse:
    """Measure how latents are used.

    With a posterior flow, the image of the mean before it stands for the posterior mean; of several latents, each is
    that given the means of those before it.

    Args:
        aef: the VAE, wrapped.
        x: data, `(n, *event)`.
        seed: of the samples of q(z) and of the prior.
    """
    with evaluation_mode(aef), own_random_state(x.device):
        torch.manual_seed(seed)
        means, draws = [], []
        for piece in x.split(PIECE):
            means.append(_flat(aef, aef.log_joint(Batch(piece)).z))
            draws.append(_flat(aef, aef.log_joint(Batch(piece), aef.noisy).z))
        mean, drawn = torch.cat(means).double(), torch.cat(draws).double()
        normal = isinstance(aef.prior, StandardNormal)
        prior = torch.stack([torch.zeros_like(drawn[0]), torch.ones_like(drawn[0])]) if normal else _prior(aef, len(x))
    m, s = drawn.mean(0), drawn.std(0)
    rate = float((0.5 * (m.square() + s.square() - 1) - s.log()).sum()) if normal else torch.nan
    return LatentUse(mean.var(0), m, s, prior[0], prior[1], rate, m.numel() / len(x))


def _prior(aef: AEF, n: int) -> Tensor:
    place = Generate(n, None, priors=aef.priors(Batch(torch.empty(n))))
    aef.parts.run(place, None)
    z = _flat(aef, place.z).double()
    return torch.stack([z.mean(0), z.std(0)])


def _flat(aef: AEF, z: dict[str, Tensor]) -> Tensor:
    """All latents side by side, `(n, D)`."""
    return torch.cat([aef.parts.rows_first(name, one).flatten(1) for name, one in z.items()], dim=1)
