"""The gauge meter: whether the loss falls because the model is better, or because h shrinks.

At sigma = 0 the loss falls by D log c for nothing if h is divided by c and the encoder's scale, or the core flow,
multiplied by it (docs/mathematics.md). These three numbers show it, and `drift` says it in words.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from vae2aef.batch import Batch
from vae2aef.modes import evaluation_mode

if TYPE_CHECKING:
    from vae2aef.aef import AEF

LOOKS = 3
"""Looks at held-out data in a row that must be worse than the best before `drift` speaks."""


class Gauge(NamedTuple):
    """Where h and the encoder's scale stand, averaged over data and latent values.

    Attributes:
        core_std: standard deviation of h(x) over the data.
        log_scale: mean of log g_s(x); nats.
        core_share: variance over the data of g_s u, u = n^-1(h(x)), as a share of that of z. Far above 1 the location
            of the encoder only undoes what h does.
    """

    core_std: float
    log_scale: float
    core_share: float


@torch.no_grad()
def measure(aef: "AEF", batch: Batch) -> dict[str, Gauge]:
    """Read the meter by latent, on a batch of two rows or more; in `eval()` mode, h(x) without noise.

    Raises:
        ValueError: for a single row, of which nothing varies.
    """
    if batch.size < 2:
        raise ValueError(f"expected at least two rows of data to measure a spread on, got {batch.size}")
    with evaluation_mode(aef):
        joint = aef.log_joint(batch)
    found = {}
    for name, flow in aef.flows.items():
        suffix = "" if len(aef.flows) == 1 else f"[{name}]"
        core, scale = joint.terms["core" + suffix], joint.terms["encoder_scale" + suffix]
        part = scale * flow(core)[0]
        share = _variance(part) / _variance(joint.terms["z" + suffix]).clamp(min=1e-30)
        found[name] = Gauge(float(_variance(core).sqrt()), float(scale.log().mean()), float(share))
    return found


def drift(losses: Sequence[tuple[int, float]], log_probs: Sequence[tuple[int, float]]) -> str | None:
    """Say whether the training loss goes on falling while held-out data gain nothing.

    Args:
        losses: `(step, loss)` in nats, averaged over some steps each.
        log_probs: `(step, log p(x))` of held-out data, nats: the marginal, averaged over data.

    Returns:
        A sentence, if at the last three looks or more log p(x) was below its best while the loss fell at each of them;
        None otherwise.
    """
    if len(log_probs) <= LOOKS:
        return None
    best = max(range(len(log_probs)), key=lambda i: log_probs[i][1])
    later = [step for step, _ in log_probs[best:]]
    if len(later) <= LOOKS:
        return None
    fallen = [_loss_at(losses, step) for step in later]
    if any(loss is None for loss in fallen):
        return None
    values = [loss for loss in fallen if loss is not None]
    if not all(after < before for before, after in zip(values[-LOOKS - 1 :], values[-LOOKS:], strict=False)):
        return None
    return (
        f"since step {later[0]} the loss fell from {values[0]:.4g} to {values[-1]:.4g} nats, while log p(x) of "
        f"held-out data did not rise above {log_probs[best][1]:.4g}"
    )


def _loss_at(losses: Sequence[tuple[int, float]], step: int) -> float | None:
    """The last loss up to a step."""
    return next((loss for at, loss in reversed(losses) if at <= step), None)


def _variance(values: Tensor) -> Tensor:
    """Variance over the rows, averaged over all other dimensions."""
    return values.double().var(0, correction=0).mean()
