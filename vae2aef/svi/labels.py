"""Discrete latents of a model, summed out: every combination of their values is scored, and the sum taken.

The guide's own discrete choices are replaced by the most probable ones. These are functions of x and of the latents
before them, so that z and w stay one to one; and the sum over the model's is exact.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from vae2aef.errors import WrapError
from vae2aef.parts import Decoded
from vae2aef.protocols import Place
from vae2aef.svi.placing import Observed, SitePrior

MOST = 1024
"""How many combinations of values are summed over at most."""

Labels = dict[str, int]
"""Discrete latents by name, with the number of the value that each has."""


def sizes_of(latent: dict[str, Any], mapped: Any) -> dict[str, int]:
    """Return the discrete latents of a model that have a finite support, with its size.

    Args:
        latent: the latent sites of a run of the model.
        mapped: the names of those that are mapped.

    Raises:
        WrapError: if there are too many combinations.
    """
    found = {
        n: s["fn"] for n, s in latent.items() if n not in mapped and getattr(s["fn"], "has_enumerate_support", False)
    }
    sizes = {name: len(fn.enumerate_support(expand=False)) for name, fn in found.items()}
    if math.prod(sizes.values()) > MOST:
        raise WrapError(
            f"from_pyro sums out discrete latents, and {sizes} have {math.prod(sizes.values())} combinations, more "
            f"than {MOST}. ",
            "Train with SVI(..., loss=TraceGraph_ELBO()) and vae2aef.aef_guide(model, guide), which draw them",
        )
    return sizes


def combinations(sizes: dict[str, int]) -> Iterator[Labels]:
    """Yield every combination of values."""
    for numbers in itertools.product(*map(range, sizes.values())):
        yield dict(zip(sizes, numbers, strict=True))


def value_of(fn: Any, number: int | None) -> Tensor:
    """Return one value of a discrete distribution, `(*batch, *event)`: of a number, or (None) the most probable."""
    support = fn.enumerate_support(expand=True)
    if number is not None:
        return support[number]
    best = fn.log_prob(support).argmax(0)
    index = best.reshape(1, *best.shape, *(1 for _ in fn.event_shape)).expand(1, *support.shape[1:])
    return torch.take_along_dim(support, index, 0)[0]


class Again:
    """Place each latent once, and give it the same value in every later run.

    Args:
        place: what places them.
    """

    def __init__(self, place: Place) -> None:
        self.place, self.size = place, place.size
        self.placed: dict[str, Tensor] = {}

    def __call__(self, name: str, prior: Any, posterior: Any) -> Tensor:
        """See `vae2aef.protocols.Place`."""
        if name not in self.placed:
            self.placed[name] = self.place(name, prior, posterior)
        return self.placed[name]


class Scored:
    """What a model says at given latents under one combination of labels.

    Args:
        observed: its observed sites.
        latent: its latent sites, with their values, labels among them.
        x: the data.
    """

    def __init__(self, observed: Observed, latent: dict[str, tuple[SitePrior, Tensor]], labels: Labels) -> None:
        self.observed = observed
        terms = {name: prior.log_prob(value) for name, (prior, value) in latent.items()}
        self.prior = sum((v for name, v in terms.items() if name not in labels), torch.zeros(()))
        self.labels = sum((v for name, v in terms.items() if name in labels), torch.zeros(()))


class SummedOut:
    """The density of x given z with the labels summed out, as `vae2aef.protocols.Density`.

    Latents whose prior depends on a label have been scored under the first combination already; what is said here
    makes up for that, so that the sum of both is log p(x, z).

    Args:
        scored: each combination.
    """

    def __init__(self, scored: list[Scored]) -> None:
        self.scored = scored

    @property
    def sites(self) -> dict[str, SitePrior]:
        """The observed sites by name, under the first combination."""
        return self.scored[0].observed.sites

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x | z), `(batch,)` in nats."""
        every = torch.stack([s.labels + s.prior + s.observed.log_prob(x) for s in self.scored])
        return every.logsumexp(0) - self.scored[0].prior

    def weights(self) -> Tensor:
        """Return the probability of each combination given z, `(combinations, batch)`."""
        return torch.stack([s.labels + s.prior for s in self.scored]).softmax(0)

    def mean(self) -> Any:
        """Return the mean of each observed site given z; see `Observed.mean`."""
        return self._weighed([s.observed.mean() for s in self.scored])

    def sample(self) -> Any:
        """Draw the data, each row under a combination of its own; see `Observed.sample`."""
        drawn = torch.distributions.Categorical(self.weights().t()).sample()
        chosen = torch.nn.functional.one_hot(drawn, len(self.scored)).t()
        return self._weighed([s.observed.sample() for s in self.scored], chosen)

    def _weighed(self, values: list[Any], weights: Tensor | None = None) -> Any:
        weights = self.weights() if weights is None else weights
        if isinstance(values[0], dict):
            found = {name: [v[name] for v in values] for name in values[0]}
            return {n: None if v[0] is None else self._rows(v, weights, self.sites[n]) for n, v in found.items()}
        return sum(w.to(v).reshape(-1, *(1 for _ in v.shape[1:])) * v for w, v in zip(weights, values, strict=True))

    def _rows(self, values: list[Tensor], weights: Tensor, site: SitePrior) -> Tensor:
        rows = [site.rows_first(v) for v in values]
        total = self._weighed(rows, weights)
        axis = site.axis
        return total if axis is None else total.movedim(0, axis - len(site.msg["fn"].event_shape))


def summed(run: Callable[[Labels], Scored], sizes: dict[str, int]) -> Decoded:
    """Return the observation's density with the labels summed out."""
    density = SummedOut([run(labels) for labels in combinations(sizes)])
    return Decoded(density.mean(), None, density)
