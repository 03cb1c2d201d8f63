"""Processes of this machine, as Linux tells of them."""

from __future__ import annotations

from pathlib import Path


def workers(parent: int) -> list[int]:
    """Processes that share the work of one: those below it that torch has started for that."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            below = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            words = (folder / "cmdline").read_text()
        except (OSError, IndexError):
            continue
        if below == parent and "spawn_main" in words:
            found.append(int(folder.name))
    return found


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
