"""The doctor on a tree of NSD's true size, in less than a minute. By hand: some minutes, 2 GB of disk.

python -m pytest -m byhand -s tests/test_doctor_true_size.py
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest
import scipy.io

from nsdcap import config, doctor, miniature
from nsdcap.miniature import design as designs
from nsdcap.miniature.tree import BETAS_NAME, write_tree
from nsdcap.nsd_checks import sample
from nsdcap.options import chosen_cells
from nsdcap.preflight import preflight

SHAPES = {1: (81, 104, 83), 2: (82, 106, 84), 5: (79, 97, 78), 7: (78, 95, 81)}
SESSIONS, EARLY = 40, 37 * 750
PAPERS = "27,750 trials = 24,980 + 2,770 of the test; 8,859 + 982 pictures"


@pytest.mark.byhand
def test_a_tree_of_true_size_takes_less_than_a_minute(tmp_path, capsys):
    root, start = tmp_path / "nsd", time.perf_counter()
    write_true_size(root)
    capsys.readouterr()
    with capsys.disabled():
        print(f"\nwritten: {time.perf_counter() - start:.0f} s")
    models = [text for text in miniature.places(root) if not text.startswith("data.nsd_root")]
    given = ["--nsd-root", str(root), "--out", str(tmp_path / "out")]
    given += [word for setting in models for word in ("--set", setting)]

    start = time.perf_counter()
    doctor.main([*given, "--json"])
    seconds = time.perf_counter() - start
    rows = json.loads(capsys.readouterr().out)["rows"]
    with capsys.disabled():
        print(f"doctor: {seconds:.1f} s")
    faults = {row["check"]: row for row in rows if row["verdict"] not in ("ok", "note")}
    assert set(faults) <= {"disk", "memory"}, faults  # of which the whole run takes much
    assert [row["found"] for row in rows if row["check"].endswith("trials")] == [PAPERS] * 4
    assert seconds < 60

    settings = config.load(settings=(*miniature.places(root), "data.sessions=37"))
    cells = chosen_cells("all", settings)
    start = time.perf_counter()
    preflight(settings, cells, out=tmp_path / "out")
    with capsys.disabled():
        print(f"what the launcher looks at before a whole run: {time.perf_counter() - start:.1f} s")
    shutil.rmtree(root)  # pytest would keep its gigabytes


def write_true_size(root: Path) -> None:
    """A miniature whose design has the paper's counts, with volumes, files and tables as large as NSD's."""
    rng = np.random.default_rng(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nsdcap.miniature.tree.make_design", paper_design)
        # who sees what follows from the design; of the pictures a few are drawn and the rest written here
        write_tree(root, subjects=tuple(SHAPES), sessions=1, nifti=False, log=print)
    mat = scipy.io.loadmat(root / "nsddata/experiments/nsd/nsd_expdesign.mat")
    seen = mat["subjectim"][:, mat["masterordering"][0].astype(int)[:EARLY] - 1].astype(int) - 1
    shown = np.unique(seen[[subject - 1 for subject in SHAPES]])
    write_captions(root, shown)
    with h5py.File(root / "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5", "r+") as file:
        for number in {shown[0], shown[-1], *sample(shown)}:
            file["imgBrick"][number] = 1
    for subject, shape in SHAPES.items():
        write_subject(root, subject, shape, rng)


def paper_design(rng: np.random.Generator, sessions: int) -> dict[str, np.ndarray]:
    """A design in whose first 37 sessions 982 shared pictures have 2,770 trials, 8,859 others 24,980."""
    found = designs.make_design(rng, 37)
    left, window = np.full(10_000, 3), []
    for first, last, pictures, trials in ((0, 1000, 982, 2_770), (1000, 10_000, 8_859, 24_980)):
        chosen = rng.permutation(np.arange(first, last))[:pictures]
        repeats = np.full(pictures, 3)
        repeats[: 3 * pictures - trials] = 2
        left[chosen] -= repeats
        window.append(np.repeat(chosen, repeats))
    early = rng.permutation(np.concatenate(window))
    late = rng.permutation(np.repeat(np.arange(10_000), left))
    return {**found, "masterordering": np.concatenate([early, late])[None] + 1}


def write_captions(root: Path, shown: np.ndarray) -> None:
    """COCO's two files with five captions of each of its 123,287 pictures, some 600,000."""
    table = np.genfromtxt(
        (line.replace('"(0.0, 0.0, 0.0, 0.0)"', "x")
         for line in (root / "nsddata/experiments/nsd/nsd_stim_info_merged.csv").open()),
        delimiter=",", skip_header=1, usecols=(1, 2, 5), dtype=None, encoding="utf-8",
    )  # fmt: skip
    known = {
        name: [int(row[0]) for row in table if row[1] == name] for name in ("train2017", "val2017")
    }
    others = np.setdiff1d(np.arange(600_000, 660_000), table["f0"])[: 123_287 - len(table)]
    known["train2017"] += others.tolist()
    text = "a man that rides a wave on top of a surfboard in the sea"
    for name, images in known.items():
        entries = [
            {"image_id": image, "id": 10 * image + k, "caption": text}
            for image in images
            for k in range(5)
        ]
        path = root / f"annotations/captions_{name}.json"
        path.write_text(json.dumps({"images": [], "annotations": entries}))


def write_subject(
    root: Path, subject: int, shape: tuple[int, int, int], rng: np.random.Generator
) -> None:
    """ROI, ncsnr, transforms and 40 sessions, of which 2,000 of the ROI's voxels and the sampled ones are
    written: all others read as 0, and their chunks are not in the files' index."""
    name = f"subj{subject:02d}"
    func = root / f"nsddata/ppdata/{name}/func1pt8mm"
    affine = np.diag([1.8, 1.8, 1.8, 1])
    labels = np.full(shape, -1, np.int16)
    labels[20:45, 30:55, 20:45] = 1 + np.arange(25**3).reshape(25, 25, 25) % 7  # 15,625 voxels
    for path, volume in ((func / "roi/streams.nii.gz", labels),
                         (root / f"nsddata_betas/ppdata/{name}/func1pt8mm/{BETAS_NAME}/ncsnr.nii.gz",
                          np.abs(rng.standard_normal(shape)).astype(np.float32))):  # fmt: skip
        nib.save(nib.Nifti1Image(volume, affine), path)
    for hemi in ("lh", "rh"):
        for depth in (1, 2, 3):
            at = rng.uniform(1, np.array(shape), (220_000, 3)).astype(np.float32)
            path = root / f"nsddata/ppdata/{name}/transforms/{hemi}.func1pt8-to-layerB{depth}.mgz"
            nib.save(nib.MGHImage(at[:, None, None, :], np.eye(4)), path)
        index = rng.integers(1, 220_001, 163_842).astype(np.float32)
        path = root / f"nsddata/ppdata/{name}/transforms/{hemi}.white-to-fsaverage.mgz"
        nib.save(nib.MGHImage(index[:, None, None], np.eye(4)), path)
    folder = root / f"nsddata_betas/ppdata/{name}/func1pt8mm/{BETAS_NAME}"
    (folder / "betas_session01.hdf5").unlink()
    values = rng.integers(-900, 900, 750).astype("<i2").tobytes()
    xyz = np.argwhere(labels > 0)
    with h5py.File(folder / "betas_session01.hdf5", "w") as file:
        betas = file.create_dataset("betas", (750, *shape[::-1]), "<i2", chunks=(750, 1, 1, 1))
        written = np.unique(np.concatenate([sample(xyz), xyz[:2000]]), axis=0)
        for vx, vy, vz in written[np.lexsort(written.T)]:
            betas.id.write_direct_chunk((0, vz, vy, vx), values)
    for session in range(2, SESSIONS + 1):
        shutil.copy(folder / "betas_session01.hdf5", folder / f"betas_session{session:02d}.hdf5")
