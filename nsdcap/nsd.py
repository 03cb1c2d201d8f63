"""The only reader of the Natural Scenes Dataset (NSD); the only place that knows its 1-based ids.

Outside this file and ``nsd_surface.py`` a picture is its ``nsd_id``, 0-based, a row of imgBrick.
Sessions keep the number of their file (1 to 40). A voxel is its (x, y, z), 0-based, in the volume
of the NIfTI files, and lists of voxels are in C order of (x, y, z), as ``numpy.argwhere`` gives
them. HDF5 files hold (trial, z, y, x), NIfTI files (x, y, z, trial); all results have one order.

Source: the NSD Data Manual (https://cvnlab.slite.page/p/CT9Fwl4_hc/NSD-Data-Manual).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from nibabel.openers import ImageOpener

from nsdcap.errors import DataError, absent, bound
from nsdcap.nsd_read import (
    find_dataset,
    inside,
    load_image,
    must_exist,
    open_hdf5,
    read_volume,
    reading,
)
from nsdcap.nsd_tables import StimInfo, read_captions, read_design, read_labels, read_stim_info

TRIALS_PER_SESSION = 750
SESSIONS = 40
SUBJECTS = 8
BETAS_SCALE = 300.0  # betas are stored as int16: percent signal change x 300
PICTURE_SHAPE = (425, 425, 3)


@dataclass(frozen=True)
class Trials:
    """Who saw what when: one row a trial, in the order of the betas. All arrays (n,) int64."""

    session: np.ndarray  # 1 to 40, as in the names of the betas' files
    trial: np.ndarray  # 0 to 749 within its session
    nsd_id: np.ndarray  # 0-based

    @property
    def number(self) -> np.ndarray:
        """Trial number over all sessions of the subject, 0-based, (n,) int64."""
        return (self.session - 1) * TRIALS_PER_SESSION + self.trial


@dataclass(frozen=True)
class NSD:
    """NSD below ``root``: which betas to read, and where COCO's captions lie (not part of NSD).

    ``coco_dir`` holds ``captions_{train,val}2017.json``; by default ``annotations/`` in ``root``,
    beside ``nsddata_stimuli/``.
    """

    root: Path
    betas_name: str = "betas_fithrf_GLMdenoise_RR"
    space: str = "func1pt8mm"
    coco_dir: Path | None = None

    # --- design -----------------------------------------------------------------------------

    @cached_property
    def _design(self) -> dict[str, np.ndarray]:
        return read_design(self.design_file())

    def stim_info(self) -> StimInfo:
        """The table of all pictures. Raises DataError where it is broken."""
        return read_stim_info(self.stim_info_file())

    def trials(self, subject: int, sessions: Sequence[int]) -> Trials:
        """Trials of ``sessions`` in the order given, 750 a session.

        Raises DataError when the subject or a session does not exist in NSD's design.
        """
        _check_subject(subject)
        chosen = np.asarray(list(sessions), dtype=np.int64)
        if len(chosen) == 0 or chosen.min() < 1 or chosen.max() > SESSIONS:
            raise DataError(f"sessions {list(sessions)}: expected numbers from 1 to {SESSIONS}.")
        session = np.repeat(chosen, TRIALS_PER_SESSION)
        trial = np.tile(np.arange(TRIALS_PER_SESSION, dtype=np.int64), len(chosen))
        shown = self._design["masterordering"][0, (session - 1) * TRIALS_PER_SESSION + trial] - 1
        return Trials(session, trial, self._design["subjectim"][subject - 1, shown] - 1)

    def shared_ids(self) -> np.ndarray:
        """nsd_id of the pictures that every subject saw, (1000,) int64, increasing."""
        return np.sort(self._design["sharedix"][0] - 1)

    # --- files ------------------------------------------------------------------------------

    def design_file(self) -> Path:
        return Path(self.root) / "nsddata/experiments/nsd/nsd_expdesign.mat"

    def stim_info_file(self) -> Path:
        return Path(self.root) / "nsddata/experiments/nsd/nsd_stim_info_merged.csv"

    def stimuli_file(self) -> Path:
        return Path(self.root) / "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5"

    def labels_file(self, subject: int) -> Path:
        return Path(self.root) / f"nsddata/freesurfer/subj{subject:02d}/label/streams.mgz.ctab"

    def roi_file(self, subject: int, name: str = "streams") -> Path:
        return self.subject_dir(subject) / self.space / "roi" / f"{name}.nii.gz"

    def subject_dir(self, subject: int) -> Path:
        return Path(self.root) / f"nsddata/ppdata/subj{subject:02d}"

    def betas_dir(self, subject: int) -> Path:
        return (
            Path(self.root)
            / f"nsddata_betas/ppdata/subj{subject:02d}/{self.space}/{self.betas_name}"
        )

    def betas_file(self, subject: int, session: int) -> Path:
        """The session's HDF5, or its NIfTI when there is no HDF5; DataError without either."""
        _check_subject(subject)
        stem = self.betas_dir(subject) / f"betas_session{session:02d}"
        for ending in (".hdf5", ".nii.gz"):
            if (path := stem.with_name(stem.name + ending)).exists():
                return path
        raise self.without_betas(subject, [session])

    def without_betas(self, subject: int, sessions: Sequence[int]) -> DataError:
        """The error of sessions whose betas are not there: a link to nothing, no folder, or others alone."""
        folder = self.betas_dir(subject)
        for session in sessions:
            for ending in (".hdf5", ".nii.gz"):
                path = folder / f"betas_session{session:02d}{ending}"
                if path.is_symlink():
                    return absent(
                        f"{path} is a link to {path.readlink()}, where nothing is{bound()}; mend the link, or "
                        "fetch the file."
                    )
        if there := self.sessions_available(subject):
            names = f"{sessions[0]}" if len(sessions) == 1 else f"{list(sessions)}"
            plural = "" if len(sessions) == 1 else "s"
            return absent(
                f"subject {subject} has no betas of session{plural} {names} in {folder}, neither .hdf5 nor "
                f".nii.gz; fetch them, or choose sessions among {there}."
            )
        found = f"there are no betas in {folder}" if folder.is_dir() else f"there is no {folder}"
        near = folder.parent if folder.parent.is_dir() else folder.parent.parent.parent
        others = [
            path.name
            for path in (sorted(near.iterdir()) if near.is_dir() else [])
            if path.is_dir() and path != folder
        ]
        held = f" ({near} holds {', '.join(others[:8])})" if others else ""
        return absent(
            f"subject {subject} has no betas: {found}{held}; fetch them, or mend data.nsd_root, data.betas or "
            "data.subjects."
        )

    def sessions_available(self, subject: int) -> list[int]:
        """Sessions of which there are betas, increasing; a link to nothing is none."""
        names = self.betas_dir(subject).glob("betas_session[0-9][0-9].*")
        endings = (".hdf5", ".nii.gz")
        there = (path for path in names if path.name[15:] in endings and path.exists())
        return sorted({int(path.name[13:15]) for path in there})

    # --- volumes ----------------------------------------------------------------------------

    def roi(self, subject: int, name: str = "streams") -> tuple[np.ndarray, np.ndarray]:
        """Labels of an ROI file, (X, Y, Z) int16, negative outside it, and its affine (4, 4)."""
        path = self.roi_file(subject, name)
        values, affine = read_volume(path)
        if not np.all((np.abs(values) < 2**15) & (values % 1 == 0)):
            raise DataError(
                f"{path} holds fractions or NaN, expected whole labels from -1; fetch it again."
            )
        return values.astype(np.int16), affine

    def stream_labels(self, subject: int) -> dict[str, int]:
        """Name -> label of the streams atlas, from the subject's ``streams.mgz.ctab``."""
        return read_labels(self.labels_file(subject))

    def volume(self, subject: int, name: str) -> np.ndarray:
        """A map such as brainmask, mean, ncsnr, R2 or meanbeta_session01: (X, Y, Z) float32."""
        path = self.betas_dir(subject) / f"{name}.nii.gz"
        if not path.exists():
            path = self.subject_dir(subject) / self.space / f"{name}.nii.gz"
        return read_volume(path)[0]

    def ncsnr(self, subject: int, xyz: np.ndarray) -> np.ndarray:
        """Noise-ceiling signal-to-noise ratio of voxels ``xyz`` (n, 3): (n,) float32."""
        path = self.betas_dir(subject) / "ncsnr.nii.gz"
        values = read_volume(path)[0]
        x, y, z = inside(xyz, values.shape, path).T
        return values[x, y, z]

    # --- betas ------------------------------------------------------------------------------

    def betas_shape(self, subject: int, session: int) -> tuple[int, int, int]:
        """(X, Y, Z) of a session's betas, from the header alone.

        Raises DataError when the file is missing or broken, is not int16, or has not 750 trials.
        """
        path = self.betas_file(subject, session)
        if path.suffix == ".hdf5":
            with open_hdf5(path) as file:
                t, z, y, x = find_dataset(file, path, "betas", "i2", 4).shape
        else:
            image = load_image(path)
            if image.get_data_dtype() != np.int16 or len(image.shape) != 4:
                raise DataError(
                    f"{path}: {image.get_data_dtype()} {image.shape}, expected int16"
                    f" (X, Y, Z, {TRIALS_PER_SESSION}); fetch it again."
                )
            if (image.dataobj.slope, image.dataobj.inter) != (1, 0):
                raise DataError(f"{path} is rescaled by its header, expected plain int16.")
            x, y, z, t = image.shape
        if t != TRIALS_PER_SESSION:
            raise DataError(f"{path}: {t} trials, expected {TRIALS_PER_SESSION}; fetch it again.")
        return x, y, z

    def betas(self, subject: int, session: int, xyz: np.ndarray) -> np.ndarray:
        """Betas of one session: (750, n_voxels) int16, percent signal change x 300.

        ``xyz`` (n_voxels, 3) sets the voxels and their order. HDF5: only these voxels' chunks are
        read, in the order of the file. NIfTI: the whole file is read, one trial's volume at a time.
        Memory: the result, twice, and for NIfTI one volume.
        Raises DataError when the file is missing or broken, or a voxel lies outside its volume.
        """
        shape = self.betas_shape(subject, session)
        path = self.betas_file(subject, session)
        voxels = inside(xyz, shape, path)
        by_voxel = np.empty((len(voxels), TRIALS_PER_SESSION), dtype=np.int16)
        if path.suffix == ".hdf5":
            with open_hdf5(path) as file:
                dataset = file["betas"]
                # chunks are (750, 1, 1, 1) and lie in the order of z, y, x
                for i in np.lexsort(voxels.T).tolist():
                    x, y, z = voxels[i]
                    by_voxel[i] = dataset[:, z, y, x]
        else:
            image = load_image(path)
            flat = np.ravel_multi_index(tuple(voxels.T), shape, order="F")
            n_bytes = math.prod(shape) * 2
            stored = image.get_data_dtype().newbyteorder(image.header.endianness)
            # slicing nibabel's proxy would unpack the file from its start for every trial
            with reading(path, "is broken"), ImageOpener(str(path)) as file:
                file.seek(image.dataobj.offset)
                for t in range(TRIALS_PER_SESSION):
                    frame = np.frombuffer(file.read(n_bytes), dtype=stored)
                    by_voxel[:, t] = frame[flat]
                while file.read(1 << 20):  # gzip compares its check sum at the end alone
                    pass
        return np.ascontiguousarray(by_voxel.T)

    # --- pictures and captions --------------------------------------------------------------

    def pictures(self, nsd_ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Pictures in the order asked: (n, 425, 425, 3) uint8, 0.54 MB each.

        Rows are read in increasing order. Raises DataError when an id is not among the 73,000, or
        a picture was never written (all zero), as after an interrupted copy.
        """
        ids = np.asarray(nsd_ids, dtype=np.int64).reshape(-1)
        path = self.stimuli_file()
        found = np.empty((len(ids), *PICTURE_SHAPE), dtype=np.uint8)
        with open_hdf5(path) as file:
            dataset = find_dataset(file, path, "imgBrick", "u1", 4)
            if dataset.shape[1:] != PICTURE_SHAPE:
                raise DataError(
                    f"{path}: pictures of {dataset.shape[1:]}, expected {PICTURE_SHAPE}."
                )
            if len(ids) and (ids.min() < 0 or ids.max() >= len(dataset)):
                raise DataError(
                    f"{path} has {len(dataset)} pictures; nsd_id {ids.min()} to {ids.max()} asked; "
                    "fetch the file again."
                )
            for i in np.argsort(ids, kind="stable").tolist():
                dataset.read_direct(found, np.s_[ids[i]], np.s_[i])
                if not found[i].any():
                    raise DataError(f"{path}: picture {ids[i]} is all zero; fetch the file again.")
        return found

    def picture_batches(
        self, nsd_ids: Sequence[int] | np.ndarray, size: int = 64
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(ids (b,), pictures (b, 425, 425, 3) uint8) in the order asked, ``size`` at a time."""
        ids = np.asarray(nsd_ids, dtype=np.int64).reshape(-1)
        for start in range(0, len(ids), size):
            yield ids[start : start + size], self.pictures(ids[start : start + size])

    def captions(self, nsd_ids: Sequence[int] | np.ndarray) -> dict[int, list[str]]:
        """nsd_id -> COCO's captions of that picture, in the order of their annotation ids.

        Memory: one of COCO's JSON files at a time (captions_train2017.json: about 0.6 GB of Python
        objects). Raises DataError when a picture has no captions.
        """
        wanted = {int(i) for i in nsd_ids}
        info = self.stim_info()
        if beyond := sorted(i for i in wanted if not 0 <= i < len(info.coco_id)):
            raise DataError(f"nsd_id {beyond[0]}: expected 0 to {len(info.coco_id) - 1}.")
        folder = Path(self.coco_dir) if self.coco_dir else Path(self.root) / "annotations"
        found: dict[int, list[str]] = {}
        for split in sorted({str(info.split[i]) for i in wanted}):
            path = folder / f"captions_{split}.json"
            must_exist(path, "; the folder is the setting data.annotations")
            mine = {int(info.coco_id[i]): i for i in wanted if info.split[i] == split}
            found |= read_captions(path, mine)
            if missing := sorted(i for i in mine.values() if not found[i]):
                raise DataError(
                    f"{path}: {len(missing)} of {len(mine)} pictures have no captions, the first nsd_id "
                    f"{missing[0]} (cocoId {info.coco_id[missing[0]]}); fetch COCO's captions of 2017."
                )
        return {i: found[i] for i in sorted(found)}

    # --- surfaces ---------------------------------------------------------------------------

    def to_surface(
        self, subject: int, hemi: str, volume: np.ndarray, kind: str = "nearest",
        depths: Sequence[int] = (1, 2, 3),
    ) -> np.ndarray:  # fmt: skip
        """A volume (X, Y, Z) on the subject's own surface: see ``nsd_surface.sample_layers``."""
        from nsdcap import nsd_surface

        return nsd_surface.sample_layers(volume, self.layer_files(subject, hemi, depths), kind)

    def to_fsaverage(self, subject: int, hemi: str, values: np.ndarray) -> np.ndarray:
        """Values (V,) of the subject's vertices on fsaverage: see ``nsd_surface.to_fsaverage``."""
        from nsdcap import nsd_surface

        return nsd_surface.to_fsaverage(values, self.fsaverage_file(subject, hemi))

    def layer_files(self, subject: int, hemi: str, depths: Sequence[int] = (1, 2, 3)) -> list[Path]:
        """From the volume to each depth of the subject's surface."""
        folder = self.subject_dir(subject) / "transforms"
        short = self.space.removesuffix("mm")
        return [folder / f"{hemi}.{short}-to-layerB{depth}.mgz" for depth in depths]

    def fsaverage_file(self, subject: int, hemi: str) -> Path:
        return self.subject_dir(subject) / "transforms" / f"{hemi}.white-to-fsaverage.mgz"


def voxels_of(labels: np.ndarray, wanted: Sequence[int]) -> np.ndarray:
    """(n, 3) int32: the (x, y, z) of voxels whose label is among ``wanted``, in C order."""
    return np.argwhere(np.isin(labels, list(wanted))).astype(np.int32)


def _check_subject(subject: int) -> None:
    if subject not in range(1, SUBJECTS + 1):
        raise DataError(f"subject {subject}: NSD has subjects 1 to {SUBJECTS}.")
