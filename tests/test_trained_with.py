"""The likelihood that a VAE is trained with, read in the code of its class, beside it, or of the script."""

import sys
import types

import pytest
import torch

import vae2aef

CLASS = """
import torch
import torch.nn.functional as F
from torch import nn


class Plain(nn.Module):
    def __init__(self, out=torch.sigmoid):
        super().__init__()
        self.first, self.second, self.out = nn.Linear(6, 4), nn.Linear(2, 6), out

    def forward(self, x):
        mu, logvar = self.first(x).chunk(2, dim=1)
        z = mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)
        return self.out(self.second(z)), mu, logvar
"""
KL = "    return {} - 0.5 * (1 + logvar - mu**2 - logvar.exp()).sum()\n"
FUNCTION = "\ndef {}(out, x, mu, logvar):\n" + KL
CODE = {
    "loss_function": (FUNCTION.format("loss_function", "F.binary_cross_entropy(out, x)"), "bernoulli"),
    "another name": (FUNCTION.format("elbo", "F.binary_cross_entropy(out, x)"), "bernoulli"),
    "a module": (FUNCTION.format("objective", "nn.BCELoss(reduction='sum')(out, x)"), "bernoulli"),
    "bound": ("\ncriterion = nn.BCELoss()\n" + FUNCTION.format("objective", "criterion(out, x)"), "bernoulli"),
    "method": (
        "\n    def training_step(self, x):\n        out, mu, logvar = self(x)\n"
        "        return F.binary_cross_entropy(out, x) + (logvar.exp() - logvar + mu**2).sum()\n",
        "bernoulli",
    ),
    "attribute": (
        "\n    criterion = nn.BCELoss()\n\n    def loss(self, out, x, mu, logvar):\n    "
        + KL.format("self.criterion(out, x)"),
        "bernoulli",
    ),
    "script": (
        "\ndef main(vae, x):\n    out, mu, logvar = vae(x)\n    loss = F.binary_cross_entropy(out, x) + logvar.sum()\n",
        "bernoulli",
    ),
    "mean squares": (FUNCTION.format("loss_function", "F.mse_loss(out, x)"), None),
    "either": (FUNCTION.format("loss_function", "(F.mse_loss if BITS else F.binary_cross_entropy)(out, x)"), None),
    "its own before others": (
        FUNCTION.format("loss_function", "F.mse_loss(out, x)")
        + FUNCTION.format("elbo", "F.binary_cross_entropy(out, x)"),
        None,
    ),
    "a classifier's": ("\ndef score(out, y):\n    return F.binary_cross_entropy(out, y)\n", None),
    "none": ("", None),
}


def made(code: str, monkeypatch: pytest.MonkeyPatch, path=None, name: str = "a_script") -> types.ModuleType:
    """Run code as a module, of a file or typed in."""
    module = types.ModuleType(name)
    if path is not None:
        path.write_text(code)
        module.__file__ = str(path)
    monkeypatch.setitem(sys.modules, name, module)
    exec(compile(code, str(path or "<stdin>"), "exec"), vars(module))
    return module


def name_of(aef: vae2aef.AEF) -> str | None:
    """The name of a Bernoulli; None of the Gaussian that is the default."""
    if isinstance(aef.likelihood, vae2aef.Residual):
        return None
    assert isinstance(aef.likelihood, vae2aef.likelihood.Bernoulli)
    return "bernoulli_logits" if aef.likelihood.logits else "bernoulli"


@pytest.mark.parametrize("typed", [False, True], ids=["file", "typed in"])
@pytest.mark.parametrize("where", CODE)
def test_it_is_found_wherever_it_stands(where, typed, monkeypatch, tmp_path):
    code, likelihood = CODE[where]
    module = made(CLASS + code, monkeypatch, None if typed else tmp_path / "a.py")
    aef = vae2aef.wrap(module.Plain(), example=torch.rand(8, 6))
    assert name_of(aef) == likelihood
    assert ("which its code trains with" in str(aef)) == (likelihood is not None)
    assert ("own prior is not seen" in str(aef)) == (likelihood is not None)
    assert ("own prior and loss are not seen" in str(aef)) == (likelihood is None)


def test_logits_are_told_from_probabilities(monkeypatch):
    code = FUNCTION.format("loss", "F.binary_cross_entropy_with_logits(out, x)")
    module = made(CLASS + code, monkeypatch)
    assert name_of(vae2aef.wrap(module.Plain(nn_identity), example=torch.rand(8, 6))) == "bernoulli_logits"


def nn_identity(x):
    return x


def test_the_script_that_is_run_says_it_of_a_class_of_elsewhere(monkeypatch, tmp_path):
    module = made(CLASS, monkeypatch, tmp_path / "models.py", "models")
    vae, x = module.Plain(), torch.rand(8, 6)
    assert name_of(vae2aef.wrap(vae, example=x)) is None
    script = "import torch.nn.functional as F\n" + FUNCTION.format("elbo", "F.binary_cross_entropy(out, x)")
    made(script, monkeypatch, tmp_path / "train.py", "__main__")
    assert name_of(vae2aef.wrap(vae, example=x)) == "bernoulli"
    losses = made(script, monkeypatch, tmp_path / "losses.py", "losses")
    vars(made("import torch\n", monkeypatch, tmp_path / "main.py", "__main__"))["elbo"] = losses.elbo
    assert name_of(vae2aef.wrap(vae, example=x)) == "bernoulli"


def test_data_that_have_no_cross_entropy_are_not_taken_for_it(monkeypatch):
    module = made(CLASS + CODE["another name"][0], monkeypatch)
    assert name_of(vae2aef.wrap(module.Plain(), example=torch.randn(8, 6))) is None


def test_what_the_user_says_comes_first(monkeypatch):
    module = made(CLASS + CODE["loss_function"][0], monkeypatch)
    aef = vae2aef.wrap(module.Plain(), example=torch.rand(8, 6), likelihood="learned")
    assert name_of(aef) is None
    assert "which its code trains with" not in str(aef)


def test_a_likelihood_that_is_found_and_does_not_fit_says_where_it_is_from(monkeypatch):
    module = made(CLASS + CODE["loss_function"][0], monkeypatch)
    with pytest.raises(
        vae2aef.WrapError, match=r"probabilities \(likelihood bernoulli, which its code trains with\), but"
    ):
        vae2aef.wrap(module.Plain(nn_identity), example=torch.rand(8, 6))


def test_forward_given_is_read_likewise(monkeypatch):
    module = made(CLASS + CODE["another name"][0], monkeypatch)
    vae = module.Plain()
    assert name_of(vae2aef.wrap(vae, example=torch.rand(8, 6), forward=lambda x: vae(x)[0])) == "bernoulli"
