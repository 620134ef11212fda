"""The page of a comparison: what it says and shows, from hand-made runs; in a browser in test_report_browser.py."""

import json
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

pytest.importorskip("lightning")
pytest.importorskip("altair")
pytest.importorskip("jinja2")

from report_material import finished, nothing_drawn

from vae2aef.comparison import gallery, sections
from vae2aef.comparison.figures import LATENTS
from vae2aef.comparison.options import Options
from vae2aef.comparison.outcome import Material
from vae2aef.comparison.own_loop import own_loop
from vae2aef.comparison.page import render, typeset
from vae2aef.comparison.portrait import EXTREMES, REACH, STEPS, WALKED, portrait, quantiles
from vae2aef.wrapping import wrap

VOID = {"meta", "img", "br", "input", "link"}


class Reader(HTMLParser):
    """What a reader sees: text outside scripts, styles and code; tags in order; scripts by their id."""

    def __init__(self, page):
        super().__init__()
        self.open, self.text, self.tags, self.scripts = [], [], [], {}
        self.feed(page)
        self.close()
        assert self.open == [], "tags that are not closed"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "script" in self.open:
            self.scripts[self.tags[-1][1].get("id")] = json.loads(data) if self.tags[-1][1].get("id") else data
        elif data.strip() and not {"style", "pre", "code", "title"} & set(self.open):
            self.text.append((self.open[-1], re.sub(r"\s+", " ", data.strip())))

    def of(self, tag):
        return [text for where, text in self.text if where == tag]

    def attributes(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The page of images with two latents and with many, of a table, and of images by runs of an earlier version."""
    with pytest.MonkeyPatch.context() as patch:
        nothing_drawn(patch)
        made = {}
        for kind in ("images", "deep", "table", "earlier"):
            out = tmp_path_factory.mktemp(kind)
            page = sections.page(finished(out, kind), out, "vae2aef compare --data 'a&b'", "vae2aef 0")
            made[kind] = page, Reader(render(page))
        return made


def test_it_begins_with_the_verdict(pages):
    page, read = pages["images"]
    body = [tag for tag, _ in read.tags]
    assert body[body.index("body") + 1 :][:2] == ["header", "h1"]
    assert read.text[0][0] == "h1" and read.text[0][1].startswith(
        "The AEF with σ = 0.3 (aef-noise) is better than the VAE"
    )
    assert page.own_loop == own_loop("aef-noise", Options(), 16) and "Dequantize(16)" in page.own_loop
    assert page.best == 1
    assert "In your own loop:" in [text for _, text in read.text]


def test_sections_in_order(pages):
    titles = ["Learning curves", "Datum by datum", "Reconstructions and samples", "Latent manifold",
              "Hardest and easiest test data", "Use of the latents", "Gauge meter", "Certificate",
              "What the number means", "Method", "Command"]  # fmt: skip
    assert pages["images"][1].of("h2") == titles
    assert (
        pages["deep"][1].of("h2")
        == pages["table"][1].of("h2")
        == [title.replace("Latent manifold", "Traversals") for title in titles]
    )
    without = {"Latent manifold", "Hardest and easiest test data", "Use of the latents"}
    assert pages["earlier"][1].of("h2") == [title for title in titles if title not in without]
    for _, read in pages.values():
        anchors = [one["id"] for _, one in read.tags if "id" in one]
        assert len(set(anchors)) == len(anchors)
        assert {one["href"][1:] for one in read.attributes("a")} <= set(anchors)


@pytest.mark.parametrize("kind", ["images", "deep", "table", "earlier"])
def test_words(pages, kind):
    """No sentence twice, true minus signs, heads of columns in a few words, what ± is beside the first table."""
    _, read = pages[kind]
    prose = " ".join(text for where, text in read.text if where in ("p", "li", "figcaption", "dd", "h1"))
    sentences = Counter(one for one in re.split(r"(?<=[.:;])\s+", prose) if len(one) > 25)
    assert [one for one, n in sentences.items() if n > 1] == []
    assert [text for _, text in read.text if re.search(r"(?<![\w-])-\d", text)] == []
    assert any(re.search(r"−\d", text) for text in read.of("span"))
    assert max(len(text.split()) for text in read.of("th")) <= 5 and max(map(len, read.of("th"))) <= 24
    places = [text for _, text in read.text]
    meant = next(i for i, text in enumerate(places) if text.startswith("± is half of a 95"))
    assert meant < places.index("Learning curves")


def test_it_needs_nothing_else(pages):
    for _, read in pages.values():
        for tag, attributes in read.tags:
            for name in ("src", "href", "srcset", "action"):
                assert attributes.get(name, "data:").startswith(("data:", "#")), (tag, attributes)
        assert not any("url(" in text for text in read.scripts.values() if isinstance(text, str))
    assert "vae2aef compare --data &#39;a&amp;b&#39;" in render(replace(pages["images"][0], specs={}))


def test_charts_have_their_data(pages):
    for page, read in pages.values():
        assert read.scripts["specs"] == page.specs
        drawn = [one["data-spec"] for one in read.attributes("div") if "data-spec" in one]
        assert sorted(drawn) == sorted(page.specs)
    page, _ = pages["images"]
    assert '"bits": 2.5' in json.dumps(page.specs["curve-steps"]) and '"seconds": 4.0' in json.dumps(
        page.specs["curve-seconds"]
    )
    assert "curve-seconds" not in pages["earlier"][0].specs
    datum = page.test[3]
    assert (datum["number"], datum["a0"], datum["a1"]) == (3, -13.0, -11.0)
    assert datum["image"].startswith("data:image/webp") and "image" not in pages["table"][0].test[3]
    assert {"z0x", "z1y"} <= datum.keys()
    rows = pages["deep"][0].specs["aggregate"]["layer"][1]["data"]["values"]
    assert len(rows) == 2 * LATENTS and {row["latent"] % 3 for row in rows} == {0, 1, 2}
    assert len({datum["a0"] for datum in pages["deep"][0].test}) > 1


def test_what_seconds_and_steps_say(pages):
    head, first, second = pages["images"][0].table
    assert head[3] == "equal to vae after"
    assert (first[3], second[3]) == ("100% of steps, 4 s", "50% of steps, 2 s")
    assert pages["earlier"][0].table[2][3] == "50% of steps"


def test_images_stand_where_data_are_images(pages):
    images, table = pages["images"][1], pages["table"][1]
    assert len(images.attributes("img")) == 1 + 2 + 2 * 3 + 2 + 2 * 2  # dialog, data, arms, planes, ends
    assert all(one["alt"] or one["src"] == "data:," for one in images.attributes("img"))
    assert len(table.attributes("img")) == 1
    assert {"profile-0", "pairs", "moved-vae", "hardest-vae-0"} <= pages["table"][0].specs.keys()


@pytest.mark.parametrize(
    ("event", "bins", "low", "high", "answer"),
    [
        ((1, 8, 8), 17, 0, 1, True),
        ((3, 32, 32), 1, 0.0, 1.0, True),
        ((1, 50, 8), 1, -2.0, 2.0, False),  # a sequence
        ((1, 50, 3), 256, 0, 1, False),
        ((784,), 256, 0, 1, True),
        ((9,), 256, 0, 1, False),
        ((64,), 1, 0.0, 1.0, False),
        ((2, 8, 8), 256, 0, 1, False),
    ],
)
def test_what_is_an_image(event, bins, low, high, answer):
    assert gallery.are_images(event, bins, low, high) is answer


def test_large_pictures_are_small_files():
    noise = np.random.RandomState(0).rand(16, 3, 64, 64)
    assert gallery.picture(noise[:1, :, :8, :8], 1).startswith("data:image/png;base64,iVBOR")
    large = gallery.picture(noise, 8)
    assert large.startswith("data:image/webp") and len(large) < 16 * 3 * 64 * 64
    assert gallery.thumbnails(noise, budget=1000) == []


def test_whole_numbers_are_scaled_for_pictures(tmp_path):
    outcome = finished(tmp_path, "images")
    data = replace(outcome.data, test=outcome.data.test * 15, shown=outcome.data.shown * 15, bins=1)
    assert Material(replace(outcome, data=data), tmp_path).test.max() <= 1.0


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("differs by -0.1 and --seeds 3", "differs by −0.1 and <code>--seeds 3</code>"),
        ("lr 1e-05, Eq. 17-18, t10k-1", "lr 1e-05, Eq. 17-18, t10k-1"),
        ("σ = 0.3 <b>", "σ\u00a0=\u00a00.3 &lt;b&gt;"),
        ("38% of a 95 % interval", "38\u00a0% of a 95\u00a0% interval"),
    ],
)
def test_typesetting(before, after):
    assert str(typeset(before)) == after


def identity(latents):
    """A VAE whose decoder returns z: what is decoded says where it was decoded."""
    return wrap(
        None, example=torch.randn(16, latents), encoder=lambda x: (x, torch.full_like(x, 0.5)), decoder=lambda z: 1 * z,
        encoder_scale="std", core="noise", noise=1.0, core_flow="none",
    )  # fmt: skip


def test_the_plane_of_two_latents():
    test, log_prob, aef = torch.randn(20, 2), torch.randperm(20).double(), identity(2)
    state = torch.get_rng_state()
    seen = portrait(aef, test, log_prob)
    assert torch.equal(torch.get_rng_state(), state)
    at = np.array(quantiles(13))
    assert np.allclose(seen["walk"], np.stack(np.meshgrid(at, at[::-1]), axis=-1), atol=1e-5)
    assert np.allclose(seen["z"], test, atol=1e-5)
    assert seen["draws"].shape == (20, 2)


def test_traversals_move_one_latent_and_extremes_are_the_extremes():
    test, log_prob = torch.randn(40, 8) * torch.arange(1, 9), torch.randperm(40).double()
    seen = portrait(identity(8), test, log_prob)
    units = seen["walk_units"]
    assert len(units) == WALKED and set(units) <= set(range(8)) and units[0] in (6, 7)
    for row, unit in zip(seen["walk"], units, strict=True):
        assert np.allclose(row[:, unit], np.linspace(-REACH, REACH, STEPS), atol=1e-5)
        others = [i for i in range(8) if i != unit]
        assert np.allclose(row[:, others], test[0, others], atol=1e-4)
    assert log_prob[seen["hardest"]].tolist() == list(range(EXTREMES))
    assert log_prob[seen["easiest"]].tolist() == list(range(39, 39 - EXTREMES, -1))
    assert np.allclose(seen["hardest_reconstructions"], test[seen["hardest"]], atol=1e-4)
