"""Random predictions and measurements for the tests of statistics."""

from __future__ import annotations

import numpy as np
import pytest

from nsdcap import stats


def columns(n: int, t: int, seed: int = 0, effect: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and measured (n, t), independent but for ``effect`` of the first on the second."""
    rng = np.random.default_rng(seed)
    predicted = rng.normal(size=(n, t))
    return predicted, effect * predicted + rng.normal(size=(n, t))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks of voxels in every test."""
    monkeypatch.setattr(stats, "BLOCK", 64)
