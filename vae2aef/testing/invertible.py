"""Does going forth and back return the input?"""

from typing import Any

import torch
from torch import Tensor, nn

from vae2aef.aef import AEF
from vae2aef.batch import Batch
from vae2aef.flows import Bijection
from vae2aef.program import VAEProgram
from vae2aef.testing.double_copy import DoubleCopy, compare


def check_invertible(model: "AEF | Bijection", example: Any, *, tolerance: float = 1e-6) -> float:
    """Check in float64 that going forth and back returns the input, for a bijection or for a whole AEF.

    For a bijection, `inverse(forward(x))` is compared with x, `forward(inverse(y))` with y, and the two
    log-determinants are compared with each other. For an AEF, x is mapped to the latent z and the residual delta
    (Algorithm 1), and back through `AEF.decode` with that residual (Algorithms 2 and 3); the core flow and the
    preprocessing are checked on the values they meet.

    Args:
        model: a `Bijection`, or an `AEF`; a copy of it is used.
        example: data `(batch, *event)`, or, for an AEF with conditions, `(x, *conditions)` as for `wrap`.
        tolerance: largest error allowed, relative to `1 + |value|`.

    Returns:
        The largest error found.

    Raises:
        AssertionError: if an error is larger, or a log-determinant has the wrong shape.
        ValueError: if the model does not run in float64.
        TypeError: if the model cannot be copied; see `AEF.__deepcopy__`.
    """
    with DoubleCopy(model, example) as (double, batch), torch.no_grad():
        if not isinstance(double, AEF):
            return _check_bijection(double, batch.x, tolerance, type(model).__name__)
        return max(
            _check_bijection(double.preprocess, batch.x, tolerance, "preprocess"),
            *_check_sites(double, batch, tolerance),
        )


def _check_sites(aef: AEF, batch: Batch, tolerance: float) -> list[float]:
    """Check what is added for each latent, and x -> (z, delta) -> x."""
    x, cond, kwargs = batch
    core, shell = aef.split(aef.to_latent_side(x)[0])
    errors = [_check_bijection(aef.site(n).flow, core[n], tolerance, f"core_flow of {n}") for n in core]
    joint = aef.chain(batch._replace(x=shell), core)
    encoded = aef.encode(x, *cond, **kwargs)
    for name, value in joint.z.items():
        again = encoded[name] if isinstance(encoded, dict) else encoded
        errors.append(compare(again, value, tolerance, f"the latent {name} of `encode`"))
    if isinstance(aef.parts, VAEProgram):
        mean = aef.mean(joint.decoded, batch.size)
        errors.append(compare(aef.decode(joint.z, *cond, **kwargs), aef.to_data(mean), tolerance, "x -> z -> f(z)"))
        return errors
    z, posterior = joint.z["z"], aef.parts.encode(shell, *cond, **kwargs)
    if posterior.transform is None or aef.partition is None:
        mean = aef.mean(joint.decoded, batch.size)
        aef.likelihood = _KnownResidual(aef.core.shell(shell - mean))
        back = aef.decode(z, *cond, residual=True, **kwargs)
        errors.append(compare(back, x, tolerance, "x -> (z, delta) -> x"))
    if posterior.transform is None:
        back = aef.core_flow.inverse((z - posterior.loc) / posterior.scale)[0]
        errors.append(compare(back, core["z"], tolerance, "w -> z -> w"))
    return errors


class _KnownResidual(nn.Module):
    """A residual that is known rather than drawn."""

    def __init__(self, delta: Tensor) -> None:
        super().__init__()
        self.delta = delta

    def sample(self, mean: Tensor, decoder_scale: Tensor | None = None) -> Tensor:
        return self.delta


def _check_bijection(bijection: Any, x: Tensor, tolerance: float, name: str) -> float:
    y, log_det = bijection(x)
    back, log_det_back = bijection.inverse(y)
    forth = bijection(back)[0]
    for value in (log_det, log_det_back):
        if value.shape != x.shape[:1]:
            raise AssertionError(f"{name}: expected a log-determinant of shape ({x.shape[0]},), got {value.shape}")
    return max(
        compare(back, x, tolerance, f"{name}.inverse(forward(x))"),
        compare(forth, y, tolerance, f"{name}.forward(inverse(y))"),
        compare(-log_det_back, log_det, tolerance, f"{name}: minus the log-determinant of `inverse`"),
    )
