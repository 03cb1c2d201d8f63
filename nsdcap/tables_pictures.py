"""Rows of the table of pictures."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import h5py
import numpy as np

from nsdcap.errors import DataError
from nsdcap.metrics.pictures import pixcorr, two_way_identification
from nsdcap.metrics.similarity import clip_similarity, shuffled, wins
from nsdcap.paths import Cell, artefact
from nsdcap.tables import FEW_SHUFFLES, SEED, mean_interval, open_hdf5, score_row


def picture_rows(out: Path, subject: int, captioned: set[int]) -> list[dict]:
    """Scores of a subject's reconstructions, arm by arm, with the coarse picture's own.

    Raises DataError when the pictures are not those that were captioned.
    """
    path = artefact(out, Cell("reconstruct", subject))
    arms = ("caption", "direct", "coarse")
    keys = ("nsd_id", "shown", "clip_shown", *arms, *(f"clip_{arm}" for arm in arms))
    rows: list[dict] = []
    with open_hdf5(path, keys) as file:
        if set(file["nsd_id"][:].tolist()) != captioned:
            raise DataError(
                f"{path}: holds {len(file['nsd_id'])} pictures that are not the {len(captioned)} "
                "captioned ones; run the reconstruct stage again"
            )
        shown = file["clip_shown"][:].astype(np.float64)
        clip = {arm: file[f"clip_{arm}"][:].astype(np.float64) for arm in arms}
        pixels = {arm: _pixcorr(file, arm) for arm in arms}
        size = file["shown"].shape[1]
    clip = {arm: x[:, None] if x.ndim == 2 else x for arm, x in clip.items()}  # (n, samples, d)
    n = len(shown)

    def add(arm: str, metric: str, definition: str, *numbers: float) -> None:
        rows.append(score_row(subject, arm, metric, definition, n, numbers))

    similarity = {arm: clip_similarity(shown, clip[arm]) for arm in arms}
    for arm in arms:
        samples = clip[arm].shape[1]
        mean_of = f", mean over {samples} samples" if samples > 1 else ""
        matched = partial(_shuffled_similarity, shown, clip[arm])
        chance = shuffled(matched, n, FEW_SHUFFLES, SEED)
        numbers = mean_interval(similarity[arm])
        add(
            arm, "CLIP similarity", f"cosine of CLIP picture embeddings{mean_of}", *numbers, *chance
        )
        if n > 1:
            both = [two_way_identification(clip[arm][:, s], shown) for s in range(samples)]
            for name, note in (
                ("among_shown", "share of other shown pictures that resemble the prediction less"),
                (
                    "among_predicted",
                    "share of other predictions that resemble the shown picture less",
                ),
            ):
                each = np.mean([getattr(one, name) for one in both], axis=0)
                numbers = mean_interval(each)
                definition = f"{note}, by Pearson r of CLIP embeddings{mean_of}"
                add(arm, f"two-way {name.replace('_', ' ')}", definition, *numbers, 0.5)
        own, other = pixels[arm]
        numbers = mean_interval(own[np.isfinite(own)])
        definition = f"Pearson r of pixels at {size} px{mean_of}; chance: other pictures' pairs"
        add(arm, "PixCorr", definition, *numbers, other)
    for first, second in (("caption", "direct"), ("caption", "coarse"), ("direct", "coarse")):
        share = wins(similarity[first], similarity[second])
        definition = (
            f"share of pictures whose {first} arm has the higher CLIP similarity; exact interval; "
            f"{share.ties} ties left out"
        )
        add(f"{first} over {second}", "CLIP wins", definition, *share[:3], 0.5)
    return rows


def _pixcorr(file: h5py.File, arm: str, block: int = 16) -> tuple[np.ndarray, float]:
    """Each picture's r, mean over samples, and the mean r with other pictures of its block."""
    own, other = [], []
    for start in range(0, len(file["shown"]), block):
        shown, made = file["shown"][start : start + block], file[arm][start : start + block]
        made = made[:, None] if made.ndim == 4 else made
        samples = range(made.shape[1])
        own.append(np.mean([pixcorr(shown, made[:, s]) for s in samples], axis=0))
        if len(shown) > 1:
            other.append(pixcorr(shown, np.roll(made[:, 0], 1, axis=0)))
    return np.concatenate(own), float(np.nanmean(np.concatenate(other))) if other else np.nan


def _shuffled_similarity(shown: np.ndarray, made: np.ndarray, permutation: np.ndarray) -> float:
    return float(clip_similarity(shown[permutation], made).mean())
