"""``python -m nsdcap.launch``: run stages in this process, in a pool, or on a SLURM cluster.

The only user of submitit.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nsdcap.errors import DiskError, NsdcapError, UsageError, unread
from nsdcap.options import (
    MINIATURE_OUT,
    STAGE_NAMES,
    build_parser,
    check_options,
    choose_executor,
    chosen_cells,
    read_site,
    settle,
)  # fmt: skip
from nsdcap.paths import Cell, disk_error

if TYPE_CHECKING:
    from nsdcap.cells import Ledger
    from nsdcap.jobs import Array
    from nsdcap.site import Resources, Site
    from nsdcap.submit import Planned


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = build_parser().parse_args(arguments)
    try:
        return launch(options)
    except BrokenPipeError:
        return unread()
    except NsdcapError as error:
        print(f"nsdcap: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        found = disk_error((options.out or MINIATURE_OUT) / "log", error)
        if found is None:
            raise
        print(f"nsdcap: {found}", file=sys.stderr)
        return found.exit_code
    except KeyboardInterrupt:
        print("nsdcap: stopped; the same command goes on where this one ended", file=sys.stderr)
        return 130


def launch(options: argparse.Namespace) -> int:
    """Settle the settings, then plan (``--dry-run``) or run."""
    check_options(options)
    miniature = options.config is None and options.nsd_root is None
    if options.out is None and not miniature:
        raise UsageError("--out: give the folder for the results")
    out = (options.out or MINIATURE_OUT).absolute()
    from nsdcap import description, layout, room

    layout.check(out)
    description.kept(out)
    started = os.environ.get("WORLD_SIZE", "1")
    if started not in ("", "0", "1"):
        raise UsageError(
            f"this is one of {started} processes (WORLD_SIZE), each of which would do all of the work: "
            f"start the launcher by itself, with --processes {started}"
        )
    executor, why = choose_executor(options)
    site = read_site(options) if executor != "inline" else None
    if site is not None and site.cache:
        from nsdcap.weights import use_cache

        use_cache(site.cache)  # what it holds is looked at here, too
    settings = settle(options, out, miniature)
    cells = chosen_cells(options.stage, settings)
    print(f"executor {executor}: {why}", flush=True)
    if miniature and not make_miniature(out, cells, options.dry_run):
        return 0
    from nsdcap.cells import Ledger
    from nsdcap.containers import place_script
    from nsdcap.lock import holding
    from nsdcap.preflight import keep_cache, make_folder, preflight, write_settings
    from nsdcap.private import keep_private

    ledger = Ledger(settings, out)
    preflight(settings, cells, site, options.dry_run, out, executor == "slurm")
    if options.dry_run:
        tell(ledger, cells, site if executor == "slurm" else None, options)
        return 0
    if not options.no_room_check:
        room.check(ledger, cells, options.force)
    make_folder(out)

    def begin() -> None:
        """Write what the cells need, once the run is held."""
        if site is not None:
            keep_private(out)
        description.write(out, settings)
        if site is not None:
            place_script(out)
            keep_cache(out, site.cache)
        write_settings(settings, out)

    if executor == "slurm" and site is not None:
        from nsdcap import sbatch, submit

        return submit.submit(
            ledger, cells, site, lambda *array: hand_over(ledger, site, *array),
            sbatch.needed_resources(ledger, site), begin,
            retry_failed=options.retry_failed, force=options.force,
        )  # fmt: skip
    with holding(out, "nsdcap.launch"):
        begin()
        if site is not None:
            return run_local(ledger, cells, options.force, options.jobs, site, options.processes)
        from nsdcap.inline import run_inline

        return run_inline(ledger, cells, options.force, options.processes)


def make_miniature(out: Path, cells: list[Cell], dry: bool) -> bool:
    """Make the built-in miniature's NSD if it is not there; ``dry``: only say so, and return False."""
    from nsdcap import miniature
    from nsdcap.lock import holding
    from nsdcap.preflight import make_folder

    if miniature.is_made(out / "nsd"):
        return True
    if dry:
        print(*(f"{cell}: run, not computed yet" for cell in cells), sep="\n")
        print(
            f"{len(cells)} cells would run, minutes in all; costs are known when the miniature is"
        )
        print(f"made, which would come first: {out / 'nsd'}, half a minute, 0.2 GB")
        return False
    make_folder(out)
    with holding(out, "nsdcap.launch"):
        if not miniature.is_made(out / "nsd"):  # by now
            miniature.make(out / "nsd")
    return True


# --- a task ---------------------------------------------------------------------------------------


END_SECONDS = 10.0  # that a task is given to end by itself once it is queued again


class CellTask:
    """A cell as submitit runs it, in a local process or a SLURM task."""

    def __call__(
        self, out: str, stage: str, subject: int | None, layer: int | None, force: bool = False,
        version: str = "", gpus: int = 0, file: str = "", processes: int = 1,
        launcher: tuple[int, str, str] | None = None,
    ) -> str:  # fmt: skip
        """Compute the cell unless it is done, by the settings in ``file``; returns "done" or "skipped".

        Pictures are shared out over so many ``processes``. It ends with its ``launcher``, if there is one.

        Raises
        ------
        UsageError
            The package here is not of the launcher's ``version``, or fewer than ``gpus`` are visible.
        """
        import submitit

        from nsdcap import __version__, lock
        from nsdcap.cells import run_cell

        if launcher is not None:
            lock.end_with(*launcher)
        # SLURM sends CONT just before USR2: submitit logs the first, and logging would swallow the error that
        # it raises at the second, after a time limit too many
        signal.signal(signal.SIGCONT, signal.SIG_DFL)
        if version not in ("", __version__):
            raise UsageError(
                f"this task has nsdcap {__version__}, its launcher {version}; build the image anew, or "
                "install its version on the login node"
            )
        seen = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        if len(seen) < gpus:
            raise UsageError(
                f"{gpus} GPUs were asked for, CUDA_VISIBLE_DEVICES names {len(seen)}; mend gpus or gres in the "
                "site file"
            )
        paths = submitit.JobEnvironment().paths
        # what a task that was killed while it saved its result left; submitit stumbles over it
        paths.result_pickle.with_name(paths.result_pickle.name + ".save_tmp").unlink(
            missing_ok=True
        )
        return run_cell(out, stage, subject, layer, force, file, processes)

    def checkpoint(self, *arguments: Any, **named: Any) -> Any:
        """Before a time limit or a preemption: the same again, which goes on from its finished parts."""
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # in an image it comes twice
        # what submitit raises next is lost where the signal meets an object's __del__
        end = threading.Timer(END_SECONDS, os._exit, (255,))
        end.daemon = True
        end.start()
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, *arguments, **named)


# --- local pool -----------------------------------------------------------------------------------


def run_local(
    ledger: Ledger, cells: list[Cell], force: bool, jobs: int, site: Site, processes: int = 1
) -> int:
    """Up to ``jobs`` cells at a time, each in a process of its own, stage by stage; GPUs take turns.

    A cell that is shared out over ``processes`` sees as many GPUs, if there are so many.
    """
    import submitit

    from nsdcap import __version__, lock
    from nsdcap.containers import command, visible_gpus
    from nsdcap.inline import Tally
    from nsdcap.stages import STAGES

    gpus, turn = visible_gpus(), 0
    # several processes that each take all cores are slower than one
    threads = max(1, (os.cpu_count() or 1) // jobs)
    executor = submitit.LocalExecutor(folder=ledger.out / "log")
    executor.update_parameters(timeout_min=7 * 24 * 60)
    # as on Ctrl-C, no cell goes on unseen
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    tally = Tally(len(cells))
    full = False
    for stage in dict.fromkeys(cell.stage for cell in cells):
        if full:
            break
        waiting = []
        for cell in [cell for cell in cells if cell.stage == stage]:
            if not force and ledger.state(cell).word == "done":
                tally.ended(cell, "skipped", 0.0)
            else:
                waiting.append(cell)
        running: dict[Cell, tuple[Any, float]] = {}
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    cell = waiting.pop(0)
                    count = (
                        min(processes, len(gpus)) if STAGES[stage].shared_out else min(1, len(gpus))
                    )
                    mine = [gpus[(turn + number) % len(gpus)] for number in range(count)]
                    turn += count
                    words = command(ledger, site, threads=threads, gpus=mine)
                    executor.python = shlex.join(words)
                    row = (str(ledger.out), cell.stage, cell.subject, cell.layer, force)
                    with stderr_to(ledger.out / "log" / "launcher.txt"):
                        job = executor.submit(
                            CellTask(), *row, __version__, len(mine), processes=processes,
                            launcher=lock.here(),
                        )  # fmt: skip
                    running[cell] = (job, time.monotonic())
                for cell, (job, start) in list(running.items()):
                    if not job.done():
                        continue
                    del running[cell]
                    error = job.exception()
                    if error is None:
                        tally.ended(cell, job.result(), time.monotonic() - start)
                    else:
                        message, code = told(str(error))
                        tally.failed(cell, message, code, job.paths.stderr)
                        full = full or code == DiskError.exit_code
                if full:  # the others would end so, too, after hours of work
                    waiting.clear()
                time.sleep(0.1)
        finally:  # stopped by hand: no cell goes on unseen
            for job, _ in running.values():
                job.cancel(check=False)
    return tally.close(ledger)


def told(traceback: str) -> tuple[str, int]:
    """The message and the exit code of an error by its traceback in another process."""
    from nsdcap import cells, errors

    inside = re.split(r"^-{20,}$", traceback, flags=re.M)[1:2] or [traceback]
    lines = inside[0].strip().splitlines() or ["no message"]
    kinds = (
        errors.UsageError,
        errors.DataError,
        errors.DiskError,
        errors.NsdcapError,
        cells.Incomplete,
    )
    codes = {f"{kind.__module__}.{kind.__name__}": kind.exit_code for kind in kinds}
    name, _, message = lines[-1].partition(": ")
    return (message, codes[name]) if name in codes else (lines[-1], 1)


@contextmanager
def stderr_to(path: Path) -> Iterator[None]:
    """Processes started in the block write their errors to ``path``.

    submitit's helper processes inherit standard error, and print a traceback each on Ctrl-C.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = os.dup(2)
    try:
        with path.open("ab") as file:
            os.dup2(file.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


# --- SLURM ----------------------------------------------------------------------------------------


def hand_over(
    ledger: Ledger, site: Site, array: Array, needed: Resources, dependency: str, held: bool
) -> str:
    """Submit an array by submitit; returns its job's id.

    Raises
    ------
    QueueError
        sbatch refuses it, in its words.
    """
    import submitit
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    from nsdcap import __version__, sbatch
    from nsdcap.jobs import QueueError, logs
    from nsdcap.preflight import freeze

    python, file = sbatch.python(ledger, site, needed), str(freeze(ledger.settings, ledger.out))
    try:
        executor = submitit.SlurmExecutor(logs(ledger.out), site.timeouts, python=python)
    except RuntimeError as error:
        raise QueueError(f"{error} (submitit looks for srun on the PATH)") from None
    executor.update_parameters(**sbatch.parameters(site, array, needed, dependency, held))
    rows = [
        (
            str(ledger.out),
            cell.stage,
            cell.subject,
            cell.layer,
            False,
            __version__,
            needed.gpus,
            file,
            max(1, needed.gpus),
        )
        for cell in array.cells
    ]
    try:
        submitted = executor.map_array(CellTask(), *zip(*rows, strict=True))
    except (FailedJobError, FailedSubmissionError) as error:
        said = [line for line in str(error).splitlines() if line.startswith("sbatch: ")]
        asked = {name: value for name, value in vars(needed).items() if value}
        raise QueueError(
            f"{array.stage}: {(said or [str(error)])[0].strip()}\nit was asked for "
            f"{', '.join(f'{name} = {value!r}' for name, value in asked.items())}: what does not suit is to "
            f"be changed under [defaults] or [stages.{array.stage}] of the site file"
        ) from None
    return submitted[0].job_id.partition("_")[0]


def tell(ledger: Ledger, cells: list[Cell], site: Site | None, options: argparse.Namespace) -> None:
    """Print the plan and, with a cluster, what SLURM would be given: a script for each kind of array."""
    from nsdcap.dry_run import tell_plan

    if site is None:
        tell_plan(ledger, cells, options.force)
        return
    from nsdcap import jobs, sbatch, submit

    rows, limit = None, site.max_array or 1000
    try:
        rows, limit = jobs.queue(jobs.read(ledger.out)), submit.array_limit(site)
    except jobs.QueueError as error:
        print(f"note: {error}; arrays of up to {limit} tasks are assumed")
    found, known = submit.settle(ledger, cells, rows, site, options.retry_failed, options.force)
    ready = submit.arrays(ledger, found, known, site, sbatch.needed_resources(ledger, site), limit)
    asked = {cell: planned.resources for planned in ready for cell in planned.array.cells}
    tell_plan(ledger, cells, options.force, submit.words(found, known), asked)
    told: dict[tuple[str, str], list[int]] = {}
    for planned in ready:
        kind = script(ledger, site, planned, options.force)
        told.setdefault(kind, []).append(len(planned.array.cells))
    for (what, text), sizes in told.items():
        stage, _, after = what.partition(", ")
        arrays = f"{sum(sizes)} tasks in {len(sizes)} arrays of up to {max(sizes)}"
        print(f"\n# {stage}: {arrays}{after and ', ' + after}\n{text}")


def script(ledger: Ledger, site: Site, planned: Planned, force: bool) -> tuple[str, str]:
    """The stage of an array and what it waits for, and what sbatch would be given for it, but for the
    random end of its name (zeros) and the ids of the jobs that it waits for (their stages)."""
    from submitit.slurm.slurm import _make_sbatch_string

    from nsdcap import jobs, sbatch

    array, waits = planned.array, {cell.stage for need in planned.needs for cell in need.on}
    on = [name for name in STAGE_NAMES if name in waits]
    held = len(planned.needs) > 1 or force  # then each cell is told what it waits for, by scontrol
    word = "afterany" if array.stage == "aggregate" else "afterok"
    after = "" if held or not on else ":".join([word, *(f"<{name}>" for name in on)])
    parameters = sbatch.parameters(site, array, planned.resources, after, held)
    parameters["job_name"] = array.name.rpartition("-")[0] + "-00000000"
    if len(array.cells) > 1:
        parameters["map_count"] = len(array.cells)
    folder = jobs.logs(ledger.out)
    words = sbatch.python(ledger, site, planned.resources)
    line = f"{words} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    text = _make_sbatch_string(command=line, folder=folder, **parameters)
    return array.stage + (f", each after its own {', '.join(on)}" if on else ""), text


if __name__ == "__main__":
    # tasks are pickled by the name of the module, which is not __main__ where they run
    from nsdcap.launch import main as named

    sys.exit(named())
