"""kill -9 in the stage that ends a run, and while the miniature is made; then the same command."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest
from killing import launched

from nsdcap.paths import Cell, artefact, config_file, sidecar

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/fd").exists(), reason="no /proc on this system"
)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, also hidden ones."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_aggregate_that_is_killed_at_several_steps(run, tmp_path):
    """Before its folder takes its place, between folder and sidecar, and after that."""
    cell, out = Cell("aggregate"), tmp_path / "out"
    shutil.copytree(run, out, copy_function=os.link)
    shutil.rmtree(artefact(out, cell))
    for path in (sidecar(out, cell), config_file(out)):
        path.unlink()
    words = ["--stage", "aggregate", "--out", str(out)]
    for step in (
        r"open .*aggregate.*/tables/.*",
        r"rename to aggregate$",
        r"rename to aggregate\.done\.json$",
        r"renamed to aggregate\.done\.json$",
    ):
        ended = launched(words, out, step)
        assert ended.code == -signal.SIGKILL, (step, ended.said)
    ended = launched(words, out)
    assert ended.code == 0, ended.said
    assert "1 of 1 cells done, 1 of them before" in ended.said
    assert contents(artefact(out, cell)) == contents(artefact(run, cell))
    assert {path.name for path in out.iterdir()} == {path.name for path in run.iterdir()}


def test_a_miniature_that_is_killed_while_it_is_made(tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "out"
    whole.mkdir()
    out.mkdir()
    made = launched(["miniature", "3"], whole)
    assert made.code == 0, made.said
    for part in (0.1, 0.5, 0.9):
        ended = launched(["miniature", "3"], out, int(part * len(made.steps)))
        assert ended.code == -signal.SIGKILL, ended.said
    ended = launched(["miniature", "3"], out)
    assert ended.code == 0, ended.said
    assert contents(out) == contents(whole)
