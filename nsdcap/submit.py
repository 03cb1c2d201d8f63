"""Hand a run to SLURM: one array a stage, each cell waiting for just the cells that it needs."""

from __future__ import annotations

import secrets
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nsdcap import jobs, plan
from nsdcap.cells import Ledger
from nsdcap.errors import NsdcapError
from nsdcap.jobs import Array
from nsdcap.lock import holding
from nsdcap.paths import Cell, clock
from nsdcap.site import Resources, Site
from nsdcap.survey import survey

# array, resources, dependency, to be held or not -> the job's id
HandOver = Callable[[Array, Resources, str, bool], str]

PATIENCE = 60.0  # seconds that jobs are given to end; SLURM's KillWait is 30


@dataclass(frozen=True)
class Planned:
    """An array that is ready to be submitted, and what its cells wait for."""

    array: Array
    resources: Resources
    needs: list[plan.Need]


def settle(
    ledger: Ledger, cells: Sequence[Cell], rows: list[list[str]] | None, site: Site,
    retry_failed: bool = False, force: bool = False,
) -> tuple[plan.Plan, dict[Cell, plan.Known]]:  # fmt: skip
    """The plan for ``cells`` and how they, and all that they need, stand.

    With ``force`` none of ``cells`` counts as done or as having failed before.
    """
    tasks = jobs.tasks(ledger.out, rows, jobs.read(ledger.out))
    alone = all(cell.stage == "aggregate" for cell in cells)  # nothing makes what is lost anew
    known = survey(ledger, _with_inputs(ledger, cells), tasks, rows is not None, alone)
    for cell in cells if force else ():
        if not plan.on_its_way(known[cell]):
            known[cell] = plan.Known(cell, "missing", "--force")
    found = plan.make(cells, known, ledger.inputs, retry_failed=retry_failed, retries=site.retries)
    return found, known


def _with_inputs(ledger: Ledger, cells: Sequence[Cell]) -> list[Cell]:
    return list(
        dict.fromkeys([*cells, *(other for cell in cells for other in ledger.inputs(cell))])
    )


def arrays(
    ledger: Ledger, found: plan.Plan, known: dict[Cell, plan.Known], site: Site,
    resources: Callable[[str, list[Cell], int, int], Resources], limit: int,
) -> list[Planned]:  # fmt: skip
    """The arrays of a plan, in the order of submission, each of at most ``limit`` cells.

    ``resources(stage, cells, memory, time)`` are those of cells that failed so often for want of
    memory or of time; cells of a stage that differ in that are in arrays of their own.
    """
    coming = {*found.submit, *_jobs_of(known, found)}
    now, token = time.time(), secrets.token_hex(3)
    made: list[Planned] = []
    groups: dict[tuple[str, int, int], list[Cell]] = {}
    for cell in found.submit:
        memory, late = _shortages(known[cell])
        groups.setdefault((cell.stage, memory, late), []).append(cell)
    for (stage, memory, late), members in groups.items():
        for part in plan.chunks(members, limit):
            name = f"nsdcap-{stage}-{jobs.mark(ledger.out)}-{token}{len(made):02d}"
            array = Array(
                name, stage, tuple(part), "", False, now,
                tuple(1 + _tries(known[cell]) for cell in part), (memory,) * len(part),
                (late,) * len(part), tuple(ledger.depends(cell)["signature"] for cell in part),
            )  # fmt: skip
            needs = plan.needs(
                part,
                lambda cell: [other for other in ledger.inputs(cell) if other in coming],
            )
            made.append(Planned(array, resources(stage, part, memory, late), needs))
    return made


def words(found: plan.Plan, known: dict[Cell, plan.Known]) -> dict[Cell, tuple[str, str]]:
    """What becomes of each cell, in a word, and why; for the table of ``--dry-run``."""
    told = {cell: ("skip", "done, unchanged") for cell in found.done}
    told |= {cell: ("wait", f"{known[cell].word} {known[cell].reason}") for cell in found.kept}
    told |= {cell: ("run", known[cell].reason) for cell in found.submit}
    told |= {
        cell: (told[cell][0], f"{taken_back(known[cell])}, to be taken back")
        for cell in found.withdraw
        if cell in told
    }
    told |= {
        state.cell: ("refused", f"{state.cause}: {state.reason}; needs --retry-failed")
        for state in found.refused
    }
    told |= {
        cell: ("blocked", f"needs {needs[0]}" + (", ..." if len(needs) > 1 else ""))
        for cell, needs in found.blocked
    }
    return {cell: told[cell] for cell in known if cell in told}


def taken_back(known: plan.Known) -> str:
    """A job that a plan cancels, and why."""
    task = known.task
    where = f"job {task.job} {task.word}" if task is not None else "a job"
    return (
        f"{where} with other settings"
        if known.outdated
        else f"{where} on inputs made anew, or in vain"
    )


def _jobs_of(known: dict[Cell, plan.Known], found: plan.Plan) -> dict[Cell, str]:
    """Jobs of cells that are on their way and stay so, also of stages that were not chosen."""
    return {
        cell: state.task.job
        for cell, state in known.items()
        if plan.on_its_way(state) and state.task is not None and cell not in found.withdraw
    }


def _tries(known: plan.Known) -> int:
    """How often a cell has failed by itself as it is now."""
    if known.task is None or known.outdated or known.word in ("done", "stale"):
        return 0
    return known.task.tries - (known.cause not in jobs.OWN_FAULT)


def _shortages(known: plan.Known) -> tuple[int, int]:
    """How often it failed for want of memory and of time, its last job counted."""
    task = known.task
    if task is None or known.outdated:
        return 0, 0
    return task.memory + (known.cause == "memory"), task.time + (known.cause == "time")


def submit(
    ledger: Ledger, cells: Sequence[Cell], site: Site, hand_over: HandOver,
    resources: Callable[[str, list[Cell], int, int], Resources], begin: Callable[[], object], *,
    retry_failed: bool = False, force: bool = False,
) -> int:  # fmt: skip
    """Submit what is neither done nor on its way, and say what was done; returns the exit code.

    No process needs to stay: each job waits for those that it needs. An array is recorded before it is
    submitted and after, so that a launcher that dies leaves nothing that the next one does not find.
    ``begin`` is called once SLURM has answered, before anything is changed.

    Raises
    ------
    NsdcapError
        SLURM does not answer or refuses an array; what was submitted before goes on, and the
        same command goes on where this one stopped.
    """
    out = ledger.out
    with holding(out, "nsdcap.launch"):
        rows = _settled(ledger, _with_inputs(ledger, cells))
        limit = array_limit(site)
        begin()
        recover(out, rows)
        found, known = settle(ledger, cells, rows, site, retry_failed, force)
        withdrawn = [known[cell].task for cell in found.withdraw]
        for cell in found.withdraw[:6]:
            print(f"{cell}: {taken_back(known[cell])}, is taken back", flush=True)
        if len(found.withdraw) > 6:
            print(f"... {len(found.withdraw)} such jobs", flush=True)
        _withdraw(out, [task.job for task in withdrawn if task is not None])
        ready = arrays(ledger, found, known, site, resources, limit)
        hand_all(ledger, ready, hand_over, _jobs_of(known, found), force)
    return _tell(found, ready, out, site)


def _withdraw(out: Path, wanted: list[str]) -> None:
    """Cancel jobs and wait until they have ended, so that none runs beside the one that follows it."""
    jobs.cancel(wanted)
    end = time.monotonic() + PATIENCE
    while wanted and time.monotonic() < end:
        rows = jobs.queue(jobs.read(out))
        if not any(row[0] in wanted and row[1] in jobs.ACTIVE for row in rows):
            return
        time.sleep(0.5)


def hand_all(
    ledger: Ledger, ready: list[Planned], hand_over: HandOver, kept: dict[Cell, str],
    force: bool = False,
) -> None:  # fmt: skip
    """Submit arrays in their order; ``kept`` are the jobs of cells that are on their way already.

    With ``force`` a cell that is done counts as not done from when its array has been accepted.

    Raises
    ------
    NsdcapError
        SLURM refuses one; it and those after it are not submitted.
    """
    where = dict(kept)
    handed: dict[Cell, Array] = {}
    for number, planned in enumerate(ready):
        try:
            _hand_over(ledger, planned, hand_over, where, handed, force)
        except NsdcapError as error:
            left = sum(len(other.array.cells) for other in ready[number:])
            raise type(error)(
                f"{error}\n{len(handed)} cells are submitted and go on, {len(kept)} were on their way before, "
                f"{left} are not submitted; mend that, then give the same command"
            ) from None


def _hand_over(
    ledger: Ledger, planned: Planned, hand_over: HandOver, where: dict[Cell, str],
    handed: dict[Cell, Array], force: bool,
) -> None:  # fmt: skip
    """Submit one array; ``where`` is each cell's job id, ``handed`` the array of those handed over now."""
    word = "afterany" if planned.array.stage == "aggregate" else "afterok"

    def after(on: Sequence[Cell]) -> str:
        found = _job_ids(on, where, handed)
        return ":".join([word, *found]) if found else ""

    # cells that do not all wait for the same are held until each waits for its own: if an array waited
    # for all that any of them needs, one failure would cancel all of it
    waits = [
        [
            [str(planned.array.cells[index]) for index in need.indices],
            [str(cell) for cell in need.on],
        ]
        for need in planned.needs
    ]
    out, held = ledger.out, len(waits) > 1 or force
    array = replace(
        planned.array, held=held, resources=vars(planned.resources), waits=waits,
        submitted=clock(out),  # which sidecars and notes of its tasks are held against
    )  # fmt: skip
    jobs.write(out, array)
    on = [] if array.held else planned.needs[0].on
    number = hand_over(array, planned.resources, after(on), array.held)
    array = replace(array, job=number)
    jobs.write(out, array)
    if array.held:
        for need in planned.needs:
            indices = f"_[{','.join(map(str, need.indices))}]" if len(array.cells) > 1 else ""
            own = f"Dependency={after(need.on)}"
            jobs.ask("scontrol", "update", f"JobId={number}{indices}", own)
        for cell in array.cells if force else ():  # a task skips what is done
            ledger.forget(cell)
        jobs.ask("scontrol", "release", number)
        jobs.write(out, replace(array, held=False))
    for index, cell in enumerate(array.cells):
        where[cell], handed[cell] = array.element(index), array


def _job_ids(cells: Sequence[Cell], where: dict[Cell, str], handed: dict[Cell, Array]) -> list[str]:
    """Job ids of cells: an array's where all of it is among them, else those of its elements."""
    wanted = set(cells)
    arrays = {handed[cell].name: handed[cell] for cell in cells if cell in handed}
    whole = {name for name, array in arrays.items() if wanted.issuperset(array.cells)}
    ids = (
        handed[cell].job if cell in handed and handed[cell].name in whole else where[cell]
        for cell in cells
    )
    return list(dict.fromkeys(ids))


def _settled(ledger: Ledger, cells: Iterable[Cell]) -> list[list[str]]:
    """The queue, once no job of a cell without a result is just ending: nobody knows yet how it will."""
    end = time.monotonic() + PATIENCE
    told = False
    while True:
        records = jobs.read(ledger.out)
        rows = jobs.queue(records)
        tasks = jobs.tasks(ledger.out, rows, records)
        ending = [cell for cell in cells if cell in tasks and tasks[cell].state == "COMPLETING"]
        states = ledger.states(ending)
        if all(state.word == "done" for state in states) or time.monotonic() > end:
            return rows
        if not told:
            print(
                f"{len(states)} jobs are just ending: waiting for them, {PATIENCE:.0f} s at most",
                flush=True,
            )
        told = True
        time.sleep(0.5)


def recover(out: Path, rows: list[list[str]]) -> None:
    """Settle the arrays whose launcher died before it was done with them.

    One whose job was not noted, but which SLURM knows by name, is taken over if it is not held and its
    tasks are all on disk, and else cancelled; one that SLURM does not know was not submitted. The record
    of what was cancelled or not submitted is removed. Jobs of this run without a record are cancelled.
    """
    records = jobs.read(out)
    names = {array.name for array in records}
    strangers = [
        row[0]
        for row in rows
        if f"-{jobs.mark(out)}-" in row[5] and row[5] not in names and row[1] in jobs.ACTIVE
    ]
    if strangers:
        print(f"{len(strangers)} jobs of this run have no record and are cancelled", flush=True)
        _withdraw(out, strangers)
    # by the name alone: the id of a job that is gone may be another's by now
    by_name = {row[5]: row[0].partition("_")[0] for row in rows}
    for array in records:
        if array.job and not array.held:
            continue
        number = by_name.get(array.name, "")
        found = replace(array, job=number)
        pickles = [
            jobs.logs(out) / f"{found.element(index)}_submitted.pkl"
            for index in range(len(array.cells))
        ]
        if number and not array.held and all(path.exists() for path in pickles):
            jobs.write(out, found)
            continue
        if number:
            jobs.cancel([number])
        (jobs.folder(out) / f"{array.name}.json").unlink()


def array_limit(site: Site) -> int:
    """Most tasks in one array: the site's, or the cluster's MaxArraySize."""
    if site.max_array:
        return site.max_array
    for line in jobs.ask("scontrol", "show", "config").splitlines():
        name, _, value = line.partition("=")
        if name.strip() == "MaxArraySize":
            return max(1, int(value))
    return 1000


def _tell(found: plan.Plan, ready: list[Planned], out: Path, site: Site) -> int:
    """Say what was submitted and what was not, and why."""
    numbers = {array.name: array.job for array in jobs.read(out)}
    for planned in ready:
        array = planned.array
        print(f"  {array.stage:12}job {numbers[array.name]}, {len(array.cells)} tasks")
    print(
        f"{len(found.submit)} cells submitted, {len(found.kept)} on their way before, "
        f"{len(found.done)} done before"
    )
    if found.refused:
        for cause, count in Counter(state.cause for state in found.refused).items():
            print(f"{count} cells failed ({cause}) and are not tried again", file=sys.stderr)
        first = found.refused[0]
        log = f"; see {first.task.log}" if first.task else ""
        cure = "add --retry-failed (more memory or time is asked for where that was it)"
        if first.task is not None and first.task.tries > site.retries:
            cure = f"raise retries of the site file (it failed {first.task.tries} times), or add --force"
        print(
            f"  {first.cell}: {first.reason}{log}\n  mend the cause, then {cure}", file=sys.stderr
        )
    for cell, lacking in found.blocked[:6]:
        names = ", ".join(map(str, lacking[:3])) + (", ..." if len(lacking) > 3 else "")
        print(f"  {cell}: not submitted, it needs {names}", file=sys.stderr)
    if len(found.blocked) > 6:
        print(f"  ... {len(found.blocked)} such cells", file=sys.stderr)
    print(f"python -m nsdcap.status {shlex.quote(str(out))}")
    return 1 if found.refused else 75 if found.blocked else 0
