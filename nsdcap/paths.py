"""The name of every artefact, and how it comes to be whole or not at all."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import shutil
import socket
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from nsdcap.errors import DiskError, NsdcapError

HOST = socket.gethostname().split(".")[0]
_SUFFIX = {"caption": ".json"}  # all others are HDF5
DONE, FAILED = ".done.json", ".failed.txt"  # beside an artefact


@dataclass(frozen=True)
class Cell:
    """One unit of work: a stage, a subject (none: all), a BERT layer (none: not one of them)."""

    stage: str
    subject: int | None = None
    layer: int | None = None

    def __str__(self) -> str:
        parts = [self.stage]
        if self.subject is not None:
            parts.append(f"subj{self.subject:02d}")
        if self.layer is not None:
            parts.append(f"layer{self.layer:02d}")
        return " ".join(parts)


def name_of(cells: list[Cell]) -> str:
    """Layers of one subject in few words: "encode subj01 layers 00-05, 07 (7)"."""
    first = cells[0]
    if len(cells) == 1 or first.layer is None:
        return str(first)
    layers = sorted(cell.layer for cell in cells if cell.layer is not None)
    spans = list(_spans(layers))
    text = ", ".join(spans[:6]) + (", ..." if len(spans) > 6 else "")
    return f"{Cell(first.stage, first.subject)} layers {text} ({len(cells)})"


def _spans(numbers: list[int]) -> Iterable[str]:
    for _, part in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        span = [number for _, number in part]
        yield f"{span[0]:02d}" if len(span) == 1 else f"{span[0]:02d}-{span[-1]:02d}"


def place(cell: Cell) -> str:
    """Where a cell's result lies, relative to the run's folder."""
    if cell.stage == "aggregate":
        return "aggregate"
    name = "shared" if cell.subject is None else f"subj{cell.subject:02d}"
    if cell.stage == "encode":
        name += "_z_v" if cell.layer is None else f"_layer{cell.layer:02d}"
    return f"{cell.stage}/{name}{_SUFFIX.get(cell.stage, '.h5')}"


def artefact(out: Path, cell: Cell) -> Path:
    """Where a cell's result lies."""
    return out / place(cell)


def sidecar(out: Path, cell: Cell) -> Path:
    """The JSON beside an artefact; it is written last, so its presence says that the cell is done."""
    return out / (place(cell) + DONE)


def failure(out: Path, cell: Cell) -> Path:
    """What stopped a cell the last time it ran: its signature, then the traceback."""
    return out / (place(cell) + FAILED)


def parts_folder(out: Path, cell: Cell) -> Path:
    """Where the finished parts of a cell that is under way are kept."""
    path = artefact(out, cell)
    return path.with_name(f".{path.name}.parts")


def config_file(out: Path) -> Path:
    """The run's settings."""
    return out / "config.toml"


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when the block ends well.

    The block may write a file or make a folder there. On an error what was begun is removed and
    what stood at ``path`` before is left as it was.

    Raises
    ------
    DiskError
        What the block writes, or the path itself, cannot be written for want of room or rights, or the disk
        fails: which file, how much was free, what to do.
    """
    partial = beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path)
        with _heard() as lost:
            yield partial
        if lost:
            raise lost[0]
        _to_disk(partial)
        if path.is_dir() and _exchange(partial, path):
            pass  # what stood there goes below
        elif path.is_dir():  # a folder cannot be renamed over one that holds files
            old = partial.with_suffix(".old")
            path.rename(old)
            partial.rename(path)
            _remove(old)
        else:
            partial.replace(path)
    except Exception as error:  # HDF5's are RuntimeErrors, too
        found = disk_error(path, error)
        if found is None or found is error:
            raise
        raise found from error
    finally:
        with suppress(OSError):  # what stays now is swept away later
            _remove(partial)
            sweep(path)  # again: one that was being killed may have been alive at the beginning


@contextmanager
def _heard() -> Iterator[list[BaseException]]:
    """What disks say while the block runs and nobody can catch: h5py prints what cannot be written where a
    thing of a file goes away unclosed, and goes on."""
    lost: list[BaseException] = []
    tell, print_it = sys.unraisablehook, sys.excepthook

    def unraisable(error: Any) -> None:
        if disk_error(Path("/"), error.exc_value) is None:
            tell(error)
        else:
            lost.append(error.exc_value)

    def printed(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        if disk_error(Path("/"), error) is None:
            print_it(kind, error, trace)
        else:
            lost.append(error)

    sys.unraisablehook, sys.excepthook = unraisable, printed
    try:
        yield lost
    finally:
        sys.unraisablehook, sys.excepthook = tell, print_it


def _exchange(one: Path, other: Path) -> bool:
    """Let two paths change places, so that a reader finds either at any time; False where that cannot be."""
    try:
        swap = ctypes.CDLL(None).renameat2  # Linux's, and not of every file system
    except AttributeError:
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return not swap(here, os.fsencode(one), here, os.fsencode(other), exchange)


def _to_disk(path: Path) -> None:
    """See to it that a file, or all in a folder, is written: some disks say only then that they are full."""
    for file in path.rglob("*") if path.is_dir() else (path,):
        if file.is_file() and not file.is_symlink():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())


def beside(path: Path) -> Path:
    """A name in the same folder that says whose it is, so that ``sweep`` finds what was left there."""
    me = os.getpid()
    return path.with_name(f".{path.name}.{HOST}.{me}-{begun(me)}.partial")


_CURES = {
    errno.ENOSPC: "make room there, then give the same command: it goes on after what is finished",
    errno.EDQUOT: "your quota there is used up: make room, then give the same command, which goes on after "
    "what is finished",
    errno.EFBIG: "files there may not be that large (see ulimit -f): give another folder",
    errno.EROFS: "make it writable, or give another folder",
    errno.EACCES: "see to it that you may write there, or give another folder",
    errno.EPERM: "see to it that you may write there, or give another folder",
    errno.EIO: "the disk or its server fails; when it is well again give the same command",
    errno.ESTALE: "the disk's server has changed; give the same command again",
}


def disk_error(path: Path, error: BaseException) -> DiskError | None:
    """What ``error`` says of the disk, if anything, as one that names the file; ``path`` where it does not.

    Of rights alone where they are those of ``path``'s folder; nothing where a cell has said it in its words.
    """
    if isinstance(error, NsdcapError) and not isinstance(error, DiskError):
        return None
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        if isinstance(link, DiskError):
            return link
        chain.append(link)
        link = link.__cause__ or link.__context__
    for one in chain:
        number, name = getattr(one, "errno", None), getattr(one, "filename", None)
        if told := re.search(r"filename = '(.*?)'.*errno = (\d+)", str(one), re.DOTALL):  # HDF5's
            name, number = told[1], int(told[2])
        file = Path(os.fsdecode(name)) if isinstance(name, (str, bytes)) else path
        near = path.parent == file or path.parent in file.parents or file in path.parents
        if number in (errno.EACCES, errno.EPERM) and (name is None or not near):
            continue
        if number in _CURES:
            shown = path if near else file
            what = "read or written" if number in (errno.EIO, errno.ESTALE) else "written"
            return DiskError(
                f"{shown}: cannot be {what} ({os.strerror(number)}; {_room(shown)}); {_CURES[number]}",
                number,
            )
    return None


def _room(path: Path) -> str:
    """How much is free where a file is to lie."""
    try:
        found = os.statvfs(next(place for place in path.parents if place.is_dir()))
    except (OSError, StopIteration):
        return "it is not known how much is free"
    if found.f_files and not found.f_favail:
        return "no more files can be made there"
    free = found.f_bavail * found.f_frsize
    return f"{free / 1e9:.1f} GB are free" if free >= 1e8 else f"{free / 1e6:.1f} MB are free"


def clock(folder: Path) -> float:
    """The time, in seconds since the epoch, by the clock of where a folder lies: that of its files' times.

    A file server's may differ from this machine's by hours.
    """
    now = beside(folder / "now")
    sweep(folder / "now")
    try:
        now.touch()
        return now.stat().st_mtime
    finally:
        now.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """JSON, atomically."""
    with atomic(path) as partial:
        partial.write_text(json_text(content))


def json_text(content: Any) -> str:
    """JSON as ``write_json`` writes it."""
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def sweep(path: Path) -> None:
    """Remove what processes of this host that are gone had begun to write for ``path``."""
    ends = re.compile(re.escape(f".{path.name}.{HOST}.") + r"(\d+)-(\w*)\.(partial|old)")
    try:
        names = os.listdir(path.parent)
    except FileNotFoundError:  # the folder of parts, whose cell another run has just finished
        return
    for name in names:
        if (found := ends.fullmatch(name)) and not runs(int(found[1]), found[2]):
            _remove(path.with_name(name))


def runs(pid: int, start: str) -> bool:
    """Whether the process that began then runs; not if it is a zombie, or its number another's by now."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it lives, and is another user's
        return True
    return begun(pid) in (start, "")


def begun(pid: int) -> str:
    """When a process began, in the kernel's ticks; "gone" for a zombie, "" where there is no /proc."""
    try:
        # after the name, which may hold anything: state, parent, ... and 22nd of all the beginning
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "gone" if fields[0] in "ZX" else fields[19]


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
