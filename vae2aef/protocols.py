"""What the parts of an AEF are to each other: any object with these methods will do."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from vae2aef.batch import Batch
from vae2aef.draws import Draws


class Density(Protocol):
    """A prior: of all rows alike, or of each row its own.

    One that knows the mean of its log density over z of N(loc, scale^2) has `expected_log_prob(loc, scale)`,
    `(batch, *latent)` each to `(batch,)` in nats, beside these: the KL can then be had in closed form.
    """

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density in nats, `(batch, *latent)` to `(batch,)`."""
        ...

    def sample(self, n: int) -> Tensor:
        """Draw `n` latents, shape `(n, *latent)`; one that takes `temperature=` has one.

        One that takes `shape=` draws latents on other grids, too.
        """
        ...


class Posterior(Protocol):
    """What an encoder says of one latent. `vae2aef.Posterior` is one.

    `push(u)` gives transform(loc + scale * u). With `transform` and `standard` None that is loc + scale * u, and log p0
    may be averaged in closed form over z ~ N(loc + scale h(x), (scale sigma)^2) without a call of `push`.
    """

    @property
    def loc(self) -> Tensor:
        """g_m, `(batch, *latent)`; of a VAE that is only known as a whole, from `push` on."""
        ...

    @property
    def scale(self) -> Tensor:
        """g_s, positive, likewise."""
        ...

    @property
    def transform(self) -> Callable[[Tensor], tuple[Tensor, Tensor]] | None:
        """What follows the affine map, to z and log|det|; None for nothing."""
        ...

    @property
    def mask(self) -> Tensor | None:
        """Which rows have this latent at all, `(batch,)`; None for all."""
        ...

    @property
    def standard(self) -> Any:
        """What u is drawn from in the VAE, elementwise: None for the standard normal."""
        ...

    @property
    def free(self) -> bool:
        """Whether z ranges over all real numbers."""
        ...

    def push(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return z and log|det dz/du|, `(batch,)`, for u of shape `(batch, *latent)`."""
        ...


class Place(Protocol):
    """The one seam between a VAE and what the AEF does with it."""

    size: int

    def __call__(self, name: str, prior: Density | None, posterior: Any) -> Tensor:
        """Return z. With `prior` or `posterior` None its part is done in another call of the same name."""
        ...


class Features(Protocol):
    """h of the expanded family (Eq. 9): any module of the data. `vae2aef.core.LinearFeatures` is one.

    What it is trained, moved and saved by is the module; a function alone would not do.
    """

    def __call__(self, x: Tensor, /) -> Tensor:
        """Return h(x), `(batch, *event)` to `(batch, *latent)`."""
        ...

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """What of h is trained."""
        ...


class ResidualDensity(Protocol):
    """A density r of x - f(z). `vae2aef.Residual` is one."""

    def log_prob(self, delta: Tensor, decoder_scale: Tensor | None = None) -> Tensor:
        """Log density in nats of each value, `(batch, *event)` to the same."""
        ...

    def sample(self, mean: Tensor, decoder_scale: Tensor | None = None) -> Tensor:
        """Draw residuals shaped like `mean`."""
        ...


class Target(Protocol):
    """Unnormalised densities log p(x, v) over D free coordinates v, one for each datum of a batch.

    What the search for modes, Laplace fits and annealing ask for; a `vae2aef.case.Case` is one. Rows go together as
    they do in a batch that is repeated: `(draws * batch, D)`. Nothing that is done to a datum depends on another.

    Attributes:
        size: how many data there are.
        dim: D.
        log_det: what is to be added to log p(x, v), `(batch,)`, nats, such as that of the preprocessing.
        random: the numbers that draws are made of, each datum's own.
        draws_decoded: how many v for each datum to ask for at once; None for no limit.
        prior_apart: whether `log_prior` costs little beside `log_joint`.
    """

    size: int
    dim: int
    log_det: Tensor
    random: Draws
    draws_decoded: int | None
    prior_apart: bool

    def start(self) -> Tensor:
        """Return where to begin, `(batch, D)`; called before all else."""
        ...

    def log_joint(self, v: Tensor, draws: int = 1) -> Tensor:
        """Return log p(x, v) without `log_det`, `(draws * batch,)`, nats."""
        ...

    def log_prior(self, v: Tensor, draws: int = 1) -> Tensor:
        """Return the part of it that is not log p(x | v), likewise."""
        ...

    def joint_and_prior(self, v: Tensor, draws: int = 1) -> tuple[Tensor, Tensor]:
        """Return log p(x, v) and log p0(v), likewise."""
        ...

    def mean_and_scale(self, v: Tensor, draws: int = 1) -> tuple[Tensor, Tensor] | None:
        """Return a parameter of p(x | v), `(draws * batch, ...)`, and the scale to measure it by; None if not known."""
        ...

    def prior_draws(self, count: int, stream: int) -> Tensor | None:
        """Draw v from the prior, `(count, batch, D)`; None where it cannot be drawn from."""
        ...

    def rows(self, take: Tensor) -> "Target":
        """Return some of the data."""
        ...


def draw(prior: Any, n: int, temperature: float, shape: Sequence[int] | None = None) -> Tensor:
    """Draw `n` latents from a prior, shape `(n, *latent)`; `shape` is that of a latent on another grid.

    Raises:
        ValueError: if `temperature` is not 1, or there is a `shape`, and the prior's `sample` does not take it.
    """
    options: dict[str, Any] = {} if temperature == 1.0 else {"temperature": temperature}
    if shape is not None:
        options["shape"] = tuple(shape)
    if not options:
        return prior.sample(n)
    prior_itself = prior.prior if isinstance(prior, Conditioned) else prior
    parameters = inspect.signature(prior_itself.sample).parameters.values()
    taken = {p.name for p in parameters}
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        for option, what in (("temperature", "has no temperature"), ("shape", "draws latents of one shape")):
            if option in options and option not in taken:
                raise ValueError(f"the prior {type(prior_itself).__name__} {what}: its sample() does not take one")
    return prior.sample(n, **options)


class Conditioned:
    """A prior with the conditions of a batch."""

    def __init__(self, prior: Any, batch: Batch) -> None:
        self.prior, self.batch = prior, batch

    def log_prob(self, z: Tensor) -> Tensor:
        """See `Density`."""
        return self.prior.log_prob(z, *self.batch.cond, **self.batch.kwargs)

    def sample(self, n: int, **options: Any) -> Tensor:
        """See `Density`."""
        return self.prior.sample(n, *self.batch.cond, **self.batch.kwargs, **options)
