"""Hundreds of latents: a Gaussian for each datum with its own widths along the directions that are bent most."""

import pytest
import torch
from torch import Tensor, nn

import vae2aef
from vae2aef.batch import Batch
from vae2aef.draws import Draws
from vae2aef.low_rank import Frame, LowRank
from vae2aef.marginal import cases
from vae2aef.samplers import Around, sampler

pytestmark = pytest.mark.usefixtures("float64")

LATENTS, DATA, SCALE = 280, 300, 1.0


class Linear(nn.Module):
    """A decoder that bends a few directions strongly, and an encoder that knows nothing of it."""

    def __init__(self, strong: int = 6) -> None:
        super().__init__()
        w = 0.3 * torch.randn(DATA, strong) @ torch.randn(strong, LATENTS) + 0.02 * torch.randn(DATA, LATENTS)
        self.decode = nn.Linear(LATENTS, DATA, bias=False)
        self.decode.weight.data = w

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.new_zeros(len(x), LATENTS), x.new_ones(len(x), LATENTS)

    def draw(self, n: int) -> Tensor:
        return self.decode(torch.randn(n, LATENTS)).detach() + SCALE * torch.randn(n, DATA)

    def log_marginal(self, x: Tensor) -> Tensor:
        w = self.decode.weight.detach()
        covariance = w @ w.T + SCALE**2 * torch.eye(DATA)
        return torch.distributions.MultivariateNormal(torch.zeros(DATA), covariance).log_prob(x)


@pytest.fixture(scope="module")
def strong() -> tuple[vae2aef.AEF, Tensor, Tensor]:
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    vae = Linear()
    x = vae.draw(6)
    aef = vae2aef.wrap(vae, example=x, encoder_scale="std", likelihood=SCALE, core="noise", core_flow="none")
    return aef, x, vae.log_marginal(x)


def case_of(aef: vae2aef.AEF, x: Tensor):
    (case,) = cases(aef, Batch(aef.to_latent_side(x)[0]), len(x), Draws.of(Batch(x), 0), torch.zeros(len(x)))
    return case


def test_the_mass_is_found(strong):
    aef, x, truth = strong
    found = aef.log_prob(x, num_samples=300, seed=0)
    diagonal = Around.fitted(case_of(aef, x)).log_weights(0, 300).logsumexp(0) - torch.tensor(300.0).log()
    assert not found.uncertain.any() and (found.value - truth).abs().max() < 0.5
    assert (diagonal.double() < truth - 50).all()  # what a diagonal Gaussian makes of it


def test_a_diagonal_gaussian_is_kept_where_it_is_better():
    """A decoder that bends all directions alike: nothing leads, and no datum may come out worse."""
    torch.manual_seed(1)
    vae = Linear()
    vae.decode.weight.data = torch.linalg.qr(torch.randn(DATA, LATENTS))[0]
    x = vae.draw(4)
    aef = vae2aef.wrap(vae, example=x, encoder_scale="std", likelihood=SCALE, core="noise", core_flow="none")
    assert (aef.log_prob(x, num_samples=300, seed=0).value - vae.log_marginal(x)).abs().max() < 3


def test_a_datum_has_its_number_whatever_the_batch(strong):
    aef, x, _ = strong
    whole, alone = aef.log_prob(x, num_samples=20, seed=0).value, aef.log_prob(x[2:3], num_samples=20, seed=0).value
    torch.testing.assert_close(whole[2:3], alone, rtol=1e-6, atol=1e-6)


def test_the_density_of_a_frame_is_that_of_its_draws():
    torch.manual_seed(2)
    b, d, r = 3, 7, 2
    basis = torch.linalg.qr(torch.randn(b, d, r))[0]
    center, scale, mean, root = torch.randn(b, d), torch.rand(b, d) + 0.5, torch.randn(b, d), torch.rand(b, d) + 0.5
    frame = Frame(center, scale, basis, torch.rand(b, r) + 0.1, mean, root)
    e = torch.randn(5, b, d)
    v, log_q = frame.place(e)
    torch.testing.assert_close(frame.noise_of(v), e)
    for row in range(b):
        place = lambda one, row=row: frame.place(one.expand(1, b, d))[0][0, row]  # noqa: E731
        jacobian = torch.autograd.functional.jacobian(place, e[0, 0])
        expected = torch.distributions.MultivariateNormal(place(torch.zeros(d)), jacobian @ jacobian.T)
        torch.testing.assert_close(log_q[:, row], expected.log_prob(v[:, row]))


@pytest.mark.slow
def test_the_certificate_and_rows_go_through(strong):
    aef, x, _ = strong
    source = sampler(case_of(aef, x), None)
    assert isinstance(source, LowRank)
    some = source.rows(torch.tensor([4, 1]))
    torch.testing.assert_close(some.log_weights(0, 3), source.log_weights(0, 3)[:, [4, 1]])
    v = torch.randn(6, LATENTS)
    e = source.frame.noise_of(v.unsqueeze(0))
    torch.testing.assert_close(source._log_weights(e)[0], source.log_weights_at(v))
    found = aef.check_log_prob(4, num_samples=50, seed=0)
    assert abs(found.gap.value) < 0.5
