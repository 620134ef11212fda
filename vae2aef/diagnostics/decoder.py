"""What a decoder can reach, and the example as it sees it."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from vae2aef.aef import AEF
from vae2aef.batch import Batch
from vae2aef.chain import Generate
from vae2aef.diagnostics.findings import Finding
from vae2aef.modes import evaluation_mode
from vae2aef.residual import Residual
from vae2aef.wrapping.example import EXAMPLE_ROWS, example_rows, read_example
from vae2aef.wrapping.meaning import compare, said

FAR_OUT = (1.0, 10.0, 1e3, 1e4)
"""Multiples of z at which a last activation shows."""

STILL = 0.1
"""From which share of its way on an output counts as moving still, between the last two of them."""


def seen_by_vae(aef: AEF, example: Any) -> Batch:
    """The example as the VAE sees it."""
    return example_rows((batch := read_example(example))._replace(x=aef.read(batch.x)), aef.preprocess, aef.discrete)


def decode(aef: AEF, z: dict[str, Tensor], batch: Batch) -> Tensor:
    """The decoder's mean for given latents."""
    return aef.parts.run(Generate(batch.size, z), None, *batch.cond, **batch.kwargs).mean


def raw(example: Any) -> Batch:
    """The first rows of the example as they were given."""
    return read_example(example).rows(slice(0, EXAMPLE_ROWS))


@torch.no_grad()
def reconstruction(aef: AEF, example: Any) -> Iterator[Finding]:
    """How much of the data the reconstruction explains: as it is, and through activations that it may lack."""
    if not isinstance(aef.likelihood, Residual):
        return
    batch = seen_by_vae(aef, example)
    with evaluation_mode(aef):
        output = decode(aef, {name: aef_z.detach() for name, aef_z in aef.log_joint(raw(example)).z.items()}, batch)
    if isinstance(output, Tensor):
        shares = compare(batch.x, output.reshape(batch.x.shape))
        yield Finding("note", "decoder", f"its output explains of the variance of the data: {said(shares)}")


@torch.no_grad()
def decoder_range(aef: AEF, example: Any) -> Iterator[Finding]:
    """What the decoder can reach against where the data are."""
    batch = seen_by_vae(aef, example)
    with evaluation_mode(aef):
        z = aef.log_joint(raw(example)).z
        outs = [decode(aef, {n: factor * v for n, v in z.items()}, batch) for factor in FAR_OUT]
    near_low, near_high = outs[0].min().item(), outs[0].max().item()
    data_low, data_high = batch.x.min().item(), batch.x.max().item()
    bound = _bound(outs)
    where = f"data as the VAE sees them from {data_low:.3g} to {data_high:.3g}"
    if bound is None:
        yield Finding(
            "note", "decoder", f"from {near_low:.3g} to {near_high:.3g} on the example, with no bound seen; {where}"
        )
        return
    a, b, name = bound
    outside = ((batch.x < a) | (batch.x > b)).double().mean().item()
    text = f"stays in [{a}, {b}] however large z is, as a {name} does; {where}"
    if outside:
        yield Finding(
            "warning", "decoder", f"{text}: {outside:.1%} of the values are out of its reach",
            "leave out the logit (preprocess=None), or the decoder's last activation; or scale the data",
            topic="decoder reach",
        )  # fmt: skip
    else:
        yield Finding("note", "decoder", f"{text}. Its output is the mean of a Gaussian with a learned scale")


def _bound(outs: list[Tensor]) -> tuple[int, int, str] | None:
    """Return the ends and the name of the activation that a decoder's outputs, for z ever further out, saturate at.

    To stay within them is not enough: a linear decoder of small weights does that too, and a constant one. They must
    have moved, and move no more.
    """
    low, high = (f(torch.stack(outs)).item() for f in (torch.min, torch.max))
    moves, moved = ((outs[-1] - other).abs().mean() for other in (outs[-2], outs[0]))
    within = ((a, b, name) for a, b, name in ((0, 1, "sigmoid"), (-1, 1, "tanh")) if a <= low and high <= b)
    return next(within, None) if moves < STILL * moved else None
