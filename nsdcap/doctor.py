"""``python -m nsdcap.doctor``: is all there that a run will need, and sound? One table; nothing is written."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nsdcap.errors import NsdcapError, unread
from nsdcap.options import (
    MINIATURE_OUT,
    STAGE_NAMES,
    add_run,
    check_options,
    choose_executor,
    chosen_cells,
    read_site,
    settle,
)  # fmt: skip

if TYPE_CHECKING:
    from nsdcap.checks import Row
    from nsdcap.config import Config
    from nsdcap.site import Site

PARTS = ("data", "models", "machine", "cluster")
COLOURS = {"ok": "green", "note": "yellow"}

EPILOG = """\
With neither --config nor --nsd-root the built-in miniature is looked at, in OUT/nsd. Files are sampled, not
read whole; nothing is written and nothing fetched.
Exit codes: 0 all good (notes are no faults), 65 something is bad, else 69 something is missing (room on the
disk too), else 2 a setting does not suit; 2 also for wrong options.
"""


@dataclass(frozen=True)
class Case:
    """What is looked at: a run's settings and stages, its folder (None: not named), the cluster or image
    (None: this process), and whether SLURM runs it. ``made`` is False of a miniature that is not made yet."""

    settings: Config
    stages: tuple[str, ...]
    out: Path | None
    site: Site | None
    slurm: bool
    made: bool = True


def build_parser() -> argparse.ArgumentParser:
    """The command line: the launcher's options that say what a run is, and the doctor's own."""
    parser = argparse.ArgumentParser(
        prog="python -m nsdcap.doctor",
        description="Check everything that a run will need, before it is started.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_run(parser)
    parser.set_defaults(jobs=1, processes=1)
    parser.add_argument("--part", action="append", choices=PARTS, help="only this (repeatable)")
    parser.add_argument("--json", action="store_true", help="rows as JSON, for machines")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = build_parser().parse_args(arguments)
    try:
        return doctor(options)
    except BrokenPipeError:
        return unread()
    except NsdcapError as error:
        print(f"nsdcap: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


def doctor(options: argparse.Namespace) -> int:
    """Look, print, and return the exit code."""
    from rich.console import Console

    from nsdcap.checks import exit_code

    case = settle_case(options)
    found: dict[str, list[Row]] = {}
    with Console(stderr=True).status("") as status:
        for part in options.part or PARTS:
            status.update(f"looking at: {part}")
            rows = found.setdefault(part, [])
            for row in ROWS[part](case):
                rows.append(row)
                status.update(f"looking at: {part}, after {row.check}")
    code = exit_code(row for rows in found.values() for row in rows)
    if options.json:
        print(
            json.dumps({"exit_code": code, "rows": as_dicts(found)}, indent=1, ensure_ascii=False)
        )
    else:
        print_table(found, code)
    return code


def settle_case(options: argparse.Namespace) -> Case:
    """The case that the options amount to. Raises UsageError as the launcher does for wrong ones."""
    from nsdcap import miniature
    from nsdcap.weights import use_cache

    check_options(options)
    built_in = options.config is None and options.nsd_root is None
    out = options.out or (MINIATURE_OUT if built_in else None)
    out = out.absolute() if out is not None else None
    executor, _ = choose_executor(options)
    site = read_site(options) if executor != "inline" else None
    if site is not None and site.cache:
        use_cache(site.cache)
    settings = settle(options, out or Path.cwd(), built_in)
    stages = STAGE_NAMES if options.stage == "all" else (options.stage,)
    made = not built_in or (out is not None and miniature.is_made(out / "nsd"))
    return Case(settings, tuple(stages), out, site, executor == "slurm", made)


# --- the parts ------------------------------------------------------------------------------------


def data_rows(case: Case) -> Iterator[Row]:
    """Files of NSD and COCO."""
    from nsdcap import checks_data
    from nsdcap.checks import Row

    if not case.made:
        found = f"not made yet in {case.settings.data.nsd_root}"
        yield Row("the miniature", "note", found, "", "the launcher makes it first, 0.2 GB")
        return
    yield from checks_data.rows(case.settings, case.stages)


def model_rows(case: Case) -> Iterator[Row]:
    """Weights."""
    from nsdcap import checks_models

    yield from checks_models.rows(case.settings, case.stages, case.site, fetch=False, contents=True)


def machine_rows(case: Case) -> Iterator[Row]:
    """The folder of the results, disk and memory, libraries and GPUs, of this host or of the image."""
    from nsdcap import checks_machine
    from nsdcap.cells import Ledger
    from nsdcap.checks import Row

    ledger, cells = None, []
    try:
        if case.made:
            cells = [cell for stage in case.stages for cell in chosen_cells(stage, case.settings)]
            ledger = Ledger(case.settings, case.out or Path.cwd())
    except NsdcapError:
        pass  # told among data and models
    if case.out is None:
        yield Row(
            "--out", "note", "not given: write access and disk are not looked at", "", "give --out"
        )
    else:
        yield from checks_machine.folder_rows(case.out)
    yield from checks_machine.room_rows(ledger, cells, case.out, elsewhere=case.slurm)
    if case.site is not None and case.site.image:
        return  # then the image's libraries count
    seconds = 0.0
    try:
        if ledger is not None:
            seconds = checks_machine.on_cpu(checks_machine.to_run(ledger, cells))
    except NsdcapError:
        pass
    mend = "install nsdcap anew, hpc/setup-env"
    yield from checks_machine.library_rows(
        [sys.executable], "this Python", mend, case.settings, case.stages, case.slurm, seconds
    )


def cluster_rows(case: Case) -> Iterator[Row]:
    """The image and SLURM, where a site file or an image is given."""
    if case.site is None:
        return
    from nsdcap import checks_cluster, checks_machine
    from nsdcap.containers import image_command

    sound = True
    for row in checks_cluster.rows(case.site, case.out, case.stages, case.slurm):
        sound = sound and not (row.check == "image" and row.error)
        yield row
    if case.site.image and sound:
        words, mend = (
            image_command(case.site),
            "build the image anew, containers/build.sh, or pull it",
        )
        yield from checks_machine.library_rows(
            words, "the image", mend, case.settings, case.stages, case.slurm, 0.0
        )


ROWS: dict[str, Callable[[Case], Iterator[Row]]] = {
    "data": data_rows, "models": model_rows, "machine": machine_rows, "cluster": cluster_rows,
}  # fmt: skip


# --- what is told ---------------------------------------------------------------------------------


def as_dicts(found: dict[str, list[Row]]) -> list[dict[str, str]]:
    """Rows as JSON has them."""
    return [
        {"part": part, "check": row.check, "verdict": row.verdict, "found": row.found,
         "expected": row.expected, "mend": row.mend}
        for part, rows in found.items() for row in rows
    ]  # fmt: skip


def print_table(found: dict[str, list[Row]], code: int) -> None:
    """All rows, a line that counts them."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 200)
    table = Table(box=None, pad_edge=False)
    table.add_column("check", no_wrap=True)
    table.add_column("", no_wrap=True)
    for name in ("found", "expected", "how to mend"):
        table.add_column(name, overflow="fold")
    for part, rows in found.items():
        for row in rows:
            word = Text(row.verdict, COLOURS.get(row.verdict, "bold red"))
            cells = (row.found, row.expected, row.mend)
            table.add_row(Text(f"{part}: {row.check}"), word, *map(Text, cells))
    console.print(table)
    counts: dict[str, int] = {}
    for rows in found.values():
        for row in rows:
            counts[row.verdict] = counts.get(row.verdict, 0) + 1
    told = ", ".join(f"{count} {word}" for word, count in counts.items())
    print(f"{told}: {'all good' if not code else 'not ready'}")


if __name__ == "__main__":
    sys.exit(main())
