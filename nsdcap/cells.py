"""Is a cell done, and if not, why; and the one function that does it, wherever it runs."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from nsdcap import __version__, config, parts, shards, weights
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
from nsdcap.stages import STAGES

ENDS = ("", DONE, FAILED)  # of an artefact's path: itself, and what may lie beside it


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
    settings, files read (size and time) and the signatures of its inputs, and compared.

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
        path = f"{self.out}/{place(cell)}"
        return self._state(cell, path, {end for end in ENDS if os.path.exists(path + end)})

    def states(self, cells: Iterable[Cell]) -> list[State]:
        """``state`` of many cells: each folder is listed once, and only sidecars are opened."""
        listed: dict[str, set[str]] = {}
        found = []
        for cell in cells:
            path = f"{self.out}/{place(cell)}"
            folder, _, name = path.rpartition("/")
            if folder not in listed:
                try:
                    listed[folder] = set(os.listdir(folder))
                except (FileNotFoundError, NotADirectoryError):
                    listed[folder] = set()
            names = listed[folder]
            found.append(self._state(cell, path, {end for end in ENDS if name + end in names}))
        return found

    def _state(self, cell: Cell, path: str, there: set[str]) -> State:
        """From the artefact's ``path`` and which of ``ENDS`` follow it on disk."""
        wanted = self.depends(cell)  # first: what is missing outside is told whatever is there
        if {"", DONE} <= there:
            with open(path + DONE, "rb", buffering=0) as file:
                kept = file.read()
            # so nothing is parsed where all is well; other signatures stand under other names
            if b'"signature": "%s"' % wanted["signature"].encode() in kept:
                return State(cell, "done")
            return State(cell, "stale", _difference(json.loads(kept)["depends"], wanted))
        if FAILED in there:
            signature, *lines = Path(path + FAILED).read_text().strip().splitlines() or [""]
            if signature == wanted["signature"]:
                return State(cell, "failed", lines[-1] if lines else "no message")
        return State(cell, "missing", "not computed yet")

    def _lost(self, cell: Cell) -> Cell | None:
        """An input of aggregate of which nothing is there any more: a report without one of its cells is
        none. What stands between may be thrown away once it was used."""
        for other in self.inputs(cell) if cell.stage == "aggregate" else ():
            if not (artefact(self.out, other).exists() and sidecar(self.out, other).exists()):
                return other
        return None

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
        if not force and self.state(cell).word == "done" and not self._lost(cell):
            parts.forget(self.out, cell)  # what a kill between the last two steps left
            return "skipped"
        gaps = [state for state in self.states(self.inputs(cell)) if state.word != "done"]
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
        start = time.time()
        beside, note = sidecar(self.out, cell), failure(self.out, cell)
        try:
            for model, where in weights.used(self.settings, stage.weights).items():
                if at_hand(model, where):
                    self._look_again()  # the signature names the commit that was fetched
                weights.verify(f"models.{model}", where)
            settings = weights.pinned(self.settings, stage.weights)
            hashes = weights.weights_sha256(settings, stage.weights)  # of what is about to be read
            function = getattr(importlib.import_module(module), name)
            before = parts.begin(self.out, cell, self.depends(cell)["signature"], force)
            if before and not stage.shared_out:  # which tells how many of them serve
                print(f"{cell}: goes on after {before} finished parts", flush=True)
            if processes > 1 and stage.shared_out:
                shards.share_out(settings, self.out, cell, processes)
            with atomic(artefact(self.out, cell)) as target:
                function(cell, settings, self.nsd, self.out, target)
        except Exception:
            note.parent.mkdir(parents=True, exist_ok=True)
            signature = self.depends(cell)["signature"]
            note.write_text(f"{signature}\n{traceback.format_exc()}")
            raise
        ended = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(
            beside,
            {"cell": str(cell), "seconds": round(time.time() - start, 1), "ended": ended,
             "weights_sha256": hashes, "depends": self.depends(cell)},
        )  # fmt: skip
        note.unlink(missing_ok=True)
        parts.forget(self.out, cell)
        return "done"

    def _of_all_layers(self, cell: Cell) -> tuple[dict[str, Any], str]:
        """What a cell depends on beside its name, and that as JSON; layers of a subject share it."""
        key = Cell(cell.stage, cell.subject)
        if key not in self._common:
            stage = STAGES[cell.stage]
            chosen = {name: _setting(self.settings, name) for name in stage.settings}
            if "data.sessions" in chosen:  # 0, all that there are, is another number tomorrow
                chosen["data.sessions"] = len(self._sessions(cell.subject))
            found = {
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
        """Size and time of every file from outside that a cell reads."""
        found: dict[str, str] = {}
        stage, every = STAGES[cell.stage], self.settings.data.subjects
        for kind in stage.nsd:
            subjects = every if cell.subject is None else (cell.subject,)
            found |= self._once(kind, cell.subject, partial(self._nsd, kind, subjects, cell))
        for model in stage.weights:
            found |= self._once("weights", model, partial(self._weights, model))
        return found

    def _nsd(self, kind: str, subjects: tuple[int, ...], cell: Cell) -> dict[str, str]:
        from nsdcap.nsd_files import files

        found = {}
        for path in files(self.nsd, kind, subjects, self._sessions(cell.subject)):
            inside = path.is_relative_to(self.nsd.root)
            name = path.relative_to(self.nsd.root) if inside else path.name
            found[str(name)] = self._once("stamp", path, partial(_stamp, path))
        return found

    def _weights(self, model: str) -> dict[str, str]:
        found: dict[str, str] = {}
        for name, where in weights.used(self.settings, [model]).items():
            path = Path(where)
            if where and not weights.is_path(where):
                snapshot = weights.snapshot(where)
                found |= {f"{name} snapshot": snapshot.name} if snapshot else {}
            elif path.is_file():
                found[f"{name}/{path.name}"] = _stamp(path)
            elif where:
                for file in sorted(path.rglob("*")):
                    inside = file.relative_to(path)
                    hidden = any(part.startswith(".") for part in inside.parts)
                    if file.is_file() and not hidden:
                        found[f"{name}/{inside}"] = _stamp(file)
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


def _stamp(path: Path) -> str:
    try:
        stat = path.stat()
    except OSError:
        return "missing"
    return f"{stat.st_size} bytes, {stat.st_mtime_ns} ns"


def _setting(settings: Config, name: str) -> Any:
    """The value of "section.key", or of all of a section but what changes speed alone."""
    section, _, key = name.partition(".")
    value = getattr(settings, section)
    if key:
        value = getattr(value, key)
    elif hasattr(value, "__dataclass_fields__"):
        value = {k: v for k, v in vars(value).items() if k not in ("batch", "block", "device")}
    return json.loads(json.dumps(value))


def _difference(kept: dict[str, Any], wanted: dict[str, Any]) -> str:
    """The first thing in which two lists of dependencies differ, in words."""
    if kept["version"] != wanted["version"]:
        return f"made by version {kept['version']}"
    for what, unit in (("settings", "setting"), ("files", "file"), ("inputs", "input")):
        for name in sorted({*kept[what], *wanted[what]}):
            old, new = kept[what].get(name), wanted[what].get(name)
            if old == new:
                continue
            if what == "settings":
                return f"setting {name} was {json.dumps(old)}, is {json.dumps(new)}"
            return f"{unit} {name} has changed"
    return "made for another cell"
