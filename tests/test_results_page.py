"""The results page and the README's table are what the raw runs in docs/results say."""

import json
from pathlib import Path

import pytest

pytest.importorskip("scipy", reason="intervals are Student's t, of the demo extra")
ROOT = Path(__file__).parents[1]


@pytest.fixture
def page(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tests" / "benchmarks" / "results")
    import page

    return page


@pytest.fixture
def runs(page):
    found = {}
    for path in sorted((ROOT / "docs" / "results").glob("*.json")):
        for run in json.loads(path.read_text(encoding="utf-8")):
            found.setdefault(path.stem, {}).setdefault(run["arm"], {})[run["seed"]] = run
    return {name: {arm: found[name][arm] for arm in page.ARMS if arm in found[name]} for name in page.CELLS}


def test_the_tables_are_those_of_the_runs(page, runs):
    readme, written = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/results.md"))
    assert page.front(runs) in written and page.equal_seconds(runs, "aef-noise", "noise-flow") in written
    for name, own in runs.items():
        assert page.table(page.lines(page.CELLS[name], own), page.CELLS[name], own) in written
    shown = page.front({name: runs[name] for name in page.PICTURED}).splitlines()[2:]
    assert "\n".join(shown) in readme
    changed = {**runs, "mnist": {**runs["mnist"], "aef": {0: {**runs["mnist"]["aef"][0], "log_prob": [-800.0] * 500}}}}
    assert page.front(changed) not in written


def test_bits_and_nats_of_a_run_by_hand(page):
    cell = page.CELLS["patches"]
    runs = {arm: {0: {"arm": arm, "seed": 0, "log_prob": values}} for arm, values in
            (("vae", [-64.0, -128.0]), ("aef", [-128.0, -192.0]))}  # fmt: skip
    vae, aef = page.lines(cell, runs)  # the better one first
    assert (vae.arm, aef.arm) == ("vae", "aef")
    assert vae.value.mean == pytest.approx(1.5 / 0.6931471805599453)  # of 64 values
    assert aef.difference.mean == pytest.approx(1 / 0.6931471805599453)
    assert aef.difference.interval == pytest.approx(0, abs=1e-12)


def test_a_run_is_equal_to_the_vae_where_it_first_is_as_good(page):
    vae = {0: {"validation_nats": [[100, 9.0, 0], [200, 7.0, 0]]}}
    run = {"seed": 0, "steps": 200, "validation_nats": [[100, 7.0, 0], [200, 6.0, 0]]}
    assert page.equal_after(run, vae) == "50 %"
    assert page.equal_after({**run, "validation_nats": [[100, 7.1, 0]]}, vae) == "never"
    assert page.equal_after({**run, "seed": 1}, vae) == ""


def test_an_arm_is_compared_after_as_many_seconds(page):
    runs = {"aef": {0: {"validation_nats": [[100, 9.0, 1.0], [200, 7.0, 2.0]]}},
            "iwae": {0: {"validation_nats": [[100, 8.0, 1.9], [150, 7.5, 2.1], [200, 6.0, 4.0]]}}}  # fmt: skip
    assert page.equal_seconds({"mnist": runs}, "aef", "iwae").splitlines()[-1] == (
        f"| {page.CELLS['mnist'].about} | −7.0 (2.0 s) | −7.5 (2.1 s) | −6.0 (4.0 s) |"
    )
    assert len(page.equal_seconds({"mnist": {"aef": runs["aef"]}}, "aef", "iwae").splitlines()) == 2
