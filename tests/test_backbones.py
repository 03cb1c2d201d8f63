"""Networks that score pictures: in a process with torchvision, and without."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nsdcap.backbones import Extractor, NotComputed
from nsdcap.errors import DataError
from nsdcap.metrics.peers import BACKBONES

ROOT = Path(__file__).resolve().parents[1]
# hpc/setup-env puts it there, off the path: torch's CPU build cannot import it as it stands
TORCHVISION = Path(os.environ.get("TORCHVISION_FOLDER", Path(sys.prefix) / "torchvision"))
CPU = torch.device("cpu")


@pytest.mark.skipif(
    not (TORCHVISION / "torchvision").is_dir(),
    reason=f"no torchvision in {TORCHVISION}, where hpc/setup-env test puts it: networks are not checked",
)
def test_networks_in_a_process_with_torchvision(tmp_path):
    """The tests of with_torchvision.py, all of them."""
    words = ["-o", "addopts=", "-q", "--noconftest", "-p", "no:cacheprovider"]
    file = ROOT / "tests/with_torchvision.py"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words, f"--basetemp={tmp_path / 'inner'}", str(file)],
        env={**os.environ, "TORCHVISION_FOLDER": str(TORCHVISION), "PYTHONPATH": str(ROOT),
             "OMP_NUM_THREADS": "1"},
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


@pytest.mark.parametrize("key", BACKBONES)
def test_what_is_missing_is_a_reason(tmp_path, monkeypatch, key):
    with pytest.raises(NotComputed, match=r"no folder of weights was given \(models.backbones\)"):
        Extractor(key, "", CPU, 1)
    file = tmp_path / BACKBONES[key].file
    with pytest.raises(NotComputed, match=f"no {file.name} in the folder.*https://.*/{file.name}$"):
        Extractor(key, str(tmp_path), CPU, 1)
    file.write_bytes(b"")
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(NotComputed, match=r"^torchvision cannot be imported \(.+\)$"):
        Extractor(key, str(tmp_path), CPU, 1)
    with pytest.raises(DataError, match=r"models\.backbones = .*there is no such folder"):
        Extractor(key, str(tmp_path / "other"), CPU, 1)
