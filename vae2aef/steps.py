"""The steps of an AEF's algorithms that are not its chain of latents: preprocessing, the split, the densities."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vae2aef.batch import Batch
from vae2aef.chain import Site
from vae2aef.core import Partition
from vae2aef.flows import Bijection
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

    def to_latent_side(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Preprocess data `(batch, *event)`; return y and log|det dy/dx|, `(batch,)`, nats."""
        self._require_shape(x)
        x = self.likelihood.read(x) if isinstance(self.likelihood, Likelihood) else x
        y, log_det = self.preprocess(at_least_float32(x))
        if not self.discrete:
            require_continuous(y)
        return y, log_det if log_det.is_floating_point() else log_det.to(torch.get_default_dtype())

    def require_scored(self, x: Tensor) -> None:
        """Refuse data that have no likelihood under p(x | z), such as grey values under a Bernoulli.

        Raises:
            ValueError: says what was expected, what came, and what to do.
        """
        self._require_shape(x)
        if isinstance(self.likelihood, Likelihood) and self.discrete:
            self.likelihood.check(self.likelihood.read(x), exact=True)

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
        if self.prior is None:
            return {}
        takes = self._prior_takes_conditions
        return {"z": Conditioned(self.prior, batch.cond, batch.kwargs) if takes else self.prior}

    def observed(self, decoded: Decoded, batch: int) -> Any:
        """Return p(x | z) of what the decoder says of `batch` rows: `log_prob`, `sample` and mostly `mean`."""
        return observed_density(self.likelihood, (batch, *self.event_shape), decoded.outputs, decoded.density)

    def log_residual(self, shell: Tensor, decoded: Decoded) -> Tensor:
        """Return log p(x | z), of which log r(delta) is one case, `(batch,)` in nats; a core counts nothing."""
        each = self.observed(decoded, shell.shape[0]).log_prob(shell)
        return sum_event(each if self.partition is None else self.partition.shell(each))  # Eq. 5

    def mean(self, decoded: Decoded, batch: int) -> Any:
        """Return the mean of x given z, `(batch, *event)`; of a density that knows none, what the decoder says."""
        mean = decoded.mean
        if self.likelihood is not None:
            mean = self.observed(decoded, batch).mean
        return mean.reshape(batch, *self.event_shape) if isinstance(mean, Tensor) else mean

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
        if x.dim() < 1 or x.shape[1:] != self.event_shape:
            expected = ", ".join(map(str, self.event_shape))
            raise ValueError(f"expected data of shape (batch, {expected}), got {tuple(x.shape)}")
