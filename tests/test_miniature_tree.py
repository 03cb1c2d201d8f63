"""The miniature against NSD's format, and its brain against what was planted."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import scipy.io
from nibabel.freesurfer import read_geometry, read_morph_data

from nsdcap.miniature import brain, design, tree
from nsdcap.miniature.__main__ import main
from nsdcap.miniature.world import COLOUR_NAMES, KINDS, PLACES, Item, Scene
from nsdcap.nsd import NSD
from nsdcap.prepare import prepare

FORMAT = """
nsddata/experiments/nsd/nsd_expdesign.mat
nsddata/experiments/nsd/nsd_stim_info_merged.csv
nsddata/ppdata/subj01/behav/responses.tsv
nsddata/ppdata/subj01/func1pt8mm/{brainmask,mean,aseg}.nii.gz
nsddata/ppdata/subj01/func1pt8mm/roi/{streams,nsdgeneral,prf-visualrois}.nii.gz
nsddata/ppdata/subj01/func1pt8mm/roi/lh.{streams,nsdgeneral,prf-visualrois}.nii.gz
nsddata/ppdata/subj01/func1pt8mm/roi/rh.{streams,nsdgeneral,prf-visualrois}.nii.gz
nsddata/ppdata/subj01/transforms/lh.func1pt8-to-layerB{1,2,3}.mgz
nsddata/ppdata/subj01/transforms/rh.func1pt8-to-layerB{1,2,3}.mgz
nsddata/ppdata/subj01/transforms/{lh,rh}.white-to-fsaverage.mgz
nsddata/freesurfer/{fsaverage,subj01}/label/streams.mgz.ctab
nsddata/freesurfer/fsaverage/label/{lh,rh}.streams.mgz
nsddata/freesurfer/fsaverage/surf/lh.{white,pial,inflated,sphere,flat,sulc}
nsddata/freesurfer/fsaverage/surf/rh.{white,pial,inflated,sphere,flat,sulc}
nsddata/freesurfer/subj01/surf/lh.{white,pial,inflated,sphere,sulc}
nsddata/freesurfer/subj01/surf/rh.{white,pial,inflated,sphere,sulc}
nsddata_betas/ppdata/subj01/func1pt8mm/betas_fithrf_GLMdenoise_RR/betas_session01.{hdf5,nii.gz}
nsddata_betas/ppdata/subj01/func1pt8mm/betas_fithrf_GLMdenoise_RR/{ncsnr,R2}.nii.gz
nsddata_betas/ppdata/subj01/func1pt8mm/betas_fithrf_GLMdenoise_RR/meanbeta_session01.nii.gz
nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5
annotations/captions_{train,val}2017.json
truth/{subj01.h5,scenes.json}
"""


def expand(line: str) -> list[str]:
    start, _, rest = line.partition("{")
    if not rest:
        return [line]
    inner, _, end = rest.partition("}")
    return [path for word in inner.split(",") for path in expand(start + word + end)]


def planted_scenes(root: Path, ids: np.ndarray) -> list[Scene]:
    by_id = json.loads((root / "truth/scenes.json").read_text())
    found = []
    for i in ids.tolist():
        one = by_id[str(i)]
        items = tuple(
            Item(KINDS.index(o["kind"]), COLOUR_NAMES.index(o["colour"]), o["x"], o["y"], o["size"])
            for o in one["items"]
        )
        found.append(Scene(PLACES.index(one["place"]), items, one["relation"]))
    return found


@pytest.mark.parametrize("line", FORMAT.split())
def test_every_file_of_the_format_is_there_and_opens(tiny_tree, line):
    for name in expand(line):
        path = tiny_tree / name
        assert path.is_file(), name
        if name.endswith((".nii.gz", ".mgz")):
            assert np.isfinite(np.asarray(nib.load(path).dataobj)).all()
        elif name.endswith(("hdf5", "h5")):
            with h5py.File(path) as file:
                assert len(file)
        elif name.endswith("json"):
            assert json.loads(path.read_text())
        elif name.endswith("sulc"):
            assert read_morph_data(path).shape == (10242,)
        elif "/surf/" in name:
            points, faces = read_geometry(path)
            assert points.shape == (10242, 3)
            assert faces.max() < 10242


def test_design_has_nsds_shapes_and_meanings(tiny_tree):
    design_file = tiny_tree / "nsddata/experiments/nsd/nsd_expdesign.mat"
    found = scipy.io.loadmat(design_file)
    shapes = {k: v.shape for k, v in found.items() if not k.startswith("_")}
    assert shapes == {
        "masterordering": (1, 30000),
        "subjectim": (8, 10000),
        "sharedix": (1, 1000),
        "basiccnt": (3, 40),
        "stimpattern": (40, 12, 75),
    }
    assert all(found[name].dtype == np.float64 for name in shapes)
    assert (np.bincount(found["masterordering"][0].astype(int))[1:] == 3).all()
    assert (found["subjectim"][:, :1000] == found["subjectim"][0, :1000]).all()
    assert (np.sort(found["subjectim"][0, :1000]) == found["sharedix"][0]).all()
    ids = np.unique(found["subjectim"])
    assert len(ids) == 73000
    assert ids[0] == 1
    assert ids[-1] == 73000
    assert found["stimpattern"].sum() == 30000
    assert found["basiccnt"].sum() == 30000


def test_tables_have_nsds_columns(tiny_tree):
    info = pd.read_csv(tiny_tree / "nsddata/experiments/nsd/nsd_stim_info_merged.csv")
    assert info.columns[0].startswith("Unnamed")
    assert list(info.columns[1:9]) == [
        "cocoId",
        "cocoSplit",
        "cropBox",
        "loss",
        "nsdId",
        "flagged",
        "BOLD5000",
        "shared1000",
    ]
    assert info.columns[-1] == "subject8_rep2"
    assert len(info.columns) == 1 + 8 + 8 + 24
    assert info["shared1000"].dtype == bool
    assert info["shared1000"].sum() == 1000
    assert info["cocoId"].is_unique
    assert set(info["cocoSplit"]) == {"train2017", "val2017"}
    responses = pd.read_csv(tiny_tree / "nsddata/ppdata/subj02/behav/responses.tsv", sep="\t")
    assert " ".join(responses.columns) == (
        "SUBJECT SESSION RUN TRIAL 73KID 10KID TIME ISOLD ISCORRECT RT CHANGEMIND MEMORYRECENT"
        " MEMORYFIRST ISOLDCURRENT ISCORRECTCURRENT TOTAL1 TOTAL2 BUTTON MISSINGDATA"
    )
    assert len(responses) == 1500
    assert responses["RT"].isna().any()
    assert responses.groupby(["SESSION", "RUN"]).size().unique().tolist() == [63, 62]
    old = responses.duplicated("73KID").astype(int)
    assert (responses["ISOLD"] == old).all()


@pytest.mark.parametrize("sessions", [1, 3, 12, 37])
def test_design_gathers_repeats_early(sessions):
    found = design.make_design(np.random.default_rng(0), sessions)
    order = found["masterordering"][0, : sessions * 750]
    shown, repeats = np.unique(order, return_counts=True)
    shared = shown <= 1000
    assert abs(repeats[shared].mean() - 2.8) < 0.03
    assert 2.8 < repeats[~shared].mean() <= 3
    assert set(repeats) == {1, 2, 3}
    if sessions == 3:
        assert shared.sum() == 100
        assert 670 < (~shared).sum() < 690


def test_betas_layout(tiny_tree):
    shape = NSD(tiny_tree).roi(1)[0].shape
    folder = tiny_tree / "nsddata_betas/ppdata/subj01/func1pt8mm" / tree.BETAS_NAME
    with h5py.File(folder / "betas_session01.hdf5") as file:
        betas = file["betas"]
        assert list(file) == ["betas"]
        assert betas.dtype == np.int16
        assert betas.shape == (750, *shape[::-1])
        assert betas.chunks == (750, 1, 1, 1)
        assert betas.compression is None
    image = nib.load(folder / "betas_session01.nii.gz")
    assert image.shape == (*shape, 750)
    assert image.get_data_dtype() == np.int16
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S")  # starts left, posterior, inferior
    np.testing.assert_allclose(image.header.get_zooms()[:3], 1.8, atol=1e-6)


def test_surfaces_agree_with_the_volume(tiny_tree):
    """Half way between white and pial lie the voxels of the cortex."""
    labels, affine = NSD(tiny_tree).roi(1)
    hit = np.zeros(labels.shape, dtype=bool)
    for hemi in ("lh", "rh"):
        surf = tiny_tree / "nsddata/freesurfer/subj01/surf"
        white, pial = (read_geometry(surf / f"{hemi}.{name}")[0] for name in ("white", "pial"))
        middle = (white + pial) / 2
        at = np.rint((middle - affine[:3, 3]) / 1.8).astype(int)
        at = at[np.all((at >= 0) & (at < labels.shape), axis=1)]
        hit[tuple(at.T)] = True
    assert hit[labels >= 0].mean() > 0.99


def test_classes_and_their_sizes(tiny_tree):
    for subject in (1, 2):
        with h5py.File(tiny_tree / f"truth/subj{subject:02d}.h5") as file:
            kind = file["class"].asstr()[:]
            names, counts = np.unique(kind, return_counts=True)
            assert set(names) == set(brain.CLASSES)
            assert counts.min() >= 60
            stream, ncsnr = file["stream"][:], file["ncsnr"][:]
            noise = kind == "noise"
            assert set(stream[noise]) == set(range(1, 8))
            assert (ncsnr[noise] == 0).all()
            assert ncsnr[~noise].min() > 0.49
            assert ncsnr.max() < 1.51
            assert set(stream[kind == "early"]) == {1}
            used = np.abs(file["weights"][:]).sum(1) > 0
            assert (used == ~np.isin(kind, ["early", "noise"])).all()
            seen = np.isfinite(file["receptive_field"][:]).all(1)
            assert (seen == np.isin(kind, ["early", "middle"])).all()
            assert tuple(file["attributes"].asstr()[:]) == brain.ATTRIBUTES


def test_betas_hold_what_was_planted(tiny_tree, tmp_path):
    """From the planted weights alone, test betas are predicted up to the noise ceiling."""
    prepare(NSD(tiny_tree), 1, [1, 2], tmp_path / "out.h5", log=lambda line: None)
    with h5py.File(tmp_path / "out.h5") as file, h5py.File(tiny_tree / "truth/subj01.h5") as truth:
        kind, weights = truth["class"].asstr()[:], truth["weights"][:]
        found, ids = file["betas_test"][:], file["nsd_id_test"][:]
        highest = np.sqrt(file["noise_ceiling"][:])
    scenes = planted_scenes(tiny_tree, ids)
    predicted = brain.attributes(scenes) @ weights.T
    of_scene = ~np.isin(kind, ["early", "middle", "noise"])
    for name in np.unique(kind[of_scene]):
        voxels = np.flatnonzero(kind == name)
        r = [np.corrcoef(predicted[:, v], found[:, v])[0, 1] for v in voxels]
        assert np.mean(r / highest[voxels]) > 0.93, name
    noise = found[:, kind == "noise"].T
    chance = [np.corrcoef(predicted[:, of_scene][:, 0], n)[0, 1] for n in noise]
    assert abs(np.mean(chance)) < 0.1


def test_early_voxels_see_their_field():
    """A bright patch moves a luminance voxel only where its receptive field is."""
    pictures = np.full((3, 64, 64, 3), 100, dtype=np.uint8)
    pictures[1, 10:20, 40:50] = 255
    pictures[2, 40:50, 10:20] = 255
    maps = brain.channels(pictures)
    luminance = maps[brain.CHANNELS.index("luminance")]
    assert luminance[1, 15, 45] > luminance[0, 15, 45] == luminance[2, 15, 45]
    gabor = maps[: len(brain.GABORS)]
    assert np.abs(gabor[:, 0]).max() < 1e-5  # blind to a uniform picture
    assert (gabor[:, 1, 8:22, 38:52].max((1, 2)) > 0.03).all()
    assert np.abs(gabor[:, 1, 40:, :20]).max() < 1e-3


def test_gabor_energy_knows_orientation_not_phase():
    x = np.arange(64)
    waves = [np.broadcast_to(np.cos(2 * np.pi * (x + s) / 6), (64, 64)) for s in (0, 1.5)]
    waves.append(waves[0].T)
    pictures = np.stack([np.repeat(127 + 100 * w[..., None], 3, axis=-1) for w in waves])
    maps = brain.channels(pictures.astype(np.uint8))
    middle = maps[:, :, 32, 32]
    upright, lying = middle[brain.GABORS.index("gabor:6px:0deg")], middle[2]
    np.testing.assert_allclose(upright[0], upright[1], rtol=0.05)
    assert upright[0] > 10 * upright[2]
    assert lying[2] > 10 * lying[0]


def test_shared_pictures_have_their_own_textures(monkeypatch):
    seeds = []

    class Spy(tree.Textures):
        def __init__(self, seed: int):
            seeds.append(seed)
            super().__init__(seed, n_fields=2)

    monkeypatch.setattr(tree, "Textures", Spy)
    for seed in (0, 1):
        tree._draw_pictures(seed, np.array([4, 7]), np.array([[5]]))
    assert len(set(seeds)) == 4
    assert not set(seeds) & set(range(1000, 2000))


def test_the_same_seed_writes_the_same_bytes(tmp_path):
    def digests(name: str, seed: int) -> dict[str, str]:
        root = tmp_path / name
        options = ["--seed", str(seed), "--subjects", "7", "--sessions", "1", "--nifti"]
        assert main([str(root), *options]) == 0
        files = sorted(path for path in root.rglob("*") if path.is_file())
        return {
            str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in files
        }

    first = digests("a", 0)
    assert first == digests("b", 0)
    assert sum(path.stat().st_size for path in (tmp_path / "a").rglob("*")) < 60e6
    other = digests("c", 1)
    assert first.keys() == other.keys()
    betas = next(name for name in first if name.endswith("session01.hdf5"))
    assert first[betas] != other[betas]


def test_true_size_betas_take_room_for_the_roi_only(tmp_path):
    rng = np.random.default_rng(0)
    shape = (81, 104, 83)
    at = np.sort(rng.choice(81 * 104 * 83, 12000, replace=False))
    xyz = np.stack(np.unravel_index(at, shape), axis=1)
    values = rng.integers(-32767, 32767, (750, 12000)).astype(np.int16)
    folder = tmp_path / "nsddata_betas/ppdata/subj01/func1pt8mm" / tree.BETAS_NAME
    folder.mkdir(parents=True)
    tree.write_betas(folder / "betas_session01.hdf5", shape, xyz, values)
    assert (folder / "betas_session01.hdf5").stat().st_size < 1.2 * values.nbytes
    nsd = NSD(tmp_path)
    assert nsd.betas_shape(1, 1) == shape
    np.testing.assert_array_equal(nsd.betas(1, 1, xyz), values)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "not an empty folder"),
        (["--subjects", "9"], "subjects among 1 to 8"),
        (["--sessions", "0"], "1 to 37 sessions"),
        (["--seed", "-1"], "seed of 0 or more"),
    ],
)
def test_command_line_refuses(tmp_path, capsys, options, message):
    if not options:
        (tmp_path / "here").write_text("")
    assert main([str(tmp_path), *options]) == 2
    assert message in capsys.readouterr().err
