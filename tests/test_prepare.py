"""prepare against plain numpy on whole arrays, and each way in which its input can be wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import numpy as np
import pytest

from nsdcap.errors import DataError
from nsdcap.miniature.tree import write_betas
from nsdcap.nsd import NSD, voxels_of
from nsdcap.nsd_checks import sample
from nsdcap.prepare import noise_ceiling, prepare

BETAS = "nsddata_betas/ppdata/subj01/func1pt8mm/betas_fithrf_GLMdenoise_RR"
ROI = "nsddata/ppdata/subj01/func1pt8mm/roi/streams.nii.gz"
CTAB = "nsddata/freesurfer/subj01/label/streams.mgz.ctab"


def load(path: Path) -> Any:
    return nib.load(path)


def quiet(line: str) -> None:
    pass


def read(path: Path) -> dict[str, np.ndarray]:
    with h5py.File(path) as file:
        return {name: file[name][()] for name in file}


def volumes(root: Path, sessions: list[int]) -> np.ndarray:
    """(n_trials, X, Y, Z) int16, straight from the NIfTI files."""
    names = [root / BETAS / f"betas_session{s:02d}.nii.gz" for s in sessions]
    return np.concatenate([np.moveaxis(np.asarray(load(n).dataobj), -1, 0) for n in names])


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("zscore", [False, True])
def test_equals_numpy_on_whole_arrays(tiny_tree, tmp_path, scale, zscore):
    nsd = NSD(tiny_tree)
    lines: list[str] = []
    counts = prepare(
        nsd,
        1,
        [2, 1],
        tmp_path / "out.h5",
        roi_labels=["ventral", "early"],
        scale=scale,
        zscore_sessions=zscore,
        log=lines.append,
    )
    got = read(tmp_path / "out.h5")

    labels = np.asarray(load(tiny_tree / ROI).dataobj)
    xyz = np.argwhere((labels == 1) | (labels == 5))
    betas = volumes(tiny_tree, [1, 2])[(slice(None), *xyz.T)].astype(np.float64)
    betas = betas / 300 if scale else betas
    trials = nsd.trials(1, [1, 2])
    is_test = np.isin(trials.nsd_id, nsd.shared_ids())
    if zscore:
        for s in (1, 2):
            train = (trials.session == s) & ~is_test
            here = trials.session == s
            betas[here] = (betas[here] - betas[train].mean(0)) / betas[train].std(0)
    mean, sd = betas[~is_test].mean(0), betas[~is_test].std(0)
    standard = (betas - mean) / sd
    ids = np.unique(trials.nsd_id[is_test])
    test = np.stack([standard[trials.nsd_id == i].mean(0) for i in ids])

    np.testing.assert_array_equal(got["xyz"], xyz)
    np.testing.assert_array_equal(got["stream"], labels[tuple(xyz.T)])
    np.testing.assert_allclose(got["betas_train"], standard[~is_test], atol=2e-5)
    np.testing.assert_allclose(got["betas_test"], test, atol=2e-5)
    np.testing.assert_allclose(got["voxel_mean"], mean, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(got["voxel_sd"], sd, rtol=1e-5)
    np.testing.assert_array_equal(got["nsd_id_train"], trials.nsd_id[~is_test])
    np.testing.assert_array_equal(got["session_train"], trials.session[~is_test])
    np.testing.assert_array_equal(got["trial_train"], np.flatnonzero(~is_test))
    np.testing.assert_array_equal(got["nsd_id_test"], ids)
    np.testing.assert_allclose(got["betas_train"].mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(got["betas_train"].std(0), 1, atol=1e-4)

    n_train, n_voxels = got["betas_train"].shape
    assert got["repeats_test"].sum() + n_train == 1500
    assert counts["train_trials"] == n_train
    assert counts["test_trials"] == is_test.sum()
    assert counts["voxels"] == n_voxels == len(xyz)
    assert any(f"(n_trials_train, n_voxels) = ({n_train}, {n_voxels})" in line for line in lines)


def test_file_holds_what_it_says(tiny_tree, tmp_path):
    out = tmp_path / "out.h5"
    counts = prepare(NSD(tiny_tree), 2, [1, 2], out, log=quiet)
    with h5py.File(out) as file:
        n, p = file["betas_train"].shape
        n_test = len(file["nsd_id_test"])
        kinds = {name: (str(d.dtype), d.shape) for name, d in file.items()}
        assert kinds == {
            "betas_train": ("float32", (n, p)),
            "nsd_id_train": ("int64", (n,)),
            "session_train": ("int64", (n,)),
            "trial_train": ("int64", (n,)),
            "betas_test": ("float32", (n_test, p)),
            "nsd_id_test": ("int64", (n_test,)),
            "repeats_test": ("int64", (n_test,)),
            "voxel_mean": ("float64", (p,)),
            "voxel_sd": ("float64", (p,)),
            "xyz": ("int32", (p, 3)),
            "affine": ("float64", (4, 4)),
            "stream": ("int8", (p,)),
            "ncsnr": ("float32", (p,)),
            "noise_ceiling": ("float32", (p,)),
        }
        assert set(np.unique(file["stream"])) == set(range(1, 8))
        assert json.loads(file.attrs["stream_names"])["lateral"] == 6
        assert file.attrs["subject"] == 2
        assert file.attrs["sessions"].tolist() == [1, 2]
        assert tuple(file.attrs["shape"]) == NSD(tiny_tree).betas_shape(2, 1)
        train, test = file["nsd_id_train"][:], file["nsd_id_test"][:]
    assert not set(train) & set(test)
    assert counts["train_pictures"] == len(set(train))
    assert counts["test_pictures"] == n_test
    with h5py.File(tiny_tree / "truth/subj02.h5") as truth:
        np.testing.assert_array_equal(truth["xyz"], read(out)["xyz"])


def test_nifti_gives_the_same_file(tiny_tree, tree_copy, tmp_path):
    for path in (tree_copy / BETAS).glob("*.hdf5"):
        path.unlink()
    streams = ["midventral"]
    prepare(NSD(tiny_tree), 1, [1, 2], tmp_path / "a.h5", roi_labels=streams, log=quiet)
    prepare(NSD(tree_copy), 1, [1, 2], tmp_path / "b.h5", roi_labels=streams, log=quiet)
    a, b = read(tmp_path / "a.h5"), read(tmp_path / "b.h5")
    for name, values in a.items():
        np.testing.assert_array_equal(values, b[name])


def change_betas(root: Path, session: int, change: Callable[[np.ndarray], object]) -> np.ndarray:
    """Change a session's betas (750, n_voxels) in place in both files' stead; returns the voxels."""
    nsd = NSD(root)
    xyz = voxels_of(nsd.roi(1)[0], range(1, 8))
    betas, shape = nsd.betas(1, session, xyz), nsd.betas_shape(1, session)
    change(betas)
    for path in (root / BETAS).glob(f"betas_session{session:02d}.*"):
        path.unlink()
    write_betas(root / BETAS / f"betas_session{session:02d}.hdf5", shape, xyz, betas)
    return xyz


def change_ncsnr(root: Path, values: dict[tuple[int, ...], float]) -> None:
    path = root / BETAS / "ncsnr.nii.gz"
    image = load(path)
    ncsnr = np.array(image.dataobj)
    for at, value in values.items():
        ncsnr[at] = value
    path.unlink()
    nib.save(nib.Nifti1Image(ncsnr, image.affine), path)


@pytest.mark.parametrize("zscore", [False, True])
def test_bad_voxels_are_dropped_counted_and_change_no_others(
    tiny_tree, tree_copy, tmp_path, zscore
):
    """One of each kind, some of two kinds: the others are the same bytes as without them."""
    nsd = NSD(tree_copy)
    is_test = np.isin(nsd.trials(1, [1, 2]).nsd_id, nsd.shared_ids()).reshape(2, 750)

    def first(betas: np.ndarray) -> None:
        betas[is_test[0], 11] = 77  # over the test trials of both sessions
        betas[:3, 20] = [32767, -32767, -32768]  # saturated: kept
        betas[is_test[0], 21] = 5  # in one session alone: kept

    def second(betas: np.ndarray) -> None:
        betas[:, [3, 950]] = 0
        betas[:, 700] = 41
        betas[~is_test[1], 12] = -8  # over the training trials of one session
        betas[is_test[1], 11] = 77

    change_betas(tree_copy, 1, first)
    xyz = change_betas(tree_copy, 2, second)
    spots = [tuple(at) for at in xyz[[700, 900, 901, 902, 950]].tolist()]
    change_ncsnr(tree_copy, dict(zip(spots, (np.nan, np.nan, np.inf, -1, np.nan), strict=True)))

    lines: list[str] = []
    options: dict[str, Any] = {"zscore_sessions": zscore}
    counts = prepare(nsd, 1, [1, 2], tmp_path / "out.h5", log=lines.append, **options)
    told = {"dropped_zero": 2, "dropped_constant": 2, "dropped_constant_test": 1}
    told |= {"dropped_no_ncsnr": 3, "saturated_betas": 3, "saturated_voxels": 1}
    assert {name: counts[name] for name in told} == told
    with h5py.File(tmp_path / "out.h5") as file:
        assert {name: file.attrs[name] for name in told} == told
    assert f"8 of {len(xyz)} voxels dropped: 2 0 throughout some session, 2 constant" in lines[-2]
    assert "3 betas of 1 voxels are at the ends" in lines[-1]

    prepare(NSD(tiny_tree), 1, [1, 2], tmp_path / "all.h5", log=quiet, **options)
    some, everything = read(tmp_path / "out.h5"), read(tmp_path / "all.h5")
    kept = np.delete(np.arange(len(xyz)), [3, 11, 12, 700, 900, 901, 902, 950])
    np.testing.assert_array_equal(some["xyz"], everything["xyz"][kept])
    untouched = ~np.isin(kept, [20, 21])
    for name in ("betas_train", "betas_test"):
        assert np.isfinite(some[name]).all()
        same = some[name][:, untouched].tobytes() == everything[name][:, kept[untouched]].tobytes()
        assert same, name
    for name in ("voxel_mean", "voxel_sd", "ncsnr", "noise_ceiling", "stream"):
        assert np.isfinite(some[name]).all()
        assert some[name][untouched].tobytes() == everything[name][kept[untouched]].tobytes()


def test_noise_ceiling_formula():
    """NSD's formula: with 3 repeats NC = s^2 / (s^2 + 1/3); unequal repeats by the mean of 1/n."""
    np.testing.assert_allclose(noise_ceiling(np.array([0.0, 1.0]), np.array([3, 3])), [0, 0.75])
    np.testing.assert_allclose(noise_ceiling(np.array([1.0]), np.array([1, 2])), 1 / 1.75)


def test_planted_noise_ceiling_is_what_repeats_show(tiny_tree, tmp_path):
    """ncsnr from the spread of three repeats, as the NSD Data Manual has it, against the truth."""
    out = tmp_path / "out.h5"
    prepare(NSD(tiny_tree), 1, [1, 2], out, zscore_sessions=True, log=quiet)
    got = read(out)
    betas, ids = got["betas_train"].astype(np.float64), got["nsd_id_train"]
    _, which, repeats = np.unique(ids, return_inverse=True, return_counts=True)
    of_three = [betas[which == i] for i in np.flatnonzero(repeats == 3)]
    noise = np.mean([b.var(0, ddof=1) for b in of_three], axis=0)
    signal = np.maximum(betas.var(0) - noise, 0)
    found = np.sqrt(signal / noise)
    heard = got["ncsnr"] > 0
    assert np.corrcoef(found[heard], got["ncsnr"][heard])[0, 1] > 0.95
    assert abs(np.median(found[heard] / got["ncsnr"][heard]) - 1) < 0.05
    assert found[~heard].mean() < 0.2
    expected = got["ncsnr"] ** 2 / (got["ncsnr"] ** 2 + np.mean(1 / got["repeats_test"]))
    np.testing.assert_allclose(got["noise_ceiling"], expected, rtol=1e-5)


# --- bad input ----------------------------------------------------------------------------------


def blank_session(root: Path) -> None:
    path = root / BETAS / "betas_session02.hdf5"
    shape = NSD(root).betas_shape(1, 1)
    path.unlink()
    write_betas(path, shape, np.zeros((1, 3), int), np.ones((750, 1), np.int16))


def blank_nifti(root: Path) -> None:
    shape = NSD(root).betas_shape(1, 1)
    (root / BETAS / "betas_session02.hdf5").unlink()
    path = root / BETAS / "betas_session02.nii.gz"
    affine = load(path).affine
    path.unlink()
    nib.save(nib.Nifti1Image(np.zeros((*shape, 750), np.int16), affine), path)


def roi_of(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    def spoil(root: Path) -> None:
        image = load(root / ROI)
        values = change(np.asarray(image.dataobj))
        (root / ROI).unlink()
        nib.save(nib.Nifti1Image(values, image.affine), root / ROI)

    return spoil


def truncated(root: Path) -> None:
    path = root / BETAS / "betas_session02.hdf5"
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:-100_000])


def frozen(root: Path) -> None:
    """Every voxel stands still throughout one session."""
    path, nsd = root / BETAS / "betas_session02.hdf5", NSD(root)
    xyz = voxels_of(nsd.roi(1)[0], range(1, 8))
    shape = nsd.betas_shape(1, 1)
    path.unlink()
    write_betas(path, shape, xyz, np.full((750, len(xyz)), 5, np.int16))


def nearly_frozen(root: Path) -> None:
    """No voxel varies in both sessions, but some that are looked at before work do in each."""
    nsd = NSD(root)
    early = voxels_of(nsd.roi(1)[0], [1])
    looked_at = {tuple(at) for at in sample(early).tolist()}
    seen = np.array([tuple(at) in looked_at for at in early.tolist()])
    first = np.arange(len(early)) == np.flatnonzero(seen)[0]
    for session, varies in ((1, first), (2, seen & ~first)):
        values = nsd.betas(1, session, early)
        values[:, ~varies] = 5
        path = root / BETAS / f"betas_session{session:02d}.hdf5"
        path.unlink()
        write_betas(path, nsd.betas_shape(1, session), early, values)


def without_ncsnr(root: Path) -> None:
    path = root / BETAS / "ncsnr.nii.gz"
    image = load(path)
    values = np.full(image.shape, np.nan, np.float32)
    values[::2], values[::3] = np.inf, -1
    path.unlink()
    nib.save(nib.Nifti1Image(values, image.affine), path)


CASES: dict[str, tuple[Callable[[Path], object], dict, str]] = {
    "missing session": (lambda r: None, {"sessions": [1, 2, 3]}, r"session 3 in .*\[1, 2\]"),
    "session twice": (lambda r: None, {"sessions": [1, 1]}, "twice"),
    "no sessions": (lambda r: None, {"sessions": []}, "expected numbers from 1 to 40"),
    "unknown stream": (lambda r: None, {"roi_labels": ["early", "V9"]}, r"\['V9'\] do not exist"),
    "not a stream": (lambda r: None, {"roi_labels": ["Unknown"]}, "do not exist"),
    "no streams": (lambda r: None, {"roi_labels": []}, "no voxel of streams"),
    "empty ROI": (roi_of(lambda v: np.minimum(v, 0)), {}, "no voxel of streams"),
    "other shape": (roi_of(lambda v: v[1:]), {}, "take both of the same subject"),
    "no labels": (lambda r: (r / CTAB).unlink(), {}, "streams.mgz.ctab does not exist"),
    "no ncsnr": (lambda r: (r / BETAS / "ncsnr.nii.gz").unlink(), {}, "ncsnr.nii.gz does not"),
    "all zero": (blank_session, {}, "session02.hdf5 holds only zeros"),
    "all zero NIfTI": (blank_nifti, {}, "session02.nii.gz holds only zeros"),
    "all constant": (
        frozen,
        {},
        r"session02.hdf5: found one number \(5\) in all \d+ training trials",
    ),
    "constant but for the sample": (
        nearly_frozen,
        {"roi_labels": ["early"]},
        "none is left .* constant over",
    ),
    "no voxel has ncsnr": (
        without_ncsnr,
        {},
        "ncsnr.nii.gz: found no finite number .*fetch it again",
    ),
    "truncated": (truncated, {}, "session02.hdf5 is truncated"),
}
LATE = ("constant but for the sample",)  # only reading the session in full can tell


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_named_before_long_work(tree_copy, tmp_path, case):
    spoil, options, message = CASES[case]
    spoil(tree_copy)
    arguments: dict[str, Any] = {"sessions": [1, 2], "log": quiet, **options}
    with pytest.raises(DataError, match=message):
        prepare(NSD(tree_copy), 1, out=tmp_path / "out.h5", **arguments)
    assert case in LATE or not (tmp_path / "out.h5").exists()


@pytest.mark.parametrize(
    ("shared", "message"),
    [
        (lambda ids: np.setdiff1d(np.arange(73000), ids)[:1000], "no shared pictures"),
        (lambda ids: ids, "only shared pictures"),
    ],
)
def test_no_test_or_no_training_pictures(tiny_tree, tmp_path, monkeypatch, shared, message):
    seen = NSD(tiny_tree).trials(1, [1]).nsd_id
    monkeypatch.setattr(NSD, "shared_ids", lambda self: shared(seen))
    with pytest.raises(DataError, match=message):
        prepare(NSD(tiny_tree), 1, [1], tmp_path / "out.h5", log=quiet)
