"""All scores of captions, each with its interval, its chance and its definition, or why it has none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np

from nsdcap.metrics import bleu, coco, overlap
from nsdcap.metrics.similarity import shuffled
from nsdcap.stats import resamples
from nsdcap.tables import BOOTSTRAPS, SEED, SHUFFLES, mean_interval

# of the pictures, for metrics that score a pair at a time: 1 ms a pair, and some 10 ms
METEOR_SHUFFLES, SPICE_SHUFFLES = 20, 5
Key = TypeVar("Key")
PTB = "coco-caption's, of PTB tokens"
COCO_METRICS = {
    **{f"BLEU-{k} coco": bleu.COCO.format(order=k) for k in (1, 2, 3, 4)},
    "METEOR": f"METEOR 1.5 of the corpus, 0 to 1: {PTB}, English, -norm",
    "ROUGE-L": f"ROUGE-L, 0 to 1, mean over captions: {PTB}; F (beta 1.2) of the best precision and the "
    "best recall over references",
    "CIDEr": f"CIDEr-D, 0 to 10, mean over captions: {PTB}, which it names CIDEr; document frequencies "
    "of all these references, kept in shuffles and resamples",
    "SPICE": f"SPICE, 0 to 1, mean over captions: {PTB}",
}


@dataclass(frozen=True)
class Score:
    """One score of n captions.

    ``numbers``: value, low and high end of the 95 % interval (bootstrap over pictures), mean and sd of
    chance; some or none. ``n_shuffles`` of the pictures that chance is from. ``note``: why it is not
    computed.
    """

    metric: str
    definition: str
    n: int
    numbers: tuple[float, ...] = ()
    n_shuffles: int | None = None
    note: str = ""


def score_captions(
    sets: dict[Key, tuple[list[str], list[list[str]]]],
) -> dict[Key, list[Score]]:
    """Every score that needs texts alone, of each set of captions and their lists of references.

    sacrebleu's BLEU-1 to 4, its sentence BLEU-4, and those of ``COCO_METRICS``, which have a note in
    place of numbers where pycocoevalcap or Java is not there. Java starts twice for all sets together
    (and once a set for SPICE). Chance is of 1,000 shuffles, the same for all metrics; of METEOR and
    SPICE of the first few. Time at 982 pictures and five references: 20 s a set, most of it METEOR's.
    """
    own = {
        key: _sacrebleu(hypotheses, references) for key, (hypotheses, references) in sets.items()
    }
    texts = dict.fromkeys(
        text
        for hypotheses, references in sets.values()
        for text in (*hypotheses, *(text for texts in references for text in texts))
    )
    try:
        tokens = dict(zip(texts, coco.tokenise(list(texts)), strict=True))
    except coco.NotComputed as error:
        for key, (hypotheses, _) in sets.items():
            own[key] += [_without(metric, len(hypotheses), error) for metric in COCO_METRICS]
        return own
    with coco.Meteor() as meteor:
        for key, (hypotheses, references) in sets.items():
            of = [tokens[text] for text in hypotheses]
            to = [[tokens[text] for text in texts] for texts in references]
            own[key] += _coco(of, to, meteor)
    return own


def pair_score(metric: str, definition: str, pairs: np.ndarray) -> Score:
    """The mean of the diagonal of pairs (n captions, n pictures), with chance from what is beside it."""
    n = len(pairs)
    rows = np.arange(n)
    chance = shuffled(lambda p: float(pairs[rows, p].mean()), n, SHUFFLES, SEED)
    return Score(metric, definition, n, (*mean_interval(np.diagonal(pairs)), *chance), SHUFFLES)


def _sacrebleu(hypotheses: list[str], references: list[list[str]]) -> list[Score]:
    counts = bleu.bleu_counts(hypotheses, references)
    names = {
        f"BLEU-{k} sacrebleu": counts.definition.replace("BLEU-4", f"BLEU-{k}")
        for k in (1, 2, 3, 4)
    }
    each = bleu.sentence_bleus(counts)
    mean = pair_score("BLEU-4 sentence", bleu.sentence_definition(counts, 4), each)
    return [*_bleus(counts, names), mean]


def _bleus(counts: bleu.BleuCounts, definitions: dict[str, str]) -> list[Score]:
    """A score for each order, whose metrics and definitions these are."""
    n, rng = len(counts.length), np.random.default_rng(SEED)
    values = bleu.bleu_of(counts)
    low, high = bleu.bleu_interval(counts, BOOTSTRAPS, SEED)
    chance = [bleu.bleu_of(counts, None, rng.permutation(n)) for _ in range(SHUFFLES)]
    numbers = np.stack([values, low, high, np.mean(chance, 0), np.std(chance, 0, ddof=1)], axis=1)
    return [
        Score(metric, definition, n, tuple(row), SHUFFLES)
        for (metric, definition), row in zip(definitions.items(), numbers.tolist(), strict=True)
    ]


def _coco(hypotheses: list[str], references: list[list[str]], meteor: coco.Meteor) -> list[Score]:
    counts = bleu.bleu_counts(hypotheses, references, style="coco")
    scores = _bleus(
        counts, {f"BLEU-{k} coco": COCO_METRICS[f"BLEU-{k} coco"] for k in (1, 2, 3, 4)}
    )
    compute: dict[str, Callable[..., Score]] = {
        "METEOR": partial(_meteor, meteor), "ROUGE-L": _rouge_l, "CIDEr": _cider, "SPICE": _spice
    }  # fmt: skip
    for metric, score in compute.items():
        try:
            scores.append(score(hypotheses, references))
        except coco.NotComputed as error:
            scores.append(_without(metric, len(hypotheses), error))
    return scores


def _meteor(meteor: coco.Meteor, hypotheses: list[str], references: list[list[str]]) -> Score:
    n = len(hypotheses)
    counts = meteor.statistics(hypotheses, references)
    value = float(meteor.scores(counts.sum(0)[None])[0])
    drawn = np.rint(resamples(n, BOOTSTRAPS, SEED) * n)
    low, high = np.quantile(meteor.scores(drawn @ counts), [0.025, 0.975])

    def moved(order: np.ndarray) -> float:
        found = meteor.statistics(hypotheses, [references[j] for j in order])
        return float(meteor.scores(found.sum(0)[None])[0])

    chance = shuffled(moved, n, METEOR_SHUFFLES, SEED)
    numbers = (value, float(low), float(high), *chance)
    return Score("METEOR", COCO_METRICS["METEOR"], n, numbers, METEOR_SHUFFLES)


def _rouge_l(hypotheses: list[str], references: list[list[str]]) -> Score:
    return pair_score("ROUGE-L", COCO_METRICS["ROUGE-L"], overlap.rouge_l(hypotheses, references))


def _cider(hypotheses: list[str], references: list[list[str]]) -> Score:
    return pair_score("CIDEr", COCO_METRICS["CIDEr"], overlap.cider(hypotheses, references))


def _spice(hypotheses: list[str], references: list[list[str]]) -> Score:
    n = len(hypotheses)
    rng = np.random.default_rng(SEED)
    orders = [np.arange(n), *(rng.permutation(n) for _ in range(SPICE_SHUFFLES))]
    against = [references[j] for order in orders for j in order]
    found = coco.spice(hypotheses * len(orders), against).reshape(len(orders), n)
    chance = found[1:].mean(1)
    numbers = (*mean_interval(found[0]), float(chance.mean()), float(chance.std(ddof=1)))
    return Score("SPICE", COCO_METRICS["SPICE"], n, numbers, SPICE_SHUFFLES)


def _without(metric: str, n: int, error: coco.NotComputed) -> Score:
    return Score(metric, COCO_METRICS[metric], n, note=str(error))
