"""`vae2aef.log_prob` and `vae2aef evaluate`: any VAE as it is, against quadrature and known answers."""

import copy
import json
import math
import re
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Normal

import vae2aef
from vae2aef.likelihood import DiscretizedLogistic
from vae2aef.wrapping.score import as_it_is

pytestmark = pytest.mark.usefixtures("float64")

N = 5
SCALE = {"encoder_scale": "log_std"}


class VAE(nn.Module):
    """A nonlinear decoder, dropout that eval mode switches off; `shift` is a condition."""

    def __init__(self, latent: int = 1, last: nn.Module | None = None) -> None:
        super().__init__()
        self.enter = nn.Linear(N, 2 * latent)
        self.leave = nn.Sequential(nn.Linear(latent, 16), nn.Tanh(), nn.Dropout(0.3), nn.Linear(16, N))
        self.last = last or nn.Identity()
        nn.init.normal_(self.leave[3].weight, std=0.5)

    def encode(self, x: Tensor, shift: Tensor | float = 0.0) -> tuple[Tensor, ...]:
        return self.enter(x).chunk(2, dim=1)

    def decode(self, z: Tensor, shift: Tensor | float = 0.0) -> Tensor:
        return self.last(self.leave(z) + shift)


def quadrature(vae: VAE, x: Tensor, density, shift: Tensor | None = None) -> Tensor:
    """log of the integral of N(z; 0, 1) p(x | z) over one latent, by the trapezoid rule, of the VAE in eval mode."""
    z = torch.linspace(-9, 9, 4001).unsqueeze(1)
    vae = copy.deepcopy(vae).eval()
    with torch.no_grad():
        prior = Normal(0.0, 1.0).log_prob(z).squeeze(1)
        shifts = torch.zeros(len(x), 1) if shift is None else shift
        rows = [prior + density(vae.decode(z, one)).log_prob(row).sum(1) for row, one in zip(x, shifts, strict=True)]
    return torch.stack(rows).logsumexp(1) + (z[1] - z[0]).log()


@pytest.mark.parametrize("likelihood", [0.5, "bernoulli", None])
def test_log_prob_against_quadrature(likelihood):
    """A fixed scale, bits, and bits that are recognised."""
    vae = VAE(last=nn.Sigmoid() if likelihood != 0.5 else None)
    x = torch.randn(6, N) if likelihood == 0.5 else torch.randint(0, 2, (6, N)).double()
    found = vae2aef.log_prob(vae, x, likelihood=likelihood, num_samples=500, seed=0, **SCALE)
    expected = quadrature(vae, x, (lambda mean: Normal(mean, 0.5)) if likelihood == 0.5 else Bernoulli)
    assert ((found.value - expected).abs() < 5 * found.std_error.clamp(max=0.01) + 1e-3).all()
    some = vae2aef.log_prob(vae, x[3:5], likelihood=likelihood, num_samples=500, seed=0, chunk_size=7, **SCALE)
    torch.testing.assert_close(some.value, found.value[3:5])


def residuals(vae: VAE, x: Tensor) -> Tensor:
    """E of (x - f(z))^2 under the posterior, `(batch, N)`, by quadrature."""
    vae = copy.deepcopy(vae).eval()
    u = torch.linspace(-8, 8, 1001)
    weight = Normal(0.0, 1.0).log_prob(u).exp() * (u[1] - u[0])
    with torch.no_grad():
        loc, log_std = vae.encode(x)
        means = torch.stack([vae.decode(loc + log_std.exp() * one) for one in u])
    return torch.einsum("u,ubn->bn", weight, (x - means).square())


@pytest.mark.parametrize("likelihood", [None, "shared"])
def test_a_fitted_scale(likelihood):
    """It is the root mean squared residual under the posterior, and log p(x) that of a Gaussian with it."""
    vae, x = VAE(), torch.randn(60, N) * torch.tensor([0.1, 0.5, 1.0, 2.0, 30.0])
    aef = as_it_is(vae, x, likelihood=likelihood, fit_scale=True, **SCALE)
    squares = residuals(vae, x)
    expected = squares.mean(0).sqrt() if likelihood is None else squares.mean().sqrt().expand(1)
    torch.testing.assert_close(aef.likelihood.scale(), expected, rtol=0.05, atol=0)
    found = vae2aef.log_prob(vae, x, likelihood=likelihood, fit_scale=True, num_samples=300, seed=0, **SCALE)
    true = quadrature(vae, x[:10], lambda mean: Normal(mean, aef.likelihood.scale()))
    assert ((found.value[:10] - true).abs() < 5 * found.std_error[:10].clamp(max=0.05) + 1e-3).all()
    assert not list(p for p in aef.added_parameters() if p.requires_grad)


def test_what_is_not_known_is_refused():
    vae, x = VAE(), torch.rand(20, N)
    with pytest.raises(vae2aef.WrapError, match=r"nobody has trained.*a number of nothing") as caught:
        vae2aef.log_prob(vae, x, **SCALE)
    said = caught.value.fix
    for text in ("likelihood=1.0 for a loss of 0.5 *", "likelihood=0.7071 for the sum", f"={math.sqrt(N / 2):.4g} for",
                 '"decoder"', '"bernoulli"', "fit_scale=True"):  # fmt: skip
        assert text in said
    levels = torch.randint(0, 256, (6, N)) / 255
    for problem, given in {
        "DiscretizedLogistic .* that nobody has trained": {"likelihood": "discretized_logistic"},
        "a flow that nobody has trained": {"likelihood": 1.0, "prior": "coupling"},
        "fits the scale of a Gaussian": {"likelihood": "laplace", "fit_scale": True},
    }.items():
        with pytest.raises(vae2aef.WrapError, match=problem):
            vae2aef.log_prob(vae, levels, **given, **SCALE)
    own = DiscretizedLogistic((N,))  # a module is the user's, who has trained it
    assert vae2aef.log_prob(vae, levels, likelihood=own, num_samples=8, **SCALE).value.isfinite().all()
    assert own.raw_scale.requires_grad


def test_scales_of_losses():
    """The error's three numbers: a loss that is -log p(x | z) up to a constant, whatever x is."""
    x, mean = torch.randn(2, 9), torch.randn(2, 9)
    squares = (x - mean).square().sum(1)
    for loss, scale in ((0.5 * squares, 1.0), (squares, 0.5**0.5), (squares / 9, (9 / 2) ** 0.5)):
        rest = loss + Normal(mean, scale).log_prob(x).sum(1)
        torch.testing.assert_close(rest[0], rest[1])


def test_the_vae_is_left_as_it_was():
    vae, x = VAE().train(), torch.randn(8, N)
    vae.leave.eval()
    vae.enter.weight.grad = torch.ones_like(vae.enter.weight)
    vae.enter.bias.requires_grad_(False)
    before, modes = copy.deepcopy(vae.state_dict()), [m.training for m in vae.modules()]
    state = torch.get_rng_state()
    for given in ({"likelihood": 1.0}, {"fit_scale": True}, {}):
        if given:
            vae2aef.log_prob(vae, x, num_samples=16, seed=3, **given, **SCALE)
        else:
            with pytest.raises(vae2aef.WrapError):
                vae2aef.log_prob(vae, x, **SCALE)
        assert torch.equal(torch.get_rng_state(), state)
        assert [m.training for m in vae.modules()] == modes
        assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())
        assert [p.requires_grad for p in vae.parameters()] == [True, False, True, True, True, True]
        assert vae.enter.weight.grad.eq(1).all() and vae.leave[0].weight.grad is None
    as_it_is(vae, x, fit_scale=True, **SCALE)
    assert torch.equal(torch.get_rng_state(), state)
    optimizer = torch.optim.SGD(vae.parameters(), lr=0.1)  # and no AEF asks it for parameters
    for _ in range(3):
        optimizer.zero_grad()
        vae.decode(vae.encode(x)[0]).sum().backward()
        optimizer.step()


class Conditional(VAE):
    """One that cannot do without its condition."""

    def encode(self, x: Tensor, shift: Tensor) -> tuple[Tensor, ...]:
        return super().encode(x)

    def decode(self, z: Tensor, shift: Tensor) -> Tensor:
        return super().decode(z, shift)


@pytest.mark.slow
def test_conditions_and_an_aef():
    vae, x, shift = Conditional(), torch.randn(4, N), torch.randn(4, 1)
    given = {"likelihood": 0.5, "num_samples": 500, "seed": 0, **SCALE}
    expected = quadrature(vae, x, lambda mean: Normal(mean, 0.5), shift)
    for found in (vae2aef.log_prob(vae, x, shift, **given), vae2aef.log_prob(vae, x, shift=shift, **given)):
        assert ((found.value - expected).abs() < 5 * found.std_error.clamp(max=0.05) + 1e-3).all()
    aef = vae2aef.wrap(VAE(), example=x, core_flow="none", **SCALE).eval()
    ours = vae2aef.log_prob(aef, x, num_samples=50, seed=1)
    assert torch.equal(ours.value, aef.log_prob(x, num_samples=50, seed=1).value)
    with pytest.raises(TypeError, match="an AEF has its likelihood"):
        vae2aef.log_prob(aef, x, likelihood=1.0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ImportWarning")
@pytest.mark.slow
def test_the_page_on_other_libraries():
    """Its blocks run, and its table holds what they measure."""
    pytest.importorskip("pythae")
    text = (Path(__file__).parents[1] / "docs" / "evaluate.md").read_text()
    before, names = torch.get_default_dtype(), {}
    torch.set_default_dtype(torch.float32)
    try:
        for block in re.findall(r"^```python\n(.*?)^```", text, flags=re.M | re.S):
            exec(compile(block, "docs/evaluate.md", "exec"), names)
    finally:
        torch.set_default_dtype(before)
    off = {name: float(value) for name, value in names["off"].items()}
    printed = [float(one.replace("−", "-")) for one in re.findall(r"^\| [^|]* \| ([+−]?[\d.]+) \|$", text, flags=re.M)]
    assert len(printed) == 10 and "vae2aef" in off and len(off) == 12
    for value in off.values():
        assert min(abs(value - one) for one in printed) < 0.03
    assert off["vae2aef"] < 0.05 and off["an untrained AEF of this VAE"] < 0.05 and abs(off["pythae get_nll"]) < 0.05
    assert off["ELBO"] < -0.1 and off["minus the loss"] > 3  # not even a bound
    assert off["a missing -log K"] == pytest.approx(math.log(128) + off["with it"])
    assert names["drawn"] == (100, 100, 1000) and names["drawn_by_scvi"] == 128


# ---------------------------------------------------------------------- the measurements of `evaluate`


class Known(nn.Module):
    """q(z | x) = N(3 x_0, 2^2) N(1, 0.5^2): the second latent is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.leave = nn.Linear(2, N)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        loc = torch.stack([3 * x[:, 0], torch.ones(len(x))], 1)
        return loc, torch.tensor([2.0, 0.5]).log().expand_as(loc)

    def decode(self, z: Tensor) -> Tensor:
        return self.leave(z)


def test_active_units_and_the_aggregate_posterior():
    latents = pytest.importorskip("vae2aef.comparison.latent_use")
    x = torch.randn(4000, N)
    aef = as_it_is(Known(), x, likelihood=1.0, **SCALE)
    state = torch.get_rng_state()
    use = latents.latent_use(aef, x)
    assert torch.equal(torch.get_rng_state(), state)
    assert use.active == 1
    torch.testing.assert_close(use.mean_variance, torch.stack([9 * x[:, 0].var(), torch.tensor(0.0)]))
    std = torch.tensor([13.0**0.5, 0.5])  # 3^2 of the means and 2^2 of the posteriors
    torch.testing.assert_close(use.std, std, rtol=0.04, atol=0)
    torch.testing.assert_close(use.mean, torch.tensor([0.0, 1.0]), rtol=0, atol=0.2)
    kl = torch.distributions.kl_divergence(Normal(use.mean, use.std), Normal(0.0, 1.0)).sum()
    assert use.rate == pytest.approx(float(kl)) and use.by_chance == 2 / 4000
    other = torch.distributions.Independent(Normal(torch.tensor([5.0, 0.0]), torch.tensor([1.0, 3.0])), 1)
    use = latents.latent_use(as_it_is(Known(), x, likelihood=1.0, prior=other, **SCALE), x)
    torch.testing.assert_close(use.prior_mean, torch.tensor([5.0, 0.0]), rtol=0, atol=0.25)
    torch.testing.assert_close(use.prior_std, torch.tensor([1.0, 3.0]), rtol=0.06, atol=0)
    assert math.isnan(use.rate)


def test_the_two_sample_test():
    quality = pytest.importorskip("vae2aef.comparison.sample_quality")
    real = torch.randn(600, 2) @ torch.tensor([[1.0, 0.95], [0.0, 0.3]])
    many = torch.randn(200, 60)  # enough for the network to learn by heart
    same = quality.two_sample(many[:100], many[100:])
    assert abs(same.value - 0.5) < 4 * same.std_error and same.std_error == pytest.approx(0.5 / 200**0.5, rel=0.05)
    assert quality.two_sample(real[:300], real[300:] + 10).value > 0.99
    alone = real[300:].clone()
    alone[:, 1] = alone[torch.randperm(300), 1]  # same means and spreads, no correlation
    assert quality.two_sample(real[:300], alone).value > 0.65
    with pytest.raises(ValueError, match="at least 10"):
        quality.two_sample(real[:9], real)


def test_fid():
    pytest.importorskip("torchmetrics")
    quality = pytest.importorskip("vae2aef.comparison.sample_quality")
    extractor = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())  # the mean of each channel
    real = torch.rand(300, 3, 4, 4)
    assert quality.fid(extractor, real, real) == pytest.approx(0.0, abs=1e-6)
    assert quality.fid(extractor, real * 0.5, real * 0.5 + 0.25) == pytest.approx(3 * 0.25**2, rel=1e-3)
    assert quality.fid(extractor, real[:, :1], real[:, :1]) == pytest.approx(0.0, abs=1e-6)  # grey is made colour
    with pytest.raises(ValueError, match="FID is of images"):
        quality.fid(extractor, real.flatten(1), real.flatten(1))
    with pytest.raises(ValueError, match="it fails on images"):
        quality.fid(nn.Linear(7, 2), real, real)


# ---------------------------------------------------------------------- the command

TINY = """
import torch
from torch import nn

class Tiny(nn.Module):
    def __init__(self, shape, latents):
        super().__init__()
        n = torch.Size(shape).numel()
        self.shape = shape
        self.enter, self.leave = nn.Linear(n, 2 * latents), nn.Linear(latents, n)
    def encode(self, x):
        return self.enter(x.flatten(1)).chunk(2, dim=1)
    def decode(self, z):
        return self.leave(z).sigmoid().reshape(-1, *self.shape)

def make(event_shape, latents):
    return {"vae": Tiny(event_shape, latents), "encoder_scale": "log_var"}

class Counts(Tiny):
    def decode(self, z):
        return torch.distributions.Poisson(self.leave(z).exp().reshape(-1, *self.shape), validate_args=self.checked)

def make_counts(event_shape, latents, checked=True):
    vae = Counts(event_shape, latents)
    vae.checked = checked
    return {"vae": vae, "encoder_scale": "log_var"}

def make_unchecked(event_shape, latents):
    return make_counts(event_shape, latents, False)

def extractor():
    return nn.Flatten()
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working folder, with a VAE and data of the user's own in it; float32, as on the command line."""
    pytest.importorskip("typer")
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "tiny", raising=False)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    (tmp_path / "tiny.py").write_text(TINY)
    random = np.random.RandomState(0)
    np.save("bits.npy", random.randint(0, 2, (100, 6), dtype=np.uint8))
    np.save("grey.npy", random.randint(0, 256, (100, 5, 5), dtype=np.uint8))
    yield tmp_path
    torch.set_default_dtype(before)


def invoke(*args):
    from typer.testing import CliRunner

    from vae2aef.cli import app

    small = ["--vae", "tiny:make", "--latents", "1", "--importance-samples", "64", "--out", "out.json"]
    result = CliRunner().invoke(app, ["evaluate", *small, *args])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.slow
def test_the_command_on_bits_with_weights(folder):
    """Exact bits per dimension; the numbers are those of the weights, and of `vae2aef.log_prob`."""
    from vae2aef.comparison.data import load
    from vae2aef.comparison.factory import load_factory

    torch.manual_seed(5)
    vae = load_factory("tiny:make", "--vae")((6,), 1)["vae"]
    torch.save(vae.state_dict(), "weights.pt")
    code, out, err = invoke("--data", "bits.npy", "--weights", "weights.pt", "--likelihood", "bernoulli")
    assert (code, err) == (0, "")
    found = json.loads((folder / "out.json").read_text())
    assert out.startswith("log p(x) is -") and found["verdict"] in out.replace("\n", " ")
    assert len(found["test"]["log_prob"]) == found["data"]["test"] == 20  # a fifth of the data
    x = load("bits.npy").some_test(0).float()
    ours = vae2aef.log_prob(vae, x, encoder_scale="log_var", num_samples=64, seed=0)
    torch.testing.assert_close(torch.tensor(found["test"]["log_prob"]), ours.value)
    mean = found["log_prob_nats"]["value"]
    assert mean == pytest.approx(np.mean(found["test"]["log_prob"]))
    assert found["bits_per_dim"]["value"] == pytest.approx(-mean / (6 * math.log(2)))
    assert found["log_prob_nats"]["std_error"] == pytest.approx(float(ours.value.std()) / 20**0.5, rel=1e-5)
    assert found["rows_k_above_0.7"] == 0 and abs(found["gap_nats"]["value"]) < 0.05
    assert 30 < found["ess_median"] <= 64 and found["active_units"]["of"] == 1 and "fid" not in found
    assert 0.2 < found["two_sample_control"]["value"] < 0.8 and "as they are" in " ".join(found["notes"])


def test_the_command_on_grey_levels(folder):
    """Dequantised, a fitted scale, FID; a second run gives the same and may overwrite the first."""
    args = ("--data", "grey.npy", "--fit-scale", "--fid-extractor", "tiny:extractor", "--test-limit", "16")
    assert invoke(*args)[0] == 0
    first = json.loads((folder / "out.json").read_text())
    assert "fitted by us to 80 training data" in first["notes"][0] and first["scale_fitted_to"] == 80
    nats, bits = first["log_prob_nats"]["value"], first["bits_per_dim"]["value"]
    assert bits == pytest.approx(-nats / (25 * math.log(2)) + 8) and first["fid"] > 0
    assert 7.5 < bits < 9.5  # uniform noise has 8
    assert 0.04 < first["reconstruction_mse"] < 0.4
    assert invoke(*args)[0] == 0
    again = json.loads((folder / "out.json").read_text())
    assert first == again


@pytest.mark.parametrize("factory", ["make_counts", "make_unchecked"])
def test_a_decoder_s_own_density_of_counts(folder, factory):
    """Whole numbers are handed over as they are."""
    np.save("counts.npy", np.random.RandomState(0).poisson(2.0, (60, 6)).astype(np.uint8))
    code, _, err = invoke("--data", "counts.npy", "--bins", "20", "--vae", f"tiny:{factory}", "--test-limit", "10")
    assert (code, err) == (0, "")
    found = json.loads((folder / "out.json").read_text())
    assert found["bits_per_dim"]["value"] == pytest.approx(-found["log_prob_nats"]["value"] / (6 * math.log(2)))
    assert -18 < found["log_prob_nats"]["value"] < -10 and "own density" in found["notes"][0]


def test_bad_estimates_are_not_praised(folder):
    """An encoder far off, and two draws: the verdict says so, and JSON holds no infinity."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", vae2aef.EstimateWarning)  # which the result says in its own words
        code, out, _ = invoke("--data", "grey.npy", "--likelihood", "0.01", "--importance-samples", "2")
    assert code == 0 and "probably too low" in out and "raise --importance-samples" in out
    found = json.loads((folder / "out.json").read_text())
    assert found["rows_uncertain"] == 20 and found["test"]["std_error"] == [None] * 20


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--data", "grey.npy"], "Pass one of: the scale that the VAE was trained with, --likelihood 1.0"),
        (["--data", "grey.npy", "--likelihood", "bernoulli"], "grey values between them"),
        (["--data", "grey.npy", "--likelihood", "gauss"], "a positive number (the scale of a Gaussian) or one of vae,"),
        (["--data", "grey.npy", "--likelihood", "-1"], "must be a positive number"),
        (["--data", "nowhere.npy"], "no such file or folder: nowhere.npy"),
        (["--data", "grey.npy", "--weights", "tiny.py"], "--weights tiny.py: not a file of tensors"),
        (["--data", "grey.npy", "--weights", "other.pt"], "--weights other.pt: does not fit Tiny"),
        (["--data", "grey.npy", "--vae", "tiny:missing"], "tiny has no missing"),
        (["--data", "grey.npy", "--test-limit", "3"], "--test-limit must be 0 (all) or at least 10"),
        (["--data", "grey.npy", "--fid-extractor", "tiny.py"], "not a TorchScript file"),
        (["--data", "grey.npy", "--fid-extractor", "tiny:none"], "--fid-extractor tiny:none: tiny has no none"),
        (["--data", "grey.npy", "--out", "tiny.py"], "no result of an evaluation"),
        (["--data", "grey.npy", "--out", "no/where.json"], "there is no folder no"),
    ],
)
def test_wrong_input_is_one_line(folder, args, message):
    torch.save({"a": torch.zeros(1)}, "other.pt")
    code, out, err = invoke(*args)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith("error ") and message in err
    assert not (folder / "out.json").exists() and (folder / "tiny.py").read_text() == TINY
