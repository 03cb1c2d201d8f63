"""Counts of n-grams, in the form in which the clipped matches of all pairs are one matrix product."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from scipy import sparse

Gram = tuple[str, ...]


def grams(words: Sequence[str], k: int) -> Counter:
    """How often each k-gram stands in ``words``."""
    return Counter(tuple(words[i : i + k]) for i in range(len(words) - k + 1))


def at_least(
    counts: list[Counter],
    columns: dict[tuple[Gram, int], int],
    grow: bool,
    weight: Callable[[Gram, int], float] | None = None,
) -> sparse.csr_matrix:
    """Rows of [count >= t] for each (gram, t); ``columns`` numbers them and grows if asked to.

    min(a, b) is the sum over t >= 1 of [a >= t][b >= t], so a product of two such matrices holds the
    clipped matches of all pairs. ``weight`` of a gram and its count multiplies all of its entries,
    int32 without, float64 with.
    """
    at: list[int] = []
    values: list[float] = []
    ends = [0]
    for counter in counts:
        for gram, count in counter.items():
            value = 1 if weight is None else weight(gram, count)
            for t in range(1, count + 1):
                key = (gram, t)
                if grow:
                    at.append(columns.setdefault(key, len(columns)))
                elif key in columns:
                    at.append(columns[key])
                else:
                    break
                values.append(value)
        ends.append(len(at))
    # without a single gram scipy still wants one column
    shape = (len(counts), max(len(columns), 1))
    kind = np.int32 if weight is None else np.float64
    return sparse.csr_matrix((np.array(values, dtype=kind), at, ends), shape=shape)
