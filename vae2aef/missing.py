"""Missing values: log p of the observed part of x, and the missing part given it, by the same importance weights.

    log p(x_obs) = log int p0(z) p(x_obs | z) dz,    E[x_mis | x_obs] ~ sum_k w_k E[x_mis | z_k] / sum_k w_k

References:
    Mattei, Frellsen, *Leveraging the exact likelihood of deep latent variable models*, NeurIPS 2018, and *MIWAE*, ICML
    2019.
"""

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vae2aef.batch import Batch
from vae2aef.case import Case
from vae2aef.draws import CHOICE, ESTIMATE, Draws
from vae2aef.laplace import MAX_LATENTS
from vae2aef.marginal import cases, require_numbers, rows_at_once
from vae2aef.modes import evaluation_mode, own_random_state
from vae2aef.samplers import BLOCK, Fitted, sampler
from vae2aef.tensors import without_gradients

if TYPE_CHECKING:
    from vae2aef.aef import AEF


@without_gradients
def impute(
    aef: "AEF",
    batch: Batch,
    observed: Tensor,
    num_samples: int = 1024,
    draw: bool = False,
    seed: int | None = None,
) -> Tensor:
    """Fill in missing values; observed ones are returned as they are.

    Args:
        aef: the model.
        batch: data, shape `(batch, *event)`, with conditions; whatever stands where `observed` is False, NaN too, is
            not looked at.
        observed: True where a value is known, `(batch, *event)` or `(*event)`.
        num_samples: K, importance samples for each datum.
        draw: return one draw from p(x_mis | x_obs) (sampling importance resampling) instead of the weighted mean of
            what each latent decodes to. Of classes there is no mean: take draws.
        seed: makes the result a function of the datum alone.

    Returns:
        Shape `(batch, *event)`, in the space of the data.

    Raises:
        ValueError: in the partition family, with more than 256 latents, or for a mask of another shape.
    """
    require_numbers(num_samples)
    x = batch.x
    if not batch.size:
        return aef.read(x)
    with evaluation_mode(aef):
        rows = rows_at_once(aef, batch.x.shape, None, None)
        numbers = Draws.of(batch._replace(x=torch.where(observed, x, 0)), seed)
        filled = torch.cat([_impute(c, num_samples, draw) for c in cases(aef, batch, rows, numbers, observed=observed)])
    return torch.where(observed, aef.read(x), filled.to(aef.read(x).dtype))


def _impute(case: Case, num_samples: int, draw: bool) -> Tensor:
    """Return data as the model has them given the observed part, `(batch, *event)`."""
    source = sampler(case, None) if case.dim <= MAX_LATENTS else None
    if not isinstance(source, Fitted):
        raise ValueError(f"impute fits a proposal to each datum, for at most {MAX_LATENTS} latents; got {case.dim}")
    total = best = torch.full_like(case.log_det, -math.inf, dtype=torch.float64)
    mean: Any = 0.0
    chosen = torch.zeros(())
    for first in range(0, num_samples, BLOCK):
        v = source.mixture.draw(case, ESTIMATE, first, min(BLOCK, num_samples - first))
        log_w = source.weigh(v)
        if draw:  # the largest of log w + Gumbel noise is a draw by the weights
            score = log_w - (-case.random.uniform(CHOICE, first, len(v), 1)[..., 0].to(log_w).log()).log()
            value, index = score.max(0)
            own = v.gather(0, index[None, :, None].expand(1, *v.shape[1:]))[0]
            chosen = torch.where((value > best)[:, None], own, chosen)
            best = torch.maximum(best, value)
            continue
        for one, weight in zip(v, log_w, strict=True):
            total = torch.logaddexp(total, weight)
            x = case.aef.to_data(case.decoded(one)[1])
            mean = mean + _rows((weight - total).exp(), x) * (x - mean)
    return case.aef.to_data(_drawn(case, chosen)) if draw else mean


def _drawn(case: Case, v: Tensor) -> Tensor:
    """Draw y given latents, `(batch, *event)`; by numbers of the data's own if there is a seed."""
    if not case.random.seeded:
        return case.decoded(v)[0].sample()
    rows = []
    with own_random_state(v.device):
        for row in range(case.size):
            torch.manual_seed(case.random.seed(row, CHOICE))
            rows.append(case.rows(torch.tensor([row])).decoded(v[row : row + 1])[0].sample())
    return torch.cat(rows)


def _rows(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *(1 for _ in like.shape[1:])).to(like.dtype)
