"""Folders whose files are run: pickled tasks in ``log``, and in ``jobs`` the script that starts them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from nsdcap.errors import UsageError

OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def keep_private(out: Path) -> None:
    """Make a run's ``log`` this user's alone, mode 0700, and ``jobs`` writable by nobody else, mode 0755.

    Whoever can write into ``log`` can have this user's tasks, and this launcher, run what they like: submitit
    loads pickles from there. Of ``jobs``, which ``nsdcap.status`` reads for anybody, each launch writes anew
    what is not as it should be.

    Raises
    ------
    UsageError
        One of them, or something in it, is another user's; or others can write into ``log``.
    """
    log, jobs = out / "log", out / "jobs"
    _keep(out, log, 0o700, log, log / "slurm")
    _keep(out, jobs, 0o755, jobs)


def _keep(out: Path, folder: Path, mode: int, *places: Path) -> None:
    if not os.path.lexists(folder):
        folder.mkdir()
        folder.chmod(mode)  # whatever the umask, and what the folder above hands down
    if not folder.is_dir():
        raise UsageError(f"--out {out}: {folder} is no folder; remove it")
    below = [path for place in places if place.is_dir() for path in place.iterdir()]
    for path in (folder, *below):
        _check_owner(out, path)
    found = stat.S_IMODE(folder.stat().st_mode)
    if found & OTHERS_WRITE and mode == 0o700:
        raise UsageError(
            f"--out {out}: {folder} has mode {found:04o}, and what lies there is run as you; if nobody else "
            f"has written into it, chmod 700 {folder}"
        )
    if found & ~mode:
        folder.chmod(mode)
        print(f"note: {folder} had mode {found:04o} and has {mode:04o} now: what lies there is run")


def _check_owner(out: Path, path: Path) -> None:
    owners = {path.lstat().st_uid}  # of the link, where it is one
    if path.exists():
        owners.add(path.stat().st_uid)
    if others := owners - {os.geteuid()}:
        raise UsageError(
            f"--out {out}: {path} belongs to user {others.pop()}, this is user {os.geteuid()}, and what lies "
            "there is run; give another --out, or launch as the user whose run it is"
        )
