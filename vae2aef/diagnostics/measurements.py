"""What `check` measures on a VAE that can be wrapped: each function yields findings."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from vae2aef.aef import AEF
from vae2aef.batch import Batch
from vae2aef.diagnostics.decoder import decode, decoder_range, raw, reconstruction, seen_by_vae
from vae2aef.diagnostics.findings import Finding
from vae2aef.modes import evaluation_mode
from vae2aef.parts import MIN_SCALE
from vae2aef.priors import StandardNormal
from vae2aef.program import VAEProgram
from vae2aef.tensors import numel
from vae2aef.tracing.parts import TracedParts

SMALL_SCALE = 1e-4
FAR = 0.5
"""Nats for each latent variable: from where on the aggregate posterior counts as far from the prior."""

FEW_ROWS = 32


def _encode(aef: AEF, batch: Batch) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """The latents without noise, and of all of them location and scale, `(batch, D)`."""
    joint = aef.chain(batch._replace(x=aef.split(batch.x)[1]), aef.split(batch.x)[0])
    flat = [
        torch.cat([t.reshape(batch.size, -1) for name, t in joint.terms.items() if name.startswith(what)], dim=1)
        for what in ("encoder_location", "encoder_scale")
    ]
    return joint.z, flat[0], flat[1]


def latent(aef: AEF, example: Any) -> Iterator[Finding]:
    """The latent's shape against the data's."""
    shapes = {name: tuple(site.core.latent_shape) for name, site in aef.by_latent().items()}
    size, data = sum(map(numel, shapes.values())), numel(aef.event_shape)
    said = shapes["z"] if shapes.keys() == {"z"} else ", ".join(f"{name} {shape}" for name, shape in shapes.items())
    yield Finding(
        "note", "latent", f"shape {said}, {size} variables for data of {data} values"
        + ("; it is no smaller than the data" if size >= data else ""),
    )  # fmt: skip


@torch.no_grad()
def scales(aef: AEF, example: Any) -> Iterator[Finding]:
    """The posterior's scale on the example."""
    batch = seen_by_vae(aef, example)
    with evaluation_mode(aef):
        scale = _encode(aef, batch)[2]
    low, middle, high = scale.min().item(), scale.median().item(), scale.max().item()
    text = f"from {low:.3g} to {high:.3g}, median {middle:.3g}, on the example"
    if low <= SMALL_SCALE:
        share = (scale <= SMALL_SCALE).double().mean().item()
        at_floor = (scale <= MIN_SCALE).double().mean().item()
        yield Finding(
            "warning", "encoder scale",
            f"{text}; {share:.1%} are below {SMALL_SCALE:g}, {at_floor:.1%} at the floor of {MIN_SCALE:g}, where they "
            "get no gradient. Each adds its logarithm to the loss",
            'check encoder_scale; do not pass noise=0; prior="coupling" for an autoencoder trained with a tiny KL',
            topic="small scale",
        )  # fmt: skip
    else:
        yield Finding("note", "encoder scale", text)


def in_forward(aef: AEF, example: Any) -> Iterator[Finding]:
    """How encoder and decoder were held against the VAE's own forward."""
    if isinstance(aef.parts, TracedParts):
        yield Finding("note", "encoder scale", "measured as dz/du in the VAE's own forward, in every pass")
    else:
        yield Finding("note", "encoder and decoder", aef.parts.compared)


def _same(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-3, atol=1e-5)


@torch.no_grad()
def aggregate_posterior(aef: AEF, example: Any) -> Iterator[Finding]:
    """The mean and spread of z over the example against the standard normal."""
    batch = seen_by_vae(aef, example)
    if isinstance(aef.parts, VAEProgram):
        yield Finding("note", "prior", "not compared with the aggregate posterior: there are several latents")
        return
    with evaluation_mode(aef):
        posterior = aef.parts.encode(batch.x, *batch.cond, **batch.kwargs)
    loc, scale, flow = posterior.loc, posterior.scale, posterior.transform is not None
    if flow or not isinstance(aef.prior, StandardNormal):
        why = "the posterior has a flow" if flow else f"the prior is a {type(aef.prior).__name__}"
        yield Finding("note", "prior", f"not compared with the aggregate posterior: {why}")
        return
    mean = loc.flatten(1).mean(0)
    spread = loc.flatten(1).var(0, correction=0)
    var = spread + scale.square().flatten(1).mean(0)
    far = 0.5 * (mean.square() + var - 1 - var.log()).mean().item()
    text = (
        f"over {len(loc)} rows z has mean {mean.mean().item():.3g} (largest {mean.abs().max().item():.3g}) and "
        f"standard deviation {var.mean().sqrt().item():.3g}; as Gaussians, {far:.3g} nats a variable from "
        "the standard normal"
    )
    if far > FAR and len(loc) >= FEW_ROWS:
        yield Finding("warning", "prior", f"the aggregate posterior is far from it: {text}", 'prior="coupling"')
    else:
        few = f" (a guess: give {FEW_ROWS} rows or more)" if len(loc) < FEW_ROWS else ""
        yield Finding("note", "prior", text + few)
    idle = int((spread < 0.01 * scale.square().flatten(1).mean(0)).sum())
    if idle and len(loc) >= FEW_ROWS:
        yield Finding(
            "note", "latent", f"{idle} of {len(spread)} variables tell the rows apart by less than a tenth of the "
            "posterior's own scale: in a trained VAE they have collapsed",
        )  # fmt: skip


@torch.no_grad()
def independence(aef: AEF, example: Any) -> Iterator[Finding]:
    """Whether, in eval mode, a row's result depends on chance or on other rows."""
    batch = seen_by_vae(aef, example)
    one = batch.head(1)
    with evaluation_mode(aef):
        (z, first, _), (_, again, _) = (_encode(aef, batch) for _ in range(2))
        alone = _encode(aef, one)[1]
        out, out_again = (decode(aef, z, batch) for _ in range(2))
        z_alone = {n: aef.parts.rows_back(n, aef.parts.rows_first(n, v)[:1]) for n, v in z.items()}
        out_alone = decode(aef, z_alone, one)
    for name, a, b, c in (("encoder", first, again, alone), ("decoder", out, out_again, out_alone)):
        if not _same(a, b):
            yield Finding(
                "error", name, "random in eval mode: the same input gives another output",
                "draw only in reparameterisation; F.dropout needs training=self.training",
            )  # fmt: skip
        elif not _same(a[:1], c):
            yield Finding(
                "error", name, "in eval mode the output for a row depends on the other rows",
                "normalise within a row (GroupNorm, LayerNorm), or with running statistics",
            )  # fmt: skip


def loss(aef: AEF, example: Any) -> Iterator[Finding]:
    """Whether the loss and its gradient are finite."""
    batch = raw(example)
    with evaluation_mode(aef):
        try:
            value = aef(batch.x, *batch.cond, **batch.kwargs)
        except ValueError as error:
            yield Finding("error", "loss", str(error))
            return
        wanted = [(name, p) for name, p in aef.named_parameters() if p.requires_grad]
        grads = torch.autograd.grad(value, [p for _, p in wanted], allow_unused=True)
    bad = [name for (name, _), g in zip(wanted, grads, strict=True) if g is not None and not bool(g.isfinite().all())]
    idle = [name for (name, _), g in zip(wanted, grads, strict=True) if g is None]
    if bad:
        yield Finding("error", ", ".join(bad[:3]), f"{len(bad)} gradients are not finite", "aef(x, terms=True) to look")
    if idle:
        yield Finding(
            "note", ", ".join(idle[:6]) + (f" and {len(idle) - 6} more" if len(idle) > 6 else ""),
            f"{len(idle)} parameters get no gradient from the loss: not used, or used by the VAE's own loss alone",
        )  # fmt: skip
    yield Finding("note", "loss", f"{value.item():.6g} nats at the start; a training objective, not a likelihood of x")


ALL: tuple[Callable[[AEF, Any], Iterator[Finding]], ...] = (
    in_forward, scales, latent, decoder_range, reconstruction, aggregate_posterior, independence, loss,
)  # fmt: skip
