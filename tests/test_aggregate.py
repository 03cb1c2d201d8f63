"""Tables and maps from a run folder whose truth is planted."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest
import sacrebleu
from scipy.stats import binomtest, norm, ttest_1samp
from statsmodels.stats.multitest import fdrcorrection

from nsdcap.aggregate import aggregate
from nsdcap.config import ARMS, dump, load
from nsdcap.errors import DataError
from nsdcap.metrics.captions import COCO_METRICS
from nsdcap.metrics.clip import METRICS as CLIP_METRICS
from nsdcap.metrics.peers import BACKBONE_METRICS, METRICS, PIXEL_METRICS
from nsdcap.metrics.similarity import wins
from nsdcap.paths import config_file
from nsdcap.plots_cortex import open_run

# scores by Java have tests of their own
pytestmark = pytest.mark.usefixtures("no_java")

SUBJECTS, STATES, N_TEST, SIDE, SAMPLES, D = [1, 2], [0, 1, 2], 12, 16, 2, 8
SHAPE = (10, 8, 6)
PHASES = ("early", "mid", "late")
# planted: the BERT layer that adds to z_v in each stream, none in the early ones
ADDS = {5: 0, 6: 1, 7: 2}


class FakeSurfaces:
    """Two hemispheres of fsaverage5 that read the volume's voxels in turn; subject 2 has none."""

    def to_surface(
        self, subject: int, hemi: str, volume: np.ndarray, kind: str, depths: tuple
    ) -> np.ndarray:
        if subject == 2:
            raise DataError("lh.func1pt8-to-layerB1.mgz does not exist")
        return np.resize(volume.ravel(), 500)

    def to_fsaverage(self, subject: int, hemi: str, values: np.ndarray) -> np.ndarray:
        return np.resize(values, 12000)


def planted_maps(r: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Voxels without r have a uniform p, those with it a p far below; two voxels never varied."""
    p = np.where(r > 0.05, rng.uniform(0, 2e-3, len(r)), rng.uniform(size=len(r)))
    p[:2] = np.nan
    known = np.where(np.isnan(p), np.nan, r + rng.normal(0, 0.02, len(r)))
    return {
        "r": known, "p_permutation": p, "p_gaussian": np.minimum(p * 1.3, 1),
        "p_fwe": np.minimum(p * 50, 1), "alpha": np.full(len(r), 2.154),
        "mean_r_error": np.linspace(0.01, 0.02, 8),
    }  # fmt: skip


def write_run(
    out: Path,
    subjects: list[int] = SUBJECTS,
    states: list[int] = STATES,
    voxels: dict | None = None,
    n: int = N_TEST,
) -> None:
    """A run folder: z_v explains the early streams, z_B the higher ones; see ADDS for the joint."""
    rng = np.random.default_rng(11)
    pictures = rng.integers(0, 256, (n, SIDE, SIDE, 3), dtype=np.uint8)
    clip_shown = unit(rng.normal(size=(n, D)))
    for stage in ("prepare", "encode", "caption", "decode", "reconstruct", "compare"):
        (out / stage).mkdir(parents=True, exist_ok=True)
    config_file(out).write_text(dump(load()))
    for subject in subjects:
        name = f"subj{subject:02d}"
        stream = write_prepare(out / f"prepare/{name}.h5", subject, rng, voxels)
        early = stream <= 4
        with h5py.File(out / f"encode/{name}_z_v.h5", "w") as file:
            for feature, strength in (("z_v", 1.0), ("z_v_cls", 0.5)):
                write_maps(file, feature, planted_maps(strength * np.where(early, 0.5, 0.3), rng))
        for state in states:
            with h5py.File(out / f"encode/{name}_layer{state:02d}.h5", "w") as file:
                for k, phase in enumerate(PHASES):
                    r = np.where(early, 0.0, 0.3 + 0.03 * state + 0.02 * k)
                    write_maps(file, f"z_B_{phase}", planted_maps(r, rng))
                    adds = np.array([ADDS.get(int(s), -1) == state for s in stream])
                    gain = np.where(adds, 0.1 + 0.01 * k, -0.01) + rng.normal(0, 0.004, len(stream))
                    joint = planted_maps(np.where(early, 0.5, 0.4), rng)
                    joint |= {"ratio": np.ones(len(stream)), "gain": gain}
                    joint |= {"gain_low": gain - 0.02, "gain_high": gain + 0.02}
                    joint["gain_p"] = norm.sf(gain / 0.01)
                    joint["mean_gain_error"] = np.full(8, 0.003)
                    write_maps(file, f"joint_{phase}", joint)
        (out / f"caption/{name}.json").write_text(json.dumps(caption_file(subject, n)))
        with h5py.File(out / f"decode/{name}.h5", "w") as file:
            for latent, targets in (("z_v", 40), ("c", 20), ("z", 10)):
                group = file.create_group(latent)
                group["alpha_index"] = rng.integers(1, 4, targets)
                group["cv_r2"] = rng.normal(0.1, 0.05, targets).astype("f4")
                group.attrs.update(gain=1.8, edge_share=0.25, n_targets=targets)
                group.attrs["alphas"] = [0.1, 1.0, 10.0, 100.0]
        with h5py.File(out / f"reconstruct/{name}.h5", "w") as file:
            file["nsd_id"], file["shown"], file["clip_shown"] = (
                np.arange(n) + 100,
                pictures,
                clip_shown,
            )
            for arm, noise, many in (
                ("coarse", 0.7, False),
                ("caption", 0.3, True),
                ("direct", 0.5, True),
            ):
                shape = (n, SAMPLES) if many else (n,)
                spread = rng.normal(0, 200 * noise, (*shape, SIDE, SIDE, 3))
                shown = pictures[:, None] if many else pictures
                file[arm] = np.clip(shown + spread, 0, 255).astype(np.uint8)
                base = clip_shown[:, None] if many else clip_shown
                file[f"clip_{arm}"] = unit(base + noise * rng.normal(size=(*shape, D)))
        write_compared(out / f"compare/{name}.h5", n, rng)


def write_compared(path: Path, n: int, rng: np.random.Generator) -> None:
    """Pixels' and Inception's scores in the order of the arms' noise; other networks were not to be had."""
    networks = [
        metric.key
        for key, some in BACKBONE_METRICS.items()
        if key != "inception"
        for metric in some
    ]
    with h5py.File(path, "w") as file:
        file["nsd_id"] = np.arange(n) + 100
        file.attrs["not_computed"] = json.dumps({key: "no such file" for key in networks})
        for arm, level, samples in (
            ("caption", 0.7, SAMPLES),
            ("direct", 0.5, SAMPLES),
            ("coarse", 0.3, 1),
        ):
            for metric in (*PIXEL_METRICS, *BACKBONE_METRICS["inception"]):
                values = level + 0.02 * rng.normal(size=(n, samples))
                file[f"{arm}/{metric.key}"] = values.astype("f4")
                file[f"{arm}/{metric.key}"].attrs["chance"] = 0.05


def write_prepare(
    path: Path, subject: int, rng: np.random.Generator, voxels: dict | None
) -> np.ndarray:
    if voxels is None:
        xyz = np.argwhere(np.ones(SHAPE, dtype=bool))[::2]
        voxels = {
            "xyz": xyz, "affine": np.diag([1.8, 1.8, 1.8, 1.0]), "shape": SHAPE,
            "stream": (np.arange(len(xyz)) * 7 // len(xyz) + 1).astype(np.int8),
        }  # fmt: skip
    with h5py.File(path, "w") as file:
        for key in ("xyz", "affine", "stream"):
            file[key] = voxels[key]
        file["noise_ceiling"] = np.full(len(voxels["xyz"]), 0.36, dtype="f4")
        file["nsd_id_train"] = np.arange(600) + 1000
        file["nsd_id_test"] = np.arange(N_TEST) + 100
        file["repeats_test"] = np.full(N_TEST, 3)
        file.attrs.update(shape=voxels["shape"], subject=subject, sessions=[1, 2, 3])
    return voxels["stream"]


def write_maps(file: h5py.File, name: str, maps: dict[str, np.ndarray]) -> None:
    group = file.create_group(name)
    group.attrs["edge_share"] = 0.125
    for key, values in maps.items():
        group[key] = values.astype("f4")


def caption_file(subject: int, n: int = N_TEST) -> dict:
    places, things = ("beach", "field", "street", "table"), ("ball", "kite", "cat")
    truth = [f"a red {things[i % 3]} lies on the {places[i % 4]}" for i in range(n)]
    captions = {}
    for i, text in enumerate(truth):
        captions[str(100 + i)] = {
            "brain": text if i % 3 else truth[(i + subject) % n],
            "brain_gain": text if i % 4 else "a blue car",
            "picture": text,
            "nearest": truth[(i + 1) % n] if i % 2 else text,
            "references": [text.capitalize() + ".", f"There is a {things[i % 3]} on a {places[i % 4]}."],
            "clip": {
                metric: {"brain": 0.30 + 0.001 * i, "brain_gain": 0.31, "picture": 0.4, "nearest": 0.305}
                for metric in CLIP_METRICS
            },
        }  # fmt: skip
    arms = ["brain", "brain_gain", "picture", "nearest"]
    chance = {metric: {arm: [0.21, 0.004] for arm in arms} for metric in CLIP_METRICS}
    return {
        "subject": subject, "arms": arms, "captions": captions, "clip_model": "a-clip",
        "clip_shuffles": 1000, "clip_chance": chance,
    }  # fmt: skip


def unit(x: np.ndarray) -> np.ndarray:
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype("f4")


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def pick(rows: list[dict[str, str]], **wanted: object) -> dict[str, str]:
    found = [row for row in rows if all(row[key] == str(value) for key, value in wanted.items())]
    assert len(found) == 1, (wanted, len(found))
    return found[0]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run folder and its tables; read only."""
    out = tmp_path_factory.mktemp("run")
    write_run(out)
    lines: list[str] = []
    target = out / "aggregate"
    aggregate(out, target, SUBJECTS, STATES, surfaces=FakeSurfaces(), log=lines.append)
    assert any("subj02" in line and "not on the cortex" in line for line in lines)
    return out, target


@pytest.mark.parametrize("feature", ["z_v", "z_B_mid", "joint_late"])
def test_significant_voxels_are_statsmodels(done, feature):
    out, target = done
    rows = read_csv(target / "tables/encoding.csv")
    part = "z_v" if feature == "z_v" else "layer01"
    with h5py.File(out / f"encode/subj01_{part}.h5") as file:
        maps = {key: file[feature][key][:] for key in ("r", "p_permutation", "p_gaussian")}
    with h5py.File(out / "prepare/subj01.h5") as file:
        stream = file["stream"][:]
    known = np.isfinite(maps["p_permutation"])
    hits = {}
    for key in ("p_permutation", "p_gaussian"):
        hits[key] = np.zeros(len(stream), dtype=bool)
        hits[key][known] = fdrcorrection(maps[key][known], 0.05)[0]
    name, _, phase = (feature, "", "") if feature == "z_v" else feature.rpartition("_")
    wanted = {"subject": 1, "feature": name, "phase": phase, "layer": "" if feature == "z_v" else 1}
    for roi, inside in (("all", stream > 0), ("early", stream == 1), ("lateral", stream == 6)):
        row = pick(rows, roi=roi, **wanted)
        assert int(row["n_voxels"]) == (inside & known).sum()
        assert int(row["n_nan"]) == (inside & ~known).sum()
        assert int(row["n_significant"]) == (hits["p_permutation"] & inside).sum()
        assert int(row["n_significant_gaussian"]) == (hits["p_gaussian"] & inside).sum()
        mean = maps["r"][inside & known].mean()
        assert float(row["mean_r"]) == pytest.approx(mean, rel=1e-4)
        assert float(row["ci_low"]) < mean < float(row["ci_high"])
        assert float(row["mean_r_over_ceiling"]) == pytest.approx(mean / 0.6, rel=1e-4)
    assert float(pick(rows, roi="all", **wanted)["edge_share"]) == 0.125


def test_every_model_has_every_roi(done):
    rows = read_csv(done[1] / "tables/encoding.csv")
    assert len(rows) == len(SUBJECTS) * 8 * (2 + len(STATES) * 6)
    assert all(int(row["n_nan"]) == 2 for row in rows if row["roi"] in ("all", "early"))


def test_rows_over_subjects_are_means_with_t_intervals(done):
    rows = read_csv(done[1] / "tables/encoding.csv")
    group = read_csv(done[1] / "tables/encoding_group.csv")
    assert len(group) == len(rows) / len(SUBJECTS)
    for feature, layer, phase in (("z_v", "", ""), ("joint", 2, "mid")):
        wanted = {"roi": "parietal", "feature": feature, "layer": layer, "phase": phase}
        each = [pick(rows, subject=subject, **wanted) for subject in SUBJECTS]
        row = pick(group, **wanted)
        assert row["n_subjects"] == "2"
        for name in ("n_voxels", "n_significant"):
            assert int(row[name]) == sum(int(own[name]) for own in each)
        for mean, low, high in (
            ("mean_r", "ci_low", "ci_high"), ("mean_gain", "gain_ci_low", "gain_ci_high"),
        ):  # fmt: skip
            if row[mean]:
                values = [float(own[mean]) for own in each]
                expected = ttest_1samp(values, 0).confidence_interval()
                assert float(row[mean]) == pytest.approx(np.mean(values), rel=1e-4)
                assert [float(row[low]), float(row[high])] == pytest.approx(expected, rel=1e-3)
    assert pick(group, roi="all", feature="z_v")["mean_gain"] == ""


def test_intervals_are_the_cells_errors_over_pictures(done):
    """Planted: errors of mean r from 0.01 (the early stream) to 0.02 (all), of mean gain 0.003."""
    rows = read_csv(done[1] / "tables/encoding.csv")
    for roi, error in (("early", 0.01), ("all", 0.02)):
        row = pick(rows, subject=1, roi=roi, feature="joint", layer=2, phase="mid")
        mean, low, high = (float(row[name]) for name in ("mean_r", "ci_low", "ci_high"))
        assert [low, high] == pytest.approx([mean - 1.96 * error, mean + 1.96 * error], abs=1e-5)
        gain, low, high = (float(row[n]) for n in ("mean_gain", "gain_ci_low", "gain_ci_high"))
        assert [low, high] == pytest.approx([gain - 0.00588, gain + 0.00588], abs=1e-5)


def test_maps_lie_in_the_subjects_volume(done):
    out, target = done
    with h5py.File(out / "prepare/subj01.h5") as file:
        xyz, affine = file["xyz"][:], file["affine"][:]
    with h5py.File(out / "encode/subj01_z_v.h5") as file:
        r = file["z_v/r"][:]
    image = nib.load(target / "maps/subj01/z_v_r.nii.gz")
    volume = image.get_fdata()
    np.testing.assert_allclose(image.affine, affine)
    np.testing.assert_allclose(volume[tuple(xyz.T)], r, rtol=1e-6)
    assert np.isnan(volume).sum() == volume.size - np.isfinite(r).sum()
    q = nib.load(target / "maps/subj01/z_v_q.nii.gz").get_fdata()[tuple(xyz.T)]
    rows = read_csv(target / "tables/encoding.csv")
    significant = pick(rows, subject=1, roi="all", feature="z_v")["n_significant"]
    assert (q < 0.05).sum() == int(significant)


def test_best_layer_is_the_planted_one_where_it_adds(done):
    out, target = done
    with h5py.File(out / "prepare/subj01.h5") as file:
        xyz, stream = file["xyz"][:], file["stream"][:]
    best = nib.load(target / "maps/subj01/best_layer.nii.gz").get_fdata()[tuple(xyz.T)]
    assert np.isnan(best[stream <= 4]).all()
    rows = read_csv(target / "tables/layers.csv")
    for label, state in ADDS.items():
        assert (best[stream == label] == state).all()
        row = pick(rows, subject=1, by="gain", roi=["ventral", "lateral", "parietal"][label - 5])
        assert float(row["mean_layer"]) == state
        assert row["n_significant"] == row["n_voxels"]
        assert float(row["sd_layer"]) == 0
    assert pick(rows, subject=1, by="gain", roi="early")["mean_layer"] == ""
    by_r = nib.load(target / "maps/subj01/best_layer_r.nii.gz").get_fdata()[tuple(xyz.T)]
    own = by_r[(stream == 1) & np.isfinite(by_r)]
    row = pick(rows, subject=1, by="r", roi="early")
    assert int(row["n_significant"]) == len(own) > 1
    assert float(row["mean_layer"]) == pytest.approx(np.mean(own), rel=1e-5)
    assert float(row["sd_layer"]) == pytest.approx(np.std(own, ddof=1), rel=1e-5)


def test_surfaces_only_where_there_are_transforms(done):
    target = done[1]
    assert json.loads((target / "run.json").read_text())["on_surface"] == [1]
    found = sorted((target / "maps").rglob("*.gii"))
    assert [path.name for path in found if path.name.startswith("lh")] == [
        f"lh.{name}.func.gii" for name in ("best_layer", "best_layer_r", "gain", "z_B_r", "z_v_r")
    ]
    assert len(found) == 10
    assert all("subj01" in str(path) for path in found)
    image = nib.load(target / "maps/subj01/fsaverage5/lh.z_v_r.func.gii")
    assert image.darrays[0].data.shape == (10242,)


def test_figures_read_the_fixed_layer_and_phase(done):
    out, target = done
    shown = open_run(out, target)
    with h5py.File(out / "prepare/subj01.h5") as file:
        xyz = file["xyz"][:]
    with h5py.File(out / "encode/subj01_layer02.h5") as file:
        wanted = {"z_B_r": file["z_B_mid/r"][:], "gain": file["joint_mid/gain"][:]}
    for name, values in wanted.items():
        np.testing.assert_array_equal(shown.volume(1, name)[tuple(xyz.T)], values)
        q = shown.volume(1, f"{name.removesuffix('_r')}_q")[tuple(xyz.T)]
        expected = values[q < 0.05]  # of one voxel each: three depths read the same one
        found = shown.surface(1, name, "lh")
        assert 0 < len(expected) < len(values)
        assert set(found[np.isfinite(found)]) <= set(expected)
    assert np.nanmax(shown.volume(2, "ceiling")) == pytest.approx(0.6)
    with pytest.raises(DataError, match=r"subj01/nothing\.nii\.gz: missing"):
        shown.volume(1, "nothing")


def test_captions_carry_definition_interval_and_chance(done):
    rows = read_csv(done[1] / "tables/captions.csv")
    entries = list(caption_file(2)["captions"].values())
    streams = [[entry["references"][k] for entry in entries] for k in (0, 1)]
    for arm in ("brain", "brain_gain", "picture", "nearest"):
        row = pick(rows, subject=2, arm=arm, metric="BLEU-4 sacrebleu")
        expected = sacrebleu.corpus_bleu([entry[arm] for entry in entries], streams).score
        assert float(row["value"]) == pytest.approx(expected, rel=1e-4)
        assert "nrefs:2|case:mixed" in row["definition"]
        assert float(row["ci_low"]) <= float(row["value"]) <= float(row["ci_high"])
        assert 0 < float(row["chance_mean"]) < 100
        assert float(row["chance_sd"]) > 0
    assert all("BLEU" in row["definition"] for row in rows if "BLEU" in row["metric"])
    for metric in COCO_METRICS:
        row = pick(rows, subject=1, arm="picture", metric=metric)
        assert (row["value"], row["n"], row["note"]) == (
            "",
            "12",
            "needs Java: no java on the PATH",
        )
    won = pick(rows, subject=1, arm="brain", metric="CLIP wins over nearest")
    share = wins(
        np.array([e["clip"]["CLIP cosine"]["brain"] for e in entries]), np.full(N_TEST, 0.305)
    )
    assert float(won["value"]) == pytest.approx(share.value, rel=1e-5)
    for metric in CLIP_METRICS:
        row = pick(rows, subject=1, arm="brain", metric=metric)
        assert (row["chance_mean"], row["chance_sd"], row["n_shuffles"]) == (
            "0.21",
            "0.004",
            "1000",
        )
        assert "by a-clip" in row["definition"]


def test_pictures_are_the_planted_order(done):
    out, target = done
    rows = read_csv(target / "tables/pictures.csv")
    with h5py.File(out / "reconstruct/subj01.h5") as file:
        shown, parts = (
            file["clip_shown"][:],
            {a: file[f"clip_{a}"][:] for a in ("caption", "direct")},
        )
    cosine = {
        arm: np.einsum("nd,nsd->ns", shown, x).mean(1).astype(float) for arm, x in parts.items()
    }
    k = int((cosine["caption"] > cosine["direct"]).sum())
    row = pick(rows, subject=1, arm="caption over direct", metric="CLIP wins")
    interval = binomtest(k, N_TEST).proportion_ci(method="exact")
    found = [float(row[key]) for key in ("value", "ci_low", "ci_high", "chance_mean")]
    assert found == pytest.approx([k / N_TEST, interval.low, interval.high, 0.5], rel=1e-4)
    scores = {
        arm: float(pick(rows, subject=1, arm=arm, metric="CLIP similarity")["value"])
        for arm in ("caption", "direct", "coarse")
    }
    assert scores["caption"] > scores["direct"] > scores["coarse"]
    names = {row["metric"] for row in rows}
    assert {"two-way among shown", "two-way among predicted"} <= names
    similar = pick(rows, subject=1, arm="caption", metric="CLIP similarity")
    every = np.einsum("nd,msd->nm", shown, parts["caption"]).astype(float) / SAMPLES
    assert float(similar["value"]) == pytest.approx(np.diag(every).mean(), rel=1e-5)
    assert float(similar["chance_mean"]) == pytest.approx(every.mean(), abs=0.03)
    assert similar["n_shuffles"] == "1000"


def test_what_the_compare_stage_scored_and_could_not_is_in_the_table(done):
    out, target = done
    rows = read_csv(target / "tables/pictures.csv")
    for metric in METRICS:
        found = {arm: pick(rows, subject=2, arm=arm, metric=metric.name) for arm in ARMS}
        assert all(row["definition"].startswith(metric.definition) for row in found.values())
        if metric in PIXEL_METRICS or metric.key.startswith("inception"):
            with h5py.File(out / "compare/subj02.h5") as file:
                for arm, row in found.items():
                    each = file[f"{arm}/{metric.key}"][:].mean(1)
                    assert float(row["value"]) == pytest.approx(each.mean(), rel=1e-5)
                    assert float(row["ci_low"]) < each.mean() < float(row["ci_high"])
                    assert (row["n"], row["note"]) == (str(N_TEST), "")
            chance = 0.5 if metric.name.startswith("two-way") else 0.05
            assert {float(row["chance_mean"]) for row in found.values()} == {chance}
        else:
            assert {row["value"] for row in found.values()} == {""}
            assert {row["note"] for row in found.values()} == {"not computed: no such file"}


def test_pictures_without_a_score_are_left_out_and_told(tmp_path):
    write_run(tmp_path, [1], [0])
    with h5py.File(tmp_path / "compare/subj01.h5", "a") as file:
        values = file["caption/pixcorr"][:]
        file["caption/pixcorr"][2, 0] = np.nan
    aggregate(tmp_path, tmp_path / "t", [1], [0], log=lambda line: None)
    row = pick(read_csv(tmp_path / "t/tables/pictures.csv"), arm="caption", metric="PixCorr")
    expected = np.delete(values, 2, axis=0).mean()
    assert float(row["value"]) == pytest.approx(expected, rel=1e-5)
    assert (row["n"], row["note"][:21]) == (str(N_TEST - 1), "1 pictures left out, ")


def test_decoding(done):
    row = pick(read_csv(done[1] / "tables/decoding.csv"), subject=1, latent="z_v")
    assert (row["n_targets"], row["gain"], row["edge_share"]) == ("40", "1.8", "0.25")
    assert 1 <= float(row["alpha_median"]) <= 100


def test_penalties_are_counted_on_the_grid_they_were_chosen_from(done):
    out, target = done
    rows = read_csv(target / "tables/alphas.csv")
    with h5py.File(out / "decode/subj02.h5") as file:
        index = file["c/alpha_index"][:]
    for k, alpha in enumerate(("0.1", "1", "10", "100")):
        row = pick(rows, subject=2, stage="decode", feature="c", alpha=alpha)
        assert int(row["n"]) == (index == k).sum()
    own = [row for row in rows if row["stage"] == "encode" and row["subject"] == "1"]
    grid = load(config_file(out)).ridge.alphas
    assert len(own) == len(grid) * (2 + 6 * len(STATES))
    for row in own:  # two of 240 voxels never varied
        assert int(row["n"]) == (238 if row["alpha"] == "2.154" else 0)


def test_a_penalty_that_the_settings_do_not_have_is_refused(tmp_path):
    write_run(tmp_path, [1], [0])
    config_file(tmp_path).write_text("[ridge]\nalphas = [1.0, 10.0]\n")
    with pytest.raises(DataError, match=r"config\.toml: ridge\.alphas has no 2\.154.*subject 1"):
        aggregate(tmp_path, tmp_path / "t", [1], [0], log=lambda line: None)
    config_file(tmp_path).unlink()
    with pytest.raises(DataError, match=r"config\.toml: missing"):
        aggregate(tmp_path, tmp_path / "t", [1], [0], log=lambda line: None)


def test_every_gap_is_named(tmp_path):
    write_run(tmp_path, [1], [0])
    gaps = ["caption/subj01.json", "encode/subj01_layer00.h5"]
    for gap in gaps:
        (tmp_path / gap).unlink()
    target = tmp_path / "target"
    with pytest.raises(DataError) as error:
        aggregate(tmp_path, target, [1, 2], [0, 1])
    for gap in [*gaps, "encode/subj01_layer01.h5", "prepare/subj02.h5", "reconstruct/subj02.h5"]:
        assert gap in str(error.value)
    assert "encode/subj01_z_v.h5" not in str(error.value)
    assert not target.exists()


def broken_hdf5(out: Path) -> None:
    (out / "encode/subj01_z_v.h5").write_bytes(b"not HDF5")


def lost_group(out: Path) -> None:
    with h5py.File(out / "encode/subj01_layer00.h5", "a") as file:
        del file["joint_mid"]


def other_voxels(out: Path) -> None:
    with h5py.File(out / "encode/subj01_z_v.h5", "a") as file:
        del file["z_v/r"]
        file["z_v/r"] = np.zeros(5)


def lost_score(out: Path) -> None:
    content = caption_file(1)
    del content["captions"]["103"]["clip"]["CLIP-S"]["brain"]
    (out / "caption/subj01.json").write_text(json.dumps(content))


def older_captions(out: Path) -> None:
    content = caption_file(1)
    del content["clip_model"]
    (out / "caption/subj01.json").write_text(json.dumps(content))


def lost_arm(out: Path) -> None:
    content = caption_file(1)
    del content["captions"]["103"]["nearest"]
    (out / "caption/subj01.json").write_text(json.dumps(content))


def lost_metric(out: Path) -> None:
    with h5py.File(out / "compare/subj01.h5", "a") as file:
        del file["direct/ssim"]


def scored_others(out: Path) -> None:
    with h5py.File(out / "compare/subj01.h5", "a") as file:
        file["nsd_id"][0] = 7


def cut_json(out: Path) -> None:
    (out / "caption/subj01.json").write_text('{"subject": 1, "arms"')


def other_pictures(out: Path) -> None:
    (out / "caption/subj01.json").write_text(json.dumps(caption_file(1, 5)))


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (broken_hdf5, "subj01_z_v.h5.*cannot be read"),
        (lost_group, "lacks joint_mid"),
        (other_voxels, r"z_v/r: found \(5,\), expected \(240,\)"),
        (lost_arm, "without an arm.*103"),
        (lost_score, "without an arm.*103"),
        (older_captions, "clip_model.*run the caption stage again"),
        (lost_metric, "lacks direct/ssim; run the compare stage"),
        (scored_others, "compare/subj01.h5: its pictures are not those"),
        (cut_json, "caption/subj01.json: broken"),
        (other_pictures, "12 pictures that are not the 5 captioned"),
    ],
)
def test_what_does_not_agree_is_refused(tmp_path, harm, words):
    write_run(tmp_path, [1], [0])
    harm(tmp_path)
    with pytest.raises(DataError, match=words):
        aggregate(tmp_path, tmp_path / "target", [1], [0], log=lambda line: None)
