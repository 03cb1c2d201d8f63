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
from nsdcap.paths import HOST, begun, clock, disk_error, runs, sweep, write_json

BEAT = 30.0  # seconds between signs of life
GONE = 600.0  # seconds without one, after which a holder that cannot be asked for counts as gone
WRITING = (
    2.0  # seconds that a lock may be empty: an older nsdcap writes it, or was killed just then
)
TAKING = 10.0  # seconds after which one that was taking the lock counts as killed at it


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
        The lock cannot be written, or is a folder.
    """
    path, mine = path_of(out), _me(what)
    if os.path.isdir(path):
        raise UsageError(f"{path}: found a folder, expected a file, the run's lock; move it away")
    try:
        while not _taken(path, mine):
            pass
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


def living(out: Path) -> Holder | None:
    """Who holds a run, unless that one counts as gone. A clock that cannot be asked is this machine's."""
    path = path_of(out)
    holder = _read(path)
    if holder is None:
        return None
    if _is_here(holder):
        return holder if runs(holder.pid, holder.start) else None
    try:
        silent = _age(path)
    except OSError:  # a run that is another user's to write
        silent = time.time() - path.stat().st_mtime if path.exists() else None
    return holder if silent is not None and silent < GONE else None


def _read(path: Path) -> Holder | None:
    """The holder that a lock names; None where it names none."""
    with suppress(OSError, ValueError, TypeError, RecursionError):
        found = {field.name: "" for field in fields(Holder)} | json.loads(path.read_text())
        holder = Holder(**{field.name: found[field.name] for field in fields(Holder)})
        words = [value for name, value in vars(holder).items() if name != "pid"]
        whole = type(holder.pid) is int and 0 < holder.pid < 2**31
        if whole and holder.user and all(isinstance(word, str) for word in words):
            return holder
    return None


def _is_here(holder: Holder) -> bool:
    """Whether its process can be asked for."""
    return holder.place == _place() and holder.host == HOST


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
    """Whether the lock was free, or of one that is gone, and is now ours. Raises HeldError as ``_gone``."""
    gone = _gone(path)
    with _alone(path):
        if path.exists() and _read(path) != gone:  # another was quicker
            return False
        write_json(path, asdict(mine))
    return _read(path) == mine


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Of several that would take a lock one at a time, so that none takes what another has just taken."""
    taking = path.with_name(f"{path.name}.taking")
    while True:
        try:
            taking.open("x").close()
            break
        except FileExistsError:
            age = _age(taking)
            if age is not None and age > TAKING:
                taking.unlink(missing_ok=True)
            else:
                time.sleep(0.02)
    try:
        yield
    finally:
        taking.unlink(missing_ok=True)


def _gone(path: Path) -> Holder | None:
    """The holder of a lock, which is gone; None where there is no lock, or one that names nobody.

    Raises
    ------
    HeldError
        It is not, or nobody can tell.
    """
    end, holder = time.monotonic() + WRITING, _read(path)
    while holder is None and path.exists() and time.monotonic() < end:
        time.sleep(0.05)
        holder = _read(path)
    if holder is None:
        return None
    if _is_here(holder):
        if runs(holder.pid, holder.start):
            raise HeldError(_told(path, holder, "wait for it, or end it"))
        return holder
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
    return holder


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
