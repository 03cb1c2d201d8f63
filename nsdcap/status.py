"""``python -m nsdcap.status OUT``: the state of every cell of a run, wherever its cells run."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nsdcap.errors import NsdcapError, UsageError, unread

if TYPE_CHECKING:
    from nsdcap.cells import Ledger
    from nsdcap.lock import Holder
    from nsdcap.plan import Known

OTHER = "of an earlier command, with other subjects or layers"
ALIKE = 20  # lines of cells of one stage that stand alike, unless --all asks for every one
WORDS = ("done", "running", "pending", "failed", "stale", "missing", "unknown")


def main(arguments: list[str] | None = None) -> int:
    """Print a table of cells; exit 0 when all are done, 75 when some are not, 2 or 65 on bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m nsdcap.status",
        description=__doc__,
        epilog="Exit codes: 0 all done, 75 not yet, 2 usage, 65 bad data.",
    )
    parser.add_argument("out", type=Path, help="the run's folder, which holds config.toml")
    parser.add_argument(
        "--all",
        action="store_true",
        help="list every cell, also those done, and all that stand alike",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object, every cell in it"
    )
    parser.add_argument(
        "--watch", type=float, nargs="?", const=10.0, metavar="SECONDS",
        help="again every so many seconds (10), until nothing is running or pending",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    try:
        if options.watch is not None and not 0 < options.watch < float("inf"):
            raise UsageError(f"--watch: found {options.watch}, expected a number above 0")
        while True:
            code, moving = _tell(options.out, options.all, options.json)
            if options.watch is None or not moving:
                return code
            time.sleep(options.watch)
    except NsdcapError as error:
        print(f"nsdcap.status: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        return unread()
    except KeyboardInterrupt:
        return 130


def open_run(out: Path) -> Ledger:
    """The run in ``out``, by the settings there.

    Raises
    ------
    UsageError
        No run lies there, or a folder or file in the place of another.
    """
    from nsdcap import config, layout, weights
    from nsdcap.cells import Ledger
    from nsdcap.paths import config_file
    from nsdcap.ranges import check_path

    check_path(f"folder {out}", str(out))
    layout.check(out)
    weights.use_kept_cache(out)
    file = config_file(out)
    if not file.exists():
        raise UsageError(f"{out}: found no config.toml there; give the folder of a run (--out)")
    return Ledger(config.load(file), out.absolute())


def gather(ledger: Ledger) -> tuple[list[Known], str]:
    """Every cell as it stands, and why the queue could not be asked ("": it was, or need not be).

    Also cells that the settings no longer name, while a job of theirs runs or waits.
    """
    from nsdcap import jobs
    from nsdcap.plan import Known
    from nsdcap.stages import STAGES
    from nsdcap.survey import survey

    cells = [cell for stage in STAGES.values() for cell in stage.cells(ledger.settings)]
    rows, why = None, ""
    if arrays := jobs.read(ledger.out):
        try:
            rows = jobs.queue(arrays, timeout=20)  # without a configuration squeue tries for 60 s
        except jobs.QueueError as error:
            why = str(error)
    tasks = jobs.tasks(ledger.out, rows, arrays)
    known = survey(ledger, cells, tasks, rows is not None)
    others = {
        cell: Known(cell, task.word, OTHER, "", task)
        for cell, task in tasks.items()
        if task.word and cell not in known
    }
    return [*known.values(), *others.values()], why


def _tell(out: Path, every: bool, as_json: bool) -> tuple[int, bool]:
    """Print the run's state; returns the exit code, and whether anything may still change."""
    from nsdcap import lock

    ledger = open_run(out)
    holder = lock.living(ledger.out)  # before the cells, so that what it finishes last is seen
    known, why = gather(ledger)
    finished = all(state.word == "done" for state in known)
    moving = any(state.word in ("running", "pending", "unknown") for state in known)
    if as_json:
        print(json.dumps(as_object(known, why, holder), ensure_ascii=False))
    else:
        _print(known, why, every)
        if holder is not None:
            print(
                f"{holder.command.partition(' ')[0] or 'a command'} of {holder.user} on {holder.host} "
                f"(process {holder.pid}) works on this run since {holder.since}"
            )
    return (0 if finished else 75), moving or holder is not None


def as_object(known: list[Known], why: str, holder: Holder | None = None) -> dict[str, Any]:
    """The state of a run for another program; ``holder`` who works on it now."""
    told = ("user", "host", "pid", "since", "command")
    stages = {state.cell.stage: Counter[str]() for state in known}
    for state in known:
        stages[state.cell.stage][state.word] += 1
    return {
        "finished": all(state.word == "done" for state in known),
        "queue": why or "asked",
        "holder": {name: getattr(holder, name) for name in told} if holder else None,
        "stages": stages,
        "cells": [
            {
                "cell": str(state.cell), "stage": state.cell.stage, "subject": state.cell.subject,
                "layer": state.cell.layer, "state": state.word, "reason": state.reason,
                "cause": state.cause,
                **({"job": state.task.job, "log": str(state.task.log), "tries": state.task.tries,
                    "time_left": state.task.left} if state.task else {}),
            }
            for state in known
        ],
    }  # fmt: skip


def _print(known: list[Known], why: str, every: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    counts = Counter((state.cell.stage, state.word) for state in known)
    stages = dict.fromkeys(state.cell.stage for state in known)
    words = [w for w in WORDS if w != "unknown" or any((stage, w) in counts for stage in stages)]
    table = Table("stage", *words, box=None, pad_edge=False)
    for stage in stages:
        table.add_row(stage, *(str(counts[stage, word]) for word in words))
    console = Console(soft_wrap=True, highlight=False)
    console.print(table)
    if why:
        console.print(f"the queue was not asked: {why}", markup=False)
    told: Counter[tuple[str, str, str]] = Counter()
    lines = []
    for state in known:
        # what is missing with a cause has a job that ended for it: aggregate, after failures
        late = state.outdated and state.word == "done"
        if every or late or state.cause or state.word in ("running", "failed", "stale", "unknown"):
            alike = (state.cell.stage, state.word, state.cause)
            told[alike] += 1
            if every or told[alike] <= ALIKE:
                lines.append(_line(state))
    for (stage, word, cause), count in told.items():
        if not every and count > ALIKE:
            more = f"{count - ALIKE} more of {stage}"
            lines.append(f"{word:8}{more}{cause and f': {cause}'}; --all lists them")
    if lines:
        print("\n".join(lines))


def _line(state: Known) -> str:
    """A cell on one line: what it is doing, or what became of it and where that can be read."""
    task, about = state.task, [state.reason] if state.reason else []
    if state.cause:
        about.insert(0, state.cause)
    if state.word == "running" and task:
        about.append(f"{task.left} left")
    if state.outdated and task and task.word:
        about.append(f"job {task.job} is {task.word} with other settings; launch takes it back")
    if task and (state.cause or state.word in ("running", "failed")):
        about.append(f"job {task.job}, try {task.tries}, log {task.log}")
    return f"{state.word:8}{state.cell}" + (f": {'; '.join(about)}" if about else "")


if __name__ == "__main__":
    sys.exit(main())
