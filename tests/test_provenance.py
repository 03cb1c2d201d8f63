"""What stands beside a result: how it came to be, whether it still is, and where two runs part."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from dataclasses import is_dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import pytest
from small_runs import without

from nsdcap import __version__, cells, config, description, provenance
from nsdcap.cells import Ledger
from nsdcap.config import SPEED
from nsdcap.errors import UsageError
from nsdcap.paths import Cell, artefact, config_file, sidecar
from nsdcap.provenance import main
from nsdcap.stages import STAGES, counted

ROOT = Path(__file__).resolve().parents[1]
CELLS = [
    Cell("prepare", 1), Cell("features"), Cell("decode", 1), Cell("caption", 1), Cell("reconstruct", 1),
    Cell("compare", 1), Cell("kernel", 1), Cell("encode", 1), Cell("encode", 1, 3),
]  # fmt: skip


def sha256sum(path: Path) -> str:
    """By coreutils."""
    return subprocess.run(["sha256sum", path], capture_output=True, text=True).stdout.split()[0]


@pytest.fixture
def copy(small_run, tmp_path) -> Path:
    """The undisturbed run's files under links: what is replaced there is replaced here alone."""
    return Path(shutil.copytree(small_run[1], tmp_path / "out", copy_function=os.link))


# --- settings that are read -----------------------------------------------------------------------

# read, but not for what a result holds
HARMLESS = {
    "features": {
        "reconstruct.size"
    },  # that the autoencoder can make such pictures is checked as it loads
}


class Watched:
    """A configuration, or a section of one, that notes what is read of it."""

    def __init__(self, settings: object, seen: set[str], section: str = ""):
        self._settings, self._seen, self._section = settings, seen, section

    def __getattr__(self, name: str) -> object:
        value = getattr(self._settings, name)
        if is_dataclass(value):
            return Watched(value, self._seen, f"{name}.")
        self._seen.add(self._section + name)
        return value


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_a_stage_reads_no_setting_that_does_not_count(copy, tmp_path, one_thread, cell):
    """And with the others it makes the same bytes again."""
    settings, seen = config.load(config_file(copy)), set()
    module, name = STAGES[cell.stage].function.split(":")
    function = getattr(__import__(module, fromlist=[name]), name)
    function(cell, Watched(settings, seen), cells.open_nsd(settings), copy, tmp_path / "made")
    assert (tmp_path / "made").read_bytes() == artefact(copy, cell).read_bytes()
    assert seen
    for_speed = {name for name in seen if name.rpartition(".")[2] in SPEED}
    harmless = for_speed | HARMLESS.get(cell.stage, set())
    assert seen - harmless <= set(counted(cell, settings))


# --- sidecars -------------------------------------------------------------------------------------


def test_a_sidecar_tells_how_a_result_came_to_be(small_run):
    _, out = small_run
    settings = config.load(config_file(out))
    notes = {cell: json.loads(sidecar(out, cell).read_text()) for cell in CELLS}
    head = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True)
    for cell, note in notes.items():
        path = artefact(out, cell)
        assert note["artefact"] == {"sha256": sha256sum(path), "bytes": path.stat().st_size}
        inputs = STAGES[cell.stage].inputs(cell, settings)
        assert note["inputs"] == {str(other): sha256sum(artefact(out, other)) for other in inputs}
        assert note["versions"].items() >= {
            "nsdcap": __version__, "python": platform.python_version(),
            "numpy": version("numpy"), "h5py": version("h5py"),
        }.items()  # fmt: skip
        if head.returncode == 0:
            assert note["code"]["commit"] == head.stdout.strip()
            assert isinstance(note["code"]["changed"], bool)
        began, ended = (datetime.fromisoformat(note[key]) for key in ("started", "ended"))
        assert abs((ended - began).total_seconds() - note["seconds"]) <= 1.1
        assert began.utcoffset().total_seconds() == 0
        assert note["host"]["name"] == platform.node().split(".")[0]
        assert 5e7 < note["memory"]["before_bytes"] <= note["memory"]["peak_bytes"] < 1e11
        assert note["threads"]["cores"] >= 1
        assert note["threads"]["OMP_NUM_THREADS"] == "1"
        assert any(library["num_threads"] == 1 for library in note["threads"]["blas"])
        assert note["speed"]["models.batch"] == 16
        assert note["parts_before"] == 0
        assert ("seed" in note["seeds"]) == (cell.stage not in ("prepare", "compare"))
        assert note["depends"]["settings"] == counted(cell, settings) | (
            {"data.sessions": 2} if cell.stage in ("prepare", "features") else {}
        )
    loaded = notes[Cell("features")]
    assert loaded["versions"]["transformers"] == version("transformers")
    assert loaded["versions"]["torch"] == version("torch")


def test_where_a_stage_draws_its_settings_say_the_seed():
    """What a sidecar says of seeds is of those stages that the seed counts for."""
    assert set(provenance.SEEDS) == {name for name, one in STAGES.items() if "seed" in one.settings}


def test_of_a_folder_the_hash_is_that_of_what_sha256sum_prints(tmp_path):
    folder = tmp_path / "aggregate"
    for name, content in (("b", "1"), ("a/é x.csv", "2"), ("a-b", "3"), ("a/B", "")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    command = re.search(r"``cd FOLDER; (.*)``", provenance.digest.__doc__).group(1)
    done = subprocess.run(["bash", "-c", command], cwd=folder, capture_output=True, text=True)
    assert provenance.digest(folder) == {"sha256": done.stdout.split()[0], "bytes": 3}


def test_collecting_is_cheap_and_loads_nothing(tmp_path):
    script = """
import sys, time
from nsdcap import provenance
from nsdcap.config import Config
from nsdcap.paths import Cell
took = []
for _ in range(5):
    start = time.perf_counter()
    note = provenance.record(provenance.begin(), Cell("decode", 1), Config())
    took.append(time.perf_counter() - start)
heavy = {"torch", "transformers", "scipy", "cupy"} & set(sys.modules)
print(min(took), heavy, set(note["versions"]))
assert min(took) < 0.05 and not heavy and "torch" not in note["versions"]
"""
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_in_a_job_its_number_is_noted(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    found = provenance.record(provenance.begin(), Cell("kernel", 1), config.Config())
    assert found["slurm"] == {"job_id": "17", "array_task_id": "3"}


def test_a_cell_that_goes_on_says_how_many_parts_it_found(small_run, tmp_path, monkeypatch):
    cell = Cell("prepare", 1)
    out = without(cell, small_run[1], tmp_path / "out")
    ledger = Ledger(config.load(config_file(out)), out)

    def fails(path: Path) -> None:
        raise OSError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(provenance, "digest", fails)
        with pytest.raises(OSError, match="no room"):
            ledger.run(cell)
    assert ledger.run(cell) == "done"
    found = json.loads(sidecar(out, cell).read_text())
    assert found["parts_before"] == 2  # sessions
    assert found["artefact"] == json.loads(sidecar(small_run[1], cell).read_text())["artefact"]
    assert found["before"] == {}


def test_what_a_gpu_was_used_for_is_noted():
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no GPU: not checked on one")
    begun = provenance.begin()
    torch.zeros(1 << 20, device="cuda")
    found = provenance.record(begun, Cell("features"), config.Config())["gpu"]["torch"][0]
    assert found["name"] == torch.cuda.get_device_name(0)
    assert found["peak_bytes"] >= 1 << 22


# --- python -m nsdcap.provenance ------------------------------------------------------------------


def test_a_run_that_is_as_it_was_made(copy, capsys):
    assert main([str(copy), "--check"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert [line.split(" ")[0] for line in told[:3]] == ["prepare", "features", "features"]
    assert main([str(copy), "caption", "subj01"]) == 0
    told = capsys.readouterr().out
    for name, depth in (("caption subj01", 0), ("decode subj01", 1), ("prepare subj01", 2)):
        found = artefact(copy, Cell(name.split()[0], 1))
        assert re.search(rf"^{'  ' * depth}{name} {sha256sum(found)[:12]}, ", told, re.M)
    assert main([str(copy), "--against", str(copy)]) == 0
    assert capsys.readouterr().out == "all results are the same\n"


def test_a_result_that_was_changed_afterwards_is_named(copy, capsys):
    path = artefact(copy, Cell("caption", 1))
    changed = path.read_text().replace("a", "e", 1)
    path.unlink()
    path.write_text(changed)
    assert main([str(copy), "--check"]) == 65
    said = capsys.readouterr().err
    assert f"{path} has SHA-256 {sha256sum(path)}" in said
    assert len(said.splitlines()) == 1
    assert main([str(copy), "decode", "subj01", "--check"]) == 0  # was not made of it
    assert main([str(copy), "compare", "subj01", "--check"]) == 65


def test_where_two_runs_part_and_what_was_made_of_what_is_no_more(copy, small_run, capsys):
    settings = config.load(
        config_file(copy), settings=("decode.alpha='feature'", "ridge.block=100")
    )
    assert Ledger(settings, copy).run(Cell("decode", 1)) == "done"
    kept = json.loads(sidecar(copy, Cell("decode", 1)).read_text())
    state = Ledger(config.load(config_file(copy)), copy).state(Cell("decode", 1))
    assert state.word == "stale"  # for the settings that it was made by before
    assert state.reason == 'setting decode.alpha was "feature", is "target"'
    assert kept["before"]["reason"] == 'setting decode.alpha was "target", is "feature"'
    capsys.readouterr()
    assert main([str(copy), "--against", str(small_run[1])]) == 1
    told = capsys.readouterr().out.splitlines()
    assert len(told) == 1  # what was made of it is not told beside
    assert told[0].startswith("decode subj01: ")
    assert 'setting decode.alpha: "feature", there "target"' in told[0]
    assert "setting for speed ridge.block: 100, there 256" in told[0]
    assert main([str(copy), "--check"]) == 65
    assert "caption subj01 was made from another decode subj01" in capsys.readouterr().err


def test_what_is_no_run_or_no_cell_is_one_line(copy, tmp_path, capsys):
    assert main([str(tmp_path / "none")]) == 2
    assert main([str(copy), "decode", "subj09"]) == 2
    beside = sidecar(copy, Cell("decode", 1))
    beside.unlink()
    beside.write_text('{"cell": "decode subj01"}')
    assert main([str(copy)]) == 65
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 3
    assert "expected one of prepare subj01, features, " in said[1]
    assert str(beside) in said[2]


# --- the run's folder -----------------------------------------------------------------------------


def test_the_folder_is_described_as_bids_asks(small_run):
    """By BIDS 1.10, "Dataset description" and "Derived dataset and pipeline description"."""
    written = json.loads((small_run[1] / "dataset_description.json").read_text())
    for found in (written, description.describe(False)):
        assert isinstance(found["Name"], str)
        assert re.fullmatch(r"1\.10\.\d+", found["BIDSVersion"])
        assert found["DatasetType"] == "derivative"
        made_by = found["GeneratedBy"]  # required of derivatives, of each its Name
        assert made_by[0]["Name"] == "nsdcap"
        assert made_by[0]["Version"] == __version__
        assert set(made_by[0]) <= {"Name", "Version", "Description", "CodeURL", "Container"}
        assert isinstance(found["HowToAcknowledge"], str)
        assert {type(link) for link in found["ReferencesAndLinks"]} == {str}
    source = found["SourceDatasets"][0]
    assert source["DOI"] == "doi:10.1038/s41593-021-00962-x"
    assert "SourceDatasets" not in written  # it is drawn
    assert "artificial" in written["Name"]


@pytest.mark.parametrize("junk", ["", "{", "[1]", "\udcff", "[" * 100_000])
def test_a_description_that_is_junk_is_named_and_left(tmp_path, junk):
    path = tmp_path / description.NAME
    path.write_bytes(junk.encode(errors="surrogateescape"))
    with pytest.raises(UsageError, match=r"dataset_description\.json: found no JSON object"):
        description.write(tmp_path, config.Config())
    assert path.read_bytes() == junk.encode(errors="surrogateescape")


def test_words_that_someone_added_stay(tmp_path):
    description.write(tmp_path, config.Config())
    path = tmp_path / description.NAME
    there = json.loads(path.read_text())
    path.write_text(json.dumps({**there, "Name": "ours", "Authors": ["A. B."], "GeneratedBy": []}))
    description.write(tmp_path, config.Config())
    assert json.loads(path.read_text()) == {**there, "Name": "ours", "Authors": ["A. B."]}
    written = path.stat().st_mtime_ns
    time.sleep(0.01)
    description.write(tmp_path, config.Config())
    assert path.stat().st_mtime_ns == written
