"""Draws from the prior in the free coordinates of a case."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vae2aef.chain import Generate
from vae2aef.modes import own_random_state
from vae2aef.tensors import numel

if TYPE_CHECKING:
    from vae2aef.case import Case


def prior_draws(case: "Case", count: int, stream: int) -> Tensor | None:
    """Draw free coordinates from the prior, `(count, batch, D)`; None where it cannot be drawn from in them."""
    if case.given is None:
        return None
    try:
        if case.random is None or not case.random.seeded:
            return _draw(case, slice(None), count)
        rows = []
        with own_random_state(case.batch.x.device):
            for row in range(case.size):
                torch.manual_seed(case.random.seed(row, stream))
                rows.append(_draw(case, slice(row, row + 1), count))
        return torch.cat(rows, dim=1)
    except ValueError:  # a Pyro model whose prior reads the data
        return None


def _draw(case: "Case", take: slice, count: int) -> Tensor:
    batch = case.batch.rows(take)
    many = batch.repeat(count)
    place = Generate(many.size, None, priors=case.aef.priors(many), shapes=_other_shapes(case))
    if case.single:
        place("z", case.aef.parts.prior, None)
    else:
        case.aef.parts.run(place, None, *many.cond, **many.kwargs)
    pieces = []
    for name, shape in (case.given or {}).items():
        if name not in place.z:  # a time step past the end of these sequences
            pieces.append(many.x.new_empty(count, batch.size, numel(shape)).normal_())
            continue
        own = case.aef.parts.rows_first(name, place.z[name]).reshape(count, batch.size, -1)
        if name in case.masks:  # a row without the latent has the density of `_absent`
            own = torch.where(case.masks[name][take, None], own, torch.randn_like(own))
        pieces.append(own)
    return torch.cat(pieces, dim=2)


def _other_shapes(case: "Case") -> dict[str, torch.Size]:
    """Return the shapes of latents that are on another grid than the example's, by name."""
    own = {name: site.core.latent_shape for name, site in case.aef.by_latent().items()}
    return {name: core.shape[1:] for name, core in case.core.items() if core.shape[1:] != own[name]}
