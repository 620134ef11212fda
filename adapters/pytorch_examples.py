"""Classes shaped like the VAE of pytorch/examples: `encode`, `reparameterize`, `decode`.

That code is copied and changed rather than imported, so it is known by its methods. What `encode` returns second
is measured, not guessed from its name: `reparameterize(0, v)` with the same random state at two values of v tells
a log variance from a log standard deviation, a standard deviation or a variance. If it is none of these, the VAE is
left to tracing.
"""

import math
from typing import Any

import torch
from torch import Tensor

from vae2aef.errors import WrapError
from vae2aef.parts import SCALES, CallableParts
from vae2aef.registry import register_adapter
from vae2aef.wrapping.trained_with import has_methods, trained_with
from vae2aef.wrapping.trial import trial

DRAWS, SIZE = 2**18, 0.02
"""How many draws are compared, and how far from 1 their root mean square may be: ten times its standard error."""


@register_adapter(matches=has_methods, style=True)
def adapt(vae: Any, x: Tensor, *cond: Any, encoder_scale: str | None = None, **kwargs: Any) -> CallableParts | None:
    """Read the parts of such a VAE.

    Args:
        vae: the user's VAE.
        x: data as the VAE sees it, shape `(batch, *event)`.
        *cond: conditions, handed to `encode` and `decode`.
        **kwargs: conditions by name.
        encoder_scale: what the user says of the second output; checked against the measurement.

    Raises:
        WrapError: if `encode` takes the data neither as it is nor flattened, or if the second output is measured to
            be another than the user says.

    Returns:
        The parts; None if the second output's meaning can neither be measured nor is given, or if `encode` returns
        anything but two tensors, such as the parameters of a posterior flow beside them.
    """
    with trial(x.device, vae):
        out, flatten = _encode(vae, x, cond, kwargs)
        if not (isinstance(out, (tuple, list)) and len(out) == 2 and all(isinstance(t, Tensor) for t in out)):
            return None  # a distribution, which another adapter reads, or what only tracing can tell
        second = out[1]
        measured = measure_scale(vae.reparameterize, second)
    if measured is None and encoder_scale is None:
        return None  # tracing its forward may tell
    if measured is not None and encoder_scale not in (None, measured):
        raise WrapError(
            f'encoder_scale="{encoder_scale}", but {type(vae).__name__}.reparameterize treats the second output as '
            f'"{measured}" (measured with one noise at two values); ',
            f'Pass encoder_scale="{measured}"',
        )
    scale = measured or encoder_scale
    parts = CallableParts(vae.encode, vae.decode, str(scale), flatten=flatten)
    parts.likelihood = trained_with(vae, x)
    how = "measured on reparameterize" if measured else "as you said"
    parts.taken = (
        f"encoder: {type(vae).__name__}.encode{' of flattened data' if flatten else ''}, second output {scale} ({how})",
        f"decoder: {type(vae).__name__}.decode, {_says(parts.likelihood)}",
    )
    return parts


def _says(likelihood: str | None) -> str:
    return "its output taken as the mean of the data" if likelihood is None else f"with the loss of a {likelihood}"


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

    Draws are compared at two values of v, with one random state: for their ratio, and for their own size, since
    `mu + 0.1 * exp(0.5 * v) * eps` has the ratio of a log variance.

    Args:
        reparameterize: returns loc + scale(v) * noise, drawn from torch's generator.
        like: a tensor of the shape of the encoder's outputs.

    Returns:
        `"std"`, `"log_std"`, `"var"` or `"log_var"`; None if it is none of these, if no noise of mean 0 and
        standard deviation 1 is drawn, or if `loc` is not simply added.
    """
    rows = math.ceil(DRAWS / max(like[:1].numel(), 1))
    zeros = like.new_zeros(rows, *like.shape[1:])
    ramp = torch.linspace(-2.0, 2.0, zeros.numel(), dtype=like.dtype, device=like.device).reshape(zeros.shape)

    def draw(loc: Tensor, value: float) -> Tensor:
        torch.manual_seed(0)
        return reparameterize(loc.clone(), torch.full_like(loc, value))

    try:
        first, second, moved = draw(zeros, 1.0), draw(zeros, 2.0), draw(ramp, 1.0)
    except Exception:  # it takes something else; whoever looks next has more to say
        return None
    if not all(isinstance(d, Tensor) and d.shape == zeros.shape for d in (first, second, moved)):
        return None
    first, second, moved = first.double(), second.double(), moved.double()
    if not torch.allclose(moved - first, ramp.double(), rtol=0.0, atol=1e-4):
        return None
    return next((kind for kind in SCALES if _fits(kind, first, second)), None)


def _fits(kind: str, first: Tensor, second: Tensor) -> bool:
    """Whether draws at v = 1 and v = 2 are one standard noise times the scale that `kind` says."""
    scale = {"std": (1.0, 2.0), "log_std": (math.e, math.e**2), "var": (1.0, math.sqrt(2)),
             "log_var": (math.exp(0.5), math.e)}[kind]  # fmt: skip
    noise = first / scale[0]
    return (
        torch.allclose(noise, second / scale[1], rtol=1e-3, atol=1e-6)
        and math.isclose(noise.square().mean().sqrt().item(), 1.0, rel_tol=SIZE)
        and abs(noise.mean().item()) < SIZE
    )
