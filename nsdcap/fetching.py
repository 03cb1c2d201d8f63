"""Several files at once from a web server, with progress: each comes to its place whole, checked, or not."""

from __future__ import annotations

import hashlib
import json
import queue
import shutil
import sys
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from nsdcap.bucket import md5_of
from nsdcap.download import NoServer, part_of, settle, whole_part
from nsdcap.dry_run import duration
from nsdcap.dry_run import size as in_words
from nsdcap.errors import DataError
from nsdcap.paths import atomic

SMALL = 64 << 20  # bytes; smaller files come first, then the largest
EVERY = 30.0  # seconds between two lines of progress
LAST = 2.0  # seconds that those underway have to write what has come, when all is ended


@dataclass(frozen=True)
class Task:
    """A file to be fetched: ``size`` bytes of ``url`` with that ETag ("": none) to ``path``.

    Of a zip with ``members`` these come, by their names alone, to its folder instead of it. ``sha1``: of the
    file in hex, "" where it is not known."""

    key: str
    url: str
    size: int
    etag: str
    path: Path
    members: tuple[str, ...] = ()
    sha1: str = ""

    @property
    def hidden(self) -> Path:
        return self.path.with_name(f".{self.path.name}.partial")

    @property
    def missing(self) -> int:
        """Bytes that no earlier run has got."""
        part = part_of(self.url, self.hidden, self.etag)
        got = part.stat().st_size if self.etag and part.exists() else 0
        return self.size - (got if got <= self.size else 0)

    @property
    def room(self) -> int:
        """Bytes of disk that it takes yet; what COCO's zip holds of captions is under half of it."""
        return self.missing + (self.size // 2 if self.members else 0)


class _Stopped(Exception):
    """Another thread has ended the work."""


def fetch_all(tasks: list[Task], jobs: int, done: Callable[[Task], object]) -> dict[str, DataError]:
    """Fetch all of them, ``jobs`` at a time; ``done`` is called after each, in this thread.

    Returns what was wrong with those that could not be fetched, by their keys: the others are there.

    Raises
    ------
    NoServer
        The network, or the server, is gone in spite of new tries.
    OSError
        The disk is full or cannot be written.
    """
    todo: queue.SimpleQueue[Task] = queue.SimpleQueue()
    for task in sorted(tasks, key=lambda task: (task.size > SMALL, -task.size)):
        todo.put(task)
    events: queue.SimpleQueue[int | Task | tuple[Task, BaseException] | None] = queue.SimpleQueue()
    stop, failed = threading.Event(), {}

    def told(gained: int) -> None:
        if stop.is_set():
            raise _Stopped
        events.put(gained)

    def work() -> None:
        while not stop.is_set():
            try:
                task = todo.get_nowait()
            except queue.Empty:
                break
            try:
                bring(task, told)
            except BaseException as error:
                events.put((task, error))
            else:
                events.put(task)
        events.put(None)

    running = min(jobs, len(tasks))
    # daemons: a thread that waits for a server does not keep a stopped program
    threads = [threading.Thread(target=work, daemon=True) for _ in range(running)]
    for thread in threads:
        thread.start()
    try:
        with _progress(sum(task.missing for task in tasks), len(tasks)) as tell:
            while running:
                match events.get():
                    case None:
                        running -= 1
                    case int(gained):
                        tell(gained, 0)
                    case Task() as task:
                        done(task)
                        tell(0, 1)
                    case (Task() as task, DataError() as error) if not _ends_all(error):
                        failed[task.key] = error
                    case (_, BaseException() as error):
                        raise error
    finally:
        stop.set()
        end = time.monotonic() + LAST
        for thread in threads:
            thread.join(max(end - time.monotonic(), 0))
    return failed


def _ends_all(error: DataError) -> bool:
    return isinstance(error, NoServer) and error.again


# --- one file -------------------------------------------------------------------------------------


def bring(task: Task, told: Callable[[int], object]) -> None:
    """Have a task's file in place, whole or not at all.

    Raises as ``whole_part``, and DataError for one that is not what its ETag, or a zip's own sums, say.
    """
    task.path.parent.mkdir(parents=True, exist_ok=True)
    part = whole_part(task.url, task.size, task.hidden, task.etag, told)
    for kind, wanted in (("md5", md5_of(task.etag)), ("sha1", task.sha1)):
        if wanted and (found := checksum(part, kind)) != wanted:
            part.unlink()
            raise DataError(
                f"{task.url}: came damaged, or is another file: its {kind.upper()} is {found}, expected "
                f"{wanted}; run the same command again"
            )
    if not task.members:
        return settle(part, task.path)
    try:
        unpack(part, task.members, task.path.parent)
    except DataError:
        part.unlink()
        raise
    part.unlink()


def checksum(path: Path, kind: str) -> str:
    """The MD5 or SHA-1 of a file in hex; against damage, not against someone who means it."""
    found = hashlib.new(kind, usedforsecurity=False)
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            found.update(piece)
    return found.hexdigest()


def unpack(path: Path, members: tuple[str, ...], folder: Path) -> None:
    """Take ``members`` out of a zip into ``folder``, by their names without folders; each must be captions.

    Raises
    ------
    DataError
        It is no zip, is damaged, or lacks one.
    """
    try:
        with zipfile.ZipFile(path) as packed:
            for member in members:
                with packed.open(member) as source, atomic(folder / Path(member).name) as target:
                    with target.open("wb") as file:
                        shutil.copyfileobj(source, file, 1 << 20)  # whose end checks the CRC
                    if not are_captions(target):
                        raise DataError(
                            f"{member} of {path.name} is not COCO's captions: found other JSON, or none"
                        )
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, RuntimeError, ValueError) as error:
        raise DataError(
            f"{path.name}: expected a zip with {', '.join(members)} ({error}); run the same command again, or "
            "put the captions there by hand"
        ) from None


def are_captions(path: Path) -> bool:
    """Whether a file is JSON as COCO's captions are. Memory: some seven times the file."""
    try:
        rows = json.loads(path.read_bytes())["annotations"]
        return bool(rows) and all({"id", "image_id", "caption"} <= {*row} for row in rows)
    except (OSError, ValueError, KeyError, TypeError):
        return False


# --- progress -------------------------------------------------------------------------------------


@contextmanager
def _progress(n_bytes: int, n_files: int) -> Iterator[Callable[[int, int], None]]:
    """How far it has come, told of bytes and files as they come: a bar on a terminal, else lines, on standard
    error."""
    files = 0
    if sys.stderr.isatty():
        from rich import progress as rich
        from rich.console import Console

        columns = (
            rich.BarColumn(), rich.DownloadColumn(), rich.TransferSpeedColumn(), rich.TimeRemainingColumn(),
            rich.TextColumn("{task.description}"),
        )  # fmt: skip
        with rich.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            one = bar.add_task(f"0 of {n_files} files", total=n_bytes)

            def draw(gained: int, finished: int) -> None:
                nonlocal files
                files += finished
                bar.update(one, advance=gained, description=f"{files} of {n_files} files")

            yield draw
        return
    start = last = time.monotonic()
    got = 0

    def line(gained: int, finished: int) -> None:
        nonlocal files, got, last
        files, got, now = files + finished, got + gained, time.monotonic()
        if now - last < EVERY:
            return
        last = now
        rate = max(got, 1) / (now - start)
        print(
            f"{in_words(got)} of {in_words(n_bytes)} ({100 * got // max(n_bytes, 1)} %), {files} of {n_files} "
            f"files, {in_words(rate)}/s, about {duration((n_bytes - got) / rate)} to go",
            file=sys.stderr,
            flush=True,
        )

    yield line
