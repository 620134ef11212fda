"""Importance samples of a batch with their weights, whatever places them: one interface for the estimate."""

import math
from typing import Protocol

import torch
from torch import Tensor

from vae2aef.case import Case
from vae2aef.draws import ESTIMATE, IMPROVING, PILOT
from vae2aef.finding import find_mass, laplace_mixture
from vae2aef.laplace import MAX_LATENTS
from vae2aef.low_rank import LATENT_BLOCK, PILOT_DRAWS, LowRank
from vae2aef.mixture import Mixture
from vae2aef.proposals import GRID, Proposal
from vae2aef.variational import Gaussians, improve

BLOCK = 32
"""Draws of a mixture that are made at once; the same for every chunk, so that chunks change nothing."""


class Sampler(Protocol):
    """Draws importance samples of a batch and weighs them."""

    case: Case
    block: int

    def log_weights(self, first: int, count: int) -> Tensor:
        """Return log weights of draws `first` to `first + count`: `(count, batch)`, nats."""
        ...

    def log_weights_at(self, v: Tensor) -> Tensor:
        """Return the log weights that one given draw a datum would have, `(batch,)`."""
        ...

    def rows(self, take: Tensor) -> "Sampler":
        """Return a sampler for some of the data."""
        ...


class Common:
    """Draws around h(x), by one proposal for all data."""

    def __init__(self, case: Case, proposal: Proposal) -> None:
        self.case, self.proposal = case, proposal
        self.block = LATENT_BLOCK * (case.draws_decoded or 1)

    def log_weights(self, first: int, count: int) -> Tensor:
        """See `Sampler`."""
        random = self.case.random
        noise = None if random is None else random.normal(ESTIMATE, first, count, self.case.dim).flatten(0, 1)
        return self.case.log_weights(self.proposal, count, noise)

    def log_weights_at(self, v: Tensor) -> Tensor:
        """See `Sampler`; v is an offset from h(x)."""
        return self.case.log_weights(self.proposal, 1, self.proposal.noise_of(v))[0]

    def rows(self, take: Tensor) -> "Common":
        """See `Sampler`."""
        return Common(self.case.rows(take), self.proposal)


class Around:
    """Draws around h(x), by a diagonal Gaussian for each datum: what `LowRank` begins with.

    Args:
        case: the batch.
        mean: of the offset from h(x), `(batch, D)`.
        scale: likewise.
    """

    def __init__(self, case: Case, mean: Tensor, scale: Tensor) -> None:
        self.case, self.mean, self.scale = case, mean, scale
        self.block = LATENT_BLOCK * (case.draws_decoded or 1)

    @classmethod
    def fitted(cls, case: Case) -> "Around":
        """Choose a scale for each datum, the model's own sigma among them, and improve on it where a pilot says so."""
        like = torch.zeros(case.size, case.dim).to(next(iter(case.core.values())))
        own = {site.core.noise for site in case.aef.by_latent().values()}
        tried = [cls(case, like, like + scale) for scale in (*GRID, *sorted(sigma for sigma in own if sigma))]
        best = torch.stack([one._bound(PILOT) for one in tried]).argmax(0)
        scale = torch.stack([one.scale for one in tried]).gather(0, best[None, :, None].expand(1, *like.shape))[0]

        def log_joint(y: Tensor) -> Tensor:
            draws = len(y) // max(case.size, 1)
            return case.around(y * scale.repeat(draws, 1), torch.zeros_like(y), draws).flatten()

        start, old = Gaussians(like, like + 1, like[:, 0]), cls(case, like, scale)
        moved = improve(log_joint, start, case.random, IMPROVING)
        new = cls(case, scale * moved.mean, scale * moved.root)
        better = (new._bound(PILOT + 8) > old._bound(PILOT + 8)).unsqueeze(1)
        return cls(case, torch.where(better, new.mean, old.mean), torch.where(better, new.scale, old.scale))

    def _bound(self, stream: int) -> Tensor:
        bound = self._log_weights(self.case.random.normal(stream, 0, PILOT_DRAWS, self.case.dim)).logsumexp(0)
        return bound.nan_to_num(nan=-math.inf)

    def _log_weights(self, noise: Tensor) -> Tensor:
        noise = noise.to(self.scale)
        log_q = -0.5 * (noise.square() + math.log(2 * math.pi)) - self.scale.log()
        return self.case.around((self.mean + self.scale * noise).flatten(0, 1), log_q.flatten(0, 1), len(noise))

    def log_weights(self, first: int, count: int) -> Tensor:
        """See `Sampler`."""
        return self._log_weights(self.case.random.normal(ESTIMATE, first, count, self.case.dim))


class Fitted:
    """Draws free coordinates from a mixture for each datum."""

    block = BLOCK

    def __init__(self, case: Case, mixture: Mixture) -> None:
        self.case, self.mixture = case, mixture

    def log_weights(self, first: int, count: int) -> Tensor:
        """See `Sampler`."""
        return self.weigh(self.mixture.draw(self.case, ESTIMATE, first, count))

    def weigh(self, v: Tensor) -> Tensor:
        """Return the log weights of draws `(draws, batch, D)`: `(draws, batch)`, nats."""
        joint, prior = (part.reshape(v.shape[:2]) for part in self.case.joint_and_prior(v.flatten(0, 1), len(v)))
        log_w = joint.double() - self.mixture.log_density(v, prior) + self.case.log_det
        return torch.where(log_w.isfinite(), log_w, -math.inf)  # draws that overflowed: a weight of zero

    def log_weights_at(self, v: Tensor) -> Tensor:
        """See `Sampler`; v are free coordinates."""
        return self.weigh(v.unsqueeze(0))[0]

    def rows(self, take: Tensor) -> "Fitted":
        """See `Sampler`."""
        return Fitted(self.case.rows(take), self.mixture.rows(take))


def sampler(case: Case, proposal: Proposal | str | None) -> Sampler:
    """Return what draws for a case: by a `Proposal`, by `"laplace"`, or, for None, by what fits the model best."""
    if isinstance(proposal, Proposal):
        return Common(case, proposal)
    if proposal is None and case.dim > MAX_LATENTS:
        around = Around.fitted(case)
        return LowRank.fitted(case, around.mean, around.scale)
    return Fitted(case, laplace_mixture(case) if proposal == "laplace" else find_mass(case))
