"""A scale of the data that the VAE learns by itself, as the sigma-VAE does, is not passed over without a word."""

import warnings

import pytest
import torch
from torch import nn

import vae2aef


class OwnScale(nn.Module):
    """A scale as a parameter, which forward returns or its loss alone uses."""

    def __init__(self, name="log_sigma", value=None, where="loss"):
        super().__init__()
        self.first, self.second, self.where, self.name = nn.Linear(6, 4), nn.Linear(2, 6), where, name
        setattr(self, name, nn.Parameter(torch.zeros(()) if value is None else value))

    def forward(self, x):
        mu, log_var = self.first(x).chunk(2, dim=1)
        mean = self.second(mu + torch.exp(0.5 * log_var) * torch.randn_like(mu))
        if self.where == "loss":
            return mean, mu, log_var
        scale = getattr(self, self.name)
        return mean, scale if self.where == "beside" else scale.exp(), mu, log_var


SAYS = "seems to be the scale of the data, as it has no part in the loss"


def warned(vae, x, **options):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        aef = vae2aef.wrap(vae, example=x, **options)
    return aef, [each.message for each in found if isinstance(each.message, vae2aef.WrapWarning)]


@pytest.mark.remedy("{} of {} seems to be the scale of the data,")
@pytest.mark.parametrize("where", ["loss", "beside", "exp"])
@pytest.mark.parametrize(
    ("name", "value", "scale"),
    [
        ("log_sigma", torch.tensor(-1.0), 0.3679),
        ("log_sigma", torch.full((1, 6), -1.0), 0.3679),
        ("sigma", torch.tensor([0.5]), 0.5),
        ("log_var", torch.tensor(-1.0), 0.6065),
        ("out_var", torch.full((6,), 0.25), 0.5),
        ("decoder_logstd", torch.tensor(-1.0), 0.3679),
    ],
)
def test_it_is_named_and_the_line_takes_it(name, value, scale, where):
    vae, x = OwnScale(name, value.clone(), where), torch.rand(16, 6)
    aef, (message,) = warned(vae, x)
    assert SAYS in str(message)
    assert f"`{name}`" in str(message)
    line = message.fix.removeprefix("Pass likelihood=")
    again, messages = warned(vae, x, likelihood=eval(line, {"vae": vae, "torch": torch}))
    assert messages == []
    again(x).backward()
    assert getattr(vae, name).grad is not None
    joint = again.log_joint(vae2aef.batch.Batch(x, (), {}))
    expected = torch.distributions.Normal(joint.decoded.mean, scale).log_prob(x).sum(1)
    torch.testing.assert_close(joint.residual, expected, rtol=1e-3, atol=1e-3)
    assert sum(p.numel() for p in again.added_parameters()) < sum(p.numel() for p in aef.added_parameters())


@pytest.mark.parametrize("likelihood", ["learned", "shared"])
def test_nothing_is_said_where_the_likelihood_is(likelihood):
    assert warned(OwnScale(), torch.rand(16, 6), likelihood=likelihood)[1] == []


def test_a_scale_that_the_mean_depends_on_is_in_the_loss():
    class Divided(OwnScale):
        def forward(self, x):
            mean, mu, log_var = super().forward(x)
            return mean / self.log_sigma.exp(), mu, log_var

    assert warned(Divided(), torch.rand(16, 6))[1] == []


@pytest.mark.parametrize(("name", "value"), [("prior_log_sigma", torch.zeros(())), ("log_sigma", torch.zeros(2))])
def test_one_of_the_prior_is_still_said_to_be(name, value):
    _, (message,) = warned(OwnScale(name, value), torch.rand(16, 6))
    assert "If they are of its prior" in str(message)


def test_one_that_is_not_trained_is_no_loss():
    vae = OwnScale()
    vae.log_sigma.requires_grad_(False)
    assert warned(vae, torch.rand(16, 6))[1] == []


def test_random_states_and_gradients_stay():
    vae, x = OwnScale(), torch.rand(16, 6)
    torch.manual_seed(3)
    assert len(warned(vae, x)[1]) == 1
    after = torch.rand(3)
    torch.manual_seed(3)
    assert warned(vae, x, likelihood="learned")[1] == []
    torch.testing.assert_close(torch.rand(3), after)
    assert all(p.grad is None for p in vae.parameters())


@pytest.mark.parametrize(
    ("name", "shape"), [("logit_scale", ()), ("sigma", (5, 6)), ("log_sigma_z", ()), ("logvar_p", ())]
)
def test_scales_of_something_else_are_none_of_the_data(name, shape):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        vae2aef.wrap(OwnScale(name, torch.ones(shape)), example=torch.rand(16, 6))
    assert not any(SAYS in str(each.message) for each in found)


def test_several_are_named_together():
    vae = OwnScale()
    vae.sigma = nn.Parameter(torch.ones(6))
    _, (message,) = warned(vae, torch.rand(16, 6))
    assert str(message).startswith("`log_sigma`, `sigma` of OwnScale")
