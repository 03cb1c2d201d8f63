"""BLEU of captions, so that any shuffle's or resample's is read off counts made once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nsdcap.errors import UsageError
from nsdcap.metrics.ngrams import at_least, grams

STYLES = ("sacrebleu", "coco")
COCO = (
    "corpus BLEU-{order}, 0 to 100: coco-caption's, of PTB tokens in lower case without punctuation, "
    "not smoothed"
)


@dataclass(frozen=True)
class BleuCounts:
    """The sufficient statistics of BLEU, of every hypothesis i against every reference set j.

    ``correct`` (order, n, n) int32: clipped n-gram matches; ``total`` (order, n): n-grams of i;
    ``length`` (n,): words of i; ``closest`` (n, n): length of j's reference closest to i's.
    ``options``: its smoothing. ``definition``: what a score made of them is.
    """

    correct: np.ndarray
    total: np.ndarray
    length: np.ndarray
    closest: np.ndarray
    options: dict[str, Any]
    definition: str


def bleu_counts(
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str]],
    order: int = 4,
    style: str = "sacrebleu",
) -> BleuCounts:
    """Statistics from which any shuffle's or resample's BLEU is read off; memory order x n x n x 4 B.

    references: for each hypothesis its own list, of any length from 1. ``style``: "sacrebleu", its
    defaults (tokenizer 13a, case kept, exponential smoothing); "coco", unsmoothed, of texts that are
    coco-caption's tokens with blanks between them (``coco.tokenise``). All pairs' clipped matches
    are one sparse matrix product per order, and exact.

    Raises
    ------
    UsageError
        No hypotheses, as many reference lists as hypotheses are not given, one is empty, or the
        style is unknown.
    """
    n = len(hypotheses)
    if n == 0 or len(references) != n or any(not refs for refs in references):
        raise UsageError(
            f"BLEU: found {n} hypotheses and {len(references)} reference lists, expected as many "
            "lists as hypotheses, each with at least one reference"
        )
    if style not in STYLES:
        raise UsageError(f"BLEU: found style {style!r}, expected one of {', '.join(STYLES)}")
    split: Callable[[str], list[str]]
    if style == "coco":
        split, options = str.split, {"smooth_method": "coco"}
        definition = COCO.format(order=order)
    else:
        metric, definition = _sacrebleu(order, {len(refs) for refs in references})
        options = {"smooth_method": metric.smooth_method, "smooth_value": metric.smooth_value}
        split = lambda text: metric.tokenizer(text.rstrip()).split()  # noqa: E731
    hyp_words = [split(text) for text in hypotheses]
    ref_words = [[split(text) for text in refs] for refs in references]
    length = np.array([len(words) for words in hyp_words])
    correct = np.stack([_matches(hyp_words, ref_words, k) for k in range(1, order + 1)])
    total = np.stack([np.maximum(length - k, 0) for k in range(order)])
    closest = np.zeros((n, n), dtype=np.int32)
    for j, texts in enumerate(ref_words):
        lengths = np.array(sorted({len(text) for text in texts}))
        closest[:, j] = lengths[np.abs(length[:, None] - lengths).argmin(1)]  # ties: the shorter
    return BleuCounts(correct, total, length, closest, options, definition)


def bleu_of(
    counts: BleuCounts, rows: np.ndarray | None = None, columns: np.ndarray | None = None
) -> np.ndarray:
    """Corpus BLEU of each order from 1, (order,) float64, of hypotheses ``rows`` against reference sets
    ``columns``; by default each its own."""
    rows = np.arange(len(counts.length)) if rows is None else rows
    columns = rows if columns is None else columns
    correct, total = counts.correct[:, rows, columns].sum(1), counts.total[:, rows].sum(1)
    length, closest = int(counts.length[rows].sum()), int(counts.closest[rows, columns].sum())
    orders = range(1, len(correct) + 1)
    return np.array(
        [_compute(correct[:k], total[:k], length, closest, k, counts.options) for k in orders]
    )


def bleu(
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str]],
    order: int = 4,
    style: str = "sacrebleu",
) -> tuple[float, str]:
    """Corpus BLEU from 0 to 100 and its definition, sacrebleu's signature included.

    references: for each hypothesis its own list. See ``bleu_counts`` for styles and errors raised.
    Source: Papineni et al. 2002; Post 2018 (sacrebleu).
    """
    counts = bleu_counts(hypotheses, references, order, style)
    return float(bleu_of(counts)[-1]), counts.definition


def sentence_bleus(counts: BleuCounts, order: int = 4) -> np.ndarray:
    """Sentence BLEU (n, n), 0 to 100, of each hypothesis i against each reference set j.

    sacrebleu's sentence score: exponential smoothing, effective order (orders longer than the
    sentence are left out).
    """
    logs = np.zeros(counts.closest.shape)
    halvings = np.zeros(counts.closest.shape)
    for correct, total in zip(counts.correct[:order], counts.total[:order], strict=True):
        halvings += correct == 0
        found = np.where(correct > 0, correct, 0.5**halvings)
        total = total[:, None]
        logs += np.where(total > 0, np.log(found) - np.log(np.maximum(total, 1)), 0.0)
    length = counts.length[:, None]
    used = np.clip(length, 1, order)  # orders that the sentence is long enough for
    brevity = np.minimum(1 - counts.closest / np.maximum(length, 1), 0)
    any_match = counts.correct[0] > 0
    return np.where(any_match, 100 * np.exp(logs / used + brevity), 0.0)


def sentence_definition(counts: BleuCounts, order: int) -> str:
    """What the mean of ``sentence_bleus`` is, in words; it does not compare with corpus BLEU."""
    signature = counts.definition.split(": ", 1)[1].replace("eff:no", "eff:yes")
    return f"sentence BLEU-{order}, mean over captions: {signature}"


def bleu_interval(
    counts: BleuCounts, n_boot: int, seed: int, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile bootstrap over pictures of corpus BLEU: low (order,), high (order,)."""
    rng = np.random.default_rng(seed)
    n = len(counts.length)
    scores = [bleu_of(counts, rng.integers(0, n, n)) for _ in range(n_boot)]
    low, high = np.quantile(scores, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def _sacrebleu(order: int, n_references: set[int]) -> tuple[Any, str]:
    """A sacrebleu metric and the words that a score made by it is printed with."""
    from sacrebleu.metrics import BLEU

    metric = BLEU(max_ngram_order=order)
    metric.num_refs = n_references.pop() if len(n_references) == 1 else -1
    return metric, f"corpus BLEU-{order}: sacrebleu {metric.get_signature()}"


def _matches(hypotheses: list[list[str]], references: list[list[list[str]]], k: int) -> np.ndarray:
    """Clipped matches of k-grams, (n, n) int32."""
    columns: dict = {}
    left = at_least([grams(words, k) for words in hypotheses], columns, grow=True)
    best = []
    for texts in references:
        most: Counter = Counter()
        for words in texts:
            most |= grams(words, k)
        best.append(most)
    right = at_least(best, columns, grow=False)
    return (left @ right.T).toarray().astype(np.int32)


def _compute(
    correct: np.ndarray, total: np.ndarray, length: int, closest: int, order: int, options: dict
) -> float:
    if options["smooth_method"] == "coco":
        return _coco(correct, total, length, closest, order)
    from sacrebleu.metrics import BLEU

    result = BLEU.compute_bleu(
        [int(c) for c in correct],
        [int(t) for t in total],
        length,
        closest,
        max_ngram_order=order,
        **options,
    )
    return float(result.score)


def _coco(correct: np.ndarray, total: np.ndarray, length: int, closest: int, order: int) -> float:
    """As coco-caption's bleu_scorer.py, with its small numbers in place of smoothing; times 100."""
    product = float(np.prod((correct + 1e-15) / (total + 1e-9)))
    ratio = (length + 1e-15) / (closest + 1e-9)
    return 100 * product ** (1 / order) * (np.exp(1 - 1 / ratio) if ratio < 1 else 1.0)
