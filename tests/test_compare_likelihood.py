"""`compare --likelihood`: discrete data scored as they are, exact bits, no dequantisation noise anywhere."""

import io
import json
import math

import numpy as np
import pytest
import torch

pytest.importorskip("lightning")
pytest.importorskip("matplotlib")

from rich.console import Console

from vae2aef.comparison.arms import Recipe
from vae2aef.comparison.compare import compare
from vae2aef.comparison.errors import InputError
from vae2aef.comparison.likelihoods import is_discrete, values
from vae2aef.comparison.nets import MLPVAE
from vae2aef.comparison.options import Options
from vae2aef.flows import Identity

pytestmark = pytest.mark.usefixtures("quick_fits", "quick_pictures")
SMALL = {
    "steps": 4, "latents": 2, "core_flow": "none", "importance_samples": 8, "test_limit": 12,
    "vae": "test_compare_likelihood:tiny", "arms": ("vae", "aef"),
}  # fmt: skip
CASES = {
    "discretized_logistic": lambda r: r.randint(0, 256, (60, 6), dtype=np.uint8),
    "bernoulli_logits": lambda r: r.randint(0, 2, (60, 6), dtype=np.uint8),
    "poisson_log": lambda r: r.poisson(30, (60, 6)).clip(0, 255).astype(np.uint8),
}


def tiny(event_shape, latents):
    vae = MLPVAE(event_shape, latents, hidden=6)
    return {"vae": vae, "encoder": vae.encode, "decoder": vae.decode, "encoder_scale": "log_var"}


@pytest.mark.parametrize("name", CASES)
def test_data_are_scored_as_they_are(tmp_path, name):
    x = CASES[name](np.random.RandomState(0))
    np.save(tmp_path / "a.npy", x)
    bins = 2 if "bern" in name else 256
    out, console = tmp_path / "out", Console(file=io.StringIO(), width=200)
    rows = compare(Options(**SMALL, data=str(tmp_path / "a.npy"), likelihood=name, bins=bins), out, console)
    results = json.loads((out / "results.json").read_text())
    said = " ".join(results["protocol"])
    assert "scored as they are" in said and "No preprocessing" in said and "dequantis" not in said
    for row in rows:
        test = json.loads((out / "runs" / f"seed0-{row.arm}" / "result.json").read_text())["test"]["log_prob"]
        assert max(test) < 0  # a probability
        assert row.bits_per_dim == pytest.approx(-np.mean(test) / (6 * math.log(2)))  # and no log2 of the levels
        assert f"{row.arm} {np.mean(test):.2f}".replace("-", "\u2212") in console.file.getvalue()  # in nats


def test_values_on_their_grid():
    x = torch.tensor([[0, 3, 7]], dtype=torch.uint8)
    assert values(x, 8, "discretized_gaussian").tolist() == [[0.0, pytest.approx(3 / 7), 1.0]]
    assert values(x, 8, "poisson").tolist() == [[0.0, 3.0, 7.0]] and values(x, 8, "categorical").dtype == torch.uint8
    assert is_discrete("bernoulli") and not is_discrete("vae") and not is_discrete("laplace")


def test_what_does_not_fit(tmp_path):
    with pytest.raises(InputError, match=r"--likelihood must be one of vae, gaussian.*got gauss"):
        Options(likelihood="gauss")
    np.save(tmp_path / "a.npy", np.random.RandomState(0).randn(60, 6))
    options = Options(**SMALL, data=str(tmp_path / "a.npy"), likelihood="discretized_logistic")
    with pytest.raises(InputError, match=r"is of grey levels, and .* is continuous"):
        compare(options, tmp_path / "out", Console(file=io.StringIO()))
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore:the example holds grey levels")
def test_the_built_in_nets_see_standardised_grey_levels():
    """A preprocessing does it for densities; a discrete likelihood has none."""
    x = torch.randint(0, 256, (50, 6)) / 255
    for likelihood, seen in (("discretized_logistic", True), ("vae", False)):
        recipe = Recipe("mlp", 2, "vae", "none", Identity(), x, likelihood, 256)
        vae = recipe.build("vae", 0).vae
        expected = (x.mean(), x.std(correction=0)) if seen else (torch.zeros(()), torch.ones(()))
        torch.testing.assert_close((vae.center, vae.spread), expected)
