"""`wrap`: what it finds, makes and says."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal
from zoo_core import ConditionalPrior, ExampleVAE, FlowPosteriorVAE, SmallVAE

import vae2aef
from vae2aef.core import Expansion, Partition, partition_mask


@pytest.fixture
def x() -> Tensor:
    return 0.02 + 0.96 * torch.rand(8, 2, 3)


@pytest.fixture
def vae() -> SmallVAE:
    return SmallVAE((2, 3), (3,))


def test_what_print_says(x, vae):
    aef = vae2aef.wrap(
        vae, example=x, encoder_scale="log_std", core_flow="coupling", prior="maf", preprocess="logit", noise=0.5
    )
    said = repr(aef)
    for part in (
        "AEF of SmallVAE: data (2, 3), latent (3,)",
        "taken from the VAE: encoder: SmallVAE.encoder, second output log_std (as you said)",
        "taken from the VAE: decoder: SmallVAE.decoder",
        "core linear, core flow coupling, residual learned, prior maf, preprocessing logit",
        "core 21",
        "likelihood 6",
        "sigma = 0.5",
    ):
        assert part in said
    assert "assumed: prior standard normal" not in said
    assert "assumed: prior standard normal" in repr(vae2aef.wrap(vae, example=x, encoder_scale="log_std"))
    assert aef.event_shape == (2, 3) and aef.latent_shape == (3,)


@pytest.mark.parametrize("kind", ["std", "log_std", "var", "log_var"])
def test_the_scale_is_measured_on_reparameterize(kind):
    """pytorch/examples and its many copies: no option is needed, whatever the second output means."""
    vae = ExampleVAE(treats_as=kind)
    if kind in ("std", "var"):
        vae.fc22 = nn.Sequential(vae.fc22, nn.Softplus())
    x = torch.rand(5, 3, 4)
    aef = vae2aef.wrap(vae, example=x)
    assert aef.parts.encoder_scale == kind
    assert f"second output {kind} (measured on reparameterize)" in repr(aef)
    assert aef.reconstruct(x).shape == aef.sample(5).shape == x.shape
    other = {"std": "var", "var": "std", "log_std": "log_var", "log_var": "log_std"}[kind]
    with pytest.raises(vae2aef.WrapError, match=f'encoder_scale="{other}", but .* "{kind}"'):
        vae2aef.wrap(vae, example=x, encoder_scale=other)


@pytest.mark.parametrize(
    "shapes", [((12,), (3,)), ((1, 3, 4), (3,)), ((3, 4), (3, 1)), ((3, 2, 2), (3, 1, 1)), ((), ())]
)
def test_events_and_latents_of_any_shape(shapes):
    event, latent = shapes
    x = torch.rand(4, *event)
    for core in ("linear", "center"):
        aef = vae2aef.wrap(SmallVAE(event, latent), example=x, encoder_scale="log_std", core=core)
        assert aef.encode(x).shape == (4, *latent)
        assert aef.decode(aef.encode(x)).shape == aef.sample(4).shape == x.shape
        assert aef.log_prob(x, num_samples=2, proposal="tuned").value.shape == (4,)


def test_names_that_are_found(x):
    class Methods(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = SmallVAE((2, 3), (3,))

        def encode(self, x: Tensor) -> list[Tensor]:
            return list(self.inner.encoder(x))

        def decode(self, z: Tensor) -> Tensor:
            return self.inner.decoder(z).flatten(1)

    for vae in (Methods(), SmallVAE((2, 3), (3,))):
        aef = vae2aef.wrap(vae, example=x, encoder_scale="log_std")
        assert aef(x).isfinite()
    own = vae2aef.wrap(vae, example=x, decoder=lambda z: torch.zeros(len(z), 6), encoder_scale="log_std")
    assert not own.decode(torch.ones(2, 3)).any()


def test_a_float64_vae_is_wrapped_in_float64(x, vae):
    aef = vae2aef.wrap(vae.double(), example=x.double(), encoder_scale="log_std", prior="maf", preprocess="standardize")
    assert aef(x.double()).dtype == torch.float64
    assert aef.sample(2).dtype == torch.float64


def test_priors(x, vae):
    def wrap(prior: Any) -> vae2aef.AEF:
        return vae2aef.wrap(vae, example=x, encoder_scale="log_std", prior=prior)

    z = torch.randn(4, 3)
    normal = wrap(Normal(torch.ones(3), 2.0))
    torch.testing.assert_close(normal.prior.log_prob(z), Normal(1.0, 2.0).log_prob(z).sum(1))
    assert any("prior" in key for key in normal.state_dict())  # its tensors are moved and saved
    assert isinstance(wrap("coupling").prior, vae2aef.FlowPrior)
    assert isinstance(wrap(vae2aef.AffineCoupling(3)).prior, vae2aef.FlowPrior)
    own = vae2aef.FlowPrior(vae2aef.AffineCoupling(3), (3,))
    assert wrap(own).prior is own
    with pytest.raises(vae2aef.WrapError, match=r"`prior` fails on latents of shape .*label"):
        wrap(ConditionalPrior(2, 3))


def test_the_same_numbers_for_a_mask_and_its_name(x, vae):
    mask = partition_mask("center", (2, 3), 3)
    named = vae2aef.wrap(vae, example=x, encoder_scale="log_std", core="center", core_flow="none")
    masked = vae2aef.wrap(vae, example=x, encoder_scale="log_std", core=mask, core_flow="none")
    assert torch.equal(named(x), masked(x))
    assert isinstance(named.core, Partition) and isinstance(vae2aef.wrap(vae, example=x, encoder_scale="std",
        encoder=lambda x: (torch.zeros(len(x), 2), torch.ones(len(x), 2)), decoder=lambda z: torch.zeros(len(z), 6),
    ).core, Expansion)  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "event", "size", "expected"),
    [
        ("corner", (2, 3), 2, [[1, 1, 0], [0, 0, 0]]),
        ("center", (4, 4), 4, [[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]),
        ("center", (5,), 3, [0, 1, 1, 1, 0]),
        ("corner", (2, 2, 2), 2, [[[1, 0], [0, 0]], [[1, 0], [0, 0]]]),
        ("center", (3,), 0, [0, 0, 0]),
        ("random", (3,), 3, [1, 1, 1]),
    ],
)
def test_masks(kind, event, size, expected):
    """Channels of a position are taken together, before the next position."""
    assert torch.equal(partition_mask(kind, event, size), torch.tensor(expected, dtype=torch.bool))


def test_temperature_and_residual_noise(x, vae):
    aef = vae2aef.wrap(vae, example=x, encoder_scale="log_std", residual=0.2)
    assert torch.equal(aef.sample(3, temperature=0.0), aef.decode(torch.zeros(3, 3)))
    z = torch.randn(4000, 3)
    noise = aef.decode(z, residual=True) - aef.decode(z)
    assert abs(noise.std() - 0.2) < 0.005 and abs(noise.mean()) < 0.005


def test_a_posterior_flow_is_said_and_used(x):
    aef = vae2aef.wrap(FlowPosteriorVAE((2, 3), (3,)), example=x)
    assert aef.latent_shape == (3,) and aef(x).isfinite()
