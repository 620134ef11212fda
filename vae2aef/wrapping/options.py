"""What the options of `wrap` stand for: names and objects of a user made into modules, all in this one place."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vae2aef.chain import Site
from vae2aef.core import Expansion, LinearFeatures, NoFeatures, Partition, partition_mask
from vae2aef.errors import WrapError, describe
from vae2aef.features import NormalizedFeatures
from vae2aef.flows import AffineCoupling, Bijection, Chain, Each, Identity
from vae2aef.interop import as_bijection, as_prior
from vae2aef.likelihood import Likelihood
from vae2aef.masked import MaskedAutoregressive
from vae2aef.parts import VAEParts
from vae2aef.preprocess import Dequantize, Logit, Standardize
from vae2aef.priors import FlowPrior, FunctionPrior, StandardNormal
from vae2aef.program import VAEProgram
from vae2aef.tensors import numel
from vae2aef.wrapping.look import Seen


def read_noise(noise: Any) -> float:
    """Return sigma as a number."""
    if isinstance(noise, (str, bytes, bool)) or not hasattr(noise, "__float__"):
        raise TypeError(f"expected noise as a number >= 0, got {noise!r}")
    return float(noise)


def read_core(core: Any) -> Any:
    """Take a mask of numpy, or of anything that says how to become an array, as a tensor."""
    is_array = hasattr(core, "__array__") and not isinstance(core, (Tensor, str))
    return torch.as_tensor(core) if is_array else core


def build_sites(
    core: Any, core_flow: Any, noise: float, parts: VAEParts, seen: Seen, x: Tensor, likelihood: Any = None
) -> dict[str, Site]:
    """Make what is added for each latent.

    Args:
        core: as in `wrap`; for several latents it may be a dict by name.
        core_flow: likewise.
        noise: sigma.
        parts: of the VAE.
        seen: what a look at the example showed.
        x: the example as the VAE sees it.
        likelihood: of the AEF.

    Raises:
        WrapError: for a dict that leaves a latent out, or a partition where there are several latents or x is discrete.
    """
    several = isinstance(parts, VAEProgram)
    sites = {}
    for name, latent in seen.latents.items():
        own_core = _of_latent(core, name, "core", several)
        own_flow = _of_latent(core_flow, name, "core_flow", several)
        outer = parts.outer_dims(name) if isinstance(parts, VAEProgram) else 0
        if several and is_partition(own_core):
            raise WrapError(
                f"core={own_core!r}: the partition family takes its one latent out of the data, and this VAE has "
                f"{len(seen.latents)} latents; ",
                'use core="linear"',
            )
        if is_partition(own_core) and getattr(likelihood, "discrete", seen.discrete):
            raise WrapError(
                f"core={own_core!r}: a core that is part of the data needs continuous data, and the likelihood is of "
                "discrete ones; ",
                'use core="linear"',
            )
        read = likelihood.features(seen.event_shape) if isinstance(likelihood, Likelihood) else None
        the_core = build_core(own_core, seen, latent, noise, read, x)
        flow = build_flow(own_flow, numel(latent[outer:]))
        sites[name] = Site(the_core, Each(flow, outer) if outer else flow)
        # What the user made keeps its dtype; what was made here takes that of the data, for a VAE in float64.
        for part, option in ((sites[name].core, own_core), (sites[name].flow, own_flow)):
            if is_ours(option):
                part.to(seen.dtype)
    return sites


def is_ours(option: Any) -> bool:
    """Whether what an option names is made here, rather than by the user."""
    return option is None or isinstance(option, (str, float, int, Tensor))


def _of_latent(option: Any, name: str, what: str, several: bool) -> Any:
    if not several or not isinstance(option, Mapping) or isinstance(option, nn.Module):
        return option
    if name not in option:
        raise WrapError(f'latent "{name}": {what}= is a dict without it; it has {sorted(option)}')
    return option[name]


def is_partition(core: Any) -> bool:
    """Whether an option names the partition family."""
    return isinstance(core, Tensor) or (isinstance(core, str) and core in ("center", "corner", "random"))


def build_core(
    core: Any, seen: Seen, latent: torch.Size, noise: float, read: nn.Module | None = None, x: Tensor | None = None
) -> Expansion | Partition:
    """Make the core that `wrap(core=...)` names, for a latent of shape `latent`.

    Linear features are of `read(x)`; their center and scale are those of the example x.
    """
    event = seen.event_shape
    if is_partition(core):
        if noise:
            raise ValueError(f"the partition family has an exact likelihood and takes no noise, got noise={noise}")
        if seen.flow:
            raise WrapError(
                "a partition core cannot be generated through a posterior flow, and this VAE's posterior has one: ",
                'use core="linear"',
            )
        mask = core if isinstance(core, Tensor) else partition_mask(core, event, numel(latent))
        if mask.shape != event:
            raise WrapError(f"expected a core mask of the data's shape {tuple(event)}, got {tuple(mask.shape)}")
        return Partition(mask, latent)
    if isinstance(core, nn.Module):
        return Expansion(core, latent, noise)
    if core == "linear":
        return Expansion(LinearFeatures(event, latent, read, x), latent, noise)
    if core == "normalized":
        return Expansion(NormalizedFeatures(event, latent, read, x), latent, noise)
    if core == "noise":
        if noise not in (0.0, 1.0):
            raise ValueError(f'core="noise" is the VAE itself, whose noise is 1 by definition; got noise={noise}')
        return Expansion(NoFeatures(latent), latent, 1.0)
    raise ValueError(
        f'expected core "linear", "normalized", "noise", "center", "corner", "random", a mask or a module; got {core!r}'
    )


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
        made = FlowPrior(build_flow(prior, numel(latent)), latent)
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


def build_flow(kind: Any, features: int, layers: int = 4) -> Bijection:
    """Make a flow by name: `"none"`, `"coupling"` or `"maf"`; a `Bijection` is returned as it is.

    Args:
        kind: the name, a flow of your own, or a transform of torch, Pyro, zuko or nflows (`vae2aef.interop`).
        features: D, the number of values in one event.
        layers: how many layers to compose.

    Raises:
        ValueError: for an unknown name.
        TypeError: for an object that is no flow.
    """
    if isinstance(kind, Bijection):
        return kind
    if kind == "none":
        return Identity()
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
