"""Algorithm 1 latent by latent: what the AEF does where a VAE places a latent.

A VAE is a program that places its latents one by one: z1, z2 given z1, ..., then the data given all of them. It asks
`place(name, prior, posterior)` for each z. `Infer` answers with the map of Eq. 9 and gathers log p0(z) and log|det J|,
which add up because the map is triangular; `Generate` answers with a draw from the prior (Algorithms 2 and 3); `Given`
with latents that are known. For one latent, named "z", this is the paper's AEF.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vae2aef.core import Expansion, Partition
from vae2aef.flows import Bijection, Identity
from vae2aef.protocols import Density, Posterior, draw

Temperature = float | Mapping[str, float]
"""Factor on the standard deviation of every prior, or one by latent (1 where it has none)."""


class Site(nn.Module):
    """What is added for one latent.

    Args:
        core: h(x) with its noise (Eq. 9, 11), or a part of the data (Eq. 4).
        flow: n^-1.
    """

    def __init__(self, core: Expansion | Partition, flow: Bijection) -> None:
        super().__init__()
        self.core = core
        self.flow = flow

    def perturb(self, core: Tensor, posterior: Posterior) -> tuple[Tensor, Tensor]:
        """Return w = h(x) + sigma epsilon (Eq. 11) and the entropy of w given x: a scalar, or `(batch,)`; nats."""
        given = () if posterior.standard is None else (posterior.standard,)
        return self.core.perturb(core, *given), self.core.entropy(posterior.standard, core)


Perturb = Callable[[str, Tensor, Any], tuple[Tensor, Tensor]]
"""`(name, h(x), posterior)` gives w and its entropy, or minus the log density of a draw: a scalar or `(batch,)`."""


class Infer:
    """Algorithm 1: z = T(g_m + g_s n^-1(w)), latent by latent.

    Args:
        size: how many rows.
        flows: n^-1 by latent.
        core: h(x) by latent, `(batch, *latent)`.
        perturb: makes w of h(x).
        priors: densities that stand for the program's own.
        sigma: of the noise that `perturb` adds, by latent, where log p0(z) is to be averaged over it if prior and
            posterior are Gaussian: the analytic KL. None to take log p0 at the z that was drawn.

    Attributes:
        z: the latents so far, by name.
        prior: their log p0(z), `(batch,)`, nats.
        log_det: their log|det dz/dw|, likewise.
        entropy: what `perturb` returned, likewise, or a scalar.
        terms: all that was computed, by name, in order.
        free: whether the latents so far range over all real numbers.
        masks: which rows have a latent at all, by name, where not all do.
        spread: where log p0(z) is averaged, mean and standard deviation of z given x and the latents before it.
    """

    def __init__(
        self,
        size: int,
        flows: Mapping[str, Callable[[Tensor], tuple[Tensor, Tensor]]],
        core: Mapping[str, Tensor],
        perturb: Perturb,
        priors: Mapping[str, Density],
        sigma: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.size, self.flows, self.core, self.perturb, self.priors = size, flows, core, perturb, priors
        self.sigma = sigma or {}
        self.z: dict[str, Tensor] = {}
        self.spread: dict[str, tuple[Tensor, Tensor]] = {}
        self.prior: Any = 0.0
        self.log_det: Any = 0.0
        self.entropy: Any = 0.0
        self.terms: dict[str, Tensor] = {}
        self.free = True
        self.masks: dict[str, Tensor] = {}

    def __call__(self, name: str, prior: Density | None, posterior: Any) -> Tensor:
        """See `Place`."""
        if posterior is not None:
            self._infer(name, posterior)
        z = self.z[name]
        prior = self.priors.get(name, prior)
        if prior is not None:
            averaged = getattr(prior, "expected_log_prob", None) if name in self.spread else None
            self.prior = added(self.prior, prior.log_prob(z) if averaged is None else averaged(*self.spread[name]))
        return z

    def _infer(self, name: str, posterior: Any) -> None:
        w, entropy = self.perturb(name, self.core[name], posterior)
        flow = self.flows[name]
        u, log_det = (w, 0.0) if type(flow) is Identity else flow(w)  # u = n^-1(w)
        z, change = posterior.push(u)  # Eq. 4, 9
        log_det = added(log_det, change)
        if name in self.sigma and posterior.standard is None and posterior.transform is None:
            # Given x and the latents before it, z is N(loc + scale h(x), (scale sigma)^2); not by another `push`, which
            # runs a VAE anew that is only known as a whole.
            scale = posterior.scale
            self.spread[name] = posterior.loc + scale * self.core[name], self.sigma[name] * scale
        if posterior.mask is not None:  # rows that have no such latent
            self.masks[name] = posterior.mask
            log_det, entropy = torch.where(posterior.mask, log_det, 0.0), torch.where(posterior.mask, entropy, 0.0)
        self.free = self.free and posterior.free
        self.z[name] = z
        self.log_det, self.entropy = added(self.log_det, log_det), added(self.entropy, entropy)
        suffix = "" if len(self.flows) == 1 else f"[{name}]"
        for what, value in (
            ("core", w), ("encoder_location", posterior.loc), ("encoder_scale", posterior.scale), ("z", z),
        ):  # fmt: skip
            self.terms[what + suffix] = value


class Given:
    """Latents as they are, with their log p0(z).

    Args:
        z: by name.
        size: how many rows.
        priors: densities that stand for the program's own.
    """

    log_det = entropy = 0.0

    def __init__(self, z: Mapping[str, Tensor], size: int, priors: Mapping[str, Density]) -> None:
        self.z, self.size, self.priors = z, size, priors
        self.prior: Any = 0.0

    def __call__(self, name: str, prior: Density | None, posterior: Any) -> Tensor:
        """See `Place`."""
        prior = self.priors.get(name, prior)
        if prior is not None:
            self.prior = added(self.prior, prior.log_prob(self.z[name]))
        return self.z[name]


def added(total: Any, value: Any) -> Any:
    """Return the sum; of the zero that a place begins with, and a first value, that value, without a call of torch."""
    return value if isinstance(total, float) and total == 0 else total + value


class Generate:
    """Algorithms 2 and 3: z from its prior, or as given.

    Args:
        size: how many rows.
        given: latents by name that are not drawn.
        temperature: factor on the standard deviation of the priors.
        priors: densities that stand for the program's own.
        shapes: of latents that are to be drawn on another grid than the example's, by name.

    Attributes:
        z: the latents so far, by name.
    """

    def __init__(
        self,
        size: int,
        given: Mapping[str, Tensor] | None = None,
        temperature: Temperature = 1.0,
        priors: Mapping[str, Density] | None = None,
        shapes: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        self.size, self.temperature, self.priors = size, temperature, priors or {}
        self.shapes = shapes or {}
        self.z = dict(given or {})

    def __call__(self, name: str, prior: Density | None, posterior: Any) -> Tensor:
        """See `Place`."""
        if name not in self.z:
            prior = self.priors.get(name, prior)
            if prior is None:
                raise ValueError(f'the latent "{name}" has no prior to draw it from')
            factor = self.temperature.get(name, 1.0) if isinstance(self.temperature, Mapping) else self.temperature
            if not hasattr(factor, "__float__") or not (math.isfinite(factor) and factor >= 0):
                raise ValueError(f"expected a temperature that is finite and at least 0, got {factor!r}")
            self.z[name] = draw(prior, self.size, float(factor), self.shapes.get(name))
        return self.z[name]
