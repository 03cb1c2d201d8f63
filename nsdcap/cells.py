"""Is a cell done, and if not, why; and the one function that does it, wherever it runs."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from itertools import groupby
from pathlib import Path
from typing import Any

from nsdcap import __version__, config, outside, parts, provenance, reasons, shards, weights
from nsdcap.config import Config
from nsdcap.errors import DataError, NsdcapError, absent, bound
from nsdcap.hub import at_hand
from nsdcap.paths import (
    DONE,
    FAILED,
    Cell,
    artefact,
    atomic,
    config_file,
    failure,
    name_of,
    place,
    sidecar,
    write_json,
)
from nsdcap.stages import STAGES, counted

ENDS = ("", DONE, FAILED)  # of an artefact's path: itself, and what may lie beside it

Reader = Callable[[Cell], dict[str, Any]]  # of sidecars


class Incomplete(NsdcapError):
    """A cell whose inputs are not done yet."""

    exit_code = 75


@dataclass(frozen=True)
class State:
    """What is known of a cell: done, stale, failed or missing, and why it is not done."""

    cell: Cell
    word: str
    reason: str = ""


def sessions_of(settings: Config, nsd: Any, subject: int | None) -> list[int]:
    """The sessions that are read: the setting's first ones, or (0) all that there are.

    Without a subject, for the shared pictures: as many as the subject with the most has.
    """
    if settings.data.sessions:
        return list(range(1, settings.data.sessions + 1))
    subjects = settings.data.subjects if subject is None else (subject,)
    return max((nsd.sessions_available(s) for s in subjects), key=len)


def open_nsd(settings: Config) -> Any:
    """The reader for a configuration."""
    from nsdcap.nsd import NSD

    if not settings.data.nsd_root:
        raise DataError("data.nsd_root is empty: give --nsd-root, the folder that holds nsddata/")
    root = Path(settings.data.nsd_root)
    if not (root / "nsddata").is_dir():
        raise absent(
            f"NSD root {root}: found no folder nsddata/ there; give NSD's top folder{bound()}"
        )
    annotations = Path(settings.data.annotations) if settings.data.annotations else None
    return NSD(root, settings.data.betas, settings.data.space, annotations)


class Ledger:
    """Which cells of a run are done. What a cell's result depends on is written beside it, as
    settings, files read (see ``outside``) and the signatures of its inputs, and compared.

    A ledger looks at each file from outside once, when it is first asked; a new one looks again.
    """

    def __init__(self, settings: Config, out: Path):
        self.settings, self.out, self.nsd = settings, out, open_nsd(settings)
        self._look_again()

    def _look_again(self) -> None:
        """Forget what was found outside."""
        self._depends: dict[Cell, dict[str, Any]] = {}
        self._common: dict[Cell, tuple[dict[str, Any], str]] = {}
        self._found: dict[tuple[str, Any], Any] = {}

    def depends(self, cell: Cell) -> dict[str, Any]:
        """All that decides a cell's result, and its ``signature``."""
        if cell not in self._depends:
            common, text = self._of_all_layers(cell)
            text = f"[{json.dumps(str(cell))}, {text}]"
            signature = hashlib.sha256(text.encode()).hexdigest()
            self._depends[cell] = {**common, "signature": signature}
        return self._depends[cell]

    def inputs(self, cell: Cell) -> list[Cell]:
        """The cells that must be done before; the same for all layers of a subject."""
        return STAGES[cell.stage].inputs(Cell(cell.stage, cell.subject), self.settings)

    def state(self, cell: Cell) -> State:
        """Whether a cell is done, by what lies on disk."""
        return self._state(cell, os.path.exists, self._reader())

    def states(self, cells: Iterable[Cell], lost: bool = True) -> list[State]:
        """``state`` of many cells: each folder is listed once, and only sidecars are opened.

        Without ``lost`` aggregate stays done where a cell of it is gone, as one that is about to be made
        anew, to the same bytes.
        """
        listed: dict[str, set[str]] = {}

        def exists(path: str) -> bool:
            folder, _, name = path.rpartition("/")
            if folder not in listed:
                try:
                    listed[folder] = set(os.listdir(folder))
                except (FileNotFoundError, NotADirectoryError):
                    listed[folder] = set()
            return name in listed[folder]

        read = self._reader()
        return [self._state(cell, exists, read, lost) for cell in cells]

    def _reader(self) -> Reader:
        """Sidecars, each read once."""
        return cache(partial(provenance.read_note, self.out))

    def _state(
        self, cell: Cell, exists: Callable[[str], bool], read: Reader, lost: bool = True
    ) -> State:
        """By which of ``ENDS`` follow the artefact's path; ``read`` gives sidecars of inputs."""
        path = f"{self.out}/{place(cell)}"
        there = {end for end in ENDS if exists(path + end)}
        wanted = self.depends(cell)  # first: what is missing outside is told whatever is there
        kept = _content(path + DONE) if {"", DONE} <= there else None
        if kept is not None:
            # so nothing is parsed where all is well; other signatures stand under other names
            signed = b'"signature": "%s"' % wanted["signature"].encode() in kept
            if signed and kept.rstrip().endswith(b"}"):
                gone = self._lost(cell, exists) if lost else None
                if gone:
                    return State(cell, "stale", f"{gone} was lost since")
                return State(cell, "done")
            depends = _depends_of(kept)
            if depends is None or signed:
                return State(cell, "stale", f"{path + DONE} is damaged")
            return State(cell, "stale", self._why(cell, depends, read))
        if FAILED in there:
            note = (_content(path + FAILED) or b"").decode(errors="replace")
            signature, *lines = note.strip().splitlines() or [""]
            if signature == wanted["signature"]:
                return State(cell, "failed", lines[-1] if lines else "no message")
        if DONE in there and "" not in there:
            return State(cell, "missing", "its result is gone")
        if "" in there and DONE not in there:
            why = "its sidecar is gone, or it was killed before it was written"
            return State(cell, "missing", why)
        return State(cell, "missing", "not computed yet")

    def _lost(self, cell: Cell, exists: Callable[[str], bool]) -> Cell | None:
        """An input of aggregate of which nothing is there any more: a report without one of its cells is
        none. What stands between may be thrown away once it was used."""
        for other in self.inputs(cell) if cell.stage == "aggregate" else ():
            path = f"{self.out}/{place(other)}"
            if not (exists(path) and exists(path + DONE)):
                return other
        return None

    def _why(self, cell: Cell, kept: dict[str, Any], read: Reader) -> str:
        """Why a cell that rested on what was ``kept`` is stale; where only its inputs are other ones, why
        those are. Where files differ the settings of inputs, too: another one reads other files."""
        found = reasons.differences(kept, self.depends(cell))
        if not found:
            found = list(self._roots(cell, kept, read))
        elif all(one.startswith("file ") for one in found):
            found += filter(reasons.of_setting, self._roots(cell, kept, read))
        return reasons.brief(found)

    def _roots(self, cell: Cell, kept: dict[str, Any], read: Reader) -> Iterator[str]:
        """Why inputs are no longer those that were ``kept``, where it began."""
        was, now = kept["inputs"], self.depends(cell)["inputs"]
        for other in self.inputs(cell):
            name = str(other)
            if was.get(name) == now[name]:
                continue
            note = read(other)
            before, own = _strings(note.get("before")), _whole(note.get("depends")) or {}
            if name not in was:
                yield f"input {name} is new"
            elif own.get("signature") == was[name]:  # it is stale itself
                found = reasons.differences(own, self.depends(other))
                yield from (f"input {name}: {one}" for one in found)
                yield from () if found else self._roots(other, own, read)
            elif before.get("old_signature") == was[name]:
                reason = before.get("reason", "")
                yield reason if reason.startswith("input ") else f"input {name}: {reason}"
            else:
                yield f"input {name} " + (
                    "was made anew" if note else "has changed and is not there"
                )

    def forget(self, cell: Cell) -> None:
        """Let a cell count as not done; its result stays until there is a new one."""
        sidecar(self.out, cell).unlink(missing_ok=True)
        parts.forget(self.out, cell)

    def run(self, cell: Cell, force: bool = False, processes: int = 1) -> str:
        """Compute a cell unless it is done; returns "done" or "skipped".

        One that was stopped before goes on after its finished parts, see ``parts``; with ``force`` it
        begins anew. Its pictures are shared out over so many ``processes`` where the stage allows it.

        Raises
        ------
        Incomplete
            An input is not done.
        """
        state = self.state(cell)
        if not force and state.word == "done":
            parts.forget(self.out, cell)  # what a kill between the last two steps left
            return "skipped"
        gaps = [gap for gap in self.states(self.inputs(cell)) if gap.word != "done"]
        if gaps:
            stale = [f" ({gap.cell} is stale: {gap.reason})" for gap in gaps if gap.word == "stale"]
            groups = groupby(
                [gap.cell for gap in gaps], lambda gap: (gap.stage, gap.subject, gap.layer is None)
            )
            names = ", ".join(name_of(list(group)) for _, group in groups)
            raise Incomplete(
                f"{cell} needs {len(gaps)} cells that are not done: {names}{''.join(stale[:1])}; run their "
                "stages first, or --stage all"
            )
        stage = STAGES[cell.stage]
        module, name = stage.function.split(":")
        begun, note = provenance.begin(), failure(self.out, cell)
        beside, replaced = sidecar(self.out, cell), self._replaced(cell)
        try:
            for model, where in weights.used(self.settings, stage.weights).items():
                if at_hand(model, where):
                    self._look_again()  # the signature names the commit that was fetched
                weights.verify(f"models.{model}", where)
            outside.note(self.settings, stage.weights, self.out)
            settings = weights.pinned(self.settings, stage.weights)
            hashes = weights.weights_sha256(settings, stage.weights)  # of what is about to be read
            function = getattr(importlib.import_module(module), name)
            inputs = provenance.hashes(self.out, self.inputs(cell))
            before = parts.begin(self.out, cell, self.depends(cell)["signature"], force)
            if before and not stage.shared_out:  # which tells how many of them serve
                print(f"{cell}: goes on after {before} finished parts", flush=True)
            if processes > 1 and stage.shared_out:
                shards.share_out(settings, self.out, cell, processes)
            with atomic(artefact(self.out, cell)) as target:
                function(cell, settings, self.nsd, self.out, target)
                made = provenance.digest(target)
                # a kill must not leave it beside what was made with other settings
                beside.unlink(missing_ok=True)
        except Exception:
            signature, told = self.depends(cell)["signature"], traceback.format_exc()
            with suppress(OSError), atomic(note) as target:  # the disk may be what it is about
                target.write_text(f"{signature}\n{told}")
            raise
        own = self.depends(cell)
        write_json(
            beside,
            {
                "cell": str(cell), "artefact": made, "inputs": inputs, "weights_sha256": hashes,
                **provenance.record(begun, cell, self.settings, shards.shares(self.out, cell)),
                "parts_before": before, "before": replaced,
                "depends": own,
            },
        )  # fmt: skip
        note.unlink(missing_ok=True)
        parts.forget(self.out, cell)
        return "done"

    def _replaced(self, cell: Cell) -> dict[str, str]:
        """Of the result that another one takes the place of: its signature, and why it was stale."""
        old = _depends_of(_content(str(sidecar(self.out, cell))) or b"")
        if old is None:
            return {}
        if old["signature"] == self.depends(cell)["signature"]:
            # of the one before, which this one was made in place of
            return provenance.read_note(self.out, cell).get("before") or {}
        return {"old_signature": old["signature"], "reason": self._why(cell, old, self._reader())}

    def _of_all_layers(self, cell: Cell) -> tuple[dict[str, Any], str]:
        """What a cell depends on beside its name, and that as JSON; layers of a subject share it."""
        key = Cell(cell.stage, cell.subject, None if cell.layer is None else -1)
        if key not in self._common:
            chosen = counted(key, self.settings)
            if "data.sessions" in chosen:  # 0, all that there are, is another number tomorrow
                chosen["data.sessions"] = len(self._sessions(cell.subject))
            found = {
                "form": reasons.FORM,
                "version": __version__,
                "settings": chosen,
                "files": self._files(key),
                "inputs": {
                    str(other): self.depends(other)["signature"] for other in self.inputs(key)
                },
            }
            self._common[key] = found, json.dumps(found, sort_keys=True)
        return self._common[key]

    def _files(self, cell: Cell) -> dict[str, str]:
        """Every file from outside that a cell reads, with what tells a change of it."""
        found: dict[str, str] = {}
        stage, every = STAGES[cell.stage], self.settings.data.subjects
        for kind in stage.nsd:
            subjects = every if cell.subject is None else (cell.subject,)
            found |= self._once(kind, cell.subject, partial(self._nsd, kind, subjects, cell))
        for model in stage.weights:
            look = partial(outside.weights_files, self.settings, model, self.out)
            found |= self._once("weights", model, look)
        return found

    def _nsd(self, kind: str, subjects: tuple[int, ...], cell: Cell) -> dict[str, str]:
        from nsdcap.nsd_files import files

        found = {}
        for path in files(self.nsd, kind, subjects, self._sessions(cell.subject)):
            # captions have the same name wherever they lie
            inside = path.is_relative_to(self.nsd.root) and path.parent != self.nsd.coco_dir
            name = path.relative_to(self.nsd.root) if inside else f"annotations/{path.name}"
            found[str(name)] = self._once("stamp", path, partial(outside.stamp, path))
        return found

    def _sessions(self, subject: int | None) -> list[int]:
        return self._once(
            "sessions", subject, partial(sessions_of, self.settings, self.nsd, subject)
        )

    def _once(self, what: str, key: Any, look: Callable[[], Any]) -> Any:
        """What ``look`` found the first time."""
        if (what, key) not in self._found:
            self._found[what, key] = look()
        return self._found[what, key]


def run_cell(
    out: str, stage: str, subject: int | None, layer: int | None, force: bool, file: str = "",
    processes: int = 1,
) -> str:  # fmt: skip
    """A cell of the run in ``out``, by the settings there or in ``file``; what a task in another process
    calls.

    Returns "done" or "skipped"; raises as ``Ledger.run``.
    """
    settings = config.load(Path(file) if file else config_file(Path(out)))
    return Ledger(settings, Path(out)).run(Cell(stage, subject, layer), force, processes)


def _content(path: str) -> bytes | None:
    """What a file holds; None if it has just been removed."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read()
    except FileNotFoundError:
        return None


def _depends_of(sidecar: bytes) -> dict[str, Any] | None:
    """What a sidecar says that its cell was made from; None where that cannot be read."""
    try:
        return _whole(json.loads(sidecar)["depends"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _whole(depends: Any) -> dict[str, Any] | None:
    """What a cell was made from, if it has the form of that."""
    found = depends if isinstance(depends, dict) else {}
    tables = (found.get(name) for name in ("files", "inputs"))
    whole = all(isinstance(table, dict) and _strings(table) == table for table in tables)
    words = all(isinstance(found.get(name), str) for name in ("version", "signature"))
    return found if whole and words and isinstance(found.get("settings"), dict) else None


def _strings(found: Any) -> dict[str, str]:
    """The strings of a table; none where it is none."""
    table = found if isinstance(found, dict) else {}
    return {name: value for name, value in table.items() if isinstance(value, str)}
