"""The results page and the README's table are what the raw runs in docs/results say."""

import json
import re
from pathlib import Path

import numpy as np
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
    return {
        name: {arm: found[name][arm] for arm in page.ARMS if arm in found[name]} for name in page.CELLS if name in found
    }


def test_the_tables_are_those_of_the_runs(page, runs):
    readme, written = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/results.md"))
    assert page.front(runs) in written and page.equal_seconds(runs, "aef-noise", "noise-flow") in written
    assert page.beside(runs) in written and page.against(runs, page.HONEST, "aef") in written
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


def first(runs, arm):
    return runs[arm][min(runs[arm])]


def paired(page, runs, arm, other):
    both = min(set(runs[arm]) & set(runs[other]))
    one, two = (np.array(runs[name][both]["log_prob"]) for name in (arm, other))
    found = page.mean_and_error((one - two)[None])
    return found.mean, found.interval, 0 if abs(found.mean) <= found.interval else np.sign(found.mean)


def said(text):
    """Whether a sentence is on the page, whose lines are broken anywhere."""
    written = " ".join((ROOT / "docs" / "results.md").read_text(encoding="utf-8").split())
    assert text in written, text
    return True


def test_what_is_said_of_convergence(page, runs):
    """The share of arms whose last look at held-out data is the best."""
    share = {}
    for name, own in runs.items():
        looks = {arm: own[arm][0]["validation_nats"] for arm in own if 0 in own[arm] and arm not in page.WITHOUT}
        last = [min(look, key=lambda p: p[1])[0] == own[arm][0]["steps"] for arm, look in looks.items()]
        share[name] = sum(last) / len(last)
    assert said(
        "is the best in every arm of MNIST (32 latents), MNIST as bits and FashionMNIST, in most arms of CIFAR-10"
    )
    assert all(share[name] == 1 for name in ("mnist", "mnist-bits", "fashion"))
    assert all(0.5 < share[name] < 1 for name in ("cifar10", "cifar10-gaussian", "patches", "mnist2"))
    assert said("in half or fewer of digits and Shuttle, and in none of power demand and genes")
    assert all(0 < share[name] <= 0.5 for name in ("digits", "shuttle")) and share["power"] == share["genes"] == 0


def test_what_is_said_of_sigma(page, runs):
    runs = {name: own for name, own in runs.items() if name not in page.APART}  # the columns of the first table
    against = {name: paired(page, own, "aef-noise", "aef") for name, own in runs.items()}
    assert said(
        "it beats σ = 0 beyond the interval on six of eleven data sets (MNIST with both likelihoods, patches, digits"
    )
    assert {name for name, found in against.items() if found[2] > 0} == {
        "mnist", "mnist-bits", "patches", "digits", "shuttle", "power"
    }  # fmt: skip
    assert said("(CIFAR-10, logistic: 7.9 ± 7.7 nats of 13,800)") and len(against) == 11
    assert [name for name, found in against.items() if found[2] < 0] == ["cifar10"]
    assert against["cifar10"][:2] == (pytest.approx(-7.9, abs=0.05), pytest.approx(7.7, abs=0.05))
    assert said(
        "behind the VAE itself, beyond the interval, on patches, digits, MNIST with two latents, Shuttle, power demand "
        "and genes"
    )
    behind = {name for name, own in runs.items() if paired(page, own, "aef", "vae")[2] < 0}
    assert behind == {"patches", "digits", "mnist2", "shuttle", "power", "genes"}
    assert said("Its h is smaller than that of σ = 0.3 on every data set (`std of h`: 0.03 and 0.71 on MNIST as bits)")
    for name, own in runs.items():
        small, large = (first(own, arm)["gauge"]["std_h"] for arm in ("aef", "aef-noise"))
        assert small < large and (name != "mnist-bits" or (round(small, 2), round(large, 2)) == (0.03, 0.71))


def test_what_is_said_of_the_prior(page, runs):
    runs = {name: own for name, own in runs.items() if name not in page.APART}
    assert said("ahead of σ = 0.3 alone on all eleven data sets")
    assert all(paired(page, own, "noise-prior", "aef-noise")[2] > 0 for own in runs.values())
    ahead = {
        n: {a for a in set(own) - set(page.WITHOUT) if paired(page, own, a, "noise-prior")[2] > 0}
        for n, own in runs.items()
    }
    assert said(
        "on MNIST with 32 latents (both likelihoods), FashionMNIST, power demand and CIFAR-10 with the Gaussian"
    )
    assert {n for n in ahead if not ahead[n]} == {"mnist", "mnist-bits", "fashion", "power", "cifar10-gaussian"}
    assert said("on patches (0.2 nats) and CIFAR-10 with the logistic (21 nats)")
    assert ahead["patches"] == ahead["cifar10"] == {"aef-prior"}
    assert said("two latents, digits, Shuttle and genes. There the VAE with a flow prior is, by 2.4, 0.6, 0.6 and 5.6")
    for name, nats in {"mnist2": 2.4, "digits": 0.6, "shuttle": 0.6, "genes": 5.6}.items():
        latent = set(runs[name]) - set(page.WITHOUT)
        best = max(latent, key=lambda arm, own=runs[name]: np.mean(first(own, arm)["log_prob"]))
        assert best == "vae-prior"
        assert paired(page, runs[name], "vae-prior", "noise-prior")[0] == pytest.approx(nats, abs=0.05)
    assert said(
        "on MNIST, 5 on MNIST as bits, 22 on FashionMNIST, 1.4 on patches, 99 on CIFAR-10 with the logistic and 206"
    )
    gains = {"mnist": 11, "mnist-bits": 5, "fashion": 22, "patches": 1.4, "cifar10": 99, "cifar10-gaussian": 206}
    for name, nats in gains.items():
        assert paired(page, runs[name], "noise-prior", "vae-prior")[0] == pytest.approx(
            nats, abs=0.05 if nats < 5 else 0.51
        )


def test_what_is_said_of_genes_features_and_steps(page, runs):
    arms = set(runs["genes"]) - set(page.WITHOUT)
    best = {arm: min(first(runs["genes"], arm)["validation_nats"], key=lambda p: p[1])[0] for arm in arms}
    assert said("first or the second in every arm (60 or 120 of 600 steps), the first in the AEFs of σ = 0 and 0.3")
    assert set(best.values()) == {60, 120} and all(
        best[a] == 60 for a in ("aef", "aef-noise", "aef-prior", "noise-prior")
    )
    share = {
        name: paired(page, runs[name], "features", "vae")[0] / paired(page, runs[name], "aef-noise", "vae")[0]
        for name in ("mnist", "mnist-bits", "fashion", "patches", "cifar10", "cifar10-gaussian")
    }
    assert said("`features` has 55 % of it (CIFAR-10 with the Gaussian) to 98 % (MNIST as bits)")
    assert min(share.items(), key=lambda p: p[1]) == ("cifar10-gaussian", pytest.approx(0.55, abs=0.005))
    assert max(share.items(), key=lambda p: p[1]) == ("mnist-bits", pytest.approx(0.98, abs=0.005))
    assert said("MNIST: 0.04 bits per dimension after 400 steps, 0.015 after 2000")
    assert said("CIFAR-10 with the Gaussian: 0.24 after 400, 0.08 after 2000")
    for name, early, late in (("mnist", 0.04, 0.015), ("cifar10-gaussian", 0.24, 0.08)):
        cell, own = page.CELLS[name], runs[name]
        for at, bits in ((1, early), (-1, late)):
            nats = [first(own, arm)["validation_nats"][at][1] for arm in ("vae", "aef-noise")]
            assert -page.factor(cell) * (nats[0] - nats[1]) == pytest.approx(
                bits, abs=0.0051 if bits > 0.015 else 0.0005
            )


def test_what_three_seeds_say(page, runs):
    three = [name for name, own in runs.items() if all(len(own.get(arm, ())) == 3 for arm in page.SHOWN)]
    assert said("on MNIST with 32 and with two latents, patches, digits, Shuttle, power demand and genes")
    assert set(three) == {"mnist", "mnist2", "patches", "digits", "shuttle", "power", "genes"}
    sure = {1: set(), -1: set()}
    for name in (*three, "cifar10-gaussian", "fashion", "mnist-bits"):
        for line in page.lines(page.CELLS[name], runs[name]):
            better = 0 if line.difference is None else line.difference.mean * np.sign(page.factor(page.CELLS[name]))
            if (
                line.arm in page.SHOWN
                and line.seeds == 3
                and line.difference
                and abs(better) > line.difference.interval
            ):
                sure[int(np.sign(better))].add((name, line.arm))
    assert said(
        "on MNIST and patches all arms are surely ahead but σ = 0 on patches, which is within its interval; the"
    )
    assert said(
        "the flow prior alone is surely ahead on digits, Shuttle and genes, too; σ = 0 is surely behind on digits, "
        "Shuttle (with the flow prior, too) and genes, the features alone and σ = 0.3 on genes"
    )
    assert said("all else, and all of power demand and of MNIST with two latents, is within its interval")
    assert said(
        "have three seeds as well: σ = 0.3 is surely ahead in all six, and the VAE's flow prior surely ahead on"
    )
    better = {(name, arm) for name in ("mnist", "patches") for arm in page.SHOWN if arm != "vae"} - {("patches", "aef")}
    better |= {(name, "vae-prior") for name in ("digits", "shuttle", "genes", "fashion")}
    better |= {(name, arm) for name in ("cifar10-gaussian", "fashion", "mnist-bits")
               for arm in ("aef-noise", "noise-prior")}  # fmt: skip
    assert sure[1] == better
    assert said("surely ahead on FashionMNIST and surely behind on CIFAR-10")
    assert sure[-1] == {
        ("digits", "aef"), ("shuttle", "aef"), ("shuttle", "aef-prior"), ("genes", "aef"), ("genes", "features"),
        ("genes", "aef-noise"), ("cifar10-gaussian", "vae-prior"),
    }  # fmt: skip


def test_the_targets_that_are_not_reached(page, runs):
    assert said("0.029 after 2000, with the flow prior, three seeds") and said("0.080 after 2000, with the same, three")
    for name, bits in {"mnist": 0.029, "cifar10-gaussian": 0.080}.items():
        (line,) = (line for line in page.lines(page.CELLS[name], runs[name]) if line.arm == "noise-prior")
        assert line.seeds == 3 and line.difference.mean == pytest.approx(-bits, abs=0.00051)


def test_what_is_said_of_the_papers_likelihood(page, runs):
    assert said("one seed: σ = 0.3 is 0.033 bits ahead of the VAE, σ = 0 0.034, and σ = 0.3 with the flow prior 0.055")
    found = {line.arm: line for line in page.lines(page.CELLS["mnist-gaussian"], runs["mnist-gaussian"])}
    for arm, bits in {"aef-noise": 0.033, "aef": 0.034, "noise-prior": 0.055}.items():
        assert found[arm].difference.mean == pytest.approx(-bits, abs=0.00051) and found[arm].seeds == 1


def test_what_is_said_of_the_start_of_h(runs):
    assert said("second seed | −0.6 | | +3.3 |")
    for name, nats in {"mnist": -0.6, "cifar10-gaussian": 3.3}.items():
        one, other = (np.array(runs[name][arm][1]["log_prob"]) for arm in ("unit", "aef-noise"))
        assert (one - other).mean() == pytest.approx(nats, abs=0.051)


def test_what_was_tried_is_not_ahead_at_equal_seconds(runs):
    """By the curves: held-out nats at the time when the quicker of the two runs ends."""

    def ahead(name, arm, other):
        curves = [np.array(first(runs[name], one)["validation_nats"]) for one in (arm, other)]
        end = min(curve[-1, 2] for curve in curves)
        one, two = (np.interp(end, curve[:, 2], curve[:, 1]) for curve in curves)
        return two - one

    others = {"noise-flow-path": "noise-flow", "simflow": "noise-prior", "held-0": "aef"}
    tried = ("draws", "iwae", "mlp-features", "anneal-down", "anneal-up", "noise-flow", *others)
    found = {
        (name, arm): ahead(name, arm, others.get(arm, "aef-noise"))
        for name in ("mnist", "cifar10", "cifar10-gaussian") for arm in tried if arm in runs[name]
    }  # fmt: skip
    assert said("scale at σ = 0 on CIFAR-10 with the logistic (by 5 nats of 13,800)") and len(found) == 23
    assert {key: round(float(nats)) for key, nats in found.items() if nats > 0} == {("cifar10", "held-0"): 5}


def test_what_is_said_of_an_honest_sigma_of_zero(page, runs):
    nats = {name: {arm: paired(page, own, arm, "aef")[0] for arm in page.HONEST if arm in own}
            for name, own in runs.items() if "bounded-0" in own}  # fmt: skip
    assert set(nats) == {"digits", "mnist"}
    assert said("+1.1 nats on digits as on σ = 0.3, +1.4 beside +1.5 on MNIST")
    assert said("h of the same spread (0.83 and 0.83, 1.52 and 1.54)")
    for name, noisy, sigma, spreads in (("digits", 1.1, 1.1, (0.83, 0.83)), ("mnist", 1.4, 1.5, (1.52, 1.54))):
        both = [np.array(runs[name][arm][1]["log_prob"]) for arm in ("aef-noise", "aef")]
        assert nats[name]["decoder-noise-0"] == pytest.approx(noisy, abs=0.051)
        assert (both[0] - both[1]).mean() == pytest.approx(sigma, abs=0.051)
        found = [runs[name][arm][1]["gauge"]["std_h"] for arm in ("decoder-noise-0", "aef-noise")]
        assert found == pytest.approx(spreads, abs=0.0051)
        assert nats[name]["bounded-0"] == pytest.approx({"mnist": -2, "digits": -3}[name], abs=0.5)
        others = [value for arm, value in nats[name].items() if arm not in ("decoder-noise-0", "bounded-0")]
        assert max(map(abs, others)) < 1 and max(others) < nats[name]["decoder-noise-0"]
    assert said("A bound on the posterior's scale costs 2 and 3 nats") and said("stay within a nat of σ = 0")


def test_what_is_said_of_densities_on_x(page, runs):
    def best(name, arms):
        values = [np.mean(first(runs[name], arm)["log_prob"]) for arm in arms if arm in runs[name]]
        return max(values) * page.factor(page.CELLS[name])

    assert said("on patches the flow is 1.4 bits ahead of the best arm, on Shuttle 4 nats")
    assert said("on CIFAR-10 one Gaussian is 1.9 bits ahead of every VAE and AEF")
    assert best("patches", page.SHOWN) - best("patches", ["flow"]) == pytest.approx(1.4, abs=0.051)
    assert best("shuttle", ["flow"]) - best("shuttle", page.SHOWN) == pytest.approx(4, abs=0.51)
    for name in ("cifar10", "cifar10-gaussian"):
        arms = set(runs[name]) - set(page.WITHOUT)
        assert best(name, arms) - best(name, ["gaussian"]) == pytest.approx(1.9, abs=0.051)
    assert said("On MNIST, FashionMNIST, digits and genes, VAE and AEF are ahead")
    for name in ("mnist", "fashion", "digits", "genes"):
        sign = np.sign(page.factor(page.CELLS[name]))
        assert sign * best(name, ["vae"]) > sign * best(name, page.WITHOUT)


def test_the_page_is_the_text_and_the_tables():
    """Nobody edits one of the two alone."""
    text = (ROOT / "tests" / "benchmarks" / "results" / "text.md").read_text(encoding="utf-8")
    written = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    before, *after = re.split(r"\{\w+\}", text)
    assert len(after) == 4 and written.startswith(before) and all(part in written for part in after)
