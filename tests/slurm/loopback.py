"""A SLURM cluster on this machine, by slurm/testcluster: what tests ask of it and do to it."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

SCRIPTS = Path(__file__).parents[2] / "slurm" / "testcluster"
FINISHED = frozenset(
    {
        *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED"),
        *("NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT"),
    }
)


@dataclass(frozen=True)
class Element:
    """One line of squeue: a job, or one element of an array."""

    id: str  # "12", or "12_3" of an array
    state: str
    reason: str
    name: str
    comment: str
    node: str  # empty while pending


@dataclass(frozen=True)
class Cluster:
    """A running cluster in `folder`; its nodes have 4 CPUs, 8,000 MB and 2 GPUs each."""

    folder: Path
    nodes: tuple[str, ...]

    def command(self, *arguments: str) -> str:
        """Run one of SLURM's commands on this cluster; what it said. RuntimeError if it fails."""
        return command(*arguments, SLURM_CONF=str(self.folder / "etc" / "slurm.conf"))

    def squeue(self, *options: str) -> dict[str, Element]:
        """Every element that the controller still knows, ended ones too, by id."""
        said = self.command(
            "squeue", "--states=all", "-h", "-r", "-o", "%i|%T|%r|%j|%k|%N", *options
        )
        lines = [line.strip().split("|") for line in said.splitlines()]
        return {fields[0]: Element(*fields) for fields in lines}

    def sbatch(self, wrap: str, *options: str) -> str:
        """Submit a line of shell with 100 MB, no log unless options name one; the job's id."""
        return self.command(
            "sbatch", "--parsable", "--mem=100", "--output=/dev/null", *options, "--wrap", wrap
        ).strip()

    def wait(self, job_ids: list[str], timeout: float = 60) -> dict[str, Element]:
        """Wait until all have ended. An array's id stands for all its elements.

        Returns the elements by id; TimeoutError with what squeue shows if they have not ended after
        `timeout` seconds, KeyError if the controller knows nothing of a job.
        """
        return self.wait_for(job_ids, FINISHED, timeout)

    def wait_for(
        self, job_ids: list[str], states: frozenset[str] | set[str], timeout: float = 60
    ) -> dict[str, Element]:
        """Wait until all are in one of the states; as `wait`."""
        deadline = time.monotonic() + timeout
        while True:
            known = self.squeue()
            mine = {}
            for job in job_ids:
                found = {i: e for i, e in known.items() if i == job or i.split("_")[0] == job}
                if not found:
                    raise KeyError(f"squeue shows no job {job}")
                mine |= found
            if all(element.state in states for element in mine.values()):
                return mine
            if time.monotonic() > deadline:
                lines = "\n".join(str(element) for element in mine.values())
                raise TimeoutError(f"not {'/'.join(sorted(states))} after {timeout:g} s:\n{lines}")
            time.sleep(0.1)

    def kill_node(self, name: str) -> None:
        """Take its power: slurmd and all that runs there die at once.

        The controller notices after about 30 s, and requeues what ran there.
        """
        command(str(SCRIPTS / "stop.sh"), str(self.folder), name)

    def kill_slurmd(self, name: str) -> None:
        """Kill slurmd alone: its tasks run on, unseen."""
        os.kill(self._pid(f"slurmd.{name}"), signal.SIGKILL)
        (self.folder / "run" / f"slurmd.{name}.pid").unlink()

    def start_node(self, name: str, timeout: float = 30) -> None:
        """Start its slurmd, and wait until the controller gives it work again."""
        self.command("slurmd", "-N", name)
        self._wait_up([name], timeout)

    def stop_controller(self) -> None:
        """slurmctld saves its state and ends; commands fail until start_controller()."""
        pid = self._pid("slurmctld")
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + 20
        while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
            time.sleep(0.05)

    def start_controller(self, timeout: float = 30) -> None:
        """Start slurmctld, and wait until it answers and all nodes have reported."""
        self.command("slurmctld")
        self._wait_up(list(self.nodes), timeout)

    def restart_controller(self, down: float = 0) -> None:
        """Stop slurmctld, leave it down for so many seconds, start it."""
        self.stop_controller()
        time.sleep(down)
        self.start_controller()

    def submit_preempting(self, node: str, seconds: float = 3) -> str:
        """A job of the partition that preempts `main`, on all CPUs of the node; its id."""
        return self.sbatch(
            f"sleep {seconds}", "--partition=high", f"--nodelist={node}", "--cpus-per-task=4"
        )

    def reset(self) -> None:
        """Whatever a test did: the controller and all nodes are up and idle, no job is left."""
        if not self._alive("slurmctld"):
            self.start_controller()
        for name in self.nodes:
            if not self._alive(f"slurmd.{name}"):
                self.command("slurmd", "-N", name)
        self.command("scancel", "--user=root")
        self.command("scancel", "--user=root", "--signal=KILL")
        deadline = time.monotonic() + 60
        while (left := self.command("squeue", "-h")) and time.monotonic() < deadline:
            time.sleep(0.1)
        if left:
            raise TimeoutError(f"jobs that do not end:\n{left}")
        self._wait_up(list(self.nodes), 60)

    def _pid(self, daemon: str) -> int:
        return int((self.folder / "run" / f"{daemon}.pid").read_text())

    def _alive(self, daemon: str) -> bool:
        try:
            return Path(f"/proc/{self._pid(daemon)}").exists()
        except (FileNotFoundError, ValueError):
            return False

    def _wait_up(self, names: list[str], timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while True:
            try:
                said = self.command("sinfo", "-h", "-N", "-p", "main", "-o", "%N %T")
            except RuntimeError as error:
                said = ""
                reason = str(error)
            else:
                reason = ""
            states = dict(line.split() for line in said.splitlines())
            if all(states.get(name) in ("idle", "mixed", "allocated") for name in names):
                return
            if time.monotonic() > deadline:
                raise TimeoutError(f"nodes are not up after {timeout:g} s: {states} {reason}")
            time.sleep(0.1)


def command(*arguments: str, **environment: str) -> str:
    """Run it; what it said. RuntimeError with its error's text if it fails."""
    done = subprocess.run(
        arguments, capture_output=True, text=True, env={**os.environ, **environment}
    )
    if done.returncode:
        raise RuntimeError(f"{arguments[0]} fails ({done.returncode}): {done.stdout}{done.stderr}")
    return done.stdout


def missing() -> str:
    """Why a cluster cannot be started here; empty if it can."""
    programs = [p for p in ("munged", "slurmctld", "slurmd", "sbatch") if not shutil.which(p)]
    if programs:
        return f"no {', '.join(programs)}: apt-get install slurm-wlm munge"
    return "" if os.geteuid() == 0 else "not root"


def free_ports(count: int) -> int:
    """The first of `count` ports in a row that nobody listens on."""
    for _ in range(100):
        first = random.randrange(20000, 32000)
        try:
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first
    raise RuntimeError(f"no {count} free ports in a row between 20000 and 32000")


def start(folder: Path, nodes: int, *options: str) -> Cluster:
    """Start one in a folder (a short path of plain characters); stop(folder) ends it."""
    port = free_ports(nodes + 3)
    command(str(SCRIPTS / "start.sh"), str(folder), str(nodes), "--port", str(port), *options)
    return Cluster(folder, tuple(f"n{i + 1}" for i in range(nodes)))


def stop(folder: Path) -> None:
    command(str(SCRIPTS / "stop.sh"), str(folder))
