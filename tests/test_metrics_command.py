"""``python -m nsdcap.metrics pictures`` without networks: what it scores, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nsdcap import miniature
from nsdcap.metrics.__main__ import main
from nsdcap.metrics.pictures import two_way_identification
from nsdcap.metrics.similarity import clip_similarity
from nsdcap.tables import SCORE_COLUMNS


@pytest.fixture
def folders(tmp_path):
    """Four shown pictures as PNG, and noisy ones as JPEG and PNG, of other sizes."""
    rng = np.random.default_rng(0)
    for name in ("made", "shown"):
        (tmp_path / name).mkdir()
    for i in range(4):
        picture = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((48, 48))
        picture.save(tmp_path / f"shown/{i}.png")
        noise = rng.normal(0, 40, (48, 48, 3))
        mixed = Image.fromarray(np.clip(np.asarray(picture) + noise, 0, 255).astype(np.uint8))
        mixed.resize((40 + i, 40)).save(tmp_path / f"made/{i}.{('png', 'jpg', 'JPEG')[i % 3]}")
    (tmp_path / "made/notes.txt").write_text("not a picture")
    return tmp_path / "made", tmp_path / "shown"


def test_scores_as_json_and_as_a_table(folders, capsys):
    made, shown = folders
    words = ["pictures", str(made), str(shown), "--device", "cpu"]
    assert main([*words, "--clip", str(miniature.MODELS / "clip"), "--json"]) == 0
    rows = {row["metric"]: row for row in json.loads(capsys.readouterr().out)}
    for name in ("CLIP similarity", "two-way among shown", "PixCorr", "SSIM"):
        row = rows[name]
        assert row["ci_low"] <= row["value"] <= row["ci_high"]
        assert row["value"] > row["chance_mean"]
        assert (row["n"], row["note"]) == (4, "")
    # as a run's tables and the command captions name them
    assert set(row) == {*SCORE_COLUMNS} - {"subject", "arm"}
    assert (rows["CLIP similarity"]["chance_sd"] > 0, rows["PixCorr"]["chance_sd"]) == (True, None)
    assert rows["CLIP similarity"]["n_shuffles"] == 1000
    assert "CLIP ViT-3x128/8" in rows["CLIP similarity"]["definition"]
    missing = [row for row in rows.values() if row["value"] is None]
    assert len(missing) == 8
    assert {row["note"] for row in missing} == {
        "not computed: no folder of weights was given (models.backbones)"
    }

    from nsdcap.config import Models
    from nsdcap.score import Clip

    clip = Clip(Models(clip=str(miniature.MODELS / "clip"), device="cpu"))
    embedded = [
        clip.pictures(
            [np.asarray(Image.open(p).convert("RGB")) for p in sorted(place.glob("[0-9]*"))]
        )
        for place in folders
    ]
    assert rows["CLIP similarity"]["value"] == pytest.approx(
        clip_similarity(*embedded).mean(), abs=1e-6
    )
    both = two_way_identification(*embedded)
    assert rows["two-way among predicted"]["value"] == pytest.approx(both.among_predicted.mean())

    assert main(words) == 0
    said = capsys.readouterr().out
    assert f"{rows['PixCorr']['value']:.4f}" in said
    assert "CLIP similarity, two-way among shown, two-way among predicted: not computed" in said


@pytest.mark.parametrize("what", ["captions", "pictures"])
def test_a_clip_that_is_not_there_is_told(folders, tmp_path, capsys, what):
    places = [str(folder) for folder in folders]
    if what == "captions":
        texts = {str(i): "a ball" for i in range(4)}
        files = [tmp_path / "hypotheses.json", tmp_path / "references.json"]
        for file, content in zip(files, (texts, {i: [t] for i, t in texts.items()}), strict=True):
            file.write_text(json.dumps(content))
        places = [*map(str, files), "--images", places[1]]
    assert main([what, *places, "--clip", "/nowhere/clip"]) == 65
    assert "models.clip = '/nowhere/clip': there is no such folder" in capsys.readouterr().err


def test_clip_goes_by_its_publishers_name(tmp_path):
    from transformers import CLIPConfig

    from nsdcap.config import Models
    from nsdcap.score import name_of

    for layers, width, patch, name in (
        (24, 1024, 14, "L/14"),
        (12, 768, 32, "B/32"),
        (3, 128, 8, "3x128/8"),
    ):
        vision = {"num_hidden_layers": layers, "hidden_size": width, "patch_size": patch}
        vision["num_attention_heads"] = width // 64
        CLIPConfig(vision_config=vision).save_pretrained(tmp_path / "mine")
        found = name_of(Models(clip=str(tmp_path / "mine")))
        assert found == f"CLIP ViT-{name} (mine)"
    for folder, name in (
        ("hub/models--lab--my-clip/snapshots/0123", "lab/my-clip"),
        ("snapshots/mine", "mine"),  # not of the hub's cache
    ):
        CLIPConfig(vision_config=vision).save_pretrained(tmp_path / folder)
        found = name_of(Models(clip=str(tmp_path / folder)))
        assert found == f"CLIP ViT-3x128/8 ({name})"


def lost(made: Path, shown: Path) -> None:
    (shown / "2.png").unlink()


def strange(made: Path, shown: Path) -> None:
    (shown / "9.png").write_bytes((shown / "1.png").read_bytes())


def empty(made: Path, shown: Path) -> None:
    for path in shown.iterdir():
        path.unlink()


def single(made: Path, shown: Path) -> None:
    for place in (made, shown):
        for path in place.glob("[1-9].*"):
            path.unlink()


def twice(made: Path, shown: Path) -> None:
    (shown / "1.jpg").write_bytes((shown / "1.png").read_bytes())


def broken(made: Path, shown: Path) -> None:
    content = (shown / "1.png").read_bytes()
    (shown / "1.png").write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
    ("harm", "code", "words"),
    [
        (
            lost,
            65,
            "shown: lacks 1 of 4 pictures of .*made: 2.JPEG; expected files of the same names",
        ),
        (strange, 65, "made: lacks 1 of 5 pictures of .*shown: 9.png"),
        (empty, 65, r"shown: found no pictures, expected files ending in \.png"),
        (single, 65, "made: found one picture, expected at least two"),
        (twice, 65, "shown: found 1.jpg and 1.png, expected one picture of a name"),
        (broken, 65, "shown/1.png: cannot be read as a picture .*; write it again"),
    ],
)
def test_wrong_folders_are_one_clear_error(folders, capsys, harm, code, words):
    import re

    harm(*folders)
    assert main(["pictures", *map(str, folders), "--json"]) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.strip().splitlines()) == 1
    assert re.search(words, said.err)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--backbones", "nowhere"], "--backbones nowhere: there is no such folder"),
        (["--clip", "/nowhere/clip", "--device", "cpu"], "/nowhere/clip"),
        (["--device", "tpu"], "found 'tpu', expected auto, cpu or cuda"),
    ],
)
def test_wrong_options_are_one_clear_error(folders, capsys, more, words):
    assert main(["pictures", *map(str, folders), *more]) in (2, 65)
    said = capsys.readouterr()
    assert words in said.err
    assert len(said.err.strip().splitlines()) == 1


def test_a_folder_that_is_not_there_and_the_module_as_a_command(folders, tmp_path):
    words = [
        sys.executable,
        "-m",
        "nsdcap.metrics",
        "pictures",
        str(tmp_path / "none"),
        str(folders[1]),
    ]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"{tmp_path / 'none'}: there is no such folder; give a folder of pictures" in done.stderr
    assert "Traceback" not in done.stderr
