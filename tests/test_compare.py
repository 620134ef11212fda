"""The comparison from data to report, in one process and a few steps."""

import io
import json

import numpy as np
import pytest
import torch

pytest.importorskip("lightning")
pytest.importorskip("matplotlib")

from rich.console import Console

from vae2aef.comparison.arms import ARMS
from vae2aef.comparison.compare import compare
from vae2aef.comparison.files import write_atomic
from vae2aef.comparison.inputs import InputError
from vae2aef.comparison.options import Options
from vae2aef.errors import NonFiniteError
from vae2aef.nets import MLPVAE
from vae2aef.preprocess import bits_per_dim

SMALL = {
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
    assert rows[0].added == {"residual": 64}
    assert rows[1].added == rows[2].added == {"core": 64 * 2 + 2, "residual": 64}


def test_what_is_written(finished):
    options, out, rows, _ = finished
    written = {p.name for p in out.iterdir()}
    assert {"results.json", "report.html", "comparison.png", "curves.png", "originals.png", "table.md"} <= written
    for arm in ARMS:
        assert {f"reconstructions-{arm}.png", f"samples-{arm}.png"} <= written
        for seed in (0, 1):
            names = {p.name for p in (out / "runs" / f"seed{seed}-{arm}").iterdir()}
            assert names == {"last.ckpt", "best.pt", "pictures.npz", "result.json"}
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
    assert f"{rows[2].bits_per_dim:.4f}" in page


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
    options = Options(data="my file.npz", arms=("vae", "aef"), lr=0.01)
    assert options.command("out") == "vae2aef compare --data 'my file.npz' --lr 0.01 --arms vae,aef --out out"
    assert Options().command("o") == "vae2aef compare --out o"


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail(temporary):
        temporary.write_text("ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, fail)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.txt", "old")]
