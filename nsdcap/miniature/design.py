"""Who sees what when in the miniature: NSD's design, its tables, and COCO's captions.

The arrays are as large as NSD's (40 sessions, 73,000 pictures, 8 subjects) and, as there, 1-based.
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io

from nsdcap.miniature.world import COLOUR_NAMES, KINDS, PLACES, Scene

TRIALS = 750  # a session
PICTURES, OWN, SHARED, REPEATS = 73000, 9000, 1000, 3


@dataclass(frozen=True)
class Shown:
    """The pictures that some subject sees: n of them, nsd_id increasing."""

    nsd_id: np.ndarray  # (n,) 0-based
    scenes: list[Scene]
    pictures: np.ndarray  # (n, 64, 64, 3) uint8
    captions: list[list[str]]


def make_design(rng: np.random.Generator, sessions: int) -> dict[str, np.ndarray]:
    """NSD's design (1-based, float64) with every picture's repeats gathered early.

    In NSD the three repeats of a picture lie up to 40 sessions apart; here most pictures of the
    first ``sessions`` sessions have all three in them, and some have one or two.
    """
    ids = rng.permutation(PICTURES) + 1
    subjectim = np.stack(
        [np.r_[ids[:SHARED], ids[SHARED + OWN * s : SHARED + OWN * (s + 1)]] for s in range(8)]
    )
    n_trials = sessions * TRIALS
    n_shared = min(SHARED, round(n_trials / 22.5))
    shared_trials = round(2.8 * n_shared)
    n_own = min(OWN, -(-(n_trials - shared_trials) * 1000 // 2897))
    left = np.full(SHARED + OWN, REPEATS)
    window = []
    for n, total, first, last in (
        (n_shared, shared_trials, 0, SHARED),
        (n_own, n_trials - shared_trials, SHARED, SHARED + OWN),
    ):
        repeats = np.full(n, REPEATS)
        short = REPEATS * n - total  # so many repeats fall outside
        once = round(0.3 * short)
        repeats[:once] = 1
        repeats[once : short - once] = 2
        chosen = rng.permutation(np.arange(first, last))[:n]
        left[chosen] -= repeats
        window.append(np.repeat(chosen, repeats))
    early = rng.permutation(np.concatenate(window))
    late = rng.permutation(np.repeat(np.arange(SHARED + OWN), left))
    order = np.concatenate([early, late])
    nth = _trial_numbers(order)  # (10000, 3)
    basiccnt = np.stack([np.bincount((nth[:, k] - 1) // TRIALS, minlength=40) for k in range(3)])
    stimpattern = np.zeros((40, 12, 75))
    for run, n in enumerate([63, 62] * 6):
        stimpattern[:, run, 3 : 3 + n] = 1
    return {
        "masterordering": order[None] + 1,
        "subjectim": subjectim,
        "sharedix": np.sort(ids[:SHARED])[None],
        "basiccnt": basiccnt,
        "stimpattern": stimpattern,
    }


def _trial_numbers(order: np.ndarray) -> np.ndarray:
    """(10000, 3): the 1-based trials at which each of a subject's pictures is shown."""
    return np.argsort(order, kind="stable").reshape(-1, REPEATS) + 1


def write_experiment(
    root: Path, design: dict[str, np.ndarray], rng: np.random.Generator, shown: Shown
) -> None:
    """nsd_expdesign.mat, nsd_stim_info_merged.csv, COCO's captions, and truth/scenes.json."""
    folder = root / "nsddata/experiments/nsd"
    folder.mkdir(parents=True, exist_ok=True)
    mat = folder / "nsd_expdesign.mat"
    values = {name: array.astype(np.float64) for name, array in design.items()}
    scipy.io.savemat(mat, values, do_compression=True)
    with mat.open("r+b") as file:  # the header holds the time of writing
        file.write(b"MATLAB 5.0 MAT-file, written by nsdcap.miniature".ljust(116))

    coco = np.sort(rng.choice(581_929, PICTURES, replace=False)) + 1
    split = np.where(rng.random(PICTURES) < 0.07, "val2017", "train2017")
    owner = np.zeros((PICTURES, 8), dtype=np.int64)
    repeats = np.zeros((PICTURES, 8, REPEATS), dtype=np.int64)
    trials = _trial_numbers(design["masterordering"][0])
    for s in range(8):
        owner[design["subjectim"][s] - 1, s] = 1
        repeats[design["subjectim"][s] - 1, s] = trials
    is_shared = np.isin(np.arange(PICTURES), design["sharedix"] - 1)
    table = np.concatenate([owner, repeats.reshape(PICTURES, -1)], axis=1).tolist()
    head = ["cocoId", "cocoSplit", "cropBox", "loss", "nsdId", "flagged", "BOLD5000", "shared1000"]
    head += [f"subject{s}" for s in range(1, 9)]
    head += [f"subject{s}_rep{m}" for s in range(1, 9) for m in range(REPEATS)]
    with (folder / "nsd_stim_info_merged.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["", *head])
        crop = "(0.0, 0.0, 0.0, 0.0)"
        for i, row in enumerate(table):
            start = [i, coco[i], split[i], crop, 0.0, i, False, False, bool(is_shared[i])]
            writer.writerow(start + row)

    for name in ("train2017", "val2017"):
        images, annotations = [], []
        for i, texts in zip(shown.nsd_id.tolist(), shown.captions, strict=True):
            if split[i] != name:
                continue
            image = int(coco[i])
            file_name = f"{image:012d}.jpg"
            images.append({"id": image, "file_name": file_name, "height": 425, "width": 425})
            for k, text in enumerate(texts):
                annotations.append({"image_id": image, "id": 10 * image + k, "caption": text})
        content = {"info": {"description": "nsdcap miniature"}, "licenses": []}
        _write_json(
            root / f"annotations/captions_{name}.json",
            {**content, "images": images, "annotations": annotations},
        )
    scenes = zip(shown.nsd_id.tolist(), shown.scenes, strict=True)
    _write_json(root / "truth/scenes.json", {str(i): _by_name(scene) for i, scene in scenes})


def _by_name(scene: Scene) -> dict[str, Any]:
    items = [
        {
            "kind": KINDS[item.kind],
            "colour": COLOUR_NAMES[item.colour],
            "x": round(float(item.x), 3),
            "y": round(float(item.y), 3),
            "size": round(float(item.size), 3),
        }
        for item in scene.items
    ]
    return {"place": PLACES[scene.place], "items": items, "relation": scene.relation}


def write_responses(
    root: Path, subject: int, order: np.ndarray, seen: np.ndarray, rng: np.random.Generator
) -> None:
    """responses.tsv: who saw what, with made-up answers; 2 % of trials have none (NaN)."""
    head = "SUBJECT SESSION RUN TRIAL 73KID 10KID TIME ISOLD ISCORRECT RT CHANGEMIND MEMORYRECENT"
    head += " MEMORYFIRST ISOLDCURRENT ISCORRECTCURRENT TOTAL1 TOTAL2 BUTTON MISSINGDATA"
    runs = [(run + 1, trial + 1) for run, n in enumerate([63, 62] * 6) for trial in range(n)]
    first: dict[int, int] = {}
    recent: dict[int, int] = {}
    lines = ["\t".join(head.split())]
    for t, (picture, nsd_id) in enumerate(zip(order.tolist(), seen.tolist(), strict=True)):
        session, (run, trial) = t // TRIALS, runs[t % TRIALS]
        old = picture in first
        here = int(old and recent[picture] // TRIALS == session)
        correct, answered = int(rng.random() < 0.85), rng.random() > 0.02
        button = 1 + (int(old) if correct else 1 - int(old))
        memory: list[float] = [float("nan")] * 2
        if old:
            memory = [t - recent[picture] - 1, t - first[picture] - 1]
        nan = "nan"
        reply = [correct, round(float(rng.normal(900, 150)), 3), 0] if answered else [nan] * 3
        row = [subject, session + 1, run, trial, nsd_id + 1, picture + 1]
        row += [f"{7 * session + run / 100 + trial * 4 / 86400:.8f}", int(old), *reply, *memory]
        row += [here, int(correct == (here == int(old))) if answered else nan]
        row += [int(button == 1), int(button == 2), button] if answered else [0, 0, nan]
        lines.append("\t".join(str(v) for v in [*row, 0]))
        first.setdefault(picture, t)
        recent[picture] = t
    path = root / f"nsddata/ppdata/subj{subject:02d}/behav/responses.tsv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines).replace("nan", "NaN") + "\n")


def _write_json(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content) + "\n")
