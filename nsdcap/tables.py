"""Rows of the tables of scores: captions, pictures, what ridge chose; and how a table is written."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from nsdcap import metrics
from nsdcap.errors import DataError
from nsdcap.paths import Cell, artefact
from nsdcap.stats import bootstrap_ci

SHUFFLES, FEW_SHUFFLES, BOOTSTRAPS, SEED = 200, 50, 1000, 0
SCORE_COLUMNS = (
    "subject", "arm", "metric", "definition", "value", "ci_low", "ci_high", "chance_mean",
    "chance_sd", "n",
)  # fmt: skip
DECODING_COLUMNS = (
    "subject", "latent", "n_targets", "alpha_median", "alpha_low", "alpha_high", "edge_share",
    "gain", "mean_cv_r2", "share_cv_r2_above_0",
)  # fmt: skip


def write_table(path: Path, columns: Sequence[str], rows: list[dict]) -> None:
    """CSV with a header; NaN and None become empty."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for row in rows:
            writer.writerow({key: _cell(row.get(key)) for key in columns})


def read_captions(out: Path, subject: int) -> dict:
    """A subject's caption file, checked for its arms.

    Raises DataError when it is broken, empty, or a picture lacks an arm, references or a cosine.
    """
    path = artefact(out, Cell("caption", subject))
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        arms, captions = content["arms"], content["captions"]
        lacking = [
            i for i, entry in captions.items()
            if not entry["references"] or any(arm not in entry or arm not in entry["clip"] for arm in arms)
        ]  # fmt: skip
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: broken ({error!r}); run the caption stage again") from error
    if not captions or lacking:
        raise DataError(
            f"{path}: found {len(captions)} captions, {len(lacking)} of them without an arm or "
            f"references (nsd_id {', '.join(lacking[:5])}); run the caption stage again"
        )
    return content


def caption_rows(subject: int, content: dict) -> list[dict]:
    """Scores of every arm's captions: BLEU by three definitions, CLIP's cosine, wins over nearest."""
    entries = list(content["captions"].values())
    references = [entry["references"] for entry in entries]
    n, rows = len(entries), []

    def add(arm: str, metric: str, definition: str, *numbers: float) -> None:
        rows.append(_row(subject, arm, metric, definition, n, numbers))

    clip = {arm: np.array([entry["clip"][arm] for entry in entries]) for arm in content["arms"]}
    for arm in content["arms"]:
        hypotheses = [entry[arm] for entry in entries]
        for style in metrics.STYLES:
            counts = metrics.bleu_counts(hypotheses, references, style=style)
            for order in (4,) if style == "sacrebleu" else (1, 2, 3, 4):
                score = partial(metrics.bleu_of, counts, order, None)
                chance = metrics.shuffled(score, n, SHUFFLES, SEED)
                value = metrics.bleu_of(counts, order)
                interval = metrics.bleu_interval(counts, order, BOOTSTRAPS, SEED)
                definition = counts.definition.replace("BLEU-4", f"BLEU-{order}")
                add(arm, f"BLEU-{order} {style}", definition, value, *interval, *chance)
            if style == "sacrebleu":
                each = partial(metrics.sentence_bleus, counts, 4)
                chance = metrics.shuffled(partial(_mean_of, each), n, FEW_SHUFFLES, SEED)
                numbers = _mean_interval(each())
                definition = metrics.sentence_definition(counts, 4)
                add(arm, "BLEU-4 sentence", definition, *numbers, *chance)
        # cosines with other pictures are not among the inputs unless the caption stage kept them
        chance = tuple(content.get("clip_chance", {}).get(arm, ()))
        definition = "cosine of the caption's and the shown picture's CLIP embeddings, mean"
        add(arm, "CLIP cosine", definition, *_mean_interval(clip[arm]), *chance)
        if arm != "nearest" and "nearest" in clip:
            share = metrics.wins(clip[arm], clip["nearest"])
            definition = (
                "share of pictures whose CLIP cosine is above that of the nearest training "
                f"picture's human caption; exact interval; {share.ties} ties left out"
            )
            add(arm, "CLIP wins over nearest", definition, *share[:3], 0.5)
    return rows


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
        rows.append(_row(subject, arm, metric, definition, n, numbers))

    similarity = {arm: metrics.clip_similarity(shown, clip[arm]) for arm in arms}
    for arm in arms:
        samples = clip[arm].shape[1]
        mean_of = f", mean over {samples} samples" if samples > 1 else ""
        matched = partial(_shuffled_similarity, shown, clip[arm])
        chance = metrics.shuffled(matched, n, FEW_SHUFFLES, SEED)
        numbers = _mean_interval(similarity[arm])
        add(
            arm, "CLIP similarity", f"cosine of CLIP picture embeddings{mean_of}", *numbers, *chance
        )
        if n > 1:
            both = [metrics.two_way_identification(clip[arm][:, s], shown) for s in range(samples)]
            for name, note in (
                ("among_shown", "share of other shown pictures that resemble the prediction less"),
                (
                    "among_predicted",
                    "share of other predictions that resemble the shown picture less",
                ),
            ):
                each = np.mean([getattr(one, name) for one in both], axis=0)
                numbers = _mean_interval(each)
                definition = f"{note}, by Pearson r of CLIP embeddings{mean_of}"
                add(arm, f"two-way {name.replace('_', ' ')}", definition, *numbers, 0.5)
        own, other = pixels[arm]
        numbers = _mean_interval(own[np.isfinite(own)])
        definition = f"Pearson r of pixels at {size} px{mean_of}; chance: other pictures' pairs"
        add(arm, "PixCorr", definition, *numbers, other)
    for first, second in (("caption", "direct"), ("caption", "coarse"), ("direct", "coarse")):
        share = metrics.wins(similarity[first], similarity[second])
        definition = (
            f"share of pictures whose {first} arm has the higher CLIP similarity; exact interval; "
            f"{share.ties} ties left out"
        )
        add(f"{first} over {second}", "CLIP wins", definition, *share[:3], 0.5)
    return rows


def decoding_rows(out: Path, subject: int) -> list[dict]:
    """What ridge chose for each latent; alphas where the file has its grid, else their indices."""
    rows = []
    with open_hdf5(artefact(out, Cell("decode", subject)), ("z_v", "c", "z")) as file:
        for latent in ("z_v", "c", "z"):
            group = file[latent]
            index, cv_r2 = group["alpha_index"][:], group["cv_r2"][:]
            chosen = np.asarray(group.attrs["alphas"])[index] if "alphas" in group.attrs else index
            rows.append(
                {
                    "subject": subject, "latent": latent, "n_targets": int(group.attrs["n_targets"]),
                    "alpha_median": np.median(chosen), "alpha_low": chosen.min(),
                    "alpha_high": chosen.max(), "edge_share": group.attrs["edge_share"],
                    "gain": group.attrs["gain"], "mean_cv_r2": np.nanmean(cv_r2),
                    "share_cv_r2_above_0": np.mean(cv_r2 > 0),
                }
            )  # fmt: skip
    return rows


def _pixcorr(file: h5py.File, arm: str, block: int = 16) -> tuple[np.ndarray, float]:
    """Each picture's r, mean over samples, and the mean r with other pictures of its block."""
    own, other = [], []
    for start in range(0, len(file["shown"]), block):
        shown, made = file["shown"][start : start + block], file[arm][start : start + block]
        made = made[:, None] if made.ndim == 4 else made
        samples = range(made.shape[1])
        own.append(np.mean([metrics.pixcorr(shown, made[:, s]) for s in samples], axis=0))
        if len(shown) > 1:
            other.append(metrics.pixcorr(shown, np.roll(made[:, 0], 1, axis=0)))
    return np.concatenate(own), float(np.nanmean(np.concatenate(other))) if other else np.nan


def _row(
    subject: int, arm: str, metric: str, definition: str, n: int, numbers: Sequence[float]
) -> dict[str, Any]:
    """A row of a table of scores; ``numbers`` are the columns from value to chance_sd, some or all."""
    names = ("value", "ci_low", "ci_high", "chance_mean", "chance_sd")
    row: dict[str, Any] = dict(zip(names, numbers, strict=False))
    row |= {"subject": subject, "arm": arm, "metric": metric, "definition": definition, "n": n}
    return row


def _mean_interval(values: np.ndarray) -> tuple[float, float, float]:
    """Mean and 95 % bootstrap interval of values (n,)."""
    mean, low, high = bootstrap_ci(values, BOOTSTRAPS, SEED)
    return float(mean), float(low), float(high)


def _mean_of(each: Callable[[np.ndarray], np.ndarray], permutation: np.ndarray) -> float:
    return float(each(permutation).mean())


def _shuffled_similarity(shown: np.ndarray, made: np.ndarray, permutation: np.ndarray) -> float:
    return float(metrics.clip_similarity(shown[permutation], made).mean())


def open_hdf5(path: Path, keys: Sequence[str]) -> h5py.File:
    """An HDF5 file opened for reading.

    Raises DataError when it is broken or lacks one of ``keys``.
    """
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error}); run its stage again") from error
    lacking = [key for key in keys if key not in file]
    if lacking:
        file.close()
        raise DataError(f"{path}: lacks {', '.join(lacking)}; run its stage again")
    return file


def _cell(value: Any) -> Any:
    if value is None or (isinstance(value, float | np.floating) and not np.isfinite(value)):
        return ""
    return f"{value:.6g}" if isinstance(value, float | np.floating) else value
