"""What a rating study reads of a run, with pictures whose colour tells whose they are; and plain raters."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import h5py
import numpy as np

from nsdcap.metrics.clip import METRICS
from nsdcap.paths import Cell, artefact, config_file, sidecar

SAMPLES = 3


def caption_of(subject: int, nsd_id: int, arm: str = "brain") -> str:
    return f"{arm} {subject} sees thing {nsd_id}"


def write_run(out: Path, subjects: tuple[int, ...] = (1, 2), n: int = 12, size: int = 24) -> Path:
    """Caption and reconstruct results of n pictures, the same of each subject.

    Red is the nsd_id, green 100 + sample in the caption arm's pictures, blue in the direct arm's.
    """
    out.mkdir(parents=True, exist_ok=True)
    config_file(out).write_text(f"[data]\nsubjects = {list(subjects)}\n")
    ids = np.arange(3, 3 + n)
    for subject in subjects:
        written, painted = Cell("caption", subject), Cell("reconstruct", subject)
        entries = {
            str(i): {
                "brain": caption_of(subject, i), "picture": caption_of(subject, i, "picture"),
                "references": [f"Words{chr(97 + i)}words of thing {i}.", "Another."],
                "clip": {metric: {"brain": 0.5, "picture": 0.6} for metric in METRICS},
            }
            for i in ids.tolist()
        }  # fmt: skip
        artefact(out, written).parent.mkdir(exist_ok=True)
        arms = ["brain", "picture"]
        chance = {metric: {arm: [0.2, 0.01] for arm in arms} for metric in METRICS}
        content = {
            "subject": subject, "arms": arms, "captions": entries, "clip_model": "a CLIP",
            "clip_shuffles": 1000, "clip_chance": chance,
        }  # fmt: skip
        artefact(out, written).write_text(json.dumps(content))
        artefact(out, painted).parent.mkdir(exist_ok=True)
        shown = np.zeros((n, size, size, 3), np.uint8)
        shown[..., 0] = ids[:, None, None]
        arms = np.repeat(shown[:, None], SAMPLES, 1)
        tint = 100 + np.arange(SAMPLES)[None, :, None, None]
        with h5py.File(artefact(out, painted), "w") as file:
            file["nsd_id"], file["shown"] = ids, shown
            for channel, arm in ((1, "caption"), (2, "direct")):
                arms[..., channel] = tint
                file[arm] = arms
                arms[..., channel] = 0
        for cell in (written, painted):
            signature = hashlib.sha256(f"{subjects} {n} {cell}".encode()).hexdigest()
            sidecar(out, cell).write_text(json.dumps({"depends": {"signature": signature}}))
    return out


def rater_file(
    folder: Path,
    rater: str,
    wrong: set[int] | None = None,
    caught: set[int] | None = None,
    **changed,
) -> bytes:
    """A rater's file as its format says, by the key: wrong in those trials of the key, right else."""
    key = json.loads((folder / "study.json").read_text())
    answers = []
    for k, asked in enumerate(key["raters"][rater]):
        miss = asked["trial"] in (wrong or set()) | (caught or set())
        choice = {"left": "right", "right": "left"}[asked["side"]] if miss else asked["side"]
        answers.append({"trial": asked["id"], "choice": choice, "ms": 900 + k, "at": time(k)})
    content = {
        "format": "nsdcap rating 1", "study": key["id"], "rater": rater, "begun": time(0),
        "finished": time(99), "answers": answers,
    } | changed  # fmt: skip
    return sealed(content)


def sealed(content: dict) -> bytes:
    """With the checksum that belongs to it."""
    text = f"{content['study']} {content['rater']} {content['begun']} {content['finished']}\n"
    for one in content["answers"]:
        text += f"{one['trial']} {one['choice']} {one['ms']} {one['at']}\n"
    return json.dumps(content | {"checksum": hashlib.sha256(text.encode()).hexdigest()}).encode()


def time(k: int) -> str:
    return f"2026-01-02T10:{k // 60:02d}:{k % 60:02d}.000Z"
