"""Classes shaped like the VAE of pytorch/examples: `encode`, `reparameterize`, `decode`.

That code is copied and changed rather than imported, so it is known by its methods. What `encode` returns second
is measured, not guessed from its name: `reparameterize(0, v)` with the same random state at two values of v tells
a log variance from a log standard deviation, a standard deviation or a variance.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from vae2aef.errors import WrapError
from vae2aef.marginal import evaluation_mode, own_random_state
from vae2aef.parts import SCALES, CallableParts, two_tensors
from vae2aef.registry import register_adapter


def has_methods(vae: Any) -> bool:
    """Whether an object has callable `encode`, `reparameterize` and `decode`."""
    return all(callable(getattr(vae, name, None)) for name in ("encode", "reparameterize", "decode"))


@register_adapter(matches=has_methods)
def adapt(vae: Any, x: Tensor, *cond: Any, encoder_scale: str | None = None, **kwargs: Any) -> CallableParts | None:
    """Read the parts of such a VAE.

    Args:
        vae: the user's VAE.
        x: data as the VAE sees it, shape `(batch, *event)`.
        *cond: conditions, handed to `encode` and `decode`.
        **kwargs: conditions by name.
        encoder_scale: what the user says of the second output; checked against the measurement.

    Raises:
        WrapError: if `encode` takes the data neither as it is nor flattened, or if the second output's meaning
            cannot be measured and is not given, or is measured to be another.
    """
    module = vae if isinstance(vae, nn.Module) else nn.Module()
    with evaluation_mode(module), torch.no_grad(), own_random_state(x.device):
        out, flatten = _encode(vae, x, cond, kwargs)
        if isinstance(out, torch.distributions.Distribution):
            return None  # the adapter for these reads it
        second = two_tensors(out)[1]
        measured = measure_scale(vae.reparameterize, second)
    if measured is None and encoder_scale is None:
        raise WrapError(
            f"what is the second output of {type(vae).__name__}.encode? Its `reparameterize` draws no noise in eval "
            f"mode or is not affine in it, and the output ranges from {second.min().item():.4g} to "
            f"{second.max().item():.4g}. Pass encoder_scale=, one of {', '.join(map(repr, SCALES))}"
        )
    if measured is not None and encoder_scale not in (None, measured):
        raise WrapError(
            f'encoder_scale="{encoder_scale}", but {type(vae).__name__}.reparameterize treats the second output as '
            f'"{measured}" (measured with one noise at two values); leave encoder_scale out'
        )
    scale = measured or encoder_scale
    parts = CallableParts(vae.encode, vae.decode, str(scale), flatten=flatten)
    how = "measured on reparameterize" if measured else "as you said"
    parts.taken = (
        f"encoder: {type(vae).__name__}.encode{' of flattened data' if flatten else ''}, second output {scale} ({how})",
        f"decoder: {type(vae).__name__}.decode, its output taken as the mean of the data",
    )
    return parts


def _encode(vae: Any, x: Tensor, cond: tuple, kwargs: dict[str, Any]) -> tuple[Any, bool]:
    """Call `encode` with the data as it is or, if that fails, flattened."""
    try:
        return vae.encode(x, *cond, **kwargs), False
    except (RuntimeError, ValueError) as error:
        try:
            return vae.encode(x.flatten(1), *cond, **kwargs), True
        except (RuntimeError, ValueError):
            raise WrapError(
                f"{type(vae).__name__}.encode fails on data of shape {tuple(x.shape)} and on flattened data: {error}"
            ) from error


def measure_scale(reparameterize: Any, like: Tensor) -> str | None:
    """Find out how `reparameterize(loc, v)` turns v into a standard deviation.

    Args:
        reparameterize: returns loc + scale(v) * noise, drawn from torch's generator.
        like: a tensor of the shape of the encoder's outputs.

    Returns:
        `"std"`, `"log_std"`, `"var"` or `"log_var"`; None if it is none of these, or no noise is drawn.
    """
    draws = []
    for value in (1.0, 2.0):
        torch.manual_seed(0)
        draws.append(reparameterize(torch.zeros_like(like), torch.full_like(like, value)))
    if not all(isinstance(d, Tensor) and d.shape == like.shape for d in draws):
        return None
    ratio = (draws[1].abs().sum() / draws[0].abs().sum()).item()
    ratios = {"std": 2.0, "log_std": math.e, "var": math.sqrt(2), "log_var": math.exp(0.5)}
    return next((kind for kind, expected in ratios.items() if math.isclose(ratio, expected, rel_tol=1e-3)), None)
