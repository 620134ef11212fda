"""Where importance samples are drawn: one Gaussian around h(x) for all data, tuned on held-out data."""

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from vae2aef.batch import Batch
from vae2aef.case import Case
from vae2aef.errors import NonFiniteError
from vae2aef.modes import evaluation_mode, own_random_state
from vae2aef.tensors import without_gradients

if TYPE_CHECKING:
    from vae2aef.aef import AEF

FULL_COVARIANCE_UP_TO = 128
"""Largest latent for which a full covariance is tuned; above it, one scale for each core variable."""

TUNING_ROWS, TUNING_DRAWS, TUNING_STEPS, TUNING_LR = 64, 4, 60, 0.1
TUNING_SEED = 0x5EED_0AEF  # no seed that a user would take: tuning and estimate must not share their draws
GRID = tuple(10.0**e for e in (-4, -3.5, -3, -2.5, -2, -1.5, -1, -0.5, 0))


class Proposal(NamedTuple):
    """The spread of the importance samples: w = h(x) + L e, e standard normal, one L for all x.

    Attributes:
        log_scale: log of the diagonal of L, shape `(D,)`.
        lower: L below its diagonal, in units of the scale of the row: shape `(D, D)`, or None for a diagonal.
    """

    log_scale: Tensor
    lower: Tensor | None = None

    def draw(self, n: int, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Draw `n` offsets from h(x), shape `(n, D)`, with their log density in nats, of each given those before it.

        The sum over a row is the density of the row; without the last terms it is that of the variables before them.
        `noise` is what they are made of, standard normal, `(n, D)`; by default torch's.
        """
        if noise is None:
            noise = torch.randn(n, *self.log_scale.shape, dtype=self.log_scale.dtype, device=self.log_scale.device)
        noise = noise.to(self.log_scale)
        log_q = -0.5 * (noise.square() + math.log(2 * math.pi)) - self.log_scale
        unit = noise if self.lower is None else noise + noise @ self.lower.tril(-1).t()
        return unit * self.log_scale.exp(), log_q

    def noise_of(self, offset: Tensor) -> Tensor:
        """Return the noise that `draw` makes offsets `(n, D)` of."""
        unit = offset / self.log_scale.exp()
        if self.lower is None:
            return unit
        whole = torch.eye(len(self.log_scale)).to(self.lower) + self.lower.tril(-1)
        return torch.linalg.solve_triangular(whole, unit.T, upper=False).T


@without_gradients
def tune(aef: "AEF", x: Tensor, cond: tuple = (), kwargs: dict[str, Any] | None = None) -> Proposal | None:
    """Tune the proposal on (at most 64 rows of) data: a scan over one common scale, then gradient ascent.

    What is maximised is the importance-weighted bound itself (Burda et al., 2016), over a scale for each core
    variable and, up to 128 of them, their correlations. The better of start and end is returned. Nothing in
    the model changes; torch's random state is left as it was.

    Args:
        aef: the model.
        x: held-out data, shape `(batch, *event)`.
        cond: conditions.
        kwargs: conditions by name.

    Returns:
        The proposal; None in the partition family, whose likelihood is exact.

    Raises:
        ValueError: if `x` is empty.
        NonFiniteError: if no proposal gives a finite bound.
    """
    if aef.partition is not None:
        return None
    if not x.shape[0]:
        raise ValueError("cannot tune a proposal on an empty batch")
    batch = Batch(x, cond, kwargs or {}).rows(slice(0, TUNING_ROWS))
    with evaluation_mode(aef), own_random_state(x.device):
        torch.manual_seed(TUNING_SEED)
        with torch.no_grad():
            case = Case(aef, batch)
            like = next(iter(case.core.values())).new_zeros(case.dim)
            own = {site.core.noise for site in aef.by_latent().values()}
            scales = [*GRID, *sorted(sigma for sigma in own if sigma)]
            starts = [Proposal(like + math.log(scale)) for scale in scales]
            start = max(starts, key=lambda p: _bound(case, p))
        tuned = _ascend(case, start, full=case.dim <= FULL_COVARIANCE_UP_TO)
        with torch.no_grad():
            best = max((start, tuned), key=lambda p: _bound(case, p, draws=2 * TUNING_DRAWS))
            if not math.isfinite(_bound(case, best)):
                raise NonFiniteError("no importance proposal gives a finite bound: is the model's loss finite?")
    return best


def _ascend(case: Case, start: Proposal, full: bool) -> Proposal:
    """Maximise the bound by Adam from `start`."""
    log_scale = start.log_scale.clone().requires_grad_()
    dim = log_scale.shape[0]
    lower = log_scale.new_zeros(dim, dim).requires_grad_() if full and dim > 1 else None
    optimizer = torch.optim.Adam([p for p in (log_scale, lower) if p is not None], lr=TUNING_LR)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, TUNING_STEPS)
    for _ in range(TUNING_STEPS):
        with torch.enable_grad():
            loss = -_iwae(case.log_weights(Proposal(log_scale, lower), TUNING_DRAWS)).mean()
            grads = torch.autograd.grad(loss, optimizer.param_groups[0]["params"])
        if not all(bool(g.isfinite().all()) for g in grads):
            break
        for parameter, grad in zip(optimizer.param_groups[0]["params"], grads, strict=True):
            parameter.grad = grad
        optimizer.step()
        schedule.step()
    return Proposal(log_scale.detach(), None if lower is None else lower.detach())


def _bound(case: Case, proposal: Proposal, draws: int = TUNING_DRAWS) -> float:
    value = float(_iwae(case.log_weights(proposal, draws)).mean())
    return value if math.isfinite(value) else -math.inf


def _iwae(log_w: Tensor) -> Tensor:
    return log_w.logsumexp(0) - math.log(log_w.shape[0])
