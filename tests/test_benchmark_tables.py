"""The tables of docs/benchmarks.md that are made from raw runs in docs/results/other, and what is said below them."""

import argparse
import itertools
import json
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
OTHER = ROOT / "docs" / "results" / "other"


@pytest.fixture
def written():
    return (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tests" / "benchmarks" / "results")
    monkeypatch.syspath_prepend(ROOT / "tests" / "benchmarks")


def said(written, text):
    assert text in " ".join(written.split()), text
    return True


def test_anomaly_scores_are_those_of_the_runs(written):
    pytest.importorskip("sklearn")
    import anomaly

    runs = json.loads((OTHER / "anomaly.json").read_text(encoding="utf-8"))
    table = anomaly.table(runs)
    assert table in written
    assert table.count("3 seeds") == 4
    for column in range(2, 6):  # what is said below it
        scores = {
            row.split("|")[1].strip(): float(row.split("|")[column].split(",")[0]) for row in table.splitlines()[2:]
        }
        ours = [score for name, score in scores.items() if "log p(x)" in name]
        assert min(ours) == scores["the paper's AEF (σ = 0), log p(x)"]
        assert max(ours) > max(score for name, score in scores.items() if "log p(x)" not in name)


def test_denoising_is_that_of_the_runs(written):
    pytest.importorskip("scipy", reason="intervals are Student's t, of the demo extra")
    import denoise

    runs = json.loads((OTHER / "denoise.json").read_text(encoding="utf-8"))
    assert denoise.table(runs) in written and denoise.table(runs[:-1]) not in written
    order = ["autoencoder, least squares", "AEF, σ = 0.3", "VAE", "the paper's AEF (σ = 0)"]
    assert said(written, "the AEF with σ = 0.3 next, then the VAE, σ = 0 last, at each level of noise, by more than")
    for noise in denoise.NOISE:
        own = [run for run in runs if run["noise"] == noise]
        of = {(m, d): [r["error"] for r in own if (r["model"], r["latents"]) == (m, d)] for m in order for d in (2, 32)}
        for one, other in itertools.pairwise(order):
            assert max(of[one, 32]) < min(of[other, 32])
        means = sorted(order, key=lambda m, of=of: np.mean(of[m, 2]))
        assert means == (["AEF, σ = 0.3", "VAE", order[0], order[3]] if noise == 0.75 else order)
    assert said(written, "the order of the means is the same but at noise 0.75")


def test_the_first_steps_are_those_of_the_runs(written):
    pytest.importorskip("sklearn", reason="its photographs are the data")
    import first_steps

    lines = (OTHER / "first_steps.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert first_steps.table(rows) in written and first_steps.table(rows[2:]) not in written
    arms = ("vae", "σ = 0.3", "σ = 0.3, small start", "σ = 0.3, held")
    more, settings, ends = dict.fromkeys(arms, 0), 0, []
    for setting in {tuple(row[:3]) for row in rows}:
        own = {arm: {r[3]: r[5:] for r in rows if tuple(r[:3]) == setting and r[4] == arm} for arm in arms}
        seeds = set.intersection(*(set(found) for found in own.values()))
        worst = {arm: max(own[arm][seed][0] for seed in seeds) for arm in arms}
        if worst["vae"] <= 100:
            settings += 1
            for arm in arms:
                more[arm] += worst[arm] > worst["vae"] + 5e-4
        if setting[1:] in (("adam", 1e-3), ("adamw", 1e-3)):
            ends.append(all(own["σ = 0.3"][seed][1] < own["vae"][seed][1] for seed in seeds))
    assert said(
        written, "In the other 37 the default (σ = 0.3) rises above its start by no more than the VAE does, but in five"
    )
    assert said(written, "rose by more than the VAE in eleven of the 37") and said(written, "leaves seven, none of")
    assert settings == 37 and list(more.values()) == [0, 5, 11, 7]
    assert len(ends) == 10 and all(ends)


def test_more_seeds_of_the_first_steps_are_those_of_the_runs(written):
    pytest.importorskip("sklearn", reason="its photographs are the data")
    import first_steps

    def rises(name):
        lines = (OTHER / f"first_steps_{name}.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        assert first_steps.table(rows) in written and first_steps.table(rows[3:]) not in written
        found = {}
        for size, optimizer, _, seed, arm, rise, last in rows:
            found.setdefault((size, optimizer), {}).setdefault(arm, {})[seed] = (rise, last)
        return found

    seeds, warmup = rises("seeds"), rises("warmup")

    def more(setting):
        own, vae = seeds[setting]["σ = 0.3"], seeds[setting]["vae"]
        return sum(own[seed][0] > vae[seed][0] + 5e-4 for seed in own), len(own)

    assert more((32, "adam")) == (1, 10) and more((128, "adam")) == (1, 5) and more((32, "sgd")) == (9, 10)
    assert [sum(rise > 5e-4 for rise, _ in seeds[size, "adam"]["vae"].values()) for size in (32, 128)] == [2, 1]
    assert all(seeds[32, "sgd"]["σ = 0.3"][seed][1] < seeds[32, "sgd"]["vae"][seed][1] for seed in range(10))
    assert said(written, "one seed in ten at 32×32 and one in five at 128×128") and said(written, "nine seeds of ten")
    assert said(written, "two of ten, one of five") and said(written, "further down in all")
    for arms in warmup.values():
        worst = {arm: max(rise for rise, _ in found.values()) for arm, found in arms.items()}
        assert worst["σ = 0.3"] < worst["vae"]


def test_the_papers_protocol_is_that_of_the_runs(written):
    pytest.importorskip("scipy", reason="intervals are Student's t, of the demo extra")
    import paper_protocol

    runs = json.loads((OTHER / "paper_protocol.json").read_text(encoding="utf-8"))
    assert paper_protocol.table(runs) in written and paper_protocol.table(runs[1:]) not in written
    assert said(written, "of the fifteen runs") and said(written, "six came to an end")
    assert len(paper_protocol.RUNS) == 15 and len(runs) == 6 and {run["run"] for run in runs} < set(paper_protocol.RUNS)


class ParsedError(Exception):
    """The command line was read to its end."""


def commands():
    """Every command of a benchmark that a page, CONTRIBUTING or the script itself shows, options in brackets too."""
    files = [*(ROOT / "docs").glob("*.md"), ROOT / "CONTRIBUTING.md", *(ROOT / "tests" / "benchmarks").rglob("*.py")]
    found = set()
    for path in files:
        for line in re.findall(r"python (tests/benchmarks/[^`\n#]*)", path.read_text(encoding="utf-8")):
            words = line.replace("[", "").replace("]", "").replace(" ...", "").split()
            if len(words) > 1:
                found.add(" ".join(words))
    return sorted(found)


@pytest.mark.parametrize("command", commands())
def test_a_command_that_is_shown_is_understood(command, monkeypatch):
    """Fault: a subcommand that the script has no more."""
    script, *words = command.split()
    real = argparse.ArgumentParser.parse_args

    def parse(parser, *args, **kwargs):
        real(parser, *args, **kwargs)
        raise ParsedError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    monkeypatch.setattr(sys, "argv", [script, *words])
    try:
        with pytest.raises(ParsedError):
            runpy.run_path(str(ROOT / script), run_name="__main__")
    except ImportError as error:
        pytest.skip(f"{script} needs {error.name}")
