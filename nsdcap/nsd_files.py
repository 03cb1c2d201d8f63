"""Which of NSD's files are read: the one list, for noticing that a file changed and for fetching them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nsdcap.nsd import NSD

KINDS = ("design", "volumes", "captions", "surfaces", "stimuli", "betas")
OPTIONAL = ("surfaces",)  # without them there are no maps on the cortex, all else is computed


def files(nsd: NSD, kind: str, subjects: Sequence[int], sessions: Sequence[int]) -> list[Path]:
    """Paths of one kind (see ``KINDS``) as they lie in ``nsd.root``; surfaces only where they are there.

    Raises
    ------
    DataError
        A session of which there are no betas.
    ValueError
        Another kind.
    """
    if kind == "betas":
        return [nsd.betas_file(s, session) for s in subjects for session in sessions]
    found = wanted(nsd, kind, subjects, sessions)
    return [path for path in found if path.exists()] if kind in OPTIONAL else found


def wanted(
    nsd: NSD, kind: str, subjects: Sequence[int], sessions: Sequence[int], nifti: bool = False
) -> list[Path]:
    """Paths of one kind below ``nsd.root`` by NSD's own names, be they there or not.

    Betas as HDF5, or as ``nifti``. Raises ValueError for another kind.
    """
    root = Path(nsd.root)
    experiment = root / "nsddata/experiments/nsd"
    match kind:
        case "design":
            return [experiment / "nsd_expdesign.mat"]
        case "betas":
            ending = ".nii.gz" if nifti else ".hdf5"
            names = [f"betas_session{session:02d}{ending}" for session in sessions]
            return [nsd.betas_dir(s) / name for s in subjects for name in names]
        case "volumes":
            spaces = [nsd.subject_dir(s) / nsd.space for s in subjects]
            found = [space / "roi/streams.nii.gz" for space in spaces]
            labels = root / "nsddata/freesurfer"
            found += [labels / f"subj{s:02d}/label/streams.mgz.ctab" for s in subjects]
            return [*found, *(nsd.betas_dir(s) / "ncsnr.nii.gz" for s in subjects)]
        case "stimuli":
            return [root / "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5"]
        case "captions":
            folder = Path(nsd.coco_dir or root / "annotations")
            names = [f"captions_{part}2017.json" for part in ("train", "val")]
            return [experiment / "nsd_stim_info_merged.csv", *(folder / name for name in names)]
        case "surfaces":
            short = nsd.space.removesuffix("mm")
            steps = [*(f"{short}-to-layerB{depth}" for depth in (1, 2, 3)), "white-to-fsaverage"]
            names = [f"{hemi}.{step}.mgz" for hemi in ("lh", "rh") for step in steps]
            return [nsd.subject_dir(s) / "transforms" / name for s in subjects for name in names]
    raise ValueError(f"unknown kind of files: {kind}")
