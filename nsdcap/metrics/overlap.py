"""ROUGE-L and CIDEr as coco-caption defines them, of every caption with every picture's references.

Captions come as coco-caption's tokens with blanks between them (``coco.tokenise``). Entry (i, j) of a
result is caption i held against the references of picture j: the diagonal is the score, the rest is chance.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from nsdcap.metrics.ngrams import Gram, at_least, grams

BETA = 1.2  # of ROUGE-L: weight of recall
SIGMA, ORDERS = 6.0, (1, 2, 3, 4)  # of CIDEr
CELLS = 2**23  # pairs of captions at a time


def rouge_l(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """ROUGE-L (n hypotheses, n reference lists) float64, 0 to 1.

    F of the best precision and the best recall over a list's references, which may be of two of them.
    Source: Lin 2004, in coco-caption's form.
    """
    hyp = [text.split(" ") for text in hypotheses]  # as there: an empty text is one empty word
    ref = [text.split(" ") for texts in references for text in texts]
    starts = _starts(references)
    common = _common(hyp, ref)
    precision = np.maximum.reduceat(common / _lengths(hyp)[:, None], starts, axis=1)
    recall = np.maximum.reduceat(common / _lengths(ref), starts, axis=1)
    below = recall + BETA**2 * precision
    above = (1 + BETA**2) * precision * recall
    return np.divide(above, below, out=np.zeros_like(below), where=below > 0)


def cider(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """CIDEr (n hypotheses, n reference lists) float64, 0 to 10: coco-caption's, which is CIDEr-D.

    An n-gram weighs log(n) less the log of the number of lists that hold it. Shuffled pictures have
    the same lists, so these weights are theirs, too. min(a, b) b of two counts is a weighted sum over
    t >= 1 of [a >= t][b >= t], so all pairs are one sparse product per order. Memory: hypotheses x
    references x 8 B a few times. Source: Vedantam et al. 2015.
    """
    hyp = [text.split() for text in hypotheses]
    ref = [text.split() for texts in references for text in texts]
    starts = _starts(references)
    # coco-caption takes a sentence's length in bigrams
    apart = _bigrams(hyp)[:, None] - _bigrams(ref)
    near = np.exp(-(apart**2) / (2 * SIGMA**2))
    total = np.zeros(near.shape)
    for k in ORDERS:
        known = [grams(words, k) for words in ref]
        total += _cosines([grams(words, k) for words in hyp], known, _rarity(known, starts))
    counts = np.diff([*starts, len(ref)])
    return np.add.reduceat(total * near, starts, axis=1) / counts * (10 / len(ORDERS))


def _rarity(references: list[Counter], starts: np.ndarray) -> dict[Gram, float]:
    """Weight of each n-gram; of one that no list holds, as if one did."""
    held: Counter = Counter()
    for start, stop in zip(starts, [*starts[1:], len(references)], strict=True):
        held.update(set().union(*references[start:stop]))
    most = float(np.log(len(starts)))
    return defaultdict(lambda: most, {gram: most - np.log(count) for gram, count in held.items()})


def _cosines(
    hypotheses: list[Counter], references: list[Counter], rarity: dict[Gram, float]
) -> np.ndarray:
    """Cosines (hypotheses, references) of weighted counts, a hypothesis' clipped at the reference's."""

    def lengths(counts: list[Counter]) -> np.ndarray:
        squares = [sum((c * rarity[gram]) ** 2 for gram, c in each.items()) for each in counts]
        return np.sqrt(squares)

    columns: dict[tuple[Gram, int], int] = {}
    left = at_least(hypotheses, columns, grow=True).astype(np.float64)
    right = at_least(references, columns, False, lambda gram, count: count * rarity[gram] ** 2)
    size = np.outer(lengths(hypotheses), lengths(references))
    return np.divide((left @ right.T).toarray(), size, out=np.zeros_like(size), where=size > 0)


def _common(hypotheses: list[list[str]], references: list[list[str]]) -> np.ndarray:
    """Length of the longest common subsequence of each hypothesis with each reference, int64.

    A hypothesis' row of the usual table is the bits of one number (Crochemore et al. 2001, Inf. Process.
    Lett. 80:279; Hyyro 2004): a word of a reference takes two additions for all pairs at once.
    """
    longest = max(map(len, hypotheses))
    kind = np.uint64 if longest <= 64 else object  # Python's own numbers have any number of bits
    number: dict[str, int] = {}
    for words in references:
        for word in words:
            number.setdefault(word, len(number))
    where = np.zeros((len(number) + 1, len(hypotheses)), dtype=kind)  # its last row: no word
    for i, words in enumerate(hypotheses):
        for place, word in enumerate(words):
            if word in number:
                where[number[word], i] = int(where[number[word], i]) | 1 << place
    full = np.array([(1 << len(words)) - 1 for words in hypotheses], dtype=kind)
    found = np.empty((len(references), len(hypotheses)), dtype=np.int64)
    block = max(1, CELLS // len(hypotheses))
    for start in range(0, len(references), block):
        some = references[start : start + block]
        rows = np.tile(full, (len(some), 1))
        for place in range(max(map(len, some))):
            at = [number[words[place]] if place < len(words) else -1 for words in some]
            match = rows & where[at]
            rows = (rows + match) | (rows - match)
        found[start : start + block] = _ones(~rows & full, longest)
    return found.T


def _ones(numbers: np.ndarray, bits: int) -> np.ndarray:
    """How many of the lowest ``bits`` are set."""
    return sum(((numbers >> place) & 1).astype(np.int64) for place in range(bits))  # type: ignore[return-value]


def _starts(references: Sequence[Sequence[str]]) -> np.ndarray:
    return np.cumsum([0, *map(len, references[:-1])])


def _lengths(texts: list[list[str]]) -> np.ndarray:
    return np.array([len(words) for words in texts], dtype=np.float64)


def _bigrams(texts: list[list[str]]) -> np.ndarray:
    return np.maximum(_lengths(texts) - 1, 0)
