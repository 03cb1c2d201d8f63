"""Statistics against SciPy, statsmodels, explicit loops and planted truths."""

import numpy as np
import pytest
import scipy.stats
from statsmodels.stats.multitest import fdrcorrection

from nsdcap import stats


def pairs(n=40, t=30, seed=0, signal=0.5):
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((n, t))
    return a, signal * a + rng.standard_normal((n, t)) + 3


def test_pearson_and_its_gaussian_p_equal_scipy():
    a, b = pairs(t=5000)
    r = stats.pearson(a, b)
    p = stats.p_gaussian(r, len(a))
    for column in (0, 1, 4999):
        theirs = scipy.stats.pearsonr(a[:, column], b[:, column], alternative="greater")
        assert r[column] == pytest.approx(theirs.statistic, abs=1e-12)
        assert p[column] == pytest.approx(theirs.pvalue, rel=1e-9)


def test_constant_columns_are_nan_and_stay_out_of_the_family():
    a, b = pairs()
    a[:, 3] = 0.1
    r = stats.pearson(a, b)
    p, fwe = stats.p_permutation(a, b, 200, 0)
    for values in (r, p, fwe, stats.p_gaussian(r, len(a))):
        assert np.flatnonzero(np.isnan(values)).tolist() == [3]
    kept = np.arange(30) != 3
    alone, alone_fwe = stats.p_permutation(a[:, kept], b[:, kept], 200, 0)
    np.testing.assert_array_equal(p[kept], alone)
    np.testing.assert_array_equal(fwe[kept], alone_fwe)


def test_permutation_counts_equal_a_plain_loop_over_the_same_nulls():
    a, b = pairs(n=23, t=9, signal=0.3)
    orders = stats.null_orders(23, 60, 5)
    assert orders.shape == (3, 23)
    nulls = []
    for order in orders:
        for shift in range(1, 23):
            nulls.append(stats.pearson(a[order], b[np.roll(order, shift)]))
    nulls, r = np.array(nulls), stats.pearson(a, b)
    p, fwe = stats.p_permutation(a, b, 60, 5)
    np.testing.assert_allclose(p, (1 + (nulls >= r).sum(0)) / (1 + len(nulls)))
    expected = [(1 + (nulls.max(1) >= one).sum()) / (1 + len(nulls)) for one in r]
    np.testing.assert_allclose(fwe, expected)


def test_permutation_p_is_uniform_under_the_null_and_finds_what_is_planted():
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((100, 3000)), rng.standard_t(3, (100, 3000))
    p, _ = stats.p_permutation(a, b, 999, 0)
    assert scipy.stats.kstest(p, "uniform").pvalue > 0.001
    assert 0.03 < (p < 0.05).mean() < 0.07
    p, fwe = stats.p_permutation(a, a + b, 999, 0)
    assert (p < 0.01).mean() > 0.95
    assert (fwe >= p).all()


def test_family_wise_error_holds_with_correlated_voxels():
    rng = np.random.default_rng(2)
    wrong = 0
    for run in range(200):
        shared = rng.standard_normal((40, 1))
        a, b = rng.standard_normal((40, 30)), rng.standard_normal((40, 30)) + 2 * shared
        wrong += (stats.p_permutation(a, b, 300, run)[1] < 0.05).any()
    assert scipy.stats.binomtest(wrong, 200, 0.05).pvalue > 0.001


def test_the_same_orders_for_every_voxel():
    a, b = pairs(t=3000)
    p, _ = stats.p_permutation(a, b, 100, 7)
    alone, _ = stats.p_permutation(a[:, 2500:2501], b[:, 2500:2501], 100, 7)
    assert p[2500] == alone[0]


def test_fdr_equals_statsmodels_and_leaves_nan_out():
    rng = np.random.default_rng(3)
    p = np.concatenate([rng.random(500), rng.random(100) * 1e-3, [np.nan] * 5])
    significant, q = stats.fdr(p)
    reject, theirs = fdrcorrection(p[:600], 0.05)
    np.testing.assert_array_equal(significant[:600], reject)
    np.testing.assert_allclose(q[:600], theirs)
    assert not significant[600:].any()
    assert np.isnan(q[600:]).all()
    assert not stats.fdr(np.full(4, np.nan))[0].any()


def test_noise_ceiling_is_the_squared_r_of_signal_and_mean_response():
    rng = np.random.default_rng(4)
    repeats, ncsnr = np.array([1, 2, 3, 3] * 20000), 0.8
    signal = ncsnr * rng.standard_normal(len(repeats))
    mean = signal + rng.standard_normal(len(repeats)) / np.sqrt(repeats)
    ceiling = stats.noise_ceiling(np.array([ncsnr]), repeats)
    assert np.corrcoef(signal, mean)[0, 1] ** 2 == pytest.approx(ceiling[0], abs=0.01)


def test_gain_equals_its_definition_and_its_interval_covers():
    rng = np.random.default_rng(5)
    covered = []
    for seed in range(60):
        y = rng.standard_normal((200, 3))
        joint = y + 0.6 * rng.standard_normal(y.shape)
        single = y + 0.8 * rng.standard_normal(y.shape)
        gain, low, high = stats.gain_r2(joint, single, y, 300, seed)
        spread = ((y - y.mean(0)) ** 2).sum(0)
        expected = ((single - y) ** 2).sum(0) / spread - ((joint - y) ** 2).sum(0) / spread
        np.testing.assert_allclose(gain, expected)
        covered.append((low < 0.28) & (high > 0.28))
    assert 0.88 < np.mean(covered) <= 1


def test_intervals_against_scipy():
    values = np.random.default_rng(6).standard_normal((300, 2)) + 1
    mean, low, high = stats.bootstrap_ci(values, 4000, 0)
    theirs = scipy.stats.bootstrap((values[:, 0],), np.mean, method="percentile", random_state=0)
    assert low[0] == pytest.approx(theirs.confidence_interval.low, abs=0.015)
    assert high[0] == pytest.approx(theirs.confidence_interval.high, abs=0.015)
    assert (low < mean).all()
    assert (mean < high).all()
    low, high = stats.binomial_ci(0, 20)
    assert low == 0
    assert high == pytest.approx(1 - 0.025 ** (1 / 20))


def test_shapes_that_disagree_are_named():
    with pytest.raises(ValueError, match=r"\(4, 2\)"):
        stats.pearson(np.zeros((4, 2)), np.zeros((4, 3)))
    with pytest.raises(ValueError, match="n >= 3"):
        stats.p_permutation(np.zeros((2, 2)), np.zeros((2, 2)), 10, 0)
    with pytest.raises(ValueError, match="at least 3"):
        stats.p_gaussian(np.zeros(2), 2)
