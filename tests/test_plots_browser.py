"""The cortex that turns, in a real browser without a network: it is drawn, it turns, another map shows."""

from __future__ import annotations

import io
import shutil

import numpy as np
import pytest
from PIL import Image
from test_aggregate import FakeSurfaces, write_run

from nsdcap import plots
from nsdcap.aggregate import aggregate

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="needs Chromium and its driver (Debian: chromium-driver)"
)


@pytest.fixture
def page(tmp_path):
    from selenium import webdriver

    write_run(tmp_path, [1], [0, 1])
    target = tmp_path / "aggregate"
    aggregate(tmp_path, target, [1], [0, 1], surfaces=FakeSurfaces(), log=lambda line: None)
    plots.draw(tmp_path, target, ("cortex",), lambda line: None)
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (
        "--headless=new", "--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader",
        "--enable-unsafe-swiftshader", "--disable-dev-shm-usage", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--no-first-run", "--proxy-server=127.0.0.1:9",
        f"--user-data-dir={tmp_path / 'profile'}",
    ):  # fmt: skip
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    driver.set_window_size(700, 600)
    driver.get((target / "figures/cortex.html").as_uri())
    yield driver
    driver.quit()


def drawing(page) -> np.ndarray:
    """What is seen of the cortex, (h, w, 3) int: what lies left of the colour bar."""
    place = page.find_element("id", "cortex")
    rgb = np.asarray(Image.open(io.BytesIO(place.screenshot_as_png)).convert("RGB")).astype(int)
    return rgb[:, : int(0.8 * rgb.shape[1])]


def differs(page, before: np.ndarray) -> bool:
    """Whether a fiftieth of the drawing has another colour than before."""
    return bool((np.abs(drawing(page) - before).max(2) > 40).mean() > 0.02)


def test_the_cortex_shows_turns_and_changes_its_map(page):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.support.ui import Select, WebDriverWait

    WebDriverWait(page, 60).until(lambda _: (np.ptp(drawing(page), axis=2) > 40).mean() > 0.02)
    first = drawing(page)
    Select(page.find_element("id", "map")).select_by_visible_text("best BERT layer")
    WebDriverWait(page, 60).until(lambda _: differs(page, first))
    second = drawing(page)
    place = page.find_element("id", "cortex")
    ActionChains(page).drag_and_drop_by_offset(place, 120, 0).perform()
    WebDriverWait(page, 60).until(lambda _: differs(page, second))
    fetched = page.execute_script(
        "return performance.getEntriesByType('resource').map(e => e.name)"
        ".filter(name => !name.startsWith('data:') && !name.startsWith('blob:'))"
    )
    assert fetched == []
    assert [entry for entry in page.get_log("browser") if entry["level"] == "SEVERE"] == []
