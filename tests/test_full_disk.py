"""A disk that is full, on a real small file system: one error, nothing lost, and the same command goes on.

Where none may be mounted (not root, or in a container) these are skipped; a limit to the size of files
stands in for it below, for everybody.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from killing import launched
from small_runs import check, copy_without

from nsdcap import miniature
from nsdcap.errors import DiskError
from nsdcap.jobs import Task, cause
from nsdcap.miniature import tree
from nsdcap.paths import Cell, artefact, disk_error, parts_folder, write_json

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory) -> Iterator[Path]:
    """The folder of a file system of 80 MB."""
    folder = tmp_path_factory.mktemp("disk")
    command = ["mount", "-t", "tmpfs", "-o", "size=80m,nr_inodes=2k", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no small file system may be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def room(disk: Path, size: int) -> Iterator[None]:
    """Leave so many bytes free on a disk."""
    ballast = disk / "ballast"
    with ballast.open("wb") as file:
        taken = shutil.disk_usage(disk).free - size
        if taken > 0:
            os.posix_fallocate(file.fileno(), 0, taken)
        yield
    ballast.unlink()


def copied(done: Path, disk: Path, cell: Cell, links: Path) -> Path:
    """A run without a cell on the disk; nothing else is there."""
    for left in disk.iterdir():
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    return Path(shutil.copytree(copy_without(cell, done, links), disk / "out"))


CASES = [
    (Cell("prepare", 1), 0.3), (Cell("prepare", 1), 1.5), (Cell("features"), 1.4), (Cell("decode", 1), 1.2),
    (Cell("caption", 1), 0.9), (Cell("kernel", 1), 1.3), (Cell("encode", 1), 0.5), (Cell("encode", 1), 1.5),
]  # fmt: skip


@pytest.mark.parametrize(("cell", "share"), CASES, ids=[f"{c} {share}" for c, share in CASES])
def test_a_stage_on_a_full_disk(small_run, small_disk, tmp_path, cell, share):
    """There is room for a share of its result and parts; the largest stages' HDF5 is in chunks, where HDF5
    itself would die."""
    arguments, done = small_run
    out = copied(done, small_disk, cell, tmp_path / "out")
    before = {path.relative_to(out) for path in out.rglob("*")}
    words = [*arguments, "--stage", cell.stage, "--out", str(out), "--no-room-check"]
    with room(small_disk, 16384 + int(share * artefact(done, cell).stat().st_size)):
        ended = launched(words, tmp_path / "out", said=tmp_path / "said")
    assert ended.code == 74, ended.said
    (told,) = [line for line in ended.said.splitlines() if "FAILED" in line]
    assert f"{out}/{cell.stage}/" in told
    assert "cannot be written (No space left on device; 0." in told
    assert told.endswith("give the same command: it goes on after what is finished")
    assert "Traceback" not in ended.said
    left = {path.relative_to(out) for path in out.rglob("*")} - before
    parts = parts_folder(out, cell).relative_to(out)
    beside = artefact(out, cell).relative_to(out)
    assert all(
        str(name) == "config.toml" or name == parts or parts in name.parents
        or name == beside.with_name(beside.name + ".failed.txt") for name in left
    ), left  # fmt: skip
    assert not [name for name in left if name.suffix == ".partial"]
    again = launched(words, tmp_path / "out", said=tmp_path / "said")
    assert again.code == 0, again.said
    check(cell, out, done)


@pytest.mark.parametrize("free", [0, 4096, 12288, 40960])
def test_a_pool_on_a_full_disk(small_run, small_disk, tmp_path, free):
    """The lock, the settings, the logs and what submitit writes lie there, too."""
    arguments, done = small_run
    cell = Cell("kernel", 1)
    out = copied(done, small_disk, cell, tmp_path / "out")
    words = [*arguments, "--stage", "kernel", "--out", str(out), "--executor", "local"]
    words.append("--no-room-check")
    with room(small_disk, free):
        ended = launched(words, tmp_path / "out", said=tmp_path / "said")
    assert ended.code == 74, ended.said
    assert "No space left on device" in ended.said
    assert "Traceback" not in ended.said
    assert not list(out.rglob("*.partial"))
    again = launched(words, tmp_path / "out", said=tmp_path / "said")
    assert again.code == 0, again.said
    for name in ("jobs", "log"):
        shutil.rmtree(out / name)
    check(cell, out, done)


def test_the_miniature_on_a_full_disk(small_disk, monkeypatch):
    out = small_disk / "miniature"
    monkeypatch.setattr(tree, "write_tree", partial(tree.write_tree, subjects=(1,), sessions=1))
    with room(small_disk, 2_000_000), pytest.raises(DiskError, match="nsd: cannot be written"):
        miniature.make(out / "nsd")
    assert list(out.iterdir()) == []


def test_no_more_files_and_a_disk_that_is_read_only_are_told(small_disk):
    out = small_disk / "files"
    out.mkdir()
    for number in range(3000):
        try:
            (out / str(number)).touch()
        except OSError:
            break
    with pytest.raises(DiskError, match="no more files can be made there"):
        write_json(out / "a.json", {})
    for path in out.iterdir():
        path.unlink()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    try:
        with pytest.raises(DiskError, match=r"Read-only file system.*give another folder"):
            write_json(out / "a.json", {})
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)


# --- without a file system ------------------------------------------------------------------------


def test_files_that_may_not_grow_are_told_by_every_kind_of_writer(small_run, tmp_path):
    """``ulimit -f``, whose signal Python ignores: EFBIG comes out of the same calls as ENOSPC."""
    arguments, done = small_run
    cell = Cell("prepare", 1)
    out = copy_without(cell, done, tmp_path / "out")
    words = [*arguments, "--stage", "prepare", "--out", str(out)]
    for size in (1_000_000, 9_000_000):  # a part; the result
        ended = launched(words, out, file_size=size, deadly=False)
        assert ended.code == 74, ended.said
        assert "cannot be written (File too large" in ended.said
        assert not list(out.rglob("*.partial"))
    assert launched(words, out).code == 0
    check(cell, out, done)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(errno.EDQUOT, "x"), "quota"),
        (OSError(errno.EIO, "x"), "read or written (Input/output error"),
        (OSError(errno.EROFS, "x"), "Read-only"),
        (RuntimeError("(file write failed: filename = '/b/c.h5', errno = 28, x)"), "/b/c.h5: cannot"),
        (PermissionError(errno.EACCES, "x", "/a/b"), "/a/b/c.h5: cannot be written (Permission denied"),
        (PermissionError(errno.EACCES, "x", "/elsewhere/b"), None),
        (FileNotFoundError(errno.ENOENT, "x", "/a/b"), None),
        (ValueError("x"), None),
    ],
)  # fmt: skip
def test_what_a_disk_says(error, says):
    found = disk_error(Path("/a/b/c.h5"), error)
    assert (found is None) if says is None else (says in str(found))
    if found is not None:
        assert isinstance(found, OSError)
        assert disk_error(Path("/a/b/d.h5"), found) is found


def test_a_task_that_found_the_disk_full_is_submitted_again_by_the_same_command(tmp_path):
    """It was not at fault: see ``plan.may_retry``."""
    note = "nsdcap.errors.DiskError: a.h5: cannot be written (No space left on device; 0.0 MB are free)"
    task = Task(Cell("kernel", 1), "9", 0.0, tmp_path / "log.err")
    assert cause(task, note)[0] == "disk"
    task.log.write_text(f"Traceback (most recent call last):\n  x\n{note}\n")
    assert cause(task)[0] == "disk"
