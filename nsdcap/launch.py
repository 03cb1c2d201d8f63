"""``python -m nsdcap.launch``: run stages, in this process or in a pool; the only user of submitit."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nsdcap.errors import DataError, NsdcapError, UsageError
from nsdcap.paths import Cell, artefact, failure

if TYPE_CHECKING:
    from nsdcap.cells import Ledger
    from nsdcap.config import Config

STAGE_NAMES = (
    "prepare", "features", "decode", "caption", "reconstruct", "kernel", "encode", "aggregate",
)  # fmt: skip
MINIATURE_OUT = Path("nsdcap-miniature")

EPILOG = """\
With neither --config nor --nsd-root the built-in miniature is made (in OUT/nsd) and run.
Exit codes: 0 all done, 1 a cell failed, 2 usage, 65 bad data, 75 incomplete.
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m nsdcap.launch",
        description="Captions and pictures from brain activity, and encoding models of the cortex.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--stage", default="all", choices=(*STAGE_NAMES, "all"), help="what to run (default: all)")
    add("--config", type=Path, metavar="FILE.toml", help="settings; see a run's config.toml")
    add(
        "--preset",
        choices=("paper", "released"),
        help="defaults of the paper or of its neighbour's code",
    )
    add(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="one setting, as in decode.gain=cv",
    )
    add("--subjects", type=int, nargs="+", metavar="N", help="subjects, 1 to 8")
    add(
        "--layers",
        type=int,
        nargs="+",
        metavar="N",
        help="BERT states to encode from, 0 the embeddings",
    )
    add(
        "--nsd-root",
        type=Path,
        help="the folder that holds nsddata/, nsddata_betas/, nsddata_stimuli/",
    )
    add("--out", type=Path, help=f"folder of the results (miniature: {MINIATURE_OUT})")
    add(
        "--executor", default="inline", choices=("inline", "local", "slurm"), help="default: inline"
    )
    add("--jobs", type=int, default=2, metavar="N", help="cells at a time of --executor local")
    add(
        "--dry-run",
        action="store_true",
        help="list cells, reasons and estimated cost; write nothing",
    )
    add("--force", action="store_true", help="also compute cells that are done")
    return parser


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
    if options.executor == "slurm":
        raise UsageError("--executor slurm: not in this version yet; use inline or local")
    if options.jobs < 1:
        raise UsageError(f"--jobs: found {options.jobs}, expected at least 1")
    miniature = options.config is None and options.nsd_root is None
    if options.out is None and not miniature:
        raise UsageError("--out: give the folder for the results")
    out = (options.out or MINIATURE_OUT).absolute()
    settings = settle(options, out, miniature)
    if miniature:
        from nsdcap import miniature as built_in

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

    ledger = Ledger(settings, out)
    cells = chosen_cells(options.stage, settings)
    if options.dry_run:
        from nsdcap.plan import tell_plan

        tell_plan(ledger, cells, options.force)
        return 0
    preflight(settings)
    write_settings(settings, out)
    if options.executor == "local":
        return run_local(ledger, cells, options.force, options.jobs)
    return run_inline(ledger, cells, options.force)


def settle(options: argparse.Namespace, out: Path, miniature: bool) -> Config:
    """The settings that the options, the file and the preset amount to."""
    from nsdcap import config

    given = list(options.set)
    if options.nsd_root:
        given.append(f"data.nsd_root={str(options.nsd_root.absolute())!r}")
    if options.subjects:
        given.append(f"data.subjects={options.subjects}")
    if options.layers is not None:
        given.append(f"encode.states={options.layers}")
    file = options.config
    if miniature:
        from nsdcap import miniature as built_in

        file = built_in.SETTINGS
        given = [*built_in.places(out / "nsd"), *given]
    return config.load(file, options.preset, tuple(given))


def chosen_cells(stage: str, settings: Config) -> list[Cell]:
    """The cells of a stage, or of all in the order of the table."""
    from nsdcap.stages import STAGES

    names = STAGE_NAMES if stage == "all" else (stage,)
    return [cell for name in names for cell in STAGES[name].cells(settings)]


def preflight(settings: Config) -> None:
    """Refuse what can be seen to be wrong before any work: missing sessions, folders that are none.

    Raises
    ------
    DataError
        Names the setting or file, what was found, and what to do.
    """
    from nsdcap.cells import open_nsd, sessions_of

    nsd = open_nsd(settings)
    for subject in settings.data.subjects:
        for session in sessions_of(settings, nsd, subject):
            nsd.betas_file(subject, session)
    for model in ("blip", "diffusion", "clip"):
        where = getattr(settings.models, model)
        if not where:
            raise UsageError(f"models.{model} is empty: give a Hugging Face folder or a hub id")
        if where.startswith(("/", ".", "~")) and not Path(where).is_dir():
            raise DataError(
                f"models.{model} = {where!r}: there is no such folder; mend the setting"
            )


def write_settings(settings: Config, out: Path) -> None:
    """Put the settings beside the results."""
    from nsdcap import config
    from nsdcap.paths import atomic, config_file

    text, file = config.dump(settings), config_file(out)
    make_folder(out)
    if not file.exists() or file.read_text() != text:
        with atomic(file) as partial:
            partial.write_text(text)


def make_folder(out: Path) -> None:
    """Make the folder of the results, and try that it can be written."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise UsageError(
            f"--out {out}: cannot be written ({error.strerror}); name another folder"
        ) from None


def run_inline(ledger: Ledger, cells: list[Cell], force: bool) -> int:
    """One cell after another in this process; a failed cell does not stop those that need it not."""
    tally = Tally(len(cells))
    for cell in cells:
        start = time.monotonic()
        try:
            tally.ended(cell, ledger.run(cell, force), time.monotonic() - start)
        except NsdcapError as error:
            tally.failed(cell, str(error), error.exit_code)
        except Exception as error:  # whatever a cell dies of, the others go on
            tally.failed(cell, f"{type(error).__name__}: {error}", 1, failure(ledger.out, cell))
    return tally.close(ledger)


def run_local(ledger: Ledger, cells: list[Cell], force: bool, jobs: int) -> int:
    """Up to ``jobs`` cells at a time, each in a process of its own, stage by stage."""
    import submitit

    from nsdcap.cells import run_cell

    # several processes that each take all cores are slower than one
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
    executor = submitit.LocalExecutor(folder=ledger.out / "log")
    executor.update_parameters(timeout_min=7 * 24 * 60)
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
                    with stderr_to(ledger.out / "log" / "launcher.txt"):
                        job = executor.submit(
                            run_cell, str(ledger.out), cell.stage, cell.subject, cell.layer, force
                        )
                    running[cell] = (job, time.monotonic())
                for cell, (job, start) in list(running.items()):
                    if not job.done():
                        continue
                    del running[cell]
                    error = job.exception()
                    ended = job.result() if error is None else ("failed", 1, str(error))
                    how, code, message = ended
                    if how == "failed":
                        tally.failed(cell, message, code, job.paths.stderr)
                    else:
                        tally.ended(cell, how, time.monotonic() - start)
                time.sleep(0.1)
        finally:  # stopped by hand: no cell goes on unseen
            for job, _ in running.values():
                job.cancel(check=False)
    return tally.close(ledger)


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
        """The last line; returns 0, 65 (bad data), 1 (a cell failed) or 75 (inputs are missing)."""
        took = time.monotonic() - self.start
        print(
            f"{self.done} of {self.total} cells done, {self.skipped} of them before, {took:.0f} s"
        )
        page = artefact(ledger.out, Cell("aggregate")) / "report.html"
        if page.exists():
            print(f"report: {page}")
        return next((code for code in (65, 1, 2, 75) if code in self.codes), 0)

    def _count(self) -> str:
        return f"{self.done + len(self.codes)}/{self.total}"


if __name__ == "__main__":
    sys.exit(main())
