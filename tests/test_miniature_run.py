"""The whole way through, from betas to report, on the miniature: what was planted must come out."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import h5py
import numpy as np
import pytest
import sacrebleu
from miniature_runs import launch_miniature
from scipy.stats import binomtest, kstest
from test_docs import STAGES_OF_HDF5, check_datasets

from nsdcap import config, doctor, miniature, plots_mesh, plots_run, status
from nsdcap.diffusion import Diffusion
from nsdcap.miniature import cortex, world
from nsdcap.miniature.judge import judge
from nsdcap.paths import Cell, artefact, config_file

SUBJECTS = (1, 2, 5, 7)
STATES, PHASES = range(7), ("early", "mid", "late")


@pytest.fixture(scope="session")
def scenes(run):
    """The planted scenes by nsd_id."""
    found = json.loads((run / "nsd/truth/scenes.json").read_text())
    return {int(i): as_scene(scene) for i, scene in found.items()}


def as_scene(scene: dict) -> world.Scene:
    items = []
    for o in scene["items"]:
        kind, colour = world.KINDS.index(o["kind"]), world.COLOUR_NAMES.index(o["colour"])
        items.append(world.Item(kind, colour, o["x"], o["y"], o["size"]))
    items = tuple(items)
    return world.Scene(world.PLACES.index(scene["place"]), items, scene["relation"])


# --- encoding ------------------------------------------------------------------------------------


@cache
def over_ceiling(run: Path, subject: int) -> dict[str, tuple[float, float]]:
    """For each planted class the mean r over the noise ceiling by z_v, and by the best z_B model."""
    with h5py.File(run / f"nsd/truth/subj{subject:02d}.h5") as file:
        classes, xyz = file["class"].asstr()[:], file["xyz"][:]
    with h5py.File(artefact(run, Cell("prepare", subject))) as file:
        assert np.array_equal(file["xyz"][:], xyz)
        ceiling = np.sqrt(file["noise_ceiling"][:])
    with h5py.File(artefact(run, Cell("encode", subject))) as file:
        z_v = file["z_v/r"][:]
    z_b = []
    for state in STATES:
        with h5py.File(artefact(run, Cell("encode", subject, state))) as file:
            z_b += [file[f"z_B_{phase}/r"][:] for phase in PHASES]
    found = {}
    for name in set(classes) - {"noise"}:
        mine = classes == name
        best = max((r[mine] / ceiling[mine]).mean() for r in z_b)
        found[name] = ((z_v[mine] / ceiling[mine]).mean(), best)
    return found


@pytest.mark.parametrize("subject", SUBJECTS)
def test_early_voxels_follow_z_v_and_higher_ones_z_b(run, subject):
    found = over_ceiling(run, subject)
    z_v, z_b = found["early"]
    assert z_v >= 0.75
    assert z_v > z_b
    for name in ("object", "colour", "place"):
        z_v, z_b = found[name]
        assert z_b >= 0.80, name
        assert z_b > z_v, name


def test_p_of_noise_voxels_is_uniform(run):
    """Over all subjects, for z_v, each z_B and the joint models: none may be far from uniform."""
    worst = 1.0
    for subject in SUBJECTS:
        with h5py.File(run / f"nsd/truth/subj{subject:02d}.h5") as file:
            noise = file["class"].asstr()[:] == "noise"
        for state in (None, *STATES):
            with h5py.File(artefact(run, Cell("encode", subject, state))) as file:
                for name, model in file.items():
                    for rule in ("p_permutation", "p_gaussian"):
                        p = kstest(model[rule][:][noise], "uniform").pvalue
                        worst = min(worst, p)
                        assert (model[rule][:][noise] > 0).all(), name
    tests = len(SUBJECTS) * (2 + 7 * 6) * 2
    assert worst > 0.01 / tests  # Bonferroni


def test_z_b_adds_to_object_voxels_and_not_to_early_ones(run):
    for subject in SUBJECTS:
        with h5py.File(run / f"nsd/truth/subj{subject:02d}.h5") as file:
            classes = file["class"].asstr()[:]
        with h5py.File(artefact(run, Cell("encode", subject, 1))) as file:
            gain = file["joint_mid/gain"][:]
        assert gain[classes == "object"].mean() > 0.03
        assert gain[classes == "object"].mean() > 3 * abs(gain[classes == "early"].mean())


def test_figures_show_z_v_early_and_z_b_higher(run):
    """By the numbers that the flat maps of figures 5 and 7 draw, in each stream's place on fsaverage."""
    drawn = plots_run.open_run(run, artefact(run, Cell("aggregate")))
    assert drawn.about["on_surface"] == list(SUBJECTS)
    for subject in SUBJECTS:
        ahead: dict[str, list] = {"early": [], "higher": []}
        adds: dict[str, list] = {"early": [], "higher": []}
        for hemi, mesh in cortex.fsaverage5().items():
            view = plots_mesh.flat_view(hemi, 150)
            stream = view.at_pixels(mesh.stream.astype(float), mean=False)
            z_v, z_b, best = (
                view.at_pixels(drawn.surface(subject, name, hemi))
                for name in ("z_v_r", "z_B_r", "best_layer")
            )
            for name, place in (("early", stream == 1), ("higher", stream >= 5)):
                ahead[name].append(np.nan_to_num(z_v[place]) - np.nan_to_num(z_b[place]))
                adds[name].append(np.isfinite(best[place]))
        early, higher = (np.concatenate(ahead[name]).mean() for name in ("early", "higher"))
        assert early > 0.15
        assert abs(higher) < 0.06
        early, higher = (np.concatenate(adds[name]).mean() for name in ("early", "higher"))
        assert higher > 3 * early


# --- captions ------------------------------------------------------------------------------------


def read_arm(run: Path, subject: int, arm: str) -> tuple[list[int], list[str], list[list[str]]]:
    found = json.loads(artefact(run, Cell("caption", subject)).read_text())["captions"]
    references = [found[i]["references"] for i in found]
    return [int(i) for i in found], [found[i][arm] for i in found], references


@pytest.mark.parametrize("subject", SUBJECTS)
def test_captions_from_the_brain_name_what_was_seen(run, scenes, subject):
    ids, brain, references = read_arm(run, subject, "brain")
    seen = [scenes[i] for i in ids]
    readings = [world.read_caption(text) for text in brain]
    score = world.compare(seen, readings)
    shuffled = [
        world.compare(seen, [readings[j] for j in np.roll(np.arange(len(ids)), k)])["kind"]
        for k in range(1, len(ids))
    ]
    assert score["place"] >= 0.9
    assert score["kind"] >= 3 * np.mean(shuffled)
    columns = [list(texts) for texts in zip(*references, strict=True)]
    bleu = sacrebleu.corpus_bleu(brain, columns).score
    nearest = sacrebleu.corpus_bleu(read_arm(run, subject, "nearest")[1], columns).score
    assert bleu > nearest


def test_captions_from_true_z_v_are_right(run, scenes):
    ids, texts, _ = read_arm(run, 1, "picture")
    score = world.compare([scenes[i] for i in ids], [world.read_caption(text) for text in texts])
    assert score["place"] >= 0.95
    assert score["kind"] >= 0.90
    assert score["colour"] >= 0.90


# --- pictures ------------------------------------------------------------------------------------


@pytest.mark.parametrize("subject", SUBJECTS)
def test_both_arms_show_more_of_what_was_seen_than_shuffled(run, scenes, subject):
    with h5py.File(artefact(run, Cell("reconstruct", subject))) as file:
        seen = [scenes[int(i)] for i in file["nsd_id"][:]]
        shown = file["clip_shown"][:]
        arms = {arm: (file[arm][:, 0], file[f"clip_{arm}"][:, 0]) for arm in ("caption", "direct")}
        coarse = judge(file["coarse"][:]).agree(seen)
    n = len(seen)
    for pictures, embedded in arms.values():
        similar = embedded @ shown.T
        chance = [similar[np.arange(n), np.roll(np.arange(n), k)].mean() for k in range(1, n)]
        assert np.diag(similar).mean() > np.max(chance)
        verdict = judge(pictures)
        own = verdict.agree(seen)
        rolled = [verdict.agree([seen[j] for j in np.roll(np.arange(n), k)]) for k in range(1, n)]
        for part in ("place", "colour"):
            assert own[part] > max(other[part] for other in rolled), part
        # place is in the coarse picture already; the text brings colour and kind
        for part in ("colour", "kind"):
            assert own[part] > coarse[part] + 0.2, part


@pytest.fixture(scope="session")
def drawn(run, scenes):
    """Pictures by other captions and by the true ones, from subject 1's coarse pictures."""
    settings = config.load(config_file(run))
    diffusion = Diffusion(replace(settings.models, device="cpu"), settings.reconstruct)
    with h5py.File(artefact(run, Cell("reconstruct", 1))) as file:
        ids, coarse = file["nsd_id"][:], file["coarse"][:]
    texts = read_arm(run, 1, "picture")[2]
    c = diffusion.text_latents([references[0] for references in texts])
    noise = diffusion.noise(1, 1, ids, 0)
    other = np.roll(np.arange(len(ids)), 11)
    seen = [scenes[int(i)] for i in ids]
    return {
        "own": (diffusion.reconstruct(coarse, c, noise), seen),
        "other": (diffusion.reconstruct(coarse, c[other], noise), [seen[j] for j in other]),
    }


def test_the_text_controls_the_picture(drawn):
    """With another picture's caption, place and colour follow the caption above chance."""
    pictures, told = drawn["other"]
    verdict = judge(pictures)
    score = verdict.agree(told)
    for part in ("place", "colour", "kind"):
        chances = [verdict.agree([told[j] for j in np.roll(np.arange(len(told)), k)])[part]
                   for k in range(1, len(told))]  # fmt: skip
        hits = round(score[part] * len(told))
        assert binomtest(hits, len(told), float(np.mean(chances)), "greater").pvalue < 1e-6, part


def test_shapes_are_recognisable_from_the_true_caption(drawn):
    pictures, seen = drawn["own"]
    assert judge(pictures).agree(seen)["kind"] >= 0.5


# --- the run itself ------------------------------------------------------------------------------


def test_a_second_run_recomputes_nothing(run):
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file()}
    said, seconds = launch_miniature(run)
    assert "62 of 62 cells done, 62 of them before" in said
    assert seconds < 10
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file()} == before
    assert status.main([str(run)]) == 0


def test_pictures_that_several_subjects_saw_are_computed_once(run):
    held = []
    for subject in (None, *SUBJECTS):
        with h5py.File(artefact(run, Cell("features", subject))) as file:
            held.append(set(file["nsd_id"][:].tolist()))
            assert file["z_v"].shape == (len(held[-1]), 65 * 128)
            assert file["z_B"].shape == (len(held[-1]), 7, 3, 128)
            assert file["z"].shape == (len(held[-1]), 400)
            assert file["c"].shape == (len(held[-1]), 16 * 128)
    assert len(set.union(*held)) == sum(map(len, held))


def test_tables_and_report_agree_with_the_files(run, scenes):
    folder = artefact(run, Cell("aggregate"))
    with (folder / "tables/encoding.csv").open() as file:
        rows = list(csv.DictReader(file))
    z_v = next(
        row for row in rows if (row["subject"], row["roi"], row["feature"]) == ("1", "early", "z_v")
    )
    with h5py.File(artefact(run, Cell("prepare", 1))) as file:
        early = file["stream"][:] == 1
    with h5py.File(artefact(run, Cell("encode", 1))) as file:
        r = file["z_v/r"][:][early]
    assert int(z_v["n_voxels"]) + int(z_v["n_nan"]) == early.sum()
    assert float(z_v["mean_r"]) == pytest.approx(float(np.nanmean(r)), abs=1e-3)
    page = (folder / "report.html").read_text()
    assert "BLEU" in page
    assert page.count("data:image/png;base64,") >= 5
    assert not list(run.rglob("*.partial"))
    assert config.load(config_file(run)).models.blip == str(miniature.MODELS / "blip")


# --- documents -----------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES_OF_HDF5)
def test_datasets_are_those_of_the_document(run, stage):
    """nsdcap/README.md lists every dataset of a stage's file with its shape and type, and no other."""
    check_datasets(run, stage)


def test_the_doctor_finds_nothing_wrong_with_it(run, capsys):
    words = ["--out", str(run), "--part", "data", "--part", "models", "--json"]
    assert doctor.main(words) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {row["verdict"] for row in rows} == {"ok"}
    assert sum(row["check"].endswith(" betas") for row in rows) == 4
