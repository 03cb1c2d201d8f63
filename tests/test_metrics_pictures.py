"""Pictures' scores against explicit loops."""

from __future__ import annotations

import numpy as np
import pytest

from nsdcap.errors import UsageError
from nsdcap.metrics.pictures import pixcorr, two_way_identification
from nsdcap.metrics.similarity import clip_similarity, wins


def test_two_way_equals_a_double_loop():
    rng = np.random.default_rng(0)
    shown = rng.normal(size=(17, 6))
    predicted = shown + 2 * rng.normal(size=shown.shape)
    n = len(shown)
    r = np.array([[np.corrcoef(p, s)[0, 1] for s in shown] for p in predicted])
    among_shown = [np.mean([r[i, i] > r[i, j] for j in range(n) if j != i]) for i in range(n)]
    among_predicted = [np.mean([r[i, i] > r[j, i] for j in range(n) if j != i]) for i in range(n)]
    found = two_way_identification(predicted, shown)
    np.testing.assert_allclose(found.among_shown, among_shown)
    np.testing.assert_allclose(found.among_predicted, among_predicted)
    assert not np.allclose(found.among_shown, found.among_predicted)


def test_two_way_extremes():
    shown = np.random.default_rng(0).normal(size=(8, 5))
    assert two_way_identification(shown, shown).among_shown.mean() == 1
    same = np.tile(shown[:1], (8, 1))
    assert two_way_identification(same, same).among_shown.mean() == pytest.approx(0.5)
    with pytest.raises(UsageError, match="two-way"):
        two_way_identification(shown[:1], shown[:1])


def test_clip_similarity_averages_samples():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(5, 4)), rng.normal(size=(5, 3, 4))
    expected = [
        np.mean([x @ y / np.linalg.norm(x) / np.linalg.norm(y) for y in ys])
        for x, ys in zip(a, b, strict=True)
    ]
    np.testing.assert_allclose(clip_similarity(a, b), expected)
    np.testing.assert_allclose(clip_similarity(a, a), 1)


def test_wins_with_ties():
    found = wins(np.array([1.0, 2, 3, 4]), np.array([0.0, 2, 4, 0]))
    assert (found.value, found.n, found.ties) == (pytest.approx(2 / 3), 3, 1)
    assert found.low == pytest.approx(0.0943, abs=1e-3)  # Clopper-Pearson of 2 in 3
    assert np.isnan(wins(np.ones(2), np.ones(2)).value)


def test_pixcorr():
    rng = np.random.default_rng(0)
    a = rng.integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    b = rng.integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    expected = [np.corrcoef(x.ravel(), y.ravel())[0, 1] for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(pixcorr(a, b), expected)
    assert np.isnan(pixcorr(np.zeros_like(a), b)).all()
