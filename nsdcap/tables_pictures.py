"""Rows of the table of pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from nsdcap.config import ARMS
from nsdcap.errors import DataError
from nsdcap.metrics.peers import DIRECTIONS, METRICS
from nsdcap.metrics.pictures import two_way_identification
from nsdcap.metrics.similarity import clip_similarity, shuffled, unit, wins
from nsdcap.paths import Cell, artefact
from nsdcap.tables import SEED, SHUFFLES, mean_interval, open_hdf5, score_row


def picture_rows(out: Path, subject: int, captioned: set[int]) -> list[dict]:
    """Scores of a subject's reconstructions, arm by arm, with the coarse picture's own.

    Raises DataError when the pictures are not those that were captioned, or those that were scored.
    """
    path = artefact(out, Cell("reconstruct", subject))
    with open_hdf5(path, ("nsd_id", "clip_shown", *(f"clip_{arm}" for arm in ARMS))) as file:
        ids = file["nsd_id"][:].tolist()
        if set(ids) != captioned:
            raise DataError(
                f"{path}: holds {len(ids)} pictures that are not the {len(captioned)} "
                "captioned ones; run the reconstruct stage again"
            )
        shown = file["clip_shown"][:].astype(np.float64)
        clip = {arm: file[f"clip_{arm}"][:].astype(np.float64) for arm in ARMS}
        by = file.attrs.get("clip", "the run's CLIP")
    clip = {arm: x[:, None] if x.ndim == 2 else x for arm, x in clip.items()}  # (n, samples, d)
    rows = []
    for arm in ARMS:
        rows += clip_rows(subject, arm, shown, clip[arm], by)
    similarity = {arm: clip_similarity(shown, clip[arm]) for arm in ARMS}
    for first, second in (("caption", "direct"), ("caption", "coarse"), ("direct", "coarse")):
        share = wins(similarity[first], similarity[second])
        definition = (
            f"share of pictures whose {first} arm has the higher {by} similarity; exact interval; "
            f"{share.ties} ties left out"
        )
        numbers = (*share[:3], 0.5)
        rows.append(
            score_row(
                subject, f"{first} over {second}", "CLIP wins", definition, len(shown), numbers
            )
        )
    return [*rows, *compared_rows(out, subject, ids)]


def clip_rows(subject: int, arm: str, shown: np.ndarray, made: np.ndarray, by: str) -> list[dict]:
    """Similarity and two-way identification by embeddings: shown (n, d), made (n, samples, d).

    ``by`` names the model of CLIP. Two-way identification needs two pictures.
    """
    n, samples = len(shown), made.shape[1]
    mean_of = _mean_of(samples)
    similar = unit(shown) @ unit(made).mean(1).T  # (n, n), mean over samples
    chance = shuffled(lambda order: float(similar[order, np.arange(n)].mean()), n, SHUFFLES, SEED)
    words = f"cosine of {by} picture embeddings{mean_of}"
    numbers = (*mean_interval(np.diag(similar)), *chance)
    rows = [
        score_row(subject, arm, "CLIP similarity", words, n, numbers) | {"n_shuffles": SHUFFLES}
    ]
    if n > 1:
        both = [two_way_identification(made[:, s], shown) for s in range(samples)]
        for direction, words in DIRECTIONS.items():
            each = np.mean([getattr(one, direction) for one in both], axis=0)
            name = f"two-way {direction.replace('_', ' ')}"
            words = f"{words}, by Pearson r of {by} embeddings{mean_of}"
            rows.append(score_row(subject, arm, name, words, n, (*mean_interval(each), 0.5)))
    return rows


def compared_rows(out: Path, subject: int, ids: list[int]) -> list[dict]:
    """Rows of what the compare stage has scored, and of what it could not, with the reason."""
    path = artefact(out, Cell("compare", subject))
    with open_hdf5(path, ("nsd_id",)) as file:
        if file["nsd_id"][:].tolist() != ids:
            raise DataError(
                f"{path}: its pictures are not those of the reconstruct stage; run the compare stage again"
            )
        why = json.loads(file.attrs["not_computed"])
        rows = []
        for arm in ARMS:
            for metric in METRICS:
                name = f"{arm}/{metric.key}"
                if name not in file and metric.key not in why:
                    raise DataError(f"{path}: lacks {name}; run the compare stage again")
                if name in file:
                    rows.append(scored_row(subject, arm, metric, file[name]))
                else:
                    row = score_row(subject, arm, metric.name, metric.definition, len(ids), ())
                    rows.append(row | {"note": f"not computed: {why[metric.key]}"})
    return rows


def scored_row(subject: int, arm: str, metric: Any, values: h5py.Dataset) -> dict:
    """The row of one metric's values (n, samples)."""
    each = values[:].astype(np.float64)
    known = np.isfinite(each).all(1)
    chance = 0.5 if metric.name.startswith("two-way") else values.attrs.get("chance", np.nan)
    words = metric.definition + _mean_of(each.shape[1])
    numbers = (*mean_interval(each[known].mean(1)), chance) if known.any() else ()
    row = score_row(subject, arm, metric.name, words, int(known.sum()), numbers)
    lost = int((~known).sum())
    return row | ({"note": f"{lost} pictures left out, where it is not defined"} if lost else {})


def _mean_of(samples: int) -> str:
    return f", mean over {samples} samples" if samples > 1 else ""
