"""A rater's whole session in a real browser, from the first page to the scores."""

from __future__ import annotations

import json
import shutil
import threading
import time
from pathlib import Path

import pytest
from rating_runs import caption_of, write_run

from nsdcap.rating.make import make
from nsdcap.rating.score import score
from nsdcap.rating.serve import RatingServer

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")

pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="needs Chromium and its driver (Debian: chromium-driver)"
)
WRONG = {4, 9}  # pictures that the rater takes the other caption for

# what a person sees: the colour of the shown picture and both captions
SEEN = """
const canvas = document.createElement("canvas");
const picture = document.getElementById("shown");
canvas.width = canvas.height = 1;
const context = canvas.getContext("2d");
context.drawImage(picture, 0, 0, 1, 1);
const text = side => document.querySelector(`#${side} .caption`).textContent;
return [context.getImageData(0, 0, 1, 1).data[0], text("left"), text("right")];
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    profile, downloads = tmp_path_factory.mktemp("profile"), tmp_path_factory.mktemp("downloads")
    for flag in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        "--disable-background-networking", "--disable-sync", "--no-first-run",
        f"--user-data-dir={profile}",
    ):  # fmt: skip
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    driver.downloads = downloads
    yield driver
    driver.quit()


class Rater:
    """Someone at the page who knows each picture's caption by its colour."""

    def __init__(self, browser, server, name: str):
        self.browser, self.server, self.name = browser, server, name
        self.url = f"http://127.0.0.1:{server.server_port}/{server.tokens[name]}/"
        self.log: list[tuple[int, str, str]] = []  # nsd_id, chosen text, other text

    def by(self, name: str):
        return self.browser.find_element("id", name)

    def press(self, key: str) -> None:
        from selenium.webdriver import ActionChains

        ActionChains(self.browser).send_keys(key).perform()

    def wait(self, script: str):
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.browser, 30, poll_frequency=0.02).until(
            lambda browser: browser.execute_script(f"return {script}")
        )

    def ready(self, number: int) -> None:
        self.wait(f"ready && stage.dataset.trial === '{number}'")

    def judge(self, how: str) -> None:
        """One trial: right, but wrong for the planted pictures; by keys or by mouse."""
        nsd_id, left, right = self.browser.execute_script(SEEN)
        own = f"thing {nsd_id}"
        assert left.endswith(own) != right.endswith(own)
        mine = "left" if left.endswith(own) else "right"
        if nsd_id in WRONG:
            mine = {"left": "right", "right": "left"}[mine]
        texts = {"left": left, "right": right}
        self.log.append((nsd_id, texts.pop(mine), *texts.values()))
        if how == "click":
            self.by(mine).click()
        else:
            from selenium.webdriver import Keys

            arrow = Keys.ARROW_LEFT if mine == "left" else Keys.ARROW_RIGHT
            self.press({"arrow": arrow, "letter": "f" if mine == "left" else "j"}[how])


@pytest.fixture(scope="module")
def session(browser, tmp_path_factory):
    """rater01's session, with a reload and an undo in the middle; then handed in."""
    from selenium.webdriver import Keys

    out = write_run(tmp_path_factory.mktemp("rated") / "out")
    folder = out.parent / "study"
    make(out, folder, "captions", raters=2, trials=10, seed=5, catch=2)
    server = RatingServer(folder, 0, lambda line: None)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    rater = Rater(browser, server, "rater01")
    browser.set_window_size(1200, 850)
    browser.get(rater.url)
    rater.press(Keys.ENTER)
    for number in range(12):
        rater.ready(number)
        if number == 5:  # gone, and back
            browser.refresh()
            rater.wait("screen === 'start'")
            assert "5 of 12 done" in rater.by("begin").text
            rater.by("begin").click()
            rater.ready(5)
        if number == 8:  # the last choice taken back: the trial before comes again
            rater.press("u")
            rater.ready(7)
            rater.log.pop()
            rater.judge("arrow")
            rater.ready(8)
        rater.judge(("arrow", "letter", "click")[number % 3])
    rater.wait("screen === 'end'")
    yield rater
    server.shutdown()
    server.server_close()


def test_nothing_is_handed_in_before_the_rater_says_so(session):
    assert not session.server.answers("rater01").exists()
    session.by("undo-last").click()
    session.ready(11)
    session.log.pop()
    session.judge("click")
    session.wait("screen === 'end'")


def test_a_session_handed_in_and_scored_gives_what_was_chosen(session):
    from selenium.webdriver import Keys

    session.press(Keys.ENTER)
    session.wait("document.body.dataset.stored === 'true'")
    found = score(session.server.folder)
    test = [(i, mine, other) for i, mine, other in session.log if "sees" in mine]
    right = sum(i not in WRONG for i, _, _ in test)
    assert (len(test), len(session.log)) == (10, 12)
    assert 0 < right < 10
    assert [found["percent"], found["n_raters"], found["n_trials"]] == [10 * right, 1, 10]
    caught = [i for i, mine, _ in session.log if "sees" not in mine]
    assert found["raters"][0]["catch_correct"] == sum(i not in WRONG for i in caught)
    assert found["missing_raters"] == ["rater02"]
    # captions are of one subject's brain each
    assert all(mine.split()[1] == other.split()[1] for _, mine, other in test)
    assert all(
        mine == caption_of(int(mine.split()[1]), i, "Brain")
        for i, mine, _ in test
        if i not in WRONG
    )


def test_the_file_tells_no_more_than_it_should_and_can_be_downloaded(session):
    stored = session.server.answers("rater01").read_bytes()
    content = json.loads(stored)
    assert len(content["answers"]) == 12
    assert set(content["answers"][0]) == {"trial", "choice", "ms", "at"}
    assert all(0 < answer["ms"] < 60_000 for answer in content["answers"])
    session.by("download").click()
    path = Path(session.browser.downloads) / f"captions-{content['study']}-rater01.json"
    for _ in range(100):
        if path.exists():
            break
        time.sleep(0.05)
    assert path.read_bytes() == stored


def test_a_page_that_is_opened_again_hands_in_the_same_file(session):
    before = session.server.answers("rater01").stat().st_mtime_ns
    session.browser.refresh()
    session.wait("document.body.dataset.stored === 'true'")
    assert "stored" in session.by("told").text
    assert session.server.answers("rater01").stat().st_mtime_ns == before


def test_the_page_loads_nothing_from_elsewhere_and_complains_of_nothing(session):
    fetched = session.browser.execute_script(
        "return performance.getEntriesByType('resource').map(e => e.name)"
    )
    assert all(name.startswith((session.url, "blob:", "data:")) for name in fetched)
    assert [
        entry for entry in session.browser.get_log("browser") if entry["level"] == "SEVERE"
    ] == []


@pytest.fixture(scope="module")
def both(session):
    """Someone at a page of each study: rater02 of the one above, and of one about pictures."""
    folder = session.server.folder.parent / "pictures"
    make(session.server.folder.parent / "out", folder, "pictures", raters=2, trials=4, catch=0)
    server = RatingServer(folder, 0, lambda line: None)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield {
        one.study.kind: Rater(session.browser, one, "rater02") for one in (session.server, server)
    }
    server.shutdown()
    server.server_close()


def test_a_server_that_is_away_costs_no_answer(both):
    """Pictures come when it is back; answers can be downloaded, and handed in later."""
    from selenium.webdriver import Keys

    rater = both["pictures"]
    rater.browser.get(rater.url)
    rater.press(Keys.ENTER)
    rater.ready(0)
    rater.wait("pictures.has(1)")
    rater.wait(
        "performance.getEntriesByType('resource').filter(e => e.name.includes(trials[1].id)).length === 3"
    )
    away(rater.browser, True)
    rater.press("f")
    rater.ready(1)  # its pictures were there already
    rater.press("f")
    rater.wait("!by('trouble').hidden")
    rater.press("f")
    assert rater.browser.execute_script("return state.answers.length") == 2
    away(rater.browser, False)
    rater.ready(2)
    assert rater.browser.execute_script("return by('trouble').hidden")
    rater.press("j")
    rater.ready(3)
    rater.press("j")
    rater.wait("screen === 'end'")
    away(rater.browser, True)
    rater.press(Keys.ENTER)
    rater.wait("document.body.dataset.stored === 'false'")
    assert "The server does not answer. Download your file" in rater.by("told").text
    assert rater.by("download").is_displayed()
    away(rater.browser, False)
    rater.press(Keys.ENTER)
    rater.wait("document.body.dataset.stored === 'true'")
    choices = [
        one["choice"] for one in json.loads(rater.server.answers("rater02").read_text())["answers"]
    ]
    assert choices == ["left", "left", "right", "right"]


def away(browser, so: bool) -> None:
    """As if the server had gone, or were back."""
    browser.execute_cdp_cmd("Network.enable", {})
    conditions = {"offline": so, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    browser.execute_cdp_cmd("Network.emulateNetworkConditions", conditions)


@pytest.mark.parametrize("width", [390, 1400])
@pytest.mark.parametrize("kind", ["captions", "pictures"])
def test_both_sides_are_alike_and_stay_where_they_are(both, kind, width):
    """Equal boxes beside each other, at the same place in every trial; nothing to scroll."""
    from selenium.webdriver import Keys

    rater = both[kind]
    rater.browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    rater.browser.get(rater.url)
    rater.browser.execute_script("localStorage.removeItem(key)")
    rater.browser.refresh()
    rater.press(Keys.ENTER)
    boxes = []
    for number in range(3):
        rater.ready(number)
        boxes.append(
            rater.browser.execute_script(
                "const names = ['#shown', '#left', '#right', '#left img', '#right img'];"
                "return names.flatMap(name => [...document.querySelectorAll(name)]).map(one => {"
                " const box = one.getBoundingClientRect();"
                " return [box.x, box.y, box.width, box.height].map(Math.round); })"
            )
        )
        rater.press("f")
    assert boxes[0] == boxes[1] == boxes[2]
    shown, left, right, *pictures = boxes[0]
    assert left[1:] == right[1:]
    assert left[0] + left[2] < right[0]
    assert all(picture[2:] == shown[2:] for picture in pictures)
    assert shown[2] == shown[3] >= 150
    wide, room, high = rater.browser.execute_script(
        "const root = document.documentElement; return [root.scrollWidth, root.clientWidth, root.scrollHeight]"
    )
    assert wide <= room
    assert high <= 800
    rater.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
