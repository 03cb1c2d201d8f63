"""What the tests of images share: where the scripts are, and what a tiny image is."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RUN = ROOT / "containers" / "run.sh"


@dataclass(frozen=True)
class TinyImage:
    """A SIF of empty folders, and the options of run.sh that bind this machine's programs into it."""

    sif: Path
    options: tuple[str, ...]

    def argv(self, *program: str, options: tuple[str, ...] = ()) -> list[str]:
        """run.sh's command line for a program inside."""
        return [str(RUN), "--image", str(self.sif), *self.options, *options, "--", *program]


def need_apptainer() -> None:
    """Skip, loudly, where images cannot be run."""
    if not shutil.which("apptainer"):
        pytest.skip("NO APPTAINER HERE: containers are not tested; see containers/test-tools.sh")
