"""The contract of `test_hierarchies` on the real LVAE, HVAE and LadderVAE, which are on no package registry.

Runs where VAE2AEF_CHECKOUTS names a folder that holds checkouts of them:
    git clone https://github.com/AntixK/PyTorch-VAE; git clone https://github.com/addtt/ladder-vae-pytorch
    git clone https://github.com/addtt/boiler-pytorch
"""

import copy
import importlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from adapter_images import images
from hierarchy_cases import (
    Hierarchy,
    Misread,
    as_vae,
    contract,
    hvae_again,
    hvae_own,
    hvae_sample,
    ladder_case,
    lvae_again,
    lvae_own,
    lvae_sample,
    sampling_contract,
)
from test_checkouts import CHECKOUTS, package
from torch import nn

import vae2aef
import vae2aef.testing
from vae2aef.adapters.ladder_vae import Likelihood

pytestmark = [
    pytest.mark.usefixtures("float64", "real_packages"),
    pytest.mark.filterwarnings("ignore:invalid escape sequence"),  # in their docstrings
    pytest.mark.skipif(not CHECKOUTS.is_dir(), reason="VAE2AEF_CHECKOUTS names no folder with checkouts"),
]
OURS = ("models", "lib", "boilr")


@pytest.fixture
def real_packages(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put the checkouts in the place of the look-alikes, for one test."""
    for name in list(sys.modules):
        if name.split(".")[0] in OURS:
            monkeypatch.delitem(sys.modules, name)
    yield
    for name in list(sys.modules):
        if name.split(".")[0] in OURS:
            del sys.modules[name]


def pytorch_vae(module: str, name: str, options: dict[str, Any]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        models = package("models", CHECKOUTS / "PyTorch-VAE" / "models")
        sys.modules["models"] = models
        models.BaseVAE = importlib.import_module("models.base").BaseVAE  # type: ignore[attr-defined]
        made = getattr(importlib.import_module(f"models.{module}"), name)
        return made(in_channels=3, **copy.deepcopy(options))  # HVAE turns the list that it is given around

    return build


def small_lvae() -> nn.Module:
    """Their classes on images of 8 by 8; the constructor of LVAE makes encoders for 64 alone."""
    vae: Any = pytorch_vae("lvae", "LVAE", {"latent_dims": [3, 2], "hidden_dims": [4, 6]})()
    block = sys.modules["models.lvae"].EncoderBlock
    vae.encoders = nn.Sequential(block(3, 4, 3, 8), block(4, 6, 2, 4))
    return vae


LADDER = {
    "color_ch": 1, "z_dims": [2, 3, 1], "downsample": [0, 1, 1], "img_shape": (13, 14), "n_filters": 6,
    "merge_type": "residual", "res_block_type": "bacdbacd", "likelihood_form": "bernoulli", "dropout": 0.2,
}  # fmt: skip
SMALL = {**LADDER, "z_dims": [2, 1], "downsample": [0, 1], "img_shape": (6, 7)}
RGB = {**SMALL, "color_ch": 3}
LADDERS: dict[str, tuple[dict[str, Any], str]] = {
    "bernoulli": (LADDER, "binary"),
    "skip_and_learned_top": ({**LADDER, "stochastic_skip": True, "learn_top_prior": True}, "binary"),
    "gated_full_size": (
        {**SMALL, "gated": True, "no_initial_downscaling": True, "res_block_type": "bacdbac", "dropout": None},
        "binary",
    ),
    "gaussian_linear": (
        {**SMALL, "merge_type": "linear", "res_block_type": "cabdcabd", "likelihood_form": "gaussian"}, "unit",
    ),
    "analytical_kl": (
        {**SMALL, "analytical_kl": True, "res_block_type": "bacdbac", "likelihood_form": "gaussian",
         "batchnorm": False, "nonlin": "leakyrelu", "free_bits": 0.5}, "unit",
    ),
    "discr_log": ({**RGB, "likelihood_form": "discr_log"}, "grey"),
    "discr_log_mix": ({**RGB, "stochastic_skip": True, "likelihood_form": "discr_log_mix"}, "grey"),
}  # fmt: skip


def ladder(options: dict[str, Any]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        pytest.importorskip("matplotlib", reason="lib.likelihoods imports it")
        root, boilr = CHECKOUTS / "ladder-vae-pytorch", CHECKOUTS / "boiler-pytorch" / "boilr"
        for name, folder in {
            "models": root / "models", "lib": root / "lib", "boilr": boilr, "boilr.utils": boilr / "utils"
        }.items():  # fmt: skip
            sys.modules[name] = package(name, folder)
        sys.modules["boilr.utils"].checkpoints_in_folder = None  # type: ignore[attr-defined]
        return importlib.import_module("models.lvae").LadderVAE(**options)

    return build


LVAE_64 = {"latent_dims": [4, 8, 6, 5, 3], "hidden_dims": [4, 4, 6, 6, 8]}
HVAE_64 = {"latent1_dim": 4, "latent2_dim": 3, "hidden_dims": [4, 4, 6, 6, 512]}
HVAE_8 = {"latent1_dim": 4, "latent2_dim": 3, "hidden_dims": [4, 512], "img_size": 8}
FIVE = ("z5", "z4", "z3", "z2", "z1")
LVAE = (lvae_own, lvae_sample, lvae_again)
HVAE = (hvae_own, hvae_sample, hvae_again)
CASES = [
    Hierarchy(
        "LVAE-64", pytorch_vae("lvae", "LVAE", LVAE_64), *LVAE, (3, 64, 64), levels=("z5", "z4", "z3", "z2", "z1")
    ),
    Hierarchy("LVAE-8", small_lvae, *LVAE, (3, 8, 8)),
    Hierarchy("HVAE-64", pytorch_vae("hvae", "HVAE", HVAE_64), *HVAE, (3, 64, 64)),
    Hierarchy("HVAE-8", pytorch_vae("hvae", "HVAE", HVAE_8), *HVAE, (3, 8, 8)),
    *(ladder_case(name, ladder(options), options, kind) for name, (options, kind) in LADDERS.items()),
]
every_case = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self, *args: self)  # HVAE.sample


@every_case
def test_bridge(case: Hierarchy) -> None:
    contract(case, *as_vae(case))


@every_case
@pytest.mark.parametrize("what", ["posterior", "prior"])
def test_bridge_fails_for_a_swapped_scale(case: Hierarchy, what: str) -> None:
    vae, aef = as_vae(case)
    aef.parts = Misread(aef.parts, what, "z1")
    with pytest.raises(AssertionError):
        contract(case, vae, aef, draws=2)


@every_case
def test_sampling(case: Hierarchy) -> None:
    sampling_contract(case, *as_vae(case))


@every_case
def test_the_whole_map(case: Hierarchy) -> None:
    x = case.data()
    aef = vae2aef.wrap(case.make(), example=x, core_flow="coupling")
    for added in aef.added_parameters():  # a coupling starts as the identity
        nn.init.normal_(added, std=0.1 / case.shape[-1])
    if x[0].numel() < 1000:
        vae2aef.testing.check_jacobian(aef, x)
    vae2aef.testing.check_invertible(aef, x)
    vae2aef.testing.check_gradients(aef, x)


@every_case
def test_fifty_steps_on_real_images(case: Hierarchy) -> None:
    torch.set_default_dtype(torch.float32)
    try:
        data = case.cast(images(case.shape, 64))
        vae = case.make()
        before = {k: v.clone() for k, v in vae.state_dict().items()}
        aef = vae2aef.wrap(vae, example=data[:16], noise=0.3).train()
        assert all(torch.equal(v, before[k]) for k, v in vae.state_dict().items())
        optimizer = torch.optim.Adam(aef.parameters(), lr=2e-4)
        losses = []
        for _ in range(50):
            loss = aef(data[torch.randint(len(data), (16,))])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(aef.parameters(), 200.0)  # as the paper does
            optimizer.step()
            losses.append(loss.item())
        assert sum(losses[-10:]) < sum(losses[:10])
        assert aef.eval().log_prob(data[:3], num_samples=4, proposal="tuned").value.isfinite().all()
        assert aef.sample(3, residual=True).shape == (3, *case.shape)
    finally:
        torch.set_default_dtype(torch.float64)


@pytest.mark.parametrize(("name", "top", "excess"), [("bernoulli", 1, 0.0), ("discr_log", 255, 256e-7)])
def test_probabilities_add_up(name: str, top: int, excess: float) -> None:
    """Over all levels of one pixel; discr_log adds 1e-7 to each, which the documentation says."""
    vae: Any = ladder({**RGB, "color_ch": 1, "likelihood_form": name})().to(torch.float64)
    x = (torch.arange(top + 1) / top).reshape(-1, 1, 1, 1)
    features = torch.randn(1, RGB["n_filters"], 1, 1).expand(top + 1, -1, -1, -1)
    density = Likelihood(vae.likelihood, vae.likelihood.distr_params(features), top)
    assert density.log_prob(x).exp().sum().item() == pytest.approx(1 + excess, abs=1e-9)
