"""The comparison from data to report, in one process and a few steps."""

import html
import io
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("lightning")
pytest.importorskip("matplotlib")

pytest.importorskip("typer")

from rich.console import Console
from torch import nn
from typer.testing import CliRunner

from vae2aef.cli import app
from vae2aef.comparison.arms import ARMS, Recipe
from vae2aef.comparison.compare import compare
from vae2aef.comparison.data import load
from vae2aef.comparison.errors import InputError
from vae2aef.comparison.files import write_atomic
from vae2aef.comparison.nets import MLPVAE
from vae2aef.comparison.options import Options
from vae2aef.errors import NonFiniteError
from vae2aef.flows import Identity
from vae2aef.preprocess import bits_per_dim

pytestmark = pytest.mark.usefixtures("quick_fits", "quick_pictures")
SMALL = {
    "data": "digits",
    "steps": 6,
    "latents": 2,
    "core_flow": "none",
    "importance_samples": 8,
    "test_limit": 12,
    "vae": "test_compare:tiny",
}
RNG = np.random.RandomState(0)


def tiny(event_shape, latents):
    vae = MLPVAE(event_shape, latents, hidden=6)
    return {"vae": vae, "encoder": vae.encode, "decoder": vae.decode, "encoder_scale": "log_var"}


def mute():
    return Console(file=io.StringIO(), width=100)


def text_of(page):
    """The words of a page, without tags and non-breaking spaces."""
    return html.unescape(re.sub(r"<[^<>]+>", "", page.read_text())).replace("\u00a0", " ")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """All arms, two seeds, on digits."""
    out = tmp_path_factory.mktemp("digits") / "deep" / "out"
    console = mute()
    options = Options(**SMALL, seeds=2)
    return options, out, compare(options, out, console), console.file.getvalue()


def test_every_arm_has_finite_numbers(finished):
    _, _, rows, printed = finished
    assert [row.arm for row in rows] == list(ARMS)
    for row in rows:
        assert np.isfinite([row.bits_per_dim, row.std_error, row.reconstruction_mse, row.ess_median]).all()
        assert 2 < row.bits_per_dim < 6
        assert 1 <= row.ess_min <= row.ess_median <= 8
        assert row.arm in printed
    assert rows[0].added == {"likelihood": 64}
    assert rows[1].added == rows[2].added == {"core": 64 * 2 + 2, "likelihood": 64}


def test_what_is_written(finished):
    options, out, rows, _ = finished
    written = {p.name for p in out.iterdir()}
    assert {"results.json", "report.html", "comparison.png", "curves.png", "originals.png", "table.md"} <= written
    for arm in ARMS:
        assert {f"reconstructions-{arm}.png", f"samples-{arm}.png"} <= written
        for seed in (0, 1):
            names = {p.name for p in (out / "runs" / f"seed{seed}-{arm}").iterdir()}
            assert names == {"last.ckpt", "best.pt", "pictures.npz", "result.json"}
            meter = json.loads((out / "runs" / f"seed{seed}-{arm}" / "result.json").read_text())["gauge"]["z"]
            assert (meter["core_std"] > 0) == (ARMS[arm].core != "noise") and np.isfinite(meter["log_scale"])
    results = json.loads((out / "results.json").read_text())
    assert results["options"] == options.as_dict()
    assert [row["bits_per_dim"] for row in results["rows"]] == [row.bits_per_dim for row in rows]
    assert results["data"]["sizes"] == {"train": 1294, "validation": 144, "test": 12}
    assert results["machine"]["torch_threads"] == torch.get_num_threads()
    assert results["versions"]["torch"] == torch.__version__
    assert len(results["runs"]) == 8
    assert len(results["runs"][0]["validation_bits_per_dim"]) == 1
    page = (out / "report.html").read_text()
    assert results["command"].replace("'", "&#x27;") in page
    assert f"{rows[2].bits_per_dim:.3f}" in page


def test_the_table_follows_from_the_runs(finished):
    _, out, rows, _ = finished
    runs = [json.loads((out / "runs" / f"seed{s}-aef" / "result.json").read_text()) for s in (0, 1)]
    nats = torch.tensor([run["test"]["log_prob"] for run in runs], dtype=torch.float64)
    bits = bits_per_dim(nats, (1, 8, 8), 17)
    assert rows[2].bits_per_dim == pytest.approx(bits.mean().item())
    expected = bits.mean(0).var() / 12 + bits.mean(1).var() / 2
    assert rows[2].std_error == pytest.approx(expected.sqrt().item())


def test_finished_runs_are_reused_and_seeds_and_arms_may_grow(finished):
    options, out, rows, _ = finished
    marks = {p: p.stat().st_mtime_ns for p in out.glob("runs/*/*")}
    again = compare(Options(**SMALL, seeds=1, arms=("aef", "vae")), out, mute())
    assert [row.arm for row in again] == ["aef", "vae"]
    assert {p: p.stat().st_mtime_ns for p in out.glob("runs/*/*")} == marks
    assert compare(options, out, mute()) == rows


def test_another_comparison_in_the_folder_is_refused(finished):
    out = finished[1]
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    with pytest.raises(InputError, match=r"--lr is 0\.001 there and 0\.1 now; --bins is None there.*--overwrite"):
        compare(Options(**SMALL, lr=0.1, bins=18), out, mute())
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == before


def test_changed_data_are_noticed(tmp_path):
    options = Options(**SMALL | {"arms": ("aef",), "data": str(tmp_path / "a.npy")})
    np.save(tmp_path / "a.npy", RNG.randint(0, 256, (40, 3, 3)).astype(np.uint8))
    compare(options, tmp_path / "out", mute())
    np.save(tmp_path / "a.npy", RNG.randint(0, 256, (40, 3, 3)).astype(np.uint8))
    with pytest.raises(InputError, match="the data changed"):
        compare(options, tmp_path / "out", mute())


def test_overwrite_throws_away_its_own_files_only(tmp_path):
    options = Options(**SMALL | {"arms": ("aef",)})
    compare(options, tmp_path / "out", mute())
    (tmp_path / "out" / "notes.txt").write_text("mine")
    (row,) = compare(Options(**SMALL | {"arms": ("vae",), "lr": 0.1}), tmp_path / "out", mute(), overwrite=True)
    assert row.arm == "vae"
    assert [p.name for p in (tmp_path / "out" / "runs").iterdir()] == ["seed0-vae"]
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_with_other_things_is_never_touched(tmp_path, overwrite):
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(InputError, match="holds other files"):
        compare(Options(**SMALL), tmp_path, mute(), overwrite)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "nowhere.npz"}, "no such file or folder"),
        ({"vae": "nowhere"}, "expected mlp, conv"),
        ({"vae": "test_compare:linear"}, "cannot be wrapped"),
        ({"vae": "test_compare:disagree"}, "cannot be wrapped"),
        ({"data": "wide.npy"}, r"takes data within 0 and 1, wide\.npy has values from -?\d"),
        ({"data": "nan.npy"}, "NaN"),
    ],
)
def test_wrong_input_leaves_nothing_behind(tmp_path, monkeypatch, changes, message):
    monkeypatch.chdir(tmp_path)
    np.save("wide.npy", RNG.randn(30, 4))
    np.save("nan.npy", np.full((30, 4), np.nan))
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(InputError, match=message):
        compare(Options(**SMALL | changes), tmp_path / "a" / "out", mute())
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def linear():
    return torch.nn.Linear(2, 2)


def disagree(event_shape):
    """The encoder gives three latents, the decoder takes two."""
    return tiny(event_shape, 3) | {"decoder": MLPVAE(event_shape, 2, hidden=6).decode}


@pytest.mark.parametrize("preprocess", ["none", "standardize"])
def test_data_of_any_range_without_the_logit(tmp_path, preprocess):
    np.save(tmp_path / "a.npy", 5 + 3 * RNG.randn(40, 4))
    options = Options(**SMALL | {"data": str(tmp_path / "a.npy"), "preprocess": preprocess, "arms": ("vae", "aef")})
    rows = compare(options, tmp_path / "out", mute())
    assert all(np.isfinite(row.bits_per_dim) for row in rows)
    assert json.loads((tmp_path / "out" / "results.json").read_text())["data"]["bins"] == 1


@pytest.mark.parametrize(("vae", "flow"), [("mlp", "coupling"), ("conv", "maf")])
@pytest.mark.slow
def test_built_in_networks_and_flows_on_colour_images(tmp_path, vae, flow):
    np.savez(tmp_path / "a.npz", x_train=RNG.randint(0, 256, (20, 6, 5, 3)).astype(np.uint8))
    options = Options(
        **SMALL
        | {"data": str(tmp_path / "a.npz"), "vae": vae, "prior": flow, "core_flow": flow, "arms": ("aef",), "steps": 2}
    )
    (row,) = compare(options, tmp_path / "out", mute())
    assert np.isfinite(row.bits_per_dim)
    assert {"prior", "core_flow"} <= row.added.keys()


def test_a_diverged_run_is_named(tmp_path):
    with pytest.raises(NonFiniteError, match=r"aef, seed 0: .*smaller --lr"):
        compare(Options(**SMALL | {"lr": 1e30, "arms": ("aef",)}), tmp_path / "out", mute())
    assert not (tmp_path / "out" / "results.json").exists()


def test_all_wrong_options_are_named_at_once():
    with pytest.raises(InputError) as caught:
        Options(steps=0, lr=float("nan"), arms=("vae", "gan"), prior="iaf", lam=0.5, test_limit=1)
    for word in ("--steps", "--lr", "gan", "--prior", "--lam", "--test-limit"):
        assert word in str(caught.value)


def test_the_command_asks_for_the_same_again():
    """Every option is written out: the defaults of another version may differ."""
    for options in (Options(), Options(data="my file.npz", arms=("vae", "aef"), lr=1 / 3, bins=17, core_flow="none")):
        seen = []
        words = shlex.split(options.command("my out"))
        assert words[:2] == ["vae2aef", "compare"]
        for name, value in options.as_dict().items():
            assert (f"--{name.replace('_', '-')}" in words) == (value is not None)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("vae2aef.comparison.compare.compare", lambda *args, seen=seen: seen.append(args[:2]))
            result = CliRunner().invoke(app, words[1:])
        assert result.exit_code == 0, result.output
        assert seen == [(options, Path("my out"))]


@pytest.mark.slow
def test_the_arms_say_which_core_flow_they_have(tmp_path):
    console = mute()
    options = Options(**SMALL | {"core_flow": "coupling", "steps": 2, "arms": ("vae", "aef"), "prior": "coupling"})
    compare(options, tmp_path, console)
    results, page = json.loads((tmp_path / "results.json").read_text()), text_of(tmp_path / "report.html")
    protocol = " ".join(results["protocol"])
    assert (
        "In all arms: MLPVAE (--vae test_compare:tiny) with 2 latent variables; prior: a learned coupling flow; "
        "core flow: coupling, but for the plain VAE; residual: Gaussian with one learned scale a feature."
    ) in protocol
    printed = " ".join(console.file.getvalue().split())
    for text in (protocol, page, printed):
        assert "deterministic (σ = 0); with the coupling core flow" in text
        assert "(h = 0, σ = 1); with" not in text
    assert [("core_flow" in row["added"]) for row in results["rows"]] == [False, True]  # the plain VAE has none
    assert "8 draws a test sample" in page and "of 8 draws" in (tmp_path / "table.md").read_text()
    assert "8 draws" in printed


def test_without_core_flows_none_is_named(finished):
    _, out, _, printed = finished
    assert "core flow" not in printed.replace("core flow: none", "").replace("features and core flow only", "")
    assert (
        "prior: the VAE's own (standard normal); core flow: none"
        in json.loads((out / "results.json").read_text())["protocol"][1]
    )


# ---------------------------------------------------------------- a look at the user's VAE


class Last(nn.Module):
    """A VAE whose decoder ends in a given module."""

    def __init__(self, event_shape, last, latents=2, inner=None):
        super().__init__()
        self.inner, self.last = inner or MLPVAE(event_shape, latents, hidden=32), last

    def encode(self, x):
        return self.inner.encode(x)

    def decode(self, z):
        return self.last(self.inner.decode(z))

    def parts(self):
        return {"vae": self, "encoder": self.encode, "decoder": self.decode, "encoder_scale": "log_var"}


def sigmoid(event_shape):
    return Last(event_shape, nn.Sigmoid()).parts()


def tanh(event_shape):
    return Last(event_shape, nn.Tanh()).parts()


def blank(event_shape):
    """Its decoder starts at zero: nothing it decodes leaves [0, 1] before it is trained."""
    made = Last(event_shape, nn.Identity())
    last = [m for m in made.inner.decoder.modules() if isinstance(m, nn.Linear)][-1]
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return made.parts()


class Squashed(nn.Module):
    """Tanh units and a small linear layer: within [-1, 1] as initialised, but not bounded by it."""

    def __init__(self, event_shape):
        super().__init__()
        self.shape = event_shape
        self.net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, int(np.prod(event_shape))))
        nn.init.normal_(self.net[2].weight, std=0.1)

    def forward(self, z):
        return self.net(z).reshape(-1, *self.shape)


def squashed(event_shape):
    net, vae = Squashed(event_shape), MLPVAE(event_shape, 2, hidden=6)
    return {"vae": nn.ModuleList([net, vae]), "encoder": vae.encode, "decoder": net, "encoder_scale": "log_var"}


def normed(event_shape):
    """A VAE with batch normalisation and a scale next to nothing."""
    vae = MLPVAE(event_shape, 2, hidden=6)
    vae.encoder.append(nn.BatchNorm1d(6))
    nn.init.constant_(vae.to_log_var.bias, -30.0)
    return {"vae": vae, "encoder": vae.encode, "decoder": vae.decode, "encoder_scale": "log_var"}


@pytest.mark.parametrize("preprocess", ["logit", "standardize"])
def test_a_decoder_that_cannot_reach_most_values_is_refused(tmp_path, preprocess):
    options = Options(**SMALL | {"vae": "test_compare:sigmoid", "preprocess": preprocess})
    message = r"within \[0, 1\], .* as a sigmoid does.*[67]\d% of the values are out of its reach.*--preprocess none"
    with pytest.raises(InputError, match=message):
        compare(options, tmp_path / "out", mute())
    assert not (tmp_path / "out").exists()
    np.save(tmp_path / "a.npy", 5 + RNG.rand(60, 4))
    options = Options(**SMALL | {"vae": "test_compare:sigmoid", "preprocess": "none", "data": str(tmp_path / "a.npy")})
    with pytest.raises(InputError, match=r"100% of the values .*; scale the data"):
        compare(options, tmp_path / "out", mute())


def test_a_decoder_that_cannot_reach_some_values_is_noted(tmp_path):
    compare(Options(**SMALL | {"vae": "test_compare:tanh", "arms": ("aef",), "steps": 1}), tmp_path, mute())
    notes = json.loads((tmp_path / "results.json").read_text())["notes"]
    (note,) = (n for n in notes if "out of its reach" in n)
    assert "within [-1, 1], whatever its weights are, as a tanh does" in note


@pytest.mark.parametrize(
    ("vae", "preprocess"), [("sigmoid", "none"), ("blank", "logit"), ("squashed", "logit"), ("tiny", "logit")]
)
def test_a_decoder_that_can_reach_is_not_refused(tmp_path, vae, preprocess):
    options = Options(**SMALL | {"vae": f"test_compare:{vae}", "preprocess": preprocess, "arms": ("aef",), "steps": 1})
    compare(options, tmp_path, mute())
    assert not any("reach" in note for note in json.loads((tmp_path / "results.json").read_text())["notes"])


def test_warnings_and_errors_of_check_are_notes(tmp_path):
    console = mute()
    compare(Options(**SMALL | {"vae": "test_compare:normed", "arms": ("aef",), "steps": 1}), tmp_path, console)
    notes = json.loads((tmp_path / "results.json").read_text())["notes"]
    page, printed = text_of(tmp_path / "report.html"), " ".join(console.file.getvalue().split())
    for start, words in (
        ("--vae test_compare:normed: encoder", "batch normalisation"),
        ("--vae test_compare:normed: encoder scale", "Fix: check encoder_scale; compare the arm aef-noise"),
    ):
        (note,) = (n for n in notes if n.startswith(start) and words in n)
        assert note.replace(" %", "%") in page.replace(" %", "%")
        assert note in printed


def test_nothing_is_noted_of_a_sound_vae_but_what_concerns_the_run(finished):
    notes = json.loads((finished[1] / "results.json").read_text())["notes"]
    assert not any(note.startswith("--vae") for note in notes)


def test_few_uneven_values_taken_as_continuous_are_noted(tmp_path):
    np.save(tmp_path / "a.npy", RNG.rand(9)[RNG.randint(0, 9, (60, 4, 4))])
    options = SMALL | {"arms": ("aef",), "steps": 1, "data": str(tmp_path / "a.npy")}
    for bins, noted in ((None, True), (1, False)):
        compare(Options(**options, bins=bins), tmp_path / f"out{bins}", mute())
        notes = json.loads((tmp_path / f"out{bins}" / "results.json").read_text())["notes"]
        assert any("only 9 different ones" in note for note in notes) == noted


# ---------------------------------------------------------------- factories


def closures(event_shape, latents):
    vae = MLPVAE(event_shape, latents, hidden=6)
    return {"vae": vae, "encoder": lambda x: vae.encode(x), "decoder": lambda z: vae.decode(z), "encoder_scale": "std"}


ONE = MLPVAE((1, 8, 8), 2, hidden=6)


def the_same():
    return {"vae": ONE, "encoder": ONE.encode, "decoder": ONE.decode, "encoder_scale": "log_var"}


def log_var_closures(event_shape, latents):
    return closures(event_shape, latents) | {"encoder_scale": "log_var"}


@pytest.mark.parametrize("vae", ["log_var_closures", "the_same"])
def test_each_arm_trains_the_networks_it_holds(vae):
    """Functions of a factory reach the VAE of their own arm, and a module that is handed out twice is copied."""
    x = torch.rand(4, 1, 8, 8)
    recipe = Recipe(f"test_compare:{vae}", 2, "vae", "none", Identity(), x)
    one, two = recipe.build("aef", 0), recipe.build("vae", 0)
    one(x).backward()
    assert all(p.grad is not None for p in one.vae.parameters())
    assert all(p.grad is None for aef in (two, ONE) for p in aef.parameters())


@pytest.mark.slow
def test_a_pyro_vae(tmp_path):
    """An object with model and guide, in every arm; Pyro keeps one parameter store for all of them."""
    pyro = pytest.importorskip("pyro")
    np.save(tmp_path / "a.npy", load("digits").x_train[:200].flatten(1).numpy())
    pyro.clear_param_store()
    options = SMALL | {"vae": "test_compare:pyro_vae", "data": str(tmp_path / "a.npy"), "bins": 17, "steps": 120}
    rows = compare(Options(**options), tmp_path / "out", mute())
    assert [row.arm for row in rows] == list(ARMS)
    assert all(2 < row.bits_per_dim < 6 for row in rows)
    assert [row.best_steps for row in rows] == [[120]] * 4  # each arm learned
    assert "In all arms: PyroVAE" in (tmp_path / "out" / "report.html").read_text()
    pyro.clear_param_store()
    (alone,) = compare(Options(**options, arms=("aef-noise",)), tmp_path / "alone", mute())
    assert alone.bits_per_dim == rows[3].bits_per_dim  # whatever the arms before it left in the store


class PyroVAE(nn.Module):
    """The class of Pyro's VAE tutorial, small and with a Normal over the pixels."""

    def __init__(self, pixels, latents):
        super().__init__()
        self.latents = latents
        self.encoder, self.decoder = nn.Linear(pixels, 2 * latents), nn.Linear(latents, pixels)

    def model(self, x):
        import pyro
        import pyro.distributions as dist

        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("latent", dist.Normal(x.new_zeros(x.shape[0], self.latents), 1.0).to_event(1))
            pyro.sample("obs", dist.Normal(self.decoder(z), 0.3).to_event(1), obs=x)

    def guide(self, x):
        import pyro
        import pyro.distributions as dist

        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            loc, log_scale = self.encoder(x).chunk(2, dim=-1)
            pyro.sample("latent", dist.Normal(loc, log_scale.exp()).to_event(1))


def pyro_vae(event_shape, latents):
    return PyroVAE(event_shape[0], latents)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail(temporary):
        temporary.write_text("ne")
        raise OSError("disk full")

    with pytest.raises(InputError, match="the disk may be full"):
        write_atomic(path, fail)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.txt", "old")]
