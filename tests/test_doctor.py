"""The doctor: all green on a sound tree, and on broken copies the fault by name; the launcher says the same."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest

from nsdcap import checks, checks_machine, config, doctor, launch, miniature, room
from nsdcap.cells import Ledger
from nsdcap.errors import UsageError
from nsdcap.model_files import sha256
from nsdcap.nsd import NSD
from nsdcap.nsd_checks import sample, select
from nsdcap.paths import Cell
from nsdcap.weights import LOCK

BETAS = "nsddata_betas/ppdata/subj01/func1pt8mm/betas_fithrf_GLMdenoise_RR"
FUNC = "nsddata/ppdata/subj01/func1pt8mm"
EXPERIMENT = "nsddata/experiments/nsd"
STIMULI = "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5"
CTAB = "nsddata/freesurfer/subj01/label/streams.mgz.ctab"


def arguments(root: Path, out: Path, *more: str) -> list[str]:
    """Options of the doctor and the launcher for subject 1 of a tiny tree."""
    given = ["--nsd-root", str(root), "--out", str(out), "--subjects", "1"]
    places = [text for text in miniature.places(root) if not text.startswith("data.nsd_root")]
    for setting in (*places, "data.sessions=2"):
        given += ["--set", setting]
    return [*given, *more]


def diagnose(capsys: pytest.CaptureFixture, *words: str) -> tuple[int, list[dict[str, str]]]:
    """The doctor's exit code and its rows."""
    code = doctor.main([*words, "--json"])
    told = json.loads(capsys.readouterr().out)
    assert told["exit_code"] == code
    return code, told["rows"]


def faults(rows: list[dict[str, str]]) -> dict[str, dict[str, str]]:
    """What is neither well nor a note, by the name of the check."""
    return {row["check"]: row for row in rows if row["verdict"] not in ("ok", "note")}


# --- a sound tree ---------------------------------------------------------------------------------


def test_all_is_green_on_a_sound_tree_and_nothing_is_written(tiny_tree, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in tiny_tree.rglob("*")}
    line = [sys.executable, "-m", "nsdcap.doctor", *arguments(tiny_tree, tmp_path / "new" / "out")]
    done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    *rows, last = done.stdout.splitlines()
    assert last.endswith("all good")
    assert " ok: " in last  # no note, no fault
    text = "\n".join(rows)
    for words in (
        "NSD root", "design", "1,500 trials", "subj01 ROI", "subj01 betas", "HDF5 = NIfTI", "surfaces",
        "stimuli", "captions", "models.blip", "architectures", "can be written", "clock", "disk", "memory",
        "this Python", "GPU for models", "GPU for ridge",
    ):  # fmt: skip
        assert words in text
    assert list(tmp_path.iterdir()) == []
    assert {path: path.stat().st_mtime_ns for path in tiny_tree.rglob("*")} == before


def test_only_what_the_stages_need_is_looked_at(tiny_tree, tmp_path, capsys):
    parts = ("--part", "data", "--part", "models", "--stage", "reconstruct")
    code, rows = diagnose(capsys, *arguments(tiny_tree, tmp_path / "out", *parts))
    assert code == 0
    names = {row["check"] for row in rows}
    assert {"stimuli", "models.diffusion", "models.clip"} <= names
    assert not {"captions", "models.blip", "subj01 betas"} & names


def test_the_miniature_that_is_not_made_yet_is_a_note(tmp_path, capsys):
    out = str(tmp_path / "out")
    code, rows = diagnose(capsys, "--out", out, "--part", "data", "--part", "models")
    assert code == 0
    assert [row["check"] for row in rows if row["verdict"] == "note"] == ["the miniature"]
    assert not (tmp_path / "out").exists()


def test_counts_of_trials_are_those_of_the_design(tiny_tree, tmp_path, capsys):
    """Counted anew from the table of pictures, which lists the trials of each picture."""
    lines = (tiny_tree / EXPERIMENT / "nsd_stim_info_merged.csv").read_text().splitlines()
    head = lines[0].split(",")
    at = [head.index(f"subject1_rep{m}") for m in range(3)]
    found = {True: [0, 0], False: [0, 0]}
    for line in lines[1:]:
        fields = line.replace('"(0.0, 0.0, 0.0, 0.0)"', "").split(",")
        times = sum(1 <= int(fields[k]) <= 1500 for k in at)
        trials, pictures = found[fields[head.index("shared1000")] == "True"]
        found[fields[head.index("shared1000")] == "True"] = [trials + times, pictures + (times > 0)]
    (test, shown), (train, own) = found[True], found[False]
    _, rows = diagnose(capsys, *arguments(tiny_tree, tmp_path / "out", "--part", "data"))
    row = next(row for row in rows if row["check"] == "subj01 trials")
    assert (
        row["found"]
        == f"1,500 trials = {train:,} + {test:,} of the test; {own:,} + {shown:,} pictures"
    )


# --- broken copies --------------------------------------------------------------------------------


def own(path: Path) -> Path:
    """The file itself in place of the link to the tree that all tests share."""
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)
    return path


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[: len(content) // 2])


def no_session(root: Path) -> None:
    for path in (root / BETAS).glob("betas_session02.*"):
        path.unlink()


def another_roi(root: Path) -> None:
    path = root / FUNC / "roi/streams.nii.gz"
    path.unlink()
    shutil.copy(root / FUNC.replace("subj01", "subj02") / "roi/streams.nii.gz", path)


def one_number_differs(root: Path) -> None:
    x, y, z = sample(select(NSD(root), 1, [1, 2]).xyz)[3]
    with h5py.File(own(root / BETAS / "betas_session02.hdf5"), "r+") as file:
        file["betas"][2, z, y, x] += 1


def one_picture_without(root: Path) -> None:
    nsd = NSD(root)
    info, shown = nsd.stim_info(), nsd.trials(1, [2]).nsd_id
    gone = next(int(info.coco_id[i]) for i in shown if info.split[i] == "train2017")
    path = own(root / "annotations/captions_train2017.json")
    content = json.loads(path.read_text())
    kept = [entry for entry in content["annotations"] if entry["image_id"] != gone]
    path.write_text(json.dumps({**content, "annotations": kept}))


def floats(root: Path) -> None:
    path = root / BETAS / "betas_session02.hdf5"
    path.unlink()
    with h5py.File(path, "w") as file:
        file["betas"] = np.ones((750, 9, 9, 9), np.float32)


def zeros(root: Path) -> None:
    """As a copy that was begun and never written."""
    path = root / BETAS / "betas_session01.hdf5"
    with h5py.File(path) as file:
        shape = file["betas"].shape
    path.unlink()
    with h5py.File(path, "w") as file:
        betas = file.create_dataset("betas", shape, "i2", chunks=(750, 1, 1, 1))
        betas[:, :2, 0, 0] = 0


def few_pictures(root: Path) -> None:
    (root / STIMULI).unlink()
    with h5py.File(root / STIMULI, "w") as file:
        bricks = file.create_dataset("imgBrick", (100, 425, 425, 3), "u1", chunks=(1, 425, 425, 3))
        bricks[0] = 1


def unknown_label(root: Path) -> None:
    path = root / FUNC / "roi/streams.nii.gz"
    image = nib.load(path)
    labels = np.asarray(image.dataobj).copy()
    labels[labels == 7] = 9
    path.unlink()
    nib.save(nib.Nifti1Image(labels, image.affine), path)


# what is broken, the check that names it, its verdict, a word of what was found, and whether a run stops
CASES: dict[str, tuple[Callable[[Path], object], str, str, str, bool]] = {
    "a session is missing": (no_session, "subj01 session 2", "missing", "no betas of session 2", True),
    "HDF5 cut short": (
        lambda r: cut(r / BETAS / "betas_session01.hdf5"),
        "subj01 betas 1", "bad data", "betas_session01.hdf5 is truncated", True,
    ),
    "ROI of another subject": (another_roi, "subj01 ROI", "bad data", "streams.nii.gz", True),
    "HDF5 and NIfTI differ in one number": (
        one_number_differs, "subj01 HDF5 = NIfTI 2", "bad data", "trial 2", False,
    ),
    "a picture without captions": (one_picture_without, "captions", "bad data", "no captions", True),
    "stimuli too short": (
        few_pictures, "stimuli", "bad data", "100 pictures", True,
    ),
    "a label of no stream": (unknown_label, "subj01 ROI", "bad data", "label 9", True),
    "no names of labels": (
        lambda r: (r / CTAB).unlink(), "subj01 ROI", "missing", "streams.mgz.ctab does not exist", True,
    ),
    "betas of another type": (
        floats, "subj01 betas 2", "bad data", "float32", True,
    ),
    "betas all zero": (zeros, "subj01 betas 1", "bad data", "only zeros", True),
    "no design": (
        lambda r: (r / EXPERIMENT / "nsd_expdesign.mat").unlink(),
        "design", "missing", "nsd_expdesign.mat does not exist", True,
    ),
    "a transform cut short": (
        lambda r: cut(r / "nsddata/ppdata/subj01/transforms/lh.white-to-fsaverage.mgz"),
        "subj01 surfaces", "bad data", "lh.white-to-fsaverage.mgz", True,
    ),
    "no NSD at all": (
        lambda r: shutil.rmtree(r / "nsddata"), "NSD root", "missing", "no folder nsddata/", True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_broken_copy_is_named_and_the_launcher_refuses_it_in_the_same_words(
    tree_copy, tmp_path, capsys, case
):
    spoil, check, verdict, word, stops = CASES[case]
    spoil(tree_copy)
    out = tmp_path / "out"
    code, rows = diagnose(capsys, *arguments(tree_copy, out, "--part", "data"))
    assert code == {"bad data": 65, "missing": 69}[verdict]
    found = faults(rows)
    assert check in found
    assert found[check]["verdict"] == verdict
    assert word in found[check]["found"]
    assert found[check]["mend"]
    # what follows from the fault, and nothing else
    assert list(found) == [check]
    if not stops:
        return
    assert launch.main(arguments(tree_copy, out)) == 65
    said = capsys.readouterr().err
    first = next(iter(found.values()))
    for part in ("found", "mend"):
        assert first[part] in said
    assert not out.exists()


def test_weights_are_held_against_their_lock_and_what_is_not_there_is_named(
    tiny_tree, tmp_path, capsys
):
    folder = shutil.copytree(miniature.MODELS / "clip", tmp_path / "models" / "clip")
    files = {}
    for path in folder.iterdir():
        entry = {"repo": "x", "revision": "", "file": path.name, "licence": ""}
        entry |= {"size": path.stat().st_size, "sha256": sha256(path)}
        files[f"clip/{path.name}"] = entry
    (tmp_path / "models" / LOCK).write_text(json.dumps({"files": files}))
    models = ("--part", "models", "--set", f"models.clip={str(folder)!r}")
    given = arguments(tiny_tree, tmp_path / "out", *models)
    code, rows = diagnose(capsys, *given)
    assert code == 0
    assert any("SHA-256 as in the lock" in row["found"] for row in rows)

    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1  # of the same length
    (folder / "model.safetensors").write_bytes(content)
    code, rows = diagnose(capsys, *given)
    assert code == 65
    assert "found SHA-256" in faults(rows)["models.clip"]["found"]
    assert launch.main([word for word in given if word not in ("--part", "models")]) == 65
    assert faults(rows)["models.clip"]["found"] in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

    shutil.rmtree(folder)
    code, rows = diagnose(capsys, *given)
    assert code == 69
    assert list(faults(rows)) == ["models.clip"]


def test_an_image_that_is_none_and_a_folder_that_cannot_be_written(tiny_tree, tmp_path, capsys):
    (file := tmp_path / "x.sif").write_text("<html>not found</html>")
    image = ("--image", str(file), "--executor", "local")
    code, rows = diagnose(
        capsys, *arguments(tiny_tree, tmp_path / "out", *image, "--part", "cluster")
    )
    assert code == 65
    assert "not an Apptainer image" in faults(rows)["image"]["found"]
    assert launch.main(arguments(tiny_tree, tmp_path / "out", *image)) == 65
    assert "not an Apptainer image" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

    out = file / "out"  # root may write anywhere, but not below a file
    with pytest.raises(UsageError, match="cannot be written"):
        checks_machine.writable(out)
    row = next(checks_machine.folder_rows(out))
    assert row.verdict == "bad setting"
    assert launch.main(arguments(tiny_tree, out)) == 2
    assert row.found in capsys.readouterr().err


# --- parts that a test cannot break for real ------------------------------------------------------


def test_room_on_the_disk_is_held_against_the_estimate(tiny_tree, tmp_path):
    settings = config.load(
        settings=(*miniature.places(tiny_tree), "data.sessions=2", "data.subjects=[1]")
    )
    ledger = Ledger(settings, tmp_path / "out")
    cells = [Cell("prepare", 1), Cell("features", 1)]
    waiting = checks_machine.to_run(ledger, cells)
    assert [cell for cell, _ in waiting] == cells
    disk, memory = checks_machine.room_rows(ledger, cells, tmp_path / "out", elsewhere=False)
    assert (disk.verdict, memory.verdict) == ("ok", "ok")
    with pytest.raises(UsageError, match=r"are free, the cells .* about 1e\+06 TB"):
        room.refuse(tmp_path, 1e18)


GPU = {"version": "2.9.1+cu130", "cuda": "13.0", "gpus": ["NVIDIA H100"], "fails": ""}
NONE = {"version": "2.9.1+cpu", "cuda": "", "gpus": [], "fails": ""}


@pytest.mark.parametrize(
    ("wanted", "told", "there", "elsewhere", "seconds", "verdict", "word"),
    [
        ("auto", GPU, 1, False, 9e9, "ok", "on NVIDIA H100: computes"),
        ("cuda", GPU | {"fails": "no kernel image"}, 1, False, 0, "missing", "no kernel image"),
        ("auto", NONE, 1, False, 0, "missing", "sees 0 GPUs, nvidia-smi 1"),
        ("auto", NONE, 0, False, 60, "ok", "on the CPU"),
        ("auto", NONE, 0, False, 9e6, "note", "2,500.0 h"),
        ("cuda", NONE, 0, False, 0, "missing", "sees 0 GPUs"),
        ("cuda", NONE, 0, True, 0, "ok", "the nodes' own"),
        ("cpu", NONE, 1, False, 0, "ok", "not asked for"),
    ],
)
def test_what_torch_sees_is_judged_by_what_is_asked(
    wanted, told, there, elsewhere, seconds, verdict, word
):
    row = checks_machine.torch_row(wanted, told, there, elsewhere, seconds)
    assert row.verdict == verdict
    assert word in row.found


def test_cupy_is_wanted_where_there_is_a_gpu():
    there = {
        "version": "14.0",
        "cuda": 13000,
        "driver": 12040,
        "gpus": 1,
        "fails": "driver too old",
    }
    assert checks_machine.cupy_row("auto", there, 1, False).verdict == "missing"
    row = checks_machine.cupy_row("auto", there | {"fails": ""}, 1, False)
    assert (row.verdict, "CUDA 13.0, driver's 12.4" in row.found) == ("ok", True)
    assert checks_machine.cupy_row("auto", {}, 1, False).verdict == "note"
    assert checks_machine.cupy_row("cuda", {}, 0, False).verdict == "missing"


def test_the_worst_row_decides_the_exit_code():
    def code(*words: str) -> int:
        return checks.exit_code(checks.Row("", word, "") for word in words)

    assert code("ok", "note") == 0
    assert code("ok", "bad setting", "missing", "bad data") == 65
    assert code("ok", "bad setting", "missing") == 69
    assert code("bad setting", "note") == 2


def test_libraries_that_fail_are_told(tmp_path):
    """A Python whose nsdcap is of another version, cannot import all, or does not start."""
    mend = "mend it"

    def told(said: str) -> str:
        (script := tmp_path / "python").write_text(f"#!/bin/sh\necho '{said}'\n")
        script.chmod(0o755)
        with pytest.raises(checks_machine.MissingError) as caught:
            checks_machine.installation([str(script)], "the image", mend)
        assert str(caught.value).endswith("; mend it")
        return str(caught.value)

    from nsdcap import __version__

    assert "expected" in told('{"nsdcap": "0.0.1"}')
    failed = {"nsdcap": __version__, "failed": {"torch": "ImportError: libcuda"}}
    assert "torch: ImportError: libcuda" in told(json.dumps(failed))
    assert "ended with 0" in told("")


def test_wrong_options_exit_2(capsys):
    assert doctor.main(["--set", "decode.gian=cv"]) == 2
    assert "did you mean decode.gain" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        doctor.main(["--force"])  # which means nothing here
    assert stop.value.code == 2
