"""What SLURM is asked for an array of cells, as submitit takes it."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import Any

from nsdcap import containers
from nsdcap.cells import Ledger
from nsdcap.cost import Costs
from nsdcap.jobs import BEGINS, Array
from nsdcap.paths import Cell
from nsdcap.site import Resources, Site, resources

# the log goes on over all attempts of a task: requeued after a time limit, a preemption, a lost node
BEGIN = f'echo "{BEGINS}$SLURMD_NODENAME, restart ${{SLURM_RESTART_COUNT:-0}}" >&2'
# a line of setup that fails is told, and no more: some of what modules and shells run fails harmlessly
WATCH = """trap 'echo "nsdcap: a line of setup failed: $BASH_COMMAND" >&2' ERR"""


def needed_resources(
    ledger: Ledger, site: Site
) -> Callable[[str, list[Cell], int, int], Resources]:
    """A function of a stage, its cells, and how often they failed for want of memory and of time."""

    costs = Costs(ledger)

    def needed(stage: str, cells: list[Cell], memory: int, late: int) -> Resources:
        return resources(stage, map(costs.of, cells), site, memory=memory, time=late)

    return needed


def parameters(
    site: Site, array: Array, needed: Resources, dependency: str, held: bool
) -> dict[str, Any]:
    """What submitit's SlurmExecutor is given for an array."""
    setup = [BEGIN, *([WATCH, *site.setup, "trap - ERR"] if site.setup else [])]
    extra: dict[str, Any] = {"kill-on-invalid-dep": "yes", "requeue": True, **needed.extra}
    if held:
        extra["hold"] = True
    given = {
        "job_name": array.name, "time": needed.time_minutes, "mem": f"{needed.memory_gb}GB",
        "cpus_per_task": needed.cpus, "partition": needed.partition, "account": needed.account,
        "qos": needed.qos, "constraint": needed.constraint, "gres": needed.gres,
        "gpus_per_node": 0 if needed.gres else needed.gpus, "dependency": dependency,
        "setup": setup, "srun_args": ["--cpus-per-task", str(needed.cpus)],
    }  # fmt: skip
    return {
        **{name: value for name, value in given.items() if value},
        "nodes": 1, "ntasks_per_node": 1, "signal_delay_s": site.signal_seconds,
        "array_parallelism": needed.parallel or len(array.cells), "additional_parameters": extra,
    }  # fmt: skip


def python(ledger: Ledger, site: Site, needed: Resources) -> str:
    """The shell's words for a task's Python."""
    return shlex.join(
        containers.command(ledger, site, threads=needed.cpus, gpus=needed.gpus or None)
    )
