"""What is measured of a trained arm, the same way for all of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import MeanSquaredError

from vae2aef.aef import AEF
from vae2aef.comparison.batches import stream
from vae2aef.evidence import EstimateWarning
from vae2aef.laplace import MAX_LATENTS
from vae2aef.marginal import LogProb, Proposal
from vae2aef.tensors import numel

PIECE = 128
CERTIFIED = 64
"""Data that are drawn from the model for the certificate."""


class Pictures(NamedTuple):
    """What an arm makes, each (n, *event), in the space of the data.

    Attributes:
        reconstructions: of given samples.
        samples: means of x for new latents.
        draws: x drawn from p(x | z) for the same latents: the samples of the model.
    """

    reconstructions: Tensor
    samples: Tensor
    draws: Tensor


def choose_proposal(aef: AEF, held_out: Tensor, cond: tuple[Tensor, ...] = ()) -> Proposal | str | None:
    """Choose where importance samples are drawn while training, by one rule for all arms: cheap.

    Fitted to each datum where that is possible (effective sample sizes are then some ten times larger), else one
    shape for all data, tuned on `held_out`, (batch, *event), with its conditions.
    """
    if sum(numel(site.core.latent_shape) for site in aef.by_latent().values()) <= MAX_LATENTS:
        return "laplace"
    return aef.tune_proposal(held_out, *cond)


def marginal(
    aef: AEF,
    x: Tensor,
    num_samples: int,
    proposal: Proposal | str | None,
    name: str,
    done: Callable[[int], None] = lambda n: None,
    cond: tuple[Tensor, ...] = (),
) -> LogProb:
    """Estimate log p(x) in pieces, with draws that depend on `name` only: all arms see the same.

    Args:
        aef: the model.
        x: data, (batch, *event).
        num_samples: importance samples for a datum.
        proposal: from `choose_proposal`; None for the best there is.
        name: of the random stream.
        done: called after each piece with its size.
        cond: conditions, each with a row a datum.

    Returns:
        `LogProb` in nats, each entry (batch,), on the CPU.

    Raises:
        NonFiniteError: an estimate is NaN or infinite.
    """
    parts = []
    for number, (piece, *known) in enumerate(_pieces(x, cond)):
        torch.manual_seed(stream(name, number))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", EstimateWarning)  # the notes count these data
            parts.append(aef.log_prob(piece, *known, num_samples=num_samples, proposal=proposal))
        done(len(piece))
    return LogProb(
        torch.cat([part.value for part in parts]).cpu(),
        torch.cat([part.std_error for part in parts]).cpu(),
        torch.cat([part.effective_sample_size for part in parts]).cpu(),
        parts[0].exact,
        torch.cat([part.pareto_k for part in parts]).cpu(),
        parts[0].bound,
    )


def _pieces(x: Tensor, cond: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, ...]]:
    return zip(x.split(PIECE), *(one.split(PIECE) for one in cond), strict=True)


def certificate(aef: AEF, num_samples: int, most: int = CERTIFIED, cond: tuple[Tensor, ...] = ()) -> dict[str, float]:
    """Return how many nats the marginal is too low by at most, on `most` data drawn from the model, with its error.

    The conditions `cond`, each with at least that many rows, are those of the data drawn.
    """
    n = min(CERTIFIED, most)
    gap = aef.check_log_prob(n, *(one[:n] for one in cond), num_samples=num_samples, seed=0).gap
    return {"gap": gap.value, "std_error": gap.std_error}


def gauge(aef: AEF, x: Tensor, cond: tuple[Tensor, ...] = ()) -> dict[str, dict[str, float]]:
    """Return the gauge meter by latent; empty for a single datum, of which nothing varies."""
    if len(x) < 2:
        return {}
    read = aef.gauge(x, *cond)
    return {name: meter._asdict() for name, meter in (read if isinstance(read, dict) else {"z": read}).items()}


@torch.no_grad()
def reconstruction_mse(aef: AEF, x: Tensor, cond: tuple[Tensor, ...] = ()) -> float:
    """Mean squared error of reconstructions in the space of the data, without noise in the encoding.

    Args:
        aef: the model, in `eval()` mode.
        x: data, (batch, *event).
        cond: conditions, each with a row a datum.
    """
    metric = MeanSquaredError().to(x.device)
    for piece, *known in _pieces(x, cond):
        metric.update(aef.reconstruct(piece, *known), piece)
    return float(metric.compute())


@torch.no_grad()
def pictures(aef: AEF, originals: Tensor, samples: int, cond: tuple[Tensor, ...] = ()) -> Pictures:
    """Reconstruct `originals`, (n, *event), and draw samples, with draws that are the same for all arms.

    Samples are shown twice for the same latents: as means, which is what papers print, and as draws from p(x | z).
    Samples take the conditions of the first originals, over again if there are fewer.
    """
    reconstructions = aef.reconstruct(originals, *cond)
    again = [one[torch.arange(samples, device=one.device) % len(one)] for one in cond]
    made = []
    for drawn in (False, True):
        torch.manual_seed(stream("samples"))  # the latents are drawn first, so that they are the same
        made.append(aef.sample(samples, *again, residual=drawn).cpu())
    return Pictures(reconstructions.cpu(), *made)
