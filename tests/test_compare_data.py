"""What compare makes of data: conditions, notes, one call of the factory, draws beside means."""

import io
import json
import re
import time

import numpy as np
import pytest
import torch

pytest.importorskip("lightning")
pytest.importorskip("typer")

from rich.console import Console
from torch import nn

from vae2aef.comparison.arms import Recipe
from vae2aef.comparison.compare import compare
from vae2aef.comparison.conditions import read_conditions
from vae2aef.comparison.data import load
from vae2aef.comparison.errors import InputError
from vae2aef.comparison.nets import MLPVAE
from vae2aef.comparison.options import Options
from vae2aef.flows import Identity

pytestmark = pytest.mark.usefixtures("quick_fits", "quick_pictures")
SMALL = {"steps": 4, "latents": 2, "core_flow": "none", "importance_samples": 8, "test_limit": 12}
RNG = np.random.RandomState(0)
CALLS = []


class Conditional(nn.Module):
    """Encoder and decoder are told a one-hot label, and the decoder uses nothing else."""

    def __init__(self, event_shape, classes):
        super().__init__()
        self.q, self.p = nn.Linear(event_shape[0] + classes, 4), nn.Linear(classes, event_shape[0])
        self.latent = nn.Linear(2, event_shape[0])

    def encode(self, x, y):
        return self.q(torch.cat([x, y], 1)).chunk(2, 1)

    def decode(self, z, y):
        return self.p(y) + 1e-3 * self.latent(z)


def conditional(event_shape, classes):
    vae = Conditional(event_shape, classes)
    return {"vae": vae, "encoder": vae.encode, "decoder": vae.decode, "encoder_scale": "log_var"}


def counted(event_shape, latents):
    CALLS.append(torch.initial_seed())
    vae = MLPVAE(event_shape, latents, hidden=6)
    return {"vae": vae, "encoder": vae.encode, "decoder": vae.decode, "encoder_scale": "log_var"}


def run(folder, **options):
    console = Console(file=io.StringIO(), width=200)
    rows = compare(Options(**{**SMALL, **options}), folder / "out", console)
    return rows, console.file.getvalue(), json.loads((folder / "out" / "results.json").read_text())


@pytest.fixture
def labelled(tmp_path):
    """Data that the label says nearly all of."""
    y = RNG.randint(0, 3, 400)
    x = np.array([-2.0, 0.0, 2.0])[y][:, None] + 0.05 * RNG.randn(400, 3)
    np.savez(tmp_path / "l.npz", x_train=x[:300], y_train=y[:300], x_test=x[300:], y_test=y[300:])
    return str(tmp_path / "l.npz")


@pytest.mark.slow
def test_conditions_reach_the_vae_with_their_own_rows(tmp_path, labelled):
    """Told the label of each datum, the VAE explains the data; told that of another, it could not."""
    options = {"data": labelled, "vae": "test_compare_data:conditional", "preprocess": "standardize", "arms": ("vae",)}
    rows, said, found = run(tmp_path, condition="one_hot", steps=400, lr=3e-2, **options)
    assert rows[0].bits_per_dim < -1.0  # uniform over the three values: log2 of their spread is above 1
    assert "labels of 3 classes" not in said and found["options"]["condition"] == "one_hot"


def test_conditions_that_are_not_there(tmp_path, labelled):
    with pytest.raises(InputError, match="photographs holds no labels; expected y_train"):
        run(tmp_path, condition="labels", vae="test_compare_data:conditional")
    np.savez(tmp_path / "n.npz", x=RNG.rand(40, 3), y=np.where(RNG.rand(40) < 0.5, 1.0, np.nan))
    with pytest.raises(InputError, match=r"holds no labels; .*labels are left out: those of the data are missing in"):
        run(tmp_path, condition="labels", vae="test_compare_data:conditional", data=str(tmp_path / "n.npz"))
    with pytest.raises(InputError, match="mlp takes no conditions; give a conditional VAE"):
        run(tmp_path, condition="labels", data=labelled, preprocess="standardize")


def test_conditions_follow_the_data(tmp_path, labelled):
    data = load(labelled)
    known = read_conditions(data, Options(data=labelled, vae="a:b", condition="labels", test_limit=20))
    parts = zip((*data.split_validation(), data.some_test(20)), known, strict=True)
    assert all(torch.equal((x.mean(1) / 2 + 1).round().long(), y) for x, (y,) in parts)


@pytest.mark.slow
def test_the_factory_is_called_once_a_seed(tmp_path):
    CALLS.clear()
    run(tmp_path, vae="test_compare_data:counted", seeds=2)
    assert CALLS == [0, 1]


def slow(event_shape, latents):
    time.sleep(0.5)
    return counted(event_shape, latents)


def failing(event_shape):
    time.sleep(0.5)
    raise ZeroDivisionError


def test_what_is_done_first_is_said_while_it_lasts(tmp_path):
    """On a terminal, also before an error; where output is kept, one line with the seconds of each step."""
    for name in ("slow", "failing"):
        console = Console(file=io.StringIO(), force_terminal=True, width=200)
        options = Options(**SMALL, vae=f"test_compare_data:{name}", arms=("vae",))
        if name == "slow":
            compare(options, tmp_path / name, console)
        else:
            with pytest.raises(InputError, match="calling the factory failed"):
                compare(options, tmp_path / name, console)
        shown = console.file.getvalue()
        assert shown.index("calling test_compare_data") < shown.index("\x1b[?25h")  # the cursor is back
    _, said, _ = run(tmp_path, vae="test_compare_data:slow", arms=("vae",))
    (line,) = [line for line in said.splitlines() if line.startswith("importing test_compare_data:slow: ")]
    assert re.fullmatch(
        r"importing \S+: \d+\.\d s, reading photographs: \d+\.\d s, calling \S+: 0\.[5-9] s, a loss of every arm: "
        r"\d+\.\d s", line
    )  # fmt: skip
    assert "\x1b" not in said


def test_arms_share_their_first_weights_and_nothing_else():
    x = torch.randn(20, 5)
    recipe = Recipe("test_compare_data:counted", 2, "vae", "coupling", Identity(), x)
    made = {arm: recipe.build(arm, 3) for arm in ("vae", "aef", "aef-noise", "vae+features")}
    states = {arm: aef.state_dict() for arm, aef in made.items()}
    for name, value in states["vae"].items():
        if name.startswith("vae."):
            assert all(torch.equal(value, state[name]) for state in states.values())
            assert len({state[name].data_ptr() for state in states.values()}) == 4
    with torch.no_grad():
        for p in made["aef"].parameters():
            p.add_(1.0)
    again = recipe.build("aef-noise", 3).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in states["aef-noise"].items())


def test_notes_of_data_latents_and_bits(tmp_path, labelled):
    _, said, found = run(tmp_path, vae="test_compare_data:counted", latents=70, arms=("vae",), lr=1e-6)
    for note in (
        "test_compare_data:counted is trained on scikit-learn's, not on yours",
        "70 latent variables for data of 64",
    ):
        assert note in said and any(note in one for one in found["notes"])
    _, said, _ = run(tmp_path / "b", data=labelled, preprocess="standardize", arms=("vae",))
    assert "labels of 3 classes are there and not used" in said and "trained on" not in said
    assert "latent variables for" not in said


def test_a_result_worse_than_uniform_is_named(tmp_path):
    x = RNG.randint(0, 256, (60, 4)).astype(np.uint8)
    np.save(tmp_path / "a.npy", x)
    _, said, _ = run(tmp_path, data=str(tmp_path / "a.npy"), arms=("vae",), likelihood="poisson_log", steps=1)
    assert "worse than uniform noise, which has 8 bits per dimension: vae " in said


def test_draws_are_kept_beside_the_means(tmp_path):
    run(tmp_path, vae="test_compare_data:counted", arms=("vae",))
    with np.load(tmp_path / "out" / "runs" / "seed0-vae" / "pictures.npz") as file:
        means, draws = file["samples"], file["draws_of_samples"]
    assert means.shape == draws.shape and 0.01 < np.abs(means - draws).mean()
    assert (tmp_path / "out" / "draws-vae.png").stat().st_size > 500


def test_an_error_says_what_was_left_out(tmp_path):
    x = RNG.rand(40, 4)
    x[:, 2] = 0.25
    np.save(tmp_path / "a.npy", x)
    with pytest.raises(InputError, match=r"(?s)cannot be wrapped.*of the data: left out, as it is the same.*feature 2"):
        run(tmp_path, data=str(tmp_path / "a.npy"), vae="test_compare_data:of_four", arms=("vae",))
    assert not (tmp_path / "out").exists()


def of_four():
    return counted((4,), 2)


WITH_CROSS_ENTROPY = """
import torch
import torch.nn.functional as F
from torch import nn


class VAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(2, 4)

    def forward(self, x):
        mu, logvar = self.first(x).chunk(2, dim=1)
        return torch.sigmoid(self.second(mu + torch.exp(0.5 * logvar) * torch.randn_like(mu))), mu, logvar


def elbo(out, x, mu, logvar):
    return F.binary_cross_entropy(out, x, reduction="sum") - 0.5 * (1 + logvar - mu**2 - logvar.exp()).sum()
"""


def test_a_vae_of_flat_data_trained_by_a_cross_entropy_is_compared_and_both_are_said(tmp_path):
    """Forward failed on pictures, with a remedy for no command line; nothing said that its loss is another one."""
    (tmp_path / "own.py").write_text(WITH_CROSS_ENTROPY)
    np.save(tmp_path / "a.npy", RNG.rand(60, 1, 2, 2).astype(np.float32))
    _, said, found = run(
        tmp_path,
        data=str(tmp_path / "a.npy"),
        vae=f"{tmp_path / 'own.py'}:VAE",
        arms=("vae", "aef"),
        steps=2,
        preprocess="none",
    )
    note = (
        "trains it with a cross-entropy (likelihood=bernoulli); here every arm, the VAE too, is trained with a Gaussian"
    )
    assert note in said and any(note in one for one in found["notes"])
    np.save(tmp_path / "b.npy", (RNG.rand(60, 1, 2, 2) > 0.5).astype(np.uint8))
    _, said, _ = run(
        tmp_path / "bits",
        data=str(tmp_path / "b.npy"),
        vae=f"{tmp_path / 'own.py'}:VAE",
        arms=("vae",),
        steps=2,
        likelihood="bernoulli",
        bins=2,
    )
    assert "cross-entropy" not in said
