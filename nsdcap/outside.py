"""Files from outside that a cell reads, and by what a change of one is known.

NSD's files by size and time of writing: they are too large to be read for it. Weights by their contents, so
that a copy of them, or the same fetched again, is the same: a lock tells it, or a note of what was computed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from nsdcap import weights
from nsdcap.config import Config
from nsdcap.model_files import known_sha256, loaded
from nsdcap.paths import write_json

SMALL = 1 << 24  # bytes: configurations, vocabularies; read whenever they are asked for
MISSING = "missing"
_NOTES = ".weights.seen.json"  # in the run's folder


def stamp(path: Path) -> str:
    """Size and time of writing."""
    try:
        stat = path.stat()
    except OSError:
        return MISSING
    return f"{stat.st_size} bytes, {stat.st_mtime_ns} ns"


def weights_files(settings: Config, model: str, out: Path) -> dict[str, str]:
    """What a model of a row of the stages' table is read from: each file's SHA-256, of a hub id the commit.

    Those that a lock or ``note`` tells of are not read; others take about a second a gigabyte, once in a
    process. Of a folder's large files only those that its classes load are among them.
    """
    found: dict[str, str] = {}
    noted = _read(out)
    for name, where in weights.used(settings, [model]).items():
        if where and not weights.is_path(where):
            snapshot = weights.snapshot(where)
            found |= {f"{name} snapshot": snapshot.name} if snapshot else {}
            continue
        root = weights.root_of(where) if where else None
        lock = weights.read_lock(root) if root else {}
        for key, path in _files(name, where):
            entry = lock.get(path.absolute().relative_to(root).as_posix()) if root else None
            found[key] = entry.sha256 if entry else _contents(path, noted)
    return found


def note(settings: Config, models: Iterable[str], out: Path) -> None:
    """Write down the SHA-256 of ``models``' large files as they are now, so that nobody reads them again."""
    noted, new = _read(out), {}
    for name, where in weights.used(settings, models).items():
        if not where or not weights.is_path(where) or weights.root_of(where):
            continue
        for _, path in _files(name, where):
            state = _state(path)
            if state[0] > SMALL and noted.get(str(path.absolute()), [])[:3] != state:
                new[str(path.absolute())] = [*state, known_sha256(path)]
    if new:
        write_json(out / _NOTES, {**_read(out), **new})


def _files(name: str, where: str) -> Iterator[tuple[str, Path]]:
    """Files that are read of a model in a folder or file, with the name that stands in a sidecar."""
    path = Path(where).expanduser()
    if path.is_file():
        yield f"{name}/{path.name}", path
        return
    if not where:
        return
    tokenizer = name.endswith("tokenizer")  # beside which all of its model may lie
    needed = set() if tokenizer else set(loaded(name, str(path)).values())
    for file in sorted(path.rglob("*")):
        inside = file.relative_to(path)
        hidden = any(part.startswith(".") for part in inside.parts)
        if hidden or file.name == weights.LOCK or file.suffix == ".md" or not file.is_file():
            continue
        if file in needed or file.stat().st_size <= SMALL:
            yield f"{name}/{inside}", file


def _contents(path: Path, noted: dict[str, list]) -> str:
    *state, digest = noted.get(str(path.absolute())) or [None]
    with suppress(OSError):
        return digest if state == _state(path) else known_sha256(path)
    return MISSING


def _state(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def _read(out: Path) -> dict[str, list]:
    try:
        return dict(json.loads((out / _NOTES).read_text()))
    except (OSError, ValueError, TypeError):
        return {}
