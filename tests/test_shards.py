"""Pictures shared out over two processes (gloo, on the CPU): the same bytes as by one, also after kills."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
from processes import gone, workers
from small_runs import times, without

from nsdcap import config, features, launch, miniature, parts, shards
from nsdcap.errors import UsageError
from nsdcap.parts import keep
from nsdcap.paths import Cell, artefact, parts_folder, sidecar, write_json

FEATURES = Cell("features")
pytestmark = pytest.mark.usefixtures("one_thread")


def started(arguments: list[str], cell: Cell, out: Path, **how) -> subprocess.Popen:
    """A cell by two processes, as the README has it."""
    words = [*arguments, "--stage", cell.stage, "--out", str(out), "--processes", "2"]
    with (out / "said.txt").open("wb") as said:
        return subprocess.Popen(
            [sys.executable, "-m", "nsdcap.launch", *words], stdout=said, stderr=said, **how
        )


def until(condition, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.parametrize(
    "cell", [FEATURES, Cell("features", 1), Cell("caption", 1), Cell("reconstruct", 1)], ids=str
)
def test_two_processes_give_the_bytes_of_one(small_run, tmp_path, cell):
    arguments, done = small_run
    out = without(cell, done, tmp_path / "out")
    process = started(arguments, cell, out)
    assert process.wait(300) == 0, (out / "said.txt").read_text()
    assert artefact(out, cell).read_bytes() == artefact(done, cell).read_bytes()
    told = (out / "said.txt").read_text()
    assert {f"process {number} of 2" in told for number in (1, 2)} == {True}
    assert not parts_folder(out, cell).exists()
    memory = json.loads(sidecar(out, cell).read_text())["memory"]
    assert len(memory["shares_bytes"]) == 2
    assert min(memory["shares_bytes"]) > 1e8  # torch alone takes that


def test_a_machine_whose_own_name_is_unknown(small_run, tmp_path, monkeypatch):
    """As compute nodes and laptops often are; the processes meet all the same. This one, which puts the parts
    together, loads no model."""
    arguments, done = small_run
    out = without(FEATURES, done, tmp_path / "out")
    monkeypatch.setattr(socket, "getfqdn", lambda *_: "no-such-host.invalid")
    for name in ("Blip", "Diffusion"):
        monkeypatch.setattr(features, name, None)
    words = [*arguments, "--stage", "features", "--out", str(out), "--processes", "2"]
    assert launch.main(words) == 0
    assert artefact(out, FEATURES).read_bytes() == artefact(done, FEATURES).read_bytes()


def test_ctrl_c_ends_all_at_once(small_run, tmp_path):
    arguments, done = small_run
    out = without(FEATURES, done, tmp_path / "out")
    heed = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    process = started(arguments, FEATURES, out, start_new_session=True, preexec_fn=heed)
    until(lambda: len(times(FEATURES, out)) >= 1)
    both = workers(process.pid)
    start = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    assert process.wait(60) == 130
    assert time.monotonic() - start < 15
    assert all(map(gone, both))
    told = (out / "said.txt").read_text()
    assert told.splitlines()[-1].startswith("nsdcap: stopped; the same command goes on")
    assert "Traceback" not in told


def test_a_process_that_is_killed_ends_the_others_and_nothing_is_done_again(
    small_run, tmp_path, monkeypatch, capsys
):
    arguments, done = small_run
    out = without(FEATURES, done, tmp_path / "out")
    process = started(arguments, FEATURES, out)
    until(lambda: len(times(FEATURES, out)) >= 2)
    both = workers(process.pid)
    assert len(both) == 2
    os.kill(both[1], signal.SIGKILL)
    assert process.wait(60) == 1
    told = (out / "said.txt").read_text()
    assert "FAILED" in told
    assert "Traceback" not in told
    assert re.search(r"process \d of 2 was ended: .*SIGKILL", told)
    assert all(map(gone, both))
    kept = times(FEATURES, out)
    assert len(kept) >= 2
    other = Path(shutil.copytree(out, tmp_path / "other batch"))
    # the rest by one process, which says after how many parts
    words = [*arguments, "--stage", "features", "--out", str(out)]
    done_by_one = subprocess.run(
        [sys.executable, "-m", "nsdcap.launch", *words], capture_output=True, text=True
    )
    assert f"{FEATURES}: goes on after {len(kept)} finished parts" in done_by_one.stdout
    assert artefact(out, FEATURES).read_bytes() == artefact(done, FEATURES).read_bytes()

    # or with another batch: the parts of the old one are of no use
    at_end: list[str] = []
    forget = parts.forget
    monkeypatch.setattr(
        parts, "forget", lambda *a: (at_end.extend(times(FEATURES, other)), forget(*a))
    )
    words = [*arguments, "--stage", "features", "--set", "models.batch=40"]
    assert launch.main([*words, "--out", str(other)]) == 0
    assert "goes on" not in capsys.readouterr().out
    with (
        h5py.File(artefact(other, FEATURES)) as found,
        h5py.File(artefact(done, FEATURES)) as whole,
    ):
        total = len(whole["nsd_id"])
        assert set(at_end) == {f"{n}-{min(n + 40, total)}.part" for n in range(0, total, 40)}
        assert found["caption"][:].tolist() == whole["caption"][:].tolist()
        for name in ("z_v", "z_B", "z", "c"):
            np.testing.assert_allclose(found[name][:], whole[name][:], atol=1e-4)


def test_parts_that_serve_are_counted_and_others_thrown_away(tmp_path, capsys):
    work = {name: partial(dict, x=number) for number, name in enumerate(("0-8", "8-16", "16-20"))}
    for name in ("0-4", "4-8", "16-20", "0-16"):
        keep(tmp_path, FEATURES, name, {"x": 7})
    assert [int(found["x"]) for found in shards.in_order(tmp_path, FEATURES, work)] == [0, 1, 7]
    assert f"{FEATURES}: goes on after 1 finished parts" in capsys.readouterr().out
    assert set(times(FEATURES, tmp_path)) == {f"{name}.part" for name in work}


def test_who_kills_the_cell_kills_its_processes_and_two_go_on(small_run, tmp_path):
    arguments, done = small_run
    out = without(FEATURES, done, tmp_path / "out")
    process = started(arguments, FEATURES, out)
    until(lambda: len(times(FEATURES, out)) >= 1)
    both = workers(process.pid)
    process.kill()
    process.wait()
    until(lambda: all(map(gone, both)), 20)
    kept = times(FEATURES, out)
    again = started(arguments, FEATURES, out)
    seen: dict[str, int] = {}
    while again.poll() is None:
        seen |= {name: when for name, when in times(FEATURES, out).items() if name in kept}
        time.sleep(0.01)
    assert again.returncode == 0, (out / "said.txt").read_text()
    assert seen == kept  # none was written again
    assert artefact(out, FEATURES).read_bytes() == artefact(done, FEATURES).read_bytes()


def test_what_is_wrong_is_told_once_as_by_one_process(small_run, tmp_path, capsys):
    """Both processes find that out; theirs is the message of the one that began them."""
    arguments, done = small_run
    out = without(FEATURES, done, tmp_path / "out")
    other = str(miniature.MODELS / "clip")  # a model, and no captioner
    wrong = [*arguments, "--set", f"models.blip={other!r}", "--stage", "features"]
    said = []
    for extra in (["--processes", "2"], []):
        code = launch.main([*wrong, "--out", str(out), *extra])
        said.append((code, re.sub(r"see \S+", "", capsys.readouterr().err)))
    assert said[0] == said[1]
    assert said[0][0] == 65
    assert f"models.blip = {other!r}" in said[0][1]
    assert not sidecar(out, FEATURES).exists()


def test_gaps_and_doubles_are_refused(tmp_path):
    def tell(*done: list[str], missing: tuple[str, ...] = ("a", "b", "c")) -> None:
        for number, mine in enumerate(done):
            file = parts_folder(tmp_path, FEATURES) / f"process{number}.json"
            write_json(file, {"missing": list(missing), "mine": mine})

    for name in ("a", "b", "c"):
        keep(tmp_path, FEATURES, name, {"x": 1})
    tell(["a", "c"], ["b"])
    shards._check(tmp_path, FEATURES, 2)
    tell(["a", "b"], ["b", "c"])
    with pytest.raises(RuntimeError, match="1 were done twice"):
        shards._check(tmp_path, FEATURES, 2)
    tell(["a"], ["b"])
    with pytest.raises(RuntimeError):
        shards._check(tmp_path, FEATURES, 2)
    tell(["a", "c"], ["b", "d"], missing=("a", "b", "c", "d"))
    with pytest.raises(RuntimeError, match="of 4 parts 1 are missing"):
        shards._check(tmp_path, FEATURES, 2)


def test_processes_are_refused_where_they_make_no_sense(tmp_path, capsys):
    for words, said in (
        (["--processes", "0"], "--processes: found 0, expected at least 1"),
        (["--processes", "2", "--executor", "slurm"], "set gpus of its stage in the site file"),
    ):
        assert launch.main(["--out", str(tmp_path / "out"), *words]) == 2
        assert said in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_one_of_several_processes_is_told_how_it_is_done(tmp_path, capsys, monkeypatch):
    """accelerate launch and torchrun start the same command several times."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert launch.main(["--out", str(tmp_path / "out")]) == 2
    assert "start the launcher by itself, with --processes 2" in capsys.readouterr().err


def test_more_processes_than_gpus_are_refused(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for device in ("auto", "cuda"):
        settings = config.load(settings=(f"models.device={device}",))
        shards._check_gpus(settings, 2)
        with pytest.raises(UsageError, match="3 processes, one a GPU: 2 GPUs are visible"):
            shards._check_gpus(settings, 3)
    with pytest.raises(UsageError, match="'cuda:1'"):
        shards._check_gpus(config.load(settings=("models.device=cuda:1",)), 2)
