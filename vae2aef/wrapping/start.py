"""Begin as the VAE itself: h = 0, noise of the reparameterisation's unit, and flows that change nothing."""

from typing import Any

import torch
from torch import nn

from vae2aef.chain import Site
from vae2aef.core import Expansion
from vae2aef.errors import WrapError
from vae2aef.features import LinearFeatures
from vae2aef.flows import AffineCoupling, Bijection, Chain, Each, Identity
from vae2aef.masked import MaskedAutoregressive
from vae2aef.patches import PatchFeatures
from vae2aef.preprocess import Standardize

STARTS = ("random", "exact")


def begin(start: str, sites: dict[str, Site]) -> dict[str, Site]:
    """Give what was added its first values; return it.

    Args:
        start: `"random"` leaves them; with `"exact"` the loss is the VAE's ELBO, and reconstructions and samples are
            its own.
        sites: by latent.

    Raises:
        ValueError: for another start.
        WrapError: if nothing of that kind is the VAE: without noise, for features or flows that are not ours.
    """
    if start not in STARTS:
        raise ValueError(f"expected start {' or '.join(map(repr, STARTS))}, got {start!r}")
    if start == "exact":
        for site in sites.values():
            _begin_site(site)
    return sites


@torch.no_grad()
def _begin_site(site: Site) -> None:
    core = site.core
    if not isinstance(core, Expansion):
        raise WrapError(
            'start="exact" begins as the VAE, whose latents are no part of the data, as in a partition; ',
            'pass core="linear"',
        )
    if not core.noise:
        raise WrapError(
            'start="exact" begins as the VAE, whose loss averages over its noise, and here there is none; ',
            "pass noise=1",
        )
    features = core.features
    if type(features) not in (LinearFeatures, PatchFeatures):  # the scale of normalized ones is held at 1
        raise WrapError(
            f'start="exact" needs features that begin at h = 0, and {type(features).__name__} cannot; ',
            'pass core="linear"',
        )
    for parameter in features.parameters():
        parameter.zero_()
    _still(site.flow)
    if core.noise != 1.0:
        local = isinstance(features, PatchFeatures)
        shape = [1] * len(core.latent_shape) if local else core.latent_shape  # one number fixes no grid
        zeros = next(features.parameters()).new_zeros(shape)
        unit = Standardize(zeros, zeros + core.noise)
        site.flow = unit if isinstance(site.flow, Identity) else Chain(unit, site.flow)


def _still(flow: Bijection) -> None:
    """Make a flow of ours the identity, by its weights and the order of its last layer."""
    inner: Any = flow.flow if isinstance(flow, Each) else flow
    layers: list[Any] = list(inner.bijections) if isinstance(inner, Chain) else [inner]
    order = None
    for layer in layers:
        if isinstance(layer, Identity):
            continue
        if hasattr(layer, "make_identity"):
            layer.make_identity()
            continue
        if not isinstance(layer, (AffineCoupling, MaskedAutoregressive)):
            raise WrapError(
                f'start="exact" needs a core flow that begins as the identity; {type(layer).__name__} is your own; ',
                'pass core_flow="coupling"',
            )
        last: Any = layer.layer_out if isinstance(layer, MaskedAutoregressive) else layer.conditioner
        for parameter in (last[-1] if isinstance(last, nn.Sequential) else last).parameters():
            parameter.zero_()
        order = layer.permutation if order is None else order[layer.permutation]
    if order is not None:  # the last layer puts the latents back in order
        layers[-1].permutation.copy_(layers[-1].permutation[order.argsort()])
