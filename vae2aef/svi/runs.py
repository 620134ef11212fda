"""The runs of model and guide that a survey looks at."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.poutine as poutine
import torch
from torch import Tensor

from vae2aef.svi.reading import Path, Unit, changed, units, with_defaults
from vae2aef.svi.sites import is_subsample


class Runs:
    """One run of the guide and of the model at its values, with a path of autograd to the arguments; and others.

    To be made inside `vae2aef.svi.quiet.quiet`.

    Args:
        model: the model.
        guide: the guide.
        args: of both.
        kwargs: of both.
        named: the same by name.

    Attributes:
        units: the tensors among the arguments.
        guide_trace: of the guide.
        model_trace: of the model at its values.
    """

    def __init__(self, model: Any, guide: Any, args: tuple, kwargs: dict[str, Any], named: dict[str, Any]) -> None:
        self.model, self.guide, self.arguments, self.named = model, guide, (args, kwargs), named
        self._of_guide, self._of_model = (with_defaults(part, args, kwargs) for part in (guide, model))
        self.units = list(units(named))
        self._start = torch.get_rng_state()
        self._leaves: dict[int, Tensor] = {}
        try:
            with torch.enable_grad():
                self._run(self._followed)
        except Exception:  # some code does not take tensors that autograd follows: `x.numpy()`, writing into them
            self._leaves = {}
            torch.set_rng_state(self._start)
            with torch.no_grad():
                self._run(_copy)

    def _run(self, change: Callable[[Tensor], Tensor]) -> None:
        args, kwargs = changed(self._of_guide, change)
        self.guide_trace = poutine.trace(self.guide).get_trace(*args, **kwargs)
        self._before_model = torch.get_rng_state()
        args, kwargs = changed(self._of_model, change)
        self.model_trace = self._at_latents(args, kwargs)

    def _followed(self, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        if id(tensor) not in self._leaves:
            self._leaves[id(tensor)] = tensor.detach().clone().requires_grad_()
        return self._leaves[id(tensor)].clone()  # which may be written into

    def group(self, ragged: Path | None) -> None:
        """Take the list at a path as sequences, one a row."""
        self.units = list(units(self.named, ragged=ragged))

    def leaves(self, unit: Unit) -> list[Tensor]:
        """Return what autograd follows in the place of a unit; empty where it cannot."""
        return [self._leaves[id(t)] for t in unit.tensors if id(t) in self._leaves]

    def guide_on(self, change: Callable[[Tensor], Tensor]) -> Any:
        """Trace the guide on other arguments, with the same random numbers, without gradients."""
        torch.set_rng_state(self._start)
        args, kwargs = changed(self._of_guide, change)
        with torch.no_grad():
            return poutine.trace(self.guide).get_trace(*args, **kwargs)

    def model_on(self, change: Callable[[Tensor], Tensor]) -> Any:
        """Trace the model at the same latents on other arguments, likewise."""
        torch.set_rng_state(self._before_model)
        args, kwargs = changed(self._of_model, change)
        with torch.no_grad(), pyro.validation_enabled(False):
            return self._at_latents(args, kwargs)

    def _at_latents(self, args: tuple, kwargs: dict[str, Any]) -> Any:
        return poutine.trace(at_latents(self.model, self.guide_trace)).get_trace(*args, **kwargs)


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()


def at_latents(model: Any, guide_trace: Any) -> Any:
    """Return the model at what a guide has drawn: its latents, and the rows of its plates.

    Not at what the guide observes or computes, which Pyro does not replay: the names of such sites are compared later.
    """
    drawn = guide_trace.copy()
    for name, site in guide_trace.nodes.items():
        if site["type"] == "sample" and site["is_observed"] and not is_subsample(site["fn"]):
            drawn.remove_node(name)
    return poutine.replay(model, trace=drawn)


def latent_sites(trace: Any) -> dict[str, Any]:
    """Return the sites that are drawn, by name, in order."""
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site["is_observed"] and not is_subsample(site["fn"])
    }


def observed_sites(trace: Any) -> dict[str, Any]:
    """Return the sites that score data, by name, in order; not those of `pyro.deterministic`."""
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and site["is_observed"] and not (site["infer"] or {}).get("_deterministic")
    }
