"""The report of the miniature's run in a real browser: every figure shows, nothing is fetched."""

from __future__ import annotations

import shutil

import pytest

from nsdcap.paths import Cell, artefact

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")

pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="needs Chromium and its driver (Debian: chromium-driver)"
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    profile = tmp_path_factory.mktemp("profile")
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--disable-sync",
        "--no-first-run",
        f"--user-data-dir={profile}",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def page(browser, run):
    browser.get((artefact(run, Cell("aggregate")) / "report.html").as_uri())
    return browser


def test_every_figure_is_drawn_and_described(page):
    images = page.execute_script(
        "return [...document.images].map(i => [i.complete && i.naturalWidth > 100, i.alt.length > 20])"
    )
    assert len(images) >= 5
    assert all(drawn and described for drawn, described in images)


def test_nothing_is_fetched_and_nothing_is_wrong(page):
    fetched = page.execute_script(
        "return performance.getEntriesByType('resource').map(e => e.name)"
        ".filter(name => !name.startsWith('data:'))"
    )
    assert fetched == []
    assert [entry for entry in page.get_log("browser") if entry["level"] == "SEVERE"] == []


@pytest.mark.parametrize("width", [400, 1280])
def test_the_page_does_not_scroll_sideways(page, width):
    page.set_window_size(width, 900)
    wide, room = page.execute_script(
        "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert wide <= room + 1


def test_tables_have_headers(page):
    bare = page.execute_script(
        "return [...document.querySelectorAll('table')].filter(t => !t.querySelector('th')).length"
    )
    assert bare == 0
    assert page.title
