"""Test pictures picked by chance, with what each subject's brain gave: pictures and captions."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nsdcap.artefacts import Artefact
from nsdcap.metrics.clip import COSINE
from nsdcap.paths import Cell, artefact
from nsdcap.plots_cortex import Run
from nsdcap.report_scores import ARMS
from nsdcap.tables import open_hdf5

PICTURES = 12
SIDE = 176  # pixels of a picture's side in the page, at most
QUALITY = 85
SMALL = 96  # up to this side PNG, else JPEG
FIRST = ("coarse", "direct", "caption")


@dataclass(frozen=True)
class Picture:
    """One picture of an arm: its bytes as a data URI, and CLIP's cosine with the shown one."""

    arm: str
    label: str
    uri: str
    clip: str


@dataclass(frozen=True)
class Written:
    """One caption of an arm, and CLIP's cosine with the shown picture."""

    arm: str
    label: str
    text: str
    clip: str


@dataclass(frozen=True)
class Item:
    """A test picture: as shown, people's captions, and each subject's pictures and captions."""

    nsd_id: int
    shown: str
    references: list[str]
    subjects: dict[int, tuple[list[Picture], list[Written]]]


def gallery(run: Run, seed: int, n: int = PICTURES) -> list[Item]:
    """``n`` test pictures drawn without replacement from (seed,), by nsd_id; the first sample of each arm.

    Raises
    ------
    DataError
        A reconstruct file is missing or broken.
    """
    written = {s: _captions(run.out, s) for s in run.subjects}
    common = sorted(set.intersection(*({int(i) for i in w["captions"]} for w in written.values())))
    rng = np.random.default_rng(seed)
    ids = sorted(int(i) for i in rng.choice(common, min(n, len(common)), replace=False))
    shown: dict[int, str] = {}
    parts: dict[int, dict[int, Any]] = {i: {} for i in ids}
    for subject in run.subjects:
        path = artefact(run.out, Cell("reconstruct", subject))
        with open_hdf5(path, ("nsd_id", "shown", "clip_shown")) as file:
            rows = {int(i): row for row, i in enumerate(file["nsd_id"][:])}
            others = [key for key in file if f"clip_{key}" in file and key != "shown"]
            arms = [arm for arm in FIRST if arm in others]
            arms += [arm for arm in others if arm not in FIRST]
            for i in ids:
                if i not in shown:
                    shown[i] = picture_uri(file["shown"][rows[i]])
                pictures = [_picture(file, arm, rows[i]) for arm in arms]
                parts[i][subject] = pictures, _texts(written[subject], i)
    first = written[run.subjects[0]]["captions"]
    return [Item(i, shown[i], first[str(i)]["references"], parts[i]) for i in ids]


def picture_uri(picture: np.ndarray) -> str:
    """A picture (s, s, 3) uint8 as a data URI, at most SIDE wide: PNG up to SMALL, JPEG above."""
    from PIL import Image

    image = Image.fromarray(picture)
    if max(image.size) > SIDE:
        image = image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    if max(image.size) <= SMALL:
        image.save(buffer, "PNG", optimize=True)
        kind = "png"
    else:
        image.save(buffer, "JPEG", quality=QUALITY)
        kind = "jpeg"
    return f"data:image/{kind};base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _captions(out: Path, subject: int) -> dict:
    return json.loads(artefact(out, Cell("caption", subject)).read_text(encoding="utf-8"))


def _picture(file: Artefact, arm: str, row: int) -> Picture:
    pixels, embedded = file[arm][row], file[f"clip_{arm}"][row]
    if pixels.ndim == 4:  # samples
        pixels, embedded = pixels[0], embedded[0]
    cosine = float(embedded @ file["clip_shown"][row])
    return Picture(arm, _label(arm), picture_uri(pixels), _number(cosine))


def _texts(content: dict, nsd_id: int) -> list[Written]:
    entry = content["captions"][str(nsd_id)]
    return [
        Written(arm, _label(arm), entry[arm], _number(entry["clip"][COSINE][arm]))
        for arm in content["arms"]
    ]


def _label(arm: str) -> str:
    return "coarse" if arm == "coarse" else ARMS.get(arm, arm.replace("_", " "))


def _number(cosine: float) -> str:
    return f"{cosine:.2f}".replace("-", "−")
