"""BLEU of captions, so that any shuffle's or resample's is read off counts made once."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from nsdcap.errors import UsageError

# PTBTokenizer of coco-caption drops these; the other marks end at the split into words.
_DROPPED = re.compile(r"[^a-z0-9'\- ]+")
STYLES = ("sacrebleu", "coco-like")


@dataclass(frozen=True)
class BleuCounts:
    """sacrebleu's sufficient statistics of every hypothesis i against every reference set j.

    ``correct`` (order, n, n) int32: clipped n-gram matches; ``total`` (order, n): n-grams of i;
    ``length`` (n,): words of i; ``closest`` (n, n): length of j's reference closest to i's.
    ``options``: sacrebleu's smoothing. ``definition``: what a score made of them is.
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
    defaults (tokenizer 13a, case kept, exponential smoothing); "coco-like", lower case without
    punctuation and unsmoothed, which is close to coco-caption's PTB tokenizer but is not that
    program. A pair's clipped matches min(h, r) are the sum over t >= 1 of [h >= t][r >= t], so all
    pairs are one sparse matrix product per order, and exact.

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
    metric, definition = _metric(order, style, {len(refs) for refs in references})
    hyp_words = [_words(metric, style, text) for text in hypotheses]
    ref_words = [[_words(metric, style, text) for text in refs] for refs in references]
    length = np.array([len(words) for words in hyp_words])
    correct = np.stack([_matches(hyp_words, ref_words, k) for k in range(1, order + 1)])
    total = np.stack([np.maximum(length - k, 0) for k in range(order)])
    closest = np.zeros((n, n), dtype=np.int32)
    for j, words in enumerate(ref_words):
        lengths = np.array(sorted({len(w) for w in words}))
        closest[:, j] = lengths[np.abs(length[:, None] - lengths).argmin(1)]  # ties: the shorter
    options = {
        "smooth_method": metric.smooth_method,
        "smooth_value": metric.smooth_value,
    }
    return BleuCounts(correct, total, length, closest, options, definition)


def bleu_of(
    counts: BleuCounts,
    order: int,
    rows: np.ndarray | None = None,
    columns: np.ndarray | None = None,
) -> float:
    """Corpus BLEU of hypotheses ``rows`` against reference sets ``columns``; by default each its own.

    order: 1 to the order of the counts.
    """
    rows = np.arange(len(counts.length)) if rows is None else rows
    columns = rows if columns is None else columns
    return _compute(
        counts.correct[:order, rows, columns].sum(1),
        counts.total[:order, rows].sum(1),
        int(counts.length[rows].sum()),
        int(counts.closest[rows, columns].sum()),
        order,
        counts.options,
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
    return bleu_of(counts, order), counts.definition


def sentence_bleus(
    counts: BleuCounts, order: int = 4, columns: np.ndarray | None = None
) -> np.ndarray:
    """Sentence BLEU (n,) of each hypothesis against set ``columns`` (n,), by default its own.

    sacrebleu's sentence score: exponential smoothing, effective order (orders longer than the
    sentence are left out).
    """
    n = len(counts.length)
    columns = np.arange(n) if columns is None else columns
    return np.array(
        [
            _compute(
                counts.correct[:order, i, columns[i]],
                counts.total[:order, i],
                int(counts.length[i]),
                int(counts.closest[i, columns[i]]),
                order,
                {"smooth_method": "exp", "effective_order": True},
            )
            for i in range(n)
        ]
    )


def sentence_bleu_mean(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], order: int = 4
) -> tuple[float, str]:
    """Mean over hypotheses of sacrebleu's sentence BLEU, and its definition. Not comparable with
    corpus BLEU."""
    counts = bleu_counts(hypotheses, references, order)
    return float(sentence_bleus(counts, order).mean()), sentence_definition(counts, order)


def sentence_definition(counts: BleuCounts, order: int) -> str:
    """What the mean of ``sentence_bleus`` is, in words."""
    signature = counts.definition.split(": ", 1)[1].replace("eff:no", "eff:yes")
    return f"sentence BLEU-{order}, mean over captions: {signature}"


def bleu_interval(
    counts: BleuCounts, order: int, n_boot: int, seed: int, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap over pictures of corpus BLEU: (low, high)."""
    rng = np.random.default_rng(seed)
    n = len(counts.length)
    scores = [bleu_of(counts, order, rng.integers(0, n, n)) for _ in range(n_boot)]
    low, high = np.quantile(scores, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _metric(order: int, style: str, n_references: set[int]) -> tuple[Any, str]:
    """A sacrebleu metric and the words that a score made by it is printed with."""
    from sacrebleu.metrics import BLEU

    if style == "coco-like":
        metric = BLEU(lowercase=True, tokenize="none", smooth_method="none", max_ngram_order=order)
        note = ", punctuation removed (close to coco-caption, not its PTB tokenizer)"
    else:
        metric, note = BLEU(max_ngram_order=order), ""
    metric.num_refs = n_references.pop() if len(n_references) == 1 else -1
    return metric, f"corpus BLEU-{order}: sacrebleu {metric.get_signature()}{note}"


def _words(metric: Any, style: str, text: str) -> list[str]:
    if style == "coco-like":
        return _DROPPED.sub(" ", text.lower()).split()
    return metric.tokenizer(text.rstrip()).split()


def _matches(hypotheses: list[list[str]], references: list[list[list[str]]], k: int) -> np.ndarray:
    """Clipped matches of k-grams, (n, n) int32."""
    columns: dict[tuple, int] = {}
    counted = [_grams(words, k) for words in hypotheses]
    left = _indicator(counted, columns, grow=True)
    best = []
    for texts in references:
        most: Counter = Counter()
        for words in texts:
            most |= _grams(words, k)
        best.append(most)
    right = _indicator(best, columns, grow=False)
    return (left @ right.T).toarray().astype(np.int32)


def _grams(words: list[str], k: int) -> Counter:
    return Counter(tuple(words[i : i + k]) for i in range(len(words) - k + 1))


def _indicator(counts: list[Counter], columns: dict[tuple, int], grow: bool) -> sparse.csr_matrix:
    """Rows of [count >= t] for each (gram, t); ``columns`` numbers them and grows if asked to."""
    at: list[int] = []
    ends = [0]
    for counter in counts:
        for gram, count in counter.items():
            for t in range(1, count + 1):
                key = (gram, t)
                if grow:
                    at.append(columns.setdefault(key, len(columns)))
                elif key in columns:
                    at.append(columns[key])
        ends.append(len(at))
    # without a single gram scipy still wants one column
    shape = (len(counts), max(len(columns), 1))
    return sparse.csr_matrix((np.ones(len(at), dtype=np.int32), at, ends), shape=shape)


def _compute(
    correct: np.ndarray, total: np.ndarray, length: int, closest: int, order: int, options: dict
) -> float:
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
