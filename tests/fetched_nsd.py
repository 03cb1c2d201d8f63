"""hpc/fetch_nsd.py as a command in this process, and a bucket with files of NSD's names for it."""

from __future__ import annotations

import importlib.util
import json
import random
import sys
import zipfile
from pathlib import Path

import pytest
from bucket_server import Bucket, serving

from nsdcap import download

ROOT = Path(__file__).resolve().parents[1]
SPEC = importlib.util.spec_from_file_location("fetch_nsd", ROOT / "hpc/fetch_nsd.py")
fetch_nsd = importlib.util.module_from_spec(SPEC)
sys.modules["fetch_nsd"] = fetch_nsd
SPEC.loader.exec_module(fetch_nsd)

EXPERIMENT = "nsddata/experiments/nsd"
DESIGN, INFO = f"{EXPERIMENT}/nsd_expdesign.mat", f"{EXPERIMENT}/nsd_stim_info_merged.csv"
BETAS = "nsddata_betas/ppdata/subj01/func1pt8mm/betas_fithrf_GLMdenoise_RR"
FIRST, SECOND = f"{BETAS}/betas_session01.hdf5", f"{BETAS}/betas_session02.hdf5"
STIMULI = "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5"
ZIP = "annotations/annotations_trainval2017.zip"
CAPTIONS = [f"annotations/captions_{part}2017.json" for part in ("train", "val")]
MB = 1 << 20


def write_zip(path: Path, files: dict[str, bytes]) -> None:
    path.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in files.items():
            packed.writestr(name, content)


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """NSD's layout of subject 1 with two sessions: random bytes of some size, the betas 7 and 3 MB."""
    draw, root = random.Random(1), tmp_path / "served"
    sizes = {
        DESIGN: 300_000, INFO: 2 * MB, STIMULI: 2 * MB, FIRST: 7 * MB, SECOND: 3 * MB + 5,
        f"{BETAS}/ncsnr.nii.gz": 9_000, f"{BETAS}/R2.nii.gz": 9_000,
        f"{BETAS}/betas_session01.nii.gz": 8_000, f"{BETAS}/betas_session02_old.hdf5": 8_000,
        "nsddata/ppdata/subj01/func1pt8mm/roi/streams.nii.gz": 3_000,
        "nsddata/freesurfer/subj01/label/streams.mgz.ctab": 90,
        "nsddata/ppdata/subj01/transforms/lh.white-to-fsaverage.mgz": 1_000,
    }  # fmt: skip
    for key, size in sizes.items():
        (root / key).parent.mkdir(parents=True, exist_ok=True)
        (root / key).write_bytes(draw.randbytes(size))
    rows = [{"id": 1, "image_id": 9, "caption": "a dog"}]
    text = json.dumps({"annotations": rows}).encode()
    write_zip(root / ZIP, {**dict.fromkeys(CAPTIONS, text), "annotations/instances.json": b"{}"})
    monkeypatch.setattr(download, "PAUSES", (0.01, 0.01, 0.01))
    with serving(root) as found:
        yield found


WANTED = {
    DESIGN, INFO, STIMULI, FIRST, SECOND, f"{BETAS}/ncsnr.nii.gz", *CAPTIONS,
    "nsddata/ppdata/subj01/func1pt8mm/roi/streams.nii.gz",
    "nsddata/freesurfer/subj01/label/streams.mgz.ctab",
    "nsddata/ppdata/subj01/transforms/lh.white-to-fsaverage.mgz",
}  # fmt: skip
KEPT = {"nsd-files.json", "nsd-terms-accepted.json"}


@pytest.fixture
def fetch(bucket, tmp_path, capsys):
    """The command, in this process; gives the exit code and what it said. Subject 1, two sessions."""

    def run(*words: str, accept: bool = True) -> tuple[int, str]:
        code = fetch_nsd.main(arguments(bucket, tmp_path / "nsd", *words, accept=accept))
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return code, said.out + said.err

    return run


def arguments(bucket: Bucket, folder: Path, *words: str, accept: bool = True) -> list[str]:
    usual = [str(folder), "--subjects", "1", "--sessions", "2", "--from", bucket.url]
    usual += ["--coco", f"{bucket.url}/{ZIP}", "--jobs", "3"]
    return [*usual, *["--accept-terms"][: accept and "--dry-run" not in words], *words]


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def check_whole(bucket: Bucket, folder: Path) -> None:
    """Everything is there, byte for byte, and nothing else."""
    assert files(folder) == WANTED | KEPT
    for key in WANTED - {*CAPTIONS}:
        assert (folder / key).read_bytes() == (bucket.root / key).read_bytes(), key
    with zipfile.ZipFile(bucket.root / ZIP) as packed:
        for key in CAPTIONS:
            assert (folder / key).read_bytes() == packed.read(key)
