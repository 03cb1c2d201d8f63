"""The stages that load models, beside what a plain run gave: in half precision, with a checkpoint of BLIP's
own code, with hub ids off-line."""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hub_server import commit_of
from small_blip import originals_names
from small_runs import without
from transformers import BlipConfig, BlipForConditionalGeneration

from nsdcap import (
    caption,
    cells,
    config,
    features,
    launch,
    miniature,
    parts,
    reconstruct,
    weights,
)
from nsdcap.cells import Ledger
from nsdcap.errors import DataError
from nsdcap.metrics.clip import COSINE
from nsdcap.paths import Cell, artefact, config_file, sidecar

pytestmark = pytest.mark.usefixtures("one_thread")

# mean error over the spread of the numbers
TOLERANCE = {"bfloat16": 0.03, "float16": 0.004}


@pytest.fixture
def half(small_run, tmp_path):
    """Run a stage of the small run in a dtype; gives the new artefact and the one in float32."""
    _, done = small_run
    full = config.load(config_file(done))

    def run(stage, cell: Cell, dtype: str) -> tuple[Path, Path]:
        settings = replace(full, models=replace(full.models, dtype=dtype))
        out = Path(shutil.copytree(done, tmp_path / "out"))
        stage.run(cell, settings, cells.open_nsd(settings), out, tmp_path / "new")
        return tmp_path / "new", artefact(done, cell)

    return run


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_features(half, dtype):
    new, full = half(features, Cell("features"), dtype)
    with h5py.File(new) as found, h5py.File(full) as expected:
        assert set(found) == set(expected)
        for name in ("z", "c"):  # in float32 whatever the dtype
            np.testing.assert_array_equal(found[name][:], expected[name][:])
        agree = found["caption"][:] == expected["caption"][:]
        assert agree.mean() >= {"bfloat16": 0.8, "float16": 0.95}[dtype]
        for name, rows in (("z_v", slice(None)), ("z_B", agree)):  # other words have other states
            ours, theirs = found[name][:][rows], expected[name][:][rows]
            assert ours.dtype == np.float32
            error = np.abs(ours - theirs).mean() / theirs.std()
            assert 0 < error < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_captions(half, dtype):
    new, full = half(caption, Cell("caption", 1), dtype)
    found, expected = (json.loads(file.read_text())["captions"] for file in (new, full))
    assert list(found) == list(expected)
    rows = [(found[key], expected[key]) for key in expected]
    assert np.mean([ours["brain"] == theirs["brain"] for ours, theirs in rows]) >= 0.8
    cosines = np.array([[one["clip"][COSINE]["nearest"] for one in pair] for pair in rows])
    errors = cosines[:, 0] - cosines[:, 1]
    assert 0 < np.abs(errors).max() < {"bfloat16": 0.01, "float16": 0.001}[dtype]


def test_reconstructions(half):
    """float16 takes minutes on a CPU, and is nearer to float32 than this."""
    new, full = half(reconstruct, Cell("reconstruct", 1), "bfloat16")
    with h5py.File(new) as found, h5py.File(full) as expected:
        for name in ("shown", "coarse"):
            np.testing.assert_array_equal(found[name][:], expected[name][:])
        for name in ("caption", "direct"):
            levels = np.abs(found[name][:].astype(int) - expected[name][:])
            assert 0 < levels.mean() < 0.1
            assert levels.max() <= 3
            cosine = (found[f"clip_{name}"][:] * expected[f"clip_{name}"][:]).sum(-1)
            assert cosine.min() > 0.999


def test_reconstructions_whose_parts_are_kept_need_no_model(small_run, tmp_path, monkeypatch):
    """As in the process that puts together what others painted; the name of CLIP is its folder's."""
    _, done = small_run
    cell, full = Cell("reconstruct", 1), config.load(config_file(done))
    out = without(cell, done, tmp_path / "out")
    with h5py.File(artefact(done, cell)) as expected:
        names = [name for name in expected if name != "nsd_id"]
        for start in range(0, n := len(expected["nsd_id"]), full.reconstruct.batch):
            stop = min(start + full.reconstruct.batch, n)
            rows = {name: expected[name][start:stop] for name in names}
            parts.keep(out, cell, f"{start}-{stop}", rows)
        for name in ("Diffusion", "Clip"):
            monkeypatch.setattr(reconstruct, name, None)
        reconstruct.run(cell, full, cells.open_nsd(full), out, tmp_path / "new")
        with h5py.File(tmp_path / "new") as found:
            assert set(found) == set(expected)
            for name in expected:
                np.testing.assert_array_equal(found[name][:], expected[name][:])
            assert found.attrs["clip"] == expected.attrs["clip"] == "CLIP ViT-3x128/8 (clip)"


# --- BLIP's own checkpoint ------------------------------------------------------------------------


@pytest.fixture
def captioners(tmp_path):
    """The miniature's captioner with BLIP's own heads and eps, which a checkpoint does not tell: as a Hugging
    Face folder, and as a checkpoint and a tokenizer with a lock."""
    settings = BlipConfig.from_pretrained(miniature.MODELS / "blip")
    settings.vision_config.num_attention_heads = settings.text_config.num_attention_heads = 2
    settings.vision_config.layer_norm_eps = 1e-6
    model = BlipForConditionalGeneration.from_pretrained(
        miniature.MODELS / "blip", config=settings, dtype=torch.float32
    )
    folder, root = tmp_path / "blip", tmp_path / "models"
    model.save_pretrained(folder)
    for name in ("bert", "base"):
        (root / name).mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(miniature.MODELS / "blip" / name, folder)
        shutil.copy(miniature.MODELS / "blip" / name, root / "bert")
    shutil.copy(miniature.MODELS / "blip/processor_config.json", folder)
    torch.save({"model": originals_names(model)}, root / "base/model_base.pth")
    rows = {
        path.relative_to(root).as_posix(): {
            "repo": "x", "revision": "", "file": path.name, "size": path.stat().st_size, "licence": "",
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in root.rglob("*.*")
    }  # fmt: skip
    (root / weights.LOCK).write_text(json.dumps({"format": 1, "files": rows}))
    return folder, root / "base/model_base.pth", root / "bert"


def test_a_checkpoint_with_a_lock_gives_what_the_folder_gives(small_run, captioners, tmp_path):
    folder, checkpoint, words = captioners
    _, done = small_run
    full = config.load(config_file(done))
    found = []
    for name, where in (("folder", folder), ("checkpoint", checkpoint)):
        models = replace(full.models, blip=str(where), blip_tokenizer=str(words))
        settings = replace(full, models=models)
        out = without(Cell("features"), done, tmp_path / name)
        assert Ledger(settings, out).run(Cell("features")) == "done"
        caption.run(
            Cell("caption", 1), settings, cells.open_nsd(full), out, tmp_path / f"{name}.json"
        )
        features_file = artefact(out, Cell("features"))
        found.append((features_file.read_bytes(), (tmp_path / f"{name}.json").read_bytes()))
    assert found[0] == found[1]
    with h5py.File(features_file) as file:
        assert len(set(file["caption"][:])) > 10
    kept = json.loads(sidecar(out, Cell("features")).read_text())["weights_sha256"]
    assert kept["blip/model_base.pth"] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    with checkpoint.open("rb+") as opened:
        opened.seek(1000)
        opened.write(b"?")
    with pytest.raises(DataError, match=r"model_base\.pth: found SHA-256"):
        Ledger(settings, out).run(Cell("features"), force=True)


# --- hub ids off-line -----------------------------------------------------------------------------


def test_hub_ids_off_line(small_run, tmp_path, monkeypatch, capsys):
    """What the cache holds is used, and nobody is asked; what it lacks is one error, of a cell too."""
    arguments, done = small_run
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setattr(socket.socket, "connect", None)
    out = without(Cell("caption", 1), done, tmp_path / "out")
    words = [*arguments, "--stage", "caption", "--set", "models.clip=lab/clip", "--out", str(out)]
    assert launch.main(words) == 65
    said = capsys.readouterr().err
    mend = "python hpc/prefetch.py FOLDER --models clip=lab/clip"
    assert mend in said
    assert len(said.splitlines()) == 1
    full = config.load(config_file(done))
    ledger = Ledger(replace(full, models=replace(full.models, clip="lab/clip")), out)
    with pytest.raises(DataError, match=mend):
        ledger.run(Cell("caption", 1))

    place = tmp_path / "hf/hub/models--lab--clip"
    shutil.copytree(miniature.MODELS / "clip", place / "snapshots" / commit_of("one"))
    (place / "refs").mkdir()
    (place / "refs/main").write_text(commit_of("one"))
    assert launch.main(words) == 0, capsys.readouterr().err
    cell = Cell("caption", 1)
    found, expected = (json.loads(artefact(run, cell).read_text()) for run in (out, done))
    assert found.pop("clip_model") == "CLIP ViT-3x128/8 (lab/clip)"
    assert expected.pop("clip_model") == "CLIP ViT-3x128/8 (clip)"
    assert found == expected
    kept = json.loads(sidecar(out, cell).read_text())
    assert kept["depends"]["files"]["clip snapshot"] == commit_of("one")
    weights_file = miniature.MODELS / "clip/model.safetensors"
    assert (
        kept["weights_sha256"]["clip/model.safetensors"]
        == hashlib.sha256(weights_file.read_bytes()).hexdigest()
    )
