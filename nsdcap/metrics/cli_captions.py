"""``python -m nsdcap.metrics captions``: score the captions of a JSON file against references."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from nsdcap.errors import DataError, UsageError, bound
from nsdcap.metrics import clip
from nsdcap.metrics.captions import Score, pair_score, score_captions
from nsdcap.metrics.pictures import opened

ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
BLOCK = 64  # pictures in memory at a time
NUMBERS = ("value", "ci_low", "ci_high", "chance_mean", "chance_sd")


def add(subparsers: Any) -> None:
    """Add the command to argparse's ``subparsers``."""
    parser = subparsers.add_parser(
        "captions",
        help="score captions against references",
        description="BLEU, METEOR, ROUGE-L, CIDEr, SPICE and, with --images and --clip, CLIP's scores, each "
        "with its 95 % interval over pictures and with chance, from shuffled pictures.",
    )
    parser.add_argument("hypotheses", type=Path, help='JSON: {"id": "caption", ...}')
    parser.add_argument("references", type=Path, help='JSON: {"id": ["caption", ...], ...}')
    parser.add_argument("--images", type=Path, metavar="DIR", help="pictures, DIR/ID.png or .jpg")
    parser.add_argument("--clip", metavar="MODEL", help="a CLIP: folder or hub id")
    parser.add_argument("--json", action="store_true", help="print a JSON list of scores")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the scores.

    Raises
    ------
    UsageError
        --images without --clip or the reverse, or files that do not go together.
    DataError
        A file that is missing or of another form, or a picture that is missing.
    """
    if (options.images is None) != (options.clip is None):
        raise UsageError("found one of --images and --clip, expected both or neither")
    hypotheses, references = read(options.hypotheses, options.references)
    ids = list(hypotheses)
    captions, texts = list(hypotheses.values()), [references[i] for i in ids]
    files = [] if options.images is None else find_pictures(options.images, ids)
    scores = score_captions({"": (captions, texts)})[""]
    if files:
        scores += _clip_scores(options.clip, files, captions, texts)
    if options.json:
        print(json.dumps([_plain(score) for score in scores], indent=1))
    else:
        _tell(scores)
    return 0


def read(hypotheses: Path, references: Path) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Captions and lists of references by id; see ``run`` for errors raised."""
    own, known = _read(hypotheses), _read(references)
    for i, text in own.items():
        if not isinstance(text, str):
            raise DataError(f"{hypotheses}: id {i}: found {_short(text)}, expected one text")
    for i, texts in known.items():
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise DataError(
                f"{references}: id {i}: found {_short(texts)}, expected a list of texts"
            )
        if not texts:
            raise DataError(f"{references}: id {i}: found no reference, expected one at least")
    for some, others, lacking, holding in (
        (own, known, references, hypotheses), (known, own, hypotheses, references),
    ):  # fmt: skip
        alone = [i for i in some if i not in others]
        if alone:
            raise UsageError(
                f"{lacking} lacks {len(alone)} of the {len(some)} ids of {holding}: {_few(alone)}; expected "
                "the same ids in both"
            )
    if len(own) < 2:
        raise UsageError(
            f"{hypotheses}: found {len(own)} captions, expected 2 at least: chance is from other pictures"
        )
    return own, known


def find_pictures(folder: Path, ids: list[str]) -> list[Path]:
    """The picture of each id in ``folder``; DataError names those that are not there, or there twice."""
    if not folder.is_dir():
        raise DataError(f"--images {folder}: is no folder{bound()}")
    found = {
        i: [p for p in (folder / f"{i}{ending}" for ending in ENDINGS) if p.is_file()] for i in ids
    }
    wrong = [i for i, paths in found.items() if len(paths) != 1]
    if wrong:
        raise DataError(
            f"--images {folder}: {len(wrong)} of {len(ids)} ids do not have one picture each, named ID and "
            f"one of {', '.join(ENDINGS)}: {_few(wrong)}"
        )
    return [paths[0] for paths in found.values()]


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_once)
    except FileNotFoundError as error:
        raise DataError(f"{path}: does not exist{bound()}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: found no JSON ({error}), expected an object of ids") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: found {_short(content)}, expected an object, id to captions")
    return content


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{_few([n for n in found if names.count(n) > 1])} stands there twice")
    return found


def _clip_scores(
    model: str, files: list[Path], captions: list[str], references: list[list[str]]
) -> list[Score]:
    from nsdcap.config import Models
    from nsdcap.hub import at_hand
    from nsdcap.score import Clip

    at_hand("clip", model)
    judge = Clip(Models(clip=model))
    blocks = [files[start : start + BLOCK] for start in range(0, len(files), BLOCK)]
    shown = np.concatenate([judge.pictures([opened(path) for path in some]) for some in blocks])
    pairs = clip.clip_pairs(judge.texts, {"": captions}, shown, references)[""]
    return [
        pair_score(metric, definition, pairs[metric])
        for metric, definition in clip.definitions(judge.name).items()
    ]


def _plain(score: Score) -> dict[str, Any]:
    numbers = {
        name: score.numbers[k] if k < len(score.numbers) else None for k, name in enumerate(NUMBERS)
    }
    return {
        "metric": score.metric, "definition": score.definition, **numbers, "n": score.n,
        "n_shuffles": score.n_shuffles, "note": score.note,
    }  # fmt: skip


def _tell(scores: list[Score]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("metric", no_wrap=True)
    for name in ("value", "95 % interval", "chance ± sd", "shuffles", "n"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("definition, or why not computed")
    for score in scores:
        digits = 2 if score.metric.startswith("BLEU") else 4
        if score.note:
            table.add_row(score.metric, *[""] * 4, str(score.n), f"not computed: {score.note}")
            continue
        value, low, high, chance, sd = (f"{number:.{digits}f}" for number in score.numbers)
        counts = (str(score.n_shuffles), str(score.n))
        table.add_row(
            score.metric, value, f"{low} to {high}", f"{chance} ± {sd}", *counts, score.definition
        )
    Console(highlight=False, width=200, markup=False).print(table)


def _few(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (" ..." if len(names) > most else "")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
