"""Hypothesis strategies: shapes from 0 and 1 up, flows, and whole AEFs of every combination of options."""

from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor
from zoo_core import SmallVAE, shake

import vae2aef
from vae2aef.flows import Bijection
from vae2aef.tensors import numel
from vae2aef.wrapping.options import build_flow

EVENTS = [(), (1,), (2,), (5,), (1, 1), (2, 3), (1, 2, 2), (2, 1, 3), (3, 2, 2)]
LATENTS = [(), (1,), (2,), (3,), (1, 2), (2, 2), (1, 1, 2), (2, 1, 1)]
EXPANDED = ["linear", "noise", "own module"]
PARTITIONS = ["center", "corner", "random", "mask"]
FLOWS = ["none", "coupling", "maf", "iaf"]
SCALES = ["learned", "shared", "fixed", "decoder"]
FAMILIES = ["gaussian", "laplace", "student_t"]
PREPROCESSINGS = ["none", "logit", "standardize", "per channel", "per feature", "logit, standardize", "own"]

seeds = st.integers(0, 2**20)
batches = st.integers(0, 3)


class OwnFeatures(torch.nn.Module):
    """A feature expansion h of the user's own."""

    def __init__(self, event: tuple[int, ...], latent: tuple[int, ...]) -> None:
        super().__init__()
        self.latent = latent
        self.linear = torch.nn.Linear(numel(event), numel(latent))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(x.shape[0], self.linear.in_features)
        return torch.sin(self.linear(flat)).reshape(x.shape[0], *self.latent)


class Sinh(Bijection):
    """A nonlinear preprocessing of the user's own: y = sinh(x)."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.sinh(), x.cosh().log().reshape(x.shape[0], -1).sum(1) if x.numel() else x.new_zeros(x.shape[0])

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        x = y.asinh()
        return x, -self.forward(x)[1]


class Case(NamedTuple):
    """One AEF with data to run it on, and how it was made."""

    aef: vae2aef.AEF
    x: Tensor
    options: dict[str, Any]


def make_flow(kind: str, features: int) -> Bijection:
    """A flow of two layers with small networks."""
    if kind == "coupling":
        return vae2aef.Chain(*(vae2aef.AffineCoupling(features, hidden=5) for _ in range(2)))
    if kind == "maf":
        return vae2aef.Chain(*(vae2aef.MaskedAutoregressive(features, hidden=5) for _ in range(2)))
    if kind == "iaf":
        return vae2aef.Inverse(vae2aef.MaskedAutoregressive(features, hidden=5))
    return build_flow(kind, features)


def make_preprocess(kind: str, example: Tensor) -> Any:
    """A preprocessing for data in (0, 1)."""
    if kind == "none":
        return None
    if kind == "own":
        return Sinh()
    if kind in ("logit", "standardize"):
        return kind
    if kind == "logit, standardize":
        return ["logit", vae2aef.Standardize(torch.tensor(0.2), torch.tensor(1.7))]
    per = "channel" if kind == "per channel" and example.dim() > 1 else "feature"
    return vae2aef.Standardize.fit(example, per=per)


@st.composite
def aefs(
    draw: st.DrawFn,
    cores: list[str] = EXPANDED + PARTITIONS,
    preprocessings: list[str] = PREPROCESSINGS,
    flows: list[str] = FLOWS,
    batches: st.SearchStrategy[int] = batches,
) -> Case:
    """An AEF of drawn shapes and options with random weights, in the default dtype, in eval mode."""
    torch.manual_seed(draw(seeds, label="seed"))
    event = draw(st.sampled_from(EVENTS), label="event")
    core = draw(st.sampled_from(cores), label="core")
    fits = LATENTS if core in EXPANDED else [shape for shape in LATENTS if numel(shape) <= numel(event)]
    latent = draw(st.sampled_from(fits), label="latent")
    scale = draw(st.sampled_from(SCALES), label="residual scale")
    family = draw(st.sampled_from(FAMILIES), label="residual family")
    flow = draw(st.sampled_from(flows), label="core flow")
    prior = draw(st.sampled_from([None, "maf", "coupling"]), label="prior")
    preprocess = draw(st.sampled_from(preprocessings), label="preprocess")
    noise = draw(st.sampled_from([0.0, 0.3, 1.0]), label="noise") if core in ("linear", "own module") else 0.0
    example = 0.02 + 0.96 * torch.rand(4, *event)
    options: dict[str, Any] = {"core": core, "noise": noise}
    if core == "own module":
        options["core"] = OwnFeatures(event, latent)
    elif core == "mask":
        mask = torch.zeros(numel(event), dtype=torch.bool)
        mask[torch.randperm(numel(event))[: numel(latent)]] = True
        options["core"] = mask.reshape(event)
    aef = vae2aef.wrap(
        SmallVAE(event, latent, own_scale=scale == "decoder"),
        example=example,
        encoder_scale="log_std",
        decoder_scale="std" if scale == "decoder" else None,
        core_flow=make_flow(flow, numel(latent)),
        prior=None if prior is None else make_flow(prior, numel(latent)),
        residual=vae2aef.Residual(event, 0.7 if scale == "fixed" else scale, family),
        preprocess=make_preprocess(preprocess, example),
        **options,
    ).eval()
    shake(aef)
    x = 0.02 + 0.96 * torch.rand(draw(batches, label="batch"), *event)
    return Case(aef, x, options)
