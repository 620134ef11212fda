"""NVAE: a stand-in of ours everywhere, the real NVlabs/NVAE, on the CPU, where VAE2AEF_CHECKOUTS has it."""

import copy
import importlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adapter_images import images
from hierarchy_cases import LOG_2PI, Misread, Watch, close, contract, sampling_contract
from hierarchy_contract import trains, untouched
from nvae_cases import (
    CASES,
    TINY,
    Images,
    checkout,
    losses_of,
    on_the_cpu,
    padded,
    pair,
    sample_at,
    stand_in,
)
from torch import Tensor, nn

import vae2aef
from vae2aef import testing
from vae2aef.adapters.nvae_likelihood import Likelihood

pytestmark = [
    pytest.mark.usefixtures("float64", "cpu"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated"),  # in their distributions
    pytest.mark.filterwarnings("ignore:.*saved_variables.*is deprecated"),  # in their swish
]
CIFAR = Path(__file__).parents[3] / "shared/data/cifar10_small.npz"


@pytest.fixture(scope="module")
def cpu() -> Iterator[None]:
    with on_the_cpu():
        yield


either = pytest.mark.parametrize("name", ["stand-in", "real"])


def each(cases: list[Images]) -> Any:
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


@each(CASES)
def test_bridge(case: Images) -> None:
    contract(case, *pair(case))


@each([case for case in CASES if case.name.endswith(("mixture", "normal", "flows"))])
@pytest.mark.parametrize("what", ["posterior", "prior"])
@pytest.mark.parametrize("level", ["z0", "z2"])
def test_bridge_fails_for_a_swapped_scale(case: Images, what: str, level: str) -> None:
    vae, aef = pair(case)
    aef.parts = Misread(aef.parts, what, level)
    with pytest.raises(AssertionError):
        contract(case, vae, aef, draws=2)


@each(CASES)
def test_importance_weights_are_theirs(case: Images) -> None:
    """`log_iw` of one draw, by which their evaluation estimates log p(x): log p(x, z) - log q(z | x)."""
    vae, aef = pair(case)
    x = case.data()
    with torch.no_grad():
        torch.manual_seed(3)
        logits, log_q, log_p, _, _ = vae(x)
        theirs = log_p - log_q - losses_of(vae).reconstruction_loss(vae.decoder_output(logits), x, vae.crop_output)
        torch.manual_seed(3)
        watch = Watch(len(x))
        density = aef.parts.run(watch, aef.parts.infer(x)).density
    log_noise = sum(-0.5 * (level.noise.square() + LOG_2PI).flatten(1).sum(1) for level in watch.levels.values())
    prior = sum(level.prior.log_prob(level.z) for level in watch.levels.values())
    ours = prior + sum(level.log_det for level in watch.levels.values()) - log_noise + density.log_prob(x)
    close(ours, theirs + (x[0].numel() * math.log(2) if case.data_kind == "unit" else 0.0))  # theirs: of 2 x - 1


@each(CASES)
def test_sampling(case: Images) -> None:
    sampling_contract(case, *pair(case))


@each(CASES)
def test_samples_at_their_own_temperature_per_level(case: Images) -> None:
    vae, aef = pair(case)
    temperature = {name: 0.2 + 0.3 * i for i, name in enumerate(aef.sites)}
    torch.manual_seed(5)
    ours = aef.sample(3, temperature=temperature)
    with torch.no_grad():
        torch.manual_seed(5)
        close(ours, sample_at(vae, 3, list(temperature.values())))
        torch.manual_seed(5)
        drawn = aef.sample(3, temperature=temperature, residual=True)
        torch.manual_seed(5)
        close(drawn, sample_at(vae, 3, list(temperature.values()), draw=True))
        assert (drawn >= 0).all() and (drawn <= 1).all() and (drawn != ours).any()


def moved(case: Images) -> vae2aef.AEF:
    """An AEF in which all has an effect: a coupling starts as the identity, and four hidden units may all be dead."""
    vae = case.make()
    for module in vae.modules():
        if type(module).__name__ == "SE":
            nn.init.ones_(module.se[0].bias)
    aef = vae2aef.wrap(vae, example=case.data(), core_flow="coupling")
    for added in aef.added_parameters():
        nn.init.normal_(added, std=0.1)
    with torch.no_grad():
        aef(case.data())  # theirs keep each pass's weights, which cannot be copied while they have a graph
    return aef


@each(TINY)
def test_the_whole_map(case: Images) -> None:
    x, aef = case.data(), moved(case)
    testing.check_jacobian(aef, x)
    testing.check_invertible(aef, x)
    testing.check_gradients(aef, x, ignore=("vae.prior_ftr0",) if len(case.levels) == 1 else ())  # they use it for none


def test_the_whole_map_through_flows_that_change_volumes() -> None:
    """Theirs can, with mixtures of logistics, where `use_mix_log_cdf` is set in their code: by hand here."""
    case = next(case for case in TINY if case.name == "real-tiny-flows")
    aef = moved(case)
    theirs = importlib.import_module("neural_ar_operations").MixLogCDFParam

    class Copied(theirs):
        def forward(self, features: Tensor) -> list[Tensor]:  # views, which they squeeze in place: torch refuses now
            return [value.clone() for value in super().forward(features)]

    for cell in aef.vae.nf_cells:
        for one, mirror in ((cell.cell1, False), (cell.cell2, True)):
            one.use_mix_log_cdf, one.param = True, Copied(2, num_mix=3, num_ftr=one.conv.hidden_dim, mirror=mirror)
    with torch.no_grad():
        state = aef.parts.infer(case.data())
        posterior = aef.parts.posterior(0, state[0])
        assert (posterior.transform(posterior.loc)[1].abs() > 0.1).all()
        aef(case.data())
    testing.check_jacobian(aef, case.data())


@each(CASES)
def test_untouched(case: Images) -> None:
    vae = case.make().train()
    untouched(vae, case.data())
    assert vae2aef.wrap(vae, example=case.data()).vae is vae


@pytest.fixture
def single() -> Iterator[None]:
    torch.set_default_dtype(torch.float32)
    yield
    torch.set_default_dtype(torch.float64)


@pytest.mark.slow
@either
def test_it_trains_on_binary_digits(name: str, single: None) -> None:
    make = stand_in if name == "stand-in" else checkout
    case = make("digits", "padded", size=16, dataset="mnist", num_nf=1)
    trains(case.make(), case.cast(images(case.shape)), steps=40)


@pytest.mark.parametrize(("name", "bits"), [("stand-in", 8), ("real", 8), ("real", 5)])
@pytest.mark.slow
def test_it_trains_on_colour_images(name: str, bits: int, single: None) -> None:
    if not CIFAR.exists():
        pytest.skip(f"the CIFAR-10 subset {CIFAR} is not there")
    make = stand_in if name == "stand-in" else checkout
    case = make("cifar", str(2**bits - 1), size=8, num_x_bits=bits)
    with np.load(CIFAR) as file:
        x = torch.as_tensor(file["x_train"][:256])
    x = x if x.shape[1] == 3 else x.permute(0, 3, 1, 2)
    x = (x[:, :, 12:20, 12:20] // 2 ** (8 - bits)).float() / (2**bits - 1)
    # As their loaders give it: of channels last, oneDNN of torch 2.13 corrupts memory in their 1 x 1 convolutions.
    trains(case.make(), x.contiguous(), steps=40)


def test_their_regularisers_can_be_added() -> None:
    """Of the weights of the pass just made: they get a gradient from the layers that the AEF has run."""
    case = checkout("regularised", "255")
    vae: Any = case.make()
    aef = vae2aef.wrap(vae, example=case.data(), noise=0.3)
    loss = aef(case.data())
    plain = torch.autograd.grad(loss, vae.stem.log_weight_norm, retain_graph=True)[0]
    total = loss + 0.1 * (vae.spectral_norm_parallel() + vae.batchnorm_loss())
    assert (torch.autograd.grad(total, vae.stem.log_weight_norm)[0] != plain).all()


@pytest.mark.parametrize("proposal", [None, "laplace"])
@each([case for case in TINY if case.name.endswith("flows")])
def test_the_marginal_through_flows(case: Images, proposal: str | None) -> None:
    """Flows read features of the datum, of which there are then as many rows as draws; a bound below the estimate."""
    aef, x = pair(case)[1], case.data(2)
    result = aef.log_prob(x, num_samples=32, proposal=proposal)
    bounds = torch.stack([-aef(x).detach() for _ in range(30)])
    assert result.value.mean() > bounds.mean() - 3 * bounds.std() / 30**0.5


# ------------------------------------------------------------------ the likelihood


def mixture(name: str, bits: int, logits: Tensor, rows: int) -> Likelihood:
    """Their mixture of two, of one pixel, for parameters `(20,)`."""
    case = (stand_in if name == "stand-in" else checkout)("pixel", "255", num_x_bits=bits)
    vae: Any = case.make()
    return Likelihood(
        vae.decoder_output(logits.reshape(1, 20, 1, 1).expand(rows, -1, -1, -1).contiguous()), 2**bits - 1, crop=False
    )


@either
def test_probabilities_add_up_to_one(name: str) -> None:
    """Of one pixel of 5 bits, over all its 32^3 colours."""
    levels = torch.arange(32.0) / 31
    colours = torch.cartesian_prod(levels, levels, levels).reshape(-1, 3, 1, 1)
    assert mixture(name, 5, torch.randn(20), 32**3).log_prob(colours).exp().sum().item() == pytest.approx(1, abs=1e-6)


@either
def test_at_eight_bits_a_level_is_counted_twice(name: str) -> None:
    """Level 254 takes in 255, as `assumed` says: of independent channels, one adds up to 1 + p(255)."""
    scale, logits = 0.4, torch.zeros(20)  # both components alike, no channel shifted by another
    logits[2:].reshape(3, 3, 2)[:, 1] = math.log(scale)
    blue = torch.zeros(256, 3, 1, 1)
    blue[:, 2, 0, 0] = torch.arange(256) / 255
    probabilities = mixture(name, 8, logits, 256).log_prob(blue).exp() / sigmoid((1 / 255 - 1) / scale) ** 2
    last = sigmoid((1 / 255 - 1) / scale)
    assert probabilities[-1].item() == pytest.approx(last) and probabilities.sum().item() == pytest.approx(1 + last)


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


@each([case for case in CASES if case.name.endswith("normal")])
def test_a_normal_density_is_one_of_x(case: Images) -> None:
    """Theirs is of 2 x - 1; mean and scale are of x as well, and no dimension is lost."""
    _, aef = pair(case)
    x = case.data()
    decoded = aef.parts.run(Watch(len(x)), aef.parts.infer(x))
    expected = torch.distributions.Normal(decoded.mean, decoded.scale).log_prob(x).flatten(1).sum(1)
    close(decoded.density.log_prob(x), expected)


@each([case for case in CASES if case.name.endswith(("mixture", "5-bits", "binary"))])
def test_other_data_take_the_mean_alone(case: Images) -> None:
    """A probability of grey levels, or one that leaves out a border, is no density of real numbers."""
    vae, own = pair(case)
    assert own.residual is None and "only its mean is used" not in repr(own)
    assert ("level 255 in level 254" in repr(own)) == (case.data_kind == "255")
    assert ("it counts nothing" in repr(own)) == (case.data_kind == "padded")
    for other in [torch.rand(4, *case.shape), case.data() + torch.zeros(1).index_fill(0, torch.tensor(0), 0.3 / 255)]:
        aef = vae2aef.wrap(vae, example=other.clamp(0, 1))
        assert aef.residual is not None and "only its mean is used" in repr(aef)
        with pytest.raises(vae2aef.NonFiniteError, match="residual"):
            own(other.clamp(0, 1))


def test_the_border_counts_nothing() -> None:
    case = stand_in("binary", "padded", size=32, dataset="mnist")
    _, aef = pair(case)
    x = case.data()
    assert x[:, :, 0].eq(0).all() and (x[:, :, 2:30, 2:30] == 1).any()
    for picture in (aef.reconstruct(x), aef.sample(3), aef.sample(3, residual=True)):
        assert (picture[:, :, 2:30, 2:30] != 0).any() and torch.equal(padded(picture), picture)
    x[0, 0, 0, 0] = 1.0
    density = aef.parts.run(vae2aef.chain.Generate(len(x)), None).density
    assert density.log_prob(x)[0] == -math.inf and density.log_prob(x)[1:].isfinite().all()
    assert density.log_prob(x[:0]).shape == (0,)


# ------------------------------------------------------------------ what is refused, and what is left to others


def test_refusals() -> None:
    binary, colour = stand_in("a", "padded", size=32, dataset="mnist"), stand_in("b", "255")
    for case, example, words in (
        (binary, torch.rand(4, 1, 28, 28), r"images of \(1, 32, 32\), and the example is of \(1, 28, 28\). Pad them"),
        (colour, torch.rand(4, 3, 8, 8), r"images of \(3, 4, 4\), and the example is of \(3, 8, 8\). Build it"),
        (colour, 2 * colour.data() - 1, r"its data are in \[0, 1\], and the example ranges from -"),
        (colour, (colour.data(), torch.eye(4)), "it takes no conditions"),
    ):
        with pytest.raises(vae2aef.WrapError, match=words):
            vae2aef.wrap(case.make(), example=example)
    vae: Any = colour.make()
    vae.dataset = "mine"
    with pytest.raises(vae2aef.WrapError, match=r'its decoder_output knows no dataset "mine"\. Add it there'):
        vae2aef.wrap(vae, example=colour.data())
    vae.decoder_output = lambda logits: torch.distributions.Normal(logits, 1.0)
    with pytest.raises(vae2aef.WrapError, match="its likelihood Normal may be a density or a probability of anything"):
        vae2aef.wrap(vae, example=colour.data())


def test_layers_that_are_set_by_their_first_batch() -> None:
    """Of `res_elu`: wrapping would be the first batch, and change the weights. Then they are like others."""
    case = checkout("first-batch", "255", arch="res_elu", use_se=False)
    vae = case.make()
    before = copy.deepcopy(vae.state_dict())
    with pytest.raises(vae2aef.WrapError, match="by the first batch they see, and wrapping would be that batch"):
        vae2aef.wrap(vae, example=case.data())
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())
    for module in vae.modules():
        if hasattr(module, "init_done"):
            module.init_done = True
    contract(case._replace(build=lambda: vae), vae.eval(), vae2aef.wrap(
        vae, example=case.data(), core="noise", core_flow="none", kl="sampled"
    ).eval())  # fmt: skip


def test_another_vae_of_that_name_is_left_to_others() -> None:
    class AutoEncoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder = nn.Linear(6, 4), nn.Linear(2, 6)

        def encode(self, x: Tensor) -> Any:
            return self.encoder(x).chunk(2, dim=1)

        def decode(self, z: Tensor) -> Tensor:
            return self.decoder(z)

    AutoEncoder.__module__ = "model"
    assert list(vae2aef.wrap(AutoEncoder(), example=torch.rand(4, 6), encoder_scale="log_var").sites) == ["z"]
