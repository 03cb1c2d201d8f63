"""Rows of the table of captions."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from nsdcap.errors import DataError
from nsdcap.metrics import bleu
from nsdcap.metrics.similarity import shuffled, wins
from nsdcap.paths import Cell, artefact
from nsdcap.tables import BOOTSTRAPS, FEW_SHUFFLES, SEED, SHUFFLES, mean_interval, score_row


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
        rows.append(score_row(subject, arm, metric, definition, n, numbers))

    clip = {arm: np.array([entry["clip"][arm] for entry in entries]) for arm in content["arms"]}
    for arm in content["arms"]:
        hypotheses = [entry[arm] for entry in entries]
        for style in bleu.STYLES:
            counts = bleu.bleu_counts(hypotheses, references, style=style)
            for order in (4,) if style == "sacrebleu" else (1, 2, 3, 4):
                score = partial(bleu.bleu_of, counts, order, None)
                chance = shuffled(score, n, SHUFFLES, SEED)
                value = bleu.bleu_of(counts, order)
                interval = bleu.bleu_interval(counts, order, BOOTSTRAPS, SEED)
                definition = counts.definition.replace("BLEU-4", f"BLEU-{order}")
                add(arm, f"BLEU-{order} {style}", definition, value, *interval, *chance)
            if style == "sacrebleu":
                each = partial(bleu.sentence_bleus, counts, 4)
                chance = shuffled(partial(_mean_of, each), n, FEW_SHUFFLES, SEED)
                numbers = mean_interval(each())
                definition = bleu.sentence_definition(counts, 4)
                add(arm, "BLEU-4 sentence", definition, *numbers, *chance)
        # cosines with other pictures are not among the inputs unless the caption stage kept them
        chance = tuple(content.get("clip_chance", {}).get(arm, ()))
        definition = "cosine of the caption's and the shown picture's CLIP embeddings, mean"
        add(arm, "CLIP cosine", definition, *mean_interval(clip[arm]), *chance)
        if arm != "nearest" and "nearest" in clip:
            share = wins(clip[arm], clip["nearest"])
            definition = (
                "share of pictures whose CLIP cosine is above that of the nearest training "
                f"picture's human caption; exact interval; {share.ties} ties left out"
            )
            add(arm, "CLIP wins over nearest", definition, *share[:3], 0.5)
    return rows


def _mean_of(each: Callable[[np.ndarray], np.ndarray], permutation: np.ndarray) -> float:
    return float(each(permutation).mean())
