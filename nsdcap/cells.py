"""Is a cell done, and if not, why; and the one function that does it, wherever it runs."""

from __future__ import annotations

import hashlib
import importlib
import json
import time
import traceback
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from nsdcap import __version__, config, parts
from nsdcap.config import Config
from nsdcap.errors import DataError, NsdcapError
from nsdcap.paths import Cell, artefact, atomic, config_file, failure, sidecar, write_json
from nsdcap.stages import STAGES


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
        raise DataError(f"NSD root {root}: found no folder nsddata/ there; give NSD's top folder")
    annotations = Path(settings.data.annotations) if settings.data.annotations else None
    return NSD(root, settings.data.betas, settings.data.space, annotations)


class Ledger:
    """Which cells of a run are done. What a cell's result depends on is written beside it, as
    settings, files read (size and time) and the signatures of its inputs, and compared.
    """

    def __init__(self, settings: Config, out: Path):
        self.settings, self.out, self.nsd = settings, out, open_nsd(settings)
        self._depends: dict[Cell, dict[str, Any]] = {}

    def depends(self, cell: Cell) -> dict[str, Any]:
        """All that decides a cell's result, and its ``signature``."""
        if cell not in self._depends:
            stage = STAGES[cell.stage]
            chosen = {name: _setting(self.settings, name) for name in stage.settings}
            if "data.sessions" in chosen:  # 0, all that there are, is another number tomorrow
                chosen["data.sessions"] = len(sessions_of(self.settings, self.nsd, cell.subject))
            found = {
                "version": __version__,
                "settings": chosen,
                "files": self._files(cell),
                "inputs": {
                    str(other): self.depends(other)["signature"]
                    for other in stage.inputs(cell, self.settings)
                },
            }
            text = json.dumps([str(cell), found], sort_keys=True)
            found["signature"] = hashlib.sha256(text.encode()).hexdigest()
            self._depends[cell] = found
        return self._depends[cell]

    def state(self, cell: Cell) -> State:
        """Whether a cell is done, by what lies on disk."""
        wanted, beside = self.depends(cell), sidecar(self.out, cell)
        if beside.exists() and artefact(self.out, cell).exists():
            kept = json.loads(beside.read_text())["depends"]
            if kept["signature"] == wanted["signature"]:
                return State(cell, "done")
            return State(cell, "stale", _difference(kept, wanted))
        failed = failure(self.out, cell)
        if failed.exists():
            signature, *lines = failed.read_text().strip().splitlines()
            if signature == wanted["signature"]:
                return State(cell, "failed", lines[-1])
        return State(cell, "missing", "not computed yet")

    def forget(self, cell: Cell) -> None:
        """Let a cell count as not done; its result stays until there is a new one."""
        sidecar(self.out, cell).unlink(missing_ok=True)
        parts.forget(self.out, cell)

    def run(self, cell: Cell, force: bool = False) -> str:
        """Compute a cell unless it is done; returns "done" or "skipped".

        One that was stopped before goes on after its finished parts, see ``parts``; with ``force`` it
        begins anew.

        Raises
        ------
        Incomplete
            An input is not done.
        """
        if not force and self.state(cell).word == "done":
            parts.forget(self.out, cell)  # what a kill between the last two steps left
            return "skipped"
        gaps = [
            str(other)
            for other in STAGES[cell.stage].inputs(cell, self.settings)
            if self.state(other).word != "done"
        ]
        if gaps:
            raise Incomplete(
                f"{cell} needs {len(gaps)} cells that are not done: {', '.join(gaps[:6])}"
                f"{', ...' if len(gaps) > 6 else ''}; run their stages first, or --stage all"
            )
        module, name = STAGES[cell.stage].function.split(":")
        start = time.time()
        beside, note = sidecar(self.out, cell), failure(self.out, cell)
        try:
            function = getattr(importlib.import_module(module), name)
            if before := parts.begin(self.out, cell, self.depends(cell)["signature"], force):
                print(f"{cell}: goes on after {before} finished parts", flush=True)
            with atomic(artefact(self.out, cell)) as target:
                function(cell, self.settings, self.nsd, self.out, target)
        except Exception:
            note.parent.mkdir(parents=True, exist_ok=True)
            signature = self.depends(cell)["signature"]
            note.write_text(f"{signature}\n{traceback.format_exc()}")
            raise
        ended = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(
            beside,
            {"cell": str(cell), "seconds": round(time.time() - start, 1), "ended": ended,
             "depends": self.depends(cell)},
        )  # fmt: skip
        note.unlink(missing_ok=True)
        parts.forget(self.out, cell)
        return "done"

    def _files(self, cell: Cell) -> dict[str, str]:
        """Size and time of every file from outside that a cell reads."""
        from nsdcap.nsd_files import files

        stage, sessions = STAGES[cell.stage], sessions_of(self.settings, self.nsd, cell.subject)
        found = {}
        for kind in stage.nsd:
            subjects = self.settings.data.subjects if cell.subject is None else (cell.subject,)
            for path in files(self.nsd, kind, subjects, sessions):
                inside = path.is_relative_to(self.nsd.root)
                name = path.relative_to(self.nsd.root) if inside else path.name
                found[str(name)] = _stamp(path)
        for model in stage.weights:
            folder = Path(getattr(self.settings.models, model))
            if folder.is_dir():
                for path in sorted(p for p in folder.rglob("*") if p.is_file()):
                    found[f"{model}/{path.relative_to(folder)}"] = _stamp(path)
        return found


def run_cell(out: str, stage: str, subject: int | None, layer: int | None, force: bool) -> str:
    """A cell of the run in ``out``, by its settings there; what a task in another process calls.

    Returns "done" or "skipped"; raises as ``Ledger.run``.
    """
    settings = config.load(config_file(Path(out)))
    return Ledger(settings, Path(out)).run(Cell(stage, subject, layer), force)


@cache
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
