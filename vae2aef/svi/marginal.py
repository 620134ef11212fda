"""The marginal likelihood of a Pyro model with several latent sites: importance sampling over all of them at once."""

import math
from typing import TYPE_CHECKING, Any

import pyro
import torch
from torch import Tensor

from vae2aef import marginal
from vae2aef.errors import NonFiniteError
from vae2aef.marginal import LogProb, Proposal
from vae2aef.modes import evaluation_mode, own_random_state, without_gradients
from vae2aef.svi.cores import SiteCore
from vae2aef.svi.sites import LocationScale
from vae2aef.tensors import numel, repeat_batch

if TYPE_CHECKING:
    from vae2aef.svi.aef import PyroAEF

ROWS_AT_ONCE = 4096
"""About how many rows the model is run on at once for `log_prob`; the batch's own size, if that is more."""


@without_gradients
def log_prob(
    aef: "PyroAEF", x: Tensor, cond: tuple, kwargs: dict[str, Any], num_samples: int, proposal: Proposal | None
) -> LogProb:
    """Estimate log p(x) in nats; see `PyroAEF.log_prob`."""
    if num_samples < 1:
        raise ValueError(f"expected num_samples of at least 1, got {num_samples}")
    with evaluation_mode(aef):
        proposal = proposal or tune(aef, x, cond, kwargs)
        case = Case(aef, x, cond, kwargs)
        at_once = max(ROWS_AT_ONCE // max(x.shape[0], 1), 1)
        chunks = [min(at_once, num_samples - done) for done in range(0, num_samples, at_once)]
        log_w = torch.cat([case.log_weights(proposal, draws) for draws in chunks])
    value = log_w.logsumexp(0) - math.log(num_samples)
    if not bool(value.isfinite().all()):
        raise NonFiniteError("log_prob is not finite; call the module on the data to see whether its loss is")
    size = (2 * log_w.logsumexp(0) - (2 * log_w).logsumexp(0)).exp()
    relative = (1 / size - 1 / num_samples).clamp(min=0) * num_samples / max(num_samples - 1, 1)
    error = relative.sqrt() if num_samples > 1 else torch.full_like(value, torch.inf)
    return LogProb(value, error, size, False)


@without_gradients
def tune(aef: "PyroAEF", x: Tensor, cond: tuple, kwargs: dict[str, Any]) -> Proposal:
    """Tune the proposal; see `PyroAEF.tune_proposal`."""
    rows = slice(0, marginal.TUNING_ROWS)
    batch = x.shape[0]
    cond, kwargs = marginal._rows(cond, rows, batch), marginal._rows(kwargs, rows, batch)
    with evaluation_mode(aef), own_random_state(x.device):
        torch.manual_seed(marginal.TUNING_SEED)
        case: Any = Case(aef, x[rows], cond, kwargs)
        dim = sum(case.sizes.values())
        scales = [*marginal.GRID, aef.noise] if aef.noise else list(marginal.GRID)
        starts = [Proposal(x.new_zeros(dim) + torch.log(x.new_tensor(s))) for s in scales]
        start = max(starts, key=lambda p: marginal._bound(case, p))
        tuned = marginal._ascend(case, start, full=dim <= marginal.FULL_COVARIANCE_UP_TO)
        return max((start, tuned), key=lambda p: marginal._bound(case, p, draws=2 * marginal.TUNING_DRAWS))


class Case:
    """One batch for importance sampling over all sites, in the form `vae2aef.marginal` works on."""

    def __init__(self, aef: "PyroAEF", x: Tensor, cond: tuple, kwargs: dict[str, Any]) -> None:
        self.aef, self.y, self.cond, self.kwargs, self.batch = aef, x, cond, kwargs, x.shape[0]
        trace = aef._traces(x, cond, kwargs, 0.0)[1]
        self.sizes = {
            name: numel(cores.placement.latent_shape)
            for name, cores in aef.elbo.cores.items()
            if cores is not None and name in trace.nodes
        }

    def log_weights(self, proposal: Proposal, draws: int) -> Tensor:
        """Return log p(x, w_k) / q(w_k | x) for fresh draws: shape `(draws, batch)`, nats."""
        rows = draws * self.batch
        offsets, log_q = proposal.draw(rows)
        pieces = dict(zip(self.sizes, offsets.split(list(self.sizes.values()), dim=1), strict=True))

        def core(name: str, cores: SiteCore, site: LocationScale, dims: int, w: Tensor) -> tuple[Tensor, Tensor]:
            axis = w.dim() + cores.placement.data
            offset = pieces[name].reshape(rows, *cores.placement.latent_shape).movedim(0, axis)
            return w + offset.to(w.dtype), w.new_zeros(w.shape[:dims])

        x = repeat_batch(self.y, draws, self.batch)
        cond = tuple(repeat_batch(c, draws, self.batch) for c in self.cond)
        kwargs = {key: repeat_batch(c, draws, self.batch) for key, c in self.kwargs.items()}
        # Far-off draws may overflow a scale: that is a weight of zero, and no reason for Pyro's validation to stop.
        with pyro.validation_enabled(False):
            total = self.aef._log_density(self.aef._traces(x, cond, kwargs, 0.0, core), rows)
        weights = (total - log_q).reshape(draws, self.batch)
        return torch.where(weights.isnan(), -torch.inf, weights)
