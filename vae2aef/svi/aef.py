"""The module that `from_pyro` makes of a Pyro model and guide with several latent sites."""

from typing import Any

import pyro.poutine as poutine
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from vae2aef.errors import NonFiniteError, WrapError
from vae2aef.interop.densities import draw
from vae2aef.marginal import LogProb, Proposal
from vae2aef.modes import own_random_state
from vae2aef.svi import marginal
from vae2aef.svi.elbo import AEF_ELBO
from vae2aef.svi.handlers import ModelHandler, is_subsample, noisy_core
from vae2aef.svi.pair import PyroPair
from vae2aef.svi.parts import same_density


class _Unscaled(Messenger):
    """Undo plate subsampling and `poutine.scale`: the terms of the rows that are there, once each."""

    def _pyro_sample(self, msg: Any) -> None:
        msg["scale"] = 1.0


class _Draw(Messenger):
    """Draw latent sites at a temperature, or take them as given; observed sites give their mean, or a draw."""

    def __init__(self, values: dict[str, Tensor], temperature: float, residual: bool) -> None:
        super().__init__()
        self.values, self.temperature, self.residual = values, temperature, residual
        self.data: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Any) -> None:
        fn, name = msg["fn"], msg["name"]
        if is_subsample(fn):
            return
        if msg["is_observed"]:
            if not msg["infer"].get("_deterministic"):
                self.data[name] = fn.sample() if self.residual else fn.mean
        elif name in self.values:
            msg["value"], msg["done"] = self.values[name], True
        else:
            msg["value"], msg["done"] = draw(fn, torch.Size(), self.temperature), True


class PyroAEF(nn.Module):
    """An AEF of a Pyro model and guide with several latent sites (a hierarchy, a ladder, a state-space model).

    `module(x, *cond)` is the loss of `vae2aef.AEF_ELBO`, averaged over the rows, in nats. Made by `from_pyro`.

    Attributes:
        pair: model and guide, with their parameters.
        elbo: the loss.
        added: h and n of each site.
    """

    _like: Tensor

    def __init__(self, pair: PyroPair, x: Tensor, cond: tuple, kwargs: dict[str, Any], options: Any) -> None:
        super().__init__()
        self.pair = pair
        self.elbo = AEF_ELBO(**options, data=self._data, name="vae2aef.from_pyro")
        self.register_buffer("_like", x.new_zeros(()), persistent=False)  # follows .to() and .double()
        self.added = self.elbo.added
        self.event_shape = x.shape[1:]
        self._traces(x, cond, kwargs, 0.0)
        left = [name for name, cores in self.elbo.cores.items() if cores is None]
        if left:
            raise WrapError(
                "from_pyro needs every latent site to be mapped, for a density of each datum; left to Pyro would be: "
                + "; ".join(f'"{name}", {self.elbo.notes[name]}' for name in left)
                + ". Train with SVI(..., loss=vae2aef.AEF_ELBO())"
            )
        self._require_equal_weights(x, cond, kwargs)
        self._independent = self._model_ignores_data(x, cond, kwargs)

    # ------------------------------------------------------------------ the loss

    def forward(self, x: Tensor, *cond: Any, **kwargs: Any) -> Tensor:
        """Return the loss averaged over the rows, in nats; subsampling and `poutine.scale` weights are left out.

        Args:
            x: data, shape `(batch, *event)`.
            *cond: the other arguments of model and guide, in order.
            **kwargs: by name.
        """
        total = self._log_density(self._traces(x, cond, kwargs, self.noise), x.shape[0])
        loss = -total.sum() / max(x.shape[0], 1)
        if not bool(loss.isfinite()):
            raise NonFiniteError("the loss is not finite; SVI with AEF_ELBO names the site")
        return loss

    @property
    def noise(self) -> float:
        """The noise sigma on the core variables (Eq. 11)."""
        return self.elbo.noise

    @noise.setter
    def noise(self, value: float) -> None:
        self.elbo.noise = value

    # ------------------------------------------------------------------ latents and data

    def encode(self, x: Tensor, *cond: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Return the latents of `x` by site, in the shapes the guide has, without noise."""
        guide = self._traces(x, cond, kwargs, 0.0)[1]
        return {name: guide.nodes[name]["value"] for name in self.elbo.cores if name in guide.nodes}

    @torch.no_grad()
    def sample(
        self, n: int, *cond: Any, temperature: float = 1.0, residual: bool = False, **kwargs: Any
    ) -> "Tensor | dict[str, Tensor]":
        """Draw `n` data from the model: latents from their priors, then the mean of x (Algorithm 3).

        Args:
            n: how many.
            *cond: conditions, `n` of each.
            temperature: factor on the scale of every prior.
            residual: draw x instead of its mean.
            **kwargs: conditions by name.

        Returns:
            Shape `(n, *event)`; a dict by observed site, if there are several.

        Raises:
            ValueError: if a prior depends on the data themselves: there is nothing to start from.
        """
        blank = self._like.new_zeros(n, *self.event_shape)
        return self._generate(blank, {}, cond, kwargs, temperature, residual)

    def decode(self, z: dict[str, Tensor], *cond: Any, **kwargs: Any) -> "Tensor | dict[str, Tensor]":
        """Return the mean of x given the latents by site, as `encode` returns them; shapes as in `sample`."""
        first = next(iter(self.elbo.cores))
        cores: Any = self.elbo.cores[first]
        n = z[first].shape[cores.placement.data]
        return self._generate(self._like.new_zeros(n, *self.event_shape), z, cond, kwargs, 1.0, False)

    def reconstruct(self, x: Tensor, *cond: Any, **kwargs: Any) -> "Tensor | dict[str, Tensor]":
        """Encode and decode."""
        return self.decode(self.encode(x, *cond, **kwargs), *cond, **kwargs)

    # ------------------------------------------------------------------ likelihood

    def log_prob(
        self, x: Tensor, *cond: Any, num_samples: int = 128, proposal: Proposal | None = None, **kwargs: Any
    ) -> LogProb:
        """Estimate the marginal log p(x) in nats by importance sampling over all sites (Eq. 17-18).

        Args:
            x: data, shape `(batch, *event)`.
            *cond: conditions.
            num_samples: K, importance samples for each datum.
            proposal: from `tune_proposal`; None tunes one on the first rows of `x`.
            **kwargs: conditions by name.
        """
        return marginal.log_prob(self, x, cond, kwargs, num_samples, proposal)

    def tune_proposal(self, x: Tensor, *cond: Any, **kwargs: Any) -> Proposal:
        """Tune the importance sampling on (at most 64 rows of) held-out data; see `vae2aef.marginal.tune`."""
        return marginal.tune(self, x, cond, kwargs)

    # ------------------------------------------------------------------ small steps

    def _data(self, *args: Any, **kwargs: Any) -> Tensor:
        return kwargs[str(self.pair.keyword)] if self.pair.position is None else args[self.pair.position]

    def _parts(self) -> tuple[Any, Any]:
        return self.pair.own(_Unscaled()(self.pair.model)), self.pair.own(_Unscaled()(self.pair.guide))

    def _traces(self, x: Tensor, cond: tuple, kwargs: Any, noise: float, core: Any = None) -> tuple[Any, Any]:
        args, named = self.pair.arguments(x, cond, kwargs)
        model, guide = self._parts()
        with poutine.block():
            return self.elbo.traces(model, guide, args, named, core or noisy_core(noise), register=False)

    def _require_equal_weights(self, x: Tensor, cond: tuple, kwargs: Any) -> None:
        args, named = self.pair.arguments(x, cond, kwargs)
        parts = self.pair.own(self.pair.model), self.pair.own(self.pair.guide)
        with torch.no_grad(), own_random_state(x.device), poutine.block():
            traces = self.elbo.traces(*parts, args, named, noisy_core(0.0), register=False)
        weights = {
            f"{name} of the {what}": float(site["scale"])
            for what, trace in zip(("model", "guide"), traces, strict=True)
            for name, site in trace.nodes.items()
            if site["type"] == "sample" and not is_subsample(site["fn"])
        }
        if len({round(w, 6) for w in weights.values()}) > 1:
            raise WrapError(
                f"the sites have different weights, {weights}, from poutine.scale or plates: their sum is no density "
                "of the data. Train with SVI(..., loss=vae2aef.AEF_ELBO()), which honours weights, and convert a model "
                "without them"
            )

    def _log_density(self, traces: tuple[Any, Any], rows: int) -> Tensor:
        """Sum the terms of model and guide for each row: shape `(rows,)`."""
        model, guide = traces
        total: Any = 0.0
        for trace, sign in ((model, 1), (guide, -1)):
            for name, site in trace.nodes.items():
                if site["type"] == "sample" and not is_subsample(site["fn"]):
                    total = total + sign * self._by_row(name, site, rows)
        return total

    def _by_row(self, name: str, site: Any, rows: int) -> Tensor:
        value = site["log_prob"]
        frames = [f for f in site["cond_indep_stack"] if f.vectorized and f.size == rows]
        plates = {c.placement.plate for c in self.elbo.cores.values() if c is not None}
        frames = [f for f in frames if f.name in plates] or frames
        if len(frames) != 1 or value.dim() < -frames[0].dim or value.shape[frames[0].dim] != rows:
            raise WrapError(
                f'site "{name}": a density of each datum needs it inside the data\'s plate, '
                'with pyro.plate("data", x.shape[0])'
            )
        return value.movedim(frames[0].dim, 0).flatten(1).sum(1) if value.dim() > 1 else value

    def _generate(
        self, blank: Tensor, values: dict[str, Tensor], cond: tuple, kwargs: Any, temperature: float, residual: bool
    ) -> "Tensor | dict[str, Tensor]":
        if not self._independent:
            raise ValueError(
                "the model's prior or observation depends on the data themselves (a prior or decoder that reads x): "
                "there is nothing to generate from. Make what it reads an argument of its own"
            )
        args, named = self.pair.arguments(blank, cond, kwargs)
        handler = _Draw(values, temperature, residual)
        with poutine.block(), handler:
            ModelHandler(self.elbo.scales)(self.pair.own(self.pair.model))(*args, **named)
        found = list(handler.data.values())
        if len(found) == 1 and found[0].numel() == blank.numel():
            return found[0].reshape(blank.shape)
        return handler.data

    @torch.no_grad()
    def _model_ignores_data(self, x: Tensor, cond: tuple, kwargs: Any) -> bool:
        with own_random_state(x.device), poutine.block():
            trace, guide = self._traces(x, cond, kwargs, 0.0)
            args, named = self.pair.arguments(torch.zeros_like(x), cond, kwargs)
            other = poutine.trace(poutine.replay(self._parts()[0], trace=guide)).get_trace(*args, **named)
        return all(
            same_density(site["fn"], other.nodes[name]["fn"], site["value"])
            for name, site in trace.nodes.items()
            if site["type"] == "sample" and not is_subsample(site["fn"]) and name not in self.elbo.scales
        )
