"""A run of subject 1 that takes seconds a cell, and copies of it in which cells are not done."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from threadpoolctl import threadpool_limits

from nsdcap import launch, miniature
from nsdcap.options import STAGE_NAMES
from nsdcap.paths import Cell, artefact, config_file, parts_folder, sidecar

SMALL = (
    "data.sessions=2", "models.picture_size=32", "models.batch=16", "caption.beams=1",
    "caption.max_length=8", "roi.z_v=['ventral']", "roi.c=['ventral']",
    "ridge.alphas=[0.01, 1, 100]", "reconstruct.coarse_size=40", "reconstruct.size=40",
    "reconstruct.samples=1", "reconstruct.steps=2", "reconstruct.batch=10", "ridge.folds=3",
    "ridge.block=256", "encode.nulls=50", "encode.bootstraps=50",
)  # fmt: skip


@contextmanager
def single() -> Iterator[None]:
    """One thread, here and in processes that are started: products are small, and cores may be taken."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch, threadpool_limits(1):
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
            patch.setenv(name, "1")
        yield
    torch.set_num_threads(before)


@pytest.fixture
def one_thread() -> Iterator[None]:
    with single():
        yield


@pytest.fixture(scope="session")
def small_run(tiny_tree, tmp_path_factory):
    """A run that nothing disturbed: its folder and what it was started with, but for the stage."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    arguments = ["--nsd-root", str(tiny_tree), "--subjects", "1", "--layers", "3"]
    for setting in (*miniature.places(tiny_tree), *SMALL):
        if not setting.startswith("data.nsd_root"):
            arguments += ["--set", setting]
    with single():
        for stage in STAGE_NAMES[:-1]:  # all but aggregate
            assert launch.main([*arguments, "--stage", stage, "--out", str(out)]) == 0
    return arguments, out


def without(cell: Cell, out: Path, to: Path) -> Path:
    """A copy of a run in which one cell is not done."""
    shutil.copytree(out, to, copy_function=os.link)
    artefact(to, cell).unlink()
    sidecar(to, cell).unlink()
    return to


def times(cell: Cell, out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in parts_folder(out, cell).glob("*.part")}


def copy_without(cell: Cell, done: Path, to: Path) -> Path:
    """A copy of a finished run without its settings and one cell."""
    shutil.copytree(done, to, copy_function=os.link)
    for path in (artefact(to, cell), sidecar(to, cell), config_file(to)):
        path.unlink()
    return to


def check(cell: Cell, out: Path, done: Path) -> None:
    """The run is as one that nothing disturbed, to the byte, and nothing else lies there."""

    def names(folder: Path) -> set[str]:
        return {str(path.relative_to(folder)) for path in folder.rglob("*")}

    assert names(out) == names(done)
    assert artefact(out, cell).read_bytes() == artefact(done, cell).read_bytes()
    told = [json.loads(sidecar(run, cell).read_text()) for run in (out, done)]
    assert told[0]["depends"] == told[1]["depends"]
    assert config_file(out).read_text() == config_file(done).read_text()
