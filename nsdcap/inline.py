"""Cells one after another in this process, and how any launcher counts cells as they end."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from nsdcap.cells import Ledger
from nsdcap.errors import DiskError, NsdcapError
from nsdcap.paths import Cell, artefact, failure


def run_inline(ledger: Ledger, cells: list[Cell], force: bool, processes: int = 1) -> int:
    """One cell after another in this process; a failed cell does not stop those that need it not, but for
    one that failed for want of room on the disk.

    Pictures of a cell are shared out over ``processes``, see ``shards``.
    """
    tally = Tally(len(cells))
    for cell in cells:
        start = time.monotonic()
        try:
            how = ledger.run(cell, force, processes)
            tally.ended(cell, how, time.monotonic() - start)
        except NsdcapError as error:
            tally.failed(cell, str(error), error.exit_code)
            if isinstance(error, DiskError):  # the others would end so, too, after hours of work
                break
        except Exception as error:  # whatever a cell dies of, the others go on
            tally.failed(cell, f"{type(error).__name__}: {error}", 1, failure(ledger.out, cell))
    return tally.close(ledger)


class Tally:
    """Counts cells as they end, tells each on a line, and gives the exit code."""

    def __init__(self, total: int):
        self.total, self.done, self.skipped = total, 0, 0
        self.codes: list[int] = []
        self.start = time.monotonic()

    def ended(self, cell: Cell, how: str, seconds: float) -> None:
        """A cell that is done now, or was before."""
        self.done += 1
        if how == "skipped":
            self.skipped += 1
        else:
            print(f"[{self._count()}] {cell}: done in {seconds:.0f} s", flush=True)

    def failed(self, cell: Cell, message: str, code: int, log: Path | None = None) -> None:
        """A cell that did not end well: the last line of what it said, and where the rest is."""
        self.codes.append(code)
        last = (message.strip().splitlines() or ["no message"])[-1]
        where = f"; see {log}" if log else ""
        print(f"[{self._count()}] {cell}: FAILED, {last}{where}", file=sys.stderr, flush=True)

    def close(self, ledger: Ledger) -> int:
        """The last line; returns 0, 74 (the disk), 65 (bad data), 1 (a cell failed) or 75 (inputs are
        missing)."""
        took = time.monotonic() - self.start
        print(
            f"{self.done} of {self.total} cells done, {self.skipped} of them before, {took:.0f} s"
        )
        page = artefact(ledger.out, Cell("aggregate")) / "report.html"
        if page.exists() and not self.codes:
            print(f"report: {page}")
        return next((code for code in (74, 65, 1, 2, 75, *self.codes) if code in self.codes), 0)

    def _count(self) -> str:
        return f"{self.done + len(self.codes)}/{self.total}"
