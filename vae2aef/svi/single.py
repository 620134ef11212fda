"""A Pyro program of one latent site and one observed site as encoder, decoder and prior."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vae2aef.batch import Batch
from vae2aef.chain import Generate
from vae2aef.errors import WrapError
from vae2aef.interop.densities import is_transformed
from vae2aef.modes import own_random_state
from vae2aef.parts import Decoded, VAEParts
from vae2aef.residual import Residual
from vae2aef.svi.pair import PyroPair
from vae2aef.svi.placing import SitePrior, is_masked
from vae2aef.svi.program import PyroProgram
from vae2aef.svi.sequences import SequenceAEF
from vae2aef.tensors import at_least_float32, mean_of


class NotSingle(WrapError):
    """The pair is sound, but not of the simple kind: one latent, and one observed site, which is the data."""


def read_pair(pair: PyroPair, batch: Batch) -> "SinglePyro | PyroProgram":
    """Return the parts of a pair: of the simple kind if it can be.

    Args:
        pair: model and guide.
        batch: example of the data, with conditions.

    Raises:
        WrapError: for anything that makes no AEF; names the site and the fix.
    """
    program = PyroProgram(pair, batch)
    parts: SinglePyro | PyroProgram = program
    try:
        parts = SinglePyro(program, batch)
    except NotSingle as why:
        program.not_single = str(why)
    parts.aef_class = None if pair.sequences is None else SequenceAEF
    return parts


class _Reached(Exception):
    """A site has been reached, with its posterior or prior: the rest of the run is not needed."""


def _first(run: Callable[..., Any], *args: Any) -> Any:
    """Run guide or model up to its latent; return the posterior or the prior it would be placed with."""

    def stop(name: str, prior: Any, posterior: Any) -> Tensor:
        raise _Reached(prior if posterior is None else posterior)

    try:
        run(stop, *args)
    except _Reached as reached:
        return reached.args[0]
    raise WrapError("the latent site was not there in this run: model and guide must have it in every run")


class SinglePyro(VAEParts):
    """The parts of a program of one latent z and one observed site x.

    Args:
        program: model and guide.
        batch: example of the data, with conditions.

    Attributes:
        latent: the name of the latent site.
        residual: the family of the observed site, at the model's own scale; None if it has another density, or was
            made Gaussian.
        own: whether the site's own density is taken.

    Raises:
        NotSingle: if there are several latents or observed sites, or x is not the observed site.
    """

    needs_rows = True

    def __init__(self, program: PyroProgram, batch: Batch) -> None:
        if program.pair.sequences is not None:
            raise NotSingle("sequences of different length")
        if len(program.axes) > 1:
            raise NotSingle("several latent sites: " + _listed(program.axes))
        if program.labels:
            raise NotSingle("discrete latents, summed out: " + _listed(program.labels))
        (self.latent,) = program.axes
        with own_random_state(batch.x.device), torch.no_grad():
            posterior, prior = _first(program.run_guide, batch), _first(program.run_model, batch, {})
            z = posterior.push(torch.zeros_like(posterior.loc))[0]
            sites = program.run_model(Generate(batch.size, {self.latent: z}), batch, {}).density.sites
        if len(sites) != 1:
            raise NotSingle("several observed sites: " + _listed(sites))
        ((observed, site),) = sites.items()
        value = site.msg["value"]
        if value.numel() != batch.x.numel() or not torch.equal(value.reshape(batch.x.shape).to(batch.x), batch.x):
            raise NotSingle(f'the observed site "{observed}" is not the data as it was given')
        if posterior.mask is not None or is_masked(prior.msg) or is_masked(site.msg):
            raise NotSingle("a mask")
        if not program.independent:
            raise NotSingle("a prior or an observed density that depends on the data itself")
        discrete = bool(program.scales)
        if is_transformed(_inside(site.msg["fn"])):  # past whose caches only the program looks
            raise NotSingle(f'an observed density with transforms: "{observed}"')
        family = _residual(site.msg["fn"], program.event_shape)
        self.program, self.residual = program, None if discrete else family
        self.likelihood = self.residual
        self.own = family is None
        self.prior = PyroPrior(program)
        self.taken = (
            f'encoder: site "{self.latent}" of the Pyro guide',
            f'decoder: {"density" if self.own else "mean"} of site "{observed}" of the Pyro model',
            f'prior: site "{self.latent}" of the Pyro model',
        )
        if discrete:
            self.assumed = (f'the mean of the discrete site "{observed}" with a Gaussian residual, as you said',)

    def read(self, x: Tensor) -> Tensor:
        """See `VAEParts.read`."""
        return self.program.read(x)

    def encode(self, x: Tensor, *cond: Any, **kwargs: Any) -> Any:
        """See `VAEParts.encode`: z has the batch first."""
        return replace(_first(self.program.run_guide, Batch(x, cond, kwargs)), rows_first=True)

    def decode(self, z: Tensor, *cond: Any, **kwargs: Any) -> Decoded:
        """See `VAEParts.decode`; the density, or mean and scale, are the model's own."""
        place = Generate(z.shape[0], {self.latent: self.program.rows_back(self.latent, z)})
        (site,) = self.program.run(place, None, *cond, **kwargs).density.sites.values()
        fn = _inside(site.msg["fn"])
        if self.own:
            return Decoded(mean_of(fn), density=fn)
        mean = at_least_float32(fn.loc)
        return Decoded(mean, None if self.residual is None else at_least_float32(fn.scale.expand_as(fn.loc)))


class PyroPrior(nn.Module):
    """The latent site of the model as a prior, which may depend on conditions; the batch comes first."""

    def __init__(self, program: PyroProgram) -> None:
        super().__init__()
        self.program = program

    def _site(self, n: int, cond: tuple, kwargs: dict[str, Any]) -> SitePrior:
        return _first(self.program.run_model, Batch(self.program.blank(n), cond, kwargs), {})

    def log_prob(self, z: Tensor, *cond: Any, **kwargs: Any) -> Tensor:
        """Log density in nats: `z` of shape `(batch, *latent)` gives `(batch,)`."""
        (name,) = self.program.axes
        return self._site(z.shape[0], cond, kwargs).log_prob(self.program.rows_back(name, z))

    def sample(self, n: int, *cond: Any, temperature: float = 1.0, **kwargs: Any) -> Tensor:
        """Draw `n` latents, shape `(n, *latent)`; `temperature` scales location-scale distributions."""
        (name,) = self.program.axes
        return self.program.rows_first(name, self._site(n, cond, kwargs).sample(n, temperature))


def _inside(fn: Any) -> Any:
    """Return the distribution inside Independent."""
    while isinstance(fn, torch.distributions.Independent):
        fn = fn.base_dist
    return fn


def _residual(fn: Any, event_shape: torch.Size) -> Residual | None:
    """Return the residual of the family of an observed distribution; None if `Residual` has none for it."""
    fn = _inside(fn)
    if isinstance(fn, torch.distributions.StudentT):
        df = float(fn.df.flatten()[0])
        fixed = not fn.df.requires_grad and bool((fn.df == df).all())
        return Residual(event_shape, "decoder", "student_t", df=df) if fixed else None
    family = {torch.distributions.Normal: "gaussian", torch.distributions.Laplace: "laplace"}
    name = next((name for kind, name in family.items() if isinstance(fn, kind)), None)
    return None if name is None else Residual(event_shape, "decoder", name)


def _listed(names: Any) -> str:
    return ", ".join(f'"{name}"' for name in names)
