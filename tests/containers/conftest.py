"""A tiny image for the tests of containers/run.sh, and a registry on loopback for those of the real image."""

from __future__ import annotations

import subprocess
import sys

import pytest
from images import ROOT, TinyImage, need_apptainer


@pytest.fixture(scope="session")
def tiny_image(tmp_path_factory: pytest.TempPathFactory) -> TinyImage:
    """An image in half a second: empty folders, with /usr, Python and nsdcap bound when it runs."""
    need_apptainer()
    folder = tmp_path_factory.mktemp("tiny image")
    tree, sif = folder / "tree", folder / "it's tiny.sif"
    for name in ("usr", "root", "tmp", "proc", "sys", "dev", "etc", "var/tmp", "home"):
        (tree / name).mkdir(parents=True)
    for name in ("bin", "lib", "lib64", "sbin"):
        (tree / name).symlink_to(f"usr/{name}")
    for name in ("passwd", "group"):
        (tree / "etc" / name).touch()
    fast = "-comp zstd -Xcompression-level 1"
    built = subprocess.run(
        ["apptainer", "build", "--fakeroot", f"--mksquashfs-args={fast}", str(sif), str(tree)],
        capture_output=True,
        text=True,
    )
    if built.returncode:
        pytest.skip(f"APPTAINER CANNOT BUILD HERE: {built.stderr[-800:]}")
    places = dict.fromkeys(["/usr", sys.base_prefix, sys.prefix, str(ROOT)])
    return TinyImage(sif, tuple(word for place in places for word in ("--bind", place)))
