"""``python -m nsdcap.status OUT``: the state of every cell of a run."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

from nsdcap.errors import NsdcapError, UsageError


def main(arguments: list[str] | None = None) -> int:
    """Print a table of cells; exit 0 when all are done, 75 when some are not, 2 or 65 on bad input."""
    parser = argparse.ArgumentParser(prog="python -m nsdcap.status", description=__doc__)
    parser.add_argument("out", type=Path, help="the run's folder, which holds config.toml")
    parser.add_argument("--all", action="store_true", help="also list the cells that are done")
    options = parser.parse_args(arguments)
    try:
        return _tell(options.out, options.all)
    except NsdcapError as error:
        print(f"nsdcap.status: {error}", file=sys.stderr)
        return error.exit_code


def _tell(out: Path, every: bool) -> int:
    from rich.console import Console
    from rich.table import Table

    from nsdcap import config
    from nsdcap.cells import Ledger
    from nsdcap.paths import config_file
    from nsdcap.stages import STAGES

    file = config_file(out)
    if not file.exists():
        raise UsageError(f"{out}: found no config.toml there; give the folder of a run (--out)")
    settings = config.load(file)
    ledger = Ledger(settings, out)
    states = {
        name: [ledger.state(cell) for cell in stage.cells(settings)]
        for name, stage in STAGES.items()
    }
    console = Console(soft_wrap=True, highlight=False)
    table = Table("stage", "done", "stale", "failed", "missing", box=None, pad_edge=False)
    for name, found in states.items():
        count = Counter(state.word for state in found)
        table.add_row(name, *(str(count[word]) for word in ("done", "stale", "failed", "missing")))
    console.print(table)
    listed = [
        s for found in states.values() for s in found if every or s.word in ("stale", "failed")
    ]
    for state in listed:
        console.print(
            f"{state.word:8}{state.cell}{': ' + state.reason if state.reason else ''}", markup=False
        )
    finished = all(state.word == "done" for found in states.values() for state in found)
    return 0 if finished else 75


if __name__ == "__main__":
    sys.exit(main())
