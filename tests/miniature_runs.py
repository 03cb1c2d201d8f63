"""The whole miniature, as the README runs it."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path


def launch_miniature(out: Path) -> tuple[str, float]:
    """The README's command, with two cells at a time; its output, and the seconds that it computed.

    Those of all cores together: a clock would count how long other tests had the cores, too.
    """
    start = computed()
    done = subprocess.run(
        [sys.executable, "-m", "nsdcap.launch", "--out", str(out), "--executor", "local"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout, computed() - start


def computed() -> float:
    """CPU seconds of the processes that this one has waited for, and of those that they waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
