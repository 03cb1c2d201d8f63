"""A reader during a write, clocks that differ, and folders that may only be read."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from killing import launched
from small_runs import check, copy_without

from nsdcap import config, jobs, launch, miniature, status, submit, survey, weights
from nsdcap.cells import Ledger
from nsdcap.jobs import Array
from nsdcap.paths import Cell, artefact, atomic, config_file, failure, sidecar, write_json

pytestmark = pytest.mark.usefixtures("one_thread")
KERNEL = Cell("kernel", 1)


# --- a reader during a write ----------------------------------------------------------------------


@contextmanager
def going_on(work: Callable[[], object]) -> Iterator[None]:
    """Another process that does ``work`` again and again while the block runs."""
    pid = os.fork()
    if not pid:
        while True:
            try:
                work()
            except BaseException:
                os._exit(1)
    try:
        yield
        assert os.waitpid(pid, os.WNOHANG) == (0, 0)  # it is still at it
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def write_hdf5(path: Path, number: int) -> None:
    with atomic(path) as target, h5py.File(target, "w") as file:
        for name in ("a", "b"):
            file[name] = np.full(40_000, number)


def read_hdf5(path: Path) -> set[int]:
    with h5py.File(path) as file:
        return set(file["a"][:].tolist()) | set(file["b"][:].tolist())


def write_text(path: Path, number: int) -> None:
    write_json(path, [number] * 20_000)


def read_text(path: Path) -> set[int]:
    return set(json.loads(path.read_text()))


def write_folder(path: Path, number: int) -> None:
    with atomic(path) as target:
        target.mkdir()
        for name in "abc":
            (target / name).write_text(f"{number}\n" * 2000)


def read_folder(path: Path) -> set[int]:
    """By its handle: by names, files of two folders may be read, each of them whole."""
    folder = os.open(path, os.O_RDONLY)
    try:
        found: set[int] = set()
        for name in "abc":
            try:
                with open(name, opener=lambda n, flags: os.open(n, flags, dir_fd=folder)) as file:
                    found |= set(map(int, file.read().split()))
            except FileNotFoundError:  # the old one is being removed
                continue
        return found
    finally:
        os.close(folder)


@pytest.mark.parametrize(
    ("write", "read"),
    [(write_hdf5, read_hdf5), (write_text, read_text), (write_folder, read_folder)],
    ids=["HDF5", "JSON", "folder"],
)
def test_each_read_is_wholly_old_or_wholly_new(tmp_path, write, read):
    path, number = tmp_path / "x", [0]
    write(path, 0)

    def again() -> None:
        number[0] += 1
        write(path, number[0])

    with going_on(again):
        seen = []
        while len(seen) < 300 or len({*map(tuple, seen)}) < 5:
            seen.append(tuple(read(path)))
    assert all(len(found) <= 1 for found in seen)
    numbers = [found[0] for found in seen if found]
    assert numbers == sorted(numbers)


def test_status_of_a_run_that_is_being_made_again(small_run, tmp_path, capsys):
    arguments, done = small_run
    out = Path(shutil.copytree(done, tmp_path / "out", copy_function=os.link))
    words = [*arguments, "--stage", "kernel", "--out", str(out), "--force"]

    def again() -> None:
        os.dup2(os.open(tmp_path / "said", os.O_WRONLY | os.O_CREAT), 1)
        assert launch.main(words) == 0

    seen = set()
    with going_on(again):
        end = time.monotonic() + 20
        while not {"done", "missing"} <= seen:
            assert time.monotonic() < end
            assert status.main([str(out), "--json"]) == 75  # aggregate is missing
            told = json.loads(capsys.readouterr().out)
            (cell,) = [one for one in told["cells"] if one["cell"] == "kernel subj01"]
            seen.add(cell["state"])
            others = {
                one["state"] for one in told["cells"] if one["stage"] not in ("aggregate", "kernel")
            }
            assert others == {"done"}
            with h5py.File(
                artefact(out, KERNEL)
            ) as file:  # whole at any time, with its sidecar or not
                assert file.keys() == h5py.File(artefact(done, KERNEL)).keys()


# --- clocks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("hours", [-9000, 30], ids=["of last year", "of tomorrow"])
def test_files_whose_times_are_far_off_stay_done(small_run, tmp_path, capsys, hours):
    arguments, done = small_run
    out = Path(shutil.copytree(done, tmp_path / "out"))
    when = time.time() + 3600 * hours
    for number, path in enumerate(sorted(out.rglob("*"))):
        os.utime(path, (when - number, when - number))  # sidecars before their artefacts, too
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    for stage in ("prepare", "kernel", "encode"):
        assert launch.main([*arguments, "--stage", stage, "--out", str(out)]) == 0
        count = len(list((out / stage).glob("*.h5")))
        assert f"{count} of {count} cells done, {count} of them before" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_a_clock_that_is_set_back_while_a_cell_runs(small_run, tmp_path):
    """By a day at every look: nothing takes less than no time, and the result is the same."""
    arguments, done = small_run
    out = copy_without(KERNEL, done, tmp_path / "out")
    words = [*arguments, "--stage", "kernel", "--out", str(out)]
    ended = launched(words, out, back=True)
    assert ended.code == 0, ended.said
    assert 0 <= json.loads(sidecar(out, KERNEL).read_text())["seconds"] < 60
    check(KERNEL, out, done)


@pytest.mark.parametrize("hours", [-5, 5], ids=["slow", "fast"])
def test_what_a_job_left_counts_as_its_own_whatever_the_launchers_clock(
    tiny_tree, tmp_path, monkeypatch, hours
):
    """Times of files are the file server's; a note or a result of before the job is not the job's."""
    places = (*miniature.places(tiny_tree), "data.sessions=2", "data.subjects=[1]")
    ledger = Ledger(config.load(miniature.SETTINGS, settings=places), tmp_path)
    cell, real = Cell("prepare", 1), time.time
    monkeypatch.setattr(time, "time", lambda: real() + 3600 * hours)
    array = Array(
        "nsdcap-prepare-a", "prepare", (cell,), "", False, time.time(), (1,), (0,), (0,), ("x",)
    )
    planned = submit.Planned(array, submit.Resources(), [])
    write_json(failure(tmp_path, cell), "before")
    write_json(sidecar(tmp_path, cell), {})
    time.sleep(0.02)
    submit.hand_all(
        ledger, [replace(planned, needs=[submit.plan.Need((0,), ())])], lambda *_: "41", {}
    )
    (task,) = jobs.tasks(tmp_path, [], jobs.read(tmp_path)).values()
    assert not survey._left(ledger, task)
    assert not survey._made(ledger, task)
    write_json(failure(tmp_path, cell), "after")
    write_json(sidecar(tmp_path, cell), {})
    assert survey._left(ledger, task)
    assert survey._made(ledger, task)


# --- folders that may only be read ----------------------------------------------------------------


@contextmanager
def read_only(folder: Path, at: Path) -> Iterator[Path]:
    """The folder once more, or in its own place, where even root cannot write."""
    at.mkdir(exist_ok=True)
    done = subprocess.run(["mount", "--bind", str(folder), str(at)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no folder may be mounted here: {done.stderr.strip()}")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(at)], check=True)
        with pytest.raises(OSError, match="Read-only"):
            (at / "x").touch()
        yield at
    finally:
        subprocess.run(["umount", "--lazy", str(at)], check=True)


def test_data_and_models_that_may_only_be_read(small_run, tiny_tree, tmp_path):
    """Each is mounted over itself, so that the settings stay the same."""
    arguments, done = small_run
    with read_only(tiny_tree, tiny_tree), read_only(miniature.MODELS, miniature.MODELS):
        for cell in (Cell("prepare", 1), Cell("caption", 1)):
            out = copy_without(cell, done, tmp_path / cell.stage)
            words = [*arguments, "--stage", cell.stage, "--out", str(out)]
            ended = launched(words, out)
            assert ended.code == 0, ended.said
            check(cell, out, done)


def test_a_lock_of_models_that_may_only_be_read(tmp_path):
    """What was computed of them is not remembered, and that is all."""
    models = Path(shutil.copytree(miniature.MODELS / "clip", tmp_path / "models" / "clip")).parent
    files = [path for path in models.rglob("*") if path.is_file()]
    entries = {
        str(path.relative_to(models)): weights.Entry(
            "a/b", "0" * 40, path.name, path.stat().st_size, weights.sha256(path), "mit"
        )
        for path in files
    }
    weights.write_lock(models, entries)
    with read_only(models, tmp_path / "ro") as there:
        weights.verify("models.clip", str(there / "clip"))
    assert not (models / weights.SEEN).exists()
    weights.verify("models.clip", str(models / "clip"))
    assert (models / weights.SEEN).exists()


def test_a_run_that_may_only_be_read(small_run, tmp_path, capsys):
    arguments, done = small_run
    with read_only(done, tmp_path / "out") as out:
        assert launch.main([*arguments, "--stage", "kernel", "--out", str(out)]) == 2
        said = capsys.readouterr().err.splitlines()
        assert len(said) == 1
        assert f"--out {out}: cannot be written (Read-only file system)" in said[0]
        assert status.main([str(out), "--json"]) == 75
        told = json.loads(capsys.readouterr().out)
        assert {one["state"] for one in told["cells"]} == {"done", "missing"}
    assert config_file(done).exists()


def test_a_report_of_a_run_that_may_only_be_read(drawn_run, tmp_path, capsys):
    from nsdcap import report

    with read_only(drawn_run, tmp_path / "out") as out:
        target = tmp_path / "elsewhere" / "report.html"
        assert report.main([str(out), "--output", str(target)]) == 0
        assert target.stat().st_size > 1e5
        capsys.readouterr()
        assert report.main([str(out)]) == 2
        assert "cannot be written (Read-only file system)" in capsys.readouterr().err
