"""Files of NSD that are missing, broken or another's: each is one error that names it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest
import scipy.io

from nsdcap.errors import DataError
from nsdcap.nsd import NSD

EXPERIMENT = "nsddata/experiments/nsd"
BETAS = "nsddata_betas/ppdata/subj01/func1pt8mm/betas_fithrf_GLMdenoise_RR"
FUNC = "nsddata/ppdata/subj01/func1pt8mm"
STIMULI = "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5"


def replace(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


def truncate(path: Path) -> None:
    replace(path, path.read_bytes()[: path.stat().st_size // 2])


def write_hdf5(path: Path, name: str, shape: tuple[int, ...], dtype: str) -> None:
    path.unlink()
    with h5py.File(path, "w") as file:
        file.create_dataset(name, shape, dtype, chunks=(1,) * len(shape))


def scatter(path: Path) -> None:
    """Overwrite the middle of an HDF5 file, its length unchanged."""
    content = bytearray(path.read_bytes())
    content[: len(content) // 3] = b"\xff" * (len(content) // 3)
    replace(path, bytes(content))


def only_nifti(root: Path, session: int = 1) -> Path:
    (root / BETAS / f"betas_session{session:02d}.hdf5").unlink()
    return root / BETAS / f"betas_session{session:02d}.nii.gz"


def float_nifti(root: Path) -> None:
    path = only_nifti(root)
    path.unlink()
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4, 750), np.float32), np.eye(4)), path)


def fraction_roi(root: Path) -> None:
    path = root / FUNC / "roi/streams.nii.gz"
    path.unlink()
    nib.save(nib.Nifti1Image(np.full((4, 4, 4), 0.5, np.float32), np.eye(4)), path)


def bad_sharedix(root: Path) -> None:
    path = root / EXPERIMENT / "nsd_expdesign.mat"
    design = {k: v for k, v in scipy.io.loadmat(path).items() if k[0] != "_"}
    design["sharedix"][0, 0] = np.setdiff1d(np.arange(1, 2000), design["sharedix"])[0]
    path.unlink()
    scipy.io.savemat(path, design)


XYZ = np.array([[9, 9, 9], [10, 9, 9]])
ONE = BETAS + "/betas_session01.hdf5"
WHITE = "nsddata/ppdata/subj01/transforms/lh.white-to-fsaverage.mgz"
CASES: dict[str, tuple[Callable[[Path], object], Callable[[NSD], object], str]] = {
    "subject": (lambda r: None, lambda n: n.trials(9, [1]), "subject 9"),
    "session number": (lambda r: None, lambda n: n.trials(1, [41]), "1 to 40"),
    "no session": (lambda r: None, lambda n: n.trials(1, []), "expected numbers"),
    "no design": (
        lambda r: (r / EXPERIMENT / "nsd_expdesign.mat").unlink(),
        lambda n: n.trials(1, [1]),
        "nsd_expdesign.mat does not exist",
    ),
    "broken design": (
        lambda r: truncate(r / EXPERIMENT / "nsd_expdesign.mat"),
        lambda n: n.trials(1, [1]),
        "nsd_expdesign.mat cannot be read",
    ),
    "design disagrees": (bad_sharedix, lambda n: n.shared_ids(), "different pictures"),
    "missing session": (lambda r: None, lambda n: n.betas(1, 3, XYZ), r"session 3.*\[1, 2\]"),
    "truncated": (
        lambda r: truncate(r / ONE),
        lambda n: n.betas(1, 1, XYZ),
        "betas_session01.hdf5 is truncated",
    ),
    "broken": (
        lambda r: scatter(r / ONE),
        lambda n: n.betas(1, 1, XYZ),
        "betas_session01.hdf5 is truncated or broken",
    ),
    "not HDF5": (
        lambda r: replace(r / ONE, b"<html>not found</html>"),
        lambda n: n.betas(1, 1, XYZ),
        "betas_session01.hdf5",
    ),
    "no dataset": (
        lambda r: write_hdf5(r / ONE, "data", (750, 2, 2, 2), "i2"),
        lambda n: n.betas(1, 1, XYZ),
        "no dataset 'betas'",
    ),
    "wrong dtype": (
        lambda r: write_hdf5(r / ONE, "betas", (750, 2, 2, 2), "f4"),
        lambda n: n.betas(1, 1, XYZ),
        "float32.*expected int16",
    ),
    "wrong trials": (
        lambda r: write_hdf5(r / ONE, "betas", (749, 2, 2, 2), "i2"),
        lambda n: n.betas(1, 1, XYZ),
        "749 trials, expected 750",
    ),
    "voxel outside": (
        lambda r: write_hdf5(r / ONE, "betas", (750, 2, 2, 2), "i2"),
        lambda n: n.betas(1, 1, XYZ),
        r"\(2, 2, 2\), but voxels up to \(10, 9, 9\)",
    ),
    "voxels not (n, 3)": (lambda r: None, lambda n: n.betas(1, 1, XYZ[0]), r"\(n_voxels, 3\)"),
    "truncated NIfTI": (
        lambda r: truncate(only_nifti(r)),
        lambda n: n.betas(1, 1, XYZ),
        "betas_session01.nii.gz is broken",
    ),
    "float NIfTI": (float_nifti, lambda n: n.betas(1, 1, XYZ), "float32.*expected int16"),
    "no ROI": (lambda r: None, lambda n: n.roi(1, "nowhere"), "nowhere.nii.gz does not exist"),
    "ROI of fractions": (fraction_roi, lambda n: n.roi(1), "whole labels"),
    "broken ROI": (
        lambda r: truncate(r / FUNC / "roi/streams.nii.gz"),
        lambda n: n.roi(1),
        "streams.nii.gz is broken",
    ),
    "no labels": (
        lambda r: (r / "nsddata/freesurfer/subj01/label/streams.mgz.ctab").unlink(),
        lambda n: n.stream_labels(1),
        "streams.mgz.ctab does not exist",
    ),
    "broken labels": (
        lambda r: replace(r / "nsddata/freesurfer/subj01/label/streams.mgz.ctab", b"early 1\n"),
        lambda n: n.stream_labels(1),
        "expected 'index name'",
    ),
    "no ncsnr": (
        lambda r: (r / BETAS / "ncsnr.nii.gz").unlink(),
        lambda n: n.ncsnr(1, XYZ),
        "ncsnr.nii.gz does not exist",
    ),
    "picture id": (lambda r: None, lambda n: n.pictures([73000]), "73000 pictures; nsd_id 73000"),
    "picture not written": (
        lambda r: None,
        lambda n: n.pictures(np.setdiff1d(n.trials(8, [40]).nsd_id, n.shared_ids())[:1]),
        "all zero",
    ),
    "pictures truncated": (
        lambda r: truncate(r / STIMULI),
        lambda n: n.pictures(n.trials(1, [1]).nsd_id[:1]),
        "nsd_stimuli.hdf5 is truncated",
    ),
    "no captions": (
        lambda r: None,
        lambda n: n.captions(n.trials(1, [40]).nsd_id[:5]),
        "have no captions",
    ),
    "no COCO": (
        lambda r: (r / "annotations").rename(r / "elsewhere"),
        lambda n: n.captions(n.trials(1, [1]).nsd_id),
        r"captions_train2017.json does not exist; the folder is the setting",
    ),
    "not COCO": (
        lambda r: replace(r / "annotations/captions_train2017.json", b"{}"),
        lambda n: n.captions(n.trials(1, [1]).nsd_id),
        "is not COCO's captions",
    ),
    "no stimulus table": (
        lambda r: replace(r / EXPERIMENT / "nsd_stim_info_merged.csv", b"a,b\n1,2\n"),
        lambda n: n.captions([1]),
        "expected columns nsdId",
    ),
    "hemisphere": (
        lambda r: None,
        lambda n: n.to_surface(1, "xh", np.zeros((9, 9, 9))),
        "xh.func1pt8-to-layerB1.mgz does not exist",
    ),
    "kind": (lambda r: None, lambda n: n.to_surface(1, "lh", np.zeros((9, 9, 9)), "x"), "'linear'"),
    "broken transform": (
        lambda r: truncate(r / WHITE),
        lambda n: n.to_fsaverage(1, "lh", np.zeros(10242)),
        "white-to-fsaverage.mgz is broken",
    ),
    "too few vertices": (
        lambda r: None,
        lambda n: n.to_fsaverage(1, "lh", np.zeros(10)),
        "10242 of the subject, but 10 values",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_named(tree_copy, case):
    spoil, call, message = CASES[case]
    spoil(tree_copy)
    with pytest.raises(DataError, match=message) as caught:
        call(NSD(tree_copy))
    assert caught.value.exit_code == 65
    assert "\n" not in str(caught.value)
