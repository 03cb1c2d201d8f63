"""The caption stage's own arithmetic: the nearest training picture and chance."""

import h5py
import numpy as np
import pytest

from nsdcap.caption import nearest_rows, shuffled_mean


def test_nearest_rows_find_shrunken_copies_whatever_all_pictures_share(tmp_path):
    rng = np.random.default_rng(0)
    own = rng.standard_normal((40, 300)).astype(np.float32)
    common = 20 * rng.standard_normal(300).astype(np.float32)
    wanted = rng.integers(0, 40, 15)
    shrunken = common + own.mean(0) + 0.4 * (own - own.mean(0))[wanted]
    shrunken += 0.1 * rng.standard_normal(shrunken.shape).astype(np.float32)
    with h5py.File(tmp_path / "z_v.h5", "w") as file:
        file["z_v"] = own + common
        for block in (7, 1000):
            np.testing.assert_array_equal(nearest_rows(shrunken, file["z_v"], block), wanted)


def test_chance_is_the_mean_over_all_pairs():
    similar = np.random.default_rng(1).standard_normal((30, 30)) + 5 * np.eye(30)
    mean, sd = shuffled_mean(similar, seed=0, n_shuffles=4000)
    assert mean == pytest.approx(similar.mean(), abs=0.01)
    centred = similar - similar.mean(0) - similar.mean(1)[:, None] + similar.mean()
    # the variance of a random permutation's sum (Hoeffding 1951)
    assert sd == pytest.approx(np.sqrt((centred**2).sum() / 29) / 30, rel=0.05)
