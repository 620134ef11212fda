"""The likelihood that a VAE is trained with, read in the code of its class, beside it, or of the script."""

import sys
import types
import warnings

import pytest
import torch

import vae2aef
from vae2aef.wrapping.trained_with import cross_entropy

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
SURE = {
    "loss_function": (FUNCTION.format("loss_function", "F.binary_cross_entropy(out, x)"), "bernoulli"),
    "a module": (FUNCTION.format("loss_function", "nn.BCELoss(reduction='sum')(out, x)"), "bernoulli"),
    "mean squares": (FUNCTION.format("loss_function", "F.mse_loss(out, x)"), None),
    "either": (FUNCTION.format("loss_function", "(F.mse_loss if BITS else F.binary_cross_entropy)(out, x)"), None),
    "a density": (
        FUNCTION.format(
            "loss_function", "torch.distributions.Normal(out, 1).log_prob(x).sum() + F.binary_cross_entropy(out, x)"
        ),
        None,
    ),
    "no VAE's": ("\ndef loss_function(out, y):\n    return F.binary_cross_entropy(out, y)\n", None),
    "none": ("", None),
}
"""Code of the module that `wrap` believes, and what it takes."""

PERHAPS = {
    "another name": FUNCTION.format("elbo", "F.binary_cross_entropy(out, x)"),
    "beside a method of the KL term": "\n    def rate(self, mu, logvar):\n"
    "        return -0.5 * (1 + logvar - mu.pow(2) - logvar.exp()).sum()\n"
    + FUNCTION.format("elbo", "F.binary_cross_entropy(out, x)"),
    "bound": "\ncriterion = nn.BCELoss()\n" + FUNCTION.format("objective", "criterion(out, x)"),
    "method": "\n    def training_step(self, x):\n        out, mu, logvar = self(x)\n"
    "        return F.binary_cross_entropy(out, x) + (logvar.exp() - logvar + mu**2).sum()\n",
    "static method": "\n    @staticmethod\n    def loss(out, x, mu, logvar):\n    "
    + KL.format("F.binary_cross_entropy(out, x)"),
    "attribute": "\n    criterion = nn.BCELoss()\n\n    def loss(self, out, x, mu, logvar):\n    "
    + KL.format("self.criterion(out, x)"),
    "script": "\ndef main(vae, x):\n    out, mu, logvar = vae(x)\n"
    "    loss = F.binary_cross_entropy(out, x) + logvar.sum()\n",
}
"""Code that is named in a warning."""

OTHERS = {
    "a classifier": "\ndef score(out, y):\n    return F.binary_cross_entropy(out, y)\n",
    "a word with kl in it": "\nimport pickle\n\ndef score(out, y):\n    pickle.dumps(1)\n"
    "    return F.binary_cross_entropy(out, y)\n",
    "a discriminator": FUNCTION.format(
        "step", "((out - x) ** 2).sum() + F.binary_cross_entropy(discriminator(out), x)"
    ),
    "a local of the name": "\nloss = nn.BCELoss()\n"
    + FUNCTION.format("step", "((out - x) ** 2).sum()").replace("return", "loss = logvar\n    return loss.sum() +"),
    "two": FUNCTION.format("elbo", "F.binary_cross_entropy(out, x)") + FUNCTION.format("other", "F.mse_loss(out, x)"),
    "its own density": FUNCTION.format("elbo", "F.gaussian_nll_loss(out, x) + F.binary_cross_entropy(out, x)"),
    "broken": FUNCTION.format("elbo", "F.mse_loss(out, x)") + "\n# binary_cross_entropy\n",
}
"""Code of which nothing is said."""


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


def said(vae, x, **options):
    """The AEF, and what `wrap` warns of."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        aef = vae2aef.wrap(vae, example=x, **options)
    return aef, [each.message for each in found if isinstance(each.message, vae2aef.WrapWarning)]


def typed_or_not(monkeypatch, tmp_path, code, typed):
    return made(CLASS + code, monkeypatch, None if typed else tmp_path / "a.py").Plain()


both = pytest.mark.parametrize("typed", [False, True], ids=["file", "typed in"])


@both
@pytest.mark.parametrize("where", SURE)
def test_a_loss_function_beside_the_class_is_believed(where, typed, monkeypatch, tmp_path):
    code, likelihood = SURE[where]
    aef, warned = said(typed_or_not(monkeypatch, tmp_path, code, typed), torch.rand(8, 6))
    assert name_of(aef) == likelihood and warned == []
    assert ("which its code trains with" in str(aef)) == (likelihood is not None)
    assert ("own prior is not seen" in str(aef)) == (likelihood is not None)
    assert ("own prior and loss are not seen" in str(aef)) == (likelihood is None)


@pytest.mark.remedy("code beside {} seems to train it with a cros")
@both
@pytest.mark.parametrize("where", PERHAPS)
def test_other_code_is_named_and_the_line_takes_it(where, typed, monkeypatch, tmp_path):
    vae, x = typed_or_not(monkeypatch, tmp_path, PERHAPS[where], typed), torch.rand(8, 6)
    aef, (message,) = said(vae, x)
    assert name_of(aef) is None and message.fix == 'Pass likelihood="bernoulli"'
    again, warned = said(vae, x, likelihood=message.fix.split('"')[1])
    assert name_of(again) == "bernoulli" and warned == []
    assert said(vae, x, likelihood="learned")[1] == []
    assert said(vae, x, preprocess="logit")[1] == said(vae, x, core="center")[1] == []
    assert said(vae, x - 0.5)[1] == []  # which no cross-entropy takes


@both
@pytest.mark.parametrize("where", OTHERS)
def test_nothing_is_said_of_other_losses(where, typed, monkeypatch, tmp_path):
    aef, warned = said(typed_or_not(monkeypatch, tmp_path, OTHERS[where], typed), torch.rand(8, 6))
    assert name_of(aef) is None and warned == []


def test_logits_are_told_from_probabilities(monkeypatch):
    code = FUNCTION.format("loss_function", "F.binary_cross_entropy_with_logits(out, x)")
    module = made(CLASS + code, monkeypatch)
    assert name_of(vae2aef.wrap(module.Plain(nn_identity), example=torch.rand(8, 6))) == "bernoulli_logits"


def nn_identity(x):
    return x


def test_the_script_that_is_run_says_it_of_a_class_of_elsewhere(monkeypatch, tmp_path):
    module = made(CLASS, monkeypatch, tmp_path / "models.py", "models")
    vae, x = module.Plain(), torch.rand(8, 6)
    assert said(vae, x)[1] == []
    script = "import torch.nn.functional as F\n" + FUNCTION.format("elbo", "F.binary_cross_entropy(out, x)")
    made(script, monkeypatch, tmp_path / "train.py", "__main__")
    assert len(said(vae, x)[1]) == 1
    losses = made(script, monkeypatch, tmp_path / "losses.py", "losses")
    vars(made("import torch\n", monkeypatch, tmp_path / "main.py", "__main__"))["elbo"] = losses.elbo
    assert len(said(vae, x)[1]) == 1


def test_a_loss_function_of_something_else_refuses_nothing(monkeypatch):
    for where in ("no VAE's", "loss_function"):  # the second is of other data than these
        module = made(CLASS + SURE[where][0], monkeypatch)
        assert name_of(vae2aef.wrap(module.Plain(nn_identity), example=torch.randn(8, 6))) is None


@pytest.mark.parametrize(
    "x",
    [torch.randn(8, 6), torch.full((8, 6), float("nan")), torch.zeros(0, 6), torch.zeros(2, 6, dtype=torch.complex64)],
)
@pytest.mark.parametrize("vae", [torch.nn.Linear(2, 2), object(), 3, None, len])
def test_odd_objects_and_data_say_nothing(vae, x):
    assert cross_entropy(vae, x) is None


def test_what_the_user_says_comes_first(monkeypatch):
    module = made(CLASS + SURE["loss_function"][0], monkeypatch)
    aef = vae2aef.wrap(module.Plain(), example=torch.rand(8, 6), likelihood="learned")
    assert name_of(aef) is None
    assert "which its code trains with" not in str(aef)


def test_a_likelihood_that_is_found_and_does_not_fit_says_where_it_is_from(monkeypatch):
    module = made(CLASS + SURE["loss_function"][0], monkeypatch)
    with pytest.raises(
        vae2aef.WrapError, match=r"probabilities \(likelihood bernoulli, which its code trains with\), but"
    ):
        vae2aef.wrap(module.Plain(nn_identity), example=torch.rand(8, 6))


def test_forward_given_is_read_likewise(monkeypatch):
    module = made(CLASS + SURE["loss_function"][0], monkeypatch)
    vae = module.Plain()
    assert name_of(vae2aef.wrap(vae, example=torch.rand(8, 6), forward=lambda x: vae(x)[0])) == "bernoulli"
