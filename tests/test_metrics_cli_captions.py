"""``python -m nsdcap.metrics captions`` end to end, and CLIP's scores against loops."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sacrebleu
import torch
from PIL import Image

from nsdcap.metrics.__main__ import main
from nsdcap.metrics.clip import METRICS, clip_pairs
from nsdcap.miniature import MODELS
from nsdcap.tables import SCORE_COLUMNS

HYPOTHESES = {
    "7": "a red ball on the beach", "12": "a green kite in the snow", "x-1": "two cats", "3": "a boat",
}  # fmt: skip
REFERENCES = {
    "12": ["A green kite.", "There is a kite in deep snow"],
    "7": ["a ball lies on the beach", "A red ball.", "One sees a ball"],
    "3": ["a blue boat"],
    "x-1": ["A brown cat by the wall", "two cats by a wall"],
}


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    paths = tmp_path / "hypotheses.json", tmp_path / "references.json"
    for path, content in zip(paths, (HYPOTHESES, REFERENCES), strict=True):
        path.write_text(json.dumps(content))
    return str(paths[0]), str(paths[1])


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A picture for each id, of different sizes and kinds."""
    rng, folder = np.random.default_rng(0), tmp_path / "images"
    folder.mkdir()
    for k, name in enumerate(HYPOTHESES):
        pixels = rng.integers(0, 256, (40 + 9 * k, 64, 3), dtype=np.uint8)
        image = Image.fromarray(pixels)
        (image.convert("L") if k == 2 else image).save(folder / f"{name}.png")
    return folder


def loop(
    captions: list[str], references: list[list[str]], pictures: list[Image.Image]
) -> dict[str, list[float]]:
    """Hessel et al.'s code in words: one caption at a time, by transformers alone."""
    from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

    model = CLIPModel.from_pretrained(MODELS / "clip", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(MODELS / "clip")
    processor = CLIPImageProcessorPil.from_pretrained(MODELS / "clip")
    limit = model.config.text_config.max_position_embeddings

    def text(words: str) -> np.ndarray:
        given = tokenizer(
            words, padding="max_length", truncation=True, max_length=limit, return_tensors="pt"
        )
        x = model.text_projection(model.text_model(**given).pooler_output)[0].detach().numpy()
        return x / np.linalg.norm(x)

    found: dict[str, list[float]] = {metric: [] for metric in METRICS}
    for caption, refs, picture in zip(captions, references, pictures, strict=True):
        pixels = processor([picture.convert("RGB")], return_tensors="pt")["pixel_values"]
        seen = model.visual_projection(model.vision_model(pixels).pooler_output)[0].detach().numpy()
        seen = seen / np.linalg.norm(seen)
        own = text("A photo depicts " + caption)
        clip_s = 2.5 * max(float(own @ seen), 0.0)
        best = max(max(float(own @ text("A photo depicts " + ref)) for ref in refs), 0.0)
        both = 2 * clip_s * best / (clip_s + best) if clip_s + best > 0 else 0.0
        for metric, value in zip(METRICS, (float(text(caption) @ seen), clip_s, both), strict=True):
            found[metric].append(value)
    return found


def test_scores_of_files_and_pictures(files, images, capsys):
    model = str(MODELS / "clip")
    assert main(["captions", *files, "--json", "--images", str(images), "--clip", model]) == 0
    found = {score["metric"]: score for score in json.loads(capsys.readouterr().out)}
    captions, references = list(HYPOTHESES.values()), [REFERENCES[i] for i in HYPOTHESES]
    streams = [[refs[k] if k < len(refs) else None for refs in references] for k in range(3)]
    expected = sacrebleu.corpus_bleu(captions, streams).score
    assert found["BLEU-4 sacrebleu"]["value"] == pytest.approx(expected, abs=1e-9)
    pictures = [Image.open(images / f"{name}.png") for name in HYPOTHESES]
    for metric, values in loop(captions, references, pictures).items():
        score = found[metric]
        assert score["value"] == pytest.approx(np.mean(values), abs=1e-6)
        assert min(values) - 1e-6 <= score["ci_low"] <= score["ci_high"] <= max(values) + 1e-6
        assert score["definition"].endswith("ViT-B/32") or metric == "CLIP cosine"
        assert "by CLIP ViT-3x128/8 (clip)" in score["definition"]
    computed = shutil.which("java") is not None
    for metric in ("BLEU-4 coco", "METEOR", "ROUGE-L", "CIDEr"):
        assert (found[metric]["value"] is not None) == computed
        assert bool(found[metric]["note"]) != computed
    assert all(score["n"] == 4 for score in found.values())
    assert all(set(score) == {*SCORE_COLUMNS} - {"subject", "arm"} for score in found.values())


def test_pairs_are_the_loop_where_cosines_are_negative():
    rng = np.random.default_rng(2)
    known: dict[str, np.ndarray] = {}

    def embed(texts: list[str]) -> np.ndarray:
        for text in texts:
            known.setdefault(text, rng.standard_normal(5) - 0.3)
        x = np.array([known[text] for text in texts])
        return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)

    captions = [f"caption {i}" for i in range(9)]
    references = [[f"reference {i} {k}" for k in range(1 + i % 3)] for i in range(9)]
    shown = embed([f"picture {i}" for i in range(9)])
    found = clip_pairs(embed, {"own": captions}, shown, references)["own"]
    zeros = 0
    for i, caption in enumerate(captions):
        own = embed([f"A photo depicts {caption}"])[0]
        for j in range(9):
            clip_s = 2.5 * max(own @ shown[j], 0)
            best = max(0, *(own @ embed([f"A photo depicts {ref}"])[0] for ref in references[j]))
            both = 2 * clip_s * best / (clip_s + best) if clip_s + best else 0.0
            zeros += both == 0
            expected = (embed([caption])[0] @ shown[j], clip_s, both)
            assert [found[m][i, j] for m in METRICS] == pytest.approx(expected, abs=1e-6)
    assert 0 < zeros < 81


def test_the_table_says_what_is_not_computed(files):
    command = [sys.executable, "-m", "nsdcap.metrics", "captions", *files]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PATH": ""})
    assert done.returncode == 0, done.stderr
    said = done.stdout
    lines = {line[:16].strip(): line for line in said.splitlines()}
    assert "nrefs:var|case:mixed" in lines["BLEU-4 sacrebleu"]
    assert "not computed: needs Java" in lines["METEOR"]
    assert "CLIP-S" not in lines


@pytest.mark.parametrize(
    ("hypotheses", "references", "words"),
    [
        (None, REFERENCES, "hypotheses.json: does not exist"),
        ("{", REFERENCES, "hypotheses.json: found no JSON"),
        ('{"1": "a", "1": "b"}', REFERENCES, "1 stands there twice"),
        (["a cat"], REFERENCES, r'hypotheses.json: found \["a cat"\], expected an object'),
        (HYPOTHESES, HYPOTHESES, 'references.json: id 7: found "a red ball.*expected a list of texts'),
        (REFERENCES, REFERENCES, "hypotheses.json: id 12: found .*expected one text"),
        (HYPOTHESES, REFERENCES | {"3": []}, "references.json: id 3: found no reference"),
        (HYPOTHESES, REFERENCES | {"3": ["a", 5]}, "references.json: id 3: found .*list of texts"),
        (HYPOTHESES | {"8": "a", "9": "b"}, REFERENCES, "references.json lacks 2 of the 6 ids .*8, 9"),
        (HYPOTHESES, REFERENCES | {"8": ["a"]}, "hypotheses.json lacks 1 of the 5 ids .*: 8;"),
        ({}, {}, "found 0 captions, expected 2"),
        ({"3": "a boat"}, {"3": ["a boat"]}, "found 1 captions, expected 2"),
    ],
)  # fmt: skip
def test_what_cannot_be_scored_is_refused(tmp_path, capsys, hypotheses, references, words):
    names = ["hypotheses.json", "references.json"]
    for name, content in zip(names, (hypotheses, references), strict=True):
        if content is not None:
            text = content if isinstance(content, str) else json.dumps(content)
            (tmp_path / name).write_text(text)
    assert main(["captions", *(str(tmp_path / name) for name in names)]) in (2, 65)
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    assert re.search(words, said.err), said.err


def test_pictures_that_do_not_fit_are_refused(files, images, capsys):
    clip = ["--clip", str(MODELS / "clip")]
    assert main(["captions", *files, *clip]) == 2
    assert main(["captions", *files, "--images", "nowhere", *clip]) == 65
    (images / "7.png").unlink()
    (images / "3.jpg").write_bytes((images / "3.png").read_bytes())
    assert main(["captions", *files, "--images", str(images), *clip]) == 65
    said = capsys.readouterr().err.splitlines()
    assert "found one of --images and --clip" in said[0]
    assert "--images nowhere: is no folder" in said[1]
    assert "2 of 4 ids do not have one picture each" in said[2]
    assert said[2].endswith(": 7, 3")
