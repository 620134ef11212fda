"""What the decoder's output means: compared with the example as it is, and through a sigmoid or tanh."""

import warnings

import torch
from torch import Tensor

from vae2aef.errors import WrapWarning
from vae2aef.parts import VAEParts
from vae2aef.residual import Residual
from vae2aef.tensors import numel
from vae2aef.wrapping.look import Seen

ACTIVATIONS = (("sigmoid", torch.sigmoid, 0.0), ("tanh", torch.tanh, -1.0))
"""Names, functions, and from where to 1 they reach."""

EXPLAINS = 0.1
CHANCE = 4.0
"""Which share of the variance must be explained through an activation: EXPLAINS + CHANCE / N, of N values. A decoder
that is not trained explains none, but for the chance, of order 1 / N, that its one pattern is like the data's."""


def explained(x: Tensor, output: Tensor) -> float:
    """Return the share of the variance of x `(batch, *event)` that a reconstruction explains; a constant explains 0."""
    x = x.double()
    left = (x - output.double().reshape(x.shape)).square().mean()
    return 1.0 - float(left / (x - x.mean()).square().mean().clamp(min=1e-12))


def warn_of_logits(parts: VAEParts, seen: Seen, likelihood: object, x: Tensor, continuous: bool) -> None:
    """Warn if the decoder's output explains nothing of the data as it is, but does through an activation.

    Args:
        parts: of the VAE.
        seen: what a look at the example showed.
        likelihood: the one that is taken; one that is no density of x - f(z) says itself what the output is.
        x: the example as the VAE sees it, `(batch, *event)`.
        continuous: whether only a density will do: there is a preprocessing, or a partition core.

    Warns:
        WrapWarning: gives the line that says what the output is.
    """
    if not isinstance(likelihood, Residual) or not isinstance(seen.outputs[0], Tensor) or parts.output is not None:
        return
    output, low, high = seen.outputs[0], x.min().item(), x.max().item()
    as_it_is = explained(x, output)
    name, apply, bottom = next((one for one in ACTIVATIONS if one[2] <= low), ACTIVATIONS[-1])
    through = explained(x, apply(output))
    if as_it_is >= 0 or low < bottom or high > 1 or through < EXPLAINS + CHANCE / numel(x.shape[1:]):
        return
    line = 'likelihood="bernoulli_logits"'
    if continuous or name != "sigmoid":
        line = f"output=lambda out: torch.{name}({_place(parts)})"
    warnings.warn(
        WrapWarning(
            f"the decoder's output, taken as the mean of the data, explains {as_it_is:.0%} of their variance (of data "
            f"from {low:.3g} to {high:.3g}), but {through:.0%} through a {name}: these seem to be logits. ",
            f"Pass {line}",
        ),
        stacklevel=4,
    )


def _place(parts: VAEParts) -> str:
    """Say where in `out`, what the VAE returns, the output is."""
    from vae2aef.tracing.outputs import say_path
    from vae2aef.tracing.parts import TracedParts

    return "out" + (say_path(parts.outputs[False])[len("forward(x)") :] if isinstance(parts, TracedParts) else "")
