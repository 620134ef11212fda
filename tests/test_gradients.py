"""Every parameter learns, by name, and conditions reach every part (DESIGN 6.7)."""

import pytest
import torch
from hypothesis import given
from strategies import EXPANDED, PARTITIONS, OwnFeatures, aefs
from torch import Tensor, nn
from zoo_core import ConditionalPrior, SmallVAE, shake

import vae2aef
from vae2aef.testing import check_gradients


@pytest.fixture
def x() -> Tensor:
    return 0.02 + 0.96 * torch.rand(16, 2, 3)


def make(x: Tensor, **options) -> vae2aef.AEF:
    own_scale = options.get("residual") == "decoder"
    options = {"encoder_scale": "log_std", **options}
    options |= {"decoder_scale": "std"} if own_scale else {}
    options = {"core_flow": "coupling", **options}
    return vae2aef.wrap(SmallVAE((2, 3), (3,), own_scale=own_scale), example=x, **options)


@pytest.mark.parametrize("core", ["linear", "noise", "own module", "center", "corner", "random"])
@pytest.mark.parametrize("flow", ["none", "coupling", "maf"])
def test_every_parameter_gets_a_gradient(x, core, flow):
    aef = make(x, core=OwnFeatures((2, 3), (3,)) if core == "own module" else core, core_flow=flow, prior=flow)
    check_gradients(aef, x)


@pytest.mark.parametrize("residual", ["learned", "shared", "decoder", 0.5, "laplace", "student_t"])
@pytest.mark.parametrize("preprocess", [None, "logit", "standardize"])
def test_whatever_the_residual_and_the_preprocessing(x, residual, preprocess):
    norms = check_gradients(make(x, residual=residual, preprocess=preprocess), x)
    assert ("likelihood.raw_scale" in norms) == (residual not in ("decoder", 0.5))


@pytest.mark.parametrize("core", ["linear", "center"])
def test_gradients_are_those_of_finite_differences(core):
    """Autograd through the whole loss, by every parameter at once, along random directions."""
    x = (0.02 + 0.96 * torch.rand(5, 2, 3)).double()
    aef = make(x.float(), core=core, core_flow="maf", prior="coupling", preprocess="logit", noise=0.0).double()
    shake(aef)
    parameters = list(aef.parameters())
    grads = torch.autograd.grad(aef(x), parameters)
    for _ in range(3):
        directions = [torch.randn_like(p) for p in parameters]
        slope = sum((g * d).sum() for g, d in zip(grads, directions, strict=True))
        values = []
        with torch.no_grad():
            for step in (1e-6, -2e-6):
                for p, d in zip(parameters, directions, strict=True):
                    p.add_(step * d)
                values.append(aef(x))
            for p, d in zip(parameters, directions, strict=True):
                p.add_(1e-6 * d)
        torch.testing.assert_close(slope, (values[0] - values[1]) / 2e-6, rtol=1e-6, atol=1e-6)


def test_a_core_output_of_a_partition_decoder_gets_none(x):
    """The decoder predicts the shell only: its outputs at the core have no part in the loss."""
    aef = make(x, core="corner")
    aef(x).backward()
    core = aef.core.mask.flatten()
    assert not aef.vae.mean.weight.grad[core].any()
    assert aef.vae.mean.weight.grad[~core].abs().sum(1).all()
    # What the encoder sees at the core is zero, so its weights there learn nothing either.
    assert not aef.vae.inner.weight.grad[:, core].any()


def test_terms_carry_gradients(x):
    """For losses of the user's own: each term and the reconstruction reach the decoder or the encoder."""
    aef = make(x, prior="coupling")
    terms = aef(x, terms=True)
    total = terms.prior + terms.residual + terms.log_det + terms.entropy
    torch.testing.assert_close(terms.loss, -total.mean())
    for value, parameter in [
        (terms.prior, aef.vae.inner.weight),
        (terms.residual, aef.vae.mean.weight),
        (terms.log_det, aef.vae.heads.weight),
        (terms.z, aef.core.features.linear.weight),
        (terms.reconstruction, aef.vae.mean.weight),
    ]:
        assert torch.autograd.grad(value.sum(), parameter, retain_graph=True)[0].any()


@pytest.mark.parametrize("core", ["linear", "noise", "center"])
def test_an_optimizer_lowers_the_loss(x, core):
    aef = make(x, core=core, preprocess="logit", noise=1.0 if core == "linear" else 0.0)
    optimizer = torch.optim.Adam(aef.parameters(), 1e-2)
    losses = []
    for _ in range(100):
        optimizer.zero_grad()
        loss = aef(x)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < sum(losses[:10]) - 10


def test_added_parameters_are_exactly_the_complement(x):
    for options in ({}, {"core": "noise", "core_flow": "none", "residual": 1.0}, {"prior": "maf", "core": "center"}):
        aef = make(x, **options)
        added, own = {id(p) for p in aef.added_parameters()}, {id(p) for p in aef.vae.parameters()}
        assert not added & own
        assert added | own == {id(p) for p in aef.parameters()}
        assert sum(aef.added.values()) == sum(p.numel() for p in aef.added_parameters())
    outside = nn.Linear(6, 3)
    vae = SmallVAE((2, 3), (3,))
    vae.inner.weight.requires_grad_(False)
    aef = vae2aef.wrap(vae, example=x, decoder=Outside(), encoder=vae.encoder, encoder_scale="log_std")
    assert outside.weight is not aef.outside["decoder"].linear.weight
    assert {id(p) for p in aef.added_parameters()}.isdisjoint(map(id, aef.outside.parameters()))
    assert "outside.decoder.linear.weight" in dict(aef.named_parameters())
    assert not aef.vae.inner.weight.requires_grad


class Outside(nn.Module):
    """A decoder that is not a part of the VAE."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 6)

    def forward(self, z: Tensor) -> Tensor:
        return self.linear(z)


def test_a_new_group_of_an_optimizer_trains_what_was_added(x):
    vae = SmallVAE((2, 3), (3,))
    optimizer = torch.optim.SGD(vae.parameters(), 0.1)
    aef = vae2aef.wrap(vae, example=x, encoder_scale="log_std")
    optimizer.add_param_group({"params": list(aef.added_parameters())})
    before = {name: p.detach().clone() for name, p in aef.named_parameters()}
    aef(x).backward()
    optimizer.step()
    assert [name for name, p in aef.named_parameters() if torch.equal(p, before[name])] == []


# ---------------------------------------------------------------------- conditions


@pytest.mark.parametrize("by_name", [False, True])
@pytest.mark.parametrize("core", ["linear", "center"])
def test_conditions_reach_encoder_decoder_and_prior(x, by_name, core):
    label = torch.rand(16, 2)
    cond, named = ((), {"label": label}) if by_name else ((label,), {})
    vae = SmallVAE((2, 3), (3,), classes=2)
    options = {"encoder_scale": "log_std", "core": core, "prior": ConditionalPrior(2, 3), "noise": 0.0}
    aef = vae2aef.wrap(vae, example=(x, named) if by_name else (x, label), **options)
    terms = aef(x, *cond, terms=True, **named)
    y, shell = aef.core(x)
    loc, log_std = vae.encoder(shell, label)
    z = loc + log_std.exp() * aef.core_flow(y)[0]
    torch.testing.assert_close(terms.z, z)
    torch.testing.assert_close(terms.prior, aef.prior.log_prob(z, label))
    torch.testing.assert_close(aef.encode(x, *cond, **named), z)
    if core == "linear":
        torch.testing.assert_close(aef.decode(z, *cond, **named), vae.decoder(z, label))
    torch.testing.assert_close(aef.reconstruct(x, *cond, **named), aef.decode(z, label))
    assert aef.sample(16, *cond, **named).shape == x.shape
    check_gradients(aef, (x, named) if by_name else (x, label))
    # Each row has its own condition, in the marginal too: one row alone gives what it gives in the batch.
    whole = aef.log_prob(x, *cond, num_samples=4000, **named)
    other = {"label": label[3:4]} if by_name else {}
    alone = aef.log_prob(x[3:4], *(() if by_name else (label[3:4],)), num_samples=4000, **other)
    error = (whole.std_error[3] ** 2 + alone.std_error[0] ** 2).sqrt()
    assert abs(whole.value[3] - alone.value[0]) <= 4 * error + 1e-5


@given(aefs(cores=EXPANDED + PARTITIONS))
def test_an_empty_batch_costs_nothing_and_has_gradients(case):
    aef, x = case.aef, case.x[:0]
    loss = aef(x)
    assert loss == 0
    loss.backward()
    assert all(p.grad is None or not p.grad.any() for p in aef.parameters())
    assert aef.reconstruct(x).shape == x.shape
    assert aef.sample(0).shape == x.shape
    assert aef.log_prob(x).value.shape == (0,)
