"""The stage that scores reconstructions, on pictures written here; and what makes its cells stale."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from skimage.color import rgb2gray
from skimage.metrics import structural_similarity

from nsdcap import compare, config, launch, miniature
from nsdcap.cells import Ledger
from nsdcap.metrics.peers import BACKBONE_METRICS, BACKBONES
from nsdcap.paths import Cell, artefact, parts_folder
from nsdcap.stages import STAGES
from nsdcap.weights import weights_sha256

CELL, N, SIDE, SAMPLES = Cell("compare", 1), 4, 24, 2


@pytest.fixture
def painted(tmp_path):
    """A run's folder with what the reconstruct stage writes; the arms differ in noise."""
    rng = np.random.default_rng(0)
    path = artefact(tmp_path, Cell("reconstruct", 1))
    path.parent.mkdir()
    shown = np.stack(
        [
            np.asarray(Image.fromarray(x).resize((SIDE, SIDE)))
            for x in rng.integers(0, 256, (N, 4, 4, 3), dtype=np.uint8)
        ]
    )
    with h5py.File(path, "w") as file:
        file["nsd_id"], file["shown"] = [5, 7, 9, 2], shown
        for arm, level in (("caption", 20), ("direct", 60), ("coarse", 150)):
            one = shown if arm == "coarse" else np.repeat(shown[:, None], SAMPLES, 1)
            noise = rng.normal(0, level, one.shape)
            file[arm] = np.clip(one + noise, 0, 255).astype(np.uint8)
    return tmp_path


def large(picture: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(picture).resize((425, 425), Image.Resampling.BILINEAR))


def test_pixels_equal_plain_loops_at_peers_size(painted, monkeypatch):
    monkeypatch.setattr(
        compare, "BLOCK", 2
    )  # so that a third picture is not the first of its block
    settings = config.load()
    target = painted / "out.h5"
    compare.run(CELL, settings, None, painted, target)
    with h5py.File(artefact(painted, Cell("reconstruct", 1))) as file:
        shown = [large(x) for x in file["shown"]]
        made = {
            arm: file[arm][:].reshape(N, -1, SIDE, SIDE, 3)
            for arm in ("caption", "direct", "coarse")
        }
    given = {
        "gaussian_weights": True,
        "sigma": 1.5,
        "use_sample_covariance": False,
        "data_range": 1.0,
    }
    with h5py.File(target) as file:
        assert file["nsd_id"][:].tolist() == [5, 7, 9, 2]
        for arm, pictures in made.items():
            seen = [[large(x) for x in some] for some in pictures]
            r = [
                [np.corrcoef(x.ravel(), shown[i].ravel())[0, 1] for x in seen[i]] for i in range(N)
            ]
            s = [
                [structural_similarity(rgb2gray(shown[i]), rgb2gray(x), **given) for x in seen[i]]
                for i in range(N)
            ]
            np.testing.assert_allclose(file[f"{arm}/pixcorr"], r, atol=1e-6)
            np.testing.assert_allclose(file[f"{arm}/ssim"], s, atol=1e-6)
            others = [
                np.corrcoef(seen[i][0].ravel(), shown[(i + 1) % N].ravel())[0, 1] for i in (0, 3)
            ]
            assert file[f"{arm}/pixcorr"].attrs["chance"] == pytest.approx(
                np.mean(others), abs=1e-6
            )
        for key in ("pixcorr", "ssim"):
            means = [file[f"{arm}/{key}"][:].mean() for arm in ("caption", "direct", "coarse")]
            assert means == sorted(means, reverse=True)
            assert means[0] > file[f"caption/{key}"].attrs["chance"]
        why = json.loads(file.attrs["not_computed"])
    assert set(why) == {metric.key for some in BACKBONE_METRICS.values() for metric in some}
    assert set(why.values()) == {"no folder of weights was given (models.backbones)"}


def test_a_stopped_cell_goes_on_after_its_finished_blocks(painted, monkeypatch):
    monkeypatch.setattr(compare, "BLOCK", 1)
    done: list[slice] = []
    real = compare.pixel_scores

    def stopped(*arguments):
        done.append(arguments[2])
        if len(done) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(compare, "why_no_ssim", lambda: "scikit-image cannot be imported (no)")
    monkeypatch.setattr(compare, "pixel_scores", stopped)
    with pytest.raises(KeyboardInterrupt):
        compare.run(CELL, config.load(), None, painted, painted / "out.h5")
    assert [path.name for path in parts_folder(painted, CELL).glob("*.part")] == [
        "pixcorr-0-1.part"
    ]
    compare.run(CELL, config.load(), None, painted, painted / "out.h5")
    assert [rows.start for rows in done] == [0, 1, 1, 2, 3]
    with h5py.File(painted / "out.h5") as file:
        assert np.isfinite(file["caption/pixcorr"][:]).all()
        assert "caption/ssim" not in file
        assert json.loads(file.attrs["not_computed"])["ssim"].startswith("scikit-image cannot")


def test_weights_of_networks_are_looked_for_and_make_cells_stale(tiny_tree, tmp_path, capsys):
    weights = tmp_path / "weights"
    named = [
        f"models.{name}={str(miniature.MODELS / name)!r}" for name in ("blip", "diffusion", "clip")
    ]
    words = [
        "--nsd-root",
        str(tiny_tree),
        "--out",
        str(tmp_path / "out"),
        "--subjects",
        "1",
        "--dry-run",
    ]
    words += [word for text in (*named, "data.sessions=2") for word in ("--set", text)]
    wanted = [*words, "--set", f"models.backbones={str(weights)!r}"]
    assert launch.main([*wanted, "--stage", "decode"]) == 0  # which needs none
    assert launch.main(wanted) == 65
    said = capsys.readouterr().err.strip()
    assert said.count("\n") == 0
    assert f"models.backbones = {str(weights)!r}: there is no such folder" in said
    weights.mkdir()
    assert launch.main(wanted) == 0

    def signatures(folder: Path | None) -> dict[str, str]:
        more = [f"models.backbones={str(folder)!r}"] if folder else []
        place = f"data.nsd_root={str(tiny_tree)!r}"
        ledger = Ledger(
            config.load(settings=(place, *named, "data.subjects=[1]", "data.sessions=2", *more)),
            tmp_path,
        )
        return {
            stage: ledger.depends(Cell(stage, 1))["signature"]
            for stage in ("reconstruct", "compare")
        }

    none, empty = signatures(None), signatures(weights)
    (weights / BACKBONES["alexnet"].file).write_bytes(b"one")
    filled = signatures(weights)
    assert none["reconstruct"] == empty["reconstruct"] == filled["reconstruct"]  # hours of a GPU
    assert len({none["compare"], empty["compare"], filled["compare"]}) == 3

    (weights / "model_base.pth").write_bytes(b"no network of these")
    settings = config.load(settings=(f"models.backbones={str(weights)!r}",))
    expected = {f"backbones/{BACKBONES['alexnet'].file}": hashlib.sha256(b"one").hexdigest()}
    assert weights_sha256(settings, STAGES["compare"].weights) == expected
    assert weights_sha256(config.load(), STAGES["compare"].weights) == {}
