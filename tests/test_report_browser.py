"""The report in a real browser: all of it shows, in any width and scheme, and nothing is fetched."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from test_aggregate import STATES, SUBJECTS, write_run

from nsdcap import plots, report
from nsdcap.aggregate import aggregate
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
def planted(tmp_path_factory) -> Path:
    """A run with planted results, a caption that is no HTML and a cortex that counts to three."""
    out = tmp_path_factory.mktemp("run")
    write_run(out)
    path = artefact(out, Cell("caption", 1))
    path.write_text(path.read_text().replace("a red ball", "<img src=x onerror=document.title=1>"))
    (out / "config.toml").write_text('[models]\nblip = "/home/somebody/blip"\n')
    target = out / "aggregate"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", "")  # Java's scores have tests of their own
        aggregate(out, target, SUBJECTS, STATES, log=lambda line: None)
    plots.draw(out, target, log=lambda line: None)
    script = "for (let k = 1; k <= 3; k++) document.body.textContent = `cortex ${k}`"
    (target / "figures/cortex.html").write_text(f"<!doctype html><body><script>{script}</script>")
    report.write(out, target, log=lambda line: None)
    return out


@pytest.fixture(scope="module", params=["planted", "miniature"])
def page(request, browser):
    """Each test on a planted run's report, and on that of the whole miniature."""
    out = request.getfixturevalue("planted" if request.param == "planted" else "run")
    browser.get((artefact(out, Cell("aggregate")) / "report.html").as_uri())
    return browser


def emulate(page, width: int, scheme: str = "light") -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})


def test_every_picture_is_drawn_and_described(page):
    images = page.execute_script(
        "return [...document.images].map(i => [i.complete && i.naturalWidth > 10, i.alt.length])"
    )
    assert len(images) >= 5 + 12 * (1 + 3)
    assert all(drawn and described > 10 for drawn, described in images)


def test_nothing_is_fetched_and_nothing_is_wrong(page):
    fetched = page.execute_script(
        "return performance.getEntriesByType('resource').map(e => e.name)"
        ".filter(name => !name.startsWith('data:'))"
    )
    assert fetched == []
    assert page.get_log("browser") == []
    assert page.title.startswith("nsdcap")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1400])
def test_the_page_fits(page, width, scheme):
    emulate(page, width, scheme)
    page.execute_script("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    room, wide, out = page.execute_script("""
        const root = document.documentElement, out = [];
        for (const one of document.querySelectorAll('body *')) {
          const box = one.getBoundingClientRect();
          const scrolls = one.closest('.scroll, pre') || one.closest('.skip');
          if (box.width && box.right > root.clientWidth + 1 && !scrolls) out.push(one.outerHTML.slice(0, 99));
        }
        return [root.clientWidth, root.scrollWidth, out]""")
    assert wide <= room
    assert out == []
    ink, paper, card = page.execute_script("""
        const light = colour => colour.match(/\\d+/g).slice(0, 3).reduce((sum, x) => sum + x / 3, 0);
        const body = getComputedStyle(document.body);
        const drawing = getComputedStyle(document.querySelector('.drawing'));
        return [light(body.color), light(body.backgroundColor), light(drawing.backgroundColor)]""")
    assert (ink > paper) == (scheme == "dark")
    assert abs(ink - paper) > 180
    assert card == pytest.approx(255)  # figures are drawn on white


def test_regions_that_scroll_are_reached_by_keyboard_and_named(page):
    emulate(page, 390)
    bare = page.execute_script("""
        return [...document.querySelectorAll('body *')].filter(one => {
          const style = getComputedStyle(one);
          return ['auto', 'scroll'].includes(style.overflowX) && !(one.tabIndex === 0 && one.ariaLabel);
        }).map(one => one.outerHTML.slice(0, 99))""")
    assert bare == []


def test_tables_have_headers(page):
    bare = page.execute_script(
        "return [...document.querySelectorAll('table')].filter(t => !t.querySelector('th')).length"
    )
    assert bare == 0


def test_all_is_unfolded_for_print(page):
    count = """return [...document.querySelectorAll('details:not([open])')]
        .filter(one => !one.closest('.paper')).length"""
    page.execute_script("document.querySelectorAll('details').forEach(d => { d.open = false; })")
    before = page.execute_script(count)
    page.execute_script("dispatchEvent(new Event('beforeprint'))")
    assert before > 3
    assert page.execute_script(count) == 0
    page.execute_script("dispatchEvent(new Event('afterprint'))")
    assert page.execute_script(count) == before


def test_the_methods_are_copied(page):
    page.find_element("id", "copy-methods").click()
    taken = page.execute_script("return getSelection().toString()")
    assert "Natural Scenes Dataset" in taken
    assert "Benjamini, Y., & Hochberg, Y. (1995)" in taken
    assert page.find_element("id", "copy-said").text.startswith(("Copied", "Selected"))


def test_the_cortex_is_unpacked_on_a_click(browser, planted):
    from selenium.webdriver.support.ui import WebDriverWait

    browser.get((artefact(planted, Cell("aggregate")) / "report.html").as_uri())
    assert not browser.find_elements("tag name", "iframe")
    browser.find_element("id", "turn-cortex").click()
    wait = WebDriverWait(browser, 20)
    frame = wait.until(lambda b: b.find_element("id", "cortex-frame"))
    assert frame.get_attribute("sandbox") == "allow-scripts"
    browser.switch_to.frame(frame)
    wait.until(lambda b: b.find_element("tag name", "body").text == "cortex 3")
    reach = "try { return parent.document.title } catch (error) { return error.name }"
    assert browser.execute_script(reach) == "SecurityError"
    browser.switch_to.default_content()
    assert browser.get_log("browser") == []


def test_a_broken_cortex_is_told(browser, planted, tmp_path):
    from selenium.webdriver.support.ui import WebDriverWait

    text = (artefact(planted, Cell("aggregate")) / "report.html").read_text()
    marker = 'type="application/octet-stream">'
    (tmp_path / "page.html").write_text(text.replace(marker, marker + "AAAA"))
    browser.get((tmp_path / "page.html").as_uri())
    browser.find_element("id", "turn-cortex").click()
    said = browser.find_element("id", "cortex-said")
    WebDriverWait(browser, 20).until(lambda b: "cannot be shown here" in said.text)
    assert browser.find_element("id", "turn-cortex").is_enabled()
