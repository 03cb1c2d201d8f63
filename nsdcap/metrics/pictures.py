"""How near predicted pictures are to those shown."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nsdcap.errors import UsageError
from nsdcap.metrics.similarity import unit


class TwoWay(NamedTuple):
    """Share (n,) of wrong pictures that each right one beats; the mean is the score, chance 0.5.

    ``among_shown``: the prediction is held, the shown pictures are told apart (the usual direction).
    ``among_predicted``: the shown picture is held, the predictions are told apart.
    """

    among_shown: np.ndarray
    among_predicted: np.ndarray


def two_way_identification(predicted: np.ndarray, shown: np.ndarray) -> TwoWay:
    """Two-way identification by Pearson r over all pairs; a tie counts one half.

    predicted (n, d), shown (n, d), n at least 2. Both directions: see ``TwoWay``.

    Raises
    ------
    UsageError
        Shapes differ or n < 2.
    """
    if predicted.shape != shown.shape or len(predicted) < 2:
        raise UsageError(
            f"two-way identification: found shapes {predicted.shape} and {shown.shape}, expected "
            "two equal shapes (n, d) with n of 2 or more"
        )
    similarity = unit(_centred(predicted)) @ unit(_centred(shown)).T  # (n predicted, n shown)
    right = np.diag(similarity)

    def beaten(wrong: np.ndarray, axis: int) -> np.ndarray:
        scores = (wrong < 0).sum(axis) + 0.5 * ((wrong == 0).sum(axis) - 1)
        return scores / (len(similarity) - 1)

    return TwoWay(beaten(similarity - right[:, None], 1), beaten(similarity - right[None, :], 0))


def pixcorr(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson r (n,) over all pixels and channels of pictures a and b, both (n, S, S, 3).

    A picture of one colour: NaN.
    """
    if a.shape != b.shape:
        raise UsageError(f"pixcorr: found shapes {a.shape} and {b.shape}, expected equal ones")
    x, y = (_centred(p.reshape(len(p), -1)) for p in (a, b))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (x * y).sum(1) / np.sqrt((x**2).sum(1) * (y**2).sum(1))


def _centred(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, dtype=np.float64)
    return x - x.mean(-1, keepdims=True)
