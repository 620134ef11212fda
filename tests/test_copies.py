"""Copies of an AEF, inference mode, sampling in eval mode: what loops and callbacks of others do to a module."""

import copy

import pytest
import torch
from torch import Tensor, nn

import vae2aef


class VAE(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enc = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))
        self.dec = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Linear(8, 6))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        loc, log_var = self.enc(x).chunk(2, dim=1)
        return loc, log_var

    def decode(self, z: Tensor) -> Tensor:
        return self.dec(z)


def test_a_copy_of_an_aef_with_methods_is_its_own() -> None:
    x, vae = torch.randn(8, 6), VAE()
    options = {"encoder": vae.encode, "decoder": vae.decode, "encoder_scale": "log_var", "core_flow": "coupling"}
    aef = vae2aef.wrap(vae, example=x, noise=0.0, **options).eval()
    other = copy.deepcopy(aef)
    torch.testing.assert_close(other(x), aef(x))
    with torch.no_grad():
        for p in other.vae.parameters():
            p.add_(1.0)
    assert not torch.allclose(other(x), aef(x))


def test_a_copy_that_would_share_networks_is_refused() -> None:
    x, vae = torch.randn(8, 6), VAE()
    aef = vae2aef.wrap(vae, example=x, encoder=lambda x: vae.encode(x), decoder=vae.decode, encoder_scale="log_var")
    with pytest.raises(TypeError, match=r"encoder.*holds a module.*vae\.encode"):
        copy.deepcopy(aef)


@pytest.mark.parametrize("proposal", [None, "laplace"])
def test_log_prob_in_inference_mode(proposal: str | None) -> None:
    x, vae = torch.randn(8, 6), VAE()
    aef = vae2aef.wrap(vae, example=x, encoder_scale="log_var", prior="coupling")
    torch.manual_seed(1)
    expected = aef.log_prob(x, num_samples=16, proposal=proposal)
    with torch.inference_mode():
        torch.manual_seed(1)
        got = aef.log_prob(x.clone(), num_samples=16, proposal=proposal)
    torch.testing.assert_close(got.value, expected.value)


def test_sampling_does_not_teach_batch_norm() -> None:
    x = torch.randn(8, 6)
    aef = vae2aef.wrap(VAE(), example=x, encoder_scale="log_var").train()
    before = {name: value.clone() for name, value in aef.state_dict().items()}
    aef.sample(5)
    assert aef.training
    assert all(torch.equal(value, before[name]) for name, value in aef.state_dict().items())


def test_tuning_and_estimate_share_no_draw() -> None:
    """Even after the seed that everybody takes."""
    x = torch.randn(8, 6)
    aef = vae2aef.wrap(VAE(), example=x, encoder_scale="log_var").eval()
    drawn: list[Tensor] = []
    real = vae2aef.Proposal.draw

    def draw(self: vae2aef.Proposal, n: int, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        offsets, log_q = real(self, n, noise)
        drawn.append((offsets / self.log_scale.exp()).detach()[:1])
        return offsets, log_q

    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vae2aef.Proposal, "draw", draw)
        aef.log_prob(x, num_samples=4, proposal="tuned")
    assert len(drawn) > 10
    assert not any(torch.allclose(one, drawn[-1]) for one in drawn[:-1])


def test_denoise_is_the_reconstruction_and_not_for_partitions() -> None:
    x = torch.randn(8, 6)
    aef = vae2aef.wrap(VAE(), example=x, encoder_scale="log_var").eval()
    assert torch.equal(aef.denoise(x), aef.reconstruct(x))
    with pytest.raises(ValueError, match='core="linear"'):
        vae2aef.wrap(VAE(), example=x, encoder_scale="log_var", core="center").denoise(x)


def test_noise_survives_saving_and_tiny_noise_is_refused() -> None:
    x = torch.randn(8, 6)
    aef = vae2aef.wrap(VAE(), example=x, encoder_scale="log_var", noise=0.2)
    other = vae2aef.wrap(VAE(), example=x, encoder_scale="log_var")
    other.load_state_dict(aef.state_dict())
    assert other.noise == 0.2
    with pytest.raises(ValueError, match="at least 1e-30"):
        aef.noise = 1e-50


def test_bits_per_dim_of_data_on_another_interval() -> None:
    """The uniform density on [-1, 1] spends as many bits as that on [0, 1]."""
    log_prob = torch.full((1,), -4 * torch.log(torch.tensor(2.0)))
    torch.testing.assert_close(vae2aef.bits_per_dim(log_prob, (4,), width=2.0), torch.tensor([8.0]))
    with pytest.raises(ValueError, match="width"):
        vae2aef.bits_per_dim(log_prob, (4,), width=0.0)
