"""Bad files of NSD through the real command: one message, exit 65, before any work, and nothing written."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import numpy as np
import pytest
import scipy.io

from nsdcap import launch, miniature
from nsdcap.miniature.tree import write_betas
from nsdcap.nsd import NSD, voxels_of
from nsdcap.paths import Cell, artefact, sidecar

MAT = "nsddata/experiments/nsd/nsd_expdesign.mat"
CSV = "nsddata/experiments/nsd/nsd_stim_info_merged.csv"
BETAS = "nsddata_betas/ppdata/subj01/func1pt8mm/betas_fithrf_GLMdenoise_RR"
HDF5, NIFTI = f"{BETAS}/betas_session02.hdf5", f"{BETAS}/betas_session02.nii.gz"
NCSNR = f"{BETAS}/ncsnr.nii.gz"
ROI = "nsddata/ppdata/subj01/func1pt8mm/roi/streams.nii.gz"
CTAB = "nsddata/freesurfer/subj01/label/streams.mgz.ctab"
STIMULI = "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5"
TRAIN = "annotations/captions_train2017.json"
LAYER = "nsddata/ppdata/subj01/transforms/lh.func1pt8-to-layerB2.mgz"
WHITE = "nsddata/ppdata/subj01/transforms/rh.white-to-fsaverage.mgz"
Spoil = Callable[[Path], object]


# --- ways to spoil a file; all of them put another in the place of a link ---------------------------


def put(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


def gone(name: str) -> Spoil:
    return lambda root: (root / name).unlink()


def bytes_of(name: str, change: Callable[[bytes], bytes]) -> Spoil:
    return lambda root: put(root / name, change((root / name).read_bytes()))


def half(name: str) -> Spoil:
    return bytes_of(name, lambda content: content[: len(content) // 2])


def empty(name: str) -> Spoil:
    return bytes_of(name, lambda content: b"")


def folder(name: str) -> Spoil:
    def spoil(root: Path) -> None:
        (root / name).unlink()
        (root / name).mkdir()

    return spoil


def flipped(name: str) -> Spoil:
    """One bit in the middle of what is packed."""

    def change(content: bytes) -> bytes:
        middle = len(content) // 2
        return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]

    return bytes_of(name, change)


def both(*spoils: Spoil) -> Spoil:
    return lambda root: [spoil(root) for spoil in spoils]


def image(name: str, change: Callable[[np.ndarray], np.ndarray], affine: Any = None) -> Spoil:
    def spoil(root: Path) -> None:
        path = root / name
        found: Any = nib.load(path)
        values = change(np.array(found.dataobj))
        path.unlink()
        kind = nib.MGHImage if name.endswith("mgz") else nib.Nifti1Image
        nib.save(kind(values, found.affine if affine is None else affine), path)

    return spoil


def at(index: Any, value: Any) -> Callable[[np.ndarray], np.ndarray]:
    def change(values: np.ndarray) -> np.ndarray:
        values[index] = value
        return values

    return change


def design(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Spoil:
    def spoil(root: Path) -> None:
        found = {k: v for k, v in scipy.io.loadmat(root / MAT).items() if k[0] != "_"}
        found[name] = change(found[name])
        (root / MAT).unlink()
        scipy.io.savemat(root / MAT, found, do_compression=True)

    return spoil


def swap(values: np.ndarray) -> np.ndarray:
    """Two pictures of subject 1 change places: all is sound, but the table says otherwise."""
    values[0, [2000, 3000]] = values[0, [3000, 2000]]
    return values


def shared_late(root: Path) -> None:
    """No shared picture is shown in the first two sessions; the table agrees."""
    found = {k: v for k, v in scipy.io.loadmat(root / MAT).items() if k[0] != "_"}
    order = found["masterordering"][0]
    early = np.flatnonzero(order[:1500] <= 1000)
    late = 1500 + np.flatnonzero(order[1500:] > 1000)[-len(early) :]
    order[early], order[late] = order[late], order[early]
    (root / MAT).unlink()
    scipy.io.savemat(root / MAT, found)
    lines = (root / CSV).read_text().splitlines()
    trials = np.argsort(order, kind="stable").reshape(-1, 3) + 1
    where = {
        int(p): (s, i)
        for s, own in enumerate(found["subjectim"])
        for i, p in enumerate(own)
        if i >= 1000
    }
    for n, line in enumerate(lines[1:], 1):
        fields = line.rsplit(",", 24)
        times = np.zeros((8, 3), int)
        index = np.flatnonzero(found["subjectim"][0, :1000] == n)
        if len(index):
            times[:] = trials[index[0]]
        elif n in where:
            subject, i = where[n]
            times[subject] = trials[i]
        lines[n] = ",".join([fields[0], *map(str, times.ravel())])
    put(root / CSV, ("\n".join(lines) + "\n").encode())


def row(number: int, column: str, value: str) -> Spoil:
    """A field of the table of pictures; row 0 is nsdId 0."""

    def spoil(root: Path) -> None:
        lines = (root / CSV).read_text().split("\n")
        head = lines[0].split(",")
        # cropBox holds commas, in quotes
        fields = re.findall(r'"[^"]*"|[^,]+', lines[number + 1])
        fields[head.index(column)] = value
        lines[number + 1] = ",".join(fields)
        put(root / CSV, "\n".join(lines).encode())

    return spoil


def seen(root: Path, n: int = 5) -> int:
    """A picture that subject 1 saw and that is not shared."""
    nsd = NSD(root)
    return int(np.setdiff1d(nsd.trials(1, [1]).nsd_id, nsd.shared_ids())[n])


def of_seen(column: str, value: str) -> Spoil:
    return lambda root: row(seen(root), column, value)(root)


def captions(change: Callable[[list, int], object]) -> Spoil:
    """COCO's file with the picture that is changed: annotations and its image id."""

    def spoil(root: Path) -> None:
        nsd, n = NSD(root), 0
        while str(nsd.stim_info().split[seen(root, n)]) != "train2017":
            n += 1
        image_id = int(nsd.stim_info().coco_id[seen(root, n)])
        content = json.loads((root / TRAIN).read_text())
        content["annotations"] = change(content["annotations"], image_id) or content["annotations"]
        put(root / TRAIN, json.dumps(content).encode())

    return spoil


def betas(change: Callable[[np.ndarray], object]) -> Spoil:
    """Session 2, of which there is then HDF5 alone."""

    def spoil(root: Path) -> None:
        nsd = NSD(root)
        xyz, shape = voxels_of(nsd.roi(1)[0], range(1, 8)), nsd.betas_shape(1, 2)
        values = nsd.betas(1, 2, xyz)
        change(values)
        (root / HDF5).unlink()
        (root / NIFTI).unlink()
        write_betas(root / HDF5, shape, xyz, values)

    return spoil


def hdf5(name: str, dataset: str, shape: tuple[int, ...], dtype: str, **options: Any) -> Spoil:
    def spoil(root: Path) -> None:
        (root / name).unlink()
        with h5py.File(root / name, "w") as file:
            file.create_dataset(dataset, shape, dtype, **options)

    return spoil


def unknown_filter(root: Path) -> None:
    """As if packed with a filter that this machine has not: its number in the header is another's."""
    shape = NSD(root).betas_shape(1, 2)[::-1]
    hdf5(HDF5, "betas", (750, *shape), "<i2", chunks=(750, 1, 1, 1), compression="lzf")(root)
    content = (root / HDF5).read_bytes()
    number = (32000).to_bytes(2, "little")
    assert content.count(number) == 1
    (root / HDF5).write_bytes(content.replace(number, (32015).to_bytes(2, "little")))


def nifti_alone(spoil: Spoil = lambda root: None) -> Spoil:
    return both(gone(HDF5), spoil)


def short_stimuli(root: Path) -> None:
    hdf5(STIMULI, "imgBrick", (72000, 425, 425, 3), "u1", chunks=(1, 425, 425, 3))(root)


def moved(values: np.ndarray) -> np.ndarray:
    return np.roll(values, 1)


AFFINE = np.diag([1.8, 1.8, 1.8, 1.0])  # that of no miniature
TWICE = "stands twice"
# name: how it is spoilt, the stage, and what is said (file, found, expected)
CASES: dict[str, tuple[Spoil, str, str]] = {
    "session missing": (both(gone(HDF5), gone(NIFTI)), "prepare", r"no betas of session 2.*\[1\]"),
    "truncated HDF5": (half(HDF5), "prepare", "session02.hdf5 is truncated or broken"),
    "empty HDF5": (empty(HDF5), "prepare", "session02.hdf5 is empty, 0 bytes"),
    "folder for HDF5": (folder(HDF5), "prepare", "session02.hdf5 is a folder, expected a file"),
    "wrong dtype": (
        hdf5(HDF5, "betas", (750, 29, 22, 35), "f4", chunks=True), "prepare",
        "session02.hdf5: betas is float32 .*, expected int16",
    ),
    "other axes": (hdf5(HDF5, "betas", (750, 99), "i2"), "prepare", r"int16 \(750, 99\), expected .* 4 axes"),
    "other trials": (
        hdf5(HDF5, "betas", (749, 2, 2, 2), "i2"), "prepare", "session02.hdf5: 749 trials, expected 750"
    ),
    "other volume": (
        hdf5(HDF5, "betas", (750, 9, 9, 9), "i2", chunks=True), "prepare",
        r"session02.hdf5 has a volume of \(9, 9, 9\), but the streams ROI",
    ),
    "unknown filter": (unknown_filter, "prepare", "session02.hdf5.*HDF5 filter 32015"),
    "all zero": (betas(at(..., 0)), "prepare", "session02.hdf5 holds only zeros in the ROI"),
    "all constant": (
        betas(at(..., -32768)), "prepare",
        r"session02.hdf5: found one number \(-32768\) in all \d+ training trials .* expected betas that vary",
    ),
    "all constant NIfTI": (
        nifti_alone(image(NIFTI, at(..., 5))), "prepare", r"session02.nii.gz: found one number \(5\) in all"
    ),
    "no voxel with ncsnr": (
        image(NCSNR, at(..., np.nan)), "prepare", "ncsnr.nii.gz: found no finite number .* fetch it again"
    ),
    "no voxel with finite ncsnr": (image(NCSNR, at(..., np.inf)), "prepare", "ncsnr.nii.gz: found no finite"),
    "all zero NIfTI": (nifti_alone(image(NIFTI, at(..., 0))), "prepare", "session02.nii.gz holds only zeros"),
    "NIfTI cut": (nifti_alone(half(NIFTI)), "prepare", "session02.nii.gz is broken .*end"),
    "NIfTI of float with NaN": (
        nifti_alone(image(NIFTI, lambda v: np.full(v.shape, np.nan, np.float32))), "prepare",
        "session02.nii.gz: float32 .*, expected int16",
    ),
    "affine of the betas": (
        image(NIFTI, lambda v: v, AFFINE), "prepare", "session02.nii.gz: its affine puts a corner .* mm"
    ),
    "affine of the ROI": (image(ROI, lambda v: v, AFFINE), "prepare", "its affine puts a corner .* mm"),
    "ncsnr of another volume": (
        image(NCSNR, lambda v: v[1:]), "prepare", r"ncsnr.nii.gz has a volume of \(34, 22, 29\), but"
    ),
    "no ncsnr": (gone(NCSNR), "prepare", "ncsnr.nii.gz does not exist"),
    "empty ROI": (image(ROI, lambda v: np.minimum(v, 0)), "prepare", "no voxel of streams.nii.gz"),
    "empty stream": (
        image(ROI, lambda v: np.where(v == 1, 2, v)), "prepare",
        "streams.nii.gz: early of setting roi.z has no voxel",
    ),
    "ROI of another shape": (
        image(ROI, lambda v: v[:, 1:]), "prepare",
        r"session01.hdf5 has .*streams ROI .* has \(35, 21, 29\)",
    ),
    "ROI of fractions": (
        image(ROI, lambda v: v + np.float32(0.5)), "prepare", "streams.nii.gz holds fractions or NaN"
    ),
    "ROI with NaN": (
        image(ROI, lambda v: np.where(v < 1, np.nan, v).astype(np.float32)), "prepare",
        "streams.nii.gz holds fractions or NaN",
    ),
    "ROI of another atlas": (image(ROI, lambda v: v * 10), "prepare", "holds the label 70, expected at most 7"),
    "ROI cut": (half(ROI), "prepare", "streams.nii.gz is broken .*end"),
    "ROI flipped": (flipped(ROI), "prepare", "streams.nii.gz is broken"),
    "no labels": (empty(CTAB), "prepare", "ctab is empty"),
    "blank labels": (bytes_of(CTAB, lambda b: b"\n\n"), "prepare", "ctab holds no labels"),
    "label twice": (
        bytes_of(CTAB, lambda b: b + b"3 again\n"), "prepare", "'3 again' has a label or a name that .* twice"
    ),
    "name twice": (bytes_of(CTAB, lambda b: b + b"9 early\n"), "prepare", "'9 early' has .* twice"),
    "other numbers": (
        bytes_of(CTAB, lambda b: b.replace(b"1 early", b"9 early")), "prepare",
        "ctab: early has label 9, expected 1",
    ),
    "labels not text": (bytes_of(CTAB, lambda b: b"\xff\xfe1 x"), "prepare", "ctab cannot be read"),
    "design cut": (half(MAT), "prepare", "expdesign.mat cannot be read"),
    "design a folder": (folder(MAT), "prepare", "expdesign.mat is a folder"),
    "masterordering 0": (
        design("masterordering", at((0, 7), 0)), "prepare", "masterordering holds 0, expected .* 1 to 10000"
    ),
    "masterordering 10001": (design("masterordering", at((0, 7), 10001)), "prepare", "holds 10001, expected"),
    "masterordering NaN": (design("masterordering", at((0, 7), np.nan)), "prepare", "holds nan, expected"),
    "a picture shown four times": (
        design("masterordering", lambda v: at((0, 0), v[0, 1])(v)), "prepare", "times, expected 3"
    ),
    "subjectim 73001": (
        design("subjectim", at((3, 5), 73001)), "prepare", "subjectim holds 73001, expected .* 1 to 73000"
    ),
    "subjectim 1.5": (design("subjectim", at((3, 5), 1.5)), "prepare", "subjectim holds 1.5, expected whole"),
    "subjectim twice": (
        design("subjectim", lambda v: at((0, 1500), v[0, 1600])(v)), "prepare", "twice for subject 1"
    ),
    "subjectim of another shape": (
        design("subjectim", lambda v: v[:7]), "prepare", r"subjectim is \(7, 10000\), expected \(8, 10000\)"
    ),
    "sharedix disagrees": (
        design("subjectim", lambda v: np.roll(v, 1, axis=1)), "prepare", "sharedix and the first 1000 columns"
    ),
    "no test pictures": (shared_late, "prepare", r"sessions \[1, 2\]: no shared pictures"),
    "table disagrees": (design("subjectim", swap), "prepare", "csv and nsd_expdesign.mat disagree: trial"),
    "repM disagrees": (of_seen("subject1_rep0", "29999"), "prepare", "disagree: trial .* of subject 1"),
    "repM of one who never saw it": (
        of_seen("subject2_rep0", "5"), "prepare", "disagree: nsdId .* subject 2 never saw it"
    ),
    "repM no number": (of_seen("subject1_rep0", "x"), "prepare", "csv: .*'x'.*expected columns"),
    "repM beyond": (of_seen("subject1_rep0", "30001"), "prepare", "no number of a trial, 0 to 30000"),
    "shared1000 disagrees": (of_seen("shared1000", "True"), "prepare", "disagree on 1 pictures: shared1000"),
    "nsdId twice": (row(6, "nsdId", "5"), "features", f"nsdId 5 {TWICE}"),
    "nsdId beyond": (row(6, "nsdId", "73000"), "features", "from 0 to 73000, expected nsdId 0 to 72999"),
    "cocoId twice": (both(row(6, "cocoId", "7"), row(9, "cocoId", "7")), "features", f"cocoId 7 {TWICE}"),
    "unknown split": (row(6, "cocoSplit", "test2017"), "features", "cocoSplit 'test2017', expected train2017"),
    "table cut": (half(CSV), "features", "csv: .* expected"),
    "no table": (gone(CSV), "features", "merged.csv does not exist"),
    "captions lack a picture": (
        captions(lambda all, image: [a for a in all if a["image_id"] != image]), "features",
        r"captions_train2017.json: 1 of \d+ pictures have no captions, the first nsd_id",
    ),
    "captions without words": (
        captions(lambda all, image: [a | {"caption": " "} for a in all]), "features", "have no captions"
    ),
    "half a letter in a caption": (
        captions(lambda all, image: [a | {"caption": "a \ud800 dog"} for a in all]), "features",
        "captions_train2017.json is not COCO's captions .*surrogates not allowed.*fetch it again",
    ),
    "a caption that is no text": (
        captions(lambda all, image: [a | {"caption": 5} for a in all]), "features",
        "captions_train2017.json is not COCO's captions .*caption 5",
    ),
    "a link to nothing": (
        both(gone(HDF5), gone(NIFTI), lambda root: (root / HDF5).symlink_to("nowhere.hdf5")), "prepare",
        "session02.hdf5 is a link to nowhere.hdf5, where nothing is; mend the link",
    ),
    "no betas at all": (
        lambda root: (root / BETAS).rename(root / BETAS.replace("GLMdenoise", "none")), "prepare",
        r"subject 1 has no betas: there is no .*_GLMdenoise_RR \(.* holds betas_fithrf_none_RR\)",
    ),
    "annotation twice": (captions(lambda all, image: [*all, all[0]]), "features", f"annotation id .* {TWICE}"),
    "captions cut": (half(TRAIN), "features", "captions_train2017.json is not COCO's captions"),
    "captions a list": (bytes_of(TRAIN, lambda b: b"[1]"), "features", "is not COCO's captions"),
    "captions deep": (bytes_of(TRAIN, lambda b: b"[" * 100_000), "features", "is not COCO's captions"),
    "captions a folder": (folder(TRAIN), "features", "captions_train2017.json is a folder"),
    "stimuli too short": (
        short_stimuli, "features", "nsd_stimuli.hdf5 has 72000 pictures; nsd_id .*fetch the file again"
    ),
    "stimuli of another size": (
        hdf5(STIMULI, "imgBrick", (73000, 224, 224, 3), "u1", chunks=True), "features",
        r"pictures of \(224, 224, 3\), expected \(425, 425, 3\)",
    ),
    "stimuli not written": (
        hdf5(STIMULI, "imgBrick", (73000, 425, 425, 3), "u1", chunks=(1, 425, 425, 3)), "features",
        r"nsd_stimuli.hdf5: picture \d+ is all zero",
    ),
    "stimuli cut": (half(STIMULI), "features", "nsd_stimuli.hdf5 is truncated"),
    "no stimuli": (gone(STIMULI), "features", "nsd_stimuli.hdf5 does not exist"),
    "layer of another length": (image(LAYER, lambda v: v[:-1]), "aggregate", "differ in vertices .*layerB2"),
    "layer outside": (
        image(LAYER, lambda v: v + np.float32(60)), "aggregate", r"lie outside the volume \(35, 22, 29\)"
    ),
    "layer without axes": (image(LAYER, lambda v: v[..., 0]), "aggregate", r"layerB2.mgz has shape \(\d+,\)"),
    "layer cut": (half(LAYER), "aggregate", "layerB2.mgz is broken"),
    "vertex 0": (image(WHITE, at((4, 0, 0), 0)), "aggregate", "white-to-fsaverage.mgz points at vertex 0"),
    "vertex beyond": (image(WHITE, at((4, 0, 0), 1e6)), "aggregate", "points at vertex 1000000 of the subject"),
    "vertex no number": (image(WHITE, at((4, 0, 0), np.nan)), "aggregate", "holds nan, expected whole indices"),
    "fsaverage of another length": (image(WHITE, lambda v: v[:-1]), "aggregate", "10241 vertices, expected"),
    "surface of which a part is gone": (gone(WHITE), "aggregate", "rh.white-to-fsaverage.mgz does not exist"),
}  # fmt: skip


def arguments(root: Path, out: Path, stage: str) -> list[str]:
    words = ["--nsd-root", str(root), "--out", str(out), "--subjects", "1", "--stage", stage]
    for setting in (*miniature.places(root), "data.sessions=2"):
        if not setting.startswith("data.nsd_root"):
            words += ["--set", setting]
    return [*words, "--executor", "inline"]


def everything(root: Path) -> dict[str, str]:
    files = [path for path in sorted(root.rglob("*")) if path.is_file()]
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.mark.parametrize("case", CASES)
def test_bad_data_is_refused_before_any_work(tree_copy, tmp_path, capsys, case):
    spoil, stage, message = CASES[case]
    spoil(tree_copy)
    out = tmp_path / "out"
    assert launch.main(arguments(tree_copy, out, stage)) == 65
    said = capsys.readouterr().err
    assert re.search(message, said), said
    lines = said.strip().splitlines()
    assert len(lines) == 1, said
    assert lines[0].startswith("nsdcap: ")
    assert not out.exists()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (nifti_alone(flipped(NIFTI)), "session02.nii.gz is broken"),
    ],
)
def test_what_reading_in_full_shows_leaves_no_artefact(tree_copy, tmp_path, capsys, spoil, message):
    spoil(tree_copy)
    out = tmp_path / "out"
    assert launch.main(arguments(tree_copy, out, "prepare")) == 65
    said = capsys.readouterr().err
    assert re.search(message, said), said
    assert "Traceback" not in said
    assert not artefact(out, Cell("prepare", 1)).exists()
    assert not sidecar(out, Cell("prepare", 1)).exists()
    assert not list((out / "prepare").glob("*.partial"))


def test_what_was_finished_stays_as_it_is(tree_copy, tmp_path, capsys):
    out = tmp_path / "out"
    words = arguments(tree_copy, out, "prepare")
    assert launch.main(words) == 0
    before = everything(out)
    for number, spoil in enumerate((half(ROI), row(6, "nsdId", "5"), empty(HDF5))):
        spoil(tree_copy)
        assert launch.main([*words, "--force"]) == 65, number
        assert everything(out) == before
    assert capsys.readouterr().err.count("nsdcap: ") == 3


def test_a_gzip_of_several_members_is_whole(tree_copy, tmp_path):
    """Its last bytes do not tell the length of all, which alone is no fault."""
    (tree_copy / HDF5).unlink()
    content = gzip.decompress((tree_copy / NIFTI).read_bytes())
    cut = len(content) // 2
    put(tree_copy / NIFTI, gzip.compress(content[:cut], 1) + gzip.compress(content[cut:], 1))
    assert launch.main(arguments(tree_copy, tmp_path / "out", "prepare")) == 0


def test_subjects_without_surfaces_are_no_fault(tree_copy):
    from nsdcap.nsd_checks import check_surfaces

    check_surfaces(NSD(tree_copy), 1)
    for path in (tree_copy / LAYER).parent.glob("*.mgz"):
        path.unlink()
    check_surfaces(NSD(tree_copy), 1)
