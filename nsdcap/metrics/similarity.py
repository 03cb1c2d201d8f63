"""Cosines of embeddings, which of two scores is higher, and what shuffled pictures would give."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from nsdcap.errors import UsageError
from nsdcap.stats import binomial_ci


class Share(NamedTuple):
    """A share of pictures and its exact (Clopper-Pearson) 95 % interval; ties are left out of ``n``."""

    value: float
    low: float
    high: float
    n: int
    ties: int


def clip_similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine of each picture's embedding with its partner's, (n,) float64.

    a (n, d); b (n, d), or (n, samples, d), then the mean over the samples' cosines.
    """
    _agree("clip_similarity", len(a), len(b))
    samples = b[:, None] if b.ndim == 2 else b
    a = unit(np.asarray(a, dtype=np.float64))
    return np.einsum("nd,nsd->ns", a, unit(np.asarray(samples, dtype=np.float64))).mean(1)


def wins(first: np.ndarray, second: np.ndarray) -> Share:
    """Share of pictures whose ``first`` score (n,) is above ``second`` (n,), with its exact interval.

    All ties: NaN.
    """
    _agree("wins", len(first), len(second))
    ties = int(np.sum(first == second))
    n = len(first) - ties
    if n == 0:
        return Share(np.nan, np.nan, np.nan, 0, ties)
    k = int(np.sum(first > second))
    return Share(k / n, *binomial_ci(k, n), n, ties)


def shuffled(
    score: Callable[[np.ndarray], float], n: int, n_shuffles: int, seed: int
) -> tuple[float, float]:
    """Chance: mean and standard deviation of ``score(permutation)`` over shuffles of n pictures.

    score: takes a permutation (n,) of picture numbers and gives the score of item i held against
    picture permutation[i].
    """
    rng = np.random.default_rng(seed)
    scores = [score(rng.permutation(n)) for _ in range(n_shuffles)]
    return float(np.mean(scores)), float(np.std(scores, ddof=1 if n_shuffles > 1 else 0))


def unit(x: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return x / np.linalg.norm(x, axis=-1, keepdims=True)


def _agree(name: str, n: int, other: int) -> None:
    if n != other:
        raise UsageError(f"{name}: found {n} and {other} pictures, expected as many of both")
