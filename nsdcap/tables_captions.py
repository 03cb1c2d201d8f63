"""Rows of the table of captions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from nsdcap.errors import DataError
from nsdcap.metrics import clip
from nsdcap.metrics.captions import Score, score_captions
from nsdcap.metrics.similarity import wins
from nsdcap.paths import Cell, artefact
from nsdcap.tables import mean_interval, score_row


def read_captions(out: Path, subject: int) -> dict:
    """A subject's caption file, checked for its arms.

    Raises DataError when it is broken, empty, or a picture lacks an arm, references or one of CLIP's scores.
    """
    path = artefact(out, Cell("caption", subject))
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        arms, captions = content["arms"], content["captions"]
        content["clip_model"], content["clip_shuffles"]
        lacking = [
            i for i, entry in captions.items()
            if not entry["references"] or not entry.keys() >= set(arms)
            or any(arm not in entry["clip"][metric] for metric in clip.METRICS for arm in arms)
        ]  # fmt: skip
        for metric in clip.METRICS:
            for arm in arms:
                float(content["clip_chance"][metric][arm][1])
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        IndexError,
        AttributeError,
        RecursionError,
    ) as error:
        raise DataError(
            f"{path}: broken ({error!r}); run the caption stage again, with --force"
        ) from error
    if not captions or lacking:
        raise DataError(
            f"{path}: found {len(captions)} captions, {len(lacking)} of them without an arm, a "
            f"score of it or references (nsd_id {', '.join(lacking[:5])}); run the caption stage again, with "
            "--force"
        )
    return content


def caption_rows(contents: dict[int, dict]) -> list[dict]:
    """Scores of every subject's and arm's captions, from the contents of their files.

    All of them together, because Java starts once for all: see ``score_captions``.
    """
    sets = {}
    for subject, content in contents.items():
        entries = list(content["captions"].values())
        references = [entry["references"] for entry in entries]
        for arm in content["arms"]:
            sets[subject, arm] = ([entry[arm] for entry in entries], references)
    return [
        score_row(
            subject, arm, score.metric, score.definition, score.n, score.numbers, score.n_shuffles,
            score.note,
        )
        for (subject, arm), scores in score_captions(sets).items()
        for score in (*scores, *_clip_scores(contents[subject], arm))
    ]  # fmt: skip


def _clip_scores(content: dict, arm: str) -> list[Score]:
    """CLIP's scores as the caption stage left them, and how often they beat the nearest picture's."""
    entries = [entry["clip"] for entry in content["captions"].values()]
    scores = []
    for metric, definition in clip.definitions(content["clip_model"]).items():
        own = mean_interval(np.array([entry[metric][arm] for entry in entries]))
        numbers = (*own, *content["clip_chance"][metric][arm])
        scores.append(Score(metric, definition, len(entries), numbers, content["clip_shuffles"]))
    if arm != "nearest" and "nearest" in content["arms"]:
        cosines = (np.array([entry[clip.COSINE][a] for entry in entries]) for a in (arm, "nearest"))
        share = wins(*cosines)
        definition = (
            "share of pictures whose CLIP cosine is above that of the nearest training "
            f"picture's human caption; exact interval; {share.ties} ties left out"
        )
        scores.append(Score("CLIP wins over nearest", definition, len(entries), (*share[:3], 0.5)))
    return scores
