"""What sigma of Eq. 11 is, given or not, and a warning where its being 0 strays furthest from log p(x)."""

import warnings
from typing import Any

import torch

from vae2aef.aef import AEF
from vae2aef.batch import Batch
from vae2aef.chain import Given
from vae2aef.core import DEFAULT_NOISE, Expansion, NoFeatures
from vae2aef.errors import WrapWarning
from vae2aef.program import VAEProgram
from vae2aef.wrapping.look import Seen
from vae2aef.wrapping.trial import trial

SAID = "noise=0 and a prior that is learned"
"""How the warning begins, for those who chose so and filter it."""


def read_noise(noise: Any) -> float | None:
    """Return sigma as a number; None, for the default of each core, stays."""
    if noise is None:
        return None
    if isinstance(noise, (str, bytes, bool)) or not hasattr(noise, "__float__"):
        raise TypeError(f"expected noise as a number >= 0, or None for the default, got {noise!r}")
    return float(noise)


def sigma_of(core: Any, noise: float | None, partition: bool) -> float:
    """Return the noise as given; without it 0 in the partition family, 1 of the VAE itself, else the default.

    Args:
        core: as in `wrap`, of one latent.
        noise: as `read_noise` returns it.
        partition: whether the core is part of the data.
    """
    if noise is not None:
        return noise
    if partition:
        return 0.0
    the_vae = isinstance(core, NoFeatures) or (isinstance(core, str) and core == "noise")
    return 1.0 if the_vae else DEFAULT_NOISE


def warn_of_learned_prior(aef: AEF, batch: Batch, seen: Seen) -> None:
    """Warn if a latent has sigma = 0, which is nobody's default there, and the prior has parameters that are trained.

    Args:
        aef: as `wrap` has made it.
        batch: data as the VAE sees it, `(batch, *event)`, with conditions.
        seen: what a look at the example showed.

    Warns:
        WrapWarning: ends in the line that mends it.
    """
    cores = [site.core for site in aef.by_latent().values()]
    if any(isinstance(core, Expansion) and not core.noise for core in cores) and _is_learned(aef, batch, seen):
        warnings.warn(
            WrapWarning(
                f"{SAID}: the riskiest corner. Without noise the loss is no bound on -log p(x); it can fall on while "
                "log p(x) gets worse, and a prior that follows makes it easy: on Shuttle log p(x) was 1.26 nats "
                "against 2.84 with noise (docs/results.md, one seed; on images either may be ahead). ",
                f"Pass noise={DEFAULT_NOISE:g}",
            ),
            stacklevel=4,
        )


def _is_learned(aef: AEF, batch: Batch, seen: Seen) -> bool:
    """Whether log p0 of latents that are given has a gradient: for parameters, the user's or ours, trained as it is."""
    batch = batch.detach()
    with trial(batch.x.device, aef, aef.parts), torch.enable_grad():
        if not isinstance(aef.parts, VAEProgram):
            z = {"z": batch.x.new_zeros(batch.size, *seen.latents["z"], dtype=seen.dtype)}
            place = Given(z, batch.size, aef.priors(batch))
            place("z", None, None)
        else:
            core, shell = aef.split(batch.x)
            z = {name: latent.detach() for name, latent in aef.chain(batch._replace(x=shell), core).z.items()}
            place = Given(z, batch.size, aef.priors(batch))
            state = aef.parts.state_of_given(aef.parts.infer(shell, *batch.cond, **batch.kwargs))
            aef.parts.run(place, state, *batch.cond, **batch.kwargs)
    return bool(torch.as_tensor(place.prior).requires_grad)
