"""The importance-sampled marginal: chunks, memory, proposals, batches of any size. Its truth: test_closed_form.py."""

import math

import pytest
import torch
from hypothesis import given
from strategies import EXPANDED, PARTITIONS, aefs
from torch import Tensor
from torch.distributions import MultivariateNormal
from zoo_core import LinearGaussianVAE, SmallVAE

import vae2aef
from vae2aef.marginal import Proposal
from vae2aef.tensors import rows_on_gpu

pytestmark = pytest.mark.usefixtures("float64")


def make(rows: int = 6, **options) -> tuple[vae2aef.AEF, Tensor]:
    x = torch.rand(rows, 5)
    options = {"encoder_scale": "log_std", "preprocess": "logit", "noise": 0.0, **options}
    return vae2aef.wrap(SmallVAE((5,), (2,)), example=x, **{"core_flow": "coupling", **options}), x


@given(aefs(cores=EXPANDED))
def test_every_expanded_model(case):
    aef, x = case.aef, case.x
    proposal = Proposal(torch.full(aef.latent_shape, -1.0).reshape(-1))
    got = aef.log_prob(x, num_samples=7, proposal=proposal)
    batch = x.shape[0]
    assert got.value.shape == got.std_error.shape == got.effective_sample_size.shape == (batch,)
    assert not got.exact
    assert (got.std_error >= 0).all()
    assert ((got.effective_sample_size >= 1 - 1e-9) & (got.effective_sample_size <= 7 + 1e-9)).all()


@given(aefs(cores=PARTITIONS))
def test_every_partition_model_is_exact(case):
    aef, x = case.aef, case.x
    got = aef.log_prob(x)
    assert got.exact
    assert aef.tune_proposal(x) is None
    torch.testing.assert_close(got.value, aef.expanded_log_prob(x).detach())
    if x.shape[0]:
        torch.testing.assert_close(-got.value.mean(), aef(x).detach())


def test_the_estimator_by_hand():
    """log 1/K sum_k p(x, w_k) / q(w_k | x), with error and effective size from the same weights."""
    aef, x = make(core_flow="maf")
    proposal = Proposal(torch.tensor([-0.5, 0.2]), torch.tensor([[9.0, 9.0], [0.7, 9.0]]))  # only below the diagonal
    k = 41
    torch.manual_seed(7)
    got = aef.log_prob(x, num_samples=k, proposal=proposal, chunk_size=k * len(x))
    torch.manual_seed(7)
    noise = torch.randn(k, len(x), 2)
    scale = torch.diag(proposal.log_scale.exp()) @ torch.tensor([[1.0, 0.0], [0.7, 1.0]])
    with torch.no_grad():
        y, log_det_y = aef.preprocess(x)
        h = aef.core(y)[0]
        q = MultivariateNormal(h, scale_tril=scale)
        w = h + noise @ scale.T
        weights = []
        for draw in w:
            loc, g_s, _ = aef.parts.encode(y)
            u, log_det = aef.core_flow(draw)
            z = loc + g_s * u
            joint = aef.prior.log_prob(z) + aef.residual.log_prob(y - aef.parts.decode(z).mean).sum(1)
            weights.append(joint + g_s.log().sum(1) + log_det + log_det_y - q.log_prob(draw))
        log_w = torch.stack(weights)
    p = log_w.exp()
    torch.testing.assert_close(got.value, p.mean(0).log())
    torch.testing.assert_close(got.effective_sample_size, p.sum(0) ** 2 / p.square().sum(0))
    known = ~got.uncertain
    assert known.any() and got.std_error[~known].isinf().all()
    torch.testing.assert_close(got.std_error[known], (p.std(0) / math.sqrt(k) / p.mean(0))[known])


def test_memory_is_bounded_by_the_chunk():
    """The decoder never sees more rows at once, whatever K; and K draws are made for each datum, no more."""
    aef, x = make(rows=6)
    proposal = Proposal(torch.zeros(2))
    many = aef.log_prob(x, num_samples=20_000, proposal=proposal, chunk_size=6000)
    seen = []
    aef.vae.outer.register_forward_hook(lambda _, args, __: seen.append(args[0].shape[0]))
    for chunk in (1, 5, 7, 100, 10_000):
        seen.clear()
        got = aef.log_prob(x, num_samples=37, proposal=proposal, chunk_size=chunk)
        assert max(seen) <= chunk
        assert sum(seen) == 37 * 6
        assert ((got.value - many.value).abs() < 6 * got.std_error).all()


def test_a_gpu_decodes_more_rows_at_once_unless_told_how_many(monkeypatch):
    """A draw of a small batch at a time leaves it idle. The numbers are those of the CPU."""
    aef, x = make(rows=3)
    seen = []
    aef.vae.outer.register_forward_hook(lambda _, args, __: seen.append(args[0].shape[0]))
    monkeypatch.setattr("vae2aef.marginal.rows_at_once", lambda *_: 3)
    few = aef.log_prob(x, num_samples=64, seed=0)
    assert max(seen) == 3
    monkeypatch.setattr("vae2aef.tensors.on_gpu", lambda _: True)
    many = aef.log_prob(x, num_samples=64, seed=0)
    assert max(seen) >= 64 * 3
    torch.testing.assert_close(many.value, few.value)
    seen.clear()
    aef.log_prob(x, num_samples=64, seed=0, chunk_size=3)
    assert max(seen) == 3
    seen.clear()
    aef.check_log_prob(3, num_samples=64, seed=0)
    assert max(seen) >= 63
    monkeypatch.setattr("vae2aef.tensors.GPU_NUMBERS", 10 * x[0].numel())  # fault: values of x for what is decoded
    for per_value, rows in ((1, 10), (2, 5), (5, 3), (None, 3)):
        assert rows_on_gpu(x, 3, per_value) == rows


def test_the_encoder_runs_once():
    aef, x = make()
    calls = []
    aef.vae.inner.register_forward_hook(lambda *_: calls.append(1))
    aef.log_prob(x, num_samples=500, proposal=Proposal(torch.zeros(2)), chunk_size=6)
    assert len(calls) == 1


def test_the_same_seed_gives_the_same_numbers_and_tuning_does_not_matter():
    """Tuning has its own stream: the draws of the estimate are the same with a proposal of the same values."""
    aef, x = make()
    torch.manual_seed(1)
    inside = aef.log_prob(x, num_samples=20, proposal="tuned")
    proposal = aef.tune_proposal(x)
    torch.manual_seed(1)
    outside = aef.log_prob(x, num_samples=20, proposal=proposal)
    assert torch.equal(inside.value, outside.value)


def test_tuning_beats_every_fixed_scale():
    """On a posterior whose two scales differ by 40, no common scale is near; the tuned proposal is."""
    vae = LinearGaussianVAE(4, 2)
    with torch.no_grad():
        vae.a.copy_(torch.eye(4)[:, :2] * torch.tensor([20.0, 0.1]))
    x = torch.randn(64, 4)
    aef = vae2aef.wrap(vae, example=x, encoder_scale="std", core_flow="none", residual=0.5)
    covariance = vae.centre_on_posterior(0.5)
    assert covariance[1, 1] / covariance[0, 0] > 1000
    torch.nn.init.zeros_(aef.core.features.linear.weight)
    torch.nn.init.zeros_(aef.core.features.linear.bias)
    sizes = [
        aef.log_prob(x, num_samples=100, proposal=Proposal(torch.full((2,), math.log(s)))).effective_sample_size.mean()
        for s in (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
    ]
    tuned = aef.log_prob(x, num_samples=100, proposal=aef.tune_proposal(x)).effective_sample_size.mean()
    assert tuned > 80
    assert tuned > 2 * max(sizes)


@pytest.mark.parametrize("latent", [1, 2, 129])
def test_the_shape_of_a_proposal(latent):
    """A full covariance up to 128 latents, a diagonal above; nothing below the diagonal of one."""
    vae, x = LinearGaussianVAE(4, latent), torch.randn(64, 4)
    aef = vae2aef.wrap(vae, example=x, encoder_scale="std", core_flow="none", residual=0.5)
    proposal = aef.tune_proposal(x)
    assert proposal.log_scale.shape == (latent,)
    if latent == 2:
        assert proposal.lower.shape == (2, 2)
    else:
        assert proposal.lower is None


def test_batches_of_nothing():
    aef, x = make()
    for proposal in (None, Proposal(torch.zeros(2))):
        got = aef.log_prob(x[:0], proposal=proposal)
        assert got.value.shape == got.std_error.shape == got.effective_sample_size.shape == (0,)
        assert not got.exact
    with pytest.raises(ValueError, match="cannot tune a proposal on an empty batch"):
        aef.tune_proposal(x[:0])


@pytest.mark.parametrize("bad", [{"num_samples": 0}, {"num_samples": -3}, {"chunk_size": 0}])
@pytest.mark.parametrize("core", ["linear", "center"])
def test_numbers_that_make_no_sense(bad, core):
    aef, x = make(core=core)
    with pytest.raises(ValueError, match="expected num_samples and chunk_size of at least 1"):
        aef.log_prob(x, **bad)


def test_a_value_that_is_not_finite_is_named():
    aef, x = make()
    proposal = aef.tune_proposal(x)
    x[3, 1] = 2.0
    with pytest.raises(vae2aef.NonFiniteError, match=r"not finite in rows \[3\]"):
        aef.log_prob(x, proposal=proposal, num_samples=4)
    aef, x = make(core="center")
    x[[1, 4]] = math.nan
    with pytest.raises(vae2aef.NonFiniteError, match=r"not finite in rows \[1, 4\]"):
        aef.log_prob(x)


def test_the_value_is_a_lower_bound_on_average():
    """Jensen: E log p-hat <= log p, closer with more samples (Burda et al., 2016)."""
    vae = LinearGaussianVAE(3, 2)
    x = torch.randn(1, 3).expand(4000, -1)
    aef = vae2aef.wrap(vae, example=x, encoder_scale="std", core_flow="none", residual=0.7)
    vae.centre_on_posterior(0.7)
    tuned = aef.tune_proposal(x)
    wide = Proposal(tuned.log_scale + 0.4, tuned.lower)
    truth = vae.log_marginal(x[:1], 0.7)
    gaps = [truth - aef.log_prob(x, num_samples=k, proposal=wide).value.mean() for k in (1, 4, 16)]
    assert gaps[0] > gaps[1] > gaps[2] > -0.005
    assert gaps[0] > 0.1
