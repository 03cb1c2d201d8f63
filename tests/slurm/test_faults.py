"""What clusters do to a task: after each, status names the cause and the same command completes the run.

Every run begins as the reference without the results of some cells, and must end byte for byte as the
reference, with everything else untouched.
"""

from __future__ import annotations

import os
import signal
import subprocess

from processes import gone, workers
from runs import away, call, closed, frozen, until

from nsdcap.paths import Cell

PREPARE, KERNEL, DECODE, CAPTION = (
    [Cell(stage, s) for s in (1, 2)] for stage in ("prepare", "kernel", "decode", "caption")
)


def test_a_task_that_raises_is_tried_again_on_demand_alone(begin, idle_cluster, tiny_tree):
    run = begin(*PREPARE)
    with closed(idle_cluster):
        run.launch()
    betas = next(tiny_tree.glob("nsddata_betas/ppdata/subj02")).rglob("betas_session02.*")
    with away(*betas):
        run.settle()
        assert "subject 2 has no betas of session 2" in call("status", str(run.out), code=65)
    told = run.status(code=75)
    assert told["prepare subj01"]["state"] == "done"
    assert told["prepare subj02"]["state"] == "failed"
    assert told["prepare subj02"]["cause"] == "exception"
    assert "betas of session 2" in told["prepare subj02"]["reason"]
    said = run.launch(code=1)
    assert "1 cells failed (exception) and are not tried again" in said
    assert "add --retry-failed" in said
    run.launch("--retry-failed")
    run.settle()
    assert run.status()["prepare subj02"]["tries"] == 2
    run.check()


def test_a_killed_task_goes_on_from_its_parts(begin):
    run = begin(DECODE[0])
    run.launch()
    os.kill(run.python(DECODE[0], parts=2), signal.SIGKILL)
    run.settle()
    told = run.status()["decode subj01"]
    assert (told["state"], told["cause"]) == ("failed", "killed")
    assert "signal KILL" in told["reason"]
    run.launch()
    run.settle()
    assert "goes on after" in run.log(DECODE[0])
    run.check()


def test_a_time_limit_checkpoints_and_requeues(begin, idle_cluster):
    """It stands still until SLURM signals, so that it cannot be done before."""
    run = begin(DECODE[0])
    run.site(signal_seconds=25, stages={"decode": {"time_minutes": 1}})
    run.launch()
    with frozen(run.python(DECODE[0], parts=2), firmly=False):
        until(lambda: restarts(run, DECODE[0]) == 1, 60)
    run.settle()
    assert "this job is timed-out" in run.log(DECODE[0])
    assert "goes on after" in run.log(DECODE[0])
    assert len(run.arrays()) == 1
    run.check()


def test_a_task_of_two_gpus_shares_out_its_pictures_and_goes_on(begin, idle_cluster):
    """After the signal that SLURM sends before a time limit to all of a task's processes."""
    cell = Cell("reconstruct", 1)
    run = begin(cell)
    run.site(stages={"reconstruct": {"gpus": 2}})
    run.launch()
    pid = run.python(cell, parts=2, timeout=120)
    both = workers(pid)
    assert len(both) == 2
    with frozen(pid, *both, firmly=False):
        idle_cluster.command("scancel", "--signal=USR2", run.job(cell))
    until(lambda: restarts(run, cell) == 1, 60)
    until(lambda: all(map(gone, both)), 30)
    run.settle()
    assert "Requeued job" in run.log(cell)
    assert "goes on after" in run.log(cell)
    told = run.log(cell, "err")
    assert {f"process {number} of 2" in told for number in (1, 2)} == {True}
    assert "Traceback" not in told
    run.check()


def test_a_time_limit_once_too_often_is_told_and_more_is_asked_for(begin):
    run = begin(DECODE[0])
    run.site(signal_seconds=25, timeouts=0, stages={"decode": {"time_minutes": 1}})
    run.launch()
    with frozen(run.python(DECODE[0], parts=2), firmly=False):
        run.settle()
    told = run.status()["decode subj01"]
    assert (told["state"], told["cause"]) == ("failed", "time")
    run.launch(code=1)
    run.launch("--retry-failed")
    assert "TimeLimit=00:02:00" in show(run, DECODE[0])
    run.settle()
    run.check()


def test_a_preempted_task_goes_on_by_itself(begin, idle_cluster):
    run = begin(DECODE[1])
    run.launch()
    pid = run.python(DECODE[1], parts=2)
    with frozen(pid):
        node = run.mine()[run.job(DECODE[1])].node
        idle_cluster.submit_preempting(node, seconds=1)
        until(lambda: run.mine()[run.job(DECODE[1])].state == "COMPLETING", 30)
        assert run.status(code=75)["decode subj02"]["state"] == "running"
        until(lambda: run.mine()[run.job(DECODE[1])].state == "PENDING", 30)
    assert run.status(code=75)["decode subj02"]["state"] == "pending"
    assert "1 on their way before" in run.launch()
    run.settle()
    assert "DUE TO PREEMPTION" in run.log(DECODE[1], "err")
    assert "goes on after" in run.log(DECODE[1])
    run.check()


def test_a_kill_after_a_preemption_is_told_as_a_kill(begin, idle_cluster):
    """The log holds both attempts; the first one's end does not explain the second's."""
    run = begin(PREPARE[0])
    run.launch()
    with frozen(run.python(PREPARE[0])):
        idle_cluster.submit_preempting(run.mine()[run.job(PREPARE[0])].node, seconds=0)
        until(lambda: run.mine()[run.job(PREPARE[0])].state == "PENDING", 30)
    os.kill(run.python(PREPARE[0]), signal.SIGKILL)
    run.settle()
    assert "DUE TO PREEMPTION" in run.log(PREPARE[0], "err")
    assert run.status()["prepare subj01"]["cause"] == "killed"
    run.launch()
    run.settle()
    run.check()


def test_scancel_of_one_index_and_of_what_waited_for_it(begin, idle_cluster):
    """Given at once, the command waits until the cancelled task has ended."""
    run = begin(*DECODE, *CAPTION)
    with closed(idle_cluster):
        run.launch()
    with frozen(run.python(DECODE[1], parts=1)):
        idle_cluster.command("scancel", run.job(DECODE[1]))
        said = run.launch()
    assert "1 jobs are just ending" in said
    assert "2 cells submitted" in said
    run.settle()
    assert {array.cells for array in run.arrays()} == {
        *map(tuple, (DECODE, CAPTION)),
        *((cells[1],) for cells in (DECODE, CAPTION)),
    }
    run.check()


def test_what_a_cancelled_task_was_needed_for_is_told_and_submitted_again(begin, idle_cluster):
    run = begin(*PREPARE, *KERNEL)
    with closed(idle_cluster):
        run.launch()
    with frozen(run.python(PREPARE[1])):
        idle_cluster.command("scancel", run.job(PREPARE[1]))
        run.settle()
    told = run.status(code=75)
    assert {name: cell["state"] for name, cell in told.items() if cell["state"] != "done"} == {
        "prepare subj02": "failed",
        "kernel subj02": "missing",
        "aggregate": "stale",  # it was made from a result that is gone
    }
    assert told["prepare subj02"]["cause"] == "cancelled"
    assert told["kernel subj02"]["cause"] == "dependency"
    run.launch()
    run.settle()
    run.check()


def test_a_lost_nodes_task_runs_elsewhere(begin, idle_cluster):
    run = begin(PREPARE[0])
    run.launch()
    with frozen(run.python(PREPARE[0])):
        node = run.mine()[run.job(PREPARE[0])].node
        idle_cluster.kill_node(node)
    until(lambda: restarts(run, PREPARE[0]) == 1, 90)
    run.settle()
    idle_cluster.start_node(node)
    run.check()


def test_a_controller_that_is_away_is_told_and_nothing_is_doubled(begin, idle_cluster):
    run = begin(*PREPARE, *KERNEL)
    with closed(idle_cluster):
        run.launch()
    with frozen(*(run.python(cell) for cell in PREPARE)):
        idle_cluster.stop_controller()
        before = run.arrays()
        told = run.status(code=75)
        assert told["prepare subj01"]["state"] == "unknown"
        assert "nsdcap: squeue" in run.launch(code=69)
        assert run.arrays() == before
        idle_cluster.start_controller()
        assert "0 cells submitted" in run.launch()
    run.settle()
    assert run.arrays() == before
    run.check()


def test_memory_beyond_the_limit_is_told_and_twice_as_much_asked_for(begin):
    cell = Cell("features", 1)
    run = begin(cell)
    run.site(stages={"features": {"gpus": 1, "memory_gb": 1}})
    run.launch("--stage", "features")
    run.settle()
    told = run.status(code=75)["features subj01"]
    assert (told["state"], told["cause"]) == ("failed", "memory")
    assert "(memory)" in run.launch("--stage", "features", code=1)
    run.launch("--stage", "features", "--retry-failed")
    assert "mem=2G," in show(run, cell)
    run.settle()
    run.check()


def show(run, cell: Cell) -> str:
    """What SLURM was asked for the cell's last job."""
    return subprocess.run(
        ["scontrol", "show", "job", run.job(cell)], capture_output=True, text=True, check=True
    ).stdout


def restarts(run, cell: Cell) -> int:
    """How often its last job was queued anew."""
    return int(show(run, cell).split("Restarts=")[1].split()[0])
