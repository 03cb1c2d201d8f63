"""The whole miniature, as the README runs it."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path


def launch_miniature(out: Path) -> tuple[str, float]:
    """The README's command, with two cells at a time; its output and seconds."""
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "nsdcap.launch", "--out", str(out), "--executor", "local"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout, time.monotonic() - start
