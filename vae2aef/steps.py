"""The steps of an AEF's algorithms that are not its chain of latents: preprocessing, the split, the densities."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vae2aef.batch import Batch
from vae2aef.chain import Perturb, Site
from vae2aef.core import Expansion, Partition
from vae2aef.errors import not_data
from vae2aef.flows import Bijection, Identity
from vae2aef.grids import Grid
from vae2aef.likelihood import Likelihood, observed_density
from vae2aef.parts import Decoded, VAEParts
from vae2aef.preprocess import require_continuous
from vae2aef.protocols import Conditioned, Density
from vae2aef.tensors import at_least_float32, sum_event
from vae2aef.wrapper import Wrapper


class Steps(Wrapper):
    """What an AEF does with data, conditions and the decoder's output.

    Args:
        vae: the user's module or object.
        parts: its encoder, decoder and prior.
        sites: what is added for each latent.
        prior: see `vae2aef.AEF`.
        likelihood: likewise.
        preprocess: bijection between data and what the VAE sees.
        event_shape: shape of one event of data.
        outside: modules among the parts that are not inside `vae`.
        prior_takes_conditions: whether the prior is called with the conditions.
        discrete: whether p(x | z) is a probability of discrete data.
        summary: for `print`.
    """

    prior: Any
    likelihood: Any
    _kl = "analytic"

    def __init__(
        self,
        vae: Any,
        parts: VAEParts,
        *,
        sites: Mapping[str, Site],
        prior: nn.Module | None,
        likelihood: nn.Module | None,
        preprocess: Bijection,
        event_shape: torch.Size,
        outside: dict[str, nn.Module] | None = None,
        prior_takes_conditions: bool = False,
        discrete: bool = False,
        summary: str = "",
    ) -> None:
        super().__init__(vae, parts, sites, outside or {}, summary)
        self.prior = prior
        self.likelihood = likelihood
        self.preprocess = preprocess
        self.event_shape = torch.Size(event_shape)
        self.discrete = discrete
        self._prior_takes_conditions = prior_takes_conditions
        # How each latent's grid lies on that of the data, where data on other grids may come.
        self.grids: dict[str, Grid] = {}

    def to_latent_side(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Preprocess data `(batch, *event)`; return y and log|det dy/dx|, `(batch,)`, nats."""
        self._require_shape(x)
        y, log_det = self.preprocess(at_least_float32(self.read(x)))
        if not self.discrete:
            require_continuous(y)
        return y, log_det if log_det.is_floating_point() else log_det.to(torch.get_default_dtype())

    def read(self, x: Tensor) -> Tensor:
        """Return data as the likelihood reads them: integers of a discrete one as its values."""
        x = self.parts.read(x)
        likelihood = self.likelihood
        return likelihood.read(x) if isinstance(likelihood, Likelihood) else x

    def require_mask(self, observed: Tensor, x: Tensor) -> Tensor:
        """Return which values are there as `(batch, *event)`.

        Raises:
            ValueError: if it is not bool or of another shape, or in the partition family.
        """
        self._require_shape(x)
        if self.partition is not None:
            raise ValueError('a partition core needs all of the data; for missing values, wrap with core="linear"')
        if not isinstance(observed, Tensor):
            raise TypeError(
                f"expected observed as a bool tensor of shape {tuple(x.shape)}, got {type(observed).__name__}"
            )
        if observed.dtype is not torch.bool or observed.shape not in (x.shape, x.shape[1:]):
            raise ValueError(
                f"expected observed as a bool tensor of shape {tuple(x.shape)} or {tuple(x.shape[1:])}, got "
                f"{observed.dtype} of shape {tuple(observed.shape)}"
            )
        return observed.expand(x.shape)

    def fill_in(self, x: Tensor, observed: Tensor) -> tuple[Tensor, Tensor]:
        """Preprocess data of which values are missing: zeros stand for these, and only the others' log-det counts.

        Raises:
            ValueError: if the preprocessing does not act on each value by itself.
        """
        x = at_least_float32(self.read(x))
        if not self.discrete:
            require_continuous(x)
        middle = self.to_data(torch.zeros_like(x)) if x.is_floating_point() else torch.zeros_like(x)
        x = torch.where(observed, x, middle)
        if not x.is_floating_point() or isinstance(self.preprocess, Identity):
            return x, x.new_zeros(x.shape[0], dtype=torch.get_default_dtype() if not x.is_floating_point() else None)
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            y, log_det = self.preprocess(leaf)
            each = torch.autograd.grad(y.sum(), leaf)[0].abs().log()
        if not torch.allclose(sum_event(each), log_det, rtol=1e-3, atol=1e-3):
            raise ValueError("missing values need a preprocessing of each value by itself, such as the logit")
        return torch.where(observed, y.detach(), 0.0), sum_event(torch.where(observed, each, 0.0))

    def require_scored(self, x: Tensor, observed: Tensor | None = None) -> None:
        """Refuse data, or observed values of it, that have no likelihood under p(x | z): grey values of a Bernoulli.

        Raises:
            ValueError: says what was expected, what came, and what to do.
        """
        self._require_shape(x)
        if not self.discrete:
            return
        values = self.read(x) if observed is None else self.read(x)[observed.expand(x.shape)]
        if isinstance(self.likelihood, Likelihood):
            self.likelihood.check(values, exact=True)
        elif values.is_floating_point() and bool(((values != values.round()) & values.isfinite()).any()):
            raise ValueError(
                "the VAE's own density is of whole numbers, and the data hold values between them, which have no "
                "probability under it: of grey values and a Bernoulli, only a cross-entropy; draw bits by x.bernoulli()"
            )

    def to_data(self, y: Any) -> Any:
        """Undo the preprocessing of `(batch, *event)`; several observed sites come as a dict, unchanged."""
        return self.preprocess.inverse(y)[0] if isinstance(y, Tensor) else y

    def split(self, y: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Return h(y) for each latent, `(batch, *latent)`, and what encoder and decoder see of y."""
        core = {}
        shell = y
        for name, site in self.by_latent().items():
            core[name], shell = site.core(y)
        return core, shell

    def priors(self, batch: Batch) -> dict[str, Density]:
        """Return the densities that stand for those of the VAE's program, with the conditions of a batch."""
        prior = self.prior
        if prior is None:
            return {}
        return {"z": Conditioned(prior, batch) if self._prior_takes_conditions else prior}

    @property
    def kl(self) -> str:
        """`"analytic"` or `"sampled"`; see `vae2aef.wrap`. May be changed at any time."""
        return self._kl

    @kl.setter
    def kl(self, value: str) -> None:
        if value not in ("analytic", "sampled"):
            raise ValueError(f'expected kl "analytic" or "sampled", got {value!r}')
        self._kl = value

    def averaged(self, perturb: Perturb | None) -> dict[str, Tensor]:
        """Return sigma by latent where the loss averages log p0(z) over the noise on w: without a core flow."""
        if self.kl == "sampled" or perturb != self.noisy:
            return {}
        sites = {name: site for name, site in self.by_latent().items() if site.core.noisy}
        cores = {name: site.core for name, site in sites.items() if isinstance(site.flow, Identity)}
        return {name: core.sigma for name, core in cores.items() if isinstance(core, Expansion)}

    def observed(self, decoded: Decoded, batch: int) -> Any:
        """Return p(x | z) of what the decoder says of `batch` rows: `log_prob`, `sample` and mostly `mean`."""
        shape = (batch, *self._event(decoded))
        return observed_density(self.likelihood, shape, decoded.outputs, decoded.density)

    def _event(self, decoded: Decoded) -> torch.Size:
        """Return the shape of one event of what the decoder says: the example's, but for another grid."""
        mean, dims = decoded.mean, len(self.event_shape) - 1
        if not self.grids or not isinstance(mean, Tensor) or mean.dim() <= dims:
            return self.event_shape
        event = torch.Size((*self.event_shape[:1], *mean.shape[-dims:]))
        return event if mean.shape[1:].numel() % max(event.numel(), 1) == 0 else self.event_shape

    def log_residual(self, shell: Tensor, decoded: Decoded, observed: Tensor | None = None) -> Tensor:
        """Return log p(x | z), of which log r(delta) is one case, `(batch,)` in nats.

        A core counts nothing, nor do values that are not there: `observed` is True where they are, `(batch, *event)`.

        Raises:
            ValueError: for values that are not there, if p(x | z) is not a product over single values.
        """
        each = self.observed(decoded, shell.shape[0]).log_prob(shell)
        if self.partition is not None:  # Eq. 5
            each = self.partition.shell(each)
        if observed is not None:
            if each.shape != observed.shape:
                raise ValueError(
                    "missing values need the density of each value of x by itself, and this likelihood has one for "
                    f"{tuple(each.shape)} of {tuple(observed.shape)}"
                )
            each = torch.where(observed, each, 0.0)
        return sum_event(each)

    def mean(self, decoded: Decoded, batch: int) -> Any:
        """Return the mean of x given z, `(batch, *event)`; of a density that knows none, what the decoder says."""
        mean = decoded.mean
        if self.likelihood is not None:
            mean = self.observed(decoded, batch).mean
        return mean.reshape(batch, *self._event(decoded)) if isinstance(mean, Tensor) else mean

    def with_core(self, decoded: Decoded, core: dict[str, Tensor]) -> Any:
        """Return the mean, `(batch, *event)`; in the partition family with the core of the data in its place."""
        mean = self.mean(decoded, next(iter(core.values())).shape[0])
        return mean if self.partition is None else self.partition.join(core["z"], mean)

    @property
    def partition(self) -> Partition | None:
        """The core in the partition family; None in the expanded one."""
        core = next(iter(self.sites.values())).core
        return core if isinstance(core, Partition) else None

    def _require_shape(self, x: Tensor) -> None:
        if not isinstance(x, Tensor):
            raise TypeError(not_data(x))
        if x.dim() >= 1 and x.shape[1:] == self.event_shape:
            return
        expected, more = ", ".join(map(str, self.event_shape)), ""
        if self.grids:
            if x.dim() == 1 + len(self.event_shape) and x.shape[1] == self.event_shape[0] and self._fits(x.shape[2:]):
                return
            more = f", or on another grid of patches {', '.join(map(str, self.grids.values()))}"
        raise ValueError(f"expected data of shape (batch, {expected}){more}, got {tuple(x.shape)}")

    def _fits(self, space: torch.Size) -> bool:
        """Whether the patches of all latents cover a grid."""
        try:
            return all(len(grid.latent(space)) for grid in self.grids.values())
        except ValueError:
            return False
