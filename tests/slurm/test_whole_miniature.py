"""The miniature as a newcomer gets it, all of it, by SLURM in the real image: half an hour, by hand.

python -m pytest -m byhand tests/slurm/test_whole_miniature.py
"""

from __future__ import annotations

import subprocess
import sys

import pytest
import runs
from loopback import FINISHED
from runs import Reference, Run, digests


@pytest.mark.byhand
def test_the_whole_miniature_in_the_real_image_is_the_same_as_inline(
    idle_cluster, pulled_image, tmp_path
):
    """Four subjects, all of BERT's layers: 62 cells, by one command that returns at once."""
    inline = tmp_path / "inline"
    words = ["-m", "nsdcap.launch", "--out", str(inline), "--executor", "inline"]
    as_there = {**runs.environment(), "PATH": ""}  # an image without a network has no Java
    with subprocess.Popen([sys.executable, *words], env=as_there) as one_by_one:
        run = Run(idle_cluster, Reference(inline, (), {}), tmp_path / "slurm" / "out")
        run.out.parent.mkdir()
        run.site(image=str(pulled_image), stages={"aggregate": {"memory_gb": 4}})
        assert "62 cells submitted" in run.launch()
        assert len(run.arrays()) == 9
        run.settle(3600)
        assert one_by_one.wait(3600) == 0
    assert {element.state for element in run.mine().values()} <= FINISHED
    Run(idle_cluster, Reference(inline, (), digests(inline)), run.out).check()
    nowhere = [cell for cell, log in logs(run).items() if str(pulled_image) not in log]
    assert nowhere == []


def logs(run: Run) -> dict[str, str]:
    """The script that each array was submitted with, by its name."""
    return {
        array.name: (run.out / "log" / "slurm" / f"{array.job}_submission.sh").read_text()
        for array in run.arrays()
    }
