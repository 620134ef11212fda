"""The scripts of pytorch/examples and Pyro themselves, run with nothing changed but the loss.

Run where VAE2AEF_CHECKOUTS names a folder that holds checkouts of them:
    git clone https://github.com/pytorch/examples; git clone https://github.com/pyro-ppl/pyro
"""

import os
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import vae2aef

CHECKOUTS = Path(os.environ.get("VAE2AEF_CHECKOUTS", "/nowhere"))
EXAMPLE = torch.linspace(0, 1, 8 * 784).reshape(8, 1, 28, 28)


def images(n: int) -> Tensor:
    """Grey images with something in common, `(n, 1, 28, 28)`."""
    torch.manual_seed(5)
    centre, line = torch.rand(n, 2, 1) * 20 + 4, torch.arange(28.0)
    row, column = torch.exp(-((line - centre) ** 2) / 8).unbind(1)
    return row[:, None, :, None] * column[:, None, None, :]


def source(path: str, changes: dict[str, str]) -> str:
    """Return a script's text with some lines changed; each must be in it once."""
    file = CHECKOUTS / path
    if not file.is_file():
        pytest.skip(f"VAE2AEF_CHECKOUTS names no folder with {path}")
    text = file.read_text()
    for old, new in changes.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def run(text: str, file: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Write a script to a file and run it as a module, in which `vae2aef` and `example` are known."""
    file.write_text(text)
    module = stand_in(file.stem, monkeypatch, vae2aef=vae2aef, example=EXAMPLE, __file__=str(file))
    exec(compile(text, str(file), "exec"), vars(module))
    return module


def stand_in(name: str, monkeypatch: pytest.MonkeyPatch, **contents: Any) -> types.ModuleType:
    """Put a module of a few names in the place of one that is not here."""
    module = types.ModuleType(name)
    vars(module).update(contents)
    monkeypatch.setitem(sys.modules, name, module)
    return module


# ---------------------------------------------------------------------- pytorch/examples

LOSS = """        recon_batch, mu, logvar = model(data)
        loss = loss_function(recon_batch, data, mu, logvar)
"""
OPTIMIZER = "optimizer = optim.Adam(model.parameters(), lr=1e-3)\n"


def pytorch_example(monkeypatch: pytest.MonkeyPatch, folder: Path, options: str | None) -> Any:
    """Train it for three epochs with its own loss (None), or as an AEF of these options."""
    pairs = [(image, 0) for image in images(96)]
    names = {"MNIST": lambda *args, **kwargs: pairs, "ToTensor": lambda: None}
    stand_in(
        "torchvision", monkeypatch, datasets=types.SimpleNamespace(**names), transforms=types.SimpleNamespace(**names)
    )
    stand_in("torchvision.utils", monkeypatch, save_image=None)
    monkeypatch.setattr(sys, "argv", ["main.py", "--no-accel", "--batch-size", "32"])
    changes = {}
    if options is not None:
        wrapped = f"aef = vae2aef.wrap(model, example=example, {options})\n"
        changes = {LOSS: "        loss = len(data) * aef(data)\n"}
        changes[OPTIMIZER] = wrapped + OPTIMIZER.replace("model", "aef")
    module = run(source("examples/vae/main.py", changes), folder / "real_main.py", monkeypatch)
    for epoch in range(1, 4):
        module.train(epoch)
    return module


def test_the_pytorch_example_is_the_same_with_the_loss_of_its_vae(monkeypatch, tmp_path):
    """core="noise" is the VAE: the same steps lead to the same weights. Its cross-entropy of grey values is kept."""
    theirs = pytorch_example(monkeypatch, tmp_path, None).model
    ours = pytorch_example(monkeypatch, tmp_path, 'core="noise", core_flow="none"')
    assert "cross-entropy" in repr(ours.aef)
    start = run(source("examples/vae/main.py", {}), tmp_path / "untrained.py", monkeypatch).model
    for name, weight in theirs.state_dict().items():
        torch.testing.assert_close(ours.model.state_dict()[name], weight, rtol=1e-3, atol=1e-5)
        assert (weight - start.state_dict()[name]).abs().max() > 1e-3


def test_the_pytorch_example_trains_as_an_aef(monkeypatch, tmp_path, capsys):
    module = pytorch_example(monkeypatch, tmp_path, "noise=0.3")
    averages = [float(line.split()[-1]) for line in capsys.readouterr().out.splitlines() if "Average loss" in line]
    assert len(averages) == 3 and averages[2] < 0.8 * averages[0]
    assert module.aef.log_prob(images(8).bernoulli(), num_samples=32).value.isfinite().all()


# ---------------------------------------------------------------------- Pyro


def pyro_vae(monkeypatch: pytest.MonkeyPatch, folder: Path, elbo: str) -> tuple[Any, list[float]]:
    """Run its `main` for three epochs; return the trained VAE and the average losses."""
    pyro = pytest.importorskip("pyro")
    monkeypatch.setitem(sys.modules, "visdom", types.ModuleType("visdom"))
    batches = [(batch, 0) for batch in images(128).bernoulli().split(32)]

    class Loader(list):
        dataset = range(128)

    stand_in("utils", monkeypatch)
    stand_in(
        "utils.mnist_cached", monkeypatch, MNISTCached=None,
        setup_data_loaders=lambda *args, **kwargs: (Loader(batches), Loader(batches)),
    )  # fmt: skip
    stand_in("utils.vae_plots", monkeypatch, mnist_test_tsne=None, plot_llk=lambda *a: None, plot_vae_samples=None)
    text = source("pyro/examples/vae/vae.py", {"else Trace_ELBO()": f"else {elbo}"})
    module = run(text, folder / "real_vae.py", monkeypatch)
    told: list[str] = []
    vars(module)["print"] = told.append
    torch.manual_seed(0)
    pyro.set_rng_seed(0)
    vae = module.main(
        types.SimpleNamespace(
            cuda=False, learning_rate=1e-3, jit=False, visdom_flag=False, num_epochs=3, test_frequency=1, tsne_iter=99
        )
    )
    return vae, [float(line.split()[-1]) for line in told if "training loss" in line]


@pytest.mark.parametrize("elbo", ["vae2aef.AEF_ELBO()", 'vae2aef.AEF_ELBO(core="noise", core_flow="none")'])
def test_the_real_pyro_vae_with_the_loss_swapped(elbo, monkeypatch, tmp_path):
    """Its Bernoulli is kept as it is: probabilities of bits are below 1, and so the loss of the VAE is positive."""
    vae, losses = pyro_vae(monkeypatch, tmp_path, elbo)
    plain, theirs = pyro_vae(monkeypatch, tmp_path, "Trace_ELBO()")
    assert losses[2] < 0.8 * losses[0]
    if "noise" in elbo:  # the same VAE but for the noise in one term
        assert losses == pytest.approx(theirs, rel=0.05)
    x = images(8).bernoulli()
    for trained in (vae, plain):
        aef = vae2aef.from_pyro(trained.model, trained.guide, x, core="noise", core_flow="none")
        assert aef.discrete
        assert (aef.log_prob(x, num_samples=64).value < 0).all()
