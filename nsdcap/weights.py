"""Weights on disk: what a lock file pins, whether it is what lies there, and what is missing.

``hpc/prefetch.py`` fetches models into one folder, each into a folder of its own, and writes
``weights.lock.json`` beside them. A model that lies in such a folder is held against the lock before it
is used. Nothing here needs a network or a heavy import.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from nsdcap.config import Config
from nsdcap.errors import DataError, UsageError, bound, first_line
from nsdcap.model_files import ORIGINALS, PARTS, known_sha256, loaded, sha256, sources
from nsdcap.paths import write_json
from nsdcap.ranges import check_path

LOCK = "weights.lock.json"
SEEN = ".weights.seen.json"  # files whose SHA-256 was computed, as they were then
ENDINGS = (".safetensors", ".bin")


@dataclass(frozen=True)
class Entry:
    """A file of a lock: where it is from (``repo`` is a hub id or a URL, ``revision`` the full commit
    hash, "" of a URL, ``file`` its path there), ``size`` in bytes, ``sha256`` in hex, ``licence``."""

    repo: str
    revision: str
    file: str
    size: int
    sha256: str
    licence: str


def read_lock(root: Path) -> dict[str, Entry]:
    """The entries of ``root``'s lock by the path below ``root``; none where there is no lock.

    Raises
    ------
    DataError
        It is no lock file.
    """
    path = root / LOCK
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["files"]
        return {name: _entry(name, row) for name, row in rows.items()}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{path}: cannot be read as a lock of weights ({first_line(error)}); remove it and run "
            f"python hpc/prefetch.py {root}"
        ) from None


def _entry(name: str, row: dict[str, Any]) -> Entry:
    """A row of a lock; ValueError or TypeError for what is none, or would lead out of the folder."""
    entry = Entry(**row)
    texts = (entry.repo, entry.revision, entry.file, entry.sha256, entry.licence)
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{name[:60]!r} holds what is no text")
    if type(entry.size) is not int or entry.size < 0:
        raise ValueError(f"{name[:60]!r}: size is {repr(entry.size)[:60]}")
    if not name or "\0" in name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"{name[:60]!r} is no path below the folder")
    return entry


def write_lock(root: Path, entries: dict[str, Entry]) -> None:
    """Write ``root``'s lock, whole or not at all."""
    rows = {name: asdict(entries[name]) for name in sorted(entries)}
    write_json(root / LOCK, {"format": 1, "files": rows})


def used(settings: Config, models: Iterable[str]) -> dict[str, str]:
    """What ``models`` (of a row of the stages' table) are read from, by the names of their settings."""
    models = set(models)
    found = sources(settings.models).items()
    return {name: where for name, where in found if name.removesuffix("_tokenizer") in models}


def pinned(settings: Config, models: Iterable[str]) -> Config:
    """The settings with those of ``models`` that are hub ids in the cache as its snapshot's folders.

    So what is loaded is the commit that the results' signatures name, whatever the hub has by then.
    """
    found: dict[str, Any] = {}
    for name, where in used(settings, models).items():
        folder = None if is_path(where) else snapshot(where)
        if folder is not None and not lacks(name, folder):
            found[name] = str(folder)
    return replace(settings, models=replace(settings.models, **found)) if found else settings


def folder_of(where: str) -> Path | None:
    """The absolute folder of a model's files: itself, or that of a .pth; None for a hub id."""
    path = Path(where).expanduser()
    if where and path.is_dir():
        return path.absolute()
    return path.absolute().parent if path.is_file() else None


def root_of(where: str) -> Path | None:
    """The folder whose lock tells of a model: its own folder or the one above; None without a lock."""
    folder = folder_of(where)
    if folder is None:
        return None
    return next((root for root in (folder, folder.parent) if (root / LOCK).is_file()), None)


def verify(setting: str, where: str, contents: bool = True) -> None:
    """Hold a model's folder against its lock, if there is one that tells of it.

    Each file's size, and with ``contents`` its SHA-256: computed once, and again when the file's size, time
    of writing or time of change are other ones (the latter no program can set back). What was computed
    is kept beside the lock, where that can be written.

    Raises
    ------
    DataError
        A file that is missing, differs or is not in the lock: which, what was found and expected.
    """
    root, folder = root_of(where), folder_of(where)
    if root is None or folder is None:
        return
    lock = read_lock(root)
    below = "" if folder == root else f"{folder.name}/"
    mine = {name: entry for name, entry in lock.items() if name.startswith(below)}
    if not mine:
        return
    for _, wrong in compare(root, mine, strangers(folder, root, mine), contents):
        if wrong:
            raise DataError(
                f"{setting} = {where!r}: {wrong}; mend with python hpc/prefetch.py {root}"
                f"{f' --models {folder.name}' if below else ''}, or find out who changed it"
            )


def compare(
    root: Path, entries: dict[str, Entry], unknown: Iterable[Path] = (), contents: bool = True,
    anew: bool = False,
) -> Iterator[tuple[Path, str]]:  # fmt: skip
    """Each file of some entries, and each ``unknown`` one, with what is wrong with it, "" if nothing.

    ``anew``: compute every SHA-256, whatever is remembered.
    """
    seen, new = _seen(root), {}
    for name, entry in entries.items():
        path = root / name
        try:
            stat = path.stat()
        except OSError as error:
            yield path, f"{path}: {error.strerror}, the lock expects {entry.size} bytes"
            continue
        if stat.st_size != entry.size:
            yield path, f"{path}: found {stat.st_size} bytes, the lock expects {entry.size}"
            continue
        if contents:
            as_now = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, entry.sha256]
            if anew or seen.get(name) != as_now:
                found = sha256(path) if anew else known_sha256(path)
                if found != entry.sha256:
                    yield path, f"{path}: found SHA-256 {found}, the lock expects {entry.sha256}"
                    continue
                new[name] = as_now
        yield path, ""
    for path in unknown:
        yield path, f"{path}: it is not in {root / LOCK}; if it is yours move it elsewhere"
    if new:
        with suppress(OSError):  # another's folder: then each cell computes them
            write_json(root / SEEN, {**_seen(root), **new})


def weights_sha256(settings: Config, models: Iterable[str]) -> dict[str, str]:
    """SHA-256 of the files of weights that ``models``, in folders or files, load, by "model/file".

    Those that a lock names are taken from it, so ``verify`` comes first; others are computed, about a second
    a gigabyte, once in a process.
    """
    found = {}
    places = sources(settings.models)
    for model, where in ((model, places.get(model)) for model in models):
        if not where:
            continue
        root = root_of(where)
        lock = read_lock(root) if root else {}
        for name, path in loaded(model, where).items():
            entry = lock.get(path.absolute().relative_to(root).as_posix()) if root else None
            found[name] = entry.sha256 if entry else known_sha256(path)
    return found


def strangers(folder: Path, root: Path, entries: dict[str, Entry]) -> list[Path]:
    """Files of a model's folder that a lock does not know; hidden ones do not count.

    A model's classes would read them too: a configuration, or weights under another name.
    """
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return [
        path
        for path in found
        if path.relative_to(root).as_posix() not in entries
        and path.name != LOCK
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]


def _seen(root: Path) -> dict[str, list]:
    try:
        return dict(json.loads((root / SEEN).read_text()))
    except (OSError, ValueError, TypeError):
        return {}


# --- what is missing ------------------------------------------------------------------------------


def lacks(model: str, folder: Path) -> str:
    """The first thing without which a folder is no such model ("blip", "diffusion", "clip") or no
    tokenizer ("blip_tokenizer"); "" if nothing is missing."""
    if model == "backbones":  # each network that it lacks is told as not computed
        return ""
    if model == "blip_tokenizer":
        there = any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt"))
        return "" if there else "tokenizer.json"
    painter = model == "diffusion"
    top, parts = ("model_index.json", PARTS) if painter else ("config.json", ("",))
    ends = ENDINGS[:1] if painter else ENDINGS
    if not (folder / top).is_file():
        return top
    for part in parts:
        if not any(path.suffix in ends for path in (folder / part).glob("*")):
            return f"{part}/*.safetensors".lstrip("/")
    return ""


def is_path(where: str) -> bool:
    """Whether a setting names a file or folder, and no hub id."""
    looks = where.startswith(("/", ".", "~")) or where.endswith(ORIGINALS) or where.count("/") > 1
    return looks or Path(where).exists()


def missing(model: str, where: str) -> str:
    """What is missing of a model on this disk, and the command that fetches it; "" if nothing is.

    ``where`` is a folder, a .pth file (of BLIP) or a hub id, which is looked for in Hugging Face's cache.
    """
    if not is_path(where):
        found = snapshot(where)
        if found is not None and not lacks(model, found):
            return ""
        return (
            f"models.{model} = {where!r}: there is no such folder, and no weights of such a hub id are in "
            f"the cache {hub_cache()}; fetch them on a machine with a network, python hpc/prefetch.py FOLDER "
            f"--models {Path(where).name}={where}, and give models.{model}=FOLDER/{Path(where).name}"
        )
    path = Path(where).expanduser()
    if (
        model == "blip"
        and path.is_dir()
        and (inside := sorted(path.glob("*.pth")))
        and lacks(model, path)
    ):
        return f"models.{model} = {where!r}: that folder holds {inside[0].name}; give the file, {inside[0]}"
    if model == "blip" and (where.endswith(ORIGINALS) or path.is_file()):
        gap = "" if path.is_file() else "there is no such file"
    else:
        gap = "" if path.is_dir() else "there is no such folder"
        gap = gap or (f"no {lack} in it" if (lack := lacks(model, path)) else "")
    folder = path.parent if where.endswith(ORIGINALS) else path
    known = f"{folder.parent} --models {folder.name}" if (folder.parent / LOCK).is_file() else ""
    return gap and (
        f"models.{model} = {where!r}: {gap}{bound()}; mend the setting, or fetch the weights on a machine "
        f"with a network, python hpc/prefetch.py {known or 'FOLDER'}"
    )


# --- Hugging Face's cache -------------------------------------------------------------------------


def hub_cache() -> Path:
    """The folder in which Hugging Face's libraries keep what hub ids name, by the environment now."""
    asked = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    if asked:
        return Path(asked).expanduser()
    caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    home = os.environ.get("HF_HOME") or caches / "huggingface"
    return Path(home).expanduser() / "hub"


def use_cache(home: str) -> None:
    """Take ``home`` for HF_HOME in this process and in those that it starts."""
    os.environ["HF_HOME"] = home
    os.environ["HF_HUB_CACHE"] = str(Path(home) / "hub")


def cache_note(out: Path) -> Path:
    """The file of a run that names the cache of its tasks, where the site has one of its own."""
    return out / "jobs" / "hf-home"


def use_kept_cache(out: Path) -> None:
    """Take the cache that a run's tasks have, by its note; nothing where there is none.

    Raises
    ------
    DataError
        The note cannot be read, or is no path.
    """
    note = cache_note(out)
    try:
        home = note.read_text(encoding="utf-8")
        check_path(str(note), home)
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, ValueError, UsageError) as error:
        raise DataError(
            f"{note}: holds no folder of weights ({first_line(error)}); give the launch command again, which "
            "writes it"
        ) from None
    use_cache(home)


def snapshot(repo: str) -> Path | None:
    """The folder of the cache that a hub id stands for (its name is the commit hash), if there is one."""
    place = hub_cache() / f"models--{repo.replace('/', '--')}"
    try:
        folder = place / "snapshots" / (place / "refs" / "main").read_text().strip()
    except OSError:
        return None
    return folder if folder.is_dir() else None


def offline(name: str = "") -> bool:
    """Whether the libraries are told to use no network, by the variables HF_HUB_OFFLINE (with ``name`` put
    before it) and TRANSFORMERS_OFFLINE."""
    told = os.environ.get(f"{name}HF_HUB_OFFLINE") or os.environ.get(f"{name}TRANSFORMERS_OFFLINE")
    return (told or "").upper() in ("1", "ON", "YES", "TRUE")
