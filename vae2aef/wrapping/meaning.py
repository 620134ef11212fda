"""What the decoder's output means: compared with the example as it is, and through a sigmoid or tanh."""

import warnings

import torch
from torch import Tensor

from vae2aef.errors import WrapWarning
from vae2aef.parts import VAEParts
from vae2aef.residual import Residual
from vae2aef.tensors import numel
from vae2aef.wrapping.look import Seen, place_of

ACTIVATIONS = (("sigmoid", torch.sigmoid, 0.0), ("tanh", torch.tanh, -1.0))
"""Names, functions, and from where to 1 they reach."""

AS_IT_IS = "nothing"
"""The name of no activation."""

EXPLAINS = 0.1
CHANCE = 4.0
"""Which share of the variance must be explained through an activation: EXPLAINS + CHANCE / N, of N values. A decoder
that is not trained explains none, but for the chance, of order 1 / N, that its one pattern is like the data's."""


def explained(x: Tensor, output: Tensor) -> float:
    """Return the share of the variance of x `(batch, *event)` that a reconstruction explains; a constant explains 0."""
    x = x.double()
    left = (x - output.double().reshape(x.shape)).square().mean()
    return 1.0 - float(left / (x - x.mean()).square().mean().clamp(min=1e-12))


def compare(x: Tensor, output: Tensor) -> dict[str, float]:
    """Return the share of the variance of x `(batch, *event)` that an output explains: as it is, through activations.

    Only those are tried that reach all of the data.
    """
    low, high = x.min().item(), x.max().item()
    through = {name: apply for name, apply, bottom in ACTIVATIONS if bottom <= low and high <= 1}
    return {AS_IT_IS: explained(x, output), **{name: explained(x, apply(output)) for name, apply in through.items()}}


def said(shares: dict[str, float]) -> str:
    """Write such shares out."""
    as_it_is, *others = (f"{share:.0%} through a {name}" for name, share in shares.items())
    return as_it_is.removesuffix(f" through a {AS_IT_IS}") + " as it is" + "".join(f", {other}" for other in others)


def warn_of_logits(parts: VAEParts, seen: Seen, likelihood: object, x: Tensor, continuous: bool) -> bool:
    """Warn if the decoder's output explains nothing of the data as it is, but does through an activation.

    Args:
        parts: of the VAE.
        seen: what a look at the example showed.
        likelihood: the one that is taken; one that is no density of x - f(z) says itself what the output is.
        x: the example as the VAE sees it, `(batch, *event)`.
        continuous: whether only a density will do: there is a preprocessing, or a partition core.

    Returns:
        Whether it warned.

    Warns:
        WrapWarning: gives the line that says what the output is.
    """
    if not isinstance(likelihood, Residual) or not isinstance(seen.outputs[0], Tensor) or parts.output is not None:
        return False
    shares = compare(x, seen.outputs[0])
    enough = EXPLAINS + CHANCE / numel(x.shape[1:])
    # The first that explains enough: a sigmoid, for data from 0 to 1, half of which a tanh does not use.
    name = next((one for one, share in shares.items() if one != AS_IT_IS and share >= enough), None)
    if shares[AS_IT_IS] >= 0 or name is None:
        return False
    line = 'likelihood="bernoulli_logits"'
    if continuous or name != "sigmoid":
        line = f"output=lambda out: torch.{name}({place_of(parts)})"
    warnings.warn(
        WrapWarning(
            f"the decoder's output, taken as the mean of the data, explains of their variance {said(shares)} (of data "
            f"from {x.min().item():.3g} to {x.max().item():.3g}). Through a {name}: these seem to be logits. ",
            f"Pass {line}",
        ),
        stacklevel=4,
    )
    return True
