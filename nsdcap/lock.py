"""One command at a time works on a run: who holds it, and when that one counts as gone.

The lock is a file in the run's folder. No ``flock``: that holds on one host alone on some network file
systems, and its holder cannot be told. It says who holds it; the holder touches it every ``BEAT`` seconds.
"""

from __future__ import annotations

import getpass
import json
import os
import secrets
import shlex
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path

from nsdcap.errors import NsdcapError, UsageError
from nsdcap.paths import HOST, begun, beside, clock, disk_error, runs, sweep

BEAT = 30.0  # seconds between signs of life
GONE = 600.0  # seconds without one, after which a holder that cannot be asked for counts as gone
WRITING = 2.0  # seconds that a lock may be empty: its maker writes it, or was killed just then


class HeldError(NsdcapError):
    """Another command works on the run; later the same one will do."""

    exit_code = 75


@dataclass(frozen=True)
class Holder:
    """Who holds a run.

    ``place`` is where ``pid`` means something: a boot of a machine, and in it the numbers that a container
    counts its processes by. ``start`` is that of the process, in the kernel's ticks.
    """

    user: str
    host: str
    pid: int
    start: str
    place: str
    since: str
    command: str
    token: str


def path_of(out: Path) -> Path:
    """The lock of the run in ``out``."""
    return out / "lock.json"


@contextmanager
def holding(out: Path, what: str) -> Iterator[None]:
    """Hold the run in ``out``, a folder that exists, while the block runs; ``what`` names the command.

    A lock of a process of this machine that is gone is taken over at once; one of another machine, or from
    inside another container, when it has not been touched for ``GONE`` seconds, by the file server's clock.

    Raises
    ------
    HeldError
        Another command holds it: its user, host, process, since when, and what to do.
    DiskError, UsageError
        The lock cannot be written.
    """
    path, mine = path_of(out), _me(what)
    try:
        while not _taken(path, mine):
            _clear(path)
        for left in (path, out / "now"):
            sweep(left)
    except OSError as error:
        raise disk_error(path, error) or UsageError(
            f"{path}: cannot be written ({error.strerror})"
        ) from None
    stop = threading.Event()
    beat = threading.Thread(target=_beat, args=(path, mine, stop), daemon=True)
    beat.start()
    try:
        yield
    finally:
        stop.set()
        if _read(path) == mine:
            path.unlink(missing_ok=True)


def read(out: Path) -> Holder | None:
    """Who holds a run, by its lock; None where there is none, or one that does not say."""
    return _read(path_of(out))


def _read(path: Path) -> Holder | None:
    with suppress(OSError, ValueError, TypeError):
        found = {"pid": 0, **json.loads(path.read_text())}
        return Holder(**{field.name: found.get(field.name, "") for field in fields(Holder)})
    return None


def here() -> tuple[int, str, str]:
    """This process, as ``end_with`` takes it: number, start and where they mean something."""
    pid = os.getpid()
    return pid, begun(pid), _place()


def end_with(pid: int, start: str, place: str) -> None:
    """End this process as soon as that one is gone: its run may be another's by then.

    Nothing is done where ``place`` is not here, from inside a container that counts its own processes.
    """
    if place != _place():
        return

    def watch() -> None:
        while runs(pid, start):
            time.sleep(0.5)
        os._exit(137)  # as a kill: what is half written is swept away, what is finished serves

    threading.Thread(target=watch, daemon=True).start()


def _me(what: str) -> Holder:
    pid = os.getpid()
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a number without a name, as in containers
        user = str(os.getuid())
    command = shlex.join([what, *sys.argv[1:]])[:400]
    now = datetime.now().isoformat(timespec="seconds")
    return Holder(user, HOST, pid, begun(pid), _place(), now, command, secrets.token_hex(8))


def _place() -> str:
    """Which boot of which machine, and which numbering of processes in it; "" where Linux does not tell."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _taken(path: Path, mine: Holder) -> bool:
    """Whether the lock was free and is now ours."""
    try:
        with path.open("x") as file:
            try:
                file.write(json.dumps(asdict(mine), indent=1) + "\n")
                file.flush()
                os.fsync(file.fileno())
            except OSError:  # a full disk
                path.unlink(missing_ok=True)
                raise
    except FileExistsError:
        return False
    return _read(path) == mine


def _clear(path: Path) -> None:
    """Remove a lock whose holder is gone.

    Raises
    ------
    HeldError
        It is not, or nobody can tell.
    """
    end, holder = time.monotonic() + WRITING, _read(path)
    while holder is None and path.exists() and time.monotonic() < end:
        time.sleep(0.05)
        holder = _read(path)
    here = holder is not None and holder.place == _place() and holder.host == HOST
    if holder is not None and here and runs(holder.pid, holder.start):
        raise HeldError(_told(path, holder, "wait for it, or end it"))
    if holder is not None and not here:
        silent = _age(path)
        if silent is not None and silent < GONE:
            raise HeldError(
                _told(
                    path,
                    holder,
                    f"its last sign of life was {silent:.0f} s ago. Wait for it; if it is gone remove {path}, "
                    f"or wait until it has been silent for {GONE / 60:.0f} minutes",
                )
            )
    # by a rename, which one alone of several that come at once can do
    aside = beside(path)
    with suppress(FileNotFoundError):
        path.rename(aside)
        if _read(aside) != holder:  # another had just taken it over
            with suppress(OSError):
                os.link(aside, path)
        aside.unlink()


def _told(path: Path, holder: Holder, cure: str) -> str:
    return (
        f"{path.parent}: {holder.user} on {holder.host} works on this run since {holder.since} (process "
        f"{holder.pid}: {holder.command}); {cure}"
    )


def _age(path: Path) -> float | None:
    """Seconds since a file was touched, by the clock of where it lies; None if it is gone."""
    try:
        with path.open():  # a network file system asks its server now
            pass
        return clock(path.parent) - path.stat().st_mtime
    except FileNotFoundError:
        return None


def _beat(path: Path, mine: Holder, stop: threading.Event) -> None:
    while not stop.wait(BEAT):
        with suppress(OSError):
            if _read(path) == mine:
                os.utime(path)
