"""kill -9 at any step of any stage, then the same command: it finishes, and the bytes are the same."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from killing import launched
from processes import gone
from small_runs import check, copy_without

from nsdcap import launch, lock
from nsdcap.paths import Cell, artefact, parts_folder, place

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no /proc on this system"),
]
CELLS = [
    Cell("prepare", 1), Cell("features"), Cell("decode", 1), Cell("caption", 1), Cell("reconstruct", 1),
    Cell("compare", 1), Cell("kernel", 1), Cell("encode", 1), Cell("encode", 1, 3),
]  # fmt: skip
PART = r"\.parts/[^/]*\.part"
# one after the other, each where the kill before has left the run: {0} is the artefact
STEPS = [
    r"rename to lock\.json$",
    r"rename to config\.toml$",
    r"sync .*\.parts/\.signature",
    rf"open .*{PART}\..*partial",
    rf"rename to .*{PART}$",
    rf"renamed to .*{PART}$",
    "size of the artefact",  # in the middle of a write
    "HDF5 (write|dataset) .*{0}",
    "rename to {1}$",
    "renamed to {1}$",
    r"rename to {1}\.done\.json$",
    r"renamed to {1}\.done\.json$",
    r"remove .*\.parts/signature$",
    r"remove .*\.part$",
    r"remove .*\.parts$",
    "remove lock.json$",
]
# what is the same for all: one stage stands for them
COMMON = {
    r"rename to lock\.json$", r"rename to config\.toml$",
    r"sync .*\.parts/\.signature", rf"open .*{PART}\..*partial",
    r"remove .*\.parts/signature$", r"remove .*\.parts$", "remove lock.json$",
}  # fmt: skip
LACKS = {"caption": ("HDF5 (write|dataset) .*{0}",)}  # JSON


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_a_stage_that_is_killed_at_every_kind_of_step(small_run, tmp_path, cell):
    """Each kill falls into the run that goes on after the one before."""
    arguments, done = small_run
    out = copy_without(cell, done, tmp_path / "out")
    words = [*arguments, "--stage", cell.stage, "--out", str(out)]
    name = place(cell).partition("/")[2]
    for step in STEPS:
        if step in LACKS.get(cell.stage, ()) or (step in COMMON and cell.stage != "kernel"):
            continue
        if step.startswith("size"):
            size = artefact(done, cell).stat().st_size // 2
            ended = launched(words, out, file_size=size)
            assert ended.code == -signal.SIGXFSZ, ended.said
        else:
            kill = step.format(name.replace(".", r"\."), place(cell).replace(".", r"\."))
            ended = launched(words, out, kill)
            assert ended.code == -signal.SIGKILL, (step, ended.said)
    ended = launched(words, out)
    assert ended.code == 0, ended.said
    check(cell, out, done)


@pytest.mark.byhand
@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_a_stage_that_is_killed_at_one_step_in_seven(small_run, tmp_path, cell):
    arguments, done = small_run
    end, number = 2, 1
    while number < end:
        out = copy_without(cell, done, tmp_path / f"out{number}")
        words = [*arguments, "--stage", cell.stage, "--out", str(out)]
        ended = launched(words, out, number)
        if number == 1:
            whole = copy_without(cell, done, tmp_path / "whole")
            end = len(launched([*words, "--out", str(whole)], whole).steps)
        assert ended.code == -signal.SIGKILL, (number, ended.said)
        again = launched(words, out)
        assert again.code == 0, (ended.steps[-1], again.said)
        check(cell, out, done)
        shutil.rmtree(out)
        number += 7


def test_a_kill_before_the_sidecar_and_the_settings_of_before(small_run, tmp_path, capsys):
    """A result made with other settings must not pass for theirs, whose sidecar was there."""
    arguments, done = small_run
    cell, out = Cell("kernel", 1), tmp_path / "out"
    shutil.copytree(done, out, copy_function=os.link)
    words = [*arguments, "--stage", "kernel", "--out", str(out)]
    other = [*words, "--set", "ridge.folds=4"]
    ended = launched(other, out, r"renamed to kernel/subj01\.h5$")
    assert ended.code == -signal.SIGKILL
    assert artefact(out, cell).read_bytes() != artefact(done, cell).read_bytes()
    assert launch.main(words) == 0
    assert "1 of 1 cells done, 0 of them before" in capsys.readouterr().out
    check(cell, out, done)


# --- other processes ------------------------------------------------------------------------------


def started(words: list[str], out: Path) -> subprocess.Popen:
    with (out / "said.txt").open("ab") as said:
        return subprocess.Popen(
            [sys.executable, "-m", "nsdcap.launch", *words, "--executor", "local"],
            stdout=said, stderr=said, start_new_session=True,
        )  # fmt: skip


def below(pid: int) -> list[int]:
    """All processes that a process has started, directly or not."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == pid:
            found += [int(folder.name), *below(int(folder.name))]
    return found


def held_by(out: Path, process: subprocess.Popen) -> bool:
    holder = lock.read(out)
    return holder is not None and holder.pid == process.pid


def until(condition, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_pool_that_is_killed_whole_or_but_its_launcher(small_run, tmp_path):
    """Where the launcher alone is killed, the cells end too: they would go on beside those of the next."""
    arguments, done = small_run
    cell = Cell("encode", 1, 3)
    out = copy_without(cell, done, tmp_path / "out")
    words = [*arguments, "--stage", "encode", "--out", str(out)]
    process = started(words, out)
    until(lambda: list(parts_folder(out, cell).glob("*.part")))
    tasks = below(process.pid)
    assert len(tasks) >= 2
    process.kill()
    process.wait()
    until(lambda: all(map(gone, tasks)), 20)
    assert held_by(out, process)
    rng = np.random.default_rng(8)
    process = started(words, out)
    until(lambda: held_by(out, process))
    time.sleep(rng.uniform(1, 6))
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert started(words, out).wait(300) == 0, (out / "said.txt").read_text()
    (out / "said.txt").unlink()
    for name in ("jobs", "log"):
        shutil.rmtree(out / name)
    check(cell, out, done)
