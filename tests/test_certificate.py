"""The two-sided certificate and annealed importance sampling: on linear-Gaussian models both sides are known."""

import pytest
import torch
from test_closed_form import SCALE, make

import vae2aef
from vae2aef import ais
from vae2aef.batch import Batch
from vae2aef.case import Case
from vae2aef.certificate import certify, coordinates
from vae2aef.marginal import Proposal
from vae2aef.samplers import Common

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize("core_flow", ["none", "coupling"])
def test_both_bounds_hold_and_meet(core_flow):
    aef, vae, _ = make(core_flow=core_flow)
    torch.manual_seed(1)
    found = aef.check_log_prob(200, num_samples=100)
    assert 0 <= found.gap.value < 0.02
    assert found.gap.value > -4 * found.gap.std_error
    assert "200 data" in str(found) and "100 draws" in str(found)
    # The entropy of the model's own data is known: -E log p(x).
    normal = torch.distributions.MultivariateNormal(vae.b.detach(), vae.covariance(SCALE).detach())
    assert abs(float(found.lower.mean() + normal.entropy())) < 0.5


def test_the_upper_bound_is_above_and_the_lower_below():
    """With a poor proposal the truth of each datum lies between, on average; the density at a given w is known."""
    aef, vae, x = make()
    vae.centre_on_posterior(SCALE)
    torch.nn.init.zeros_(aef.core.features.linear.weight)
    torch.nn.init.zeros_(aef.core.features.linear.bias)
    tuned = aef.tune_proposal(x.repeat(11, 1))
    bad = Proposal(tuned.log_scale - torch.tensor([0.3, 0.4]), tuned.lower)
    drawn = []
    generate = aef.generate
    aef.generate = lambda *args, **options: drawn.append(generate(*args, **options)) or drawn[-1]
    found = certify(aef, 2000, num_samples=5, proposal=bad)
    truth = vae.log_marginal(drawn[0], SCALE)
    for below in (truth - found.lower, found.upper - truth):
        assert below.mean() > 4 * below.std() / 2000**0.5
    # E over p(z | x) of p(x) / p-hat is one: the true draw has the right weight among the K.
    ratio = (truth - found.upper).exp()
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / 2000**0.5 < 0.1


def test_the_way_back_from_a_latent():
    """The offset of w that made z, through encoder scale and core flow."""
    aef, _, x = make(core_flow="maf")
    case = Case(aef, Batch(x))
    offsets = torch.randn(6, 2)
    with torch.no_grad():
        z = case._infer(offsets, 1, aef.flows, None)("z", None, case.state)
        found = coordinates(Common(case, Proposal(torch.zeros(2))), {"z": z})
        torch.testing.assert_close(found, offsets)
        proposal = Proposal(torch.tensor([-1.0, 0.3]), torch.tensor([[0.0, 0.0], [0.4, 0.0]]))
        noise = torch.randn(6, 2)
        torch.testing.assert_close(proposal.noise_of(proposal.draw(6, noise)[0]), noise)


def test_a_seed_repeats_it_and_a_partition_is_exact():
    aef, _, _ = make()
    assert torch.equal(aef.check_log_prob(5, seed=2).lower, aef.check_log_prob(5, seed=2).lower)
    exact, _, _ = make(core="center")
    assert exact.check_log_prob(4).gap.value == 0
    with pytest.raises(ValueError, match="num_samples of at least 2"):
        aef.check_log_prob(4, num_samples=1)


def test_data_beyond_the_unit_interval_are_no_trouble():
    """A sample of the residual leaves [0, 1] under the logit: the certificate works before it is undone."""
    from zoo_core import SmallVAE

    aef = vae2aef.wrap(SmallVAE((5,), (2,)), example=torch.rand(8, 5), encoder_scale="log_std", preprocess="logit")
    assert aef.check_log_prob(30, num_samples=64).gap.value < 0.1


@pytest.mark.slow
def test_annealing_finds_the_known_marginal(monkeypatch):
    monkeypatch.setattr(ais, "TEMPERATURES", 200)
    aef, vae, x = make()
    for proposal in (None, "laplace"):
        got = aef.log_prob(x[:3], method="ais", num_samples=30, proposal=proposal, seed=0)
        assert not got.uncertain.any() and got.std_error.max() < 0.3
        assert ((got.value - vae.log_marginal(x[:3], SCALE)).abs() < 4 * got.std_error + 0.02).all()
    with pytest.raises(ValueError, match="begins at the prior"):
        aef.log_prob(x, method="ais", proposal="tuned")
    with pytest.raises(ValueError, match='"importance" or "ais"'):
        aef.log_prob(x, method="hmc")
