"""Fetch what a run reads of the Natural Scenes Dataset (NSD), and COCO's captions, into one folder.

    python hpc/fetch_nsd.py FOLDER --dry-run         # every file with its size, and the sum; writes nothing
    python hpc/fetch_nsd.py FOLDER                   # the paper's subjects and sessions; asks about NSD's terms
    python hpc/fetch_nsd.py FOLDER --subjects 1 --sessions 10
    python hpc/fetch_nsd.py FOLDER --check           # no network: the files against nsd-files.json

The files are those that the stages read (nsdcap/nsd_files.py), from NSD's public bucket, for which no account
is needed, and under the same paths; a run takes them by --nsd-root FOLDER. Before anything is fetched NSD's
terms are named and must be accepted, by typing yes or by --accept-terms: who did and when is kept in
FOLDER/nsd-terms-accepted.json. Captions come from COCO's own server, out of annotations_trainval2017.zip.

A run that was stopped, or lost its network, goes on with the same command, within a file too. A file that is
there with the size that the server tells stays; one of another size is fetched again. FOLDER/nsd-files.json
says of each its size, ETag, from where and when. An ETag that is an MD5 is checked; that of a file which was
uploaded in parts (it has a "-"; all large ones are) is no checksum: of those only the size is known.

Exit codes: 0; 2 usage, or the terms are not accepted; 65 something differs, is missing or does not fit the
disk; 69 no network, or the server refuses or is out of order; 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from nsdcap import bucket, config, fetching, nsd_terms
from nsdcap.config import Config
from nsdcap.download import NoServer, alone, check_room, head
from nsdcap.dry_run import size as in_words
from nsdcap.errors import DataError, NsdcapError, UsageError, unread
from nsdcap.fetching import Task
from nsdcap.nsd import NSD
from nsdcap.nsd_files import KINDS, OPTIONAL, wanted
from nsdcap.paths import write_json

BUCKET = "https://natural-scenes-dataset.s3.amazonaws.com"  # in us-east-2
COCO = "http://images.cocodataset.org/annotations/annotations_trainval2017.zip"
COCO_SHA1 = "8551ee4bb5860311e79dace7e79cb91e432e78b3"
FILES = "nsd-files.json"
SKIPPED = ("betas", "stimuli", "surfaces", "coco")


@dataclass(frozen=True)
class Row:
    """A file that is to be there: its key, size, and why it is fetched ("": it is there already)."""

    key: str
    size: int
    why: str
    task: Task


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = build_parser().parse_args(arguments)
    folder = options.folder.expanduser().absolute()
    try:
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"{folder}: found a file, expected a folder, or a name for one")
        if options.check:
            return check(folder)
        return fetch(folder, settings_of(options), options)
    except NoServer as error:
        print(f"fetch_nsd: {error}", file=sys.stderr)
        return 69
    except NsdcapError as error:
        print(f"fetch_nsd: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        return unread()
    except OSError as error:
        what = f"{error.filename or folder}: {error.strerror or error}"
        print(f"fetch_nsd: {what}; mend it, the same command goes on", file=sys.stderr)
        return 65
    except KeyboardInterrupt:
        print("fetch_nsd: stopped; the same command goes on where this one ended", file=sys.stderr)
        return 130


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python hpc/fetch_nsd.py", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("folder", type=Path, metavar="FOLDER", help="NSD's root, where the files come to")
    add("--subjects", nargs="+", type=int, metavar="N", help="default: 1 2 5 7, or --config's")
    add("--sessions", type=int, metavar="N",
        help="the first N sessions, 0: all that there are; default: 37, or --config's")  # fmt: skip
    add("--betas", metavar="NAME", help="default: betas_fithrf_GLMdenoise_RR, or --config's")
    add("--nifti", action="store_true", help="betas as .nii.gz in place of .hdf5 (slower to read)")
    add("--skip", nargs="+", default=[], choices=SKIPPED, metavar="KIND",
        help=f"leave out some of: {', '.join(SKIPPED)}")  # fmt: skip
    add("--config", type=Path, metavar="FILE", help="take subjects, sessions and betas of a run")
    add("--jobs", type=int, default=8, metavar="N", help="files at once, 8 by default")
    add("--from", dest="base", default=BUCKET, metavar="URL", help="another server of NSD's layout")
    add(
        "--coco",
        default=COCO,
        metavar="URL",
        help="another place of COCO's annotations_trainval2017.zip",
    )
    add("--accept-terms", action="store_true",
        help="NSD's terms are agreed to and its agreement is filled in")  # fmt: skip
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--dry-run", action="store_true", help="list the files, fetch nothing")
    group.add_argument("--check", action="store_true",
                       help=f"hold the files against {FILES}; needs no network")  # fmt: skip
    return parser


def settings_of(options: argparse.Namespace) -> Config:
    """The settings of a run, by ``--config`` and the options over it; checks those that are none of a run's.

    Raises
    ------
    UsageError
        What was given, and what is expected.
    """
    given = {"subjects": options.subjects, "sessions": options.sessions, "betas": options.betas}
    words = tuple(f"data.{k}={json.dumps(v)}" for k, v in given.items() if v is not None)
    settings = config.load(options.config, settings=words)
    for name in ("betas", "space"):
        value = getattr(settings.data, name)
        if not re.fullmatch(r"\w[\w.-]*", value):
            raise UsageError(
                f"data.{name}: found {value!r}, expected the name of one of NSD's folders"
            )
    if not 1 <= options.jobs <= 64:
        raise UsageError(f"--jobs: found {options.jobs}, expected 1 to 64")
    for name, url in (("--from", options.base), ("--coco", options.coco)):
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"{name}: found {url!r}, expected http://... or https://...")
        if "@" in parts.netloc:
            raise UsageError(
                f"{name}: a name or password in the URL would be kept in {FILES}; leave it out"
            )
    return settings


def fetch(folder: Path, settings: Config, options: argparse.Namespace) -> int:
    """List, or bring, the files that are to be in ``folder``; returns the exit code.

    Raises
    ------
    UsageError
        The terms are not accepted, or the folder cannot be written.
    NoServer, DataError
        See the top of this file.
    """
    if not options.dry_run:
        agreed = nsd_terms.accepted(folder)
        if not agreed:
            nsd_terms.agree(options.accept_terms)
    rows = plan(folder, settings, options)
    tasks = [row.task for row in rows if row.why]
    total, absent = sum(row.size for row in rows), sum(task.missing for task in tasks)
    if options.dry_run:
        for row in rows:
            print(f"{in_words(row.size):>8}  {row.key}  {row.why or 'there'}".rstrip())
    print(
        f"{len(rows)} files, {in_words(total)}; to be fetched: {len(tasks)}, {in_words(absent)}",
        flush=True,
    )
    if options.dry_run:
        return 0
    check_room(folder, sum(task.room for task in tasks))
    with alone(folder, "fetch"):
        if not agreed:
            nsd_terms.record(folder)
        manifest = read_manifest(folder)
        for row in rows:
            if not row.why and manifest.get(row.key, {}).get("size") != row.size:
                manifest[row.key] = entry(row.task, "", row.size)
        write_manifest(folder, manifest)

        def done(task: Task) -> None:
            for key, path in results(task):
                manifest[key] = entry(task, now(), path.stat().st_size)
            write_manifest(folder, manifest)
            print(f"{task.key}: fetched, {in_words(task.size)}", flush=True)

        failed = fetching.fetch_all(tasks, options.jobs, done) if tasks else {}
    if failed:
        refused = [error for error in failed.values() if isinstance(error, NoServer)]
        text = "; ".join(str(error) for error in [*failed.values()][:3])
        text = f"{len(failed)} of {len(tasks)} files could not be fetched: {text}"
        raise NoServer(text) if refused else DataError(text)
    print(f"{folder}: {len(rows)} files, {in_words(total)}, are there. --nsd-root {folder}")
    return 0


# --- what is to be there --------------------------------------------------------------------------


def plan(folder: Path, settings: Config, options: argparse.Namespace) -> list[Row]:
    """Every file that is to be there, with its size on the server; those that are there already have no why.

    Raises
    ------
    DataError
        The server lacks some, and which.
    NoServer
        See ``bucket.find``.
    """
    data, base = settings.data, options.base
    nsd = NSD(folder, data.betas, data.space)
    keys: dict[str, str] = {}
    coco = []
    for kind in [kind for kind in KINDS if kind not in options.skip]:
        for s in data.subjects:
            sessions = (
                sessions_at(base, nsd, s, data.sessions, options.nifti) if kind == "betas" else []
            )
            for path in wanted(nsd, kind, (s,), sessions, options.nifti):
                key = path.relative_to(folder).as_posix()
                if path.suffix == ".json":
                    coco.append(path)
                else:
                    keys[key] = kind
    found = bucket.find(base, keys)
    lacking = [key for key in keys if key not in found]
    if missing := [key for key in lacking if keys[key] not in OPTIONAL]:
        raise DataError(
            f"{base} lacks {len(missing)} of {len(keys)} files, the first {missing[0]}; choose subjects, "
            "--sessions and --betas that it has (of subjects 3 and 6 there are 32 sessions, of 4 and 8 30)"
        )
    if lacking:
        print(
            f"note: {base} lacks {len(lacking)} files, {lacking[0]} for one; a run can do without them"
        )
    manifest, rows = read_manifest(folder), []
    for key, one in found.items():
        path = bucket.place(folder, key)
        task = Task(key, bucket.address(base, key), one.size, one.etag, path)
        rows.append(Row(key, one.size, _why(path, task, manifest.get(key)), task))
    elsewhere = data.annotations and Path(data.annotations).absolute() != folder / "annotations"
    if elsewhere:
        print(
            f"note: COCO's captions are those of data.annotations, {data.annotations}, and not fetched"
        )
    elif "coco" not in options.skip:
        rows += _coco_rows(folder, sorted({*coco}), options.coco, manifest)
    return rows


def sessions_at(base: str, nsd: NSD, subject: int, sessions: int, nifti: bool) -> list[int]:
    """The first so many sessions, or all that the server lists of a subject."""
    if sessions:
        return list(range(1, sessions + 1))
    key = nsd.betas_dir(subject).relative_to(nsd.root).as_posix()
    name = re.compile(r"betas_session(\d\d)" + (r"\.nii\.gz" if nifti else r"\.hdf5"))
    try:
        names = [name.fullmatch(one.rpartition("/")[2]) for one in bucket.listing(base, key)]
    except bucket.NoListing as error:
        raise DataError(f"{error}; name how many --sessions there are") from None
    return sorted(int(match[1]) for match in names if match) or [1]


def _why(path: Path, task: Task, known: dict[str, Any] | None) -> str:
    if not path.is_file():
        return "to be fetched"
    here = path.stat().st_size
    if here != task.size:
        return f"to be fetched again: found {here} bytes, expected {task.size}"
    etags = {known["etag"], task.etag} if known and known["from"] == task.url else {""}
    if "" not in etags and len(etags) > 1:
        return "to be fetched again: the server has another version"
    return ""


def _coco_rows(folder: Path, paths: list[Path], url: str, manifest: dict[str, Any]) -> list[Row]:
    """COCO's captions: one row a file where they are there, else one of the zip that holds them."""
    rows = []
    for path in paths:
        key = path.relative_to(folder).as_posix()
        known = manifest.get(key)
        size = path.stat().st_size if path.is_file() else -1
        if size < 0 or not (known["size"] == size if known else fetching.are_captions(path)):
            break
        rows.append(Row(key, size, "", Task(key, "", size, "", path)))
    else:
        return rows
    try:
        size, etag = head(url)
        if size < 0:
            raise DataError(f"{url}: the server does not tell the file's size")
    except DataError as error:
        names = " and ".join(path.name for path in paths)
        text = f"{error}; or put {names} into {folder}/annotations, or --skip coco"
        raise (NoServer(text) if isinstance(error, NoServer) else DataError(text)) from None
    zipped = folder / "annotations" / Path(urlsplit(url).path).name
    members = tuple(f"annotations/{path.name}" for path in paths)
    sha1 = COCO_SHA1 if url == COCO else ""  # it comes without encryption
    task = Task(zipped.relative_to(folder).as_posix(), url, size, etag, zipped, members, sha1)
    return [Row(task.key, size, "to be fetched, for its captions_{train,val}2017.json", task)]


# --- what was fetched -----------------------------------------------------------------------------


def read_manifest(folder: Path) -> dict[str, Any]:
    """``nsd-files.json``: key -> size, etag, from, fetched; empty where there is none.

    Raises
    ------
    DataError
        It cannot be read, or names a file outside the folder.
    """
    path = folder / FILES
    try:
        found = json.loads(path.read_bytes())["files"]
        for key, one in found.items():
            bucket.place(folder, key)
            if not isinstance(one["size"], int) or not isinstance(one["etag"] + one["from"], str):
                raise TypeError(key)
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: cannot be read ({error!r}); remove it, and run the fetch again"
        ) from None
    return dict(found)


def write_manifest(folder: Path, files: dict[str, Any]) -> None:
    """Write ``nsd-files.json``, whole or not at all."""
    write_json(folder / FILES, {"format": 1, "files": {key: files[key] for key in sorted(files)}})


def entry(task: Task, fetched: str, size: int) -> dict[str, Any]:
    """A file's entry; ``fetched`` "" where it was there before."""
    etag = "" if task.members else task.etag  # the zip's is not that of what it holds
    return {"size": size, "etag": etag, "from": task.url, "fetched": fetched}


def results(task: Task) -> list[tuple[str, Path]]:
    """The files that a task leaves, with their keys."""
    names = [Path(member).name for member in task.members] or [task.path.name]
    where = task.key.rpartition("/")[0]
    return [(f"{where}/{name}", task.path.with_name(name)) for name in names]


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def check(folder: Path) -> int:
    """Print whether each file of ``nsd-files.json`` is there with its size, and MD5 where that is known; 65 if
    one is not."""
    manifest = read_manifest(folder)
    if not manifest:
        raise DataError(
            f"{folder / FILES}: there is no such file, or it names no files; fetch first"
        )
    wrong = 0
    for key, one in sorted(manifest.items()):
        path = bucket.place(folder, key)
        size = path.stat().st_size if path.is_file() else -1
        what = ""
        if size != one["size"]:
            what = f"found {size} bytes, expected {one['size']}" if size >= 0 else "it is not there"
        elif (md5 := bucket.md5_of(one["etag"])) and (
            found := fetching.checksum(path, "md5")
        ) != md5:
            what = f"found MD5 {found}, expected {md5}"
        print(f"WRONG {key}: {what}" if what else f"ok    {key}")
        wrong += bool(what)
    total = in_words(sum(one["size"] for one in manifest.values()))
    sums = sum(bool(bucket.md5_of(one["etag"])) for one in manifest.values())
    print(f"{len(manifest)} files, {total}, {sums} of them with an MD5: {wrong or 'none'} wrong")
    return 65 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
