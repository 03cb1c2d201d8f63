"""The doctor's rows of NSD's and COCO's files: by heads and samples, not whole files.

The checks themselves are those of ``nsd_checks``, which stages make too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from nsdcap import limits
from nsdcap.cells import open_nsd, sessions_of
from nsdcap.checks import Row, broken, each, look
from nsdcap.config import STREAMS, Config
from nsdcap.errors import DataError, NsdcapError, absent
from nsdcap.nsd import NSD, TRIALS_PER_SESSION
from nsdcap.nsd_checks import (
    Selection,
    check_captions,
    check_design,
    check_ncsnr,
    check_session,
    check_stimuli,
    check_surfaces,
    has_ncsnr,
    sample,
    select,
    split,
)
from nsdcap.nsd_read import load_image, reading
from nsdcap.stages import SOLVERS, STAGES

# in NSD's first 37 sessions, of every subject: trials, those of training, of the test, and the pictures of
# training and of the test that they show
PAPER_SESSIONS, PAPER = list(range(1, 38)), (27_750, 24_980, 2_770, 8_859, 982)
COUNTS = "{:,} trials = {:,} + {:,} of the test; {:,} + {:,} pictures"
UNPACKED = 4e6  # bytes of a NIfTI file that are unpacked to compare it


def rows(settings: Config, stages: Iterable[str], thorough: bool = True) -> Iterator[Row]:
    """A row for each kind of file that the stages read; a subject's sessions share one while all is well.

    ``thorough``: also what no stage would stop at, such as a NIfTI file that differs from the HDF5 file
    that is read in its place.
    """
    told: set[str] = set()
    for row in _rows(settings, set(stages), thorough):
        if row.error is None or str(row.error) not in told:  # one file's fault is told once
            yield row
        told.add(str(row.error))


def _rows(settings: Config, stages: set[str], thorough: bool) -> Iterator[Row]:
    try:
        nsd = open_nsd(settings)
    except NsdcapError as error:
        yield broken("NSD root", error, "the folder that holds nsddata/")
        return
    yield Row("NSD root", "ok", str(nsd.root), "the folder that holds nsddata/")
    kinds = {kind for stage in stages for kind in STAGES[stage].nsd}
    pictures = kinds & {"stimuli", "captions"}
    if "design" in kinds or pictures:
        yield look("design", lambda: _design(nsd), "it and nsd_stim_info_merged.csv say the same")
    shown: set[int] = set()
    for subject in settings.data.subjects:
        yield from _subject(settings, nsd, subject, kinds, shown, thorough)
    if SOLVERS & stages:
        yield look("folds", lambda: _folds(settings, nsd, stages), "fewer than training pictures")
    if not shown and pictures:
        yield Row("pictures", "note", "not looked at: it is not known which are shown")
        return
    ids = np.array(sorted(shown))
    if "stimuli" in kinds:
        yield look(
            "stimuli", lambda: _stimuli(nsd, ids), "uint8 pictures of 425 x 425 x 3, not all zero"
        )
    if "captions" in kinds:
        yield look("captions", lambda: _captions(nsd, ids), "some of every picture shown")


def _subject(
    settings: Config, nsd: NSD, subject: int, kinds: set[str], shown: set[int], thorough: bool
) -> Iterator[Row]:
    """The rows of one subject; the pictures that it was shown are added to ``shown``."""
    name = f"subj{subject:02d}"
    numbers = sessions_of(settings, nsd, subject)
    there = [number for number in numbers if _formats(nsd, subject, number)]
    # every cell's signature names them, whether it reads them or not
    if not numbers:
        error = absent(f"{nsd.betas_dir(subject)} holds no betas; fetch them")
        yield broken(f"{name} sessions", error, "betas_session01.hdf5 and on")
        return
    yield from each(
        f"{name} session", numbers, lambda number: nsd.betas_file(subject, number),
        f"{len(numbers)}, {numbers[0]} to {numbers[-1]}", "a file of betas each",
    )  # fmt: skip
    if kinds & {"design", "stimuli", "captions"}:
        yield _trials(nsd, subject, numbers, shown)
    if "volumes" in kinds:
        yield from _volumes(settings, nsd, subject, numbers, there, thorough)
    if "surfaces" in kinds:
        yield _surfaces(nsd, subject)


def _design(nsd: NSD) -> str:
    check_design(nsd)
    return f"{nsd.design_file().name}: both do, of all trials of 8 subjects"


def _folds(settings: Config, nsd: NSD, stages: set[str]) -> str:
    limits.check_folds(settings, nsd, stages)
    return str(settings.ridge.folds)


def _trials(nsd: NSD, subject: int, numbers: list[int], shown: set[int]) -> Row:
    """The counts of a subject's trials and pictures, against NSD's where they are known."""

    def count() -> str:
        trials, is_test = split(nsd, subject, numbers)
        ids = trials.nsd_id
        shown.update(ids.tolist())
        counts.extend([len(ids), int((~is_test).sum()), int(is_test.sum())])
        counts.extend([len(np.unique(ids[~is_test])), len(np.unique(ids[is_test]))])
        return COUNTS.format(*counts)

    counts: list[int] = []
    papers = COUNTS.format(*PAPER) if numbers == PAPER_SESSIONS else ""
    row = look(f"subj{subject:02d} trials", count, papers)
    if row.verdict == "ok" and papers and row.found != papers:  # perhaps a design of one's own
        mend = "for NSD's own splits fetch nsd_expdesign.mat again"
        return Row(row.check, "note", row.found, papers, mend)
    return row


def _volumes(
    settings: Config, nsd: NSD, subject: int, numbers: list[int], there: list[int], thorough: bool
) -> Iterator[Row]:
    """ROI, noise ceiling and the betas that are ``there``."""
    name, found = f"subj{subject:02d}", list[Selection]()

    def roi() -> str:
        wanted = {f"roi.{part}": getattr(settings.roi, part) for part in ("z_v", "c", "z")}
        found.append(select(nsd, subject, numbers, wanted=wanted))
        return f"{len(found[0].xyz):,} voxels of {len(STREAMS)} streams in {_text(found[0].shape)}"

    yield look(f"{name} ROI", roi, "labels 1 to 7, in the grid of ncsnr and betas")
    if not found:
        return
    known = int(has_ncsnr(found[0].ncsnr).sum())
    total = len(found[0].ncsnr)
    if not known:
        yield look(
            f"{name} ncsnr", lambda: str(check_ncsnr(nsd, subject, found[0])), f"of {total:,}"
        )
    else:
        yield Row(f"{name} ncsnr", "ok" if known == total else "note", f"of {known:,} voxels", f"of {total:,}",
                  "" if known == total else "voxels without one are left out")  # fmt: skip
    sound: list[int] = []

    def check(number: int) -> None:
        check_session(nsd, subject, number, found[0])
        sound.append(number)

    grid = _text(found[0].shape)
    if there:
        yield from each(
            f"{name} betas", there, check, f"int16, {TRIALS_PER_SESSION} trials each, in {grid}",
            "the grid of the ROI, not all zero",
        )  # fmt: skip
    both = [number for number in sound if len(_formats(nsd, subject, number)) == 2]
    if both and thorough:
        xyz = sample(found[0].xyz)
        yield from each(
            f"{name} HDF5 = NIfTI", both, lambda number: _agree(nsd, subject, number, xyz),
            f"so in {len(both)} sessions, at {len(xyz)} voxels", "the same numbers",
        )  # fmt: skip


def _formats(nsd: NSD, subject: int, session: int) -> list[Path]:
    """The session's files, HDF5 first."""
    stem = nsd.betas_dir(subject) / f"betas_session{session:02d}"
    paths = [stem.with_name(stem.name + ending) for ending in (".hdf5", ".nii.gz")]
    return [path for path in paths if path.exists()]


def _agree(nsd: NSD, subject: int, session: int, xyz: np.ndarray) -> None:
    """Raise DataError where a session's two files differ at ``xyz`` in the trials that are unpacked."""
    path = _formats(nsd, subject, session)[1]
    betas, image = nsd.betas(subject, session, xyz), load_image(path)
    shape = (*nsd.betas_shape(subject, session), TRIALS_PER_SESSION)
    if image.shape != shape:
        raise DataError(
            f"{path}: found {image.shape}, expected {shape}, as of the HDF5; fetch it again"
        )
    trials = int(np.clip(UNPACKED // (2 * np.prod(shape[:3])), 1, TRIALS_PER_SESSION))
    with reading(path, "is broken"):
        begin = np.asarray(image.dataobj[..., :trials])  # unpacks these volumes alone
    values = begin[tuple(xyz.T)].T
    if (wrong := np.argwhere(values != betas[:trials])).size:
        trial, voxel = wrong[0]
        raise DataError(
            f"{path}: found {values[trial, voxel]} at voxel {tuple(xyz[voxel].tolist())}, trial {trial}, "
            f"expected {betas[trial, voxel]}, as in the HDF5; fetch both again"
        )


def _stimuli(nsd: NSD, ids: np.ndarray) -> str:
    check_stimuli(nsd, ids)
    return f"all {len(ids):,} shown, a sample of them read"


def _captions(nsd: NSD, ids: np.ndarray) -> str:
    check_captions(nsd, ids)
    return f"of all {len(ids):,} shown"


def _surfaces(nsd: NSD, subject: int) -> Row:
    """The transforms to fsaverage; without any, maps are of the volume alone."""
    name = f"subj{subject:02d} surfaces"
    folder = nsd.subject_dir(subject) / "transforms"
    if not any(folder.glob("*.mgz")):
        return Row(
            name, "note", f"no transforms in {folder}", "", "fetch them for maps of the cortex"
        )

    def check() -> str:
        check_surfaces(nsd, subject)
        return "transforms of both hemispheres to fsaverage"

    return look(name, check, "of the subject's volume and vertices")


def _text(shape: Iterable[int]) -> str:
    return " x ".join(map(str, shape))
