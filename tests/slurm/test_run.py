"""A whole run on a real SLURM: the same bytes as in one process, in odd folders, inside an image.

And what goes before and around it: the dry run, two launches at once, launchers that die, refusals,
cancelling, a queue that cannot be asked.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import runs
from loopback import FINISHED
from runs import ROOT, Run, call, closed, command_line, in_front, until

from nsdcap import jobs
from nsdcap.paths import Cell

PREPARE, DECODE, KERNEL = (
    [Cell(stage, s) for s in (1, 2)] for stage in ("prepare", "decode", "kernel")
)
ODD = """it's "odd" $(touch pwned) `touch pwned` & ;#ü"""


@pytest.fixture
def whole(idle_cluster, reference, tmp_path) -> Run:
    """A run of which nothing is done, in a folder whose name a shell would take for something else."""
    folder = tmp_path / ODD
    folder.mkdir()
    run = Run(idle_cluster, reference, folder / "out")
    run.site()
    return run


def test_a_whole_run_is_the_same_as_inline(whole, request, tmp_path):
    """Twenty-two cells of nine stages, in an image where Apptainer is; its name is odd as well."""
    image = ""
    if shutil.which("apptainer"):
        image = str(request.getfixturevalue("tiny_image").sif)
        whole.site(
            image=image,
            binds=list(dict.fromkeys(["/usr", sys.base_prefix, sys.prefix, str(ROOT)])),
            setup=[
                f"export APPTAINERENV_PREPEND_PATH={shlex.quote(str(Path(sys.prefix) / 'bin'))}",
                f"export APPTAINERENV_PYTHONPATH={shlex.quote(str(ROOT))}",
            ],
        )
    else:
        warnings.warn("NO IMAGE IS TESTED ON SLURM: no apptainer", stacklevel=1)
    before = sorted(tmp_path.rglob("*"))
    dry = whole.launch("--dry-run")
    assert sorted(tmp_path.rglob("*")) == before
    with closed(whole.cluster):
        said = whole.launch()
        assert "0 cells submitted, 22 on their way" in whole.launch()
    assert said.splitlines()[0] == (
        f"executor slurm: site file {whole.site_file}, and sbatch is on the PATH"
    )
    assert "22 cells submitted, 0 on their way before, 0 done before" in said
    compare_scripts(whole, dry)
    whole.settle(400)
    assert {element.state for element in whole.mine().values()} == {"COMPLETED"}
    assert shlex.quote(image) in script(whole, "prepare") or not image
    if image:
        whole = replace(whole, reference=whole.reference.without_java(tmp_path / "no java"))
    whole.check()
    assert not list(tmp_path.rglob("pwned"))
    assert not Path("pwned").exists()


def script(run: Run, stage: str) -> str:
    """The script that sbatch was given for the first array of a stage."""
    array = run.arrays(stage)[0]
    return (jobs.logs(run.out) / f"{array.job}_submission.sh").read_text()


def compare_scripts(run: Run, dry: str) -> None:
    """The dry run printed just what was submitted, but for random names and ids of dependencies."""

    def plain(text: str) -> list[str]:
        text = re.sub(r"'?(nsdcap-\w+-\w{8})-[^'\s]*'?", r"\1", text)
        text = re.sub(r"'?(afterok|afterany):.*", r"\1", text)
        return [line for line in text.strip().splitlines() if line]

    shown = re.split(r"\n# (\w+): \d+ tasks in 1 arrays.*\n", dry)[1:]
    assert tuple(shown[::2]) == runs.STAGES
    for stage, text in zip(shown[::2], shown[1::2], strict=True):
        assert plain(text) == plain(script(run, stage)), stage


def test_a_subject_does_not_wait_for_another_and_aggregate_lists_gaps(
    begin, idle_cluster, tiny_tree
):
    features, encode = Cell("features", 2), [Cell("encode", s) for s in (1, 2)]
    run = begin(features, *DECODE, *encode, Cell("aggregate"))
    with closed(idle_cluster):
        run.launch()
        for cell in (features, Cell("aggregate")):
            idle_cluster.command("scontrol", "hold", run.job(cell))
    first = [run.job(cell) for cell in (DECODE[0], encode[0])]
    assert {e.state for e in idle_cluster.wait(first).values()} == {"COMPLETED"}
    assert run.mine()[run.job(features)].state == "PENDING"
    assert {run.mine()[run.job(cell)].reason for cell in (DECODE[1], encode[1])} == {"Dependency"}
    pictures = tiny_tree / "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5"
    with runs.away(pictures):
        idle_cluster.command("scontrol", "release", run.job(features))
        idle_cluster.wait([run.job(features), run.job(encode[1])])
        told = run.status()["features subj02"]
        assert (told["state"], told["cause"]) == ("failed", "exception")
    idle_cluster.command("scontrol", "release", run.job(Cell("aggregate")))
    run.settle()
    told = run.status(code=75)
    words = {name: cell["state"] for name, cell in told.items() if cell["state"] != "done"}
    assert words == {
        "features subj02": "failed",
        "decode subj02": "missing",
        "encode subj02": "missing",
        "aggregate": "missing",
    }
    assert told["features subj02"]["cause"] == "exception"
    assert "decode subj02, encode subj02" in told["aggregate"]["reason"]
    run.launch(code=1)
    run.launch("--retry-failed")
    run.settle()
    run.check()


def test_a_stage_alone_depends_on_its_own_cells_alone(begin, idle_cluster):
    """decode of subject 2 is an array of one; a failure of subject 1's prepare is not its own."""
    run = begin(*PREPARE, DECODE[1])
    with closed(idle_cluster):
        run.launch()
        idle_cluster.command("scancel", run.job(PREPARE[0]))
    run.settle()
    assert run.mine()[run.job(DECODE[1])].state == "COMPLETED"
    run.launch()
    run.settle()
    run.check()


def test_a_job_with_other_settings_is_taken_back_also_where_the_result_is_done(begin, idle_cluster):
    """It would put its result in the place of the one that is wanted."""
    run = begin()
    other = ["--stage", "reconstruct", "--set", "reconstruct.steps=3"]
    with closed(idle_cluster):
        assert "2 cells submitted" in run.launch(*other)
        told = run.launch("--stage", "reconstruct", "--dry-run")
        assert "with other settings, to be taken back" in told
        assert run.status(code=75)["reconstruct subj01"]["state"] == "pending"
        said = run.launch("--stage", "reconstruct")
        assert "reconstruct subj01: job" in said
        assert "pending with other settings, is taken back" in said
        assert "0 cells submitted, 0 on their way before, 2 done before" in said
        assert not {e for e in run.mine().values() if e.state not in FINISHED}
    run.check()


def test_a_refusal_halfway_is_told_and_nothing_is_doubled(begin, idle_cluster):
    run = begin(*PREPARE, *DECODE, *KERNEL)
    with closed(idle_cluster):
        run.site(stages={"decode": {"constraint": "nowhere"}})
        said = run.launch(code=69)
        assert "Invalid feature specification" in said
        assert (
            "2 cells are submitted and go on, 0 were on their way before, 4 are not submitted"
            in said
        )
        again = run.launch(code=69)
        assert "0 cells are submitted and go on, 2 were on their way before, 4 are not" in again
        run.site()
        said = run.launch()
        assert "4 cells submitted, 2 on their way before" in said
    assert [array.cells for array in run.arrays()] == [tuple(c) for c in (PREPARE, DECODE, KERNEL)]
    run.settle()
    assert len(run.mine()) == 6
    run.check()


def test_sbatch_that_fails_once_is_told_in_its_words(begin, idle_cluster, tmp_path):
    """As by a limit of jobs that was reached."""
    run = begin(*PREPARE, *KERNEL)
    count = tmp_path / "count"
    front = in_front(
        tmp_path / "bin",
        "sbatch",
        f'echo >>"{count}"; [ $(wc -l <"{count}") != 2 ] || {{ echo "sbatch: error: Batch job submission '
        'failed: Slurm temporarily unable to accept job, sleeping and retrying" >&2; exit 1; }\n'
        'exec $REAL "$@"',
    )
    with closed(idle_cluster):
        said = run.launch(code=69, **front)
        assert "kernel: sbatch: error: Batch job submission failed" in said
        assert "2 cells submitted, 2 on their way before" in run.launch(**front)
    run.settle()
    assert len(run.mine()) == 4
    run.check()


def test_a_launcher_killed_right_after_sbatch(begin, idle_cluster, tmp_path):
    """The array is in the queue, its id is not noted, its tasks have no pickles."""
    run = begin(*PREPARE, *KERNEL)
    front = in_front(tmp_path / "bin", "sbatch", '$REAL "$@"; kill -9 $PPID')
    run.launch(code=-9, **front)
    assert [array.job for array in run.arrays()] == [""]
    assert len(run.mine()) == 2
    lost = run.arrays()[0].name
    assert run.status()["prepare subj01"]["state"] == "missing"
    assert "4 cells submitted" in run.launch()
    run.settle()
    assert lost not in {array.name for array in run.arrays()}
    run.check()


def test_cancel_finds_what_a_killed_launcher_did_not_note(begin, idle_cluster, tmp_path):
    run = begin(*PREPARE)
    front = in_front(tmp_path / "bin", "sbatch", '$REAL "$@"; kill -9 $PPID')
    with closed(idle_cluster):
        run.launch(code=-9, **front)
        assert "2 cells cancelled" in call("cancel", str(run.out))
        assert not {e for e in idle_cluster.squeue().values() if e.state not in FINISHED}


def test_a_launcher_killed_while_an_array_is_held(begin, idle_cluster, tmp_path):
    run = begin(*PREPARE, *KERNEL)
    front = in_front(
        tmp_path / "bin", "scontrol", '[ $1 != update ] || kill -9 $PPID\nexec $REAL "$@"'
    )
    with closed(idle_cluster):
        run.launch(code=-9, **front)
        held = [array for array in run.arrays() if array.held]
        assert [array.stage for array in held] == ["kernel"]
        assert {e.reason for e in run.mine().values() if "kernel" in e.name} == {"JobHeldUser"}
        assert "2 cells submitted, 2 on their way before" in run.launch()
    run.settle()
    assert not {e for e in idle_cluster.squeue().values() if e.state not in FINISHED}
    run.check()


def test_two_launches_at_once_and_cancel(begin, idle_cluster, tmp_path):
    run = begin(*PREPARE, *KERNEL)
    front = in_front(tmp_path / "bin", "sbatch", f'touch "{tmp_path}/in"; sleep 4; exec $REAL "$@"')
    words = [*run.reference.arguments, "--out", str(run.out), "--site", str(run.site_file)]
    with closed(idle_cluster):
        first = subprocess.Popen(
            [sys.executable, "-m", "nsdcap.launch", *words],
            env={**runs.environment(), **front},
            stdout=subprocess.DEVNULL,
        )
        until((tmp_path / "in").exists, 30)
        said = run.launch(code=75).splitlines()[-1]
        assert re.search(rf"works on this run since .* \(process {first.pid}: ", said)
        assert f"process {first.pid}" in call("cancel", str(run.out), code=75)
        assert first.wait(60) == 0
        assert "4 cells cancelled" in call("cancel", str(run.out))
        assert {element.state for element in run.mine().values()} == {"CANCELLED"}
    run.launch()
    run.settle()
    run.check()


def test_cancel_and_the_command_at_once_goes_on(begin):
    """What was running ends some seconds later; what waits for it must not wait in vain."""
    run = begin(DECODE[0], Cell("caption", 1))
    run.launch()
    with runs.frozen(run.python(DECODE[0], parts=1)):
        assert "2 cells cancelled" in call("cancel", str(run.out))
        assert "2 cells submitted" in run.launch()
    run.settle()
    assert "goes on after" in run.log(DECODE[0])
    run.check()


def test_an_id_given_out_again_is_not_taken_for_ours(begin, idle_cluster):
    """As a controller does that was killed: the records name another's job."""
    run = begin(*PREPARE, *KERNEL)
    with closed(idle_cluster):
        run.launch()
        call("cancel", str(run.out))
        other = idle_cluster.sbatch("sleep 300", "--array=0-1", "--job-name=another")
        for array in run.arrays():
            jobs.write(run.out, replace(array, job=other, held=array.stage == "kernel"))
        assert run.status()["prepare subj01"]["state"] != "pending"
        assert "4 cells submitted, 0 on their way" in run.launch()
        assert "4 cells cancelled" in call("cancel", str(run.out))
        mine = {i: e.state for i, e in idle_cluster.squeue().items() if e.name == "another"}
        assert mine == {f"{other}_0": "PENDING", f"{other}_1": "PENDING"}


def test_a_queue_that_cannot_be_asked(begin, idle_cluster, tmp_path):
    run = begin(*PREPARE)
    with closed(idle_cluster):
        run.launch()
        # of a file that is not there SLURM's commands themselves ask again for a minute
        (tmp_path / "empty.conf").touch()
        nowhere = {"SLURM_CONF": str(tmp_path / "empty.conf")}
        said = call("status", str(run.out), code=75, **nowhere)
        assert "the queue was not asked: squeue" in said
        assert "prepare subj01: job" in said
        told = run.status(code=75, **nowhere)
        assert told["prepare subj01"]["state"] == "unknown"
        assert told["decode subj01"]["state"] == "done"
        assert "nsdcap: squeue" in run.launch(code=69, **nowhere)
        assert "nsdcap.cancel: squeue" in call("cancel", str(run.out), code=69, **nowhere)


def test_the_doctor_knows_the_partitions_and_the_launcher_refuses_others_in_its_words(
    idle_cluster, tiny_tree, tmp_path
):
    site, out = tmp_path / "site.toml", tmp_path / "out"
    given = [*command_line(tiny_tree), "--out", str(out), "--site", str(site)]

    def rows(code: int) -> dict[str, dict[str, str]]:
        said = call("doctor", *given, "--part", "cluster", "--json", code=code)
        return {row["check"]: row for row in json.loads(said)["rows"]}

    site.write_text('[defaults]\npartition = "main,high"\n')
    sound = rows(0)
    wanted = {"SLURM's commands", "SLURM answers", "partition main", "partition high"}
    assert wanted <= set(sound)
    assert {row["verdict"] for row in sound.values()} == {"ok"}
    site.write_text('[stages.prepare]\npartition = "nowhere"\n')
    row = rows(69)["partition nowhere"]
    assert row["found"] == "partition 'nowhere' of prepare: SLURM has no such one"
    assert row["expected"] == "one of main, high"
    said = call("launch", *given, code=69)
    assert row["found"] in said
    assert row["mend"] in said
    assert not out.exists()
