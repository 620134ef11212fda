"""docs/symptoms.md: each symptom is made, and the message or the fix that the page names is followed."""

import copy
import math
import re
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import vae2aef
from vae2aef.comparison.nets import MLPVAE
from vae2aef.gauge import drift
from vae2aef.wrapping.optimizer_warning import OptimizerWarning

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "symptoms.md").read_text()
N = 6


def data(rows=64):
    return torch.rand(rows, N)


def wrapped(x, vae=None, **options):
    return vae2aef.wrap(vae or MLPVAE((N,), 2, hidden=8), example=x, **{"core_flow": "none", "noise": 0.3, **options})


def of(heading):
    """The text under a heading of the page."""
    return PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]


def test_collapse_is_counted_and_features_open_a_path():
    of("The latents do nothing (posterior collapse)")
    x, vae = data(), MLPVAE((N,), 2, hidden=8)
    with torch.no_grad():
        vae.to_mean.weight.zero_()  # the location no longer depends on x
        vae.to_log_var.weight.zero_()
    said = str(vae2aef.check(vae, example=x))
    assert "in a trained VAE they have collapsed" in said and "collapsed" in PAGE
    aef = wrapped(x, vae)
    assert aef.encode(x).std(0).min() > 1e-3  # x reaches z beside the encoder
    assert wrapped(x, vae, core="noise", noise=1.0).encode(x).std(0).max() < 1e-6


@pytest.mark.parametrize("where", ["the data x", "encoder_location", "decoder"])
def test_nan_is_named(where):
    assert where in of("The loss is NaN")
    x = data()
    aef = wrapped(x)
    before = {name: value.clone() for name, value in aef.state_dict().items()}
    if where == "the data x":
        x[3, 2] = math.nan
    else:
        before = None
        with torch.no_grad():
            if where == "encoder_location":
                aef.vae.to_mean.bias.fill_(math.nan)
            else:
                aef.vae.decoder[-2].bias.fill_(math.nan)
    with pytest.raises(vae2aef.NonFiniteError, match=where):
        aef(x)
    assert before is None or all(torch.equal(value, before[name]) for name, value in aef.state_dict().items())
    with pytest.raises((vae2aef.NonFiniteError, ValueError), match=r"logit|outside"):
        wrapped(data(), preprocess="logit")(2 * torch.ones(4, N))


def test_a_negative_loss_is_a_matter_of_units():
    assert "log 100 for\neach value" in of("The loss is negative")
    x = data()
    torch.manual_seed(1)
    one = wrapped(x, preprocess="standardize", noise=0.0)
    hundredth = copy.deepcopy(one)
    hundredth.preprocess = vae2aef.Standardize.fit(x / 100)
    torch.testing.assert_close(hundredth(x / 100), one(x) - N * math.log(100), atol=1e-3, rtol=1e-4)
    assert hundredth(x / 100) < 0
    log_p = -one(x).detach()
    assert vae2aef.bits_per_dim(log_p, (N,), 256) == pytest.approx(float(8 - log_p / (N * math.log(2))), abs=1e-5)


def test_a_loss_that_falls_for_nothing():
    of("The loss falls on, the model is no better")
    x = data()
    aef = wrapped(x, noise=0.0)
    before, meter = float(aef(x).detach()), aef.gauge(x)
    with torch.no_grad():  # h -> h / c, g_s -> c g_s
        weight, bias = aef.core.features.map()
        aef.core.features.set_map(weight / 2, bias / 2)
        aef.vae.to_log_var.bias.add_(2 * math.log(2.0))
    assert float(aef(x).detach()) == pytest.approx(before - 2 * math.log(2), abs=1e-4)
    assert aef.gauge(x).core_std == pytest.approx(meter.core_std / 2, rel=1e-3)
    assert drift([(i, -i) for i in range(6)], [(i, -abs(i - 1)) for i in range(6)]) is not None


def test_blurry_samples_are_means():
    of("Samples or reconstructions are blurry")
    torch.manual_seed(0)
    aef = wrapped(data())
    means, draws = aef.sample(500), aef.sample(500, residual=True)
    assert draws.var() > 2 * means.var()


def test_beta_is_a_fixed_scale():
    """beta = 2 s^2: the gradients of the two losses are parallel, with that factor."""
    assert "β = 2 s²" in of("Which β?")
    x, s = data(), 0.7
    aef = wrapped(x, core="noise", noise=1.0, likelihood=s)
    torch.manual_seed(5)
    aef(x).backward()
    ours = [p.grad.clone() for p in aef.vae.parameters()]
    aef.zero_grad()
    torch.manual_seed(5)
    noise = aef(x, terms=True).z.detach()
    mean, log_var = aef.vae.encode(x)
    epsilon = (noise - mean.detach()) / (0.5 * log_var.detach()).exp()
    z = mean + (0.5 * log_var).exp() * epsilon
    kl = 0.5 * (mean**2 + log_var.exp() - 1 - log_var).sum(1)
    (((x - aef.vae.decode(z)) ** 2).sum(1) + 2 * s**2 * kl).mean().backward()
    for own, p in zip(ours, aef.vae.parameters(), strict=True):
        torch.testing.assert_close(p.grad, 2 * s**2 * own, atol=1e-5, rtol=1e-3)


def test_log_p_is_above_the_bound():
    of("What is log p(x), and why is it not the loss?")
    x = data(32)
    aef = wrapped(x, noise=1.0)
    found = aef.log_prob(x, num_samples=200)
    bound = -torch.stack([aef(x).detach() for _ in range(50)]).mean()
    assert found.value.mean() > bound and found.std_error.max() < 0.5


def test_grey_levels_are_warned_of():
    of("A few grey levels, great likelihoods")
    x = torch.randint(0, 256, (64, N)).float() / 255
    with pytest.warns(vae2aef.WrapWarning, match="can grow without bound"):
        wrapped(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wrapped(x, likelihood="discretized_logistic")
        wrapped(vae2aef.dequantize((255 * x).round().to(torch.uint8)))


def test_batch_normalisation_is_named_and_switched_to_eval():
    of("BatchNorm and dropout")
    vae = MLPVAE((N,), 2, hidden=8)
    vae.encoder.append(nn.BatchNorm1d(8))
    x = data()
    said = str(vae2aef.check(vae, example=x))
    assert "batch normalisation" in said and "encoder.5" in said
    aef = wrapped(x, vae).train()
    whole = aef.log_prob(x, num_samples=8, seed=0).value
    torch.testing.assert_close(aef.log_prob(x[:5], num_samples=8, seed=0).value, whole[:5], atol=1e-3, rtol=1e-3)
    assert aef.training


def test_half_precision():
    of("Mixed precision")
    x = data()
    aef = wrapped(x)
    for convert in (aef.half, aef.bfloat16):
        with pytest.raises(TypeError, match=r"torch\.autocast"):
            convert()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = aef(x)
    assert loss.dtype == torch.float32 and loss.isfinite()


def test_a_loader_of_pairs():
    said = of("`'list' object has no attribute ...`: a loader of (x, y)")
    x = data(8)
    with pytest.raises(TypeError) as caught:
        wrapped(x)([x, torch.zeros(8)])
    assert "for x, y in loader: loss = aef(x)" in str(caught.value) and "for x, y in loader: loss = aef(x)" in said


def test_what_was_added_does_not_train():
    of("The added parts do not train")
    x = data()
    aef = wrapped(x)
    optimizer = torch.optim.SGD(aef.vae.parameters(), lr=0.1)
    with pytest.warns(OptimizerWarning, match="add_param_group"):
        for _ in range(2):
            aef(x).backward()
            optimizer.step()
    optimizer.add_param_group({"params": list(aef.added_parameters())})
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in aef.parameters()}


def test_saving(tmp_path):
    of("Saving and loading")
    x = data()
    aef = wrapped(x)
    aef.save(tmp_path / "a.pt")
    twin = vae2aef.load(tmp_path / "a.pt", MLPVAE((N,), 2, hidden=8))
    assert torch.equal(twin.encode(x), aef.encode(x))


def test_the_figures_of_the_table_are_those_of_the_results():
    """Every figure stands in docs/results.md, in the column or page that the row is about."""
    results = (ROOT / "docs" / "results.md").read_text()
    table = of("Which core, flow, noise, likelihood, prior?")
    figures = re.findall(r"[+−]\d\.\d+ ± \d\.\d+|\d\.\d{3}(?= with)", table)
    assert len(figures) >= 14
    assert [figure for figure in figures if figure not in results] == []
