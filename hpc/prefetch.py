"""Fetch the weights of a full-size run into one folder, for jobs that have no network.

    python hpc/prefetch.py FOLDER                                  # on a login node; about 6 GB
    python hpc/prefetch.py FOLDER --models NAME=REPO[@REVISION] ...  # others, or a mirror's
    python hpc/prefetch.py FOLDER --check                          # no network: every file's SHA-256

Each model comes into FOLDER/NAME as plain files, only those that are needed: configurations, the tokenizer,
and the weights in one format (safetensors; PyTorch's .bin where a repository has no other). FOLDER's
weights.lock.json says of each file where it is from (repository, full commit hash, path there), its size, its
SHA-256 and its licence by the model's card.

What pins the weights is that lock. No revision stands in this program: the first fetch takes what REVISION
(default main) is on that day and writes its commit hash down. With a lock there, the same revisions are
meant, and a file whose SHA-256 is another one is refused; --update takes the revisions anew. To have what
someone else had, put their weights.lock.json into FOLDER before: its models are fetched from where it says,
and those of the four above that it does not name. --models NAME fetches one alone.

A run that was stopped goes on: files that are there with the right SHA-256 are not fetched again. Exit codes:
0; 2 usage; 65 something differs, is missing or cannot be fetched.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from nsdcap import weights
from nsdcap.download import alone, check_room, from_hub, from_url, head, settle
from nsdcap.dry_run import size as in_words
from nsdcap.errors import DataError, NsdcapError, UsageError
from nsdcap.hub import needed, reason
from nsdcap.model_files import sha256
from nsdcap.weights import LOCK, Entry


@dataclass(frozen=True)
class Source:
    """Where a model is from: ``repo`` is a hub id, or the URL of one file, whose ``licence`` no card tells.

    ``setting`` is what the model is for, ``tokenizer_only`` leaves its weights where they are.
    """

    repo: str
    revision: str = ""
    setting: str = ""
    licence: str = ""
    tokenizer_only: bool = False


@dataclass(frozen=True)
class Item:
    """A file that is to be there: its path below the folder, its lock entry (``sha256`` "" where that is not
    known before), and what fetches it to a path."""

    path: str
    entry: Entry
    fetch: Callable[[Path], None]


BLIP = "https://storage.googleapis.com/sfr-vision-language-research/BLIP/models"
DEFAULTS = {
    # the paper's pre-trained base; Salesforce/blip-image-captioning-base is the one tuned for captions
    "blip": Source(f"{BLIP}/model_base_capfilt_large.pth", setting="models.blip",
                   licence="bsd-3-clause (LICENSE.txt of github.com/salesforce/BLIP)"),
    "bert-base-uncased": Source("google-bert/bert-base-uncased", setting="models.blip_tokenizer",
                                tokenizer_only=True),
    "stable-diffusion-v1-4": Source("CompVis/stable-diffusion-v1-4", setting="models.diffusion"),
    "clip-vit-base-patch32": Source("openai/clip-vit-base-patch32", setting="models.clip"),
}  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = build_parser().parse_args(arguments)
    try:
        folder = options.folder.expanduser().absolute()
        if options.check:
            return check(folder)
        known = DEFAULTS | locked(weights.read_lock(folder), options.update)
        return fetch(folder, chosen(options.models, known), options.update)
    except NsdcapError as error:
        print(f"prefetch: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("prefetch: stopped; the same command goes on where this one ended", file=sys.stderr)
        return 130


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python hpc/prefetch.py", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("folder", type=Path, metavar="FOLDER", help="where the models come to")
    add("--models", nargs="+", default=[], metavar="NAME[=REPO[@REVISION]]",
        help=f"only these: {', '.join(DEFAULTS)}, one of the lock's, NAME=OWNER/REPO or "
             "NAME=https://.../FILE")  # fmt: skip
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--update", action="store_true",
                       help="take what the revisions are now, and write the lock anew")  # fmt: skip
    group.add_argument("--check", action="store_true",
                       help="hold every file against the lock; needs no network")  # fmt: skip
    return parser


def locked(lock: dict[str, Entry], update: bool) -> dict[str, Source]:
    """The sources of a lock's models, at its revisions; with ``update`` at those that there are now."""
    found = {}
    for path, entry in lock.items():
        name = path.partition("/")[0]
        usual = DEFAULTS.get(name, Source(""))
        revision = "" if update else entry.revision
        found[name] = Source(
            entry.repo, revision, usual.setting, entry.licence, usual.tokenizer_only
        )
    return found


def chosen(given: list[str], known: dict[str, Source]) -> dict[str, Source]:
    """The sources by their names, of ``--models``; without it all that are ``known``.

    Raises
    ------
    UsageError
        A name that is no plain folder's, or is not known and has no source.
    """
    found: dict[str, Source] = {}
    for text in given or list(known):
        name, _, where = text.partition("=")
        if not re.fullmatch(r"[\w][\w.-]*", name) or name == LOCK:
            raise UsageError(
                f"--models: found {text!r}, expected NAME=REPO with a NAME like clip-b32"
            )
        if where:
            repo, _, revision = (where, "", "") if "://" in where else where.partition("@")
            usual = DEFAULTS.get(name, Source(""))
            licence = usual.licence if "://" in repo else ""
            found[name] = Source(repo, revision, usual.setting, licence, usual.tokenizer_only)
        elif name in known:
            found[name] = known[name]
        else:
            raise UsageError(
                f"--models: found {name!r}, expected NAME=REPO or one of {', '.join(known)}"
            )
    return found


def fetch(folder: Path, sources: dict[str, Source], update: bool) -> int:
    """Bring each source's files to ``folder`` and into its lock; what is there already is not fetched.

    The lock is written after each source, so a run that is stopped keeps those before.

    Raises
    ------
    DataError
        No network, no such repository or revision, gated, the disk too small, or a file that is not what
        the lock says.
    """
    with alone(folder, "prefetch") as hidden:
        staging = hidden / "hub"
        shutil.rmtree(staging, ignore_errors=True)  # of one that was killed
        lock = weights.read_lock(folder)
        for name, source in sources.items():
            mine = {path: entry for path, entry in lock.items() if path.startswith(f"{name}/")}
            items = plan(name, source, {} if update else mine, staging)
            absent = [item for item in items if not (folder / item.path).exists()]
            check_room(folder, sum(item.entry.size for item in absent))
            got = {item.path: bring(folder, item, update) for item in items}
            for path in sorted({*mine} - {*got}):
                (folder / path).unlink(missing_ok=True)
            lock = {path: entry for path, entry in lock.items() if path not in mine} | got
            weights.write_lock(folder, lock)
            # the last word: what a cell would say of it
            weights.verify(name, str(folder / name))
            told = sorted({(entry.repo, entry.revision, entry.licence) for entry in got.values()})
            for repo, revision, licence in told:
                at = f" at {revision}" if revision else ""
                print(f"{name}: {len(got)} files of {repo}{at}; licence: {licence}", flush=True)
    print(f"{folder / LOCK}: {len(lock)} files, {in_words(sum(e.size for e in lock.values()))}")
    for name, source in sources.items():
        if source.setting:
            only = [Path(path).name for path in lock if path.startswith(f"{name}/")]
            file = only[0] if len(only) == 1 else ""
            print(f"--set {source.setting}={folder / name / file}")
    return 0


def check(folder: Path) -> int:
    """Print whether each file is what the lock says; 65 if one is not, or is not in the lock."""
    lock = weights.read_lock(folder)
    if not lock:
        raise DataError(
            f"{folder / LOCK}: there is no such file, or it names no files; fetch first"
        )
    models = sorted({folder / path.partition("/")[0] for path in lock})
    unknown = [path for model in models for path in weights.strangers(model, folder, lock)]
    wrong = 0
    for path, what in weights.compare(folder, lock, unknown, anew=True):
        print(f"WRONG {what}" if what else f"ok    {path}", flush=True)
        wrong += bool(what)
    total = in_words(sum(entry.size for entry in lock.values()))
    print(f"{len(lock)} files, {total}: " + (f"{wrong} wrong" if wrong else "all as the lock says"))
    return 65 if wrong else 0


# --- what is to be there --------------------------------------------------------------------------


def plan(name: str, source: Source, locked: dict[str, Entry], staging: Path) -> list[Item]:
    """The files of a source: those of the lock, without asking anyone, or else those that there are now.

    Raises
    ------
    DataError
        The lock is of another repository or revision than was asked for; see ``fetch``.
    """
    if locked:
        _agree(name, source, locked)
        return [Item(path, entry, _fetcher(entry, staging)) for path, entry in locked.items()]
    if "://" in source.repo:
        return [_of_url(name, source, staging)]
    info = _info(source.repo, source.revision or "main")
    files = {file.rfilename: file for file in info.siblings or ()}
    names = needed(files, source.tokenizer_only)
    if not source.tokenizer_only and not any(n.endswith(weights.ENDINGS) for n in names):
        raise DataError(f"{source.repo}: found no weights among its {len(files)} files")
    licence, found = _licence(info), []
    for file in names:
        lfs = files[file].lfs
        entry = Entry(
            source.repo, info.sha, file, files[file].size, lfs.sha256 if lfs else "", licence
        )
        found.append(Item(f"{name}/{file}", entry, _fetcher(entry, staging)))
    return found


def _agree(name: str, source: Source, locked: dict[str, Entry]) -> None:
    """Refuse a lock that is of something else than what was asked for."""
    entry = next(iter(locked.values()))
    asked = source.revision
    if asked and source.repo == entry.repo and not entry.revision.startswith(asked):
        asked = _info(source.repo, asked).sha
    if source.repo != entry.repo or not entry.revision.startswith(asked):
        raise DataError(
            f"{name}: {LOCK} pins {entry.repo}@{entry.revision}, asked for is {source.repo}@{asked}; --update "
            "writes the lock anew, or give another NAME"
        )


def _info(repo: str, revision: str) -> Any:
    """The hub's answer about a revision: ``sha``, ``siblings`` with sizes, ``card_data``."""
    from huggingface_hub import HfApi

    try:
        return HfApi().model_info(repo, revision=revision, files_metadata=True)
    except Exception as error:
        raise DataError(f"{repo}@{revision}: {reason(error, repo)}") from error


def _licence(info: Any) -> str:
    card = info.card_data.to_dict() if info.card_data else {}
    words = [str(card[key]) for key in ("license", "license_name", "license_link") if card.get(key)]
    words = words or [tag[8:] for tag in info.tags or () if tag.startswith("license:")]
    return ", ".join(words) or "none stated in the model's card"


# --- fetching -------------------------------------------------------------------------------------


def bring(folder: Path, item: Item, update: bool) -> Entry:
    """Have an item's file in place, whole or not at all; returns its entry with the SHA-256 it has.

    Raises
    ------
    DataError
        It cannot be fetched, or is not what it should be.
    """
    target, entry = folder / item.path, item.entry
    if entry.sha256 and target.is_file() and target.stat().st_size == entry.size:
        if sha256(target) == entry.sha256:
            return entry
        print(f"{item.path}: is not what it should be, fetched anew", flush=True)
    partial = target.with_name(f".{target.name}.partial")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        item.fetch(partial)
    except OSError as error:
        raise DataError(f"{item.path}: {reason(error, entry.repo)}") from error
    found, n_bytes = sha256(partial), partial.stat().st_size
    if n_bytes != entry.size or (entry.sha256 and found != entry.sha256):
        partial.unlink()
        wanted = f"{entry.size} bytes" + (f" of SHA-256 {entry.sha256}" if entry.sha256 else "")
        raise DataError(
            f"{item.path}: {entry.repo} gave {n_bytes} bytes of SHA-256 {found}, expected {wanted}; what is "
            "pinned has changed there (--update takes it as it is now) or came damaged (run it again)"
        )
    settle(partial, target)
    print(f"{item.path}: fetched, {in_words(n_bytes)}", flush=True)
    return Entry(entry.repo, entry.revision, entry.file, n_bytes, found, entry.licence)


def _fetcher(entry: Entry, staging: Path) -> Callable[[Path], None]:
    if "://" in entry.repo:
        return lambda target: from_url(entry.repo, entry.size, target)
    return lambda target: from_hub(entry.repo, entry.revision, entry.file, staging, target)


def _of_url(name: str, source: Source, staging: Path) -> Item:
    """The item of a single file at a URL; its SHA-256 is not known before."""
    file = Path(urlsplit(source.repo).path).name
    n_bytes = head(source.repo)[0]
    if n_bytes < 0 or not file:
        raise DataError(
            f"{source.repo}: the server does not tell a file's size; expected a file's URL"
        )
    entry = Entry(source.repo, "", file, n_bytes, "", source.licence or "not known: a plain URL")
    return Item(f"{name}/{file}", entry, _fetcher(entry, staging))


if __name__ == "__main__":
    sys.exit(main())
