"""Fixtures shared by the tests."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from drawn_runs import drawn_run  # noqa: F401, a fixture
from fetched_nsd import bucket, fetch  # noqa: F401, fixtures
from images import built_image, pulled_image, registry, tiny_image  # noqa: F401, fixtures
from miniature_runs import launch_miniature
from sharing_out import (  # noqa: F401, hooks
    pytest_collection_modifyitems,
    pytest_xdist_make_scheduler,
    pytest_xdist_setupnodes,
)
from small_runs import one_thread, small_run  # noqa: F401, fixtures

from nsdcap.miniature.tree import write_tree


@pytest.fixture(scope="session")
def tiny_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A miniature's root: subjects 1 and 2, two sessions, betas in both formats. Read only."""
    root = tmp_path_factory.mktemp("nsd")
    write_tree(root, seed=3, subjects=(1, 2), sessions=2, nifti=True, log=lambda line: None)
    return root


@pytest.fixture(scope="module")
def no_java() -> Iterator[None]:
    """A PATH without a Java."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", "")
        yield


@pytest.fixture
def tree_copy(tiny_tree: Path, tmp_path: Path) -> Path:
    """The same tree as links, so that a test can replace files: unlink first, then write."""
    return Path(shutil.copytree(tiny_tree, tmp_path / "nsd", copy_function=os.symlink))


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The miniature's whole run, by the README's command: some minutes. Read only."""
    out = tmp_path_factory.mktemp("miniature")
    said, seconds = launch_miniature(out)
    print(said[-300:], f"{seconds:.0f} s of CPU")
    return out


@pytest.fixture
def cupy():
    """CuPy with a GPU, or the test is skipped."""
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed: not checked on a GPU")
    try:
        cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        pytest.skip(f"no GPU: {error}")
    return cupy
