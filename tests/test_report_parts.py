"""What a report says: results beside the paper's, methods, times, provenance, gallery."""

from __future__ import annotations

import base64
import io
import json
import shutil
from dataclasses import replace

import h5py
import numpy as np
import pytest
from PIL import Image
from test_aggregate import N_TEST, STATES, SUBJECTS, write_run

from nsdcap import plots
from nsdcap.aggregate import aggregate
from nsdcap.config import Config, Data, Decode, Encode, Models, Reconstruct, Ridge
from nsdcap.errors import DataError
from nsdcap.paths import Cell, sidecar
from nsdcap.plots_cortex import Run
from nsdcap.prepare import DROPPED
from nsdcap.report import read_tables
from nsdcap.report_costs import cells_of, costs
from nsdcap.report_gallery import PICTURES, gallery, picture_uri
from nsdcap.report_methods import Facts, methods, read_facts
from nsdcap.report_provenance import weights
from nsdcap.report_references import REFERENCES
from nsdcap.report_results import (
    MINIATURE,
    changed_settings,
    differences,
    not_comparable,
    read_ratings,
    results,
)
from nsdcap.report_scores import by_metric, overview

PAPERS = Facts(
    37, 24980, 8859, 982, 2.82, 12000, {"z_v": 151296, "c": 59136, "z": 6400},
    dict.fromkeys(("z_v", "c", "z"), (1e-5, 1e5, 16)), {"z_v": 12000, "c": 12000, "z": 5000},
    dict.fromkeys(DROPPED.values(), 0), 0,
)  # fmt: skip
PAPER_MODELS = Models(blip="/w/model_base_capfilt_large.pth", diffusion="/w/stable-diffusion-v1-4")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run folder with tables; read only."""
    out = tmp_path_factory.mktemp("run")
    write_run(out)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", "")  # Java's scores have tests of their own
        aggregate(out, out / "aggregate", SUBJECTS, STATES, log=lambda line: None)
    return plots.open_run(out, out / "aggregate")


@pytest.fixture
def own(run, tmp_path) -> Run:
    """A copy of it to write to."""
    shutil.copytree(run.out, tmp_path / "run")
    return plots.open_run(tmp_path / "run", tmp_path / "run/aggregate")


def row(metric: str, value: str, subject: int = 1, arm: str = "brain", **more: str) -> dict:
    return {
        "subject": str(subject), "arm": arm, "metric": metric, "definition": f"{metric} defined",
        "value": value, "ci_low": "", "ci_high": "", "chance_mean": "", "chance_sd": "", "n": "12",
    } | more  # fmt: skip


# --- scores ----------------------------------------------------------------------------------------


def test_a_metric_that_is_not_known_appears_with_every_arm(run):
    table = [row("New-S", "0.5"), row("New-S", "0.7", 2), row("New-S", "0.1", arm="other")]
    (metric,) = by_metric(run, table)
    assert (metric.name, metric.definition) == ("New-S", "New-S defined")
    assert [(arm.arm, arm.mean) for arm in metric.arms] == [("brain", "0.600"), ("other", "0.100")]
    assert metric.arms[0].of(2) == "0.700"
    assert metric.arms[1].of(2) == ""


def test_an_overview_has_a_row_a_metric_and_a_column_an_arm(run):
    table = [row("A", "0.5"), row("A", "0.25", arm="other"), row("B", "", note="no Java"),
             row("wins", "0.5", arm="x over y"), row("C", "1", arm="third")]  # fmt: skip
    view = overview(by_metric(run, table))
    assert view.arms == ["brain", "other", "third"]
    assert [metric.name for metric, _ in view.rows] == ["A", "B", "C"]
    means = [[arm.mean if arm else "" for arm in arms] for _, arms in view.rows]
    assert means == [["0.500", "0.250", ""], ["none", "", ""], ["", "", "1.00"]]
    assert [metric.computed for metric, _ in view.rows] == [True, False, True]


def test_shuffles_are_named_where_the_table_counts_them(run):
    (metric,) = by_metric(run, [row("CIDEr", "1.5", n_shuffles="1000", chance_mean="0.2")])
    assert metric.shuffles == "1000"
    assert (metric.arms[0].mean, metric.arms[0].chance) == ("1.50", "0.20")


# --- beside the paper --------------------------------------------------------------------------------


def test_every_result_of_the_paper_has_a_row(run):
    rows = results(run, read_tables(run.target), {})
    text = " ".join(f"{r.what} {r.paper}" for r in rows)
    for figure in ("11.06 (chance 2.4 ± 1.7)", "above chance", "90.1 ± 3.5 %", "75.6 %", "64.6 %",
                   "fig. 5", "fig. 6", "fig. 7"):  # fmt: skip
        assert figure in text
    ours = {r.what: r for r in rows}
    won = [float(r["value"]) for r in run.table("pictures") if r["arm"] == "caption over direct"]
    own = ours["Caption arm closer to the shown picture than the direct arm, by CLIP"]
    assert (own.ours, own.n) == (f"{100 * np.mean(won):.1f} %", f"2 × {N_TEST}")
    rated = ours["Captions, people choose between own and another picture’s"]
    assert rated.why.startswith("no ratings yet")


def test_each_kind_of_bleu_stands_in_a_row_of_its_own(run):
    rows = {r.what: r for r in results(run, read_tables(run.target), {})}
    assert rows["Captions from the brain, BLEU-4 coco"].why == "needs Java: no java on the PATH"
    assert rows["Captions from the brain, BLEU-4 sacrebleu"].paper != ""


def test_ratings_fill_the_human_rows(own):
    (own.out / "rating").mkdir()
    found = {
        "percent": 88.25,
        "sd": 4.04,
        "interval": [85.5, 90.75],
        "n_raters": 4,
        "n_trials": 600,
    }
    (own.out / "rating/captions.json").write_text(json.dumps(found))
    ratings = read_ratings(own.out)
    rows = results(own, read_tables(own.target), ratings)
    rated = next(r for r in rows if "people choose between" in r.what)
    assert (rated.ours, rated.interval) == ("88.2 ± 4.0 %", "85.5 % to 90.8 %")
    assert rated.n == "4 raters × 600"
    assert "4 raters, the paper 6" in not_comparable(rated, [], False, ratings)
    other = next(
        r for r in rows if r.what == "Caption arm closer than the direct arm, people choose"
    )
    assert other.why


@pytest.mark.parametrize(
    "content", ["{", '{"percent": 3}', '{"percent": "x", "sd": 1, "interval": [1]}']
)
def test_broken_ratings_are_named(own, content):
    (own.out / "rating").mkdir()
    (own.out / "rating/pictures.json").write_text(content)
    with pytest.raises(DataError, match=r"rating/pictures\.json: found no rating results"):
        read_ratings(own.out)


def test_the_papers_own_run_is_comparable_but_for_what_it_does_not_say(run):
    paper = Run(run.out, run.target, {**run.about, "subjects": [1, 2, 5, 7]})
    facts = dict.fromkeys((1, 2, 5, 7), PAPERS)
    settings = Config(models=PAPER_MODELS, data=Data(nsd_root="/nsd"), seed=3)
    assert differences(paper, settings, facts) == []
    rows = results(run, read_tables(run.target), {})
    why = {r.what: not_comparable(r, [], False, {}) for r in rows if not r.why}
    assert why["Captions from the brain, BLEU-4 sacrebleu"] == ["the paper does not say which BLEU"]
    assert all(not_comparable(r, [], True, {}) == [MINIATURE] for r in rows if not r.why)


def test_what_differs_is_named(run):
    settings = Config(
        preset="released", models=replace(PAPER_MODELS, blip="Salesforce/blip-image-captioning-base"),
        reconstruct=Reconstruct(steps=25), decode=Decode(gain="cv"),
    )  # fmt: skip
    facts = {1: replace(PAPERS, sessions=3, tests=100), 2: replace(PAPERS, sessions=40)}
    found = differences(run, settings, facts)
    text = "\n".join(f"{about}: {words}" for about, words in found)
    for words in ("all: subjects 1, 2, the paper 1, 2, 5, 7", "3, 40 sessions, the paper 37",
                  "100, 982 test pictures", "preset 'released'", "reconstruct.steps = 25 (50)",
                  'decode.gain = "cv" ("none")', "tuned for COCO captions"):  # fmt: skip
        assert words in text
    assert "Stable Diffusion" not in text
    assert any(about == "all" and "captioner" in words for about, words in found)


def test_settings_that_change_no_result_are_not_named():
    settings = Config(data=Data(nsd_root="/x", subjects=(1,)), encode=Encode(block=9), seed=4)
    assert changed_settings(settings) == []


# --- methods -----------------------------------------------------------------------------------------


def text_of(
    settings: Config, run: Run, facts: dict | None = None, metrics=("BLEU-4 sacrebleu",)
) -> str:
    facts = facts or {1: PAPERS, 2: PAPERS}
    paragraphs, references = methods(run, settings, facts, list(metrics), False)
    return "\n".join([*(text for _, text in paragraphs), *references])


@pytest.mark.parametrize(
    ("setting", "without", "words"),
    [
        ({"ridge": Ridge(folds=7)}, "by 5-fold", "by 7-fold"),
        ({"ridge": Ridge(group_folds=False)}, "all trials of a picture in one fold", "consecutive trials"),
        ({"decode": Decode(gain="cv")}, "", "multiplied about the training mean by one factor"),
        ({"decode": Decode(alpha="feature")}, "for each target", "once for all targets of a latent"),
        ({"decode": Decode(intercept=False)}, "", "without the training mean"),
        ({"data": Data(scale=False)}, "percent signal change", "integers"),
        ({"data": Data(zscore_sessions=True)}, "", "standardising each session"),
        ({"reconstruct": Reconstruct(strength=0.6)}, "strength 0.8", "strength 0.6"),
        ({"reconstruct": Reconstruct(samples=1)}, "5 samples", "1 sample a picture"),
        ({"reconstruct": Reconstruct(noise="same")}, "noise of its own", "the same noise for every"),
        ({"reconstruct": Reconstruct(posterior="sample")}, "(mean of the", "(a sample of the"),
        ({"encode": Encode(nulls=200)}, "1,000 permutations", "200 permutations"),
        ({"models": Models(clip="a/other-clip")}, "clip-vit-base-patch32", "weights a/other-clip"),
        ({"seed": 7}, "numbers was 0", "numbers was 7"),
    ],
)  # fmt: skip
def test_a_setting_changes_its_sentence(run, setting, without, words):
    plain, other = text_of(Config(), run), text_of(Config(**setting), run)
    assert words in other
    assert words not in plain
    assert without in plain
    assert not without or without not in other


def test_numbers_come_from_the_results(run):
    facts = read_facts(run.out, run, None)
    with h5py.File(run.out / "prepare/subj01.h5") as file:
        early = int((file["stream"][:] == 1).sum())
    assert facts[1].roi_voxels["z"] == early
    assert (facts[1].sessions, facts[1].trials, facts[1].tests) == (3, 600, N_TEST)
    assert facts[1].alphas["c"] == (0.1, 100.0, 4)
    text = text_of(Config(), run, facts)
    for words in ("3 sessions", f"{N_TEST} pictures", "600 single trials", f"({early} voxels)",
                  "4 penalties from 0.1 to 100", "40 numbers", "3.00 trials a picture"):  # fmt: skip
        assert words in text
    uneven = {1: PAPERS, 2: replace(PAPERS, trials=1970)}
    assert "24,980 and 1,970 single trials" in text_of(Config(), run, uneven)


def test_voxels_left_out_are_told_by_subject_and_reason(run):
    none = dict.fromkeys(DROPPED.values(), 0)
    some = none | {DROPPED["dropped_zero"]: 1200, DROPPED["dropped_no_ncsnr"]: 2}
    facts = {1: replace(PAPERS, dropped=some, saturated=7), 2: PAPERS}
    data = dict(methods(run, Config(), facts, [], False)[0])["Data"]
    assert (
        "Voxels were left out: 1,200 and 0 that were 0 throughout some session and 2 and 0 that were without"
        in data
    )
    assert "7 and 0 betas had the largest size that is stored." in data
    data = dict(methods(run, Config(), {2: PAPERS}, [], False)[0])["Data"]
    assert "left out" not in data
    assert "largest size" not in data


def test_only_what_is_cited_is_listed(run):
    text = text_of(Config(), run)
    _, references = methods(run, Config(), {1: PAPERS}, ["CIDEr", "two-way AlexNet(2)"], False)
    assert "Vedantam et al., 2015" not in text
    assert any(r.startswith("Vedantam") for r in references)
    assert any(r.startswith("Krizhevsky") for r in references)
    for short, full in REFERENCES.values():
        year = short.rsplit(", ", 1)[1]
        assert f"({year})" in full
        assert full.startswith(short.split(" ")[0].rstrip(","))
    for must in (
        "Allen",
        "Takagi",
        "Li, J.",
        "Rombach",
        "Radford",
        "Benjamini",
        "Hoerl",
        "Gramfort",
        "Abraham",
    ):
        assert any(r.startswith(must) for r in references)


def test_the_miniature_does_not_pass_for_the_data_set(run):
    paragraphs, _ = methods(run, Config(), {1: PAPERS}, [], True)
    assert paragraphs[0][1].startswith("The data are a synthetic miniature")


# --- times -------------------------------------------------------------------------------------------


def note(run: Run, cell: Cell, seconds: float, ended: str, **more: object) -> None:
    content = {"cell": str(cell), "seconds": seconds, "ended": ended, **more}
    sidecar(run.out, cell).parent.mkdir(exist_ok=True)
    sidecar(run.out, cell).write_text(json.dumps(content))


def test_times_are_summed_by_stage(own):
    note(own, Cell("encode", 1), 30.0, "2026-01-02T10:00:00+00:00")
    note(own, Cell("encode", 2, 1), 45.5, "2026-01-02T10:05:00+00:00")
    note(own, Cell("prepare", 2), 3600.0, "2026-01-02T09:30:00+00:00")
    note(own, Cell("encode", 9), 1e6, "2027-01-02T09:30:00+00:00")  # of an earlier command
    found = costs(own, cells_of(own))
    rows = {row.stage: row for row in found.stages}
    encode = rows["encode"]
    assert (encode.cells, encode.noted) == (len(SUBJECTS) * (1 + len(STATES)), 2)
    assert (encode.total, encode.longest) == ("1 min 15 s", "45.5 s")
    assert encode.longest_cell == "encode subj02 layer01"
    assert (rows["decode"].total, rows["features"].cells) == ("", 3)
    assert found.total == "1 h 01 min"
    assert found.began == "02 January 2026, 08:30 UTC"
    assert found.ended == "02 January 2026, 10:05 UTC"


def test_a_broken_note_is_named(own):
    sidecar(own.out, Cell("decode", 1)).write_text('{"seconds": "x"}')
    with pytest.raises(DataError, match=r"subj01\.h5\.done\.json: broken"):
        cells_of(own)


# --- provenance --------------------------------------------------------------------------------------


def test_weights_are_those_that_cells_noted(own):
    note(
        own, Cell("caption", 1), 1, "2026-01-02T10:00:00+00:00", weights_sha256={"blip/a.pth": "aa"}
    )
    note(
        own, Cell("caption", 2), 1, "2026-01-02T10:00:00+00:00", weights_sha256={"blip/a.pth": "bb"}
    )
    assert weights(cells_of(own)) == [("blip", "a.pth", "aa"), ("blip", "a.pth", "bb")]


# --- gallery -----------------------------------------------------------------------------------------


def test_gallery_shows_what_lies_on_disk(run):
    items = gallery(run, 0, 5)
    assert [item.nsd_id for item in items] == sorted({item.nsd_id for item in items})
    assert len(items) == 5
    item = items[2]
    with h5py.File(run.out / "reconstruct/subj02.h5") as file:
        row = int(np.flatnonzero(file["nsd_id"][:] == item.nsd_id)[0])
        shown, direct = file["shown"][row], file["direct"][row, 0]
        cosine = float(file["clip_direct"][row, 0] @ file["clip_shown"][row])
    np.testing.assert_array_equal(pixels(item.shown), shown)
    pictures, texts = item.subjects[2]
    assert [picture.arm for picture in pictures] == ["coarse", "direct", "caption"]
    np.testing.assert_array_equal(pixels(pictures[1].uri), direct)
    assert pictures[1].clip == f"{cosine:.2f}".replace("-", "−")
    written = json.loads((run.out / "caption/subj02.json").read_text())
    own = written["captions"][str(item.nsd_id)]
    cosines = own["clip"]["CLIP cosine"]
    assert [text.text for text in texts] == [own[arm] for arm in written["arms"]]
    assert [text.clip for text in texts] == [f"{cosines[arm]:.2f}" for arm in written["arms"]]


def test_the_seed_alone_decides_the_gallery(run):
    picks = [[item.nsd_id for item in gallery(run, seed, 4)] for seed in (0, 0, 1, 2)]
    assert picks[0] == picks[1]
    assert len({tuple(pick) for pick in picks}) == 3


def test_a_gallery_of_four_subjects_stays_light():
    """Noise, the worst there is for JPEG, of 512 pixels: the shown pictures and three arms."""
    rng = np.random.default_rng(0)
    uri = picture_uri(rng.integers(0, 256, (512, 512, 3), dtype=np.uint8))
    assert uri.startswith("data:image/jpeg;base64,")
    assert len(uri) * PICTURES * (1 + 4 * 3) < 8e6


def pixels(uri: str) -> np.ndarray:
    with Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1]))) as image:
        return np.asarray(image)
