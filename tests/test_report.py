"""Figures and the HTML page of a run folder with planted results."""

from __future__ import annotations

import base64
import csv
import gzip
import io
import json
import re
import shutil
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from test_aggregate import STATES, SUBJECTS, FakeSurfaces, write_run

from nsdcap import config, plots, report
from nsdcap.aggregate import COLUMNS, aggregate, run
from nsdcap.errors import DataError
from nsdcap.paths import Cell, sidecar
from nsdcap.report_readings import readings

# Java's scores have tests of their own, and take longer than all pages here
pytestmark = pytest.mark.usefixtures("no_java")

HEADER = ",".join(COLUMNS["layers"])
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


def fetches_nothing(text: str, page: Page) -> None:
    for tag, attrs in page.tags:
        for key in ("src", "href", "action", "poster", "data", "srcset", "background"):
            value = attrs.get(key) or "#"
            assert value.startswith(("data:", "#")), (tag, key, value[:80])
    assert not page.all("link")
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest|http://|https://", text)


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
    fetches_nothing(text, page)
    assert page.all("html")[0]["lang"] == "en"
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text


def test_every_figure_is_there_with_its_alternative_text(out):
    _, page = page_of(out / "aggregate")
    images = [attrs for attrs in page.all("img") if attrs.get("class") == "drawing"]
    assert [attrs["id"] for attrs in page.all("figure") if "id" in attrs] == FIGURES
    assert len(images) == len(FIGURES)
    for attrs, name in zip(images, FIGURES, strict=True):
        assert len(attrs["alt"]) > 30
        kind, data = attrs["src"].split(",", 1)
        png, drawn = base64.b64decode(data), out / f"aggregate/figures/{name}.png"
        if drawn.stat().st_size <= report.HEAVY:
            assert (kind, png) == ("data:image/png;base64", drawn.read_bytes())
        else:
            assert kind == "data:image/webp;base64"
            with Image.open(io.BytesIO(png)) as image, Image.open(drawn) as original:
                assert image.size == original.size
                off = np.asarray(image).astype(int) - np.asarray(original.convert("RGB"))
            assert np.abs(off).mean() < 12
        with Image.open(io.BytesIO(png)) as image:
            assert min(image.size) > 300
        assert (out / f"aggregate/figures/{name}.svg").stat().st_size > 1000


def test_tables_have_headers(out):
    _, page = page_of(out / "aggregate")
    scopes = [attrs.get("scope") for attrs in page.all("th")]
    assert set(scopes) == {"col", "row", "rowgroup"}
    assert all(scopes)


def test_results_stand_beside_the_papers(out):
    _, page = page_of(out / "aggregate")
    for figure in ("11.06", "2.4 ± 1.7", "90.1 ± 3.5", "75.6", "64.6"):
        assert figure in page.text
    for word in ("nrefs:2|case:mixed", "nearest training picture", "Coarse picture", "50.0 %",
                 "no ratings yet", "not computed", "synthetic"):  # fmt: skip
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


def test_readings_are_those_of_the_tables(out):
    opened = plots.open_run(out, out / "aggregate")
    texts = readings(opened, report.read_tables(out / "aggregate"))
    assert set(texts) == {3, 4, 5, 6, 7}
    # planted: z_v strong early, z_B absent there; the last layer and phase highest; none adds early
    assert "So z_v loses and z_B gains" in texts[5]
    assert "layer 2, late in the caption: not as in the paper" in texts[6]
    assert "ventral 0.0, lateral 1.0, parietal 2.0" in texts[7]


def test_without_stimuli_no_picture_is_left(out, hidden):
    text, page = page_of(hidden)
    assert "Pictures are left out" in page.text
    assert "Left out, as this report was made without stimuli" in page.text
    names = [attrs["id"] for attrs in page.all("figure") if "id" in attrs]
    assert names == [name for name in FIGURES if not name.startswith(("fig4", "figB1"))]
    assert not list((hidden / "figures").glob("fig[4B]*"))
    # figure 3 holds noise pictures' colours with them, black text on white without
    for folder, coloured in ((out / "aggregate", True), (hidden, False)):
        with Image.open(folder / "figures/fig3_captions.png") as image:
            rgb = np.asarray(image.convert("RGB")).astype(int)
        assert (np.ptp(rgb, axis=2).max() > 60) == coloured
        assert ("<image" in (folder / "figures/fig3_captions.svg").read_text()) == coloured
    assert text.count("data:image/") == len(names)


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
    assert json.loads((target / "run.json").read_text())["layers"] == STATES
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


# --- the command line --------------------------------------------------------------------------------


@pytest.fixture
def own(out, tmp_path) -> Path:
    """A copy of the finished run to write to."""
    return Path(shutil.copytree(out, tmp_path / "own"))


def test_the_command_writes_the_same_bytes_again(own, capsys):
    page = own / "aggregate/report.html"
    before = page.read_bytes()
    page.unlink()
    assert report.main([str(own)]) == 0
    assert page.read_bytes() == before
    assert f"report {page}" in capsys.readouterr().out
    assert report.main([str(own), "--output", str(own / "new/page.html")]) == 0
    assert (own / "new/page.html").read_bytes() == before


def test_no_stimuli_leaves_every_picture_out_of_a_run_that_has_them(own, hidden):
    kept = {path.name: path.read_bytes() for path in (own / "aggregate/figures").iterdir()}
    target = own / "clean.html"
    assert report.main([str(own), "--no-stimuli", "--output", str(target)]) == 0
    text = target.read_text()
    page = Page(text)
    names = [attrs["id"] for attrs in page.all("figure")]
    assert names == [name for name in FIGURES if not name.startswith(("fig4", "figB1"))]
    assert "Pictures are left out" in page.text
    assert "Gallery" not in page.text
    # planted noise is in colour: no figure of pictures passes for one of captions
    for attrs, name in zip(page.all("img"), names, strict=True):
        data = base64.b64decode(attrs["src"].split(",", 1)[1])
        if name == "fig3_captions":
            with Image.open(io.BytesIO(data)) as image:
                assert np.ptp(np.asarray(image.convert("RGB")).astype(int), axis=2).max() <= 60
            assert data == (hidden / "figures/fig3_captions.png").read_bytes()
    assert kept == {path.name: path.read_bytes() for path in (own / "aggregate/figures").iterdir()}
    assert "Gallery" in Page((own / "aggregate/report.html").read_text()).text


def test_captions_with_html_in_them_are_only_text(own):
    evil = '</script><script>document.title="x"</script><img src=x onerror=alert(1)>" onload="y'
    for subject in SUBJECTS:
        path = own / f"caption/subj{subject:02d}.json"
        content = json.loads(path.read_text())
        for entry in content["captions"].values():
            for arm in content["arms"]:
                entry[arm] = evil
            entry["references"][0] = evil
        path.write_text(json.dumps(content))
    before = Page((own / "aggregate/report.html").read_text())
    plots.draw(own, own / "aggregate", (3, 4), log=lambda line: None)
    assert report.main([str(own)]) == 0
    text, page = page_of(own / "aggregate")
    fetches_nothing(text, page)
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in before.tags]
    assert not any(key.startswith("on") for _, attrs in page.tags for key in attrs)
    assert evil in page.text


def test_rows_and_figures_that_are_not_known_appear(own):
    tables = own / "aggregate/tables"
    with (tables / "captions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    rows += [
        {
            **rows[0],
            "metric": "SPICE",
            "definition": "F of graphs",
            "value": "",
            "note": "needs Java",
        },
        {
            **rows[0],
            "metric": "New-S",
            "definition": "new <b>",
            "value": "0.4375",
            "n_shuffles": "1000",
        },
    ]
    with (tables / "captions.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], "note", "n_shuffles"])
        writer.writeheader()
        writer.writerows(rows)
    (tables / "overlap.csv").write_text("subject,share\n1,0.25\n")
    figures = own / "aggregate/figures"
    listing = json.loads((figures / "figures.json").read_text())
    for name, number in (("more_of_it", None), ("fig12_more", 12)):
        shutil.copy(figures / "fig6_layers.png", figures / f"{name}.png")
        listing.append({"name": name, "number": number, "caption": "c " * 20, "alt": "a " * 20})
    (figures / "figures.json").write_text(json.dumps(listing))
    assert report.main([str(own)]) == 0
    _, page = page_of(own / "aggregate")
    assert [f["id"] for f in page.all("figure") if "id" in f] == [
        *FIGURES,
        "fig12_more",
        "more_of_it",
    ]
    for words in ("not computed: needs Java", "New-S", "new <b>", "0.438", "1000 shuffles", "Figure 12",
                  "More of it", "Overlap", "0.250"):  # fmt: skip
        assert words in page.text


def test_times_and_the_cortex_are_in_it_where_they_are_there(own):
    assert not any(attrs.get("id") == "cortex" for _, attrs in page_of(own / "aggregate")[1].tags)
    (own / "aggregate/figures/cortex.html").write_text("<p>turns</p>" * 1000)
    content = {"seconds": 75.0, "ended": "2026-03-04T05:06:07+00:00", "depends": {"version": "0.0.9"},
               "weights_sha256": {"blip/model.safetensors": "ab" * 32}}  # fmt: skip
    sidecar(own, Cell("decode", 1)).write_text(json.dumps(content))
    assert report.main([str(own)]) == 0
    text, page = page_of(own / "aggregate")
    for words in ("1 min 15 s", "results as of 04 March 2026, 05:06 UTC", "nsdcap 0.0.9", "ab" * 32,
                  "A cortex that turns"):  # fmt: skip
        assert words in page.text
    packed = re.search(r'<script id="cortex-packed"[^>]*>([^<]*)</script>', text)
    assert gzip.decompress(base64.b64decode(packed[1])).decode() == "<p>turns</p>" * 1000
    assert len(packed[1]) < 1000


def test_headings_go_down_by_one_and_ids_are_unique(out):
    _, page = page_of(out / "aggregate")
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(below - above <= 1 for above, below in pairwise(levels))
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    used = [attrs["aria-labelledby"] for _, attrs in page.tags if "aria-labelledby" in attrs]
    used += [attrs["href"][1:] for attrs in page.all("a") if attrs["href"].startswith("#")]
    assert set(used) <= set(ids)
    assert {"header", "nav", "main", "footer"} <= {tag for tag, _ in page.tags}


@pytest.mark.parametrize(
    ("spoil", "code", "message"),
    [
        (lambda own: (own / "config.toml").unlink(), 2, "found no config.toml there; give the folder"),
        (lambda own: shutil.rmtree(own / "aggregate"), 65, "no run.json; run the aggregate stage"),
        (lambda own: (own / "aggregate/tables/captions.csv").unlink(), 65, "captions.csv: cannot be read"),
        (lambda own: (own / "aggregate/tables/layers.csv").write_text(HEADER), 65, "layers.csv: holds no rows"),
        (lambda own: (own / "aggregate/run.json").write_text("{"), 65, "run.json: broken"),
        (lambda own: shutil.rmtree(own / "aggregate/figures"), 65, "draw the figures first"),
        (lambda own: (own / "aggregate/figures/fig6_layers.png").unlink(), 65, "fig6_layers.png: missing"),
        (lambda own: (own / "aggregate/figures/figures.json").write_text("["), 65, "figures.json: broken"),
        (lambda own: (own / "reconstruct/subj01.h5").write_text("x"), 65, "subj01.h5: cannot be read"),
    ],
)  # fmt: skip
def test_what_is_missing_or_broken_is_one_line(own, capsys, spoil, code, message):
    spoil(own)
    assert report.main([str(own)]) == code
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_a_place_that_cannot_be_written_to_is_one_line(own, capsys):
    (own / "file").write_text("")
    before = sorted((own / "encode").iterdir())
    for place in (own / "file/page.html", own / "encode"):
        assert report.main([str(own), "--output", str(place)]) == 2
        said = capsys.readouterr().err
        assert f"report {place}: cannot be written" in said
        assert said.count("\n") == 1
    assert sorted((own / "encode").iterdir()) == before
