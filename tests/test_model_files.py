"""Models as files: what a run binds, what makes it stale, and the SHA-256 that its results carry."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_blip import originals_names, random_blip, write_vocabulary

from nsdcap import config, containers, launch, miniature
from nsdcap.cells import Ledger, run_cell
from nsdcap.config import Models
from nsdcap.cost import Costs
from nsdcap.errors import DataError, UsageError
from nsdcap.model_files import weights_sha256
from nsdcap.options import absolute
from nsdcap.paths import Cell, sidecar
from nsdcap.preflight import preflight
from nsdcap.site import Site
from nsdcap.stages import encode_states

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


def test_a_run_with_a_checkpoint_file_carries_its_sha256(settings, checkpoint, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
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
    assert "blip_tokenizer/vocab.txt" in kept["depends"]["files"]

    def reason() -> str:
        return Ledger(settings(), out).state(Cell("features")).reason

    assert Ledger(settings(), out).state(Cell("features")).word == "done"
    os.utime(checkpoint[1] / "vocab.txt", (1, 1))
    assert reason() == "file blip_tokenizer/vocab.txt has changed"
    os.utime(checkpoint[0], (1, 1))
    assert reason() == "file blip/model_base.pth has changed"


def test_sizes_and_costs_are_those_of_the_checkpoint(settings, tmp_path):
    assert encode_states(settings()) == (0, 1, 2)
    costs = Costs(Ledger(settings(), tmp_path / "out"))
    assert costs.models.z_v == 17 * 128
    assert costs.of(Cell("features", 1)).memory_bytes > 0
    with pytest.raises(DataError, match=r"from 0 .embeddings. to 2"):
        encode_states(settings("encode.states=[3]"))


def test_an_image_is_given_the_file_and_the_tokenizer(settings, checkpoint, tmp_path, monkeypatch):
    ledger = Ledger(settings(), tmp_path / "out")
    site = Site(image="/images/nsdcap.sif")
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
    assert "model_base.pth': no checkpoint; download it anew" in capsys.readouterr().err


def test_of_a_folder_the_files_that_are_read_count(tmp_path):
    folder = tmp_path / "clip"
    (folder / "inner").mkdir(parents=True)
    for name in ("model.safetensors", "pytorch_model.bin", "inner/pytorch_model.bin", "a.json"):
        (folder / name).write_text(name)
    found = weights_sha256(Models(clip=str(folder)), ["clip"])
    assert found == {
        f"clip/{name}": sha256(folder / name)
        for name in ("model.safetensors", "inner/pytorch_model.bin")
    }
    (folder / "model.safetensors").write_text("another text")
    assert weights_sha256(Models(clip=str(folder)), ["clip"])["clip/model.safetensors"] == sha256(
        folder / "model.safetensors"
    )


def test_of_a_hub_id_those_in_the_cache(tmp_path):
    """The cache's own layout, in a process of its own: its place is read when it is imported."""
    repository = tmp_path / "hub/models--some--clip"
    (snapshot := repository / "snapshots/0123abc").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("0123abc")
    (snapshot / "model.safetensors").write_text("weights")
    code = (
        "from nsdcap.model_files import weights_sha256; from nsdcap.config import Models\n"
        "print(weights_sha256(Models(clip='some/clip'), ['clip']))"
    )
    places = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **places},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == str(
        {"clip/model.safetensors": sha256(snapshot / "model.safetensors")}
    )


def test_a_file_can_be_bound_into_an_image(tiny_image, checkpoint):
    """Where the image has nothing of that name: not even its folder."""
    bind = ("--bind", f"{checkpoint[0]}:/models/of/blip/base.pth:ro")
    done = subprocess.run(
        tiny_image.argv("sha256sum", "/models/of/blip/base.pth", options=bind),
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.split()[:1] == [sha256(checkpoint[0])], done.stderr
