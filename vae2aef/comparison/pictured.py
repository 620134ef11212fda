"""The sections of the report that show data: as images, or as values where data are none."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from vae2aef.comparison import figures, value_charts
from vae2aef.comparison.charts import Records, Spec
from vae2aef.comparison.gallery import picture
from vae2aef.comparison.outcome import Material
from vae2aef.comparison.page import Block, Figure, Section, Sheet, View
from vae2aef.comparison.plots import SHOWN
from vae2aef.comparison.portrait import REACH, quantiles

PROFILES = 6
PAIRS = 300
VALUES = 200
"""Values of a datum that are drawn at most."""
ENDS = ("hardest", "easiest")


def sections(material: Material, specs: dict[str, Spec]) -> list[Section]:
    """Test data with reconstructions and samples, latents decoded, hardest and easiest test data."""
    if material.images:
        return [_pictures(material), *_walks(material), *_extremes(material)]
    return [_values(material, specs), *_value_walks(material, specs), *_value_extremes(material, specs)]


def _pictures(material: Material) -> Section:
    shown, seeds = material.shown, material.outcome.options.seeds
    sheets = [Sheet("to be reconstructed", picture(shown[:SHOWN], SHOWN), "Test data that each arm reconstructs")]
    if len(shown) > SHOWN:
        sheets.append(Sheet("to compare samples with", picture(shown[SHOWN:], SHOWN), "Further test data"))
    blocks = [Block("test data", sheets)]
    for k, (arm, row) in enumerate(zip(material.arms, material.outcome.rows, strict=True)):
        found = material.arrays[arm]
        sheets = [
            Sheet("reconstructions", picture(found["reconstructions"][:SHOWN], SHOWN), f"{arm}: reconstructions"),
            Sheet(
                "samples: means", picture(found["samples"][: 2 * SHOWN], SHOWN), f"{arm}: means of x given sampled z"
            ),
        ]
        if "draws" in found:
            draws = picture(found["draws"][: 2 * SHOWN], SHOWN)
            sheets.append(Sheet("samples: draws", draws, f"{arm}: draws of p(x), with the noise of p(x | z)"))
        blocks.append(Block(f"{arm}, {row.bits_per_dim:.3f} bits per dimension", sheets, k))
    text = [
        "Reconstructions show what the latents keep: compare them with the test data, place by place. Means are what "
        "the decoder makes of sampled latents. Draws add the noise of p(x | z) and are what the likelihood is of: "
        "where they are noisier than the data, the model takes detail for noise. Click to enlarge."
        + (" All pictures are of the first seed." if seeds > 1 else "")
    ]
    return Section("pictures", "Reconstructions and samples", text, blocks=blocks)


def _walks(material: Material) -> list[Section]:
    blocks, plane = [], False
    for arm in material.having("walk"):
        walk, units = material.arrays[arm]["walk"], material.arrays[arm]["walk_units"]
        plane = len(material.arrays[arm]["prior_mean"]) == 2
        what = "plane of the two latents" if plane else "latents " + ", ".join(str(int(unit) + 1) for unit in units)
        flat = walk.reshape(-1, *walk.shape[2:])
        sheet = Sheet("", picture(flat, walk.shape[1]), f"{arm}: {what}, decoded")
        blocks.append(Block(arm if plane else f"{arm}, {what}", [sheet], material.arms.index(arm)))
    if not blocks:
        return []
    if plane:
        text = (
            "Each picture is decoded from a point of the plane: latent 1 from left to right, latent 2 from below to "
            "above, at equal steps of the prior's probability. Neighbours should turn into each other; blurred "
            "stretches lie between data."
        )
        return [Section("manifold", "Latent manifold", [text], blocks=blocks, narrow=True)]
    return [Section("manifold", "Traversals", [_how_moved(material)], blocks=blocks)]


def _how_moved(material: Material) -> str:
    which = "Each row moves one latent" if material.images else "Each chart moves the most active latent"
    order = ", the most active latents first" if material.images else ""
    return (
        f"{which} of one test datum from −{REACH:g} to +{REACH:g} standard deviations of the prior{order}; the others "
        "are held. Where nothing changes, the latent is not used."
    )


def _extremes(material: Material) -> list[Section]:
    blocks, nats = [], figures.log_prob(material.outcome)
    for arm in material.having("hardest"):
        k, sheets = material.arms.index(arm), []
        for end in ENDS:
            places, made = material.arrays[arm][end], material.arrays[arm][f"{end}_reconstructions"]
            sheet = picture(np.concatenate([material.test[places], made]), len(places))
            span = _span(nats[k][places])
            sheets.append(Sheet(f"{end}: log p(x) {span} nats", sheet, f"{arm}: {end} test data over reconstructions"))
        blocks.append(Block(arm, sheets, k))
    text = (
        "The test data with the lowest and the highest log p(x) in each arm, over their reconstructions. A lost "
        "stroke or object says that the latents miss it; a good reconstruction of a hard datum, that it is rare."
    )
    return [Section("extremes", "Hardest and easiest test data", [text], blocks=blocks)] if blocks else []


def _span(values: np.ndarray) -> str:
    return f"{values.min():.1f} to {values.max():.1f}"


def _values(material: Material, specs: dict[str, Spec]) -> Section:
    names = []
    for i, datum in enumerate(material.shown[:PROFILES]):
        made = {arm: material.arrays[arm]["reconstructions"][i] for arm in material.arms}
        names.append(f"profile-{i}")
        specs[names[-1]] = _profile({"data": datum, **made}, f"test datum {i}")
    caption = "Test data and what each arm reconstructs of them, value by value."
    views = [View("reconstructions", names, caption), *_pairs(material, specs)]
    text = ["The data are no images, so their values are shown."]
    return Section("pictures", "Reconstructions and samples", text, figures=[Figure("values-figure", views)])


def _pairs(material: Material, specs: dict[str, Spec]) -> list[View]:
    arms, test = material.having("draws"), material.test.reshape(len(material.test), -1)
    if not arms or test.shape[1] < 2:
        return []
    a, b = sorted(np.argsort(-test.std(0))[:2])
    rows: Records = []
    for what in ("data", *arms):
        values = test if what == "data" else material.arrays[what]["draws"].reshape(-1, test.shape[1])
        rows += [{"what": what, "a": float(one[a]), "b": float(one[b])} for one in values[:PAIRS]]
    specs["pairs"] = value_charts.pairs(rows, ["data", *arms], (f"value {a + 1}", f"value {b + 1}"))
    caption = "Test data and draws of p(x) in the two values that vary most; where they part, the model is wrong."
    return [View("samples", ["pairs"], caption)]


def _value_walks(material: Material, specs: dict[str, Spec]) -> list[Section]:
    names = []
    for arm in material.having("walk"):
        walk, unit = material.arrays[arm]["walk"], int(material.arrays[arm]["walk_units"][0])
        plane = len(material.arrays[arm]["prior_mean"]) == 2
        along = quantiles(walk.shape[1]) if plane else np.linspace(-REACH, REACH, walk.shape[1])
        rows: Records = []
        for at, x in zip(along, walk[len(walk) // 2 if plane else 0], strict=True):
            rows += [{"at": float(at), **point} for point in _places(x)]
        names.append(f"moved-{arm}")
        specs[names[-1]] = value_charts.moved(rows, f"{arm}, latent {unit + 1}")
    view = View("traversals", names, "A line each position of the latent, in the prior's standard deviations.")
    figure = Figure("moved", [view])
    return [Section("manifold", "Traversals", [_how_moved(material)], figures=[figure])] if names else []


def _value_extremes(material: Material, specs: dict[str, Spec]) -> list[Section]:
    views, nats = [], figures.log_prob(material.outcome)
    for arm in material.having("hardest"):
        names, k = [], material.arms.index(arm)
        for end in ENDS:
            both = zip(material.arrays[arm][end], material.arrays[arm][f"{end}_reconstructions"], strict=True)
            for place, made in itertools.islice(both, 2):
                title = f"{end}: test datum {place}, log p(x) {nats[k][place]:.1f} nats".replace("-", "\u2212")
                names.append(f"{end}-{arm}-{place}")
                specs[names[-1]] = _profile({"data": material.test[place], arm: made}, title, k)
        views.append(View(arm, names))
    caption = "The test data with the lowest and the highest log p(x) in an arm, and what it makes of them."
    figure = Figure("ends", views, caption)
    return [Section("extremes", "Hardest and easiest test data", figures=[figure])] if views else []


def _profile(values: dict[str, np.ndarray], title: str, colour: int = 0) -> Spec:
    rows = [{"what": what, **point} for what, one in values.items() for point in _places(one)]
    return value_charts.profiles(rows, list(values), title, colour)


def _places(x: np.ndarray) -> list[dict[str, float]]:
    flat: Sequence[float] = x.reshape(-1)[:VALUES].tolist()
    return [{"place": i, "value": float(f"{value:.5g}")} for i, value in enumerate(flat, start=1)]
