"""Every cell as it stands: by what lies on disk first, then by its job."""

from __future__ import annotations

from collections.abc import Iterable

from nsdcap import jobs
from nsdcap.cells import Ledger
from nsdcap.paths import Cell, failure, sidecar
from nsdcap.plan import Known


def survey(
    ledger: Ledger,
    cells: Iterable[Cell],
    found: dict[Cell, jobs.Task],
    asked: bool,
    lost: bool = True,
) -> dict[Cell, Known]:
    """How each cell stands; ``found`` of ``jobs.tasks``, ``asked`` whether the queue was,
    ``lost`` as ``Ledger.states``.

    Accounting is asked once, of jobs that the queue no longer knows and that left no result.
    """
    states = {state.cell: state for state in ledger.states(cells, lost)}
    unknown = [
        task
        for cell, task in found.items()
        if cell in states and states[cell].word != "done" and not task.state
    ]
    states_by_job = jobs.accounted(unknown) if asked else {}
    known = {}
    for cell, state in states.items():
        task = found.get(cell)
        outdated = task is not None and task.signature != ledger.depends(cell)["signature"]
        if state.word == "done" or task is None:
            cause = "exception" if state.word == "failed" else ""
            # a job with other settings that still runs or waits would put its result in the place of this
            late = outdated and task is not None and bool(task.word)
            known[cell] = Known(cell, state.word, state.reason, cause, task, late)
        elif task.word:
            reason = task.reason if task.word == "pending" else f"on {task.node}"
            known[cell] = Known(cell, task.word, reason, "", task, outdated)
        elif not asked:
            known[cell] = Known(
                cell, "unknown", f"job {task.job}, the queue was not asked", "", task
            )
        else:
            note = state.reason if state.word == "failed" and _left(ledger, task) else ""
            if outdated or (not note and _made(ledger, task)):
                cause = "exception" if state.word == "failed" else ""
                known[cell] = Known(cell, state.word, state.reason, cause, task)
            else:
                known[cell] = _ended(task, note, states_by_job.get(task.job, ""))
    return known


def _left(ledger: Ledger, task: jobs.Task) -> bool:
    """Whether the note of what stopped the cell is of its last job; an older one tells of another."""
    try:
        return failure(ledger.out, task.cell).stat().st_mtime >= task.submitted
    except FileNotFoundError:  # the cell has just been done
        return False


def _made(ledger: Ledger, task: jobs.Task) -> bool:
    """Whether the cell's last job did make its result, which is stale or gone by now."""
    try:
        if sidecar(ledger.out, task.cell).stat().st_mtime >= task.submitted:
            return True
    except FileNotFoundError:
        pass
    return "Job completed successfully" in jobs.log_tail(task.log.with_suffix(".out"))


def _ended(task: jobs.Task, note: str, state: str) -> Known:
    cause, reason = jobs.cause(task, note, state)
    word = "missing" if cause == "dependency" else "failed"
    return Known(task.cell, word, reason, cause, task)
