"""Every cell as it stands: by what lies on disk first, then by its job."""

from __future__ import annotations

from collections.abc import Iterable

from nsdcap import jobs
from nsdcap.cells import Ledger
from nsdcap.paths import Cell, failure, sidecar
from nsdcap.plan import Known


def survey(
    ledger: Ledger, cells: Iterable[Cell], rows: list[list[str]] | None, arrays: list[jobs.Array]
) -> dict[Cell, Known]:
    """How each cell stands; ``rows`` of ``jobs.queue``, or None where the queue was not asked.

    ``arrays`` must have been read before the queue was asked, which knows nothing of later ones.
    Accounting is asked once, of jobs that the queue no longer knows and that left no result.
    """
    found = jobs.tasks(ledger.out, rows, arrays)
    states = {state.cell: state for state in ledger.states(cells)}
    unknown = [
        task
        for cell, task in found.items()
        if cell in states and states[cell].word != "done" and not task.state
    ]
    states_by_job = jobs.accounted(unknown) if rows is not None else {}
    known = {}
    for cell, state in states.items():
        task = found.get(cell)
        outdated = False
        if task is not None and state.word != "done":
            outdated = task.signature != ledger.depends(cell)["signature"]
        if state.word == "done" or task is None:
            cause = "exception" if state.word == "failed" else ""
            known[cell] = Known(cell, state.word, state.reason, cause, task)
        elif task.word:
            reason = task.reason if task.word == "pending" else f"on {task.node}"
            known[cell] = Known(cell, task.word, reason, "", task, outdated)
        elif rows is None:
            known[cell] = Known(
                cell, "unknown", f"job {task.job}, the queue was not asked", "", task
            )
        elif outdated or _made(ledger, cell, task):
            cause = "exception" if state.word == "failed" else ""
            known[cell] = Known(cell, state.word, state.reason, cause, task)
        else:
            known[cell] = _ended(ledger, cell, task, states_by_job.get(task.job, ""))
    return known


def _made(ledger: Ledger, cell: Cell, task: jobs.Task) -> bool:
    """Whether the cell's last job did make its result, which is stale or gone by now."""
    beside = sidecar(ledger.out, cell)
    if beside.exists() and beside.stat().st_mtime >= task.submitted:
        return True
    return "Job completed successfully" in jobs.log_tail(task.log.with_suffix(".out"))


def _ended(ledger: Ledger, cell: Cell, task: jobs.Task, state: str) -> Known:
    cause, reason = jobs.cause(task, failure(ledger.out, cell), state)
    if cause == "dependency":
        return Known(cell, "missing", reason, cause, task)
    return Known(cell, "failed", reason, cause, task)
