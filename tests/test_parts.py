"""A cell that is killed goes on after its finished parts, and its result is the same to the byte."""

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
from small_runs import times, without

from nsdcap import launch, parts
from nsdcap.paths import Cell, artefact, parts_folder, sidecar

CELL = Cell("decode", 1)


# --- a part ---------------------------------------------------------------------------------------


def never() -> dict:
    raise AssertionError("computed again")


def test_a_part_comes_back_bit_for_bit(tmp_path):
    rng = np.random.default_rng(0)
    values = {
        "fortran": np.asfortranarray(rng.normal(size=(5, 7))),
        "strided": rng.normal(size=(6, 8)).astype("f4")[::2, 1:],
        "bytes": rng.integers(0, 255, (2, 3, 4, 3), dtype="u1"),
        "odd": np.array([np.nan, -0.0, np.inf, 5e-324]),
        "empty": np.empty((0, 3), "f4"),
        "number": 0.1 + 0.2,
        "texts": ["a red car", "zwei Bäume", ""],
    }
    first = parts.kept(tmp_path, CELL, "a", lambda: values)
    again = parts.kept(tmp_path, CELL, "a", never)
    assert list(first) == list(again) == list(values)
    for name, value in values.items():
        for found in (first[name], again[name]):
            expected = np.asarray(value)
            assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
            assert found.tobytes() == expected.tobytes()  # both in C order
    assert again["texts"].tolist() == values["texts"]


@pytest.mark.parametrize("left", [0, 10, 0.5, -1], ids=["empty", "head", "half", "all but a byte"])
def test_a_part_that_is_cut_short_is_computed_anew(tmp_path, left):
    values = {"x": np.arange(5000.0), "y": np.arange(3)}
    parts.kept(tmp_path, CELL, "a", lambda: values)
    (file,) = parts_folder(tmp_path, CELL).glob("*.part")
    whole = file.read_bytes()
    file.write_bytes(whole[: int(left * len(whole)) if 0 < left < 1 else left])
    assert parts.found(tmp_path, CELL, "a") is None
    found = parts.kept(tmp_path, CELL, "a", lambda: values)
    assert np.array_equal(found["x"], values["x"])
    assert np.array_equal(parts.kept(tmp_path, CELL, "a", never)["x"], values["x"])


def test_parts_of_other_settings_and_of_a_forced_run_are_thrown_away(tmp_path):
    def begin(signature: str, force: bool = False) -> int:
        return parts.begin(tmp_path, CELL, signature, force)

    parts.keep(tmp_path, CELL, "of no run", {"x": 1})
    assert begin("one") == 0
    parts.keep(tmp_path, CELL, "a", {"x": 1})
    parts.keep(tmp_path, CELL, "b", {"x": 2})
    assert begin("one") == 2
    assert begin("two") == 0
    parts.keep(tmp_path, CELL, "a", {"x": 3})
    assert begin("two", force=True) == 0
    assert parts.found(tmp_path, CELL, "a") is None
    parts.forget(tmp_path, CELL)
    parts.forget(tmp_path, CELL)
    assert not parts_folder(tmp_path, CELL).exists()


def test_a_signal_that_raises_anywhere_leaves_a_whole_part_or_none(tmp_path):
    """submitit's handlers raise SystemExit, and UncompletedJobError, between any two instructions."""
    error: type[BaseException] = SystemExit

    def stop(*_: object) -> None:
        raise error

    before = signal.signal(signal.SIGALRM, stop)
    rng, values = np.random.default_rng(1), {"x": np.arange(20000.0), "t": ["a", "b"]}
    stopped = 0
    try:
        for number in range(300):
            error = (SystemExit, RuntimeError)[number % 2]
            name = f"part {number}"
            try:
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-5, 3e-3))
                parts.kept(tmp_path, CELL, name, lambda: values)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except error:
                stopped += 1
            if (parts_folder(tmp_path, CELL) / f"{name}.part").exists():
                assert (
                    parts.kept(tmp_path, CELL, name, never)["x"].tobytes() == values["x"].tobytes()
                )
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert 10 < stopped < 300


# --- every stage ----------------------------------------------------------------------------------


def kill_after(name: str, cell: Cell, arguments: list[str], out: Path) -> None:
    """Run a stage in a process that is killed as soon as the part ``name`` is there."""
    command = [sys.executable, "-m", "nsdcap.launch", *arguments]
    wanted = parts_folder(out, cell) / f"{name}.part"
    with (out / "said.txt").open("wb") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said)
        while process.poll() is None and not wanted.exists():
            time.sleep(0.001)
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL, (out / "said.txt").read_text()
    assert wanted.exists()
    assert not sidecar(out, cell).exists()


STAGES = [
    (Cell("prepare", 1), "session_1", ()),
    (Cell("features"), "16-32", ()),
    (Cell("decode", 1), "c_256-512", ()),
    (Cell("decode", 1), "c_0-256", ("decode.alpha=feature",)),
    (Cell("caption", 1), "brain_16-32", ()),
    (Cell("reconstruct", 1), "10-20", ()),
    (Cell("kernel", 1), "whole", ()),
    (Cell("encode", 1), "z_v", ()),
    (Cell("encode", 1, 3), "z_B_mid", ()),
]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    ("cell", "part", "settings"), STAGES, ids=[f"{cell} {part}" for cell, part, _ in STAGES]
)
def test_a_killed_cell_goes_on(small_run, tmp_path, monkeypatch, capsys, cell, part, settings):
    arguments, done = small_run
    out = without(cell, done, tmp_path / "out")
    again = [*arguments, "--stage", cell.stage, "--out", str(out)]
    for setting in settings:
        again += ["--set", setting]
    expected = artefact(done, cell).read_bytes()
    if settings:
        assert launch.main(again) == 0
        expected = artefact(out, cell).read_bytes()
        artefact(out, cell).unlink()
        sidecar(out, cell).unlink()
    kill_after(part, cell, again, out)
    at_kill, at_end = times(cell, out), {}

    forget = parts.forget
    monkeypatch.setattr(parts, "forget", lambda *a: (at_end.update(times(cell, out)), forget(*a)))
    capsys.readouterr()
    assert launch.main(again) == 0
    said = capsys.readouterr().out
    assert f"{cell}: goes on after {len(at_kill)} finished parts" in said
    assert at_kill.items() <= at_end.items()  # none was written again
    assert artefact(out, cell).read_bytes() == expected
    assert not parts_folder(out, cell).exists()
    if part.startswith("c_"):  # all of z_v was there
        assert "c: errors in the" in said
        assert "z_v: errors in the" not in said


@pytest.mark.usefixtures("one_thread")
def test_a_new_setting_or_force_begins_anew(small_run, tmp_path, capsys):
    arguments, done = small_run
    cell = Cell("encode", 1)
    out = without(cell, done, tmp_path / "killed")
    kill_after("z_v", cell, [*arguments, "--stage", "encode", "--out", str(out)], out)
    for extra in (["--set", "encode.nulls=500"], ["--force"]):
        copy = Path(shutil.copytree(out, tmp_path / extra[0], copy_function=os.link))
        stage = [*arguments, "--stage", "encode", "--out", str(copy), *extra]
        capsys.readouterr()
        assert launch.main(stage) == 0
        assert "goes on after" not in capsys.readouterr().out
        assert not parts_folder(copy, cell).exists()
        same = artefact(copy, cell).read_bytes() == artefact(done, cell).read_bytes()
        assert same == (extra == ["--force"])


def test_parts_of_a_cell_that_is_done_are_removed(small_run, tmp_path, capsys):
    """They stay where a process is killed between the sidecar and their removal."""
    arguments, done = small_run
    cell, out = Cell("kernel", 1), tmp_path / "out"
    shutil.copytree(done, out, copy_function=os.link)
    parts.keep(out, cell, "whole", {"x": 1})
    assert launch.main([*arguments, "--stage", "kernel", "--out", str(out)]) == 0
    assert "1 of 1 cells done, 1 of them before" in capsys.readouterr().out
    assert not parts_folder(out, cell).exists()
