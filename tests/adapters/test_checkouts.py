"""The bridge contract on the real PyTorch-VAE and latent-diffusion, which are on no package registry.

Runs where VAE2AEF_CHECKOUTS names a folder that holds checkouts of them:
    git clone https://github.com/AntixK/PyTorch-VAE; git clone https://github.com/CompVis/latent-diffusion
"""

import importlib
import os
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_cases import Case, Own, compvis_own, pytorch_vae
from test_adapter_bridge import as_vae, contract
from torch import nn

import vae2aef
from vae2aef.adapters.pytorch_vae import PyTorchVAEModel

CHECKOUTS = Path(os.environ.get("VAE2AEF_CHECKOUTS", "/nowhere"))
pytestmark = [
    pytest.mark.usefixtures("float64", "real_packages"),
    pytest.mark.filterwarnings("ignore:invalid escape sequence"),  # in their docstrings
    pytest.mark.skipif(not CHECKOUTS.is_dir(), reason="VAE2AEF_CHECKOUTS names no folder with checkouts"),
]


def package(name: str, folder: Path) -> types.ModuleType:
    """Return a package without running its `__init__`, which imports torchvision."""
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    made = types.ModuleType(name)
    made.__path__ = [str(folder)]
    return made


@pytest.fixture
def real_packages(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put the checkouts in the place of the look-alikes, for one test."""
    for name in list(sys.modules):
        if name.split(".")[0] in ("models", "ldm", "taming"):
            monkeypatch.delitem(sys.modules, name)
    yield
    for name in list(sys.modules):
        if name.split(".")[0] in ("models", "ldm", "taming"):
            del sys.modules[name]


def real_vae(monkeypatch: pytest.MonkeyPatch, module: str, name: str, **options: Any) -> Callable[[], nn.Module]:
    models = package("models", CHECKOUTS / "PyTorch-VAE" / "models")
    monkeypatch.setitem(sys.modules, "models", models)
    models.BaseVAE = importlib.import_module("models.base").BaseVAE  # type: ignore[attr-defined]
    made = getattr(importlib.import_module(f"models.{module}"), name)
    return lambda: made(in_channels=3, latent_dim=4, **options)


TAKEN = {
    "VanillaVAE": ("vanilla_vae", {}),
    "BetaVAE": ("beta_vae", {}),
    "ConditionalVAE": ("cvae", {"num_classes": 3}),
    "IWAE": ("iwae", {"num_samples": 1}),
    "MIWAE": ("miwae", {"num_samples": 1, "num_estimates": 1}),
    "DIPVAE": ("dip_vae", {}),
    "LogCoshVAE": ("logcosh_vae", {}),
}


@pytest.mark.parametrize("name", TAKEN)
def test_bridge_of_pytorch_vae(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, options = TAKEN[name]
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)  # ConditionalVAE makes its labels float32
    build = real_vae(monkeypatch, module, name, **options)
    own = pytorch_vae(module, name)[1]
    if name == "DIPVAE":  # it reports a sum over the batch

        def per_datum(vae: Any, x: torch.Tensor) -> Own:
            out = own(vae, x)
            return out._replace(kl=out.kl / len(x))

        contract_of(Case(name, build, per_datum, (3, 64, 64), symmetric=True))
        return
    contract_of(Case(name, build, own, (3, 64, 64), symmetric=True, classes=options.get("num_classes", 0)))


def test_the_loop_of_pytorch_vae(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real model's own call, `loss_function(*results, M_N=...)["loss"]`, trains it as an AEF."""
    build = real_vae(monkeypatch, "vanilla_vae", "VanillaVAE")
    torch.manual_seed(0)
    x = 2 * torch.rand(8, 3, 64, 64) - 1
    model = PyTorchVAEModel(vae2aef.wrap(build(), example=x, noise=0.3))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(20):
        results = model(x, labels=None)
        loss = model.loss_function(*results, M_N=0.00025)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < sum(losses[:5])


def contract_of(case: Case) -> None:
    contract(case, *as_vae(case))


@pytest.mark.parametrize(
    ("module", "name", "options"),
    [("vq_vae", "VQVAE", {"embedding_dim": 4, "num_embeddings": 4}), ("gamma_vae", "GammaVAE", {}),
     ("cat_vae", "CategoricalVAE", {}), ("joint_vae", "JointVAE", {"categorical_dim": 3}), ("swae", "SWAE", {}),
     ("wae_mmd", "WAE_MMD", {})],
)  # fmt: skip
def test_refusals_of_pytorch_vae(module: str, name: str, options: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    real_vae(monkeypatch, module, name)
    made = getattr(importlib.import_module(f"models.{module}"), name)
    vae = made.__new__(made)  # the adapter goes by the name; some of these cannot be built small
    nn.Module.__init__(vae)
    with pytest.raises(vae2aef.WrapError, match="cannot be wrapped: "):
        vae2aef.wrap(vae, example=torch.rand(2, 3, 64, 64))


def test_bridge_of_latent_diffusion(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("einops")
    lightning = pytest.importorskip("lightning.pytorch")
    root = CHECKOUTS / "latent-diffusion"
    monkeypatch.setitem(sys.modules, "pytorch_lightning", lightning)
    monkeypatch.setitem(sys.modules, "ldm", package("ldm", root / "ldm"))
    for name in ("taming", "taming.modules", "taming.modules.vqvae", "taming.modules.vqvae.quantize"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["taming.modules.vqvae.quantize"].VectorQuantizer2 = nn.Identity  # type: ignore[attr-defined]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = importlib.import_module("ldm.models.autoencoder").AutoencoderKL
    network = {"double_z": True, "z_channels": 2, "resolution": 16, "in_channels": 1, "out_ch": 1, "ch": 32,
               "ch_mult": (1, 2), "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0}  # fmt: skip

    def build() -> nn.Module:
        return made(ddconfig=network, lossconfig={"target": "torch.nn.Identity"}, embed_dim=2)

    contract_of(Case("latent-diffusion", build, compvis_own, (1, 16, 16), symmetric=True))
