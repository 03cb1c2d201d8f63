"""From what a result of a run was made, whether it is still what was made, and where two runs part.

It reads sidecars alone, so a run can be asked that was copied from another machine.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nsdcap.errors import DataError, NsdcapError, UsageError, unread
from nsdcap.options import STAGE_NAMES
from nsdcap.paths import DONE
from nsdcap.provenance import digest

Notes = dict[str, dict[str, Any]]  # sidecars by the name of their cell, in the order of the stages
_LONG = 12  # digits of a hash that are printed


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m nsdcap.provenance",
        description=__doc__,
        epilog="Exit codes: 0 well, 1 --against found a difference, 2 usage, 65 --check found a change.",
    )
    parser.add_argument("out", type=Path, help="the run's folder")
    parser.add_argument("cell", nargs="*", help="of this cell, as in: decode subj01 (default: all)")
    parser.add_argument("--check", action="store_true",
                        help="compute each artefact's SHA-256 and hold it against its sidecar")  # fmt: skip
    parser.add_argument("--against", type=Path, metavar="OTHER",
                        help="another run: the first cells that differ, and what they rest on")  # fmt: skip
    options = parser.parse_args(arguments)
    try:
        notes = read(options.out)
        name = " ".join(options.cell)
        if name and name not in notes:
            raise UsageError(
                f"{name}: no such cell is done in {options.out}; expected one of {', '.join(notes)}"
            )
        wanted = {own: notes[own] for own in notes if not name or own in ancestry(notes, name)}
        if options.check:
            check(options.out, wanted)
        if options.against:
            told = list(partings(wanted, read(options.against)))
            print("\n".join(told) or "all results are the same")
            return 1 if told else 0
        print("\n".join(tree(notes, name) if name else [_line(own, notes[own]) for own in notes]))
        return 0
    except NsdcapError as error:
        print(f"nsdcap.provenance: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        return unread()


def read(out: Path) -> Notes:
    """The sidecars of a run.

    Raises
    ------
    UsageError, DataError
        There is none, or one is broken or of an older nsdcap.
    """
    found: Notes = {}
    for stage in STAGE_NAMES:
        for path in sorted([*out.glob(f"{stage}/*{DONE}"), *out.glob(f"{stage}{DONE}")]):
            try:
                note = json.loads(path.read_bytes())
                note["artefact"]["sha256"], note["inputs"], note["depends"]["settings"]
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"{path}: cannot be read as a sidecar with hashes ({error!r}); run its cell again"
                ) from None
            found[note["cell"]] = {**note, "place": str(path.relative_to(out))[: -len(DONE)]}
    if not found:
        raise UsageError(f"{out}: found no result with a sidecar; give the folder of a run (--out)")
    return found


def ancestry(notes: Notes, name: str) -> set[str]:
    """A cell and all that it was made from, as far as their sidecars are there."""
    inputs = notes[name]["inputs"] if name in notes else {}
    return {name}.union(*(ancestry(notes, other) for other in inputs))


def tree(notes: Notes, name: str, depth: int = 0, known: str = "") -> Iterator[str]:
    """Lines of a cell and, below it, its inputs; ``known``: the hash by which it was read."""
    note = notes.get(name)
    if note is None:
        yield f"{'  ' * depth}{name} {known[:_LONG]}, no longer there"
        return
    other = known and known != note["artefact"]["sha256"]
    yield "  " * depth + _line(name, note) + (f"; READ AS {known[:_LONG]}" if other else "")
    for below, digest_then in note["inputs"].items():
        yield from tree(notes, below, depth + 1, digest_then)


def _line(name: str, note: dict[str, Any]) -> str:
    code = note.get("code", {})
    changed = " with changes" if code.get("changed") else ""
    return (
        f"{name} {note['artefact']['sha256'][:_LONG]}, {note.get('ended', '')}, "
        f"nsdcap {note['depends']['version']} {code.get('commit', '')[:_LONG]}{changed}, "
        f"{note.get('host', {}).get('name', '')}"
    )


def check(out: Path, notes: Notes) -> None:
    """Hold artefacts on disk against their sidecars, and what each was read as against what is there.

    Raises
    ------
    DataError
        The files that were changed after they were made; or else results of inputs that are others now.
    """
    changed, apart = [], []
    for name, note in notes.items():
        path = out / note["place"]
        if not path.exists():
            changed.append(f"{path} is missing")
        elif (now := digest(path)) != note["artefact"]:
            changed.append(
                f"{path} has SHA-256 {now['sha256']}, was made as {note['artefact']['sha256']}"
            )
        for other, then in note["inputs"].items():
            if other in notes and notes[other]["artefact"]["sha256"] != then:
                apart.append(f"{name} was made from another {other}")
    if changed:
        raise DataError(
            f"{'; '.join(changed)}: changed after it was made; run the cell again, with --force"
        )
    if apart:
        raise DataError(f"{'; '.join(apart)}; run it again, with --force")


def partings(notes: Notes, others: Notes) -> Iterator[str]:
    """Where two runs part: cells whose results differ while their inputs are the same, and in what else
    they differ."""
    for name, note in notes.items():
        other = others.get(name)
        if other is None:
            yield f"{name}: not in the other run"
        elif note["inputs"].keys() != other["inputs"].keys():
            yield f"{name}: made from other cells, see subjects and layers"
        elif note["artefact"] != other["artefact"] and note["inputs"] == other["inputs"]:
            about = [*_unlike(note, other)] or ["nothing that is noted differs"]
            yield f"{name}: {'; '.join(about)}"


def _unlike(note: dict[str, Any], other: dict[str, Any]) -> Iterator[str]:
    kinds = {
        "setting": (note["depends"]["settings"], other["depends"]["settings"]),
        "setting for speed": (note.get("speed", {}), other.get("speed", {})),
        "weights": (note.get("weights_sha256", {}), other.get("weights_sha256", {})),
        "file": (note["depends"]["files"], other["depends"]["files"]),
        "code": (note.get("code", {}), other.get("code", {})),
        "version of": (note.get("versions", {}), other.get("versions", {})),
        "host": (note.get("host", {}), other.get("host", {})),
        "threads": (note.get("threads", {}), other.get("threads", {})),
        "GPU": (_cards(note), _cards(other)),
    }
    for kind, (mine, its) in kinds.items():
        for key in sorted({*mine, *its}):
            if mine.get(key) != its.get(key):
                yield f"{kind} {key}: {json.dumps(mine.get(key))}, there {json.dumps(its.get(key))}"


def _cards(note: dict[str, Any]) -> dict[str, Any]:
    """GPUs by name, without what was used of them."""
    gpus = note.get("gpu") or {}
    every = gpus if isinstance(gpus, list) else [gpus]
    names = [card["name"] for gpu in every for card in gpu.get("torch", [])]
    names += [gpu["cupy"]["name"] for gpu in every if "cupy" in gpu]
    return {"names": sorted(set(names)), "driver": [gpu.get("driver", "") for gpu in every][:1]}
