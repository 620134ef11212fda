"""sigma if nobody says: 0.3, by docs/results.md; what stays deterministic, and a warning of the riskiest corner."""

import re
import warnings

import pytest
import torch
from strategies import OwnFeatures
from test_forward_parity import followed
from torch import Tensor, nn
from torch.distributions import Normal
from zoo_core import ConditionalPrior, LinearGaussianVAE, SmallVAE
from zoo_hierarchy import TwoLevels

import vae2aef
from vae2aef.comparison.arms import Recipe
from vae2aef.core import DEFAULT_NOISE
from vae2aef.features import NoFeatures
from vae2aef.flows import Chain, Identity
from vae2aef.wrapping.sigma import SAID

N, D = 6, 2


def example() -> Tensor:
    return torch.rand(32, N)


def small(x: Tensor | None = None, vae: nn.Module | None = None, **options) -> vae2aef.AEF:
    x = example() if x is None else x
    return vae2aef.wrap(vae or SmallVAE((N,), (D,)), example=x, encoder_scale="log_std", **options)


# ---------------------------------------------------------------------- what it is


MASK = torch.arange(N) < D


@pytest.mark.parametrize(
    ("core", "sigma"),
    [
        ("linear", 0.3), ("normalized", 0.3), (OwnFeatures((N,), (D,)), 0.3), ("noise", 1.0), (NoFeatures((D,)), 1.0),
        ("center", 0.0), ("corner", 0.0), ("random", 0.0), (MASK, 0.0), (MASK.numpy(), 0.0),
    ],
)  # fmt: skip
def test_each_family_has_its_own(core, sigma):
    if isinstance(core, torch.nn.Module):  # made when the tests were collected
        core = core.to(torch.get_default_dtype())
    for options in ({}, {"noise": None}):
        aef = small(core=core, **options)
        assert aef.noise == sigma and aef.core.exact == (sigma == 0)


@pytest.mark.parametrize(("core", "flow"), [(None, Identity), ("noise", Identity), ("center", Chain), (MASK, Chain)])
def test_each_family_has_a_core_flow_of_its_own(core, flow):
    """None in the expanded family; in the partition family the core has no other map."""
    for options in ({}, {"core_flow": None}):
        aef = small(core=core, **options)
        assert type(aef.core_flow) is flow
        assert f"core flow {'none' if flow is Identity else 'coupling'}" in repr(aef)
    assert type(small(core_flow="coupling").core_flow) is Chain
    assert type(small(core="center", core_flow="none").core_flow) is Identity
    assert {type(one) for one in vae2aef.wrap(TwoLevels(), example=torch.randn(6, 4)).core_flow.values()} == {Identity}


def test_weights_with_a_core_flow_say_which_option_to_pass():
    with_flow = small(core_flow="coupling").state_dict()
    old = {key.replace("sites.z.flow.", "core_flow."): value for key, value in with_flow.items()}
    for state in (with_flow, old):
        with pytest.raises(RuntimeError, match=r"(?s)Unexpected key.*the core flows differ: pass core_flow= to wrap"):
            small().load_state_dict(dict(state))
    with pytest.raises(RuntimeError, match=r"(?s)Missing key.*the core flows differ"):
        small(core_flow="coupling").load_state_dict(small().state_dict())
    broken = {key: value for key, value in old.items() if key != "vae.mean.weight"} | {
        "vae.flow.2.weight": torch.ones(1)
    }
    for aef, state in ((small(), {}), (small(core_flow="coupling"), broken)):  # other things that do not fit
        with pytest.raises(RuntimeError) as caught:
            aef.load_state_dict(state)
        assert "core flows differ" not in str(caught.value)
    assert small().load_state_dict(with_flow, strict=False).unexpected_keys


def test_the_noise_of_the_vae_itself_stays_one():
    """In the setter as in `wrap`; a number for all leaves such a latent out."""
    aef = small(core="noise")
    for value in (0.0, 0.5, {"z": 0.3}):
        with pytest.raises(ValueError, match='core="noise" is the VAE itself, whose noise is 1'):
            aef.noise = value
    aef.noise = 1.0
    two = vae2aef.wrap(TwoLevels(), example=torch.randn(6, 4), core={"z1": "linear", "z2": "noise"})
    two.noise = 0.1
    assert two.noise == {"z1": 0.1, "z2": 1.0}
    with pytest.raises(ValueError, match="whose noise is 1"):
        two.noise = {"z2": 0.5}
    with pytest.raises(TypeError, match=r"set aef\.site\(name\)\.core"):
        two.core = two.site("z1").core


def test_it_is_a_name_to_import():
    assert DEFAULT_NOISE == 0.3
    assert small().noise == DEFAULT_NOISE


def test_each_of_several_latents_has_that_of_its_core():
    x = torch.randn(6, 4)
    assert vae2aef.wrap(TwoLevels(), example=x).noise == 0.3
    assert vae2aef.wrap(TwoLevels(), example=x, core={"z1": "linear", "z2": "noise"}).noise == {"z1": 0.3, "z2": 1.0}


def test_what_is_given_is_taken():
    assert small(noise=0.5).noise == 0.5
    assert small(noise=0).noise == 0
    with pytest.raises(TypeError, match="or None for the default, got 'much'"):
        small(noise="much")


def test_print_says_sigma_and_that_it_is_the_default():
    said = "noise: sigma = 0.3 (the default; noise=0 is the paper's loss)"
    aef = small()
    assert said in repr(aef)
    aef.noise = 0.1
    assert repr(aef).endswith("noise: sigma = 0.1")
    for options, sigma in (({"noise": 0}, 0), ({"core": "noise"}, 1), ({"core": "center"}, 0)):
        assert repr(small(**options)).endswith(f"noise: sigma = {sigma}")
    several = repr(vae2aef.wrap(TwoLevels(), example=torch.randn(6, 4), core={"z1": "linear", "z2": "noise"}))
    assert "sigma = " in several and "z1 0.3 (the default" in several and "z2 1" in several


# ---------------------------------------------------------------------- what it does


def test_the_loss_draws_and_nothing_else_does():
    x = example()
    aef = small(x)
    assert not torch.equal(aef(x), aef(x))
    assert torch.equal(aef.encode(x), aef.encode(x)) and torch.equal(aef.reconstruct(x), aef.reconstruct(x))
    still = small(x, aef.vae, core=aef.core.features, core_flow=aef.core_flow, noise=0)
    assert torch.equal(aef.encode(x), still.encode(x))


@pytest.mark.parametrize("core_flow", ["none", "coupling"])
def test_noise_0_is_the_loss_of_the_paper(core_flow):
    """Eq. 10 by hand, and the same at every call."""
    x = example()
    aef = small(x, core_flow=core_flow, residual=0.7, noise=0)
    loc, log_std = aef.vae.encoder(x)
    u, log_det = aef.core_flow(aef.core.features(x))
    z = loc + log_std.exp() * u
    log_p = Normal(0.0, 1.0).log_prob(z).sum(1) + Normal(aef.vae.decoder(z), 0.7).log_prob(x).sum(1)
    torch.testing.assert_close(aef(x), -(log_p + log_std.sum(1) + log_det).mean())
    assert torch.equal(aef(x), aef(x))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("core_flow", ["none", "coupling"])
def test_the_loss_is_a_bound(core_flow):
    """Above -log p(x), which is known, at random weights; and equal to it where the posterior is exact."""
    vae, x = LinearGaussianVAE(4, D, orthogonal=True), torch.randn(40, 4)
    options = {"encoder_scale": "std", "core_flow": core_flow, "likelihood": 0.6}
    aef = vae2aef.wrap(vae, example=x, **options)
    assert aef.noise == 0.3
    truth = -vae.log_marginal(x, 0.6).mean()

    def loss() -> Tensor:
        with torch.no_grad():
            return aef(x.repeat(500, 1))

    assert loss() > truth + 0.5
    vae.use_exact_posterior(0.6)
    aef = vae2aef.wrap(vae, example=x, **options, start="exact")
    assert abs(loss() - truth) < 0.03  # without the entropy of the noise it would be 0.43 lower


# ---------------------------------------------------------------------- the riskiest corner


class OwnDensity(nn.Module):
    """p0(z) with a scale that is learned."""

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(D))

    def log_prob(self, z: Tensor) -> Tensor:
        return Normal(0.0, self.log_scale.exp()).log_prob(z).sum(1)

    def sample(self, n: int) -> Tensor:
        return self.log_scale.exp() * torch.randn(n, D)


class WithDensity(SmallVAE):
    """A VAE that holds the parameters of its prior, and has it by a method."""

    def __init__(self) -> None:
        super().__init__((N,), (D,))
        self.density = OwnDensity()

    def log_p(self, z: Tensor) -> Tensor:
        return self.density.log_prob(z)


def flow_prior(frozen: bool = False) -> vae2aef.FlowPrior:
    prior = vae2aef.FlowPrior(vae2aef.AffineCoupling(D), (D,))
    return prior.requires_grad_(not frozen)


def one_latent(**options):
    vae = WithDensity()
    own = {"own method": vae.log_p, "own module": vae.density}
    prior = options.pop("prior", None)
    prior = own.get(prior, prior) if isinstance(prior, str) else prior
    return {"vae": vae, "example": example(), "encoder_scale": "log_std", "prior": prior, **options}


def conditional(**options):
    return {"vae": SmallVAE((N,), (D,), classes=2), "example": (example(), torch.rand(32, 2)), "encoder_scale":
            "log_std", "prior": ConditionalPrior(2, D), **options}  # fmt: skip


def two_levels(**options):
    return {"vae": TwoLevels(), "example": torch.randn(6, 4), **options}


def frozen_levels(**options):
    vae = TwoLevels()
    vae.prior_lower.requires_grad_(False)
    return {"vae": vae, "example": torch.randn(6, 4), **options}


LEARNED = {
    "coupling": lambda: one_latent(prior="coupling"),
    "maf, own h": lambda: one_latent(prior="maf", core=OwnFeatures((N,), (D,)), core_flow="none"),
    "a flow of one's own": lambda: one_latent(prior=flow_prior()),
    "a method of the VAE": lambda: one_latent(prior="own method"),
    "a module of the VAE": lambda: one_latent(prior="own module"),
    "of conditions": conditional,
    "of the latent above": two_levels,
}
FIXED = {
    "standard normal": lambda: one_latent(vae=SmallVAE((N,), (D,))),
    "a distribution": lambda: one_latent(prior=Normal(torch.ones(D), 2.0)),
    "a frozen flow": lambda: one_latent(prior=flow_prior(frozen=True)),
    "a frozen level": frozen_levels,
    "a partition": lambda: one_latent(prior="coupling", core="center"),
    "the VAE itself": lambda: one_latent(prior="coupling", core="noise"),
}


@pytest.mark.remedy("{}: the riskiest corner")
@pytest.mark.parametrize("case", LEARNED)
def test_no_noise_and_a_learned_prior_are_warned_of_and_the_line_works(case):
    options = LEARNED[case]()
    vae, x = options.pop("vae"), options.pop("example")
    with pytest.warns(vae2aef.WrapWarning, match=re.escape(SAID)) as warned:
        vae2aef.wrap(vae, example=x, noise=0, **options)
    assert len(warned) == 1 and warned[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        aef = followed(warned[0].message, vae, x, noise=0, **options)
        assert aef.noise == 0.3
        assert aef(*(x if isinstance(x, tuple) else (x,))).isfinite()
        assert vae2aef.wrap(vae, example=x, **options).noise == 0.3  # by default nobody is warned


@pytest.mark.parametrize("case", FIXED)
def test_what_is_no_risk_is_not_warned_of(case):
    options = FIXED[case]()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert vae2aef.wrap(options.pop("vae"), noise=0, **options)(options["example"]).isfinite()


def test_the_warning_leaves_the_random_state_and_gradients():
    states = []
    for noise in (0, 0.3):
        torch.manual_seed(3)
        options = one_latent(prior="coupling", noise=noise)
        vae = options["vae"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            aef = vae2aef.wrap(**{**options, "vae": vae})
        states.append(torch.get_rng_state())
        assert all(p.grad is None for p in aef.parameters())
    assert torch.equal(*states)


def test_a_pyro_model_with_a_learned_prior():
    pyro = pytest.importorskip("pyro")
    dist = pyro.distributions
    encoder, decoder, centre = nn.Linear(N, 2 * D), nn.Linear(D, N), nn.Linear(1, D)

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        loc = pyro.module("centre", centre)(torch.ones(1)) if learned else torch.zeros(D)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(loc, torch.ones(D)).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            loc, raw = encoder(x).chunk(2, 1)
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))

    pyro.clear_param_store()
    learned = True
    with pytest.warns(vae2aef.WrapWarning, match=re.escape(SAID)):
        vae2aef.from_pyro(model, guide, example(), noise=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert vae2aef.from_pyro(model, guide, example()).noise == 0.3
        learned = False
        pyro.clear_param_store()
        vae2aef.from_pyro(model, guide, example(), noise=0)


def test_check_says_it_too_and_compare_does_not():
    options = one_latent(prior="coupling", noise=0)
    report = vae2aef.check(options.pop("vae"), **options)
    assert any(SAID in f.message and f.fix == "Pass noise=0.3" for f in report.findings)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        recipe = Recipe("mlp", D, "coupling", "coupling", Identity(), torch.rand(4, 1, 4, 4))
        assert recipe.build("aef", 0).noise == 0
