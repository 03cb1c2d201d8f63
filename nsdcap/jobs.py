"""What a run has handed to SLURM: a record of each array on disk, and what the queue says of it.

The truth about a cell is its artefact. Records say which job was to make it, the queue how far that
job is; both are hints, and everything goes on without accounting and after a job has left the queue.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nsdcap.errors import DataError, NsdcapError, first_line
from nsdcap.options import STAGE_NAMES
from nsdcap.paths import Cell, write_json

ACTIVE = {
    "CONFIGURING": "running", "COMPLETING": "running", "RUNNING": "running", "SIGNALING": "running",
    "STAGE_OUT": "running", "STOPPED": "running", "SUSPENDED": "running",
    "PENDING": "pending", "REQUEUED": "pending", "REQUEUE_HOLD": "pending", "REQUEUE_FED": "pending",
    "RESIZING": "running", "SPECIAL_EXIT": "pending",
}  # fmt: skip
NEVER = (
    "DependencyNeverSatisfied",
    "launch failed requeued held",
)  # a pending job's reason: in vain


class QueueError(NsdcapError):
    """SLURM does not answer; nothing may be concluded about the jobs."""

    exit_code = 69


@dataclass(frozen=True)
class Array:
    """An array of tasks as it was submitted, or is about to be.

    ``name`` is unique to it and the job's name in SLURM, by which it is found where the launcher
    died before it could note ``job``. ``job`` "" if it is not known to have been submitted, ``held``
    while its cells are not yet told what to wait for. Of each cell: ``tries``, this one counted, how
    often it had failed for want of ``memory`` and ``time``, and the signature of what it is made from.
    ``resources`` it asked for, and what its cells wait for, [cells, on which] for each group of them;
    ``user`` the number of who submitted it.
    """

    name: str
    stage: str
    cells: tuple[Cell, ...]
    job: str = ""
    held: bool = False
    submitted: float = 0.0  # seconds since the epoch, by the clock of the run's folder
    tries: tuple[int, ...] = ()
    memory: tuple[int, ...] = ()
    time: tuple[int, ...] = ()
    signatures: tuple[str, ...] = ()
    resources: dict = field(default_factory=dict)
    waits: list = field(default_factory=list)
    user: int = field(default_factory=os.getuid)

    def element(self, index: int) -> str:
        """The job id of a cell; an array of one is a plain job."""
        return self.job if len(self.cells) == 1 else f"{self.job}_{index}"


@dataclass(frozen=True)
class Task:
    """The last job of a cell: the queue's ``state`` ("" if it no longer knows it) and ``reason``,
    seconds it has ``left``, its log; ``tries`` so far and failures for want of memory or time before."""

    cell: Cell
    job: str
    submitted: float
    log: Path
    state: str = ""
    reason: str = ""
    left: str = ""
    node: str = ""
    tries: int = 1
    memory: int = 0
    time: int = 0
    signature: str = ""
    name: str = ""  # of its array

    @property
    def word(self) -> str:
        """running, pending, or "" for a job that has ended."""
        return ACTIVE.get(self.state, "")


def folder(out: Path) -> Path:
    """Where the records of a run lie."""
    return out / "jobs"


def logs(out: Path) -> Path:
    """submitit's folder: pickled tasks, and a log of each."""
    return out / "log" / "slurm"


def mark(out: Path) -> str:
    """What the names of all jobs of a run hold, so that they are found even without their records."""
    return hashlib.sha256(str(out.resolve()).encode()).hexdigest()[:8]


def write(out: Path, array: Array) -> None:
    """Put an array's record on disk; before it is submitted, and again with its job's id."""
    cells = [[cell.stage, cell.subject, cell.layer] for cell in array.cells]
    write_json(folder(out) / f"{array.name}.json", {**vars(array), "cells": cells})


def read(out: Path) -> list[Array]:
    """All records of a run, in the order of submission.

    Raises
    ------
    DataError
        One cannot be read, or is no record.
    """
    records = (_record(path) for path in sorted(folder(out).glob("*.json")))
    found = [record for record in records if record is not None]
    return sorted(found, key=lambda array: (array.submitted, array.name))


# of each field but the cells: its type, and that of its items
_KINDS: dict[str, tuple[Any, Any]] = {
    "name": (str, None), "stage": (str, None), "job": (str, None), "held": (bool, None),
    "submitted": ((int, float), None), "tries": (list, int), "memory": (list, int), "time": (list, int),
    "signatures": (list, str), "resources": (dict, None), "waits": (list, None), "user": (int, None),
}  # fmt: skip


def _cell(stage: Any, subject: Any, layer: Any) -> Cell:
    if stage not in STAGE_NAMES or not all(
        value is None or (type(value) is int and 0 <= value < 100_000) for value in (subject, layer)
    ):
        raise ValueError(f"no cell is {repr((stage, subject, layer))[:60]}")
    return Cell(stage, subject, layer)


def _record(path: Path) -> Array | None:
    """None where a launcher has just found that it was never submitted."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        if unknown := kept.keys() - {"cells", *_KINDS}:
            raise ValueError(f"unknown: {', '.join(sorted(unknown))[:60]}")
        cells = tuple(_cell(*row) for row in kept["cells"])
        if not cells:
            raise ValueError("no cells")
        for name, (kind, item) in _KINDS.items():
            if name not in kept and name not in ("name", "stage"):  # of an earlier version
                continue
            value = kept[name]
            if not isinstance(value, kind) or (
                kind in (int, (int, float)) and isinstance(value, bool)
            ):
                raise ValueError(f"{name} is {repr(value)[:60]}")
            if item and not all(type(one) is item for one in value):
                raise ValueError(f"{name} is {repr(value)[:60]}")
            if item and len(value) != len(cells):
                raise ValueError(f"{len(value)} {name} of {len(cells)} cells")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) else first_line(error)
        raise DataError(
            f"{path}: cannot be read as a record of jobs ({why}); see with squeue that none of this run waits "
            "or runs, then remove the file"
        ) from None
    lists = {name: tuple(kept[name]) for name, (_, item) in _KINDS.items() if item and name in kept}
    return Array(**{**kept, **lists, "cells": cells})


# --- what SLURM says ------------------------------------------------------------------------------


def ask(*command: str, timeout: float = 60) -> str:
    """The output of one of SLURM's commands.

    Raises
    ------
    QueueError
        It is not there, fails, or does not answer within ``timeout`` seconds.
    """
    try:
        # a user's own defaults for these commands (SQUEUE_PARTITION and the like) would hide jobs
        own = ("SQUEUE_", "SACCT_", "SCONTROL_")
        clean = {key: value for key, value in os.environ.items() if not key.startswith(own)}
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=clean)
    except FileNotFoundError:
        raise QueueError(
            f"{command[0]}: found no such command; is this a SLURM login node?"
        ) from None
    except subprocess.TimeoutExpired:
        raise QueueError(f"{command[0]} has not answered in {timeout:.0f} s; try again") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise QueueError(f"{' '.join(command[:2])}: {said[-1]}")
    return done.stdout


def queue(arrays: list[Array], timeout: float = 60) -> list[list[str]]:
    """[element's id, state, reason, time left, node, name] of all jobs that SLURM holds of this user
    and of those who submitted ``arrays``.

    Ended jobs are held for the cluster's MinJobAge, five minutes by default.
    """
    users = sorted({str(os.getuid()), *(str(array.user) for array in arrays)})
    text = ask("squeue", f"--user={','.join(users)}", "--states=all", "--noheader", "--array",
               "--format=%i|%T|%r|%L|%N|%j", timeout=timeout)  # fmt: skip
    return [line.split("|", 5) for line in text.splitlines() if line.count("|") >= 5]


def accounted(tasks: Iterable[Task]) -> dict[str, str]:
    """The state of tasks' jobs, by id, from sacct; empty where accounting is absent or out of order."""
    names = {task.job: task.name for task in tasks}
    if not names:
        return {}
    wanted = ",".join(sorted({number.partition("_")[0] for number in names}))
    try:
        text = ask("sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={wanted}",
                   "--format=JobID,State,JobName", timeout=20)  # fmt: skip
    except QueueError:
        return {}
    rows = (line.split("|", 2) for line in text.splitlines() if line.count("|") >= 2)
    return {job: state.split(" ")[0] for job, state, name in rows if names.get(job) == name}


def tasks(out: Path, rows: list[list[str]] | None, arrays: list[Array]) -> dict[Cell, Task]:
    """The last job of every cell that was ever submitted; ``rows`` of ``queue``, None: not asked.

    ``arrays`` must have been read before the queue was asked, which knows nothing of later ones.
    """
    # by the name too: a controller that was killed may give a job's id out again
    known = {(row[0], row[5]): row for row in rows or []}
    found: dict[Cell, Task] = {}
    for array in arrays:
        if not array.job:
            continue
        for index, cell in enumerate(array.cells):
            number = array.element(index)
            state, reason, left, node = known.get((number, array.name), [""] * 6)[1:5]
            found[cell] = Task(
                cell, number, array.submitted, logs(out) / f"{number}_0_log.err", state, reason,
                left, node, array.tries[index], array.memory[index], array.time[index],
                array.signatures[index], array.name,
            )  # fmt: skip
    return found


# --- why a task ended -----------------------------------------------------------------------------

# what ends a task: the queue's word, or what SLURM and the wrapper write at the end of its log
_CAUSES = (
    ("memory", ("OUT_OF_MEMORY",), r"oom[-_ ]kill|Out Of Memory|[Ee]xceeded (job )?memory limit"),
    ("dependency", (), r"Incomplete: .* not done"),
    ("disk", (), r"errors\.DiskError: "),
    ("time", ("TIMEOUT", "DEADLINE"), r"DUE TO TIME LIMIT|timed-out too many times"),
    ("preempted", ("PREEMPTED",), r"DUE TO PREEMPTION"),
    ("node", ("NODE_FAIL", "BOOT_FAIL"), r"NODE FAILURE|Node failure on"),
    ("cancelled", ("CANCELLED",), r"CANCELLED AT"),
)  # fmt: skip
_SIGNAL = r"\(signal \w+\)|: (Killed|Terminated)$|Force Terminated|Unable to create step"
BEGINS = "nsdcap: begins on "  # in the log at the start of every attempt
_NO_MEMORY = re.compile(r"(?<!OutOf)MemoryError")  # the host's; torch.OutOfMemoryError is a GPU's
# it would end so again: only --retry-failed tries again
OWN_FAULT = ("exception", "memory", "time")


def cause(task: Task, note: str = "", state: str = "") -> tuple[str, str]:
    """Why a job ended without a result: a word, and what is known of it.

    exception, memory, disk, time, preempted, node, cancelled, dependency, killed, or lost (nothing is known).
    ``note`` is the last line of the traceback that the job left beside the cell's result, "" without one.
    ``state`` is accounting's word where the queue has none.
    """
    state = task.state or state
    for word, states, _ in _CAUSES:
        if state in states and word != "cancelled":
            return word, state
    if note:
        for word, _, pattern in _CAUSES[:4]:
            if re.search(pattern, note) or (word == "memory" and _NO_MEMORY.search(note)):
                return word, note
        return "exception", note
    tail = log_tail(task.log)
    _, begun, last = tail.rpartition(BEGINS)  # of the last attempt alone
    lines = (last.partition("\n")[2] if begun else last).strip().splitlines()
    for word, _, pattern in _CAUSES:
        told = [line for line in lines if re.search(pattern, line)]
        if told:
            return word, told[-1].strip()
    if not tail and (state == "CANCELLED" or task.reason in NEVER):
        return "dependency", "cancelled before it began: what it needs has failed, or by hand"
    if state == "CANCELLED":
        return "cancelled", state
    if raised := _raised(lines):
        return "exception", raised
    own = [line for line in lines if not line.startswith("srun: ")] or lines
    if any(re.search(_SIGNAL, line) for line in lines):
        return "killed", own[-1].strip()
    if any(re.search(r"exit (code|status) \d", line) for line in lines):
        return "exception", own[-1].strip()
    if begun and state == "FAILED":
        return "exception", "it ended before its Python began; see setup in the site file"
    return "lost", own[-1].strip() if own else "it has left the queue without a result or a log"


def _raised(lines: list[str]) -> str:
    """The last line of the last Python traceback, "" without one."""
    for number in range(len(lines) - 1, -1, -1):
        if lines[number].startswith("Traceback (most recent call last)"):
            return next((line for line in lines[number + 1 :] if line[:1].strip()), "")
    return ""


def log_tail(path: Path, size: int = 4000) -> str:
    """The end of a log, "" where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - size))
            return file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""


def cancel(ids: Iterable[str]) -> None:
    """scancel jobs and elements; those that have ended meanwhile are no error."""
    wanted = list(ids)
    for start in range(0, len(wanted), 500):
        subprocess.run(["scancel", *wanted[start : start + 500]], capture_output=True, check=False)
