"""The report in headless Chromium: drawn offline, clicked through, light and dark, wide and narrow."""

import json
import shutil
import time

import pytest

pytest.importorskip("lightning")
pytest.importorskip("altair")
pytest.importorskip("selenium", reason="the browser test needs selenium")

from report_material import finished
from selenium import webdriver

from vae2aef.comparison import sections
from vae2aef.comparison.page import render

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        BROWSER is None or DRIVER is None, reason="no Chromium or no chromedriver: apt-get install chromium-driver"
    ),
]
PATIENCE = 60.0


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module", params=["images", "deep", "table"])
def page(request, tmp_path_factory):
    out = tmp_path_factory.mktemp(request.param)
    (out / "report.html").write_text(render(sections.page(finished(out, request.param), out, "command", "versions")))
    assert (out / "report.html").stat().st_size < 5_000_000
    return request.param, (out / "report.html").as_uri()


def until(browser, script):
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if (found := browser.execute_script(f"return {script}")) is not None and found is not False:
            return found
        time.sleep(0.1)
    raise AssertionError(f"not within {PATIENCE:g} seconds: {script}; {browser.get_log('browser')}")


DRAWN = """[...document.querySelectorAll("[data-spec]")].filter((e) => !e.closest("[hidden]"))
    .every((e) => e.dataset.drawn === e.dataset.spec && e.querySelector("svg"))"""


def opened(browser, address, width, scheme):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.get(address)
    until(browser, DRAWN)


def requests(browser):
    """Addresses that the page asked for."""
    events = [json.loads(one["message"])["message"] for one in browser.get_log("performance")]
    return [one["params"]["request"]["url"] for one in events if one["method"] == "Network.requestWillBeSent"]


def test_every_view_is_drawn_offline(browser, page):
    requests(browser), browser.get_log("browser")
    _, address = page
    opened(browser, address, 1300, "light")
    for button in browser.find_elements("css selector", "button[data-view]"):
        button.click()
        assert button.get_attribute("aria-pressed") == "true"
        until(browser, DRAWN)
    drawn = browser.execute_script("return [...document.querySelectorAll('[data-drawn]')].map((e) => e.dataset.drawn)")
    specs = browser.execute_script("return Object.keys(JSON.parse(document.getElementById('specs').textContent))")
    assert sorted(drawn) == sorted(specs)
    empty = """return [...document.querySelectorAll("[data-spec]")].filter((e) =>
        !e.querySelectorAll(".mark-symbol path, .mark-line path").length).map((e) => e.dataset.spec)"""
    assert browser.execute_script(empty) == []
    assert [one for one in requests(browser) if not one.startswith(("file:", "data:"))] == []
    assert browser.get_log("browser") == []


def test_points_tell_and_enlarge(browser, page):
    kind, address = page
    opened(browser, address, 1300, "light")
    points = browser.find_elements("css selector", "#scatter-figure .mark-symbol path")
    points = [one for one in points if "legend" not in (one.get_attribute("aria-roledescription") or "")]
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", points[0])
    webdriver.ActionChains(browser).move_to_element(points[0]).perform()
    told = until(browser, "(document.querySelector('#vg-tooltip-element.visible') || {}).textContent")
    assert "test datum" in told and "aef-noise minus vae" in told
    webdriver.ActionChains(browser).click(points[0]).perform()
    assert browser.execute_script("return document.querySelector('dialog').open") is (kind != "table")


def test_pictures_are_enlarged_and_closed(browser, page):
    kind, address = page
    opened(browser, address, 390, "dark")
    zooms = browser.find_elements("css selector", "button.zoom")
    assert bool(zooms) == (kind != "table")
    for button in zooms[:2]:
        browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
        button.click()
        dialog = browser.find_element("css selector", "dialog")
        assert dialog.get_attribute("open") is not None
        image = dialog.find_element("tag name", "img")
        assert image.get_attribute("src") == button.find_element("tag name", "img").get_attribute("src")
        assert image.size["width"] > 250 and image.size["width"] <= 390
        dialog.find_element("css selector", "button").click()
        assert dialog.get_attribute("open") is None


@pytest.mark.parametrize("width", [390, 1300])
def test_light_and_dark_and_no_wider_than_the_screen(browser, page, width):
    grounds = {}
    for scheme in ("light", "dark"):
        opened(browser, page[1], width, scheme)
        assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
        ground = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        grounds[scheme] = sum(map(int, ground.removeprefix("rgb(").removesuffix(")").split(",")))
        white = """return [...document.querySelectorAll("svg, svg rect, svg path.background")].filter((e) =>
            /^(white|#fff(fff)?|rgb\\(255, 255, 255\\))$/.test(e.getAttribute("fill") || e.style.backgroundColor)
        ).length"""
        assert browser.execute_script(white) == 0
        text = browser.execute_script(
            "return getComputedStyle(document.querySelector('#curves-figure .role-axis-label text')).fill"
        )
        assert text == {"light": "rgb(92, 96, 102)", "dark": "rgb(163, 168, 175)"}[scheme]
    assert grounds["light"] > 700 and grounds["dark"] < 100
    # Changed while it is open, it is drawn anew.
    media = {"features": [{"name": "prefers-color-scheme", "value": "light"}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    label = "document.querySelector('#curves-figure .role-axis-label text')"
    until(browser, f"{label} && getComputedStyle({label}).fill === 'rgb(92, 96, 102)'")
    high = "return Math.max(...[...document.querySelectorAll('th')].map((e) => e.getBoundingClientRect().height))"
    assert browser.execute_script(high) < 60
