"""The test cluster by itself: if these fail, the launcher's tests on SLURM say nothing."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import loopback
import pytest
import runs

from nsdcap import jobs
from nsdcap.paths import Cell


def test_array_runs_every_element_once(idle_cluster, tmp_path):
    job = idle_cluster.sbatch(
        "echo $SLURM_ARRAY_TASK_ID", "--array=0-9%4", f"--output={tmp_path}/%a"
    )
    ended = idle_cluster.wait([job])
    assert set(ended) == {f"{job}_{i}" for i in range(10)}
    assert {element.state for element in ended.values()} == {"COMPLETED"}
    assert {p.name: p.read_text().strip() for p in tmp_path.iterdir()} == {
        str(i): str(i) for i in range(10)
    }


def test_array_beyond_the_limit_is_refused(idle_cluster):
    assert "MaxArraySize            = 101" in idle_cluster.command("scontrol", "show", "config")
    idle_cluster.sbatch("true", "--array=0-100", "--hold")
    with pytest.raises(RuntimeError, match="Invalid job array specification"):
        idle_cluster.sbatch("true", "--array=0-101", "--hold")


def test_dependency_of_single_elements(idle_cluster):
    first = idle_cluster.sbatch("test $SLURM_ARRAY_TASK_ID != 1", "--array=0-2")
    second = idle_cluster.sbatch(
        "true",
        "--array=0-2",
        "--hold",
        "--kill-on-invalid-dep=yes",
        f"--dependency=afterok:{first}",
    )
    for i in range(3):
        idle_cluster.command(
            "scontrol", "update", f"JobId={second}_{i}", f"Dependency=afterok:{first}_{i}"
        )
    last = idle_cluster.sbatch("true", f"--dependency=afterany:{first}:{second}")
    idle_cluster.command("scontrol", "release", second)
    ended = {i: element.state for i, element in idle_cluster.wait([first, second, last]).items()}
    assert ended == {
        f"{first}_0": "COMPLETED",
        f"{first}_1": "FAILED",
        f"{first}_2": "COMPLETED",
        f"{second}_0": "COMPLETED",
        f"{second}_1": "CANCELLED",
        f"{second}_2": "COMPLETED",
        last: "COMPLETED",
    }


def test_gpus_are_given_and_shared_out(idle_cluster, tmp_path):
    line = "echo gpus $CUDA_VISIBLE_DEVICES; sleep 1"
    options = ("--nodelist=n1", "--gpus-per-node=1", f"--output={tmp_path}/%j")
    one, other = (idle_cluster.sbatch(line, *options) for _ in range(2))
    both = idle_cluster.sbatch(
        line, "--nodelist=n1", "--gpus-per-node=2", f"--output={tmp_path}/%j"
    )
    none = idle_cluster.sbatch(line, "--nodelist=n1", f"--output={tmp_path}/%j")
    idle_cluster.wait([one, other, both, none])
    seen = {job: (tmp_path / job).read_text().split()[1:] for job in (one, other, both, none)}
    assert sorted(seen[one] + seen[other]) == ["0", "1"]
    assert seen[both] == ["0,1"]
    assert seen[none] == []


def test_memory_beyond_the_limit_is_killed(idle_cluster, tmp_path):
    hungry = "python3 -c 'import time; x = bytearray(b\"1\") * (300 << 20); time.sleep(30)'"
    log = tmp_path / "log"
    job = idle_cluster.sbatch(f"srun --error={log} {hungry}")
    assert idle_cluster.wait([job])[job].state == "FAILED"
    assert "exceeded memory limit" in log.read_text()


def test_requeue_preemption_and_restart(idle_cluster, tmp_path):
    line = "echo start$SLURM_RESTART_COUNT; sleep 4 && echo end"
    options = ("--requeue", "--open-mode=append", f"--output={tmp_path}/%j", "--cpus-per-task=4")
    requeued, preempted, left = (
        idle_cluster.sbatch(line, f"--nodelist={node}", *options) for node in idle_cluster.nodes
    )
    idle_cluster.wait_for([requeued, preempted, left], {"RUNNING"})
    idle_cluster.command("scontrol", "requeue", requeued)
    above = idle_cluster.submit_preempting("n2", seconds=1)
    idle_cluster.wait_for([preempted], {"PENDING"})
    idle_cluster.restart_controller(down=1)
    ended = idle_cluster.wait([requeued, preempted, left, above])
    assert {element.state for element in ended.values()} == {"COMPLETED"}

    logs = {job: (tmp_path / job).read_text() for job in (requeued, preempted, left)}
    said = {
        job: [line for line in log.splitlines() if line.startswith(("start", "end"))]
        for job, log in logs.items()
    }
    assert said == {
        requeued: ["start", "start1", "end"],
        preempted: ["start", "start1", "end"],
        left: ["start", "end"],
    }
    assert "DUE TO JOB REQUEUE" in logs[requeued]
    assert "DUE TO PREEMPTION" in logs[preempted]


def test_killed_node_leaves_nothing_and_comes_back(idle_cluster):
    # one task without SLURM's environment, as in a container
    job = idle_cluster.sbatch("sleep 3141 & srun env -i sleep 3141", "--nodelist=n3")
    wait_until(lambda: sleeping("3141") == 2)
    idle_cluster.kill_node("n3")
    assert sleeping("3141") == 0
    # an administrator's word, instead of the 30 s in which the controller finds out
    idle_cluster.command("scontrol", "update", "NodeName=n3", "State=DOWN", "Reason=test")
    assert idle_cluster.squeue()[job].state == "PENDING"
    idle_cluster.command("scontrol", "update", "NodeName=n3", "State=RESUME")
    idle_cluster.start_node("n3")
    idle_cluster.wait_for([job], {"RUNNING"})


def test_second_cluster_beside_it_leaves_no_process(idle_cluster):
    with tempfile.TemporaryDirectory(prefix="testcluster-", dir="/tmp") as name:
        try:
            other = loopback.start(Path(name), 1, "--conf", "MaxArraySize=5")
            assert "MaxArraySize            = 5\n" in other.command("scontrol", "show", "config")
            other.sbatch("sleep 2718 & srun env -i sleep 2718")
            wait_until(lambda: sleeping("2718") == 2)
            assert len(of_cluster(name)) > 4
        finally:
            loopback.stop(Path(name))
        assert sleeping("2718") == 0
        assert of_cluster(name) == []
        loopback.stop(Path(name))
    job = idle_cluster.sbatch("true")
    assert idle_cluster.wait([job])[job].state == "COMPLETED"


def test_accounting_tells_of_jobs_that_the_queue_has_forgotten(idle_cluster, monkeypatch, tmp_path):
    """Another cluster, with MariaDB and slurmdbd; all others of these tests have no accounting."""
    tools = ("slurmdbd", "mariadbd", "mariadb-install-db")
    if lacking := [tool for tool in tools if not shutil.which(tool)]:
        pytest.skip(f"ACCOUNTING IS NOT CHECKED: no {', '.join(lacking)}")
    cell = Cell("prepare", 1)
    with tempfile.TemporaryDirectory(prefix="testcluster-", dir="/tmp") as name:
        try:
            other = loopback.start(Path(name), 1, "--accounting")
            monkeypatch.setenv("SLURM_CONF", f"{name}/etc/slurm.conf")
            lines = {"FAILED": "false", "CANCELLED": "sleep 300", "NODE_FAIL": "sleep 300"}
            ids = {
                state: other.sbatch(line, f"--job-name=ours-{state}", "--no-requeue")
                for state, line in lines.items()
            }
            other.wait([ids["FAILED"]])
            other.wait_for([ids["CANCELLED"], ids["NODE_FAIL"]], {"RUNNING"})
            other.command("scancel", ids["CANCELLED"])
            other.wait([ids["CANCELLED"]])
            other.kill_node("n1")
            other.command("scontrol", "update", "NodeName=n1", "State=DOWN", "Reason=test")
            tasks = [
                jobs.Task(cell, number, 0.0, tmp_path / "log", name=f"ours-{state}")
                for state, number in ids.items()
            ]
            stranger = jobs.Task(cell, ids["FAILED"], 0.0, tmp_path / "log", name="another's")
            wanted = {number: state for state, number in ids.items()}
            wait_until(lambda: jobs.accounted(tasks) == wanted)
            assert jobs.accounted([stranger]) == {}
            told = [jobs.cause(task, "", jobs.accounted(tasks)[task.job])[0] for task in tasks]
            assert told == ["lost", "dependency", "node"]  # without a log no more is known
        finally:
            loopback.stop(Path(name))
        assert of_cluster(name) == []
        shutil.rmtree(f"{name}/db")  # its owner is another


def test_the_bench_of_launching_runs(idle_cluster, tiny_tree, tmp_path):
    """hpc/bench/launch.py, at a size that takes seconds: every task ends well, and all figures are told."""
    (tmp_path / "nsd").symlink_to(tiny_tree)
    line = [sys.executable, str(runs.ROOT / "hpc/bench/launch.py"), str(tmp_path), "--json"]
    done = subprocess.run(
        [*line, "--tasks", "12", "--cells", "40"],
        env=runs.environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert (told["tasks"], told["arrays"], told["ended_well"]) == (12, 1, 12)
    figures = ("submit_s", "drain_s", "task_s", "status_s", "dry_run_s")
    assert all(told[name] > 0 for name in figures)


def sleeping(seconds: str) -> int:
    """How many processes are `sleep SECONDS`."""
    lines = [read(folder / "cmdline").split("\0") for folder in Path("/proc").glob("[0-9]*")]
    return sum(line[0].endswith("sleep") and line[1] == seconds for line in lines if len(line) > 1)


def of_cluster(folder: str) -> list[str]:
    """Command lines of processes that have the folder's slurm.conf in their environment."""
    mark = f"SLURM_CONF={folder}/etc/slurm.conf\0"
    return [
        read(process / "cmdline")
        for process in Path("/proc").glob("[0-9]*")
        if mark in read(process / "environ")
    ]


def read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:  # it has ended meanwhile
        return ""


def wait_until(condition: Callable[[], bool], timeout: float = 20) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not so after {timeout:g} s"
        time.sleep(0.1)
