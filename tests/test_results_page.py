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
    assert page.front(runs) in written and page.equal_seconds(runs, "small-noise", "noise-flow") in written
    assert page.beside(runs) in written and page.against(runs, page.HONEST, "small-aef") in written
    assert page.start(runs) in written and page.recommended(runs) in written
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


def nats(page, runs, arm, other):
    """An arm less another, nats, over the seeds that both have; whether the sign is beyond the interval."""
    both = sorted(runs[arm].keys() & runs[other].keys())
    found = page.mean_and_error(np.array([np.subtract(*(runs[a][s]["log_prob"] for a in (arm, other))) for s in both]))
    return found.mean, found.interval, 0 if abs(found.mean) <= found.interval else int(np.sign(found.mean))


def shown(number, digits):
    return f"{number:.{digits}f}".replace("-", "−")


def said(text):
    """Whether a sentence is on the page, whose lines are broken anywhere."""
    written = " ".join((ROOT / "docs" / "results.md").read_text(encoding="utf-8").split())
    assert text in written, text
    return True


@pytest.fixture
def front(page, runs):
    """The columns of the first table."""
    return {name: own for name, own in runs.items() if name not in page.APART}


IMAGES = ("mnist", "fashion", "mnist-bits", "patches", "cifar10", "cifar10-gaussian")
"""Images with 16 latents or more, of the first table."""


def test_every_main_arm_has_three_seeds(page, runs):
    assert said("All arms of the first table have three seeds on every data set")
    assert {len(own[arm]) for own in runs.values() for arm in page.SHOWN} == {3}


def test_what_is_said_of_the_early_lead(page, runs):
    lead = {}
    for name in ("mnist", "cifar10-gaussian"):
        own = [first(runs[name], arm)["validation_nats"] for arm in ("vae", "aef-noise")]
        lead[name] = [-page.factor(page.CELLS[name]) * (own[0][at][1] - own[1][at][1]) for at in (1, -1)]
    soon, then = (shown(bits, 3) for bits in lead["mnist"])
    assert said(f"MNIST: {soon} bits per dimension after 400 steps, {then} after 2000")
    early, late = (shown(bits, 2) for bits in lead["cifar10-gaussian"])
    assert said(f"CIFAR-10 with the Gaussian: {early} after 400, {late} after 2000")
    after = {
        arm: [int(page.equal_after(run, runs[name]["vae"])[:-2]) for name in IMAGES for run in runs[name][arm].values()]
        for arm in ("aef-noise", "noise-prior")
    }
    alone, prior = (f"{min(after[arm])} to {max(after[arm])} %" for arm in after)
    assert said(f"after {alone} of them on images with 16 latents or more, with the flow prior after {prior}")


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


def test_what_is_said_against_the_vae(page, front):
    assert page.against_vae(front) in (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert said("surely ahead, with the flow prior and without, on all six sets of images with 16 latents or more")
    assert all(nats(page, front[name], arm, "vae")[2] == 1 for name in IMAGES for arm in ("aef-noise", "noise-prior"))
    behind = {
        arm: [n for n, own in front.items() if nats(page, own, arm, "vae")[2] < 0] for arm in ("aef", "aef-noise")
    }
    assert said("σ = 0 is surely behind the VAE itself on five data sets, σ = 0.3 on one.")
    assert len(behind["aef"]) == 5 and behind["aef-noise"] == ["genes"]
    assert said(
        "(550 cells, where the best of ten looks is among the first in every arm) the VAE is ahead of every AEF"
    )
    arms = set(front["genes"]) - set(page.WITHOUT)
    looks = [min(first(front["genes"], arm)["validation_nats"], key=lambda p: p[1])[0] for arm in arms]
    assert max(looks) <= 120
    ours = [arm for arm in page.SHOWN if not arm.startswith("vae")]
    assert all(nats(page, front["genes"], arm, "vae")[0] < 0 for arm in ours)


def test_what_is_said_of_sigma(page, front):
    assert said(f"Against σ = 0 it is {page.sides(front, 'aef-noise', 'aef')}")
    small, large = ({n: first(own, arm)["gauge"]["std_h"] for n, own in front.items()} for arm in ("aef", "aef-noise"))
    assert all(small[name] < large[name] for name in front)
    one, other = (shown(h["mnist-bits"], 2) for h in (small, large))
    assert said("Its h is smaller than that of σ = 0.3 on every data set")
    assert said(f"(`std of h`: {one} and {other} on MNIST as bits)")


def test_what_is_said_of_the_prior(page, front):
    assert said(f"σ = 0.3 is {page.sides(front, 'noise-prior', 'aef-noise')} against itself without")
    assert said("and behind it in the mean on none of the eleven") and len(front) == 11
    assert all(nats(page, own, "noise-prior", "aef-noise")[0] > 0 for own in front.values())
    gains = {name: nats(page, front[name], "noise-prior", "vae-prior")[0] for name in IMAGES}
    of = {name: shown(gains[name], 1 if gains[name] < 5 else 0) for name in IMAGES}
    assert said(
        f"it has {of['mnist']} nats on MNIST, {of['mnist-bits']} on MNIST as bits, {of['fashion']} on FashionMNIST, "
        f"{of['patches']} on patches, {of['cifar10']} on CIFAR-10 with the logistic and "
        f"{of['cifar10-gaussian']} with the Gaussian"
    )


def test_what_is_said_of_the_recommended(page, runs):
    """It is the best, or within the interval of the best, but where the page says so."""
    worse = {}
    for name, own in runs.items():
        cell = page.CELLS[name]
        best = next(line.arm for line in page.lines(cell, own) if line.arm in page.SHOWN)
        if best != "noise-prior" and nats(page, own, "noise-prior", best)[2] < 0:
            worse[name] = best, shown(abs(nats(page, own, "noise-prior", best)[0] * page.factor(cell)), 3)
    assert said("on digits and genes the VAE with the flow prior is ahead (0.010 bits; 5.5 nats), on patches and")
    assert said("FashionMNIST σ = 0 with it (0.043 and 0.003 bits)") and said("on all but four")
    assert worse["genes"][0] == "vae-prior" and worse.pop("genes")[1] == "5.489"
    assert worse == {
        "digits": ("vae-prior", "0.010"), "patches": ("aef-prior", "0.043"), "fashion": ("aef-prior", "0.003"),
    }  # fmt: skip


def test_what_is_said_of_features(page, front):
    share = {
        name: nats(page, front[name], "features", "vae")[0] / nats(page, front[name], "aef-noise", "vae")[0]
        for name in IMAGES
    }
    low, high = min(share, key=share.get), max(share, key=share.get)
    text = f"has {100 * share[low]:.0f} % of it ({page.TITLES[low]}) to {100 * share[high]:.0f} % ({page.TITLES[high]})"
    assert said(f"the features, a linear path from x into the latent: `features` {text}")


def test_what_is_said_of_the_papers_likelihood(page, runs):
    found = {line.arm: line for line in page.lines(page.CELLS["mnist-gaussian"], runs["mnist-gaussian"])}
    one, two, three = (
        f"{shown(-found[arm].difference.mean, 3)} ± {shown(found[arm].difference.interval, 3)}"
        for arm in ("aef-noise", "aef", "noise-prior")
    )
    assert said(
        f"over the VAE σ = 0.3 has {one} bits, σ = 0 {two}, σ = 0.3 with the flow prior {three}: nothing is sure"
    )
    assert all(abs(line.difference.mean) < line.difference.interval for arm, line in found.items()
               if arm in page.SHOWN[1:])  # fmt: skip
    looks = [run["validation_nats"] for arm, own in runs["mnist-gaussian"].items() for run in own.values()
             if not arm.startswith("vae") and arm not in page.WITHOUT]  # fmt: skip
    assert said("in no AEF was the last look at held-out data the best")
    assert said("By one seed the smaller start was ahead") and nats(
        page, runs["mnist-gaussian"], "aef-noise", "small-noise")[2] < 0  # fmt: skip
    assert all(min(look, key=lambda p: p[1])[0] < look[-1][0] for look in looks)


def test_the_targets_that_are_not_reached(page, runs):
    for name, target in {"mnist": 0.04, "cifar10-gaussian": 0.1}.items():
        (line,) = (line for line in page.lines(page.CELLS[name], runs[name]) if line.arm == "noise-prior")
        own = [first(runs[name], arm)["validation_nats"] for arm in ("vae", "noise-prior")]
        lead = [-page.factor(page.CELLS[name]) * (vae[1] - aef[1]) for vae, aef in zip(*own, strict=True)]
        held = own[0][sum(bits >= target for bits in lead) - 1][0]
        assert lead == sorted(lead, reverse=True) or name == "mnist"
        assert -line.difference.mean < target and line.seeds == 3
        mean, interval = shown(-line.difference.mean, 3), shown(line.difference.interval, 3)
        assert said(f"held up to {held} steps, {mean} ± {interval} after 2000")


def test_what_is_said_of_the_start_of_h(page, runs):
    """Where both have three seeds: gains of the default over the small start that are beyond the interval."""
    sure = {}
    for name, own in runs.items():
        for arm, small in page.STARTS.items():
            found, seeds = page.between(page.CELLS[name], own, arm, small)
            if seeds == 3 and abs(found.mean) > found.interval:
                sure[name, arm] = shown(found.mean * (-1 if page.CELLS[name].unit == "bits" else 1), 3)
    assert said(
        "0.002 bits on MNIST and 0.8 nats on MNIST as bits that σ = 0.3 alone loses, and 0.003 and 0.004 bits on"
    )
    assert said("MNIST, 0.018 on digits, 0.033 on patches and 1.3 nats on Shuttle that σ = 0 gains")
    assert said("1.5 nats that the features at σ = 1 lose on genes")
    assert sure == {
        ("mnist", "aef-noise"): "−0.002", ("mnist-bits", "aef-noise"): "−0.764", ("mnist", "aef"): "0.003",
        ("mnist", "aef-prior"): "0.004", ("digits", "aef-prior"): "0.018", ("patches", "aef-prior"): "0.033",
        ("shuttle", "aef"): "1.267", ("genes", "features"): "−1.456",
    }  # fmt: skip
    early = {
        name: [own["small-noise"][s]["validation_nats"][1][1] - own["aef-noise"][s]["validation_nats"][1][1]
               for s in own["aef-noise"].keys() & own["small-noise"].keys()]
        for name, own in runs.items()
    }  # fmt: skip
    low, high = (shown(pick(early["cifar10-gaussian"] + early["cifar10"]), 0) for pick in (min, max))
    assert said(
        f"After a fifth of the steps σ = 0.3 is {low} to {high} nats further on CIFAR-10, and within 4 in the mean"
    )
    others = [n for n in early if n not in ("cifar10", "cifar10-gaussian", "mnist2")]
    assert all(abs(np.mean(early[name])) < 4 for name in others)


def test_what_was_tried_is_not_ahead_at_equal_seconds(runs):
    """By the curves: held-out nats at the time when the quicker of the two runs ends."""

    def ahead(name, arm, other):
        curves = [np.array(first(runs[name], one)["validation_nats"]) for one in (arm, other)]
        end = min(curve[-1, 2] for curve in curves)
        one, two = (np.interp(end, curve[:, 2], curve[:, 1]) for curve in curves)
        return two - one

    others = {"noise-flow-path": "noise-flow", "simflow": "small-noise-prior", "held-0": "small-aef"}
    tried = ("draws", "iwae", "mlp-features", "anneal-down", "anneal-up", "noise-flow", *others)
    found = {
        (name, arm): ahead(name, arm, others.get(arm, "small-noise"))
        for name in ("mnist", "cifar10", "cifar10-gaussian") for arm in tried if arm in runs[name]
    }  # fmt: skip
    assert said("scale at σ = 0 on CIFAR-10 with the logistic (by 5 nats of 13,800)") and len(found) == 23
    assert {key: round(float(nats)) for key, nats in found.items() if nats > 0} == {("cifar10", "held-0"): 5}


def test_what_is_said_of_an_honest_sigma_of_zero(page, runs):
    found_nats = {name: {arm: nats(page, own, arm, "small-aef")[0] for arm in page.HONEST if arm in own}
            for name, own in runs.items() if "bounded-0" in own}  # fmt: skip
    assert set(found_nats) == {"digits", "mnist"}
    assert said("+1.1 nats on digits as on σ = 0.3, +1.4 beside +1.5 on MNIST")
    assert said("h of the same spread (0.83 and 0.83, 1.52 and 1.54)")
    for name, noisy, sigma, spreads in (("digits", 1.1, 1.1, (0.83, 0.83)), ("mnist", 1.4, 1.5, (1.52, 1.54))):
        both = [np.array(runs[name][arm][1]["log_prob"]) for arm in ("small-noise", "small-aef")]
        assert found_nats[name]["decoder-noise-0"] == pytest.approx(noisy, abs=0.051)
        assert (both[0] - both[1]).mean() == pytest.approx(sigma, abs=0.051)
        found = [runs[name][arm][1]["gauge"]["std_h"] for arm in ("decoder-noise-0", "small-noise")]
        assert found == pytest.approx(spreads, abs=0.0051)
        assert found_nats[name]["bounded-0"] == pytest.approx({"mnist": -2, "digits": -3}[name], abs=0.5)
        assert found_nats[name]["jacobian-0"] == pytest.approx({"mnist": -2.1, "digits": -0.6}[name], abs=0.06)
        assert max(abs(found_nats[name][arm]) for arm in ("volume-flow-0", "flow-0")) < 1
        share = found_nats[name]["warm-up-0"] / found_nats[name]["decoder-noise-0"]
        assert share == pytest.approx({"mnist": 1.0, "digits": 0.3}[name], abs=0.06)
    assert said("A bound on the posterior's scale costs 2 and 3 nats, a penalty on the decoder's Jacobian 2 and 0.6")
    assert said("stay within a nat of σ = 0. A warm-up gives on MNIST what the noise gives, on digits a third of it")


def test_what_is_said_of_densities_on_x(page, runs):
    def best(name, arms):
        values = [np.mean(first(runs[name], arm)["log_prob"]) for arm in arms if arm in runs[name]]
        return max(values) * page.factor(page.CELLS[name])

    assert said("on patches the flow is 1.3 bits ahead of the best arm, on Shuttle 4 nats")
    assert said("on CIFAR-10 one Gaussian is 1.9 bits ahead of every VAE and AEF")
    assert best("patches", page.SHOWN) - best("patches", ["flow"]) == pytest.approx(1.3, abs=0.051)
    assert best("shuttle", ["flow"]) - best("shuttle", page.SHOWN) == pytest.approx(4, abs=0.51)
    for name in ("cifar10", "cifar10-gaussian"):
        arms = set(runs[name]) - set(page.WITHOUT)
        assert best(name, arms) - best(name, ["gaussian"]) == pytest.approx(1.9, abs=0.051)
    assert said("On MNIST, FashionMNIST, digits and genes, VAE and AEF are ahead")
    for name in ("mnist", "fashion", "digits", "genes"):
        sign = np.sign(page.factor(page.CELLS[name]))
        assert sign * best(name, ["vae"]) > sign * best(name, page.WITHOUT)


def test_what_is_said_of_longer_training(page, front):
    runs = json.loads((ROOT / "docs" / "results" / "other" / "long.json").read_text(encoding="utf-8"))
    found = {(run["cell"], run["arm"]): run for run in runs}

    def ahead(cell, arm, other="vae"):
        difference = np.subtract(found[cell, arm]["log_prob"], found[cell, other]["log_prob"])
        return difference.mean(), 1.96 * difference.std(ddof=1) / len(difference) ** 0.5

    def best(cell, arm):
        return min(found[cell, arm]["validation_nats"], key=lambda look: look[1])[0]

    mnist, more = ahead("mnist", "aef-noise"), ahead("mnist", "noise-prior")
    same = ahead("mnist", "noise-prior", "vae-prior")
    assert said(
        f"VAE by {mnist[0]:.1f} ± {mnist[1]:.1f} nats (7.8 ± 1.9 after 2000), with the flow prior by {more[0]:.1f} ± "
    )
    assert said(f"{more[1]:.1f}, and by {same[0]:.1f} ± {same[1]:.1f} of the VAE with the same flow prior")
    assert {best("mnist", arm) for arm in ("vae", "aef-noise", "vae-prior", "noise-prior")} == {20000}
    cifar, more = ahead("cifar10-gaussian", "aef-noise"), ahead("cifar10-gaussian", "noise-prior")
    assert said(
        f"ahead by {cifar[0]:.0f} ± {cifar[1]:.0f} nats, with the flow prior by {more[0]:.0f} ± {more[1]:.0f} (158 ± 29"
    )
    assert [best("cifar10-gaussian", arm) for arm in ("aef-noise", "noise-prior", "vae")] == [2000, 2000, 7000]
    curve = dict(found["cifar10-gaussian", "vae"]["validation_nats"])
    assert dict(found["cifar10-gaussian", "aef-noise"]["validation_nats"])[2000] < min(curve.values())
    assert said("MNIST (7.8 ± 1.9)") and said("Gaussian (158 ± 29)") and said("Gaussian (173 ± 22)")


def test_the_page_is_the_text_and_the_tables():
    """Nobody edits one of the two alone."""
    text = (ROOT / "tests" / "benchmarks" / "results" / "text.md").read_text(encoding="utf-8")
    written = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    before, *after = re.split(r"\{\w+\}", text)
    assert len(after) == 9 and written.startswith(before) and all(part in written for part in after)
