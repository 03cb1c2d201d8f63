"""The reader against independent readers (pandas, nibabel, h5py) of the same files."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from nibabel.freesurfer import read_geometry

from nsdcap.nsd import NSD, voxels_of

EXPERIMENT = "nsddata/experiments/nsd"
BETAS = "nsddata_betas/ppdata/subj01/func1pt8mm/betas_fithrf_GLMdenoise_RR"
FUNC = "nsddata/ppdata/subj01/func1pt8mm"
STIMULI = "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5"


@pytest.fixture
def nsd(tiny_tree: Path) -> NSD:
    return NSD(tiny_tree)


@pytest.fixture(scope="module")
def stim_info(tiny_tree: Path) -> pd.DataFrame:
    return pd.read_csv(tiny_tree / EXPERIMENT / "nsd_stim_info_merged.csv", index_col=0)


# --- design -------------------------------------------------------------------------------------


@pytest.mark.parametrize("subject", [1, 2])
def test_trials_agree_with_the_table_of_stimuli(nsd, stim_info, subject):
    """subjectN_repM holds 1-based trial numbers; the reader goes by nsd_expdesign.mat instead."""
    expected = np.full(30000, -1)
    for repeat in range(3):
        at = stim_info[f"subject{subject}_rep{repeat}"].to_numpy()
        expected[at[at > 0] - 1] = stim_info["nsdId"].to_numpy()[at > 0]
    assert (expected >= 0).all()
    trials = nsd.trials(subject, [1, 2])
    assert trials.nsd_id.dtype == np.int64
    np.testing.assert_array_equal(trials.nsd_id, expected[:1500])
    late = nsd.trials(subject, [40, 7])
    np.testing.assert_array_equal(late.nsd_id, np.r_[expected[-750:], expected[4500:5250]])
    np.testing.assert_array_equal(late.number, np.r_[29250:30000, 4500:5250])


@pytest.mark.parametrize("subject", [1, 2])
def test_trials_agree_with_the_responses(nsd, tiny_tree, subject):
    path = tiny_tree / f"nsddata/ppdata/subj{subject:02d}/behav/responses.tsv"
    table = pd.read_csv(path, sep="\t")
    trials = nsd.trials(subject, [1, 2])
    np.testing.assert_array_equal(trials.nsd_id, table["73KID"] - 1)
    np.testing.assert_array_equal(trials.session, table["SESSION"])


def test_shared_pictures(nsd, stim_info):
    shared = nsd.shared_ids()
    np.testing.assert_array_equal(shared, np.flatnonzero(stim_info["shared1000"].to_numpy()))
    assert len(shared) == 1000
    ids = [nsd.trials(s, range(1, 41)).nsd_id for s in (1, 2)]
    np.testing.assert_array_equal(np.intersect1d(*ids), shared)


def test_sessions_available(nsd, tree_copy):
    assert nsd.sessions_available(1) == [1, 2]
    assert nsd.sessions_available(5) == []
    (tree_copy / BETAS / "betas_session01.hdf5").unlink()
    assert NSD(tree_copy).sessions_available(1) == [1, 2]  # there is a NIfTI still


# --- betas and volumes --------------------------------------------------------------------------


def test_hdf5_and_nifti_give_the_same_betas(nsd, tree_copy):
    """Every voxel of the volume, in the order asked, by both readers and by nibabel alone."""
    shape = nsd.betas_shape(1, 2)
    everywhere = np.argwhere(np.ones(shape))
    xyz = everywhere[np.random.default_rng(0).permutation(len(everywhere))]
    from_hdf5 = nsd.betas(1, 2, xyz)
    (tree_copy / BETAS / "betas_session02.hdf5").unlink()
    other = NSD(tree_copy)
    assert other.betas_file(1, 2).name == "betas_session02.nii.gz"
    assert other.betas_shape(1, 2) == shape
    from_nifti = other.betas(1, 2, xyz)
    image = nib.load(tree_copy / BETAS / "betas_session02.nii.gz")
    expected = np.asarray(image.dataobj)[tuple(xyz.T)].T
    for found in (from_hdf5, from_nifti):
        assert found.dtype == np.int16
        assert found.shape == (750, len(xyz))
        np.testing.assert_array_equal(found, expected)
    assert expected.any()


def test_betas_are_zero_outside_the_brain_only(nsd):
    mask = nsd.volume(1, "brainmask") > 0
    outside = nsd.betas(1, 1, np.argwhere(~mask))
    inside = nsd.betas(1, 1, np.argwhere(mask))
    assert not outside.any()
    assert (inside.std(0) > 0).all()


def test_mean_betas_are_in_percent_signal_change(nsd):
    labels, _ = nsd.roi(1)
    xyz = voxels_of(labels, [5])
    expected = nsd.volume(1, "meanbeta_session01")[tuple(xyz.T)]
    np.testing.assert_allclose(nsd.betas(1, 1, xyz).mean(0) / 300, expected, atol=1e-4)


def test_roi_and_ncsnr(nsd, tiny_tree):
    labels, affine = nsd.roi(1)
    image = nib.load(tiny_tree / FUNC / "roi/streams.nii.gz")
    np.testing.assert_array_equal(labels, np.asarray(image.dataobj))
    np.testing.assert_array_equal(affine, image.affine)
    assert set(np.unique(labels)) == set(range(-1, 8))
    xyz = voxels_of(labels, [2, 6])
    order = np.ravel_multi_index(tuple(xyz.T), labels.shape)
    assert (np.diff(order) > 0).all()  # C order
    ncsnr = np.asarray(nib.load(tiny_tree / BETAS / "ncsnr.nii.gz").dataobj)
    np.testing.assert_array_equal(nsd.ncsnr(1, xyz), ncsnr[tuple(xyz.T)])


def test_stream_labels(nsd):
    names = ["early", "midventral", "midlateral", "midparietal", "ventral", "lateral", "parietal"]
    assert nsd.stream_labels(1) == {"Unknown": 0, **{n: k for k, n in enumerate(names, 1)}}


# --- pictures and captions ----------------------------------------------------------------------


def test_pictures_come_in_the_order_asked(nsd, tiny_tree):
    ids = nsd.trials(1, [1]).nsd_id[:9]
    ids = np.r_[ids, ids[3]]
    found = nsd.pictures(ids)
    assert found.dtype == np.uint8
    assert found.shape == (10, 425, 425, 3)
    with h5py.File(tiny_tree / STIMULI) as file:
        assert file["imgBrick"].shape == (73000, 425, 425, 3)
        for picture, i in zip(found, ids, strict=True):
            np.testing.assert_array_equal(picture, file["imgBrick"][i])
    batches = list(nsd.picture_batches(ids, size=4))
    assert [len(b) for b, _ in batches] == [4, 4, 2]
    np.testing.assert_array_equal(np.concatenate([b for b, _ in batches]), ids)
    np.testing.assert_array_equal(np.concatenate([p for _, p in batches]), found)


def test_captions_agree_with_coco_and_the_planted_scenes(nsd, tiny_tree, stim_info):
    ids = np.unique(nsd.trials(2, [1, 2]).nsd_id)
    found = nsd.captions(ids)
    assert list(found) == ids.tolist()
    entries = []
    for split in ("train2017", "val2017"):
        path = tiny_tree / f"annotations/captions_{split}.json"
        entries.append(pd.DataFrame(json.loads(path.read_text())["annotations"]))
    by_coco = pd.concat(entries).groupby("image_id")["caption"].apply(set)
    scenes = json.loads((tiny_tree / "truth/scenes.json").read_text())
    for i, texts in found.items():
        assert len(texts) == 5
        assert set(texts) == by_coco[stim_info["cocoId"][i]]
        for item in scenes[str(i)]["items"]:
            assert all(f"{item['colour']} {item['kind']}" in text for text in texts)


def test_captions_from_another_folder(nsd, tiny_tree, tmp_path):
    (tmp_path / "coco").symlink_to(tiny_tree / "annotations")
    ids = nsd.shared_ids()[np.isin(nsd.shared_ids(), nsd.trials(1, [1]).nsd_id)][:3]
    elsewhere = NSD(tiny_tree, coco_dir=tmp_path / "coco")
    assert elsewhere.captions(ids) == nsd.captions(ids)


# --- surfaces -----------------------------------------------------------------------------------


@pytest.mark.parametrize("hemi", ["lh", "rh"])
def test_a_function_of_position_survives_the_way_to_fsaverage(nsd, tiny_tree, hemi):
    """Volume coordinates in mm, sampled on the surface, are the surface's own coordinates."""
    labels, affine = nsd.roi(1)
    grid = np.moveaxis(np.indices(labels.shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
    on_subject = np.stack(
        [nsd.to_surface(1, hemi, grid[..., k], "linear") for k in range(3)], axis=1
    )
    surf = tiny_tree / "nsddata/freesurfer/subj01/surf"
    white, pial = (read_geometry(surf / f"{hemi}.{name}")[0] for name in ("white", "pial"))
    known = np.isfinite(on_subject).all(1)
    assert 2000 < known.sum() < len(white) / 2
    np.testing.assert_allclose(on_subject[known], ((white + pial) / 2)[known], atol=1e-3)

    on_average = np.stack([nsd.to_fsaverage(1, hemi, on_subject[:, k]) for k in range(3)], axis=1)
    surf = tiny_tree / "nsddata/freesurfer/fsaverage/surf"
    white, pial = (read_geometry(surf / f"{hemi}.{name}")[0] for name in ("white", "pial"))
    known = np.isfinite(on_average).all(1)
    design = np.c_[((white + pial) / 2)[known], np.ones(known.sum())]
    moved, *_ = np.linalg.lstsq(design, on_average[known], rcond=None)  # the subject's own turn
    assert np.abs(design @ moved - on_average[known]).max() < 1e-3
    np.testing.assert_allclose(np.linalg.svd(moved[:3])[1], 0.4, atol=1e-4)


@pytest.mark.parametrize("hemi", ["lh", "rh"])
def test_streams_land_where_the_atlas_has_them(nsd, tiny_tree, hemi):
    labels = nsd.roi(2)[0].astype(float)
    found = nsd.to_fsaverage(2, hemi, nsd.to_surface(2, hemi, labels))
    atlas = np.asarray(
        nib.load(tiny_tree / f"nsddata/freesurfer/fsaverage/label/{hemi}.streams.mgz").dataobj
    ).squeeze()
    known = np.isfinite(found) & (atlas > 0)
    assert (found[known] == atlas[known]).mean() > 0.8
    assert np.isnan(found[atlas == 0]).mean() > 0.8


def test_voxels_without_a_value_do_not_spread(nsd):
    labels, _ = nsd.roi(1)
    volume = np.where(labels == 1, 7.0, np.nan)
    for kind in ("nearest", "linear"):
        values = nsd.to_surface(1, "lh", volume, kind)
        np.testing.assert_allclose(values[np.isfinite(values)], 7.0)
        assert 300 < np.isfinite(values).sum() < 1500
