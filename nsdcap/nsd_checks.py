"""What can be seen of NSD before any work: each check raises DataError for the first fault that it finds.

Headers and samples, never whole sessions: a second a subject at full size, and some for COCO's captions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np

from nsdcap.config import STREAMS
from nsdcap.errors import DataError
from nsdcap.nsd import NSD, SUBJECTS, TRIALS_PER_SESSION, Trials, voxels_of
from nsdcap.nsd_read import check_gzip_end, load_image, read_volume, reading
from nsdcap.nsd_surface import read_index, read_layer
from nsdcap.nsd_tables import check_streams

FSAVERAGE5 = 10242  # vertices a hemisphere, the first of fsaverage's 163,842
SAMPLE = 16  # voxels or pictures that are looked at


@dataclass(frozen=True)
class Selection:
    """A subject's trials and ROI, as found sound."""

    trials: Trials
    is_test: np.ndarray  # (n_trials,) bool
    xyz: np.ndarray  # (n_voxels, 3) int32, C order
    stream: np.ndarray  # (n_voxels,) int16
    ncsnr: np.ndarray  # (n_voxels,) float32
    affine: np.ndarray  # (4, 4)
    shape: tuple[int, ...]  # (X, Y, Z)


def check_design(nsd: NSD) -> None:
    """The design is sound in itself, and the table of pictures says the same of every trial.

    Raises DataError where nsd_expdesign.mat or nsd_stim_info_merged.csv is broken, or they disagree.
    """
    shared, info = nsd.shared_ids(), nsd.stim_info()
    names = f"{nsd.stim_info_file()} and {nsd.design_file().name}"
    differ = np.flatnonzero(info.shared != np.isin(np.arange(len(info.shared)), shared))
    if len(differ):
        raise DataError(
            f"{names} disagree on {len(differ)} pictures: shared1000 of nsdId {differ[0]} is "
            f"{bool(info.shared[differ[0]])}; fetch both again."
        )
    for subject in range(1, SUBJECTS + 1):
        trials = nsd.trials(subject, range(1, 41))
        listed = info.trials[subject - 1][trials.nsd_id]  # (n_trials, 3)
        # every subject came to 30 sessions; of later ones 0 may stand for trials that never were
        never = (trials.session > 30) & ~(listed > 0).all(1)
        wrong = ~(listed == (trials.number + 1)[:, None]).any(1) & ~never
        if wrong.any():
            at = int(np.flatnonzero(wrong)[0])
            raise DataError(
                f"{names} disagree: trial {at + 1} of subject {subject} showed nsdId {trials.nsd_id[at]} by "
                f"the design, which subject{subject}_rep0 to rep2 list at {listed[at].tolist()}; fetch both "
                "again."
            )
        others = np.setdiff1d(np.flatnonzero(info.trials[subject - 1].any(1)), trials.nsd_id)
        if len(others):
            raise DataError(
                f"{names} disagree: nsdId {others[0]} has trials in subject{subject}_rep0 to rep2, but by the "
                f"design subject {subject} never saw it; fetch both again."
            )


def check_subject(
    nsd: NSD, subject: int, sessions: Sequence[int], labels: Sequence[str] | None = None,
    wanted: Mapping[str, Sequence[str]] | None = None,
) -> Selection:  # fmt: skip
    """A subject's trials, ROI and the headers of the betas, which must agree.

    ``labels``: names of streams to take, None all; ``wanted``: by name of the setting, streams that must have
    voxels. Raises DataError when files are missing or disagree, or there is nothing to train on or to test.
    """
    found = select(nsd, subject, sessions, labels, wanted)
    available = nsd.sessions_available(subject)
    if missing := [s for s in sorted(sessions) if s not in available]:
        raise nsd.without_betas(subject, missing)
    for session in sorted(sessions):
        check_session(nsd, subject, session, found)
    check_ncsnr(nsd, subject, found)
    return found


def check_ncsnr(nsd: NSD, subject: int, found: Selection) -> int:
    """How many voxels of the ROI have an ncsnr. Raises DataError where none has: all would be left out."""
    known = int(has_ncsnr(found.ncsnr).sum())
    if not known:
        raise DataError(
            f"{nsd.betas_dir(subject) / 'ncsnr.nii.gz'}: found no finite number from 0 in any of the "
            f"{len(found.ncsnr)} voxels of the ROI, expected one in most; fetch it again."
        )
    return known


def has_ncsnr(ncsnr: np.ndarray) -> np.ndarray:
    """Which voxels (n,) bool have an ncsnr: a number, finite and not negative."""
    with np.errstate(invalid="ignore"):
        return np.isfinite(ncsnr) & (ncsnr >= 0)


def split(nsd: NSD, subject: int, sessions: Sequence[int]) -> tuple[Trials, np.ndarray]:
    """A subject's trials, and which of them (n_trials,) bool are of the test: they show shared pictures.

    Raises DataError where a session is named twice, or there is nothing to train on or to test.
    """
    sessions = sorted(int(s) for s in sessions)
    if len(set(sessions)) < len(sessions):
        raise DataError(f"sessions {sessions} name one session twice; list each once.")
    trials = nsd.trials(subject, sessions)
    is_test = np.isin(trials.nsd_id, nsd.shared_ids())
    both = np.intersect1d(trials.nsd_id[is_test], trials.nsd_id[~is_test])
    if len(both):
        raise DataError(f"subject {subject}: picture {both[0]} is both in training and test.")
    if not is_test.any() or is_test.all():
        kind = "only" if is_test.any() else "no"
        raise DataError(
            f"subject {subject}, sessions {sessions}: {kind} shared pictures were shown, so there"
            " is nothing to train on or nothing to test; choose more sessions."
        )
    return trials, is_test


def select(
    nsd: NSD, subject: int, sessions: Sequence[int], labels: Sequence[str] | None = None,
    wanted: Mapping[str, Sequence[str]] | None = None,
) -> Selection:  # fmt: skip
    """What ``check_subject`` finds, without a look at the betas; the same errors of all else."""
    trials, is_test = split(nsd, subject, sessions)
    roi, affine, xyz = _roi(nsd, subject, labels, wanted or {})
    ncsnr_file = nsd.betas_dir(subject) / "ncsnr.nii.gz"
    ncsnr, place = read_volume(ncsnr_file)
    if ncsnr.shape != roi.shape:
        there = [s for s in sorted(sessions) if s in nsd.sessions_available(subject)]
        if there and nsd.betas_shape(subject, there[0]) == ncsnr.shape:
            _same_volume(nsd, subject, there[0], roi.shape)  # two against the ROI
    _same_grid(ncsnr_file, ncsnr.shape, place, nsd.roi_file(subject), roi.shape, affine)
    at = tuple(xyz.T)
    return Selection(trials, is_test, xyz, roi[at], ncsnr[at], affine, roi.shape)


def check_stimuli(nsd: NSD, nsd_ids: Sequence[int] | np.ndarray) -> None:
    """nsd_stimuli.hdf5 has these pictures, and a few of them are not empty. Raises DataError."""
    ids = np.unique(np.asarray(nsd_ids, dtype=np.int64))
    nsd.pictures(ids[[0, -1]])
    nsd.pictures(sample(ids))


def check_captions(nsd: NSD, nsd_ids: Sequence[int] | np.ndarray) -> None:
    """COCO's files have captions of each of these pictures. Raises DataError."""
    nsd.captions(nsd_ids)


def check_surfaces(nsd: NSD, subject: int) -> None:
    """A subject's transforms to fsaverage are whole and fit its volume, if it has any.

    Without any there are maps in the volume alone. Raises DataError where one is broken, has another length
    than the next, or points beyond the volume or the subject's vertices.
    """
    folder = nsd.subject_dir(subject) / "transforms"
    if not any(folder.glob("*.mgz")):
        return
    shape = np.array(load_image(nsd.roi_file(subject)).shape)
    for hemi in ("lh", "rh"):
        counts = {}
        for path in nsd.layer_files(subject, hemi):
            at = read_layer(path)
            known = at[np.isfinite(at).all(1)]
            # a vertex may lie half a voxel beyond the last one's centre
            beyond = ((known < -1) | (known > shape)).any(1)
            if not len(known) or beyond.mean() > 0.01:
                found = f"{beyond.sum()} of {len(known)} vertices"
                raise DataError(
                    f"{path}: {found} lie outside the volume {tuple(shape.tolist())} of subject {subject}; "
                    "expected 1-based voxels of it: take the subject's own file."
                )
            counts[path] = len(at)
        if len(set(counts.values())) > 1:
            told = ", ".join(f"{path.name} {n}" for path, n in counts.items())
            raise DataError(
                f"{folder}: depths of one surface differ in vertices ({told}); fetch them again."
            )
        path = nsd.fsaverage_file(subject, hemi)
        index = read_index(path, next(iter(counts.values())))
        if len(index) not in (FSAVERAGE5, 163842):
            raise DataError(f"{path} has {len(index)} vertices, expected fsaverage's 163842.")


# --- parts of check_subject -----------------------------------------------------------------------


def _roi(
    nsd: NSD, subject: int, chosen: Sequence[str] | None, wanted: Mapping[str, Sequence[str]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The streams' labels (X, Y, Z), their affine, and the chosen voxels (n, 3)."""
    path = nsd.roi_file(subject)
    roi, affine = nsd.roi(subject)
    if not np.isfinite(affine).all() or not np.linalg.det(affine[:3, :3]):
        raise DataError(f"{path}: its affine cannot be inverted; fetch it again.")
    names = nsd.stream_labels(subject)
    check_streams(nsd.labels_file(subject), names, STREAMS)
    numbers = [names[name] for name in STREAMS]
    if roi.max() > max(numbers):
        raise DataError(
            f"{path} holds the label {roi.max()}, expected at most {max(numbers)} by "
            f"{nsd.labels_file(subject).name}; take both of the same atlas."
        )
    if chosen is not None:
        if unknown := [name for name in chosen if name not in STREAMS]:
            raise DataError(f"streams {unknown} do not exist; expected some of {list(STREAMS)}.")
        numbers = [names[name] for name in chosen]
    xyz = voxels_of(roi, numbers)
    if len(xyz) == 0:
        raise DataError(
            f"{path}: no voxel of streams.nii.gz has a label among {numbers}; check that"
            f" the file belongs to subject {subject}, or choose other streams."
        )
    for setting, streams in wanted.items():
        if not np.isin(roi, [names[name] for name in streams]).any():
            raise DataError(
                f"{path}: {' and '.join(streams)} of setting {setting} has no voxel; check that the file "
                f"belongs to subject {subject}, or choose other streams."
            )
    return roi, affine, xyz


def check_session(nsd: NSD, subject: int, session: int, found: Selection) -> None:
    """The betas' header fits the ROI, and some of its voxels vary over the training. Raises DataError."""
    path = nsd.betas_file(subject, session)
    shape = _same_volume(nsd, subject, session, found.shape)
    nifti = path.with_name(f"betas_session{session:02d}.nii.gz")
    image = load_image(nifti) if nifti.exists() else None
    if image is not None:
        where = nsd.roi_file(subject)
        _same_grid(nifti, image.shape[:3], image.affine, where, found.shape, found.affine)
    few = sample(found.xyz)
    if path.suffix == ".hdf5" or image is None:
        betas = nsd.betas(subject, session, few)
    else:
        n_values = int(np.prod(shape)) * TRIALS_PER_SESSION
        check_gzip_end(path, int(image.dataobj.offset) + n_values * 2)
        with reading(path, "is broken"):
            pair = np.asarray(image.dataobj[..., :2])  # unpacks these volumes alone
        # all of it is unpacked only where that gives cause
        still = (pair[..., 0] == pair[..., 1])[tuple(few.T)].all()
        if not still:
            return
        betas = nsd.betas(subject, session, few)
    if not betas.any():
        raise DataError(all_zero(path))
    here = found.trials.session == session
    training = betas[found.trials.trial[here & ~found.is_test]]
    if len(training) > 1 and not (training != training[0]).any():
        values = np.unique(training[0])
        told = str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}"
        raise DataError(
            f"{path}: found one number ({told}) in all {len(training)} training trials of each of {len(few)} "
            "voxels of the ROI, expected betas that vary; fetch it again."
        )


def _same_volume(
    nsd: NSD, subject: int, session: int, roi_shape: tuple[int, ...]
) -> tuple[int, int, int]:
    """(X, Y, Z) of a session's betas. Raises DataError where it is not that of the ROI."""
    shape = nsd.betas_shape(subject, session)
    if shape != tuple(roi_shape):
        raise DataError(
            f"{nsd.betas_file(subject, session)} has a volume of {shape}, but the streams ROI of subject "
            f"{subject}, {nsd.roi_file(subject)}, has {tuple(roi_shape)}; take both of the same subject."
        )
    return shape


def sample(rows: np.ndarray, count: int = SAMPLE) -> np.ndarray:
    """About so many of some rows, evenly spread."""
    return rows[:: max(1, len(rows) // count)]


def _same_grid(
    path: Path, shape: tuple[int, ...], affine: np.ndarray, roi_path: Path, roi_shape: tuple[int, ...],
    roi_affine: np.ndarray,
) -> None:  # fmt: skip
    """Raise DataError unless a file's voxels lie where the ROI's do, to half a voxel."""
    if tuple(shape) != tuple(roi_shape):
        raise DataError(
            f"{path} has a volume of {tuple(shape)}, but {roi_path} has {tuple(roi_shape)}; take both of the "
            "same subject."
        )
    corners = np.array([[*at, 1] for at in product(*[(0, side - 1) for side in shape])]).T
    apart = np.linalg.norm(((affine - roi_affine) @ corners)[:3], axis=0).max()
    size = np.linalg.norm(roi_affine[:3, :3], axis=0).min()
    if not apart < size / 2:
        raise DataError(
            f"{path}: its affine puts a corner of the volume {apart:.3g} mm from where that of {roi_path} "
            "puts it; expected the same affine: take both of the same subject and space."
        )


def all_zero(path: Path) -> str:
    """The error of a session without numbers."""
    return f"{path} holds only zeros in the ROI; the file was not written in full: fetch it again."
