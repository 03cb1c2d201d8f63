"""Weights that jobs load: held against their lock, looked for before any work, and named in signatures."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hub_server import Repo, commit_of, serving

from nsdcap import config, containers, launch, miniature, model_files, status, weights
from nsdcap.cells import Ledger
from nsdcap.errors import DataError
from nsdcap.paths import Cell, artefact, failure
from nsdcap.site import Site

ROOT = Path(__file__).resolve().parents[1]
VAE = "diffusion/vae/diffusion_pytorch_model.safetensors"


@pytest.fixture
def models(tmp_path):
    """The miniature's models in a folder with a lock, written here by itself."""
    root = tmp_path / "models"
    for name in ("blip", "diffusion", "clip"):
        shutil.copytree(miniature.MODELS / name, root / name)
    rows = {
        path.relative_to(root).as_posix(): {
            "repo": "lab/x", "revision": "0" * 40, "file": path.name, "size": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "licence": "mit",
        }
        for path in root.rglob("*") if path.is_file()
    }  # fmt: skip
    (root / weights.LOCK).write_text(json.dumps({"format": 1, "files": rows}))
    return root


@pytest.fixture
def arguments(tiny_tree, tmp_path):
    """Arguments of a run of subject 1 on the tiny tree, with these models."""

    def made(**where: str | Path) -> list[str]:
        found = ["--nsd-root", str(tiny_tree), "--out", str(tmp_path / "out"), "--subjects", "1"]
        named = {name: miniature.MODELS / name for name in ("blip", "diffusion", "clip")} | where
        settings = [f"models.{name}={str(path)!r}" for name, path in named.items()]
        return found + [word for text in (*settings, "data.sessions=2") for word in ("--set", text)]

    return made


def change_a_byte(file: Path) -> None:
    """Another byte in place of one, with size and time of writing as they were."""
    stat, content = file.stat(), bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_a_folder_is_held_against_its_lock(models):
    for name in ("blip", "diffusion", "clip"):
        weights.verify(name, str(models / name))
    good = (models / VAE).read_bytes()
    change_a_byte(models / VAE)
    weights.verify("models.diffusion", str(models / "diffusion"), contents=False)  # sizes alone
    weights.verify("models.clip", str(models / "clip"))  # the others are as they were
    with pytest.raises(DataError) as error:
        weights.verify("models.diffusion", str(models / "diffusion"))
    said = str(error.value)
    assert "models.diffusion" in said
    assert (
        f"{models / VAE}: found SHA-256 {hashlib.sha256((models / VAE).read_bytes()).hexdigest()}"
        in said
    )
    assert f"the lock expects {hashlib.sha256(good).hexdigest()}" in said
    assert f"python hpc/prefetch.py {models}" in said
    (models / VAE).write_bytes(good)
    weights.verify("models.diffusion", str(models / "diffusion"))

    def refused(words: str) -> None:
        with pytest.raises(DataError, match=words):
            weights.verify("models.diffusion", str(models / "diffusion"), contents=False)

    (models / VAE).write_bytes(good[:-1])
    refused(f"found {len(good) - 1} bytes, the lock expects {len(good)}")
    (models / VAE).unlink()
    refused("No such file or directory, the lock expects")
    (models / VAE).write_bytes(good)
    (models / "diffusion/unet/model.bin").touch()
    refused(r"unet/model\.bin: it is not in")
    (models / "diffusion/unet/model.bin").unlink()
    (models / "diffusion/.DS_Store").touch()
    weights.verify("models.diffusion", str(models / "diffusion"))
    (models / weights.LOCK).write_text("[]")
    refused("cannot be read as a lock of weights")


def test_without_a_lock_or_an_entry_in_it_nothing_is_asked(models, tmp_path):
    shutil.copytree(models / "clip", models / "mine")
    change_a_byte(models / "mine/model.safetensors")
    weights.verify("models.clip", str(models / "mine"))
    weights.verify("models.clip", str(miniature.MODELS / "clip"))
    weights.verify("models.clip", "openai/clip-vit-base-patch32")


def test_a_file_is_hashed_once_and_again_when_it_was_touched(models, monkeypatch):
    hashed: list[str] = []
    plain = model_files.sha256
    monkeypatch.setattr(model_files, "sha256", lambda path: hashed.append(path.name) or plain(path))
    for _ in range(3):
        weights.verify("models.clip", str(models / "clip"))
    count = sum(1 for path in (models / "clip").rglob("*") if path.is_file())
    assert len(hashed) == count
    (models / "clip/config.json").touch()
    weights.verify("models.clip", str(models / "clip"))
    assert hashed[count:] == ["config.json"]
    # the lock is another one: what was remembered is of no use
    rows = json.loads((models / weights.LOCK).read_text())
    rows["files"]["clip/config.json"]["sha256"] = "0" * 64
    (models / weights.LOCK).write_text(json.dumps(rows))
    with pytest.raises(DataError, match="expects 0000"):
        weights.verify("models.clip", str(models / "clip"))


def test_a_single_file_and_a_folder_with_its_own_lock(tmp_path):
    content = b"weights of BLIP's own code"
    row = {"repo": "https://x/b.pth", "revision": "", "file": "b.pth", "size": len(content),
           "sha256": hashlib.sha256(content).hexdigest(), "licence": "bsd-3-clause"}  # fmt: skip
    for lock, name in ((tmp_path / "m", "blip/b.pth"), (tmp_path / "n/blip", "b.pth")):
        file = lock / name
        file.parent.mkdir(parents=True)
        file.write_bytes(content)
        (lock / weights.LOCK).write_text(json.dumps({"format": 1, "files": {name: row}}))
        weights.verify("models.blip", str(file))
        assert weights.missing("blip", str(file)) == ""
        change_a_byte(file)
        with pytest.raises(DataError, match=r"b\.pth: found SHA-256"):
            weights.verify("models.blip", str(file))
        file.unlink()
        assert "there is no such file; mend the setting, or fetch the weights" in weights.missing(
            "blip", str(file)
        )


def test_a_cell_and_a_launch_refuse_what_is_not_in_the_lock(models, arguments, tmp_path, capsys):
    where = {name: models / name for name in ("blip", "diffusion", "clip")}
    change_a_byte(models / VAE)
    for more in ([], ["--executor", "local"], ["--stage", "reconstruct"]):
        assert launch.main([*arguments(**where), *more]) == 65
        said = capsys.readouterr().err.strip()
        assert len(said.splitlines()) == 1
        assert f"{models / VAE}: found SHA-256" in said
    out = tmp_path / "out"
    assert not out.exists()
    assert launch.main([*arguments(**where), "--stage", "prepare"]) == 0  # which loads no model

    ledger = Ledger(config.load(out / "config.toml"), out)
    with pytest.raises(DataError, match=r"hpc/prefetch\.py"):
        ledger.run(Cell("features"))
    assert "found SHA-256" in failure(out, Cell("features")).read_text()
    assert not artefact(out, Cell("features")).exists()


@pytest.mark.parametrize(
    ("model", "broken", "stages"),
    [
        ("diffusion", "unet/diffusion_pytorch_model.safetensors", {"features", "reconstruct"}),
        ("clip", "model.safetensors", {"caption", "reconstruct"}),
        ("blip", "model.safetensors", {"features", "caption"}),
        ("diffusion", "", {"features", "reconstruct"}),
    ],
)
def test_only_models_that_the_stages_load_are_asked_for(
    arguments, tmp_path, capsys, model, broken, stages
):
    folder = tmp_path / "mine" / model
    shutil.copytree(miniature.MODELS / model, folder)
    if broken:
        (folder / broken).unlink()
    else:
        shutil.rmtree(folder)
    for stage in ("features", "caption", "reconstruct", "encode", "prepare", "all"):
        words = [*arguments(**{model: folder}), "--stage", stage, "--dry-run"]
        wrong = stage in stages or stage == "all"
        assert launch.main(words) == (65 if wrong else 0)
        said = capsys.readouterr().err.strip()
        if wrong:
            assert len(said.splitlines()) == 1
            assert f"models.{model} = {str(folder)!r}: " in said
            assert said.endswith("python hpc/prefetch.py FOLDER")
    assert not (tmp_path / "out").exists()


def test_hub_ids_off_line_are_told_before_any_work(arguments, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    words = arguments(diffusion="lab/sd")
    for more in ([], ["--executor", "local"], ["--dry-run"]):
        assert launch.main([*words, *more]) == 65
        said = capsys.readouterr().err.strip()
        assert "python hpc/prefetch.py FOLDER --models sd=lab/sd" in said
        assert len(said.splitlines()) == 1
    # a snapshot that holds only what the launcher read of it is none
    place = tmp_path / "hf/hub/models--lab--clip"
    (place / "refs").mkdir(parents=True)
    (place / "refs/main").write_text("0" * 40)
    (place / "snapshots" / ("0" * 40)).mkdir(parents=True)
    (place / "snapshots" / ("0" * 40) / "config.json").write_text("{}")
    assert launch.main(arguments(clip="lab/clip")) == 65
    assert "clip=lab/clip" in capsys.readouterr().err
    # in an image there is a cache only if it is named
    image = tmp_path / "x.sif"
    image.write_bytes(bytes(32) + b"SIF_MAGIC" + bytes(87))
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.delenv("HF_HOME")
    in_image = [*words, "--executor", "local", "--image", str(image), "--dry-run"]
    assert launch.main(in_image) == 2
    assert "tasks in an image are off-line" in capsys.readouterr().err
    monkeypatch.setenv("APPTAINERENV_HF_HUB_OFFLINE", "0")
    assert launch.main(in_image) == 0


def test_tasks_see_the_lock_and_are_off_line(models, tiny_tree, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    places = [f"models.{name}={str(models / name)!r}" for name in ("blip", "diffusion", "clip")]
    settings = (*miniature.places(tiny_tree), *places, "data.sessions=2", "data.subjects=[1]")
    ledger = Ledger(config.load(settings=settings), tmp_path / "out")
    site = Site(image="/x.sif", cache="/hf")
    words = containers.command(ledger, site, threads=1, gpus=0)
    binds = [words[i + 1] for i, word in enumerate(words) if word == "--bind"]
    assert str(models) in binds
    assert "HF_HOME=/hf" in words
    assert "HF_HUB_CACHE=/hf/hub" in words
    words = containers.command(ledger, replace(site, image=""), threads=1, gpus=0)
    assert "HF_HUB_OFFLINE=1" in words
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    words = containers.command(ledger, replace(site, image=""), threads=1, gpus=0)
    assert "HF_HUB_OFFLINE=0" in words


def test_who_asks_of_a_run_looks_into_the_cache_of_its_tasks(arguments, tmp_path, monkeypatch):
    """A site's cache is not in the environment of whoever runs status later."""
    home, out, commit = tmp_path / "hf", tmp_path / "out", commit_of("one")
    place = home / "hub/models--lab--sd"
    shutil.copytree(miniature.MODELS / "diffusion", place / "snapshots" / commit)
    (place / "refs").mkdir()
    (place / "refs/main").write_text(commit)
    site = tmp_path / "site.toml"
    site.write_text(f"cache = {str(home)!r}")
    for name in ("HF_HOME", "HF_HUB_CACHE"):  # set in this process by both, and put back at the end
        monkeypatch.setenv(name, str(tmp_path / "none"))
    words = [*arguments(diffusion="lab/sd"), "--stage", "prepare", "--executor", "local"]
    assert launch.main([*words, "--site", str(site)]) == 0
    for name in ("HF_HOME", "HF_HUB_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    assert (
        "diffusion snapshot"
        not in Ledger(config.load(out / "config.toml"), out).depends(Cell("features"))["files"]
    )
    depends = status.open_run(out).depends(Cell("features"))
    assert depends["files"]["diffusion snapshot"] == commit


def test_hub_ids_are_fetched_once_and_their_commit_is_in_the_signature(arguments, tmp_path):
    """By the real library; what is loaded is the commit that was fetched, whatever the hub has by then."""
    commit, later = commit_of("one"), commit_of("two")
    out = tmp_path / "out"
    with serving() as hub:
        for name in ("blip", "diffusion"):
            folder = tmp_path / "served" / name
            shutil.copytree(miniature.MODELS / name, folder)
            (folder / "pytorch_model.bin").write_bytes(b"the same again")
            hub.repos[f"lab/{name}"] = Repo({commit: folder}, commit)
        words = [*arguments(blip="lab/blip", diffusion="lab/diffusion"), "--stage", "features"]
        words += ["--set", "reconstruct.coarse_size=40", "--set", "models.picture_size=64"]
        words += ["--set", "data.sessions=1", "--set", "caption.beams=1"]

        def run(*more: str, **variables: str) -> str:
            env = {**hub.environment(tmp_path / "hf"), "PYTHONPATH": str(ROOT), **variables}
            line = [sys.executable, "-m", *(more or ("nsdcap.launch", *words))]
            done = subprocess.run(line, env=env, capture_output=True, text=True)
            return done.stdout + done.stderr[-3000:]

        said = run("nsdcap.launch", *words, "--dry-run")
        assert "note: models.diffusion = 'lab/diffusion' would be fetched" in said
        assert "model.safetensors" not in hub.got()
        said = run()
        assert "2 of 2 cells done, 0 of them before" in said
        assert "model.safetensors" in hub.got()
        assert "pytorch_model.bin" not in hub.got()
        kept = json.loads((out / "features/shared.h5.done.json").read_text())["depends"]
        assert kept["files"]["blip snapshot"] == commit
        assert kept["files"]["diffusion snapshot"] == commit

        for repo in hub.repos.values():
            repo.commits[later], repo.head = repo.commits[commit], later
        asked = len(hub.asked)
        assert "2 of 2 cells done, 2 of them before" in run()
        assert "done    features subj01" in run("nsdcap.status", str(out), "--all")
        assert len(hub.asked) == asked
        again = run("nsdcap.launch", *words, "--force", HF_HUB_OFFLINE="1")
        assert "2 of 2 cells done, 0 of them before" in again
        assert len(hub.asked) == asked
        probe = (
            "from huggingface_hub import try_to_load_from_cache as found; from nsdcap import weights; "
            "print(found('lab/blip', 'config.json') == str(weights.snapshot('lab/blip') / 'config.json'))"
        )
        assert run_code(probe, hub.environment(tmp_path / "hf")) == "True"


def run_code(code: str, env: dict[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**env, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    return done.stdout.strip() + done.stderr


def test_a_folder_that_holds_a_checkpoint_names_it(tmp_path):
    (tmp_path / "blip").mkdir()
    (tmp_path / "blip/model_base.pth").touch()
    said = weights.missing("blip", str(tmp_path / "blip"))
    assert said.endswith(
        f"that folder holds model_base.pth; give the file, {tmp_path}/blip/model_base.pth"
    )
