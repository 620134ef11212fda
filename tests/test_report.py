"""Numbers of the table against hand-made ones; the page and the pictures."""

import io
import math
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("lightning")
pytest.importorskip("matplotlib")

from rich.console import Console

from vae2aef.comparison import report, wording
from vae2aef.comparison.options import Options
from vae2aef.comparison.plots import save_comparison, save_curves, tile
from vae2aef.comparison.summary import mean_and_error, summarise


def run(arm, seed, log_prob, ess=64.0, best_step=5):
    n = len(log_prob)
    return {
        "arm": arm,
        "seed": seed,
        "parameters": {"total": 1234, "vae": 1000, "added": {"core": 200, "residual": 34}},
        "best_step": best_step,
        "seconds": 2.0 + seed,
        "reconstruction_mse": 0.1 * (seed + 1),
        "validation_bits_per_dim": [[5, 3.0], [10, 2.5]],
        "training_loss": [[1, 10.0], [2, 9.0]],
        "test": {
            "log_prob": list(log_prob),
            "std_error": [0.2] * n,
            "effective_sample_size": [ess] * (n - 1) + [2.0],
            "uncertain": 1,
        },
        "certificate": {"gap": 0.5, "std_error": 0.1},
    }


NATS = math.log(2) * 2  # one bit a dimension of two


def test_one_seed_by_hand():
    results = [run("a", 0, [-NATS, -2 * NATS, -3 * NATS]), run("b", 0, [-NATS, -2 * NATS, -6 * NATS], ess=5.0)]
    first, second = summarise(results, ["a", "b"], (1, 2), 1, 128)
    assert first.bits_per_dim == pytest.approx(2.0)
    assert first.std_error == pytest.approx(1 / math.sqrt(3))
    assert (first.difference, first.difference_std_error) == (None, None)
    assert second.bits_per_dim == pytest.approx(3.0)
    assert second.difference == pytest.approx(1.0)
    assert second.difference_std_error == pytest.approx(1.0)  # of (0, 0, 3), paired
    assert first.importance_std_error == pytest.approx(0.2 / NATS / math.sqrt(3))
    assert (first.ess_median, first.ess_min) == (64.0, 2.0)
    assert (first.parameters, first.added, first.seconds) == (1234, {"core": 200, "residual": 34}, 2.0)
    assert (first.few_draws, second.few_draws) == (False, True)


def test_levels_are_counted():
    (row,) = summarise([run("a", 0, [-NATS, -NATS])], ["a"], (2,), 256, 128)
    assert row.bits_per_dim == pytest.approx(1.0 + 8.0)


def test_several_seeds_by_hand():
    """Samples differ by 2 on average over seeds, seeds' means by 2: each contributes a variance of 1."""
    mean, error, interval = mean_and_error(np.array([[0.0, 2.0], [2.0, 4.0]]))
    assert mean == 2.0
    assert error == pytest.approx(math.sqrt(1.0 + 1.0))
    # The 97.5 % point of Student's t with one degree of freedom is 12.706 (any table).
    assert interval == pytest.approx(12.706 * math.sqrt(2.0), rel=1e-4)


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_intervals_of_few_seeds_cover(seeds):
    """Of data whose seeds and samples both vary 95 % of the intervals hold the truth; 1.96 errors hold far fewer."""
    random = np.random.default_rng(0)
    covered, by_normal = [], []
    for _ in range(600):
        values = (
            random.normal(size=(seeds, 1)) + 0.3 * random.normal(size=(1, 50)) + 0.3 * random.normal(size=(seeds, 50))
        )
        mean, error, interval = mean_and_error(values)
        covered.append(abs(mean) < interval)
        by_normal.append(abs(mean) < 1.96 * error)
    assert 0.93 < np.mean(covered) < 0.98
    assert np.mean(by_normal) < 0.91


def test_when_an_arm_reached_the_first_ones_best():
    results = [run("vae", 0, [-1.0, -2.0]), run("aef", 0, [-1.0, -2.0]), run("slow", 0, [-1.0, -2.0])]
    results[1]["validation_bits_per_dim"] = [[5, 2.4], [10, 2.0]]
    results[2]["validation_bits_per_dim"] = [[5, 9.4], [10, 2.6]]
    first, quick, slow = summarise(results, ["vae", "aef", "slow"], (1,), 1, 128)
    assert (first.reached, quick.reached, slow.reached) == (1.0, 0.5, None)
    assert [row.reached_seconds for row in (first, quick, slow)] == [None] * 3  # not noted
    for result, seconds in zip(results, ([4.0, 8.0], [3.0, 6.5], [1.0, 2.0]), strict=True):
        result["validation_seconds"] = seconds
        result["validation_bits_per_dim"] = result["validation_bits_per_dim"][-2:]
    first, quick, slow = summarise(results, ["vae", "aef", "slow"], (1,), 1, 128)
    assert (first.reached_seconds, quick.reached_seconds, slow.reached_seconds) == (8.0, 3.0, None)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(report.terminal_table([first, quick, slow], "title", 128))
    assert [line.split()[-2:] for line in console.export_text().splitlines() if line.split()[:1] == ["aef"]] == [
        ["50%", "3"]
    ]
    assert report.page_table([first, quick, slow])[2][3] == "50% of steps, 3 s"


def test_seeds_are_paired_whatever_their_order():
    results = [
        run("b", 1, [-5.0, -9.0]),
        run("a", 0, [-1.0, -2.0]),
        run("b", 0, [-2.0, -3.0]),
        run("a", 1, [-4.0, -8.0]),
    ]
    _, second = summarise(results, ["a", "b"], (1,), 1, 128)
    assert second.difference == pytest.approx(1.0 / math.log(2))
    assert second.difference_std_error == pytest.approx(0.0, abs=1e-12)
    assert second.seconds == 2.5


@pytest.fixture
def rows():
    results = [run("vae", 0, [-NATS, -2 * NATS]), run("aef", 0, [-NATS, -1.5 * NATS], ess=3.0, best_step=10)]
    return summarise(results, ["vae", "aef"], (2,), 1, 128)


def test_the_terminal_table_fits_in_eighty_columns(rows):
    long = [
        replace(row, arm="vae+features", parameters=12_345_678, seconds=4321.0, reached_seconds=4321.0) for row in rows
    ]
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(report.terminal_table(long, "title", 100_000))
    text = console.export_text()
    assert "…" not in text
    assert "1.500 ± 6.353" in text
    assert "of 100000" in text
    assert "−0.250 ± 3.177" in text


def test_a_deterministic_run_that_drifts_is_named():
    """Its loss falls while the validation marginal, here in nats -70, -65.6, -66, -66, -65.7, does not rise."""
    unit = 64 * math.log(2)
    bits = [70 / unit + 4, 65.6 / unit + 4, 66 / unit + 4, 66 / unit + 4, 65.7 / unit + 4]
    losses = [[100 * (i + 1), v] for i, v in enumerate((-97, -100, -110, -115, -121))]
    run = {
        "arm": "aef", "seed": 3, "training_loss": losses,
        "validation_bits_per_dim": [[100 * (i + 1), v] for i, v in enumerate(bits)],
        "gauge": {"z": {"core_std": 0.061, "log_scale": 3.2, "core_share": 12.0}},
    }  # fmt: skip
    (said,) = wording.drifts([run], (8, 8), 16)
    assert said.startswith(
        "aef, seed 3: since step 200 the loss fell from -100 to -121 nats, while log p(x) of held-out"
    )
    assert "above -65.6" in said and "spread of h 0.061" in said and "3.2" in said
    assert wording.drifts([{**run, "arm": "aef-noise"}], (8, 8), 16) == []
    assert wording.drifts([{**run, "training_loss": [[100, -97], [500, -97]]}], (8, 8), 16) == []


def test_notes_say_what_stands_against_the_numbers(rows):
    notes = wording.warnings(rows, Options(steps=10))
    assert [note.split(":")[0] for note in notes] == ["aef", "aef"]
    assert "3.0 of 128 draws" not in notes[0]  # the median of (3, 2)
    assert "2.5 of 128 draws" in notes[0]
    assert "had not converged" in notes[1]
    assert wording.warnings(rows[:1], Options(steps=10)) == []


def test_markdown(rows):
    lines = report.markdown_table(rows, 128).splitlines()
    assert len(lines) == 4
    assert all(line.count("|") == len(report.COLUMNS) + 1 for line in lines)
    assert "1.500 ± 6.353" in lines[2]
    assert "| effective sample size of 128 draws: median (min) |" in lines[0]


def test_the_certificate_and_uncertain_samples_are_said():
    results = [run("a", seed, [-NATS, -2 * NATS, -3 * NATS, -NATS]) for seed in (0, 1)]
    results[1]["certificate"] = {"gap": 1.5, "std_error": 0.3}
    results[1]["test"] |= {"uncertain": 3, "std_error": [None, None, 0.4, None]}
    (row,) = summarise(results, ["a"], (1, 2), 1, 128)
    assert (row.gap, row.uncertain) == (1.0, 0.5)
    assert row.gap_std_error == pytest.approx(math.hypot(0.1, 0.3) / 2)
    assert row.importance_std_error == pytest.approx(math.sqrt(4 * 0.04 + 0.16) / 5 / NATS)  # of those that are known
    gap, uncertain = wording.certificates([row])
    assert "a 1.00 ± 0.16" in gap and "a 50.0%" in uncertain


def test_protocol_says_what_was_done():
    sizes = {"train": 5, "validation": 6, "test": 7}
    text = " ".join(wording.protocol(Options(seeds=3, lr=0.5, importance_samples=99), sizes, 17, "In all arms: X."))
    for part in (
        "17 levels",
        "5 training, 6 validation, 7 test",
        "3 seeds",
        "0.5",
        "99 draws",
        "between seeds",
        "−log K",
        "In all arms: X.",
    ):
        assert part in text
    assert "between seeds" not in " ".join(wording.protocol(Options(), sizes, 17, ""))


@pytest.mark.parametrize(
    ("event", "size"), [((1, 4, 3), (4, 3)), ((3, 4, 3), (4, 3)), ((4, 4, 3), (4, 3)), ((9,), (3, 3)), ((7,), (1, 7))]
)
def test_tiles(event, size):
    samples = np.random.rand(5, *event)
    sheet = tile(samples, columns=3)
    gap = 1
    assert sheet.shape == (2 * size[0] + gap, 3 * size[1] + 2 * gap, 3)
    first = samples[0].reshape(1, *size) if len(event) == 1 else samples[0]
    assert np.allclose(sheet[: size[0], : size[1], 0], first[0])
    assert np.allclose(sheet[size[0] + gap :, -size[1] :], 1)  # the place of the sixth is white


def test_values_outside_are_clipped_for_pictures():
    assert set(np.unique(tile(np.array([[[[-3.0, 7.0, np.nan]]]]), 1))) == {0.0, 1.0}


def test_pictures_are_written(rows, tmp_path):
    shown = {
        row.arm: {"reconstructions": np.random.rand(3, 1, 4, 4), "samples": np.random.rand(16, 1, 4, 4)} for row in rows
    }
    save_comparison(tmp_path / "comparison.png", np.random.rand(3, 1, 4, 4), shown, rows)
    save_curves(
        tmp_path / "curves.png", [run("vae", 0, [-1.0]), run("vae", 1, [-1.0]), run("aef", 0, [-1.0])], ["vae", "aef"]
    )
    for name in ("comparison.png", "curves.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["comparison.png", "curves.png"]  # no temporary files
