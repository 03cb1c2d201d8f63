"""Write the miniature as NSD lies on disk, with COCO's captions and the planted truth beside it.

Every file is in NSD's own format and of its shape, except for the volumes, which are small, and
fsaverage, which has fsaverage5's 10,242 vertices a hemisphere. The same seed writes the same bytes.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Sequence
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
from nibabel.freesurfer import write_geometry, write_morph_data

from nsdcap.errors import UsageError
from nsdcap.miniature import brain as brain_of
from nsdcap.miniature import cortex
from nsdcap.miniature.design import (
    PICTURES,
    TRIALS,
    Shown,
    make_design,
    write_experiment,
    write_responses,
)
from nsdcap.miniature.world import SIZE, Textures, draw_scene, render, write_captions

BETAS_NAME = "betas_fithrf_GLMdenoise_RR"
TEXTURE_SEEDS = 50_000  # the models' training draws its textures from 1000 to 1999
STAMP = "created by nsdcap.miniature"  # write_geometry would put the time here


def write_tree(
    root: Path,
    *,
    seed: int = 0,
    subjects: Sequence[int] = (1, 2, 5, 7),
    sessions: int = 3,
    nifti: bool = False,
    log: Callable[[str], object] = print,
) -> None:
    """Write the whole tree into ``root``, an empty or new folder.

    sessions: 1 to 37 sessions of betas a subject. nifti: betas also as ``.nii.gz``.
    Memory: the small pictures and one subject's betas (3 sessions: about 0.3 GB).
    Raises UsageError when the folder is not empty or an option is out of its range.
    """
    root = Path(root)
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise UsageError(f"{root} is not an empty folder; name a new one for the miniature.")
    if not 1 <= sessions <= 37 or seed < 0 or not set(subjects) <= set(range(1, 9)) or not subjects:
        raise UsageError(
            f"seed {seed}, subjects {list(subjects)}, sessions {sessions}: expected a seed of 0 or"
            " more, subjects among 1 to 8 and 1 to 37 sessions."
        )
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{root}: cannot be written ({error.strerror}); name another") from None
    subjects = sorted(set(subjects))
    design = make_design(np.random.default_rng([seed, 1]), sessions)
    n_trials = sessions * TRIALS
    order = design["masterordering"][0, :n_trials] - 1
    seen = {s: design["subjectim"][s - 1, order] - 1 for s in subjects}  # (n_trials,) 0-based
    shown = _draw_pictures(seed, np.unique(np.concatenate(list(seen.values()))), design["sharedix"])
    write_experiment(root, design, np.random.default_rng([seed, 2]), shown)
    _write_pictures(root, shown)
    _write_fsaverage(root)
    log(f"{len(shown.nsd_id)} pictures, {n_trials} trials a subject")
    for subject in subjects:
        rng = np.random.default_rng([seed, 3, subject])
        anatomy = cortex.subject_anatomy(rng)
        _write_anatomy(root, subject, anatomy, rng)
        write_responses(root, subject, order, seen[subject], rng)
        counts = _write_subject(root, subject, anatomy, shown, seen[subject], rng, nifti)
        log(f"subject {subject}: volume {anatomy.shape}, voxels {counts}")


# --- pictures -----------------------------------------------------------------------------------


def _draw_pictures(seed: int, ids: np.ndarray, sharedix: np.ndarray) -> Shown:
    """Draw the pictures ``ids`` (0-based); shared ones from a texture bank of their own."""
    shared = set((sharedix.ravel() - 1).tolist())
    banks = {is_test: Textures(TEXTURE_SEEDS + 2 * seed + is_test) for is_test in (False, True)}
    scenes, captions = [], []
    pictures = np.empty((len(ids), SIZE, SIZE, 3), dtype=np.uint8)
    for i, nsd_id in enumerate(ids.tolist()):
        rng = np.random.default_rng([seed, 4, nsd_id])
        scenes.append(draw_scene(rng))
        pictures[i] = render(scenes[-1], banks[nsd_id in shared], rng)[0]
        captions.append(write_captions(scenes[-1], rng))
    return Shown(ids, scenes, pictures, captions)


def _write_pictures(root: Path, shown: Shown) -> None:
    """imgBrick, full size; pictures that nobody sees are left unwritten."""
    path = _folder(root / "nsddata_stimuli/stimuli/nsd") / "nsd_stimuli.hdf5"
    size = 425
    nearest = np.arange(size) * SIZE // size
    with h5py.File(path, "w") as file:
        brick = file.create_dataset(
            "imgBrick",
            (PICTURES, size, size, 3),
            "u1",
            chunks=(1, size, size, 3),
            compression="gzip",
            compression_opts=1,
        )
        for i, picture in zip(shown.nsd_id.tolist(), shown.pictures, strict=True):
            brick[i] = picture[nearest][:, nearest]


# --- anatomy ------------------------------------------------------------------------------------


def _write_fsaverage(root: Path) -> None:
    base = root / "nsddata/freesurfer/fsaverage"
    surf, label = _folder(base / "surf"), _folder(base / "label")
    for hemi, one in cortex.fsaverage5().items():
        for name, points in one.surfaces.items():
            write_geometry(surf / f"{hemi}.{name}", points, one.faces[name], create_stamp=STAMP)
        write_morph_data(surf / f"{hemi}.sulc", one.sulc)
        _save_mgz(label / f"{hemi}.streams.mgz", one.stream.astype(np.int32))
    _write_labels(label)


def _write_labels(folder: Path) -> None:
    lines = ["0 Unknown", *(f"{k} {name}" for name, k in cortex.STREAMS.items())]
    (_folder(folder) / "streams.mgz.ctab").write_text("\n".join(lines) + "\n")


def _write_anatomy(
    root: Path, subject: int, anatomy: cortex.Anatomy, rng: np.random.Generator
) -> None:
    """Surfaces, transforms, ROIs and anatomical volumes of one subject."""
    name = f"subj{subject:02d}"
    _write_labels(root / f"nsddata/freesurfer/{name}/label")
    surf = _folder(root / f"nsddata/freesurfer/{name}/surf")
    transforms = _folder(root / f"nsddata/ppdata/{name}/transforms")
    for hemi in cortex.HEMIS:
        for kind, points in anatomy.surfaces[hemi].items():
            write_geometry(surf / f"{hemi}.{kind}", points, anatomy.faces[hemi], create_stamp=STAMP)
        write_morph_data(surf / f"{hemi}.sulc", anatomy.sulc[hemi])
        for depth, layer in enumerate(anatomy.layers[hemi], start=1):
            path = transforms / f"{hemi}.func1pt8-to-layerB{depth}.mgz"
            _save_mgz(path, layer.astype(np.float32))
        path = transforms / f"{hemi}.white-to-fsaverage.mgz"
        _save_mgz(path, anatomy.to_fsaverage[hemi].astype(np.float32))

    func = _folder(root / f"nsddata/ppdata/{name}/func1pt8mm")
    at = tuple(anatomy.xyz.T)
    rois = {"streams": anatomy.stream, "prf-visualrois": anatomy.prf}
    rois["nsdgeneral"] = (anatomy.stream > 0).astype(np.int64)
    for roi, labels in rois.items():
        for prefix, chosen in (("", [0, 1]), ("lh.", [0]), ("rh.", [1])):
            volume = np.full(anatomy.shape, -1, dtype=np.int16)
            mine = np.isin(anatomy.hemi, chosen)
            volume[tuple(axis[mine] for axis in at)] = labels[mine]
            _save_nifti(_folder(func / "roi") / f"{prefix}{roi}.nii.gz", volume, anatomy.affine)
    aseg = np.where(anatomy.brain, 2, 0)
    aseg[anatomy.brain & (np.arange(anatomy.shape[0])[:, None, None] > anatomy.shape[0] // 2)] = 41
    aseg[at] = np.where(anatomy.hemi == 0, 3, 42)
    mean = np.where(anatomy.brain, 1000 + 100 * rng.standard_normal(anatomy.shape), 0)
    _save_nifti(func / "brainmask.nii.gz", anatomy.brain.astype(np.int16), anatomy.affine)
    _save_nifti(func / "aseg.nii.gz", aseg.astype(np.int16), anatomy.affine)
    _save_nifti(func / "mean.nii.gz", mean.astype(np.float32), anatomy.affine)


# --- betas --------------------------------------------------------------------------------------


def _write_subject(
    root: Path,
    subject: int,
    anatomy: cortex.Anatomy,
    shown: Shown,
    seen: np.ndarray,
    rng: np.random.Generator,
    nifti: bool,
) -> dict[str, int]:
    """Betas, ncsnr, R2, mean betas and the truth of one subject; returns voxels by class."""
    visual = anatomy.stream > 0
    xyz = anatomy.xyz[visual]
    truth = brain_of.plant(
        rng, xyz, anatomy.stream[visual], anatomy.hemi[visual], anatomy.upper[visual]
    )
    mine, which = np.unique(seen, return_inverse=True)
    rows = np.searchsorted(shown.nsd_id, mine)
    scenes = [shown.scenes[r] for r in rows.tolist()]
    signal = brain_of.respond(truth, shown.pictures[rows], scenes)  # (n_pictures, n_voxels)

    # the rest of the brain answers to nothing
    inside = np.argwhere(anatomy.brain)
    index = np.full(anatomy.shape, -1)
    index[anatomy.brain] = np.arange(len(inside))
    at = index[tuple(xyz.T)]
    noise_sd = rng.uniform(0.7, 2.0, len(inside)).astype(np.float32)
    noise_sd[at] = truth.noise_sd
    baseline = rng.uniform(0.2, 1.5, len(inside)).astype(np.float32)
    folder = _folder(
        root / f"nsddata_betas/ppdata/subj{subject:02d}/func1pt8mm/{BETAS_NAME}",
    )
    for session in range(len(seen) // TRIALS):
        here = which[session * TRIALS : (session + 1) * TRIALS]
        psc = rng.standard_normal((TRIALS, len(inside)), dtype=np.float32) * noise_sd
        psc[:, at] += signal[here]
        psc *= 1 + 0.05 * rng.standard_normal(len(inside), dtype=np.float32)  # scanners drift
        psc += baseline + 0.15 * rng.standard_normal(len(inside), dtype=np.float32)
        values = np.clip(np.rint(psc * 300), -32767, 32767).astype(np.int16)
        stem = f"session{session + 1:02d}"
        write_betas(folder / f"betas_{stem}.hdf5", anatomy.shape, inside, values)
        if nifti:
            volume = np.zeros((*anatomy.shape, TRIALS), dtype=np.int16)
            volume[anatomy.brain] = values.T
            _save_nifti(folder / f"betas_{stem}.nii.gz", volume, anatomy.affine)
        mean = _fill(anatomy.shape, inside, values.mean(0) / 300)
        _save_nifti(folder / f"meanbeta_{stem}.nii.gz", mean, anatomy.affine)
    _save_nifti(folder / "ncsnr.nii.gz", _fill(anatomy.shape, xyz, truth.ncsnr), anatomy.affine)
    r2 = 100 * truth.ncsnr**2 / (1 + truth.ncsnr**2)
    _save_nifti(folder / "R2.nii.gz", _fill(anatomy.shape, xyz, r2), anatomy.affine)
    _write_truth(root, subject, anatomy, truth)
    names, counts = np.unique(truth.kind, return_counts=True)
    return dict(zip(names.tolist(), counts.tolist(), strict=True))


def _write_truth(root: Path, subject: int, anatomy: cortex.Anatomy, truth: brain_of.Brain) -> None:
    """truth/subjXX.h5: voxels of streams 1 to 7 in C order of (x, y, z), as in ``prepare``."""
    text = h5py.string_dtype("utf-8", 32)
    visual = anatomy.stream > 0
    names = np.array([*brain_of.CHANNELS, ""])
    with h5py.File(_folder(root / "truth") / f"subj{subject:02d}.h5", "w") as file:
        file["xyz"] = anatomy.xyz[visual].astype(np.int32)
        file["stream"] = anatomy.stream[visual].astype(np.int8)
        file["class"] = np.char.encode(truth.kind, "utf-8").astype(text)
        file["weights"] = truth.weights
        file["attributes"] = np.char.encode(np.array(brain_of.ATTRIBUTES), "utf-8").astype(text)
        file["channel"] = np.char.encode(names[truth.channel], "utf-8").astype(text)
        file["receptive_field"] = truth.field
        file["ncsnr"] = truth.ncsnr
        file["noise_sd"] = truth.noise_sd
        file.attrs["subject"] = subject


def write_betas(
    path: Path, volume_shape: tuple[int, int, int], xyz: np.ndarray, values: np.ndarray
) -> None:
    """One session in NSD's HDF5 layout: (750, Z, Y, X) int16, a chunk a voxel, not compressed.

    volume_shape (X, Y, Z); xyz (n, 3) voxels; values (n_trials, n) int16. Only these voxels' chunks
    take room on disk; every other voxel reads as 0. A true-size session takes a second.
    """
    x, y, z = volume_shape
    n_trials = len(values)
    by_voxel = np.ascontiguousarray(values.T, dtype="<i2")
    with h5py.File(path, "w") as file:
        betas = file.create_dataset("betas", (n_trials, z, y, x), "<i2", chunks=(n_trials, 1, 1, 1))
        for i in np.lexsort(np.asarray(xyz).T).tolist():  # by z, then y, then x
            vx, vy, vz = (int(v) for v in xyz[i])
            betas.id.write_direct_chunk((0, vz, vy, vx), by_voxel[i].tobytes())


# --- files --------------------------------------------------------------------------------------


def _folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def _fill(shape: tuple[int, ...], xyz: np.ndarray, values: np.ndarray) -> np.ndarray:
    volume = np.zeros(shape, dtype=np.float32)
    volume[tuple(xyz.T)] = values
    return volume


def _save_nifti(path: Path, volume: np.ndarray, affine: np.ndarray) -> None:
    image = nib.Nifti1Image(volume, affine)
    image.header.set_xyzt_units("mm", "sec")
    path.write_bytes(gzip.compress(image.to_bytes(), compresslevel=1, mtime=0))


def _save_mgz(path: Path, values: np.ndarray) -> None:
    """(V,) or (V, 3) as FreeSurfer keeps them: (V, 1, 1) or (V, 1, 1, 3)."""
    padded = values[:, None, None] if values.ndim == 1 else values[:, None, None, :]
    image = nib.MGHImage(padded, np.eye(4))
    path.write_bytes(gzip.compress(image.to_bytes(), compresslevel=1, mtime=0))
