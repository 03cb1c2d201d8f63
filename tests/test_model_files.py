"""Models as files: what a run binds, what makes it stale, and the SHA-256 that its results carry."""

import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from small_blip import originals_names, random_blip, write_vocabulary
from transformers import CLIPModel

from nsdcap import config, containers, launch, miniature, model_files, weights
from nsdcap.cells import Ledger, run_cell
from nsdcap.config import Models
from nsdcap.cost import Costs
from nsdcap.diffusion import Diffusion
from nsdcap.errors import DataError, UsageError
from nsdcap.headers import ENDS
from nsdcap.metrics.peers import BACKBONES
from nsdcap.options import absolute
from nsdcap.paths import Cell, parts_folder, sidecar
from nsdcap.preflight import preflight
from nsdcap.score import Clip
from nsdcap.site import Site
from nsdcap.stages import encode_layers

LOADING = (Cell("features"), Cell("caption", 1), Cell("reconstruct", 1))  # every model


def sha256(path: Path) -> str:
    """By coreutils."""
    return subprocess.run(["sha256sum", path], capture_output=True, text=True).stdout.split()[0]


@pytest.fixture
def checkpoint(tmp_path):
    """A checkpoint of BLIP's own code and its tokenizer's folder."""
    file = tmp_path / "weights" / "model_base.pth"
    file.parent.mkdir()
    torch.save({"model": originals_names(random_blip())}, file)
    return file, write_vocabulary(tmp_path / "bert")


@pytest.fixture
def settings(tiny_tree, checkpoint):
    file, words = checkpoint

    def load(*more: str):
        places = (*miniature.places(tiny_tree), "data.sessions=2", "data.subjects=[1]")
        blip = (f"models.blip={str(file)!r}", f"models.blip_tokenizer={str(words)!r}")
        return config.load(settings=(*places, *blip, *more))

    return load


def test_a_run_with_a_checkpoint_file_carries_its_sha256(
    settings, checkpoint, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    out.mkdir()
    begun, plain = [], model_files.sha256

    def watched(path: Path) -> str:
        begun.append(parts_folder(out, Cell("features")).exists())
        return plain(path)

    monkeypatch.setattr(model_files, "sha256", watched)
    (out / "config.toml").write_text(config.dump(settings()))
    assert run_cell(str(out), "features", None, None, False) == "done"
    kept = json.loads(sidecar(out, Cell("features")).read_text())
    assert kept["weights_sha256"]["blip/model_base.pth"] == sha256(checkpoint[0])
    diffusion = miniature.MODELS / "diffusion"
    names = {"blip/model_base.pth"}
    for path in diffusion.rglob("*.safetensors"):
        name = f"diffusion/{path.relative_to(diffusion)}"
        names.add(name)
        assert kept["weights_sha256"][name] == sha256(path)
    assert set(kept["weights_sha256"]) == names
    assert begun
    assert not any(begun)  # all of what the cell was about to read
    assert "blip_tokenizer/vocab.txt" in kept["depends"]["files"]

    def reason() -> str:
        return Ledger(settings(), out).state(Cell("features")).reason

    assert Ledger(settings(), out).state(Cell("features")).word == "done"
    os.utime(checkpoint[1] / "vocab.txt", (1, 1))
    os.utime(checkpoint[0], (1, 1))
    assert reason() == ""  # the same, at another time
    with (checkpoint[1] / "vocab.txt").open("a") as file:
        file.write("another\n")
    assert reason() == "file blip_tokenizer/vocab.txt holds something else than before"
    with checkpoint[0].open("rb+") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"?")
    assert reason().startswith("file blip/model_base.pth holds something else than before; file b")


def test_sizes_and_costs_are_those_of_the_checkpoint(settings, tmp_path):
    assert encode_layers(settings()) == (0, 1, 2)
    costs = Costs(Ledger(settings(), tmp_path / "out"))
    assert costs.models.z_v == 17 * 128
    assert costs.of(Cell("features", 1)).memory_bytes > 0
    with pytest.raises(DataError, match=r"from 0 .embeddings. to 2"):
        encode_layers(settings("encode.layers=[3]"))


def test_an_image_is_given_the_file_and_the_tokenizer(settings, checkpoint, tmp_path, monkeypatch):
    ledger = Ledger(settings(), tmp_path / "out")
    (image := tmp_path / "nsdcap.sif").write_bytes((bytes(32) + b"SIF_MAGIC").ljust(256, b"\0"))
    site = Site(image=str(image))
    words = containers.command(ledger, site, threads=1, gpus=None)
    bound = [words[n + 1] for n, word in enumerate(words) if word == "--bind"]
    assert {str(checkpoint[0]), str(checkpoint[1])} <= set(bound)
    monkeypatch.delenv("HF_HOME", raising=False)
    preflight(settings(), LOADING, site)  # all is at hand
    hub = settings("models.blip_tokenizer=bert-base-uncased")
    with pytest.raises(UsageError, match=r"models\.blip_tokenizer = 'bert-base-uncased'.*off-line"):
        preflight(hub, LOADING, site)


def test_paths_are_made_absolute_and_what_is_not_there_is_named(settings, checkpoint, monkeypatch):
    monkeypatch.chdir(checkpoint[0].parent)
    given = absolute(settings("models.blip=model_base.pth", "models.blip_tokenizer=../bert"))
    assert given.models.blip == str(checkpoint[0])
    assert Path(given.models.blip_tokenizer).samefile(checkpoint[1])
    preflight(given, LOADING)
    for setting, said in (
        ("models.blip=other.pth", r"models\.blip = 'other\.pth': there is no such file"),
        ("models.blip=/nowhere/x.pth", r"models\.blip = '/nowhere/x\.pth': there is no such file"),
        ("models.blip_tokenizer=/nowhere", r"models\.blip_tokenizer.*no such folder"),
        (f"models.clip={checkpoint[0]}", r"models\.clip.*no such folder"),
    ):
        with pytest.raises(DataError, match=said):
            preflight(settings(setting), LOADING)
    with pytest.raises(UsageError, match=r"models\.blip_tokenizer is empty"):
        preflight(settings("models.blip_tokenizer="), LOADING)


def test_a_dry_run_refuses_a_broken_checkpoint(settings, checkpoint, tiny_tree, tmp_path, capsys):
    checkpoint[0].write_text("<html>not found</html>")
    file = tmp_path / "my.toml"
    file.write_text(config.dump(settings()))
    done = launch.main(["--config", str(file), "--out", str(tmp_path / "out"), "--dry-run"])
    assert done == 65
    assert "model_base.pth': cannot be read as a checkpoint" in capsys.readouterr().err


def test_backbones_are_bound_made_absolute_and_held_against_a_lock(settings, tmp_path, monkeypatch):
    """The folder of a run's scoring networks is a model's as any other, before any work."""
    root, scored = tmp_path / "models", (Cell("compare", 1),)
    folder = root / "nets"
    folder.mkdir(parents=True)
    file = folder / BACKBONES["alexnet"].file
    torch.save(
        {name: torch.zeros(1).expand(shape) for name, shape in ENDS["alexnet"].items()}, file
    )
    good = file.read_bytes()
    monkeypatch.chdir(root)
    given = absolute(settings("models.backbones=nets"))
    assert given.models.backbones == str(folder)

    def bound() -> list[str]:
        ledger = Ledger(given, tmp_path / "out")
        words = containers.command(ledger, Site(image="/x.sif"), threads=1, gpus=None)
        return [words[n + 1] for n, word in enumerate(words) if word == "--bind"]

    assert str(folder) in bound()
    entry = {"repo": "x", "revision": "", "licence": "", "file": file.name}
    entry["size"] = len(good)
    lock = {"files": {f"nets/{file.name}": {**entry, "sha256": sha256(file)}}}
    (root / weights.LOCK).write_text(json.dumps(lock))
    assert str(root) in bound()  # with the lock
    preflight(given, scored)
    file.write_bytes(good[::-1])
    with pytest.raises(DataError, match=r"models\.backbones = .*found SHA-256"):
        preflight(given, scored)
    preflight(given, (Cell("decode", 1),))  # which reads no network
    file.write_bytes(good)
    (folder / "another.pth").write_bytes(b"mine")
    with pytest.raises(DataError, match=r"another\.pth: it is not in .*move it elsewhere"):
        preflight(given, scored)


def hashes(**places: Path) -> dict[str, str]:
    models = Models(**{name: str(place) for name, place in places.items()})
    return weights.weights_sha256(replace(config.Config(), models=models), places)


@pytest.mark.parametrize("whole", [True, False], ids=["whole beside parts", "parts"])
def test_of_a_folder_the_files_that_are_read_count(tmp_path, whole):
    """Those, of all that lie there, whose damage is told as the classes load."""
    for name in ("clip", "diffusion"):
        shutil.copytree(miniature.MODELS / name, tmp_path / name)
    clip, diffusion = tmp_path / "clip", tmp_path / "diffusion"
    shutil.copytree(diffusion / "text_encoder", diffusion / "safety_checker")
    parted = ((UNet2DConditionModel, diffusion / "unet", "3MB"), (CLIPModel, clip, "1MB"))
    for kind, folder, size in parted:
        (file,) = folder.glob("*.safetensors")
        content = file.read_bytes()
        kind.from_pretrained(folder).save_pretrained(folder, max_shard_size=size)
        assert list(folder.glob("*-00001-of-*"))
        if whole:
            file.write_bytes(content)
        else:
            file.unlink(missing_ok=True)
    for file in list(tmp_path.rglob("*.safetensors")):
        if "-of-" not in file.name:
            shutil.copy(file, file.with_suffix(".fp16.safetensors"))
        file.with_name("pytorch_model.bin").write_bytes(b"the same in another format")
    settings = config.Reconstruct(coarse_size=64, size=64)
    read = {
        f"clip/{name}" for name in damaged(clip, lambda: Clip(Models(clip=str(clip), device="cpu")))
    }
    models = Models(diffusion=str(diffusion), device="cpu")
    read |= {
        f"diffusion/{name}" for name in damaged(diffusion, lambda: Diffusion(models, settings))
    }
    found = hashes(clip=clip, diffusion=diffusion)
    assert set(found) == read
    assert {name: sha256(tmp_path / name) for name in found} == found
    (clip / "config.json").unlink()
    (file := tmp_path / next(iter(found))).write_bytes(b"another text")
    assert hashes(clip=clip)[next(iter(found))] == sha256(file)


def damaged(folder: Path, load) -> set[str]:
    """Files of weights without which ``load`` fails."""
    load()
    found = set()
    for file in [f for f in folder.rglob("*") if f.suffix in (".safetensors", ".bin")]:
        content = file.read_bytes()
        file.write_bytes(b"damaged")
        try:
            load()
        except DataError:
            found.add(file.relative_to(folder).as_posix())
        file.write_bytes(content)
    return found


def test_a_lock_is_not_read_for_nothing(tmp_path, monkeypatch):
    """What it says is taken, and of what it does not name each file is read once."""
    for name in ("clip", "blip"):
        shutil.copytree(miniature.MODELS / name, tmp_path / name)
    entry = {"repo": "x", "revision": "", "licence": ""}
    lock = {
        f"clip/{path.name}": {
            **entry, "file": path.name, "size": path.stat().st_size, "sha256": sha256(path)
        }
        for path in (tmp_path / "clip").iterdir()
    }  # fmt: skip
    (tmp_path / weights.LOCK).write_text(json.dumps({"files": lock}))
    weights.verify("models.clip", str(tmp_path / "clip"))
    hashed: list[str] = []
    plain = model_files.sha256
    monkeypatch.setattr(model_files, "sha256", lambda path: hashed.append(str(path)) or plain(path))
    for _ in range(2):
        found = hashes(clip=tmp_path / "clip", blip=tmp_path / "blip")
    assert hashed == [str(tmp_path / "blip/model.safetensors")]
    assert found == {
        f"{name}/model.safetensors": sha256(tmp_path / name / "model.safetensors")
        for name in ("clip", "blip")
    }


def test_what_links_in_a_models_folder_lead_to_is_bound(settings, tmp_path):
    """As in the hub's cache, of a single file, of a whole folder, and of one that leads nowhere."""
    cached, nets, linked = (tmp_path / name for name in ("hub/snapshots/0", "nets", "linked"))
    shutil.copytree(miniature.MODELS / "clip", tmp_path / "hub/blobs")
    shutil.copytree(miniature.MODELS / "diffusion", tmp_path / "real/diffusion")
    for folder in (cached, nets, tmp_path / "torch"):
        folder.mkdir(parents=True)
    for file in (tmp_path / "hub/blobs").iterdir():
        (cached / file.name).symlink_to(f"../../blobs/{file.name}")
    (tmp_path / "torch/one.pth").write_bytes(b"one")
    (nets / "one.pth").symlink_to(tmp_path / "torch/one.pth")
    (nets / "lost.pth").symlink_to(tmp_path / "gone/lost.pth")
    linked.symlink_to(tmp_path / "real/diffusion")
    places = {"clip": cached, "backbones": nets, "diffusion": linked}
    given = settings(*(f"models.{name}={str(place)!r}" for name, place in places.items()))
    words = containers.command(
        Ledger(given, tmp_path / "out"), Site(image="/x.sif"), threads=1, gpus=None
    )
    bound = [words[n + 1] for n, word in enumerate(words) if word == "--bind"]
    expected = {"hub/blobs", "hub/snapshots/0", "nets", "torch", "linked", "real/diffusion"}
    assert {str(tmp_path / name) for name in expected} <= set(bound)
    assert str(tmp_path / "gone") not in bound


def test_a_file_can_be_bound_into_an_image(tiny_image, checkpoint):
    """Where the image has nothing of that name: not even its folder."""
    bind = ("--bind", f"{checkpoint[0]}:/models/of/blip/base.pth:ro")
    done = subprocess.run(
        tiny_image.argv("sha256sum", "/models/of/blip/base.pth", options=bind),
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.split()[:1] == [sha256(checkpoint[0])], done.stderr
