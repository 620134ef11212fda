"""What the options of `wrap` stand for: names and objects of a user made into modules; cores are in `cores`."""

import inspect
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from vae2aef.errors import WrapError, describe
from vae2aef.flows import AffineCoupling, Bijection, Chain, Identity
from vae2aef.grid_flows import grid_coupling
from vae2aef.interop import as_bijection, as_prior
from vae2aef.masked import MaskedAutoregressive
from vae2aef.parts import VAEParts
from vae2aef.preprocess import Dequantize, Logit, Standardize
from vae2aef.priors import FlowPrior, FunctionPrior, StandardNormal
from vae2aef.program import VAEProgram
from vae2aef.tensors import numel
from vae2aef.wrapping.look import Seen


def is_ours(option: Any) -> bool:
    """Whether what an option names is made here, rather than by the user."""
    return option is None or isinstance(option, (str, float, int, Tensor))


def build_prior(prior: Any, parts: VAEParts, seen: Seen, kwargs: dict[str, Any]) -> tuple[nn.Module | None, bool]:
    """Make the prior, None for a VAE of several latents; say whether it takes conditions."""
    if isinstance(parts, VAEProgram):
        if prior is not None:
            raise WrapError(
                f"prior= needs a VAE with one latent; this has several latent sites: {', '.join(seen.latents)}, "
                "whose priors depend on one another"
            )
        return None, False
    latent = seen.latents["z"]
    if isinstance(prior, (str, Bijection)):
        grid = seen.grids.get("z") if seen.local else None
        flow = build_flow(prior, numel(latent), channels=None if grid is None else (latent[0], grid.dims))
        made = FlowPrior(flow, latent)
        return made.to(seen.dtype) if is_ours(prior) else made, False
    if prior is None:
        prior = parts.prior if parts.prior is not None else StandardNormal(latent).to(seen.dtype)
    outside = as_prior(prior, latent)  # distributions, transforms and flows of torch, Pyro, zuko, nflows
    if outside is None and _is_function(prior):
        return FunctionPrior(prior), _takes_conditions(prior, kwargs)
    prior = prior if outside is None else outside
    if not (isinstance(prior, nn.Module) and callable(getattr(prior, "log_prob", None)) and hasattr(prior, "sample")):
        raise TypeError(
            'expected prior None, "coupling", "maf", a torch distribution, a function z -> log p(z), or a module with '
            f"log_prob(z) -> (batch,) and sample(n); got {describe(prior)}"
        )
    return prior, _takes_conditions(prior.log_prob, kwargs)


def _is_function(prior: Any) -> bool:
    return callable(prior) and not hasattr(prior, "log_prob") and not isinstance(prior, (nn.Module, type))


def _takes_conditions(log_prob: Any, kwargs: dict[str, Any]) -> bool:
    """Whether `log_prob` asks for more than z: by parameters without a default, `*args`, or the conditions' names."""
    parameters = inspect.signature(log_prob).parameters
    needed = [p for p in parameters.values() if p.default is p.empty or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return len(needed) > 1 or (bool(kwargs) and kwargs.keys() <= parameters.keys())


def build_flow(kind: Any, features: int, layers: int = 4, channels: tuple[int, int] | None = None) -> Bijection:
    """Make a flow by name: `"none"`, `"coupling"` or `"maf"`; a `Bijection` is returned as it is.

    Args:
        kind: the name, a flow of your own, or a transform of torch, Pyro, zuko or nflows (`vae2aef.interop`).
        features: D, the number of values in one event.
        layers: how many layers to compose.
        channels: of a latent that is a grid: how many channels it has, and how many dimensions its grid.

    Raises:
        ValueError: for an unknown name.
        TypeError: for an object that is no flow.
    """
    if isinstance(kind, Bijection):
        return kind
    if kind == "none":
        return Identity()
    if kind == "coupling" and channels is not None:
        return grid_coupling(*channels, layers)
    if kind == "coupling":
        return Chain(*(AffineCoupling(features) for _ in range(layers)))
    if kind == "maf":
        return Chain(*(MaskedAutoregressive(features) for _ in range(layers)))
    if isinstance(kind, str):
        raise ValueError(f'expected a flow "none", "coupling", "maf" or a vae2aef.Bijection, got "{kind}"')
    return as_bijection(kind)  # transforms of torch, Pyro, zuko, nflows; TypeError for anything else


def build_preprocess(kind: "str | Bijection | Sequence[str | Bijection] | None", example: Tensor | None) -> Bijection:
    """Make the preprocessing that `wrap(preprocess=...)` names.

    Args:
        kind: None, `"dequantize"`, `"logit"`, `"standardize"`, a bijection, or a sequence of these.
        example: data, shape `(batch, *event)`; `"standardize"` takes its statistics, one mean and one
            scale, from it (after the steps before it).

    Raises:
        ValueError: for an unknown name, or `"standardize"` without an example.
        TypeError: for an object that is no bijection.
    """
    if kind is None:
        return Identity()
    if isinstance(kind, Bijection):
        return kind
    if isinstance(kind, (list, tuple)):
        steps: list[Bijection] = []
        for name in kind:
            # Only statistics need the data: dequantising it draws from torch's generator.
            seen = _through(steps, example) if name == "standardize" and example is not None else None
            steps.append(build_preprocess(name, seen))
        return Chain(*steps)
    if kind == "dequantize":
        return Dequantize()
    if kind == "logit":
        return Logit()
    if kind == "standardize":
        if example is None:
            raise ValueError('preprocess="standardize" takes its statistics from data: pass example=x')
        return Standardize.fit(example)
    if isinstance(kind, str):
        raise ValueError(f'expected preprocess "dequantize", "logit" or "standardize", got "{kind}"')
    raise TypeError(f"expected a preprocessing by name or a vae2aef.Bijection, got {type(kind).__name__}")


def _through(steps: list[Bijection], x: Tensor) -> Tensor:
    """Apply steps in turn; say which of them data are outside of."""
    for step in steps:
        y = step(x)[0]
        if bool(x.isfinite().all()) and not bool(y.isfinite().all()):
            raise WrapError(
                f"the example, ranging from {x.min().item():.4g} to {x.max().item():.4g}, is not finite after "
                f"{type(step).__name__.lower()}"
                + (", which takes data in [0, 1]: scale it, or dequantise integers" if isinstance(step, Logit) else "")
            )
        x = y
    return x
