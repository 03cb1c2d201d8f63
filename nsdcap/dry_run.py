"""The table of ``--dry-run``: what would run, why, and what it would cost."""

from __future__ import annotations

from collections.abc import Mapping

from nsdcap.cells import Ledger
from nsdcap.cost import Cost, Costs
from nsdcap.paths import Cell, name_of
from nsdcap.site import Resources, seconds_on

ROWS = 200  # that are printed at most


def tell_plan(
    ledger: Ledger, cells: list[Cell], force: bool, plans: dict[Cell, tuple[str, str]] | None = None,
    asked: Mapping[Cell, Resources] | None = None,
) -> None:  # fmt: skip
    """Print what each cell would do and cost, layers of a subject in one row, and sums. Writes nothing.

    ``plans`` says for each cell "run" or what else becomes of it, and why; by default what is not done runs.
    ``asked`` is what a cluster is asked for, cell by cell; by default memory, cores and GPU are estimates.
    """
    from rich.console import Console
    from rich.table import Table

    costs = Costs(ledger)
    groups: dict[tuple, list[Cell]] = {}
    for cell, (word, reason) in (plans or _plans(ledger, cells, force)).items():
        key = (cell.stage, cell.subject, cell.layer is None, word, reason)
        groups.setdefault(key, []).append(cell)
    table = Table(box=None, pad_edge=False)
    for name in ("cell", "plan", "reason", "size"):
        table.add_column(name)
    for name in ("time each", "memory", "written", "on"):
        table.add_column(name, justify="right", no_wrap=True)
    running: list[tuple[Cost, float, int]] = []
    for number, ((*_, word, reason), group) in enumerate(groups.items()):
        cost = costs.of(group[0])
        row = [name_of(group), word, reason]
        if word == "run":
            seconds, memory = cost.seconds, cost.memory_bytes
            cores, gpus = cost.cores, int(cost.gpu)
            if asked and (given := asked.get(group[0])):
                seconds = seconds_on(group[0].stage, cost, given.cpus, given.gpus)
                memory, cores, gpus = given.memory_gb * 1e9, given.cpus, given.gpus
            running.append((cost, memory, len(group)))
            row += [cost.text, duration(seconds), size(memory)]
            row += [size(cost.disk_bytes * len(group)), on(cores, gpus)]
        if number < ROWS:
            table.add_row(*row)
    console = Console(highlight=False, width=200, markup=False)
    console.print(table)
    if len(groups) > ROWS:
        print(f"... and {len(groups) - ROWS} more rows")
    _tell_sums(running, len(cells))


def _plans(ledger: Ledger, cells: list[Cell], force: bool) -> dict[Cell, tuple[str, str]]:
    found = {}
    for state in ledger.states(cells):
        if state.word == "done" and not force:
            found[state.cell] = "skip", "done, unchanged"
        else:
            found[state.cell] = "run", "--force" if state.word == "done" else state.reason
    return found


def _tell_sums(running: list[tuple[Cost, float, int]], total: int) -> None:
    runs = sum(count for *_, count in running)
    print(f"{runs} of {total} cells would run, {total - runs} would not")
    if not runs:
        return
    seconds = sum(cost.seconds * count for cost, _, count in running)
    gpu = sum(cost.seconds * count for cost, _, count in running if cost.gpu)
    written = sum(cost.disk_bytes * count for cost, _, count in running)
    most = max(memory for _, memory, _ in running)
    print(
        f"about {seconds / 3600:,.1f} hours one cell after another, of them {gpu / 3600:,.1f} GPU-hours; "
        f"{size(written)} written, at most {size(most)} of memory. Rough, from sizes and usual machines: "
        "see nsdcap/cost.py"
    )


def on(cores: int, gpus: int) -> str:
    """The processors that the time is for."""
    return f"{gpus} GPU{'s'[: gpus > 1]}, {cores} cores" if gpus else f"{cores} cores"


def duration(seconds: float) -> str:
    """In the unit that suits: "40 s", "12 min", "3.5 h"."""
    if seconds < 90:
        return f"{max(1, seconds):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:,.1f} h"


def size(n_bytes: float) -> str:
    """Bytes in the unit that suits."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if n_bytes >= scale:
            return f"{n_bytes / scale:.3g} {unit}"
    return f"{n_bytes / 1e3:.0f} kB"
