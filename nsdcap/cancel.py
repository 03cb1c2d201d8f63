"""``python -m nsdcap.cancel OUT``: take a run's jobs out of SLURM; what is done stays."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from nsdcap.errors import NsdcapError, UsageError
from nsdcap.options import STAGE_NAMES


def main(arguments: list[str] | None = None) -> int:
    """Cancel running and pending cells of a run; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m nsdcap.cancel", description=__doc__)
    parser.add_argument("out", type=Path, help="the run's folder, which holds config.toml")
    parser.add_argument("--stage", choices=STAGE_NAMES, help="of this stage alone")
    options = parser.parse_args(arguments)
    try:
        return cancel(options.out, options.stage)
    except NsdcapError as error:
        print(f"nsdcap.cancel: {error}", file=sys.stderr)
        return error.exit_code


def cancel(out: Path, stage: str | None) -> int:
    """scancel what runs or waits of the run in ``out``, and say how many.

    Raises
    ------
    QueueError
        SLURM does not answer.
    HeldError
        It is just being submitted.
    UsageError
        No run on a cluster lies there.
    """
    from nsdcap import jobs
    from nsdcap.lock import holding

    if not jobs.folder(out).is_dir():
        raise UsageError(
            f"{out}: found no jobs/ there; give the folder of a run on a cluster (--out)"
        )
    with holding(out, "nsdcap.cancel"):
        # by the name, which is there before the job and says the run: an id or a record may be missing
        begins = f"nsdcap-{stage or ''}"
        live = [
            row[0]
            for row in jobs.queue(jobs.read(out))
            if row[5].startswith(begins)
            and f"-{jobs.mark(out)}-" in row[5]
            and row[1] in jobs.ACTIVE
        ]
        jobs.cancel(live)
    print(f"{len(live)} cells cancelled; finished ones stay, the same launch command goes on")
    return 0


if __name__ == "__main__":
    sys.exit(main())
