"""Signs of a prior in what a VAE's forward returns: a density of z beside the posterior, parameters of a loss alone."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from vae2aef.batch import Batch
from vae2aef.modes import named_parameters, untouched
from vae2aef.parts import VAEParts
from vae2aef.priors import StandardNormal
from vae2aef.tensors import numel
from vae2aef.wrapping.contract import leaves_of
from vae2aef.wrapping.known_pass import alike, close
from vae2aef.wrapping.look import Seen
from vae2aef.wrapping.trial import trial


def returned(vae: nn.Module, parts: VAEParts, batch: Batch, seen: Seen) -> tuple[str, list[str]]:
    """Look at all that forward returns.

    Args:
        vae: the user's VAE.
        parts: its parts.
        batch: rows of the example, with conditions.
        seen: what a look at the example showed.

    Returns:
        Where a density of z is that is neither the posterior nor the standard normal, empty if nowhere; and the names
        of trained parameters that have a part in a number for each datum, or in all, such as a loss, and none in the
        latent and the mean of the data.
    """
    from vae2aef.tracing.outputs import leaves

    with trial(batch.x.device, vae, parts), untouched(vae), torch.enable_grad():
        try:
            found, again = (leaves(_seeded(vae, batch, seed)) for seed in (0, 1))
        except Exception:  # it takes something else, which shows nothing
            return "", []
        posterior = parts.encode(batch.x, *batch.cond, **batch.kwargs)
        z = posterior.push(torch.zeros_like(posterior.loc))[0]
        mean = parts.decode(z, *batch.cond, **batch.kwargs).mean
        own = {id(t) for t in leaves_of([z, posterior.scale, *([mean] if isinstance(mean, Tensor) else [])])}
        losses = [t for _, _, t in found if t.requires_grad and t.numel() in (1, batch.size)]
        beside = {id(t) for t in leaves_of(losses)} - own
        named = [name for name, p in named_parameters(vae) if p.requires_grad and id(p) in beside]
        fixed = [one for one, other in zip(found, again, strict=False) if torch.equal(one[2], other[2])]
        return _density(fixed, posterior.loc, mean, seen), named


def _seeded(vae: nn.Module, batch: Batch, seed: int) -> Any:
    torch.manual_seed(seed)
    return vae(batch.x, *batch.cond, **batch.kwargs)


def _density(found: list[tuple[tuple, Any, Tensor]], loc: Tensor, mean: Any, seen: Seen) -> str:
    """Return the path of a density of z other than the posterior and the standard normal."""
    from vae2aef.tracing.outputs import say_path

    shape = seen.latents["z"]
    ambiguous = isinstance(mean, Tensor) and numel(shape) == numel(seen.event_shape)
    for path, out, value in found:
        if not (value.shape == shape or alike(value, loc)) or (ambiguous and alike(value, mean)):
            continue  # of the data, or of something else, as far as its shape tells
        if isinstance(out, Distribution):
            sign = not (alike(value, loc) and close(value.reshape(loc.shape), loc)) and not _standard(out, shape)
        else:
            sign = any("prior" in str(step).lower() for step in path) and not plain(value, str(path[-1]))
        if sign:
            return say_path(path)
    return ""


def plain(value: Tensor, name: str) -> bool:
    """Whether a tensor of this name is what it is of a standard normal: zero, or one, if it is no location."""
    location = any(sign in name.lower() for sign in ("mean", "mu", "loc", "cent"))
    return bool((value == 0).all()) or (not location and bool((value == 1).all()))


def _standard(density: Distribution, shape: torch.Size) -> bool:
    """Whether a density of z, `(*latent)` or one for each datum, is the standard normal, up to a constant."""
    rows = (*density.batch_shape, *density.event_shape)[: -len(shape) or None]
    z = torch.randn(5, *rows, *shape).to(density.mean)
    try:
        value = density.log_prob(z).reshape(5, -1).sum(1)
    except Exception:  # it is a density of something else
        return True
    more = value - StandardNormal(shape).log_prob(z.reshape(-1, *shape)).reshape(5, -1).sum(1)
    return torch.allclose(more, more.mean().expand_as(more), rtol=1e-3, atol=1e-4)
