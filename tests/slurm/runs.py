"""Runs of nsdcap on the loopback cluster by its command line: begun, disturbed, compared with inline."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from loopback import FINISHED, Cluster, Element

from nsdcap import jobs, miniature
from nsdcap.options import STAGE_NAMES as STAGES
from nsdcap.paths import DONE, Cell, artefact, parts_folder, sidecar

ROOT = Path(__file__).resolve().parents[2]
QUICK = (  # features need 1.8 GB for all pictures at once, decode leaves twelve parts in five seconds
    "data.sessions=2", "models.picture_size=64", "models.batch=512", "ridge.block=2048",
    "reconstruct.coarse_size=40", "reconstruct.size=64", "reconstruct.samples=1",
    "reconstruct.steps=2", "encode.nulls=20", "encode.bootstraps=10",
)  # fmt: skip
SITE = {
    "signal_seconds": 20,
    "defaults": {"memory_gb": 2, "cpus": 1, "gpus": 0, "time_minutes": 10, "parallel": 3},
    "stages": {"features": {"gpus": 1, "memory_gb": 3}},
}


def command_line(tree: Path) -> list[str]:
    """Arguments of a quick run of subjects 1 and 2 with BERT's layers 0 and 3: 22 cells."""
    places = [text for text in miniature.places(tree) if not text.startswith("data.nsd_root")]
    settings = [word for text in (*places, *QUICK) for word in ("--set", text)]
    return ["--nsd-root", str(tree), "--subjects", "1", "2", "--layers", "0", "3", *settings]


def environment() -> dict[str, str]:
    """This one with this checkout first, and a thread each."""
    threads = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
    return {**os.environ, "PYTHONPATH": str(ROOT), **threads}


def call(
    module: str, *words: str, code: int | None = 0, cwd: Path | None = None, **more: str
) -> str:
    """``python -m nsdcap.MODULE`` of this checkout; what it said. Its exit code must be ``code``."""
    done = subprocess.run(
        [sys.executable, "-m", f"nsdcap.{module}", *words],
        cwd=cwd,
        env={**environment(), **more},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
    )
    assert "Traceback" not in done.stdout, done.stdout
    assert code in (None, done.returncode), f"exit code {done.returncode}\n{done.stdout}"
    return done.stdout


def digests(out: Path) -> dict[str, str]:
    """SHA-256 of every result by its name; of the report without times and whereabouts: what it holds of
    when and how long cells ran, and by which packages."""
    found = {}
    for path in (path for stage in STAGES for path in sorted((out / stage).rglob("*"))):
        if path.is_file() and not path.name.endswith(DONE):
            content = path.read_bytes()
            if path.name == "report.html":
                content = re.sub(rb"\d\d \w+ \d{4}, \d\d:\d\d UTC", b"TIME", content)
                content, parts = re.subn(
                    rb'<section id="(run|provenance)".*?</section>', b"", content, flags=re.S
                )
                assert parts == 2
            found[str(path.relative_to(out))] = hashlib.sha256(content).hexdigest()
    return found


def times(out: Path) -> dict[str, int]:
    """When every result and every sidecar was written, by its name."""
    paths = (path for stage in STAGES for path in out.glob(f"{stage}/**/*") if path.is_file())
    return {str(path.relative_to(out)): path.stat().st_mtime_ns for path in paths}


@dataclass(frozen=True)
class Reference:
    """A whole run in one process: its folder, its command line, and the digests of its results."""

    out: Path
    arguments: tuple[str, ...]
    digests: dict[str, str]

    @staticmethod
    def make(tree: Path, out: Path) -> Reference:
        arguments = command_line(tree)
        call("launch", *arguments, "--out", str(out), "--executor", "inline")
        return Reference(out, tuple(arguments), digests(out))

    def without_java(self, out: Path) -> Reference:
        """The same run whose tables were made with no Java on the PATH, as in an image that has none."""
        shutil.copytree(self.out, out, copy_function=os.link)
        again = ["--out", str(out), "--executor", "inline", "--stage", "aggregate", "--force"]
        call("launch", *self.arguments, *again, PATH="")
        return Reference(out, self.arguments, digests(out))


@dataclass(frozen=True)
class Run:
    """A run on the cluster in ``out``; ``finished`` are the times of what was there when it began."""

    cluster: Cluster
    reference: Reference
    out: Path
    finished: dict[str, int] = field(default_factory=dict)

    @staticmethod
    def begin(cluster: Cluster, reference: Reference, folder: Path, *missing: Cell) -> Run:
        """The reference's results without those of some cells, in ``folder``/out."""
        out = folder / "out"
        shutil.copytree(reference.out, out, copy_function=os.link)
        for cell in missing:
            sidecar(out, cell).unlink()
            path = artefact(out, cell)
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        run = Run(cluster, reference, out, times(out))
        run.site()
        return run

    def site(self, **changed: object) -> None:
        """Write the site file: SITE, with some of its keys changed."""
        lines, tables = [], []
        content = {**SITE, **changed}
        stages = content.pop("stages")
        named = {"defaults": content.pop("defaults")}
        named |= {f"stages.{name}": table for name, table in stages.items()}
        for key, value in content.items():
            lines.append(f"{key} = {json.dumps(value)}")
        for name, table in named.items():
            tables += [f"[{name}]", *(f"{key} = {json.dumps(v)}" for key, v in table.items())]
        self.site_file.write_text("\n".join([*lines, *tables]) + "\n")

    @property
    def site_file(self) -> Path:
        return self.out.parent / "site.toml"

    def launch(self, *more: str, code: int | None = 0, **environment: str) -> str:
        """The command that every test gives again and again."""
        words = [*self.reference.arguments, "--out", str(self.out), "--site", str(self.site_file)]
        return call("launch", *words, *more, code=code, cwd=self.out.parent, **environment)

    def status(self, code: int | None = None, **environment: str) -> dict[str, dict]:
        """What nsdcap.status says of every cell, by the cell's name."""
        said = call("status", str(self.out), "--json", code=code, **environment)
        return {cell["cell"]: cell for cell in json.loads(said)["cells"]}

    def arrays(self, stage: str = "") -> list[jobs.Array]:
        """Records of what was submitted, of one stage or of all."""
        return [array for array in jobs.read(self.out) if stage in ("", array.stage)]

    def job(self, cell: Cell) -> str:
        """The id of the last job of a cell."""
        found = [
            array.element(array.cells.index(cell)) for array in self.arrays() if cell in array.cells
        ]
        return found[-1]

    def log(self, cell: Cell, end: str = "out") -> str:
        """The log of its last job."""
        path = jobs.logs(self.out) / f"{self.job(cell)}_0_log.{end}"
        return path.read_text() if path.exists() else ""

    def mine(self) -> dict[str, Element]:
        """Elements of this run that the controller knows, by their ids."""
        names = {array.name for array in self.arrays()}
        return {
            job: element for job, element in self.cluster.squeue().items() if element.name in names
        }

    def settle(self, timeout: float = 180) -> None:
        """Wait until nothing of the run is in the queue."""

        def ended() -> bool:
            return all(element.state in FINISHED for element in self.mine().values())

        until(ended, timeout, lambda: "\n".join(map(str, self.mine().values())))

    def check(self, submits_nothing: bool = True) -> None:
        """All is done, as inline; what was there at the beginning was left alone; nothing is left to do."""
        told = self.status(code=None)
        assert {name: cell["state"] for name, cell in told.items() if cell["state"] != "done"} == {}
        found = digests(self.out)
        assert sorted(found.keys() ^ self.reference.digests.keys()) == []
        assert [name for name in found if found[name] != self.reference.digests[name]] == []
        now = times(self.out)
        assert {name: now[name] for name in self.finished} == self.finished
        assert not list(self.out.glob("*/.*.parts"))
        if submits_nothing:
            before = len(self.arrays())
            assert "0 cells submitted, 0 on their way before" in self.launch()
            assert len(self.arrays()) == before

    def python(self, cell: Cell, parts: int = 0, timeout: float = 60) -> int:
        """The process of a cell's Python, once it runs and has finished so many parts."""

        def found() -> list[int]:
            if len(list(parts_folder(self.out, cell).glob("*.part"))) < parts:
                return []
            return [pid for pid in pythons(self.out) if element_of(pid) == self.job(cell)]

        return until(found, timeout, lambda: self.log(cell, "err"))[0]


def until(
    condition: Callable[[], object], timeout: float, tell: Callable[[], str] = lambda: ""
) -> object:
    """Wait until a condition holds; what it gave. TimeoutError, with what ``tell`` says, if it does not."""
    deadline = time.monotonic() + timeout
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not so after {timeout:g} s\n{tell()}")
        time.sleep(0.05)
    return found


def pythons(out: Path) -> list[int]:
    """Processes of Python that run a task of the run in ``out``, on this machine."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_text(errors="replace").split("\0")
        except OSError:  # it has ended
            continue
        if "submitit.core._submit" in words and Path(words[0]).name.startswith("python"):
            found += [int(folder.name)] if str(jobs.logs(out)) in words else []
    return found


def element_of(pid: int) -> str:
    """The id of the job, or element of an array, that a process belongs to."""
    try:
        lines = Path(f"/proc/{pid}/environ").read_text(errors="replace").split("\0")
    except OSError:
        return ""
    given = dict(line.partition("=")[::2] for line in lines)
    array, index = given.get("SLURM_ARRAY_JOB_ID"), given.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{index}" if array else given.get("SLURM_JOB_ID", "")


@contextmanager
def frozen(*pids: int, firmly: bool = True) -> Iterator[None]:
    """Processes stand still, so that what is done to them finds them in the midst of their work.

    SLURM lets them go on with the signals that it sends; ``firmly`` they are stopped again at once.
    """
    thawed = threading.Event()

    def freeze() -> None:
        with suppress(ProcessLookupError):
            while not thawed.wait(0.005):
                for pid in pids:
                    os.kill(pid, signal.SIGSTOP)

    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    thread = threading.Thread(target=freeze)
    if firmly:
        thread.start()
    try:
        yield
    finally:
        thawed.set()
        if firmly:
            thread.join()
        for pid in pids:
            with suppress(ProcessLookupError):  # it was killed
                os.kill(pid, signal.SIGCONT)


@contextmanager
def closed(cluster: Cluster) -> Iterator[None]:
    """No node takes new jobs: what is submitted waits."""
    nodes = f"NodeName={','.join(cluster.nodes)}"
    cluster.command("scontrol", "update", nodes, "State=DRAIN", "Reason=test")
    try:
        yield
    finally:
        cluster.command("scontrol", "update", nodes, "State=RESUME")


@contextmanager
def away(*paths: Path) -> Iterator[None]:
    """Files are not where they should be; then they are again, as they were."""
    for path in paths:
        path.rename(f"{path}.away")
    try:
        yield
    finally:
        for path in paths:
            Path(f"{path}.away").rename(path)


def in_front(folder: Path, program: str, body: str) -> dict[str, str]:
    """A PATH on which a script stands before a program; in its ``body`` $REAL is that program."""
    folder.mkdir(exist_ok=True)
    script = folder / program
    script.write_text(f"#!/bin/bash\nREAL={shutil.which(program)}\n{body}\n")
    script.chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}
