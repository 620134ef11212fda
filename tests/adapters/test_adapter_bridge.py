"""The bridge: with h = 0 and sigma = 1 an AEF is the VAE, as the VAE's own codebase computes it.

Exactly for the same noise: latents, reconstruction, prior, log-determinant. On average: the codebase's own ELBO,
with its weights and reductions undone and its squared error read as a Gaussian of variance 1.
"""

import math
from typing import Any

import pytest
import torch
from adapter_cases import Case, every_case, exact_kl
from torch import Tensor, nn

import vae2aef
from vae2aef import Posterior, VAEParts

pytestmark = [
    pytest.mark.usefixtures("float64"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:(pythae|diffusers|monai|huggingface_hub).*"),
]
LOG_2PI = math.log(2 * math.pi)


def as_vae(case: Case) -> tuple[nn.Module, vae2aef.AEF]:
    vae = case.make().to(torch.float64)
    aef = vae2aef.wrap(vae, example=case.example(), core="noise", core_flow="none", residual=1.0, kl="sampled")
    return vae.eval(), aef.eval()


def same_noise(case: Case, vae: nn.Module, aef: vae2aef.AEF, x: Tensor, cond: dict, seed: int) -> tuple:
    """Run the codebase and the AEF on one draw; also return the draw."""
    torch.manual_seed(seed)
    own = case.own(vae, x, **cond)
    torch.manual_seed(seed)
    terms = aef(x, terms=True, **cond)
    torch.manual_seed(seed)
    return own, terms, torch.randn(x.shape[0], *aef.latent_shape)


def contract(case: Case, vae: nn.Module, aef: vae2aef.AEF) -> None:
    """Raise AssertionError if the AEF is not the VAE of that codebase."""
    x, cond = case.data(), case.conditions()
    with torch.no_grad():
        own, terms, noise = same_noise(case, vae, aef, x, cond, seed=1)
        other, other_terms, other_noise = same_noise(case, vae, aef, x, cond, seed=2)
        for a, b in ((own, terms), (other, other_terms)):
            torch.testing.assert_close(b.z, a.z, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(b.reconstruction, a.reconstruction.reshape(x.shape), rtol=1e-9, atol=1e-9)

        # The residual is the codebase's squared error, read as a Gaussian of variance 1.
        squares = (x - own.reconstruction.reshape(x.shape)).square().flatten(1)
        torch.testing.assert_close(terms.residual, -0.5 * (squares + LOG_2PI).sum(1), rtol=1e-9, atol=1e-9)

        # Prior and log-determinant are those of the codebase's own latents and of its own KL term.
        log_noise = -0.5 * (noise.square() + LOG_2PI).flatten(1).sum(1)
        if own.sampled:
            kl = (log_noise - terms.log_det - terms.prior).mean()
            torch.testing.assert_close(kl, own.kl, rtol=1e-6, atol=1e-6)  # pythae sums some of it in float32
        else:
            normal = -0.5 * (own.z.square() + LOG_2PI).flatten(1).sum(1)
            torch.testing.assert_close(terms.prior, normal, rtol=1e-9, atol=1e-9)
        if not own.sampled and "Multivariate" not in case.name:
            # z is affine in the noise: two draws give its standard deviation, whatever an output is called.
            std = (own.z - other.z) / (noise - other_noise)
            torch.testing.assert_close(terms.log_det, std.log().flatten(1).sum(1), rtol=1e-7, atol=1e-7)
            torch.testing.assert_close(exact_kl(own.z - std * noise, std), own.kl, rtol=1e-7, atol=1e-7)

        # On average over many draws, the loss is the codebase's own negative ELBO.
        closed = not own.sampled and "Multivariate" not in case.name
        differences = []
        for seed in range(25 if closed else 100):  # of a closed KL there is a sharper test below
            own, terms, _ = same_noise(case, vae, aef, x, cond, seed)
            squares = (x - own.reconstruction.reshape(x.shape)).square().flatten(1)
            own_loss = 0.5 * (squares + LOG_2PI).sum(1).mean() + own.kl
            differences.append(terms.loss - own_loss)
        difference = torch.stack(differences)
        std_error = difference.std() / math.sqrt(len(difference))
        assert difference.mean().abs() <= 3 * std_error + 1e-9, (difference.mean(), std_error)
        assert std_error > 0  # the comparison is of draws, not of one number

        # With the KL in closed form, the default, it is theirs draw by draw.
        if closed:
            aef.kl = "analytic"
            own, terms, _ = same_noise(case, vae, aef, x, cond, seed=3)
            squares = (x - own.reconstruction.reshape(x.shape)).square().flatten(1)
            own_loss = 0.5 * (squares + LOG_2PI).sum(1).mean() + own.kl
            torch.testing.assert_close(terms.loss, own_loss, rtol=1e-7, atol=1e-7)


class Misread(VAEParts):
    """An adapter that takes the log variance for a log standard deviation."""

    def __init__(self, right: VAEParts) -> None:
        self.right = right

    def encode(self, x: Tensor, *cond: Any, **kwargs: Any) -> Posterior:
        posterior = self.right.encode(x, *cond, **kwargs)
        return posterior._replace(scale=posterior.scale.square())

    def decode(self, z: Tensor, *cond: Any, **kwargs: Any) -> vae2aef.Decoded:
        return self.right.decode(z, *cond, **kwargs)


@every_case
def test_bridge(case: Case) -> None:
    contract(case, *as_vae(case))


@every_case
def test_bridge_fails_for_a_swapped_scale(case: Case) -> None:
    vae, aef = as_vae(case)
    aef.parts = Misread(aef.parts)
    with pytest.raises(AssertionError):
        contract(case, vae, aef)
