"""One file by the Hugging Face hub's library or plain HTTP, gone on with where it was stopped; its folder."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from http.client import HTTPException
from pathlib import Path
from typing import Any

from nsdcap.dry_run import size as in_words
from nsdcap.errors import DataError, UsageError
from nsdcap.hub import reason

PIECE = 1 << 20
PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0)  # seconds before each new try, while none brings anything
TIMEOUT = 60.0  # seconds without a byte
SPAN = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


class NoServer(DataError):
    """No network, or a server that refuses or is out of order; ``again``: another try may help.

    ``answered``: there is a server."""

    def __init__(self, text: str, again: bool = True, answered: bool = False):
        super().__init__(text)
        self.again, self.answered = again, answered


# --- one file -------------------------------------------------------------------------------------


def from_hub(repo: str, revision: str, file: str, staging: Path, target: Path) -> None:
    """By huggingface_hub, which takes up a broken connection by itself, to a staging folder, then moved.

    Raises
    ------
    DataError
        It cannot be fetched: why, and what to do.
    """
    from huggingface_hub import hf_hub_download

    try:
        got = hf_hub_download(repo, file, revision=revision, local_dir=staging)
    except Exception as error:
        raise DataError(f"{repo}@{revision}, {file}: {reason(error, repo)}") from error
    Path(got).replace(target)


def head(url: str) -> tuple[int, str]:
    """Bytes of the file at a URL, -1 where the server does not tell, and its ETag without quotes, "" where
    there is none. Raises as ``whole_part``."""
    with opened(urllib.request.Request(url, method="HEAD")) as answer:
        return int(answer.headers.get("Content-Length", -1)), _version(answer)


def from_url(url: str, n_bytes: int, target: Path) -> None:
    """A file by plain HTTP; what an earlier run has got of the same version is gone on from.

    Raises as ``whole_part``.
    """
    whole_part(url, n_bytes, target, head(url)[1]).replace(target)


def part_of(url: str, target: Path, version: str) -> Path:
    """Where the bytes of a version of a file are gathered: two versions are never joined."""
    mark = sha256(f"{url} {version}".encode()).hexdigest()[:12]
    return target.with_name(f"{target.name}-{mark}")


def whole_part(
    url: str, n_bytes: int, target: Path, version: str,
    told: Callable[[int], object] = lambda gained: None,
) -> Path:  # fmt: skip
    """``part_of`` with all its ``n_bytes``: what is there of it is gone on from, other versions are removed.

    A connection that breaks, one that brings too little and a server that is out of order are tried again
    after ``PAUSES``, which begin anew whenever something came. ``version``: the ETag, or the date; "" and
    nothing of an earlier run is used. ``told`` hears how many bytes came, below 0 where some were given up;
    what it raises ends the work.

    Raises
    ------
    NoServer
        No network, a server that refuses or is out of order, or an end before ``n_bytes``, in spite of that.
    DataError
        There is no such file, or it is of another size or version.
    OSError
        It cannot be written.
    """
    part = part_of(url, target, version)
    for other in target.parent.glob(f"{target.name}-*"):
        if other != part or not version:
            other.unlink()
    part.touch()
    if part.stat().st_size > n_bytes:
        os.truncate(part, 0)
    idle = 0
    while (start := part.stat().st_size) != n_bytes:
        why = "it ended there"
        try:
            _go_on(url, part, start, n_bytes, version, told)
        except NoServer as error:
            if not error.again:
                raise
            why = str(error).removeprefix(f"{url}: ")
        got = part.stat().st_size
        if got == n_bytes:
            break
        idle = 0 if got - start >= PIECE else idle + 1
        if idle > len(PAUSES):
            raise NoServer(
                f"{url}: ended after {got} of {n_bytes} bytes ({why}); the same command goes on there"
            )
        time.sleep(PAUSES[max(idle - 1, 0)])
    return part


def _go_on(
    url: str, part: Path, start: int, n_bytes: int, version: str, told: Callable[[int], object]
) -> None:
    """Ask once for what is missing after ``start`` and append what comes of it."""
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    with opened(request) as answer:
        found = _version(answer)
        if version and found and found != version:
            raise DataError(
                f"{url}: changed on the server, its ETag is {found} and was {version}; run the same command "
                "again, it takes the new version"
            )
        span = SPAN.fullmatch(answer.headers.get("Content-Range", ""))
        total, due = n_bytes, n_bytes - start
        if answer.status == 206 and span and int(span[1]) == start:
            total = n_bytes if span[3] == "*" else int(span[3])
            due = int(span[2]) + 1 - start
        elif start:
            # the whole from its beginning, or a span that was not asked for
            told(-start)
            os.truncate(part, 0)
            if answer.status == 206:
                return _go_on(url, part, 0, n_bytes, version, told)
            due = n_bytes
        length = int(answer.headers.get("Content-Length", due))
        if total != n_bytes or length != due:
            there = f"{total} bytes" if total != n_bytes else f"{length} bytes to come"
            raise DataError(
                f"{url}: the server has {there}, expected {n_bytes if total != n_bytes else due}; it changed "
                "or is broken: run the same command again, or take another server"
            )
        with part.open("ab") as file:
            for piece in _pieces(url, answer):
                if len(piece) > due:
                    raise DataError(
                        f"{url}: the server sent more than the {n_bytes} bytes it has; run the same command "
                        "again, or take another server"
                    )
                due -= len(piece)
                file.write(piece)
                told(len(piece))


def _pieces(url: str, answer: Any) -> Iterator[bytes]:
    while True:
        try:
            piece = answer.read1(PIECE)
        except (OSError, HTTPException) as error:
            raise NoServer(f"{url}: the connection broke ({error!r})") from None
        if not piece:
            return
        yield piece


def opened(request: urllib.request.Request) -> Any:
    """The answer to a request, to be closed. Raises NoServer, or DataError where there is no such file."""
    url = request.full_url
    if not url.startswith(("http://", "https://")):  # urllib would also open files of this machine
        raise DataError(f"{url}: expected http://... or https://...")
    try:
        return urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        text = f"{url}: the server answered {error.code} {error.reason}"
        if error.code >= 500 or error.code in (408, 429):
            raise NoServer(text, answered=True) from None
        if error.code in (401, 403, 407):
            raise NoServer(text, again=False, answered=True) from None
        raise DataError(text) from None
    except (OSError, HTTPException, ValueError) as error:
        why = getattr(error, "reason", error)
        raise NoServer(f"{url}: no network, it cannot be reached ({why})") from None


def _version(answer: Any) -> str:
    told = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
    return str(told).removeprefix("W/").strip('"')


# --- the folder that it comes to --------------------------------------------------------------------


def settle(whole: Path, target: Path) -> None:
    """Put a file that is whole in its place, atomically and for good."""
    with whole.open("rb+") as file:
        os.fsync(file.fileno())
    whole.replace(target)


def check_room(folder: Path, wanted: int) -> None:
    """Refuse a disk that has not the room for ``wanted`` bytes more. Raises DataError, with both figures."""
    there = next(place for place in (folder, *folder.parents) if place.exists())
    free = shutil.disk_usage(there).free
    if wanted > free:
        raise DataError(
            f"{folder}: {in_words(free)} are free, {in_words(wanted)} are to be fetched; free room or give "
            "another folder"
        )


@contextmanager
def alone(folder: Path, who: str) -> Iterator[Path]:
    """The folder, made and held by this program alone while the block runs; gives ``.who`` in it, for what is
    underway, which is removed afterwards.

    Raises
    ------
    UsageError
        It cannot be written.
    DataError
        Another ``who`` is at work there.
    """
    staging = folder / f".{who}"
    try:
        staging.mkdir(parents=True, exist_ok=True)
        file = (staging / "lock").open("w")
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written ({error.strerror}); name another") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"{folder}: another {who} is at work there; wait for it") from None
        except OSError:
            pass  # a file system without such locks
        if not _is_at(file.fileno(), staging / "lock"):  # whoever had it has just removed it
            raise DataError(f"{folder}: another {who} has just ended there; run it again")
        yield staging
        shutil.rmtree(staging)


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False
