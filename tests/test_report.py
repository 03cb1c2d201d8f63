"""Figures and the HTML page of a run folder with planted results."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from test_aggregate import N_TEST, STATES, SUBJECTS, FakeSurfaces, write_run

from nsdcap import config, plots, report
from nsdcap.aggregate import aggregate, run
from nsdcap.errors import DataError
from nsdcap.paths import Cell

# Java's scores have tests of their own, and take longer than all pages here
pytestmark = pytest.mark.usefixtures("no_java")

VOID = {"meta", "img", "br", "link", "input"}
FIGURES = ["fig3_captions", "fig4_reconstructions", "figB1_subj01", "figB1_subj02", "fig5_volume",
           "fig5_streams", "fig6_layers", "fig7_volume", "fig7_streams", "fig8_volume", "fig9_alpha",
           "fig10_ceiling"]  # fmt: skip


class Page(HTMLParser):
    """Tags in order, checked for balance; text; attributes of each tag."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict]:
        return [attrs for name, attrs in self.tags if name == tag]


def make(out: Path, *, no_stimuli: bool = False, surfaces: object = None) -> Path:
    target = out / "aggregate"
    aggregate(
        out,
        target,
        SUBJECTS,
        STATES,
        surfaces=surfaces,
        no_stimuli=no_stimuli,
        log=lambda line: None,
    )
    plots.draw(out, target, log=lambda line: None)
    report.write(out, target, log=lambda line: None)
    return target


def page_of(target: Path) -> tuple[str, Page]:
    text = (target / "report.html").read_text(encoding="utf-8")
    return text, Page(text)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with its report."""
    folder = tmp_path_factory.mktemp("run")
    write_run(folder)
    (folder / "config.toml").write_text(
        'preset = "paper"\n[data]\nnsd_root = "/home/somebody/nsd"\n[models]\n'
        'blip = "/home/somebody/miniature/models/blip"\n'
    )
    make(folder)
    return folder


@pytest.fixture(scope="module")
def hidden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without stimuli."""
    folder = tmp_path_factory.mktemp("run")
    write_run(folder)
    return make(folder, no_stimuli=True)


def test_page_is_whole_and_fetches_nothing(out):
    text, page = page_of(out / "aggregate")
    assert page.open == []
    assert "http://" not in text
    assert "https://" not in text
    assert not page.all("script")
    assert not page.all("link")
    assert not re.search(r"url\(|@import", text)
    assert page.all("html")[0]["lang"] == "en"
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text


def test_every_figure_is_there_with_its_alternative_text(out):
    _, page = page_of(out / "aggregate")
    images = page.all("img")
    assert [attrs["id"] for attrs in page.all("figure")] == FIGURES
    assert len(images) == len(FIGURES)
    for attrs, name in zip(images, FIGURES, strict=True):
        assert len(attrs["alt"]) > 30
        kind, data = attrs["src"].split(",", 1)
        assert kind == "data:image/png;base64"
        png = base64.b64decode(data)
        assert png == (out / f"aggregate/figures/{name}.png").read_bytes()
        with Image.open(io.BytesIO(png)) as image:
            assert min(image.size) > 300
        assert (out / f"aggregate/figures/{name}.svg").stat().st_size > 1000


def test_tables_have_headers(out):
    _, page = page_of(out / "aggregate")
    scopes = [attrs.get("scope") for attrs in page.all("th")]
    assert set(scopes) == {"col", "row"}
    assert len(page.all("table")) == len(page.all("thead"))


def test_results_stand_beside_the_papers(out):
    _, page = page_of(out / "aggregate")
    for figure in ("11.06", "2.4 ± 1.7", "90.1 ± 3.5", "75.6", "64.6"):
        assert figure in page.text
    for word in ("nrefs:2|case:mixed", "nearest training picture", "Coarse picture", "50.0 %",
                 "not measured here", "not computed", "synthetic"):  # fmt: skip
        assert word in page.text
    assert "/home/somebody" not in page.text
    assert ".../nsd" in page.text


def test_real_pictures_are_to_stay_in_the_lab(out, tmp_path):
    write_run(tmp_path, SUBJECTS, STATES)
    (tmp_path / "config.toml").write_text(
        '[data]\nnsd_root = "/a/miniature"\n[models]\nblip = "a/b"\n'
    )
    assert "Keep this report in the lab" in page_of(make(tmp_path))[1].text
    assert "Keep this report in the lab" not in page_of(out / "aggregate")[1].text


def test_numbers_are_those_of_the_tables(out):
    opened = plots.open_run(out, out / "aggregate")
    scores = {name: opened.table(name) for name in ("captions", "pictures", "encoding", "layers")}
    rows = {row["what"]: row for row in report.results(opened, scores)}
    won = [float(r["value"]) for r in scores["pictures"] if r["arm"] == "caption over direct"]
    row = rows["Caption arm closer than the direct arm, CLIP"]
    assert row["ours"] == f"{100 * np.mean(won):.1f} %"
    assert row["n"] == f"2 × {N_TEST}"
    texts = report.readings(opened, scores)
    assert set(texts) == {3, 4, 5, 6, 7}
    # planted: z_v strong early, z_B absent there; the last layer and phase highest; none adds early
    assert "So z_v loses and z_B gains" in texts[5]
    assert "layer 2, late in the caption: not as in the paper" in texts[6]
    assert "ventral 0.0, lateral 1.0, parietal 2.0" in texts[7]


def test_without_stimuli_no_picture_is_left(out, hidden):
    text, page = page_of(hidden)
    assert "Pictures are left out" in page.text
    assert "Left out, as this report was made without stimuli" in page.text
    names = [attrs["id"] for attrs in page.all("figure")]
    assert names == [name for name in FIGURES if not name.startswith(("fig4", "figB1"))]
    assert not list((hidden / "figures").glob("fig[4B]*"))
    # figure 3 holds noise pictures' colours with them, black text on white without
    for folder, coloured in ((out / "aggregate", True), (hidden, False)):
        with Image.open(folder / "figures/fig3_captions.png") as image:
            rgb = np.asarray(image.convert("RGB")).astype(int)
        assert (np.ptp(rgb, axis=2).max() > 60) == coloured
        assert ("<image" in (folder / "figures/fig3_captions.svg").read_text()) == coloured
    assert text.count("data:image/png") == len(names)


def test_reconstructions_are_not_needed_without_stimuli(hidden):
    with h5py.File(hidden.parent / "reconstruct/subj01.h5", "a") as file:
        del file["shown"]
    plots.draw(hidden.parent, hidden, (3, 4), log=lambda line: None)


def test_no_tables_yet(tmp_path, capsys):
    assert plots.main([str(tmp_path)]) == 65
    assert "run the aggregate stage first" in capsys.readouterr().err
    with pytest.raises(DataError, match="aggregate stage"):
        report.write(tmp_path, tmp_path / "aggregate")


def test_the_stage_makes_all_of_it(tmp_path):
    write_run(tmp_path)
    (tmp_path / "blip").mkdir()
    (tmp_path / "blip/config.json").write_text('{"text_config": {"num_hidden_layers": 2}}')
    settings = (f"models.blip={tmp_path / 'blip'}", "data.subjects=[1, 2]", "no_stimuli=true")
    target = tmp_path / "begun"
    run(Cell("aggregate"), config.load(settings=settings), FakeSurfaces(), tmp_path, target)
    assert {path.name for path in target.iterdir()} == {
        "figures", "maps", "report.html", "run.json", "tables",
    }  # fmt: skip
    assert json.loads((target / "run.json").read_text())["states"] == STATES
    assert "Pictures are left out" in page_of(target)[1].text


def test_one_subject_has_no_interval_over_subjects(tmp_path):
    write_run(tmp_path, [5], [0, 1])
    target = tmp_path / "aggregate"
    aggregate(tmp_path, target, [5], [0, 1], log=lambda line: None)
    plots.draw(tmp_path, target, log=lambda line: None)
    report.write(tmp_path, target, log=lambda line: None)
    _, page = page_of(target)
    assert "one subject" in page.text
    assert "nan" not in re.sub(r"[a-z]+nan|nan[a-z]+", "", page.text.lower())
