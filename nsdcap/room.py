"""Whether the disk has room for what a run would write, by the estimates of its cells."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from nsdcap.cells import Ledger
from nsdcap.cost import Costs
from nsdcap.dry_run import size
from nsdcap.errors import DataError, UsageError
from nsdcap.paths import Cell


def needed(ledger: Ledger, cells: Iterable[Cell], force: bool = False) -> float:
    """Bytes that the cells still to be computed write at most: their results, and beside them the parts of
    the largest, which lie there until it is whole.

    Raises
    ------
    DataError
        A file that sizes follow from is missing or broken.
    """
    costs = Costs(ledger)
    states = ledger.states(cells)
    each = [costs.of(s.cell).disk_bytes for s in states if force or s.word != "done"]
    return sum(each) + max(each, default=0.0)


def free(folder: Path) -> int:
    """Bytes that this user may still write where ``folder`` is, or would be made."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def check(ledger: Ledger, cells: Iterable[Cell], force: bool = False) -> None:
    """Refuse a disk with less room than the cells still to be computed write.

    Where sizes cannot be told, as those of a model that is not at hand, a line says so.

    Raises
    ------
    UsageError
        The figures, and what to do.
    """
    try:
        wanted = needed(ledger, cells, force)
    except DataError as error:
        print(f"note: what will be written is not known, so room is not checked: {error}")
        return
    refuse(ledger.out, wanted)


def refuse(out: Path, wanted: float) -> str:
    """What is free where ``out`` is; UsageError where ``wanted`` bytes are more than that."""
    there = free(out)
    if wanted > there:
        raise UsageError(
            f"--out {out}: {size(there)} are free, the cells to be computed write about {size(wanted)} "
            "(--dry-run lists them); free room, name a folder on another disk, run fewer stages, subjects or "
            "layers at a time, or go on all the same with --no-room-check"
        )
    return f"{size(there)} free"
