"""Records of jobs, and why a task ended, by logs as SLURM 22.05 writes them."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from nsdcap import jobs
from nsdcap.jobs import Array, Task
from nsdcap.paths import Cell

CELLS = (Cell("encode", 1), Cell("encode", 1, 3))
ARRAY = Array(
    "nsdcap-encode-a", "encode", CELLS, "", False, 5.0, (1, 2), (0, 1), (0, 0), ("x", "y")
)


def test_a_record_comes_back_as_it_was(tmp_path):
    jobs.write(tmp_path, ARRAY)
    assert jobs.read(tmp_path) == [ARRAY]
    jobs.write(tmp_path, replace(ARRAY, job="41", resources={"cpus": 2}))
    assert jobs.read(tmp_path) == [replace(ARRAY, job="41", resources={"cpus": 2})]


def test_the_last_job_of_a_cell_counts_and_one_without_a_job_does_not(tmp_path):
    jobs.write(tmp_path, replace(ARRAY, job="41"))
    again = Array(
        "nsdcap-encode-b", "encode", CELLS[:1], "50", False, 9.0, (2,), (0,), (0,), ("x",)
    )
    jobs.write(tmp_path, again)
    jobs.write(tmp_path, replace(ARRAY, name="nsdcap-encode-c", submitted=10.0))
    rows = [
        ["41_0", "RUNNING", "None", "1:00", "n1", "nsdcap-encode-a"],
        ["41_1", "RUNNING", "None", "1:00", "n1", "another's, under an id given out again"],
        ["50", "PENDING", "Priority", "", "", "nsdcap-encode-b"],
    ]
    found = jobs.tasks(tmp_path, rows, jobs.read(tmp_path))
    assert (found[CELLS[0]].job, found[CELLS[0]].word) == ("50", "pending")
    assert (found[CELLS[1]].job, found[CELLS[1]].word) == ("41_1", "")
    assert found[CELLS[1]].tries == 2
    assert found[CELLS[1]].log == tmp_path / "log" / "slurm" / "41_1_0_log.err"


# an attempt before, in the same log
LOST = (
    "nsdcap: begins on n1, restart 0\nslurmstepd: error: *** JOB 9 ON n1 CANCELLED AT "
    "2026-11-24T05:57:32 DUE TO PREEMPTION ***"
)
LOGS = {
    "memory": "slurmstepd-n2: error: StepId=311.0 exceeded memory limit (421801984 > 314572800), being "
    "killed\nslurmstepd-n2: error: Exceeded job memory limit\nslurmstepd-n2: error: *** STEP 311.0 ON n2 "
    "CANCELLED AT 2026-11-24T05:57:32 ***\nsrun: error: n2: task 0: Killed",
    "memory ": "slurmstepd: error: Detected 1 oom_kill event in StepId=311.0. Some of the step tasks have "
    "been OOM Killed.",
    "time": "slurmstepd-n2: error: *** STEP 312.0 ON n2 CANCELLED AT 2026-11-24T05:57:32 DUE TO TIME LIMIT ***",
    "preempted": "slurmstepd: error: *** JOB 9 ON n1 CANCELLED AT 2026-11-24T05:57:32 DUE TO PREEMPTION ***",
    "node": "slurmstepd: error: *** JOB 9 ON n1 CANCELLED AT 2026-11-24T05:57:32 DUE TO NODE FAILURE, SEE "
    "SLURMCTLD LOG FOR DETAILS ***",
    "node ": "srun: error: Node failure on n3",
    "cancelled": "slurmstepd-n3: error: *** JOB 317 ON n3 CANCELLED AT 2026-11-24T05:57:32 ***\n"
    "srun: error: n3: task 0: Killed",
    "killed": "nsdcap: the task ended with exit status 137 (signal KILL)\nsrun: error: n1: task 0: "
    "Exited with exit code 137",
    "dependency": "nsdcap.cells.Incomplete: decode subj01 needs 1 cells that are not done: prepare subj01; "
    "run their stages first, or --stage all",
    "exception": "submitit ERROR (2026-11-24 05:57:32,001) - Submitted job triggered an exception\nTraceback "
    "(most recent call last):\n  File \"launch.py\", line 1, in __call__\nnsdcap.errors.UsageError: 1 GPUs were"
    " asked for\nnsdcap: the task ended with exit status 1\nsrun: error: n1: task 0: Exited with exit code 1",
    "killed ": f"{LOST}\nnsdcap: begins on n2, restart 1\nnsdcap: the task ended with exit status 137 "
    "(signal KILL)",
}  # fmt: skip


@pytest.mark.parametrize("word", LOGS)
def test_the_cause_is_read_off_the_log_where_the_queue_has_forgotten(tmp_path, word):
    log = tmp_path / "log.err"
    log.write_text("chatter\n" + LOGS[word] + "\n")
    assert jobs.cause(Task(CELLS[0], "9", 0.0, log))[0] == word.strip()


@pytest.mark.parametrize(
    ("state", "word"),
    [
        ("OUT_OF_MEMORY", "memory"),
        ("TIMEOUT", "time"),
        ("NODE_FAIL", "node"),
        ("PREEMPTED", "preempted"),
    ],
)
def test_the_queues_word_goes_first(tmp_path, state, word):
    log = tmp_path / "log.err"
    log.write_text(LOGS["cancelled"])
    assert jobs.cause(Task(CELLS[0], "9", 0.0, log, state))[0] == word
    assert jobs.cause(Task(CELLS[0], "9", 0.0, log), "", state)[0] == word


NOTES = {
    "exception": "ValueError: found 3, expected 4",
    "memory": "numpy._core._exceptions._ArrayMemoryError: Unable to allocate",
    "time": "submitit.core.utils.UncompletedJobError: Job not requeued because: timed-out too many times.",
    # twice the memory asked of SLURM would not help
    "exception ": "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
}


@pytest.mark.parametrize("word", NOTES)
def test_what_a_cell_itself_has_noted_goes_before_its_log(tmp_path, word):
    log = tmp_path / "log.err"
    log.write_text("srun: error: n1: task 0: Exited with exit code 1\n")
    task = Task(CELLS[0], "9", 0.0, log)
    assert jobs.cause(task, NOTES[word]) == (word.strip(), NOTES[word])
    assert jobs.cause(task)[1].startswith("srun: error")


def test_what_ends_before_the_cell_begins_is_not_the_clusters_fault(tmp_path):
    """A wrong image or setup would end so again, however often it is submitted."""
    log = tmp_path / "log.err"
    log.write_text(
        f"{jobs.BEGINS}n1, restart 0\ncontainers/run.sh: --image x.sif: there is no such file; pull it\n"
        "srun: error: n1: task 0: Exited with exit code 65\n"
    )
    told = jobs.cause(Task(CELLS[0], "9", 0.0, log))
    assert told == ("exception", "containers/run.sh: --image x.sif: there is no such file; pull it")
    log.write_text(f"{jobs.BEGINS}n1, restart 0\n")
    assert jobs.cause(Task(CELLS[0], "9", 0.0, log, "FAILED"))[0] == "exception"


def test_a_log_that_breaks_off_tells_nothing(tmp_path):
    log = tmp_path / "log.err"
    log.write_text(f"{jobs.BEGINS}n1, restart 0\nfeatures: 30 % (1 of 3, 1 s)\n")
    assert jobs.cause(Task(CELLS[0], "9", 0.0, log))[0] == "lost"


def test_a_job_that_never_began_was_cancelled_for_its_inputs(tmp_path):
    task = Task(CELLS[0], "9", 0.0, tmp_path / "none", "CANCELLED", jobs.NEVER[0])
    assert jobs.cause(task)[0] == "dependency"
    assert jobs.cause(replace(task, state="", reason=""))[0] == "lost"


def test_accounting_is_believed_for_jobs_of_that_name_alone(tmp_path, monkeypatch):
    """A controller that was killed may give an id out again; the other job is in accounting too."""
    sacct = tmp_path / "sacct"
    sacct.write_text("#!/bin/sh\necho '9|COMPLETED|another'; echo '8_1|CANCELLED by 0|mine'\n")
    sacct.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    tasks = [Task(CELLS[0], job, 0.0, tmp_path / "log", name="mine") for job in ("9", "8_1")]
    assert jobs.accounted(tasks) == {"8_1": "CANCELLED"}


def test_a_command_that_is_not_there_is_told_in_one_sentence():
    with pytest.raises(jobs.QueueError, match="no-such-command: found no such command"):
        jobs.ask("no-such-command")
    with pytest.raises(jobs.QueueError, match="false"):
        jobs.ask("false")
