"""Discrete latents of a model, summed out: every combination of their values is scored, and the sum taken.

The guide's own discrete choices are replaced by the most probable ones. These are functions of x and of the latents
before them, so that z and w stay one to one; and the sum over the model's is exact.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vae2aef.errors import WrapError
from vae2aef.parts import Decoded
from vae2aef.protocols import Place
from vae2aef.svi.batch_axis import outside_plate
from vae2aef.svi.placing import Observed, SitePrior

MOST = 1024
"""How many combinations of values are summed over at most."""

Labels = dict[str, int]
"""Discrete latents by name, with the number of the combination of values that each has."""


class Label(NamedTuple):
    """A discrete latent: each row has one value, or one for each element of the plates inside a row.

    Attributes:
        name: the site.
        values: how many values an element may have.
        shape: of the elements of one row.
        axis: where the data's batch is among the batch dimensions of the site, from the right.
    """

    name: str
    values: int
    shape: torch.Size
    axis: int

    @classmethod
    def of(cls, site: SitePrior) -> "Label":
        """Read a site of the model.

        Raises:
            WrapError: if it is outside the data's plate.
        """
        fn, axis = site.msg["fn"], site.axis
        if axis is None or -axis > len(fn.batch_shape):
            raise outside_plate(site.msg["name"])
        shape = _without(fn.batch_shape, axis)
        return cls(site.msg["name"], len(fn.enumerate_support(expand=False)), shape, axis)

    @property
    def size(self) -> int:
        """How many combinations of values a row may have."""
        return self.values ** self.shape.numel()

    def __str__(self) -> str:
        return f"{self.values} values" + (f" for each of {self.shape.numel()} elements" if len(self.shape) else "")

    def value(self, fn: Any, number: int | None) -> Tensor:
        """Return values, `(*batch, *event)`: the combination of a number for every row, or (None) the most probable.

        Raises:
            WrapError: if a row has other elements than the example's.
        """
        support = fn.enumerate_support(expand=True)
        if number is None:
            index = fn.log_prob(support).argmax(0)
        else:
            batch = fn.batch_shape
            if _without(batch, self.axis) != self.shape:
                raise WrapError(
                    f'site "{self.name}": a row had {tuple(self.shape)} discrete values when the pair was converted, '
                    f"and has {tuple(_without(batch, self.axis))} now; ",
                    "convert the pair with an example of that shape",
                )
            digits = [number // self.values**place % self.values for place in range(self.shape.numel())]
            row = torch.tensor(digits, device=support.device).reshape(self.shape)
            index = row.unsqueeze(len(batch) + self.axis).expand(batch)
        index = index.reshape(1, *index.shape, *(1 for _ in fn.event_shape)).expand(1, *support.shape[1:])
        return torch.take_along_dim(support, index, 0)[0]


def _without(shape: torch.Size, axis: int) -> torch.Size:
    return torch.Size(size for i, size in enumerate(shape) if i != len(shape) + axis)


def labels_of(latent: dict[str, SitePrior]) -> dict[str, Label]:
    """Return the discrete latents of a model that have a finite support.

    Args:
        latent: the latent sites of the model that are not mapped.

    Raises:
        WrapError: if there are too many combinations, or one is outside the data's plate.
    """
    found = {n: Label.of(s) for n, s in latent.items() if getattr(s.msg["fn"], "has_enumerate_support", False)}
    total = math.prod(label.size for label in found.values())
    if total > MOST:
        listed = ", ".join(f'"{name}" ({label})' for name, label in found.items())
        raise WrapError(
            f"from_pyro sums out discrete latents, and {listed} have {total} combinations, more than {MOST}. ",
            "Train with SVI(..., loss=TraceGraph_ELBO()) and vae2aef.aef_guide(model, guide), which draw them",
        )
    return found


def combinations(labels: dict[str, Label]) -> Iterator[Labels]:
    """Yield every combination of values."""
    for numbers in itertools.product(*(range(label.size) for label in labels.values())):
        yield dict(zip(labels, numbers, strict=True))


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
        zero = torch.zeros(())
        self.prior = sum((prior.log_prob(z) for name, (prior, z) in latent.items() if name not in labels), zero)
        self.labels = sum((p.log_prob_of_label(y) for name, (p, y) in latent.items() if name in labels), zero)


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


def summed(run: Callable[[Labels], Scored], labels: dict[str, Label]) -> Decoded:
    """Return the observation's density with the labels summed out."""
    density = SummedOut([run(numbers) for numbers in combinations(labels)])
    return Decoded(density.mean(), None, density)
