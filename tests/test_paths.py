"""Artefacts are whole or not at all."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nsdcap.paths import Cell, artefact, atomic


def test_every_cell_has_its_own_file(tmp_path):
    cells = [Cell("features"), Cell("aggregate")]
    cells += [Cell(stage, s) for stage in ("prepare", "features", "caption") for s in (1, 2)]
    cells += [Cell("encode", s, layer) for s in (1, 2) for layer in (None, 0, 1)]
    assert len({artefact(tmp_path, cell) for cell in cells}) == len(cells)


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a" / "b.txt"
    with atomic(path) as partial:
        partial.write_text("old")
        assert not path.exists()
    with pytest.raises(TypeError), atomic(path) as partial:
        partial.write_bytes(b"half" + partial)
    with pytest.raises(IsADirectoryError), atomic(path) as partial:
        partial.mkdir(), partial.write_text("")
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir()] == ["b.txt"]


def test_a_folder_takes_the_place_of_a_folder(tmp_path):
    path = tmp_path / "report"
    for text in ("one", "two"):
        with atomic(path) as partial:
            partial.mkdir()
            (partial / f"{text}.txt").write_text(text)
    assert [p.name for p in path.iterdir()] == ["two.txt"]
    assert [p.name for p in tmp_path.iterdir()] == ["report"]


def test_what_a_killed_process_left_is_swept_away(tmp_path):
    path = tmp_path / "a.h5"
    code = (
        "import os, sys, signal; from pathlib import Path; from nsdcap.paths import atomic\n"
        "with atomic(Path(sys.argv[1])) as partial:\n"
        "    partial.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(path)])
    assert killed.returncode == -9
    assert [p.name.endswith(".partial") for p in tmp_path.iterdir()] == [True]
    other = tmp_path / ".a.h5.elsewhere.1.partial"  # another host's may be alive
    other.write_text("")
    with atomic(path) as partial:
        partial.write_text("whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == [other.name, "a.h5"]
    assert path.read_text() == "whole"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc on this system")
def test_a_zombie_and_a_number_given_out_again_are_gone_a_living_process_is_not(tmp_path):
    path = tmp_path / "a.h5"
    code = (
        "import os, sys; from pathlib import Path; from nsdcap.paths import atomic\n"
        "with atomic(Path(sys.argv[1])) as partial:\n"
        "    partial.write_text('half'); print(partial, flush=True); sys.stdin.readline(); os._exit(1)"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code, str(path)], **pipes) as other:
        begun = Path(other.stdout.readline().strip())
        name = re.sub(r"-\d+\.partial$", "-1.partial", begun.name)  # began at another time
        (tmp_path / name).write_text("")
        with atomic(path) as partial:
            partial.write_text("whole")
        assert sorted(p.name for p in tmp_path.iterdir()) == [begun.name, "a.h5"]
        with atomic(path) as partial:
            partial.write_text("whole")
            other.stdin.close()  # it ends now, after the sweep at the beginning, and nobody waits for it
            os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)
        assert [p.name for p in tmp_path.iterdir()] == ["a.h5"]
