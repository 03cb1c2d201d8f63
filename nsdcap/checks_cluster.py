"""The doctor's rows of a cluster: the image, SLURM's commands, and the partitions that the site file names."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from nsdcap import jobs
from nsdcap.checks import Row, look
from nsdcap.containers import check_image
from nsdcap.errors import UsageError
from nsdcap.site import Site

COMMANDS = ("sbatch", "srun", "squeue", "scontrol", "scancel")


def rows(site: Site, out: Path | None, stages: Iterable[str], slurm: bool) -> Iterator[Row]:
    """The path of the logs, the image's file and, with ``slurm``, what that says."""
    if out is not None:
        yield look("path of logs", lambda: _path(out), "no %, no \\, no line break")
    if site.image:
        yield look("image", lambda: _image(site.image), "an Apptainer image (SIF)")
    if slurm:
        yield from slurm_rows(site, stages)


def slurm_rows(site: Site, stages: Iterable[str]) -> Iterator[Row]:
    """SLURM's commands, its answer, and the partitions of the stages."""
    known: dict[str, str] = {}

    def answer() -> str:
        known.update(partitions())
        return f"partitions {', '.join(known)}"

    for row in (look("SLURM's commands", _commands, ", ".join(COMMANDS)),
                look("SLURM answers", answer, "scontrol tells its partitions")):  # fmt: skip
        yield row
        if row.verdict != "ok":
            return
    stages = list(stages)
    named = {
        name: [s for s in stages if name in wanted(site, s)]
        for s in stages
        for name in wanted(site, s)
    }
    for name, its in named.items():
        row = look(f"partition {name}", partial(_partition, name, its, known), "UP")
        if row.verdict == "ok" and known[name] != "UP":
            row = Row(
                row.check,
                "note",
                row.found,
                "UP",
                "tasks wait until it is; ask the cluster's keepers",
            )
        yield row


def check_path(out: Path) -> None:
    """Refuse a folder whose name SLURM or submitit would change in the names of its logs.

    Raises
    ------
    UsageError
        A %, a backslash or a line break.
    """
    wrong = [sign for sign in ("%", "\\", "\n") if sign in str(out)]
    if wrong:
        raise UsageError(
            f"--out {str(out)!r}: in the path of a log {wrong[0]!r} is read as a sign; give "
            "another folder, or a symbolic link with a plain name to this one"
        )


def wanted(site: Site, stage: str) -> list[str]:
    """The partitions of a stage by the site file; empty: the cluster's default."""
    text = site.stages.get(stage, {}).get("partition", site.defaults.get("partition", ""))
    return [name.strip() for name in text.split(",") if name.strip()]


def partitions() -> dict[str, str]:
    """State, UP or another word, of every partition of the cluster by its name.

    Raises
    ------
    QueueError
        SLURM does not answer.
    """
    found = {}
    for line in jobs.ask("scontrol", "--all", "--oneliner", "show", "partition").splitlines():
        fields = dict(word.partition("=")[::2] for word in line.split())
        if "PartitionName" in fields:
            found[fields["PartitionName"]] = fields.get("State", "?")
    return found


def _partition(name: str, stages: list[str], known: dict[str, str]) -> str:
    if name not in known:
        raise jobs.QueueError(
            f"partition {name!r} of {stages[0]}: SLURM has no such one, expected one of {', '.join(known)}; "
            f"mend partition in [defaults] or [stages.{stages[0]}] of the site file"
        )
    return f"{known[name]}, for {', '.join(stages)}"


def _commands() -> str:
    if lacking := [name for name in COMMANDS if shutil.which(name) is None]:
        raise jobs.QueueError(
            f"{lacking[0]}: found no such command; is this a SLURM login node? load its module, or give "
            "--executor inline or local"
        )
    return "all on the PATH"


def _image(image: str) -> str:
    check_image(image)
    return f"{image}, {Path(image).stat().st_size / 1e9:.2f} GB"


def _path(out: Path) -> str:
    check_path(out)
    return re.sub(r"^(.{60}).*", r"\1...", str(out))
