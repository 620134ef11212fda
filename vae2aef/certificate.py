"""The two-sided certificate of an estimate of log p(x): how far it can be from the truth, in nats.

On data drawn from the model the latent z that made x is known, and it is an exact draw from the posterior. The mean of
K importance weights is a lower bound on log p(x) in expectation; with the weight of z in the place of one of them it is
an upper bound. The gap between the two bounds what either misses: it is near zero where proposals find the mass.

References:
    Grosse, Ghahramani, Adams, *Sandwiching the marginal likelihood using bidirectional Monte Carlo*, 2015.
"""

import contextlib
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from vae2aef.batch import Batch
from vae2aef.case import Case
from vae2aef.chain import Generate
from vae2aef.draws import Draws
from vae2aef.evidence import Mean, Sums
from vae2aef.marginal import cases, require_numbers, rows_at_once
from vae2aef.modes import evaluation_mode, own_random_state
from vae2aef.parts import Posterior
from vae2aef.proposals import Proposal, tune
from vae2aef.samplers import Fitted, Sampler, sampler
from vae2aef.tensors import without_gradients

if TYPE_CHECKING:
    from vae2aef.aef import AEF


class Certificate(NamedTuple):
    """Two bounds on log p(x) of data drawn from the model. It says nothing of data that are unlike the model's own.

    Attributes:
        lower: what `log_prob` would say, below log p(x) on average: `(n,)`, nats of the preprocessed data.
        upper: with the true latent among the draws, above it on average.
        num_samples: K.
    """

    lower: Tensor
    upper: Tensor
    num_samples: int

    @property
    def gap(self) -> Mean:
        """How many nats `log_prob` is too low by at most, on average over data, with its standard error."""
        gap = self.upper - self.lower
        return Mean(float(gap.mean()), float(gap.std()) / math.sqrt(len(gap)) if len(gap) > 1 else math.inf)

    def __str__(self) -> str:
        """Say it in a sentence."""
        gap = self.gap
        return (
            f"On {len(self.lower)} data drawn from the model, log p(x) lies between {float(self.lower.mean()):.2f} and "
            f"{float(self.upper.mean()):.2f} nats on average: log_prob with {self.num_samples} draws is at most "
            f"{gap.value:.3f} +- {gap.std_error:.3f} nats too low."
        )


@without_gradients
def certify(
    aef: "AEF",
    n: int,
    cond: tuple = (),
    kwargs: dict[str, Any] | None = None,
    *,
    num_samples: int = 128,
    proposal: "Proposal | str | None" = None,
    seed: int | None = None,
) -> Certificate:
    """Draw data from the model and bound log p(x) from both sides.

    Args:
        aef: the model.
        n: how many data.
        cond: conditions, `n` of each.
        kwargs: conditions by name.
        num_samples: K, importance samples for each datum.
        proposal: as for `log_prob`; `"tuned"` is tuned on the data drawn.
        seed: makes the draws the same at each call.

    Raises:
        ValueError: if a number is not positive, or the proposal has no density at a given latent of this model.
    """
    require_numbers(num_samples, n)
    if n < 1 or num_samples < 2:
        raise ValueError(f"expected n of at least 1 and num_samples of at least 2, got {n} and {num_samples}")
    like = next(aef.parameters(), torch.zeros(()))
    with evaluation_mode(aef), contextlib.ExitStack() as stack:
        if seed is not None:
            stack.enter_context(own_random_state(like.device))
            torch.manual_seed(seed)
        batch = Batch(torch.empty(n), cond, kwargs or {})
        place = Generate(n, None, priors=aef.priors(batch))
        y = aef.generate(place, batch, residual=True)
        batch = batch._replace(x=y)
        if aef.partition is not None:
            value = aef.expanded_log_prob(aef.to_data(y), *cond, **batch.kwargs)
            return Certificate(value, value, num_samples)
        if proposal == "tuned":
            proposal = tune(aef, aef.to_data(y), cond, kwargs)
        at_once = rows_at_once(aef, (n, *aef.event_shape), proposal, None)
        bounds, done = [], 0
        for case in cases(aef, batch, at_once, Draws.of(batch, seed), y.new_zeros(n)):
            source = sampler(case, proposal)
            true = {name: aef.parts.rows_first(name, z)[done : done + case.size] for name, z in place.z.items()}
            bounds.append(_both(source, coordinates(source, true), num_samples))
            done += case.size
    lower, upper = torch.cat(bounds, dim=1)
    return Certificate(lower, upper, num_samples)


def _both(source: Sampler, true: Tensor, num_samples: int) -> Tensor:
    """Return the lower and the upper bound, `(2, batch)`."""
    sums = Sums(source.case.log_det, num_samples)
    while sums.draws < num_samples - 1:
        sums.add(source.log_weights(sums.draws, min(source.block, num_samples - 1 - sums.draws)))
    upper = torch.logaddexp(sums.total, source.log_weights_at(true).double())
    sums.add(source.log_weights(sums.draws, 1))
    return torch.stack([sums.total, upper]) - math.log(num_samples)


def coordinates(source: Sampler, z: dict[str, Tensor]) -> Tensor:
    """Return latents, rows first, as what the sampler draws: `(batch, D)`.

    Raises:
        ValueError: if they cannot be told: a latent of bounded support, a posterior flow, rows without a latent.
    """
    case = source.case
    if isinstance(source, Fitted):
        if case.given is None or case.masks:
            raise ValueError(
                "check_log_prob needs the density of a proposal at a given latent, which is not known where latents "
                "have a bounded support or rows lack one"
            )
        return torch.cat([z[name].reshape(case.size, -1) for name in case.given], dim=1)
    back = {name: case.aef.parts.rows_back(name, one) for name, one in z.items()}
    place = Offsets(back, case)
    if case.single:
        place("z", None, case.state)
    else:
        case.aef.parts.run(place, case.state, *case.batch.cond, **case.batch.kwargs)
    return torch.cat([place.offsets[name].reshape(case.size, -1) for name in case.sizes], dim=1)


class Offsets:
    """Algorithm 1 backwards: the offset of w from h(x) that belongs to each given latent, w = n((z - g_m) / g_s)."""

    def __init__(self, z: Mapping[str, Tensor], case: Case) -> None:
        self.z, self.case, self.size = z, case, case.size
        self.offsets: dict[str, Tensor] = {}

    def __call__(self, name: str, prior: Any, posterior: Any) -> Tensor:
        """See `Place`."""
        if posterior is not None:
            if not isinstance(posterior, Posterior) or posterior.transform is not None:
                raise ValueError(
                    f"check_log_prob cannot go back from a latent to w through the posterior of {name!r}; with at most "
                    "256 latents, leave proposal out"
                )
            u = (self.z[name] - posterior.loc) / posterior.scale
            self.offsets[name] = self.case.aef.site(name).flow.inverse(u)[0] - self.case.core[name]
        return self.z[name]
