"""How much memory this process may still take."""

from __future__ import annotations

import os
from pathlib import Path


def free_host_memory(root: Path = Path("/")) -> float:
    """Bytes free on this machine, or in this process' share of it (cgroup, as Slurm sets it) if fewer.

    Where the system does not tell (no /proc: macOS), half of what the machine has. ``root`` is where proc
    and sys lie.
    """
    meminfo = root / "proc/meminfo"
    if not meminfo.is_file():
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2
    found = [1024.0 * int(_after(meminfo.read_text(), "MemAvailable:"))]
    membership = root / "proc/self/cgroup"
    for line in membership.read_text().splitlines() if membership.is_file() else ():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, limit, own = root / "sys/fs/cgroup", "memory.max", "anon "
        elif "memory" in controllers.split(","):
            top, limit, own = (
                root / "sys/fs/cgroup/memory", "memory.limit_in_bytes", "total_rss ",
            )  # fmt: skip
        else:
            continue
        own_folder = top / path.strip("/")
        for folder in (own_folder, *own_folder.parents):  # a limit above binds too
            if (folder / limit).is_file() and (folder / "memory.stat").is_file():
                most = (folder / limit).read_text().strip()
                if most != "max":
                    taken = int(_after("\n" + (folder / "memory.stat").read_text(), "\n" + own))
                    found.append(float(int(most) - taken))
            if folder == top:
                break
    return max(0.0, min(found))


def _after(text: str, word: str) -> str:
    return text.split(word)[1].split()[0]
