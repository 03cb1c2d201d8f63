"""prepare and encode on one synthetic subject of true size: time and peak memory of each.

    python hpc/bench/scale.py FOLDER [--voxels 12000] [--sessions 37] [--threads 1]

Writes NSD's files for subject 1 into FOLDER (1.3 GB: only the ROI's voxels take room), with the paper's
counts: 27,750 trials, 982 shared pictures in 2,770 of them, 8,859 of the subject's own in 24,980. A tenth
of the voxels follow random features (n, 768) that stand for one BERT state and phase; the rest is noise.
Each step runs in a process of its own, through the stages' own functions.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import common
import h5py
import nibabel as nib
import numpy as np
import scipy.io

from nsdcap import config
from nsdcap.encode import read_responses, solve_features
from nsdcap.miniature.design import make_design
from nsdcap.miniature.tree import write_betas
from nsdcap.nsd import NSD, TRIALS_PER_SESSION
from nsdcap.paths import Cell, artefact
from nsdcap.prepare import prepare

SHAPE, WIDTH, PLANTED = (81, 104, 83), 768, 0.1
COUNTS = ((982, 2770, 0, 1000), (8859, 24980, 1000, 10000))  # pictures, trials, from, to
LABELS = ("early", "midventral", "midlateral", "midparietal", "ventral", "lateral", "parietal")


def true_order(rng: np.random.Generator, sessions: int) -> np.ndarray:
    """masterordering (30000,) 0-based whose first 37 sessions have the paper's counts."""
    left, window = np.full(10000, 3), []
    for pictures, trials, first, last in COUNTS:
        repeats = np.full(pictures, 3)
        repeats[: 3 * pictures - trials] = 2
        chosen = rng.permutation(np.arange(first, last))[:pictures]
        left[chosen] -= repeats
        window.append(np.repeat(chosen, repeats))
    early = rng.permutation(np.concatenate(window))
    return np.concatenate([early, rng.permutation(np.repeat(np.arange(10000), left))])


def write(root: Path, n_voxels: int, sessions: int) -> None:
    """The files that prepare reads, and the features that encode reads."""
    rng = np.random.default_rng(0)
    experiment = root / "nsddata/experiments/nsd"
    roi = root / "nsddata/ppdata/subj01/func1pt8mm/roi"
    betas = root / "nsddata_betas/ppdata/subj01/func1pt8mm/betas_fithrf_GLMdenoise_RR"
    labels = root / "nsddata/freesurfer/subj01/label"
    for folder in (experiment, roi, betas, labels):
        folder.mkdir(parents=True)
    names = ["0 Unknown", *(f"{k} {name}" for k, name in enumerate(LABELS, 1))]
    (labels / "streams.mgz.ctab").write_text("\n".join(names) + "\n")
    design = make_design(rng, 3)
    order = true_order(rng, sessions)
    design["masterordering"] = order[None] + 1
    scipy.io.savemat(experiment / "nsd_expdesign.mat", design, do_compression=True)
    inside = np.sort(rng.permutation(np.prod(SHAPE))[:n_voxels])
    xyz = np.stack(np.unravel_index(inside, SHAPE), 1)
    streams, ncsnr = np.full(SHAPE, -1, np.int16), np.zeros(SHAPE, np.float32)
    streams[tuple(xyz.T)] = rng.integers(1, 8, n_voxels)
    ncsnr[tuple(xyz.T)] = 0.8
    nib.save(nib.Nifti1Image(streams, np.eye(4)), roi / "streams.nii.gz")
    nib.save(nib.Nifti1Image(ncsnr, np.eye(4)), betas / "ncsnr.nii.gz")
    ids = (design["subjectim"][0] - 1).astype(int)  # (10000,) nsd_id
    features = rng.standard_normal((10000, WIDTH), dtype=np.float32)
    planted = int(PLANTED * n_voxels)
    weights = rng.standard_normal((WIDTH, planted), dtype=np.float32) / np.sqrt(WIDTH)
    for session in range(sessions):
        shown = order[session * TRIALS_PER_SESSION :][:TRIALS_PER_SESSION]
        percent = rng.standard_normal((TRIALS_PER_SESSION, n_voxels), dtype=np.float32)
        percent[:, :planted] += features[shown] @ weights
        write_betas(betas / f"betas_session{session + 1:02d}.hdf5", SHAPE, xyz,
                    np.round(300 * percent).astype(np.int16))  # fmt: skip
    window = np.unique(order[: sessions * TRIALS_PER_SESSION])
    for subject, mine in ((None, window[window < 1000]), (1, window[window >= 1000])):
        mine = mine[np.argsort(ids[mine])]
        path = artefact(root / "out", Cell("features", subject))
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "w") as file:
            file["nsd_id"], file["features"] = ids[mine], features[mine]


def run_prepare(root: Path, n_voxels: int, sessions: int) -> None:
    """The stage's function on the tree."""
    target = artefact(root / "out", Cell("prepare", 1))
    target.parent.mkdir(parents=True, exist_ok=True)
    counts = prepare(NSD(root), 1, range(1, sessions + 1), target, log=lambda line: None)
    print(counts)


def run_encode(root: Path, n_voxels: int, sessions: int) -> None:
    """Responses, ridge with cross-validated penalties, r, both p, for one state and phase."""
    out = root / "out"
    settings = config.load()
    responses = read_responses(1, settings, out)
    features = []
    for subject, ids in ((1, responses.train_ids), (None, responses.test_ids)):
        with h5py.File(artefact(out, Cell("features", subject))) as file:
            rows = np.searchsorted(file["nsd_id"][:], ids)
            features.append(file["features"][:][rows].astype(np.float64))
    space, space_test = features
    maps = solve_features("z_B_mid", space, space_test, responses, settings)
    r, p = maps["r"], maps["p_permutation"]
    with h5py.File(artefact(out, Cell("prepare", 1))) as file:
        xyz = file["xyz"][:]
    planted = np.arange(len(xyz)) < int(PLANTED * len(xyz))
    print(f"training pictures {len(responses.train_ids)}, test pictures {len(responses.test_ids)}")
    print(
        f"planted voxels: mean r {r[planted].mean():.3f}, p < .05 for {(p[planted] < 0.05).mean():.3f}"
    )
    print(
        f"noise voxels: mean r {r[~planted].mean():.3f}, p < .05 for {(p[~planted] < 0.05).mean():.3f}"
    )


def measured(step: Callable[[Path, int, int], None], *arguments: object) -> None:
    """Run a step in a fresh process; print its time and its peak resident memory."""
    seconds, (_, peak) = common.timed(lambda: common.alone(step, *arguments))
    print(f"{step.__name__}: {seconds:.0f} s, peak {peak / 1e3:.2f} GB\n", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a new folder")
    parser.add_argument("--voxels", type=int, default=12000)
    parser.add_argument("--sessions", type=int, default=37)
    parser.add_argument("--threads", default="1")
    options = parser.parse_args()
    for step in (write, run_prepare, run_encode):
        measured(step, options.folder, options.voxels, options.sessions)


if __name__ == "__main__":
    main()
