"""What a run took, by stage, from the notes beside its results."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from nsdcap.errors import DataError
from nsdcap.options import STAGE_NAMES
from nsdcap.paths import Cell, artefact, sidecar
from nsdcap.plots_cortex import Run


@dataclass(frozen=True)
class StageCost:
    """A stage's cells: how many there are, how many have a note, wall times as texts, bytes on disk."""

    stage: str
    cells: int
    noted: int
    total: str
    longest: str
    longest_cell: str
    disk: str


@dataclass(frozen=True)
class Costs:
    """All stages, their sum, and when the first cell began and the last one ended ("" if not known)."""

    stages: list[StageCost]
    total: str
    disk: str
    began: str
    ended: str


def cells_of(run: Run) -> dict[Cell, dict[str, Any] | None]:
    """Each cell that the tables are made from, with the note beside its result, None where there is none.

    Aggregate is not among them: a report is part of it.

    Raises
    ------
    DataError
        A note is broken.
    """
    cells = [Cell("features")]
    for subject in run.subjects:
        stages = [name for name in STAGE_NAMES if name not in ("aggregate", "encode")]
        cells += [Cell(stage, subject) for stage in stages]
        cells += [Cell("encode", subject, layer) for layer in (None, *run.about["layers"])]
    cells.sort(key=lambda cell: STAGE_NAMES.index(cell.stage))
    found: dict[Cell, dict[str, Any] | None] = {}
    for cell in cells:
        path = sidecar(run.out, cell)
        try:
            note = json.loads(path.read_text()) if path.exists() else None
            if note is not None:
                float(note["seconds"]), datetime.fromisoformat(note["ended"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path}: broken ({error!r}), expected seconds and ended; run its cell again, "
                f"python -m nsdcap.launch --stage {cell.stage} --force"
            ) from None
        found[cell] = note
    return found


def costs(run: Run, notes: dict[Cell, dict[str, Any] | None]) -> Costs:
    """Wall times and sizes by stage."""
    stages, sums, sizes = [], 0.0, 0
    for stage in dict.fromkeys(cell.stage for cell in notes):
        own = {cell: note for cell, note in notes.items() if cell.stage == stage}
        seconds = {cell: float(note["seconds"]) for cell, note in own.items() if note}
        paths = [artefact(run.out, cell) for cell in own]
        size = sum(path.stat().st_size for path in paths if path.exists())
        longest = max(seconds, key=seconds.__getitem__, default=None)
        sums, sizes = sums + sum(seconds.values()), sizes + size
        stages.append(StageCost(
            stage, len(own), len(seconds), duration(sum(seconds.values())) if seconds else "",
            duration(seconds[longest]) if longest else "", str(longest or ""), bytes_text(size),
        ))  # fmt: skip
    ends = {cell: datetime.fromisoformat(note["ended"]) for cell, note in notes.items() if note}
    starts = [
        end - timedelta(seconds=float((notes[cell] or {})["seconds"])) for cell, end in ends.items()
    ]
    began, ended = (moment(min(starts)), moment(max(ends.values()))) if ends else ("", "")
    return Costs(stages, duration(sums), bytes_text(sizes), began, ended)


def moment(when: datetime) -> str:
    """A time to the minute."""
    return when.strftime("%d %B %Y, %H:%M ") + (when.tzname() or "")


def duration(seconds: float) -> str:
    """Seconds in the two largest units that they fill."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"


def bytes_text(size: float) -> str:
    """Bytes in the unit that leaves one to three digits before the point."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
