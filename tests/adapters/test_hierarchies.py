"""PyTorch-VAE's LVAE and HVAE, and ladder-vae-pytorch: stand-ins of ours; the real code in `test_hierarchy_checkouts`.

The bridge compares level by level: each z, log p(z), log q(z) and the reconstruction, for the same noise. LVAE and HVAE
train with terms that are no KL to their own priors; these are made again from the adapter's posteriors.
"""

import importlib
from typing import Any

import pytest
import torch
from adapter_images import images
from hierarchy_cases import CASES, LADDERS, Hierarchy, Misread, as_vae, contract, ladder, sampling_contract
from test_untouched import attributes, same
from torch import Tensor, nn

import vae2aef
import vae2aef.testing
from vae2aef.adapters.ladder_vae import mixture_mean
from vae2aef.adapters.pytorch_vae import PyTorchVAEModel

every_case = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
NAMED = {case.name: case for case in CASES}


@pytest.fixture
def double() -> Any:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@every_case
def test_bridge(case: Hierarchy, double: None) -> None:
    contract(case, *as_vae(case))


@every_case
@pytest.mark.parametrize("what", ["posterior", "prior"])
@pytest.mark.parametrize("level", ["z1", "z2"])
def test_bridge_fails_for_a_swapped_scale(case: Hierarchy, what: str, level: str, double: None) -> None:
    if what == "prior" and level == case.levels[0] and "bernoulli" not in case.name:
        pytest.skip("a standard deviation of 1 is its own square")
    vae, aef = as_vae(case)
    aef.parts = Misread(aef.parts, what, level)
    with pytest.raises(AssertionError):
        contract(case, vae, aef, draws=2)


@every_case
def test_sampling(case: Hierarchy, double: None) -> None:
    sampling_contract(case, *as_vae(case))


@every_case
def test_the_whole_map(case: Hierarchy) -> None:
    x = case.data()
    aef = vae2aef.wrap(case.make(), example=x, core_flow="coupling")
    for added in aef.added_parameters():  # a coupling starts as the identity
        nn.init.normal_(added, std=0.1)
    vae2aef.testing.check_jacobian(aef, x)
    vae2aef.testing.check_invertible(aef, x)
    vae2aef.testing.check_gradients(aef, x)


@pytest.mark.slow
@every_case
def test_fifty_steps_on_real_images(case: Hierarchy) -> None:
    data = case.cast(images(case.shape))
    aef = vae2aef.wrap(case.make(), example=data[:16], noise=0.3).train()
    optimizer = torch.optim.Adam(aef.parameters(), lr=2e-3)
    losses = []
    for _ in range(50):
        loss = aef(data[torch.randint(len(data), (16,))])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < sum(losses[:10])
    aef.eval()
    result = aef.log_prob(data[:3], num_samples=8, proposal="tuned")
    assert result.value.isfinite().all() and not result.exact
    assert aef.reconstruct(data[:3]).shape == aef.sample(3, residual=True).shape == (3, *case.shape)


@every_case
@pytest.mark.filterwarnings("ignore:the example holds grey levels")  # residual=1.0 is a Gaussian of them
def test_no_trace(case: Hierarchy) -> None:
    vae, example = case.make().train(), case.data()
    before, state = attributes(vae), {k: v.clone() for k, v in vae.state_dict().items()}
    random = torch.random.get_rng_state()
    aef = vae2aef.wrap(vae, example=example)
    assert aef.vae is vae and vae.training
    after = attributes(vae)
    assert before.keys() == after.keys()
    for key, value in before.items():
        values, now = (v if isinstance(v, tuple) else (v,) for v in (value, after[key]))
        assert all(map(same, values, now)), key
    assert all(torch.equal(value, vae.state_dict()[key]) for key, value in state.items())
    again = torch.random.get_rng_state()
    torch.random.set_rng_state(random)
    vae2aef.wrap(vae, example=example, core="noise", core_flow="none", residual=1.0)
    assert torch.equal(random, torch.random.get_rng_state()), "wrapping drew from torch's generator"
    torch.random.set_rng_state(again)


@every_case
def test_a_scale_that_vanishes_is_floored(case: Hierarchy) -> None:
    vae = case.make()
    with torch.no_grad():
        for name, parameter in vae.named_parameters():
            if any(part in name for part in ("_var", "conv_in_")) and name.endswith("bias"):
                parameter[len(parameter) // 2 if "conv_in_" in name else 0 :] = -200.0  # log variance
    aef = vae2aef.wrap(vae, example=case.data(), core="noise", core_flow="none", kl="sampled").eval()
    terms = aef(case.data(), terms=True)
    assert terms.log_det.isfinite().all() and terms.loss.isfinite()


@pytest.mark.parametrize("name", ["LVAE", "HVAE"])
def test_the_loop_of_pytorch_vae(name: str) -> None:
    x = NAMED[name].data()
    model = PyTorchVAEModel(vae2aef.wrap(NAMED[name].make(), example=x, noise=0.3)).eval()
    torch.manual_seed(0)
    losses = model.loss_function(*model(x, labels=None), M_N=0.00025)
    torch.manual_seed(0)
    torch.testing.assert_close(losses["loss"], model.aef(x))
    assert model.generate(x).shape == model.sample(4, "cpu").shape == x.shape


# ------------------------------------------------------------------ likelihoods of LadderVAE


@pytest.mark.parametrize("name", ["bernoulli", "discr_log", "discr_log_mix"])
def test_other_data_take_the_mean_alone(name: str) -> None:
    """A probability of grey levels is no density of real numbers: the mean is then all there is to take."""
    case = NAMED[f"LadderVAE-{name}"]
    aef = vae2aef.wrap(case.make(), example=torch.rand(4, *case.shape))
    assert aef.residual is not None and "only its mean is used" in repr(aef)
    own = vae2aef.wrap(case.make(), example=case.data())
    assert own.residual is None and "only its mean is used" not in repr(own)
    with pytest.raises(vae2aef.NonFiniteError, match="residual"):
        own(torch.rand(4, *case.shape))


def test_the_mean_of_the_mixture() -> None:
    """Against the average of the codebase's own draws; away from the ends, where it clips them."""
    likelihood = importlib.import_module("models.lvae_likelihoods").DiscretizedLogisticMixLikelihood(2)
    params = 0.3 * torch.randn(1, 40, 2, 2)
    params[:, 4:].unflatten(1, (3, 3, 4))[:, :, 1] -= 3.0  # log scales
    draws = likelihood.sample({"mean": None, "all_params": params.expand(20000, -1, -1, -1)})
    error = draws.std(0) / len(draws) ** 0.5
    assert ((draws.mean(0) - mixture_mean(params)[0]).abs() < 5 * error).all()


# ------------------------------------------------------------------ what is refused, and what is left to others


def test_refusals() -> None:
    options, _ = LADDERS["gaussian"]
    with pytest.raises(vae2aef.WrapError, match=r"made for images of \(6, 7\), and the example is of \(8, 8\)"):
        vae2aef.wrap(ladder(options)(), example=torch.rand(4, 1, 8, 8))
    vae = ladder(options)()
    vae.likelihood = nn.Conv2d(6, 1, 1)
    with pytest.raises(vae2aef.WrapError, match="its likelihood Conv2d may be a density or a probability of anything"):
        vae2aef.wrap(vae, example=torch.rand(4, 1, 6, 7))
    for case in CASES[:3]:
        with pytest.raises(vae2aef.WrapError, match="it takes no conditions"):
            vae2aef.wrap(case.make(), example=(case.data(), {"labels": torch.eye(4)}))


@pytest.mark.parametrize("path", ["models.lvae.LVAE", "models.hvae.HVAE", "models.lvae.LadderVAE"])
def test_a_namesake_is_left_to_others(path: str) -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 4), nn.Linear(2, 6)

        def encode(self, x: Tensor) -> Any:
            return self.a(x).chunk(2, dim=1)

        def decode(self, z: Tensor) -> Tensor:
            return self.b(z)

    Other.__module__, _, Other.__qualname__ = path.rpartition(".")
    aef = vae2aef.wrap(Other(), example=torch.rand(4, 6), encoder_scale="log_var")
    assert list(aef.sites) == ["z"]
