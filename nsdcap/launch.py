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
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nsdcap.errors import NsdcapError, UsageError
from nsdcap.options import (
    MINIATURE_OUT,
    STAGE_NAMES,
    build_parser,
    choose_executor,
    chosen_cells,
    image_file,
    read_site,
    settle,
)  # fmt: skip
from nsdcap.paths import Cell

if TYPE_CHECKING:
    from nsdcap.cells import Ledger
    from nsdcap.jobs import Array
    from nsdcap.site import Resources, Site


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = build_parser().parse_args(arguments)
    try:
        return launch(options)
    except NsdcapError as error:
        print(f"nsdcap: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("nsdcap: stopped; the same command goes on where this one ended", file=sys.stderr)
        return 130


def launch(options: argparse.Namespace) -> int:
    """Settle the settings, then plan (``--dry-run``) or run."""
    if options.jobs < 1:
        raise UsageError(f"--jobs: found {options.jobs}, expected at least 1")
    miniature = options.config is None and options.nsd_root is None
    if options.out is None and not miniature:
        raise UsageError("--out: give the folder for the results")
    out = (options.out or MINIATURE_OUT).absolute()
    executor, why = choose_executor(options)
    settings = settle(options, out, miniature)
    if miniature:
        from nsdcap import miniature as built_in
        from nsdcap.preflight import make_folder

        if not built_in.is_made(out / "nsd"):
            if options.dry_run:
                cells = chosen_cells(options.stage, settings)
                print(*(f"{cell}: run, not computed yet" for cell in cells), sep="\n")
                print(
                    f"{len(cells)} cells would run, minutes in all; costs are known when the miniature is"
                )
                print(f"made, which would come first: {out / 'nsd'}, half a minute, 0.2 GB")
                return 0
            make_folder(out)
            built_in.make(out / "nsd")
    from nsdcap.cells import Ledger
    from nsdcap.containers import check_image, check_weights, place_script
    from nsdcap.preflight import preflight, write_settings

    ledger = Ledger(settings, out)
    cells = chosen_cells(options.stage, settings)
    site = read_site(options) if executor == "slurm" else None
    print(f"executor {executor}: {why}", flush=True)
    if options.dry_run:
        from nsdcap.dry_run import tell_plan

        tell_plan(ledger, cells, options.force)
        if site is not None:
            dry_run(ledger, cells, site, options.retry_failed)
        return 0
    preflight(settings)
    image = site.image if site else image_file(options)
    cache = site.cache if site else os.environ.get("HF_HOME", "")
    check_image(image)
    check_weights(ledger, image, cache)
    if site is not None:
        from nsdcap import sbatch

        sbatch.check_path(out)
    write_settings(settings, out)
    if executor != "inline":
        place_script(out)
    if site is not None:
        from nsdcap import submit

        return submit.submit(
            ledger, cells, site, lambda *array: hand_over(ledger, site, *array),
            sbatch.needed_resources(ledger, site), retry_failed=options.retry_failed,
            force=options.force,
        )  # fmt: skip
    if executor == "local":
        return run_local(ledger, cells, options.force, options.jobs, image, cache if image else "")
    from nsdcap.inline import run_inline

    return run_inline(ledger, cells, options.force)


# --- a task ---------------------------------------------------------------------------------------


class CellTask:
    """A cell as submitit runs it, in a local process or a SLURM task."""

    def __call__(
        self, out: str, stage: str, subject: int | None, layer: int | None, force: bool = False,
        version: str = "", gpus: int = 0,
    ) -> str:  # fmt: skip
        """Compute the cell unless it is done; returns "done" or "skipped".

        Raises
        ------
        UsageError
            The package here is not of the launcher's ``version``, or fewer than ``gpus`` are visible.
        """
        import submitit

        from nsdcap import __version__
        from nsdcap.cells import run_cell

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
        return run_cell(out, stage, subject, layer, force)

    def checkpoint(self, *arguments: Any, **named: Any) -> Any:
        """Before a time limit or a preemption: the same again, which goes on from its finished parts."""
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # in an image it comes twice
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, *arguments, **named)


# --- local pool -----------------------------------------------------------------------------------


def run_local(
    ledger: Ledger, cells: list[Cell], force: bool, jobs: int, image: str = "",
    cache: str = "",
) -> int:  # fmt: skip
    """Up to ``jobs`` cells at a time, each in a process of its own, stage by stage; GPUs take turns."""
    import submitit

    from nsdcap import __version__
    from nsdcap.containers import command, visible_gpus
    from nsdcap.inline import Tally

    gpus, turn = visible_gpus(), 0
    # several processes that each take all cores are slower than one
    threads = max(1, (os.cpu_count() or 1) // jobs)
    words = command(ledger, image, gpu=bool(gpus), threads=threads, cache=cache)
    executor = submitit.LocalExecutor(folder=ledger.out / "log", python=shlex.join(words))
    tally = Tally(len(cells))
    for stage in dict.fromkeys(cell.stage for cell in cells):
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
                    mine = gpus[turn % len(gpus) :][:1] if gpus else []
                    turn += 1
                    executor.update_parameters(
                        timeout_min=7 * 24 * 60, gpus_per_node=len(mine), visible_gpus=mine
                    )
                    with stderr_to(ledger.out / "log" / "launcher.txt"):
                        job = executor.submit(
                            CellTask(),
                            str(ledger.out),
                            cell.stage,
                            cell.subject,
                            cell.layer,
                            force,
                            __version__,
                            len(mine),
                        )
                    running[cell] = (job, time.monotonic())
                for cell, (job, start) in list(running.items()):
                    if not job.done():
                        continue
                    del running[cell]
                    error = job.exception()
                    if error is None:
                        tally.ended(cell, job.result(), time.monotonic() - start)
                    else:
                        tally.failed(cell, *told(str(error)), job.paths.stderr)
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
    kinds = (errors.UsageError, errors.DataError, errors.NsdcapError, cells.Incomplete)
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

    python = sbatch.python(ledger, site, needed)
    executor = submitit.SlurmExecutor(logs(ledger.out), site.timeouts, python=python)
    executor.update_parameters(**sbatch.parameters(site, array, needed, dependency, held))
    rows = [
        (str(ledger.out), cell.stage, cell.subject, cell.layer, False, __version__, needed.gpus)
        for cell in array.cells
    ]
    try:
        submitted = executor.map_array(CellTask(), *zip(*rows, strict=True))
    except (FailedJobError, FailedSubmissionError) as error:
        said = [line for line in str(error).splitlines() if "sbatch" in line.lower()]
        raise QueueError(f"{array.stage}: {(said or [str(error)])[-1].strip()}") from None
    return submitted[0].job_id.partition("_")[0]


def dry_run(ledger: Ledger, cells: list[Cell], site: Site, retry_failed: bool) -> None:
    """Print what SLURM would be given: each stage's arrays, and the script of the first."""
    from submitit.slurm.slurm import _make_sbatch_string

    from nsdcap import jobs, sbatch, submit

    try:
        rows, limit = jobs.queue(), submit.array_limit(site)
    except jobs.QueueError as error:
        print(f"note: {error}; arrays of up to {site.max_array or 1000} tasks are assumed")
        rows, limit = None, site.max_array or 1000
    found, known = submit.settle(ledger, cells, rows, site, retry_failed)
    ready = submit.arrays(ledger, found, known, site, sbatch.needed_resources(ledger, site), limit)
    for stage in dict.fromkeys(planned.array.stage for planned in ready):
        own = [planned for planned in ready if planned.array.stage == stage]
        sizes = [len(planned.array.cells) for planned in own]
        on = {other.stage for planned in own for need in planned.needs for other in need.on}
        print(f"\n# {stage}: {sum(sizes)} tasks in {len(sizes)} arrays", end="")
        print(
            f", each after its own {', '.join(name for name in STAGE_NAMES if name in on)}"
            if on
            else ""
        )
        first = own[0]
        held = len(first.needs) > 1  # then each cell is given its own, by scontrol
        word = "afterany" if stage == "aggregate" else "afterok"
        after = "" if held or not on else ":".join([word, *(f"<{name}>" for name in sorted(on))])
        parameters = sbatch.parameters(site, first.array, first.resources, after, held)
        if sizes[0] > 1:
            parameters["map_count"] = sizes[0]
        folder = jobs.logs(ledger.out)
        words = sbatch.python(ledger, site, first.resources)
        line = f"{words} -u -m submitit.core._submit {shlex.quote(str(folder))}"
        print(_make_sbatch_string(command=line, folder=folder, **parameters))


if __name__ == "__main__":
    # tasks are pickled by the name of the module, which is not __main__ where they run
    from nsdcap.launch import main as named

    sys.exit(named())
