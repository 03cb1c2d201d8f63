"""What a cluster is like, from a TOML file, and the resources that a stage's tasks ask of it."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nsdcap.cost import Cost
from nsdcap.errors import UsageError
from nsdcap.stages import STAGES
from nsdcap.typed_toml import check_name, read_toml, typed

# Limits under about 12 minutes make submitit's requeueing take every signal for a time-out.
MEMORY_MARGIN, TIME_MARGIN = 1.5, 3.0
LEAST_GB, LEAST_MINUTES, MOST_MINUTES = 4, 30, 48 * 60

GRES = re.compile(r"[\w.-]+(:[\w.-]+){0,2}(,[\w.-]+(:[\w.-]+){0,2})*")
OPTION = re.compile(r"[a-z][a-z0-9-]*")
OWN = {  # sbatch options that have a key of their own, or are the launcher's
    "time": "time_minutes", "mem": "memory_gb", "cpus-per-task": "cpus", "gpus": "gpus",
    "gpus-per-node": "gpus", "gpus-per-task": "gpus", "partition": "partition",
    "account": "account", "qos": "qos", "constraint": "constraint", "gres": "gres",
    "array": "parallel", "signal": "signal_seconds",
}  # fmt: skip
LAUNCHERS = (
    "chdir", "dependency", "error", "export", "hold", "job-name", "kill-on-invalid-dep", "nodes", "ntasks",
    "ntasks-per-node", "open-mode", "output", "parsable", "requeue", "no-requeue", "test-only", "wait", "wrap",
)  # fmt: skip


@dataclass(frozen=True)
class Resources:
    """What a task of a stage asks for. Empty text: the cluster's default, nothing is asked.

    ``gpus`` is how many GPUs a task sees, and in a stage whose pictures are shared out how many processes
    it has; ``gres``, where it is given, is what is asked in place of a plain
    number. ``parallel`` tasks of an array run at a time, 0: as many as there is room for. ``extra`` holds
    further options of sbatch by their long names; true is an option without a value.
    """

    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    time_minutes: int = 0
    memory_gb: int = 0
    cpus: int = 0
    gpus: int = 0
    gres: str = ""
    parallel: int = 0
    extra: dict[str, str | int | bool] = field(default_factory=dict)


@dataclass(frozen=True)
class Site:
    """A cluster.

    ``image`` is the .sif that tasks run in, empty: the Python that launches; ``binds`` are further
    "SRC[:DST[:ro]]" of it; ``nv`` brings NVIDIA's driver inside where a stage has GPUs. ``cache`` is the folder
    of Hugging Face weights (HF_HOME), ``setup`` lines of shell before each task. ``max_array`` tasks are in an
    array at most, 0: what scontrol says. A failed task has ``retries``; it may go on ``timeouts`` times after
    its time limit, of which it is told ``signal_seconds`` before. ``defaults`` and ``stages`` (by name) hold
    what the file gives of ``Resources``. Paths are absolute: relative ones are taken from the file's folder,
    ~ is home.
    """

    image: str = ""
    binds: tuple[str, ...] = ()
    nv: bool = True
    cache: str = ""
    setup: tuple[str, ...] = ()
    max_array: int = 0
    retries: int = 3
    timeouts: int = 8
    signal_seconds: int = 120
    defaults: dict[str, Any] = field(default_factory=dict)
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)


LEAST = {
    "max_array": 0, "retries": 0, "timeouts": 0, "signal_seconds": 1, "time_minutes": 1,
    "memory_gb": 1, "cpus": 1, "gpus": 0, "parallel": 0,
}  # fmt: skip


def load(path: Path) -> Site:
    """A site file.

    Raises
    ------
    UsageError
        Names the file and the key: not TOML, an unknown key or stage, another type, out of range.
    """
    path = path.expanduser()
    given = read_toml(path, "site file", "compare with slurm/example.toml")
    try:
        return _site(given, path.absolute().parent)
    except UsageError as error:
        raise UsageError(f"site file {path}: {error}") from None


def _site(given: dict[str, Any], folder: Path) -> Site:
    values = typed(Site, given)
    _check(values, "")
    for name in ("image", "cache"):
        if values.get(name):
            if "://" in values[name]:
                raise UsageError(
                    f"setting {name}: found {values[name]!r}, expected a path; pull it to a file first"
                )
            values[name] = str(folder / Path(values[name]).expanduser())
    values["binds"] = tuple(_bind(text) for text in values.get("binds", ()))
    values["defaults"] = _overrides(values.get("defaults", {}), "defaults.")
    stages = values.get("stages", {})
    for name in stages:
        check_name(name, STAGES, "stages.")
    values["stages"] = {name: _overrides(part, f"stages.{name}.") for name, part in stages.items()}
    site = Site(**values)
    for name, part in {"defaults": site.defaults, **site.stages}.items():
        if part.get("time_minutes", math.inf) * 60 <= site.signal_seconds:
            raise UsageError(
                f"setting time_minutes of {name}: found {part['time_minutes']}, expected more than the "
                f"{site.signal_seconds} s of signal_seconds"
            )
    return site


def _overrides(given: Any, where: str) -> dict[str, Any]:
    """What a table gives of Resources."""
    values = typed(Resources, given, where)
    _check(values, where)
    if "gpus" in values and values.get("gres"):
        raise UsageError(f"settings {where}gpus and {where}gres: give one of them")
    if values.get("gres") and not GRES.fullmatch(values["gres"]):
        raise UsageError(
            f'setting {where}gres: found {values["gres"]!r}, expected "gpu:2", "gpu:a100:1" or the like'
        )
    for name, value in values.get("extra", {}).items():
        if name in OWN:
            raise UsageError(f"setting {where}extra.{name}: it has a key of its own, {OWN[name]}")
        longer = [option for option in (*OWN, *LAUNCHERS) if option.startswith(name)]
        if longer and name not in LAUNCHERS:
            raise UsageError(
                f"setting {where}extra.{name}: sbatch would take it for {longer[0]}; give the whole name of an "
                "option"
            )
        if name in LAUNCHERS:
            raise UsageError(f"setting {where}extra.{name}: the launcher itself sets it")
        if not OPTION.fullmatch(name):
            raise UsageError(
                f"setting {where}extra.{name}: expected a long option of sbatch without its dashes, "
                'such as reservation or "mail-user"'
            )
        if value is False:
            raise UsageError(f"setting {where}extra.{name}: found false; leave the option out")
    return values


def _check(values: dict[str, Any], where: str) -> None:
    """Ranges, and text that would be a second line of a script."""
    for name, value in values.items():
        if name in LEAST and value < LEAST[name]:
            raise UsageError(
                f"setting {where}{name}: found {value}, expected at least {LEAST[name]}"
            )
        if isinstance(value, dict):
            parts = [(f"{name}.{key}", item) for key, item in value.items()]
        else:
            parts = [(name, item) for item in (value if isinstance(value, tuple) else [value])]
        for key, item in parts:
            if isinstance(item, str) and not item.isprintable() and name != "setup":
                raise UsageError(f"setting {where}{key}: found {item!r}, expected one line of text")


def _bind(text: str) -> str:
    source, *rest = text.split(":")
    if source.startswith("~"):
        source = os.path.expanduser(source)
    wrong = len(rest) > 2 or (len(rest) == 2 and rest[1] not in ("ro", "rw"))
    if wrong or not source.startswith("/") or (rest and not rest[0].startswith("/")):
        raise UsageError(
            f'setting binds: found {text!r}, expected "/source", "/source:/inside" or "/source:/inside:ro"'
        )
    return ":".join([source, *rest])


def resources(
    stage: str, costs: Iterable[Cost], site: Site, memory: int = 0, time: int = 0
) -> Resources:
    """What tasks of a stage ask for: ``stages.<stage>`` of the site, over ``defaults``, over a formula.

    ``costs`` are those of the cells of one array, at least one; the largest counts. The formula: memory with
    a margin of 1.5, at least 4 GB; time with a margin of 3, 30 minutes to 48 hours, or as long as the longest
    cell; the cores and the GPU that the cost is for. Where pictures are shared out over the GPUs, so many
    times the memory and the cores, and so much less time. Fewer cores than those make the time longer.
    For each time that they failed for want of ``memory`` or of ``time`` that is doubled, also where the site
    fixes it. ``gpus`` or ``gres`` of one table replaces both of the table below; a
    ``gres`` of ``defaults`` is for stages with GPUs.
    """
    costs = list(costs)
    longest = max(costs, key=lambda cost: cost.seconds)
    found: dict[str, Any] = {
        "cpus": max(cost.cores for cost in costs),
        "gpus": int(any(cost.gpu for cost in costs)),
        "memory_gb": max(
            LEAST_GB, math.ceil(MEMORY_MARGIN * max(cost.memory_bytes for cost in costs) / 1e9)
        ),
    }
    extra: dict[str, Any] = {}
    given: dict[str, Any] = {}
    for table in (site.defaults, site.stages.get(stage, {})):
        own = dict(table)
        if own.get("gres") and table is site.defaults and not found["gpus"]:
            del own["gres"]
        if "gpus" in own:
            own["gres"] = ""
        elif own.get("gres"):
            own["gpus"] = gpus_of(own["gres"])
        extra |= own.pop("extra", {})
        given |= own
    found |= given
    processes = max(1, found["gpus"]) if STAGES[stage].shared_out else 1
    for name in {"cpus", "memory_gb"} - given.keys():
        found[name] *= processes
    if "time_minutes" not in found:
        minutes = seconds_on(stage, longest, found["cpus"], found["gpus"]) / 60
        most = max(MOST_MINUTES, minutes)
        found["time_minutes"] = math.ceil(min(max(LEAST_MINUTES, TIME_MARGIN * minutes), most))
    found["memory_gb"] *= 2**memory
    found["time_minutes"] *= 2**time
    return Resources(**found, extra=extra)


def seconds_on(stage: str, cost: Cost, cpus: int, gpus: int) -> float:
    """Seconds that a cell takes on so many cores and GPUs."""
    processes = max(1, gpus) if STAGES[stage].shared_out else 1
    slower = 1.0 if cost.gpu else max(1.0, cost.cores / cpus)
    return cost.seconds * slower / processes


def gpus_of(gres: str) -> int:
    """GPUs that a --gres asks for: 2 of "gpu:a100:2", 1 of "gpu:a100"."""
    count = 0
    for part in gres.split(","):
        name, *rest = part.split(":")
        if name == "gpu":
            count += int(rest[-1]) if rest and rest[-1].isdigit() else 1
    return count
