"""How a cell stands by its result, its note, its job's log and the queue; and how status tells it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from nsdcap import config, jobs, miniature
from nsdcap.cells import Ledger
from nsdcap.jobs import Array
from nsdcap.paths import Cell, artefact, failure, sidecar, write_json
from nsdcap.plan import Known
from nsdcap.preflight import write_settings
from nsdcap.status import ALIKE, as_object, gather
from nsdcap.survey import survey

CELL = Cell("encode", 1, 3)
KILLED = (
    f"{jobs.BEGINS}n1, restart 0\nslurmstepd: error: *** JOB 41 ON n1 CANCELLED AT 2026-11-24 ***\n"
)


@pytest.fixture
def ledger(tiny_tree, tmp_path) -> Ledger:
    """A run of subject 1 of which nothing is done."""
    places = (*miniature.places(tiny_tree), "data.sessions=2", "data.subjects=[1]")
    settings = config.load(miniature.SETTINGS, settings=places)
    write_settings(settings, tmp_path / "out")
    return Ledger(settings, tmp_path / "out")


def submitted(ledger: Ledger, cell: Cell = CELL, log: str = KILLED, said: str = "") -> Array:
    """A job of the cell, of a second ago, that has left the queue and these logs."""
    array = Array(
        f"nsdcap-{cell.stage}-a", cell.stage, (cell,), "41", False, time.time() - 1, (1,), (0,),
        (0,), (ledger.depends(cell)["signature"],),
    )  # fmt: skip
    jobs.write(ledger.out, array)
    path = jobs.logs(ledger.out) / "41_0_log.err"
    path.parent.mkdir(parents=True)
    path.write_text(log)
    path.with_suffix(".out").write_text(said)
    return array


def stands(ledger: Ledger, cell: Cell = CELL, rows: list[list[str]] | None = ()) -> Known:
    rows = None if rows is None else list(rows)
    tasks = jobs.tasks(ledger.out, rows, jobs.read(ledger.out))
    return survey(ledger, [cell], tasks, rows is not None)[cell]


def note(ledger: Ledger, message: str, age: float = 0) -> None:
    path = failure(ledger.out, CELL)
    path.parent.mkdir(parents=True)
    path.write_text(f"{ledger.depends(CELL)['signature']}\nTraceback\n{message}\n")
    os.utime(path, (time.time() - age,) * 2)


def test_what_the_last_job_noted_is_its_cause(ledger):
    submitted(ledger)
    note(ledger, "ValueError: found 3")
    known = stands(ledger)
    assert (known.word, known.cause, known.reason) == (
        "failed",
        "exception",
        "ValueError: found 3",
    )


def test_a_note_that_is_older_than_the_job_tells_of_another(ledger):
    submitted(ledger)
    note(ledger, "ValueError: found 3", age=60)
    known = stands(ledger)
    assert (known.word, known.cause) == ("failed", "cancelled")


def test_a_job_that_ended_well_and_whose_result_is_gone_has_not_failed(ledger):
    submitted(ledger, said="submitit INFO (2026-11-24) - Job completed successfully\n")
    known = stands(ledger)
    assert (known.word, known.cause) == ("missing", "")


def test_what_lies_on_disk_goes_before_the_queue(ledger):
    array = submitted(ledger)
    row = ["41", "RUNNING", "None", "1:00", "n1", array.name]
    assert stands(ledger, rows=[row]).word == "running"
    path = artefact(ledger.out, CELL)
    path.parent.mkdir(parents=True)
    path.touch()
    write_json(sidecar(ledger.out, CELL), {"cell": str(CELL), "depends": ledger.depends(CELL)})
    assert stands(ledger, rows=[row]).word == "done"


def test_a_done_cell_whose_job_with_other_settings_is_in_the_queue_is_told(
    ledger, monkeypatch, tmp_path
):
    array = replace(submitted(ledger), signatures=("another",))
    jobs.write(ledger.out, array)
    path = artefact(ledger.out, CELL)
    path.parent.mkdir(parents=True)
    path.touch()
    write_json(sidecar(ledger.out, CELL), {"cell": str(CELL), "depends": ledger.depends(CELL)})
    row = ["41", "PENDING", "Priority", "", "", array.name]
    assert (stands(ledger, rows=[row]).word, stands(ledger, rows=[row]).outdated) == ("done", True)
    assert not stands(ledger).outdated  # it has left the queue
    in_queue(monkeypatch, tmp_path / "bin", row)
    assert "done    encode subj01 layer03: job 41 is pending with other settings" in tell(ledger)


def test_without_the_queue_nothing_is_concluded(ledger):
    submitted(ledger)
    assert stands(ledger, rows=None).word == "unknown"


def in_queue(monkeypatch, folder, *rows: list[str]) -> None:
    """A squeue that says these rows, an sacct that fails as without accounting."""
    folder.mkdir()
    text = "\n".join("|".join(row) for row in rows)
    for name, body in (("squeue", f"cat <<'END'\n{text}\nEND"), ("sacct", "exit 1")):
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_cells_of_an_earlier_command_are_told_while_they_run(ledger, monkeypatch, tmp_path):
    """The settings name subject 1 alone by now."""
    other = Cell("prepare", 2)
    array = Array(
        "nsdcap-prepare-a", "prepare", (other,), "41", False, time.time(), (1,), (0,), (0,), ("x",)
    )
    jobs.write(ledger.out, array)
    in_queue(monkeypatch, tmp_path / "bin", ["41", "RUNNING", "None", "1:00", "n1", array.name])
    known, why = gather(ledger)
    told = {cell["cell"]: cell for cell in as_object(known, why)["cells"]}
    assert told["prepare subj02"]["state"] == "running"
    assert "earlier command" in told["prepare subj02"]["reason"]
    in_queue(monkeypatch, tmp_path / "later")
    assert other not in {state.cell for state in gather(ledger)[0]}


def tell(ledger: Ledger, *words: str) -> str:
    line = [sys.executable, "-m", "nsdcap.status", str(ledger.out), *words]
    return subprocess.run(line, capture_output=True, text=True, timeout=60).stdout


def test_many_that_failed_alike_are_counted(ledger, monkeypatch, tmp_path):
    """A lab's mistake fails all layers at once, and the cause is to be seen among them."""
    blip = tmp_path / "blip"
    blip.mkdir()
    kept = json.loads((miniature.MODELS / "blip/config.json").read_text())
    kept["text_config"]["num_hidden_layers"] = 2 * ALIKE
    (blip / "config.json").write_text(json.dumps(kept))
    places = (*miniature.places(ledger.nsd.root), f"models.blip={str(blip)!r}")
    settings = config.load(
        miniature.SETTINGS, settings=(*places, "data.sessions=2", "data.subjects=[1]")
    )
    write_settings(settings, ledger.out)
    many = Ledger(settings, ledger.out)
    for layer in range(ALIKE + 5):
        path = failure(ledger.out, Cell("encode", 1, layer))
        path.parent.mkdir(exist_ok=True)
        signature = many.depends(Cell("encode", 1, layer))["signature"]
        path.write_text(f"{signature}\nT\nValueError: found {layer}\n")
    told = tell(many).splitlines()
    assert sum("ValueError" in line for line in told) == ALIKE
    assert told[-1] == "failed  5 more of encode: exception; --all lists them"
    assert sum("ValueError" in line for line in tell(many, "--all").splitlines()) == ALIKE + 5


def test_a_reader_that_goes_away_is_no_error(ledger):
    """As ``| head`` does: long before the last of very many lines."""
    line = [sys.executable, "-m", "nsdcap.status", str(ledger.out), "--json"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        said = process.stderr.read().decode()
        assert process.wait(60) == 141
    assert said == ""


def test_watch_goes_on_until_nothing_moves(ledger, monkeypatch, tmp_path):
    """Two looks: a job that runs, then none."""
    array = submitted(ledger)
    row = ["41", "RUNNING", "None", "1:00", "n1", array.name]
    in_queue(monkeypatch, tmp_path / "bin", row)
    squeue = tmp_path / "bin" / "squeue"
    squeue.write_text(squeue.read_text() + f'printf "#!/bin/sh\\n" >"{squeue}"\n')
    told = tell(ledger, "--watch", "0.1")
    assert told.count("aggregate") == 2
    assert told.count("running encode subj01 layer03: on n1; 1:00 left") == 1
    assert told.count("failed  encode subj01 layer03: cancelled") == 1
