"""The command line, on a small tree: plan, run, skip, stale, force, fail; exit codes and messages."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import pytest

from nsdcap import config, launch, miniature, options, status
from nsdcap.cells import Ledger
from nsdcap.paths import Cell, artefact, sidecar


@pytest.fixture
def command(tiny_tree, tmp_path):
    """Arguments for a run of prepare on the tiny tree, and its folder."""
    out = tmp_path / "out"
    arguments = ["--nsd-root", str(tiny_tree), "--out", str(out), "--subjects", "1"]
    places = [*miniature.places(tiny_tree), "data.sessions=2"]
    for setting in places:
        if not setting.startswith("data.nsd_root"):
            arguments += ["--set", setting]
    return arguments, out


def test_plan_writes_nothing_and_names_every_cell(command, capsys):
    arguments, out = command
    assert launch.main([*arguments, "--dry-run", "--layers", "0", "6"]) == 0
    text = capsys.readouterr().out
    for name in (
        "prepare subj01",
        "features subj01",
        "encode subj01 layers 00, 06 (2)",
        "aggregate",
    ):
        assert name in text
    assert re.search(r"GPU-hours; .* written, at most .* of memory", text)
    assert "not computed yet" in text
    assert "voxels" in text
    assert not out.exists()


def test_plan_of_the_miniature_before_it_is_made(tmp_path, capsys):
    assert launch.main(["--dry-run", "--out", str(tmp_path / "out")]) == 0
    text = capsys.readouterr().out
    assert "encode subj07 layer06: run" in text
    assert "62 cells would run" in text
    assert not (tmp_path / "out").exists()


def test_done_is_skipped_and_a_setting_makes_it_stale(command, capsys):
    arguments, out = command
    stage = [*arguments, "--stage", "prepare"]
    assert launch.main(stage) == 0
    made = artefact(out, Cell("prepare", 1))
    first = made.stat().st_mtime_ns
    assert launch.main(stage) == 0
    assert made.stat().st_mtime_ns == first
    assert "1 of 1 cells done, 1 of them before" in capsys.readouterr().out
    assert launch.main([*stage, "--force"]) == 0
    assert made.stat().st_mtime_ns > first

    capsys.readouterr()
    changed = [*stage, "--set", "data.zscore_sessions=true"]
    assert launch.main([*changed, "--dry-run"]) == 0
    assert "setting data.zscore_sessions was false, is true" in capsys.readouterr().out
    second = made.stat().st_mtime_ns
    assert launch.main([*stage, "--set", "models.batch=3"]) == 0  # changes speed, not results
    assert made.stat().st_mtime_ns == second
    assert launch.main(changed) == 0
    with h5py.File(made) as file:
        assert file.attrs["zscored_sessions"]


def test_a_changed_data_file_makes_its_cells_stale(tree_copy, tmp_path):
    settings = config.load(
        settings=(*miniature.places(tree_copy), "data.sessions=2", "data.subjects=[1, 2]")
    )
    ledger = Ledger(settings, tmp_path / "out")
    before = {
        cell: ledger.depends(cell)["signature"] for cell in options.chosen_cells("all", settings)
    }
    file = ledger.nsd.betas_file(2, 1)
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content)
    again = Ledger(settings, tmp_path / "out")
    changed = {str(c) for c in before if again.depends(c)["signature"] != before[c]}
    assert {"prepare subj02", "decode subj02", "encode subj02", "encode subj02 layer03"} <= changed
    assert {"prepare subj01", "decode subj01", "features", "features subj02"}.isdisjoint(changed)


def test_all_sessions_are_as_many_as_there_are(tree_copy, tmp_path):
    def made_from(sessions):
        places = [*miniature.places(tree_copy), "data.subjects=[1, 2]", f"data.sessions={sessions}"]
        ledger = Ledger(config.load(settings=tuple(places)), tmp_path / "out")
        cells = (Cell("prepare", 1), Cell("prepare", 2), Cell("features"))
        return [ledger.depends(cell)["signature"] for cell in cells]

    assert made_from(0) == made_from(2)
    config_of_one = made_from(1)
    for file in tree_copy.rglob("subj01/**/betas_session02.*"):
        file.unlink()
    fewer = made_from(0)
    assert fewer[0] == config_of_one[0]
    assert fewer[1:] == made_from_both(tree_copy, tmp_path)


def made_from_both(tree: Path, tmp_path: Path) -> list[str]:
    """Signatures of subject 2's and the shared cell with two sessions."""
    places = [*miniature.places(tree), "data.subjects=[2]", "data.sessions=2"]
    ledger = Ledger(config.load(settings=tuple(places)), tmp_path / "out")
    return [ledger.depends(cell)["signature"] for cell in (Cell("prepare", 2), Cell("features"))]


def test_local_executor_runs_the_same_function(command):
    arguments, out = command
    assert launch.main([*arguments, "--stage", "prepare"]) == 0
    inline = artefact(out, Cell("prepare", 1)).read_bytes()
    assert launch.main([*arguments, "--stage", "prepare", "--force", "--executor", "local"]) == 0
    assert artefact(out, Cell("prepare", 1)).read_bytes() == inline


def test_inputs_that_are_missing_are_named(command, capsys):
    arguments, out = command
    assert launch.main([*arguments, "--stage", "decode"]) == 75
    assert "needs 3 cells that are not done: prepare subj01" in capsys.readouterr().err
    assert not artefact(out, Cell("decode", 1)).exists()


@pytest.mark.parametrize("executor", ["inline", "local"])
def test_a_failed_cell_leaves_nothing_half_written(command, tmp_path, capsys, executor):
    """A broken file of a model: only its small files and headers are read before a cell begins."""
    arguments, out = command
    blip = shutil.copytree(miniature.MODELS / "blip", tmp_path / "blip")
    (blip / "processor_config.json").write_text("{broken")
    stage = [*arguments, "--stage", "features", "--executor", executor]
    assert launch.main([*stage, "--set", f"models.blip={str(blip)!r}"]) == 65
    said = capsys.readouterr().err
    assert "features: FAILED" in said
    assert f"models.blip = {str(blip)!r}" in said
    assert not artefact(out, Cell("features")).exists()
    assert not list((out / "features").glob(".*partial"))
    assert status.main([str(out)]) == 75
    assert "failed  features" in capsys.readouterr().out


def test_status_tells_and_exits_75_until_all_is_done(command, capsys):
    arguments, out = command
    assert launch.main([*arguments, "--stage", "prepare"]) == 0
    capsys.readouterr()
    assert status.main([str(out), "--all"]) == 75
    text = capsys.readouterr().out
    assert "done    prepare subj01" in text
    assert "missing decode subj01: not computed yet" in text
    kept = json.loads(sidecar(out, Cell("prepare", 1)).read_text())
    assert kept["depends"]["settings"]["data.sessions"] == 2


@pytest.mark.parametrize(
    ("extra", "code", "words"),
    [
        (["--set", "decode.gian=cv"], 2, "did you mean decode.gain"),
        (["--image", "x.sif", "--executor", "local"], 65, "x.sif: No such file"),
        (["--image", "x.sif"], 2, "add --executor local"),
        (["--image", "oras://host/nsdcap:1", "--executor", "local"], 2, "pull it first"),
        (["--executor", "slurm", "--site", "/no/such.toml"], 2, "/no/such.toml"),
        (["--subjects", "9"], 2, "from 1 to 8"),
        (["--subjects", "3"], 65, "subject 3"),
        (["--layers", "7"], 65, "from 0 (embeddings) to 6"),
        (["--set", "data.sessions=3"], 65, "betas of session 3"),
        (["--set", "models.blip='/no/such/folder'"], 65, "models.blip"),
        (["--nsd-root", "/no/such"], 65, "no folder nsddata/"),
        (["--set", "models.blip=''"], 65, "models.blip is empty"),
        (["--config", "/no/such.toml"], 2, "cannot be read"),
    ],
)
def test_bad_input_is_one_sentence_before_any_work(command, capsys, extra, code, words):
    arguments, out = command
    assert launch.main([*arguments, *extra]) == code
    said = capsys.readouterr().err.strip()
    assert words in said
    assert len(said.splitlines()) == 1
    assert not out.exists()


def test_a_folder_that_cannot_be_written_is_refused_first(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "out"):
        assert launch.main(["--out", str(out)]) == 2
        assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("config.toml", True), ("lock.json", True), ("dataset_description.json", True),
        ("prepare/subj01.h5", True), ("prepare/subj01.h5.done.json", True),
        ("prepare/subj01.h5.failed.txt", True), ("aggregate.done.json", True),
        ("prepare", False), ("aggregate", False), ("log", False), ("jobs", False),
    ],
)  # fmt: skip
def test_a_folder_in_the_place_of_a_file_is_named_and_nothing_written(
    command, capsys, name, folder
):
    """And a file in that of a folder, by launch, its plan and status."""
    arguments, out = command
    path = out / name
    if folder:
        path.mkdir(parents=True)
        (path / "kept").write_text("ours")
    else:
        out.mkdir()
        path.write_text("ours")
    before = sorted(out.rglob("*"))
    for run in (
        lambda: launch.main([*arguments, "--stage", "prepare"]),
        lambda: launch.main([*arguments, "--stage", "prepare", "--dry-run"]),
        lambda: launch.main(["--out", str(out)]),  # the miniature's, which would be made first
        lambda: status.main([str(out)]),
    ):
        assert run() == 2
        said = capsys.readouterr().err.strip()
        assert f"{path}: found a {'folder' if folder else 'file'}" in said
        assert len(said.splitlines()) == 1
    assert sorted(out.rglob("*")) == before


def test_a_description_that_is_junk_is_refused_before_any_work(command, capsys):
    arguments, out = command
    out.mkdir()
    (out / "dataset_description.json").write_text("ours")
    assert launch.main([*arguments, "--stage", "prepare"]) == 2
    assert "dataset_description.json: found no JSON object" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["dataset_description.json"]


def test_usage_errors_of_the_parser_exit_2(capsys):
    with pytest.raises(SystemExit) as stop:
        launch.main(["--stage", "decoding"])
    assert stop.value.code == 2
    assert launch.main(["--config", "x.toml"]) == 2
    assert "--out" in capsys.readouterr().err
    assert status.main(["/no/such/folder"]) == 2


def test_help_and_import_load_nothing_heavy():
    for code in (
        "import nsdcap, nsdcap.launch, nsdcap.status, nsdcap.cancel",
        "import nsdcap.options as l; l.build_parser()",
    ):
        probe = f"{code}; import sys; print([m for m in sys.modules if m in {HEAVY}])"
        found = subprocess.run(
            [sys.executable, "-c", probe], capture_output=True, text=True, check=True
        )
        assert found.stdout.strip() == "[]"


HEAVY = {"torch", "numpy", "h5py", "transformers", "diffusers", "scipy", "rich", "submitit"}


def test_every_stage_names_a_function_that_exists():
    import importlib

    from nsdcap.stages import STAGES

    for stage in STAGES.values():
        module, name = stage.function.split(":")
        assert callable(getattr(importlib.import_module(module), name))


def test_readme_names_only_files_and_options_that_exist():
    root = Path(launch.__file__).resolve().parents[1]
    text = (root / "README.md").read_text()
    for script in ("hpc/run-miniature", "hpc/run-tests"):
        assert f"./{script}" in text
        assert (root / script).stat().st_mode & 0o111
    shown = options.build_parser().format_help()
    for line in re.findall(r"python -m nsdcap\.launch[^`]*?(?:\n\n|```|$)", text, re.M):
        for option in re.findall(
            r"--[a-z][a-z-]+", line.split("nsdcap.status")[0].split("nsdcap.plots")[0]
        ):
            assert option in shown, option


def test_a_task_that_is_queued_again_ends_even_where_its_exit_is_lost():
    """Python drops what a signal's handler raises while an object is being deleted."""
    code = (
        "import time\n"
        "from nsdcap import launch\n"
        "launch.END_SECONDS = 0.2\n"
        "launch.CellTask().checkpoint('out', 'prepare', 1, None)\n"
        "time.sleep(60)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=30).returncode == 255
