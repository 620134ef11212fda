"""Is the log-determinant that of autograd's Jacobian?"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vae2aef.aef import AEF
from vae2aef.batch import Batch
from vae2aef.flows import Bijection
from vae2aef.tensors import numel
from vae2aef.testing.double_copy import DoubleCopy, compare

MAX_SIZE = 4096
"""Largest Jacobian, in rows, that `check_jacobian` computes: it needs as many backward passes."""

Map = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From `(rows, size)` to `(rows, size)` and the claimed log-determinant, `(rows,)`."""


def check_jacobian(model: "AEF | Bijection", example: Any, *, rows: int = 2, tolerance: float = 1e-6) -> float:
    """Check in float64 the log-determinant against autograd's full Jacobian.

    For an AEF the whole map is taken, preprocessing, encoder, core flow, posterior flow and decoder together:
    (x, w) -> (z, delta) in the expanded family, where w is drawn around h(x), and x -> (z, delta) in the partition
    family. It is checked too that a row does not depend on the other rows of the batch, nor on a random draw.

    Args:
        model: an `AEF`, or a `Bijection`; a copy of it is used.
        example: data `(batch, *event)`, or, for an AEF with conditions, `(x, *conditions)` as for `wrap`.
        rows: how many rows of the example to take.
        tolerance: largest error allowed, in nats, relative to `1 + |log-determinant|`.

    Returns:
        The largest error found.

    Raises:
        AssertionError: if an error is larger, or the rows are not independent.
        ValueError: if the Jacobian has more than 4096 rows, or the model does not run in float64 as a copy.
    """
    with DoubleCopy(model, example, rows) as run:
        at, function = _flat_map(*run)
        if at.shape[1] > MAX_SIZE:
            raise ValueError(
                f"the Jacobian of this map has {at.shape[1]} rows, and at most {MAX_SIZE} are computed (a backward "
                "pass each): use the same networks on smaller data, or check single bijections, such as "
                "aef.core_flow on latents"
            )
        at = at.requires_grad_()
        out, claimed = function(at)
        if claimed.shape != at.shape[:1]:
            raise AssertionError(f"expected a log-determinant of shape {tuple(at.shape[:1])}, got {claimed.shape}")
        with torch.no_grad():
            for i in range(at.shape[0]):
                one = _flat_map(*run.row(i))[1]
                what = f"row {i} alone (do rows mix, or is noise drawn in eval mode?)"
                compare(one(at[i : i + 1])[0], out[i : i + 1], tolerance, what)
        # Rows are independent, so one backward pass gives a row of every sample's Jacobian.
        grads = [torch.autograd.grad(out[:, j].sum(), at, retain_graph=True)[0] for j in range(out.shape[1])]
        jacobian = torch.stack(grads, dim=1) if grads else at.new_zeros(at.shape[0], 0, 0)
        return compare(claimed.detach(), torch.linalg.slogdet(jacobian)[1], tolerance, "the log-determinant")


def _flat_map(model: Any, data: Batch) -> tuple[Tensor, Map]:
    """The whole map as a function of vectors, and the point to take the Jacobian at."""
    x, batch, size = data.x, data.size, numel(data.x.shape[1:])
    flat = x.reshape(batch, size)
    if not isinstance(model, AEF):

        def single(v: Tensor) -> tuple[Tensor, Tensor]:
            y, log_det = model(v.reshape(v.shape[0], *x.shape[1:]))
            return y.reshape(v.shape[0], size), log_det

        return flat.clone(), single
    y, _ = model.to_latent_side(x)
    features, _ = model.split(y)
    sizes = [numel(core.shape[1:]) for core in features.values()]
    # Of discrete x there is no Jacobian: for each x the map is w -> z.
    seen = 0 if model.discrete else size

    def whole(v: Tensor) -> tuple[Tensor, Tensor]:
        here, log_det = (y, 0.0) if model.discrete else model.preprocess(v[:, :size].reshape(-1, *x.shape[1:]))
        core, shell = model.split(here)
        if model.partition is None:
            pieces = v[:, seen:].split(sizes, dim=1)
            core = {name: w.reshape(core[name].shape) for name, w in zip(core, pieces, strict=True)}
        joint = model.chain(data._replace(x=shell), core)
        z = [model.parts.rows_first(name, value).reshape(batch, -1) for name, value in joint.z.items()]
        delta = [] if model.discrete else [(shell - model.mean(joint.decoded, batch)).reshape(batch, size)]
        if model.partition is not None:
            delta = [values[:, ~model.partition.mask.flatten()] for values in delta]
        return torch.cat([*z, *delta], dim=1), joint.log_det + log_det

    if model.partition is not None:
        return flat.clone(), whole
    h = torch.cat([core.detach().reshape(batch, -1) for core in features.values()], dim=1)
    return torch.cat([flat[:, :seen].to(h.dtype), h + torch.randn_like(h)], dim=1), whole
