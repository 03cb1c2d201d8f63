"""Which of NSD's files a stage reads, so that a change of one can be noticed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nsdcap.nsd import NSD


def files(nsd: NSD, kind: str, subjects: Sequence[int], sessions: Sequence[int]) -> list[Path]:
    """Paths of one kind: design, betas, volumes, stimuli, captions or surfaces.

    Volumes and surfaces that a subject does not have are left out.

    Raises
    ------
    DataError
        A session of which there are no betas.
    ValueError
        Another kind.
    """
    root = Path(nsd.root)
    experiment = root / "nsddata/experiments/nsd"
    match kind:
        case "design":
            return [experiment / "nsd_expdesign.mat"]
        case "betas":
            return [nsd.betas_file(s, session) for s in subjects for session in sessions]
        case "volumes":
            spaces = [nsd.subject_dir(s) / nsd.space for s in subjects]
            found = [space / "roi/streams.nii.gz" for space in spaces]
            labels = root / "nsddata/freesurfer"
            found += [labels / f"subj{s:02d}/label/streams.mgz.ctab" for s in subjects]
            return [*found, *(nsd.betas_dir(s) / "ncsnr.nii.gz" for s in subjects)]
        case "stimuli":
            return [root / "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5"]
        case "captions":
            folder = nsd.coco_dir or root / "annotations"
            names = [Path(folder) / f"captions_{part}2017.json" for part in ("train", "val")]
            return [experiment / "nsd_stim_info_merged.csv", *names]
        case "surfaces":
            folders = [nsd.subject_dir(s) / "transforms" for s in subjects]
            return [path for folder in folders for path in sorted(folder.glob("*.mgz"))]
    raise ValueError(f"unknown kind of files: {kind}")
