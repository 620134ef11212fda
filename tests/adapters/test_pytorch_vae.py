"""AntixK PyTorch-VAE and its loop. The models are stand-ins of ours (see lookalikes/README.md)."""

import importlib
from typing import Any

import pytest
import torch
from adapter_cases import CASES, Case
from adapter_images import images
from torch import Tensor, nn

import vae2aef
from vae2aef.adapters.pytorch_vae import PyTorchVAEModel

CHOSEN = {case.name: case for case in CASES if case.name.startswith("pytorch_vae")}
VANILLA, CONDITIONAL = CHOSEN["pytorch_vae-Vanilla"], CHOSEN["pytorch_vae-Conditional"]


def data(case: Case, count: int = 256) -> tuple[Tensor, Tensor]:
    """Images and labels, as the loader of that codebase gives them to every model."""
    return images(case.shape, count, symmetric=True), torch.eye(3)[torch.arange(count) % 3]


class Experiment:
    """What VAEXperiment of that codebase does in a step, in our words."""

    def __init__(self, model: Any, weight: float = 0.00025) -> None:
        self.model, self.weight = model, weight
        self.logged: dict[str, float] = {}

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, labels = batch
        results = self.model(x, labels=labels)
        losses = self.model.loss_function(*results, M_N=self.weight, optimizer_idx=0, batch_idx=batch_idx)
        self.logged = {key: value.item() for key, value in losses.items()}
        return losses["loss"]


@pytest.mark.parametrize("name", CHOSEN)
def test_its_loop(name: str) -> None:
    case = CHOSEN[name]
    x, labels = data(case)
    cond = {"labels": labels} if case.classes else {}
    vae = case.make()
    Experiment(vae).training_step((x[:16], labels[:16]), 0).backward()  # the stand-in's own loop runs

    aef = vae2aef.wrap(vae, example=(x, cond) if cond else x, noise=0.3)
    experiment = Experiment(PyTorchVAEModel(aef))
    optimizer = torch.optim.Adam(experiment.model.parameters(), lr=2e-3)
    losses = []
    for step in range(40):
        rows = torch.randint(len(x), (16,))
        loss = experiment.training_step((x[rows], labels[rows]), step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        assert experiment.logged["Reconstruction_Loss"] - experiment.logged["KLD"] == pytest.approx(
            losses[-1], abs=1e-2
        )
    assert sum(losses[-10:]) < sum(losses[:10])
    model = experiment.model.eval()
    assert model.generate(x[:6], labels=labels[:6]).shape == (6, *case.shape)
    assert model.sample(6, x.device, labels=labels[:6]).shape == (6, *case.shape)


def test_the_loss_is_the_aefs_whatever_the_weight() -> None:
    x, labels = data(CONDITIONAL, 8)
    aef = vae2aef.wrap(CONDITIONAL.make(), example=(x, {"labels": labels}), noise=0.0).eval()
    model = PyTorchVAEModel(aef)
    for weight in (0.0, 1.0):
        losses = model.loss_function(*model(x, labels=labels), M_N=weight)
        torch.testing.assert_close(losses["loss"], aef(x, labels=labels))


def test_labels_matter() -> None:
    x, labels = data(CONDITIONAL, 8)
    aef = vae2aef.wrap(CONDITIONAL.make(), example=(x, {"labels": labels})).eval()
    other = labels.roll(1, 0)
    assert not torch.allclose(aef.encode(x, labels=labels), aef.encode(x, labels=other))
    z = torch.randn(8, 4)
    assert not torch.allclose(aef.decode(z, labels=labels), aef.decode(z, labels=other))
    assert aef.log_prob(x, labels=labels, num_samples=4, proposal="tuned").value.isfinite().all()


def test_missing_labels() -> None:
    with pytest.raises(vae2aef.WrapError, match=r'pass example=\(x, \{"labels": one_hot\}\)'):
        vae2aef.wrap(CONDITIONAL.make(), example=data(CONDITIONAL, 4)[0])


def test_refused_with_the_reason() -> None:
    vae = importlib.import_module("models.gamma_vae").GammaVAE()
    with pytest.raises(vae2aef.WrapError, match="posterior is a gamma distribution"):
        vae2aef.wrap(vae, example=data(VANILLA, 4)[0])


def test_a_namesake_is_left_to_others() -> None:
    """`models.base.BaseVAE` is a name that others use too, with a standard deviation as second output."""

    class Other(importlib.import_module("models.base").BaseVAE):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 4), nn.Linear(2, 6)

        def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
            loc, raw = self.a(x).chunk(2, dim=1)
            return loc, nn.functional.softplus(raw)

        def reparameterize(self, loc: Tensor, std: Tensor) -> Tensor:
            return loc + std * torch.randn_like(std)

        def decode(self, z: Tensor) -> Tensor:
            return self.b(z)

    assert "second output std (measured" in repr(vae2aef.wrap(Other(), example=torch.rand(4, 6)))
