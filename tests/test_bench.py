"""The benchmarks' command lines: what they explain, refuse, and leave behind. Their figures are no test's."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# as where a package is not installed
WITHOUT = """
import runpy, sys
sys.modules[sys.argv[1]] = None
sys.argv = sys.argv[2:]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def bench(name: str, *arguments: str, without: str = "") -> subprocess.CompletedProcess:
    file = str(ROOT / "hpc" / "bench" / name)
    start = ["-c", WITHOUT, without] if without else []
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *start, file, *arguments], capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": path, "COLUMNS": "200"},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "arguments", "missing", "told"),
    [
        ("ridge.py", ["--quick"], "himalaya", "ridge.py needs himalaya: pip install '.[test]'"),
        ("ridge.py", ["--quick", "--gpu"], "cupy", "ridge.py needs cupy: pip install '.[cuda12]'"),
        ("permutation.py", ["--quick", "--gpu"], "cupy", "permutation.py needs cupy: pip install"),
    ],
)
def test_without_what_it_compares_with_it_ends_with_one_line(
    name, arguments, missing, told
) -> None:
    done = bench(name, *arguments, without=missing)
    assert done.returncode == 1
    assert done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith(told)


@pytest.mark.parametrize(
    ("name", "arguments", "told"),
    [
        ("stream.py", ["{tmp}", "--voxels", "0"], "--voxels: found 0, expected a whole number, 1 at"),
        ("stream.py", ["{tmp}", "--targets", "4"], "--targets: found 4, expected a whole number, 8 at"),
        ("stream.py", ["{tmp}/file/within"], "FOLDER: .*Not a directory"),
        ("permutation.py", ["--voxels", "0"], "--voxels: found 0, expected a whole number, 1 at least"),
        ("permutation.py", ["--nulls", "1.5"], "--nulls: found 1.5, expected a whole number, 1 at"),
        ("ridge.py", ["--pictures", "4"], "--pictures: found 4, expected a whole number, 10 at least"),
    ],
)  # fmt: skip
def test_sizes_that_cannot_be_are_refused(name, arguments, told, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = bench(name, *(argument.format(tmp=tmp_path) for argument in arguments))
    assert done.returncode == 2
    assert re.search(told, done.stderr.splitlines()[-1]), done.stderr
    assert "Traceback" not in done.stderr


def test_help_explains_the_figures() -> None:
    for name, words in (
        ("ridge.py", ["same_alpha", "best_peer", "scikit-learn\nruns for decode and encode"]),
        ("permutation.py", ["ratio_per_null", "scaled to --nulls"]),
        ("stream.py", ["removed at the end unless --keep", "ratio_vs_larger"]),
    ):
        told = bench(name, "--help").stdout
        for word in words:
            assert word in told


def test_the_loops_time_says_that_it_is_extrapolated() -> None:
    sizes = ["--pictures", "40", "--voxels", "30", "--rounds", "1", "--nulls", "100"]
    (line,) = (
        line
        for line in bench("permutation.py", *sizes, "--loop-nulls", "7").stdout.splitlines()
        if line.startswith("loop_seconds")
    )
    assert line.endswith(", extrapolated from 7 nulls to 100")
    found = json.loads(bench("permutation.py", *sizes, "--json").stdout)
    assert isinstance(found["loop_seconds"], float)
    assert found["equal_counts"]


def test_streaming_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "targets.h5").write_text("someone's own")
    done = bench("stream.py", str(tmp_path), "--voxels", "3", "--targets", "8", "--alphas", "1")
    assert "ratio_vs_larger" in done.stdout, done.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["targets.h5"]
    assert (tmp_path / "targets.h5").read_text() == "someone's own"
