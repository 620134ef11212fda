"""The Laplace proposal: exact on linear-Gaussian models, and the same p(x) as the common proposal elsewhere."""

import math

import pytest
import torch
from torch import Tensor, nn

import vae2aef


class TinyVAE(nn.Module):
    """Linear or curved decoder, optionally conditional."""

    def __init__(self, features: int, latents: int, curved: bool = False) -> None:
        super().__init__()
        self.enc = nn.Linear(features, 2 * latents)
        self.dec = nn.Linear(latents, features)
        self.curved = curved

    def encode(self, x: Tensor, shift: Tensor | float = 0.0) -> tuple[Tensor, Tensor]:
        loc, log_var = self.enc(x - shift).chunk(2, dim=1)
        return loc, log_var

    def decode(self, z: Tensor, shift: Tensor | float = 0.0) -> Tensor:
        out = self.dec(z)
        return (torch.sin(out) + 0.3 * out if self.curved else out) + shift


@pytest.fixture(autouse=True)
def double() -> object:
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def closed_form(vae: TinyVAE, x: Tensor, scale: float) -> Tensor:
    weight = vae.dec.weight.detach()
    covariance = weight @ weight.T + scale**2 * torch.eye(x.shape[1])
    return torch.distributions.MultivariateNormal(vae.dec.bias.detach(), covariance).log_prob(x)


@pytest.mark.parametrize("latents", [1, 2, 5])
@pytest.mark.parametrize("core_flow", ["none", "coupling"])
def test_equals_the_closed_form_of_a_linear_gaussian_model(latents: int, core_flow: str) -> None:
    x = torch.randn(6, 7)
    vae = TinyVAE(7, latents)
    aef = vae2aef.wrap(vae, example=x, encoder_scale="log_var", residual=0.3, core_flow=core_flow)
    estimate = aef.log_prob(x, num_samples=4000, proposal="laplace")
    error = (estimate.value - closed_form(vae, x, 0.3)).abs()
    assert bool((error < 5 * estimate.std_error + 1e-3).all()), error
    # Only the deliberate spread of 1.1 keeps the weights from being equal.
    assert bool((estimate.effective_sample_size > 0.85 * 4000).all())


def by_quadrature(aef: vae2aef.AEF, x: Tensor, *cond: Tensor, points: int = 300, reach: float = 8.0) -> Tensor:
    """Log p(x) by summing p0(z) r(x - f(z)) over a grid of two-dimensional latents."""
    axis = torch.linspace(-reach, reach, points)
    grid = torch.cartesian_prod(axis, axis)
    y, log_det = aef.preprocess(x)
    values = []
    with torch.no_grad():
        log_prior = aef.prior.log_prob(grid)
        for i in range(len(x)):
            mean = aef.parts.decode(grid, *(c[i : i + 1] for c in cond)).mean
            values.append((log_prior + aef.residual.log_prob(y[i] - mean).sum(1)).logsumexp(0))
    return torch.stack(values) + 2 * (axis[1] - axis[0]).log() + log_det


def test_equals_quadrature_on_a_curved_model() -> None:
    x = torch.randn(5, 6)
    aef = vae2aef.wrap(TinyVAE(6, 2, curved=True), example=x, encoder_scale="log_var", residual=0.5, noise=0.5)
    estimate = aef.log_prob(x, num_samples=4000, proposal="laplace")
    error = (estimate.value - by_quadrature(aef, x)).abs()
    assert bool((error < 5 * estimate.std_error + 1e-3).all()), error
    common = aef.log_prob(x, num_samples=4000, proposal="tuned")
    assert bool((estimate.effective_sample_size > common.effective_sample_size).all())


@pytest.mark.slow
@pytest.mark.parametrize(("proposal", "spread"), [("laplace", 0.58), (None, 1.0)])
def test_equals_quadrature_with_flow_prior_preprocessing_and_conditions(proposal: str | None, spread: float) -> None:
    """A flow prior's curvature is no multiple of the identity.

    One Gaussian is at the mode that h leads to, which from unit spread is not the highest of one of these data; the
    search finds that.
    """
    x, shift = torch.rand(4, 5), torch.randn(4, 1)
    aef = vae2aef.wrap(
        TinyVAE(5, 2, curved=True), example=(x, shift), encoder_scale="log_var", prior="coupling",
        preprocess=["logit", "standardize"], residual=0.4, noise=0.3,
    )  # fmt: skip
    with torch.no_grad():
        aef.core.features.linear.weight.mul_(spread)
    estimate = aef.log_prob(x, shift, num_samples=4000, proposal=proposal, chunk_size=3)
    error = (estimate.value - by_quadrature(aef, x, shift)).abs()
    assert bool((error < 5 * estimate.std_error + 1e-3).all()), error


def test_the_estimate_of_p_is_unbiased() -> None:
    x = torch.randn(1, 4).expand(300, 4)  # one datum, and draws of its own for each row
    vae = TinyVAE(4, 2)
    aef = vae2aef.wrap(vae, example=x, encoder_scale="log_var", residual=0.5)
    ratios = (aef.log_prob(x, num_samples=2, proposal="laplace").value - closed_form(vae, x, 0.5)).exp()
    z = (ratios.mean() - 1) / (ratios.std() / math.sqrt(300))
    assert abs(float(z)) < 4


def test_what_it_cannot_do_is_said() -> None:
    x = torch.randn(4, 400)
    aef = vae2aef.wrap(TinyVAE(400, 300), example=x, encoder_scale="log_var", core_flow="none")
    with pytest.raises(ValueError, match=r"300.*at most 256.*tune_proposal"):
        aef.log_prob(x, proposal="laplace")
    with pytest.raises(ValueError, match='"laplace"'):
        aef.log_prob(x, proposal="Laplace")
    partition = vae2aef.wrap(TinyVAE(6, 2), example=x[:, :6], encoder_scale="log_var", core="center")
    assert partition.log_prob(x[:, :6], proposal="laplace").exact
