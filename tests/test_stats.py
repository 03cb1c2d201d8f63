"""Statistics against scipy and statsmodels, explicit loops, and planted truths."""

from __future__ import annotations

import itertools
import tracemalloc
import warnings
from typing import Any

import numpy as np
import pytest
import scipy.fft
import scipy.stats
from sklearn.metrics import r2_score
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from nsdcap import stats
from nsdcap.stats import (
    binomial_ci,
    bootstrap_ci,
    fdr,
    gain_r2,
    noise_ceiling,
    null_orders,
    p_gaussian,
    p_permutation,
    pearson,
    resamples,
)


def columns(n: int, t: int, seed: int = 0, effect: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and measured (n, t), independent but for ``effect`` of the first on the second."""
    rng = np.random.default_rng(seed)
    predicted = rng.normal(size=(n, t))
    return predicted, effect * predicted + rng.normal(size=(n, t))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks of voxels in every test."""
    monkeypatch.setattr(stats, "BLOCK", 64)


# --- correlation and its nulls ------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_pearson_equals_scipy(dtype: str) -> None:
    a, b = (x.astype(dtype) + 100 for x in columns(30, 150, effect=0.5))
    expected = [
        scipy.stats.pearsonr(x.astype("f8"), y.astype("f8"))[0]
        for x, y in zip(a.T, b.T, strict=True)
    ]
    np.testing.assert_allclose(pearson(a, b), expected, atol=1e-10)


def test_constant_columns_are_nan_without_a_warning() -> None:
    a, b = columns(30, 5)
    a[:, 1], b[:, 3] = 0.1, 7.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        r = pearson(a, b)
        both = p_gaussian(r, 30)
        found = [p for null in ("own", "pooled", "tail") for p in p_permutation(a, b, 100, 0, null)]
    for values in (r, both, *found):
        np.testing.assert_array_equal(np.isnan(values), [False, True, False, True, False])


def test_p_gaussian_equals_scipy() -> None:
    a, b = columns(12, 100, effect=0.3)
    pairs = zip(a.T, b.T, strict=True)
    expected = [scipy.stats.pearsonr(x, y, alternative="greater").pvalue for x, y in pairs]
    np.testing.assert_allclose(p_gaussian(pearson(a, b), 12), expected, rtol=1e-8)
    np.testing.assert_array_equal(p_gaussian(np.array([1.0, -1.0, 0.0]), 12), [0, 1, 0.5])


def test_p_gaussian_is_how_often_independent_gaussians_correlate_as_much() -> None:
    """The paper's null as the paper has it, by simulation, against its closed form."""
    rng = np.random.default_rng(0)
    t = 200_000
    for n in (5, 20):
        drawn = np.concatenate([
            pearson(rng.standard_normal((n, t // 4)), rng.standard_normal((n, t // 4)))
            for _ in range(4)
        ])  # fmt: skip
        for r in (-0.5, 0.0, 0.2, 0.4, 0.6, 0.8):
            low, high = scipy.stats.binom.interval(0.9999, t, p_gaussian(np.array(r), n))
            assert low <= (drawn >= r).sum() <= high
        assert scipy.stats.kstest(p_gaussian(drawn, n), "uniform").pvalue > 1e-3


def test_the_scale_of_the_data_says_nothing() -> None:
    a, b = columns(30, 70, effect=0.5)
    b[:, 3] = 1.0
    factor = np.resize([1e200, 1e307, 1e-200, 1e-307, 1.0], 70)
    for one, other in ((a, b), (a.astype("f4").astype("f8"), np.sign(b))):
        scaled = one * factor, other * factor[::-1]
        np.testing.assert_allclose(pearson(*scaled), pearson(one, other), rtol=1e-12)
        for null in ("own", "tail"):
            found = p_permutation(*scaled, 200, 0, null)
            np.testing.assert_allclose(found, p_permutation(one, other, 200, 0, null), rtol=1e-6)
    joint, single, measured = gain_case()
    factor = np.resize(factor, joint.shape[1])
    found = gain_r2(joint * factor, single * factor, measured * factor, 50, 0)
    np.testing.assert_allclose(found, gain_r2(joint, single, measured, 50, 0), rtol=1e-9)


def loop(a: np.ndarray, b: np.ndarray, n_nulls: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Observed r (t,) and every null (k, t), by float64 sums."""
    a, b = (x - x.mean(0) for x in (a.astype("f8"), b.astype("f8")))
    a, b = a / np.linalg.norm(a, axis=0), b / np.linalg.norm(b, axis=0)
    orders, m = null_orders(len(a), n_nulls, seed)
    null = np.array([
        (a[order] * b[np.r_[np.roll(orders[0][:m], shift), orders[0][m:]]]).sum(0)
        for number, order in enumerate(orders)
        for shift in range(number == 0, m)
    ])  # fmt: skip
    return (a * b).sum(0), null


@pytest.mark.parametrize("kind", ["f8", "f4", "few values", "ranks of few", "heavy"])
@pytest.mark.parametrize(
    ("n", "n_nulls", "t"), [(3, 4, 70), (20, 19, 70), (23, 60, 70), (982, 1000, 20)]
)
def test_permutation_counts_equal_a_loop_over_the_same_nulls(
    n: int, n_nulls: int, t: int, kind: str
) -> None:
    a, b = columns(n, t, effect=0.05)
    if kind == "f4":
        a, b = a.astype("f4") + 1000, b.astype("f4")
    elif kind == "few values":
        a, b = np.sign(a), np.where(b > 1, 0.1, 0.3)
    elif kind == "ranks of few":
        a, b = np.round(a) / 3, np.round(b).astype("f4")
    elif kind == "heavy":
        a, b = np.sign(a) * np.exp(4 * abs(a)), b**5
    a[0], a[-1], b[0] = 5, -5, 0.7  # none is constant
    p, p_fwe = p_permutation(a, b, n_nulls, seed=4)
    observed, null = loop(a, b, n_nulls, seed=4)
    assert n_nulls <= len(null) < n_nulls + n
    counts = (null >= observed - 1e-12).sum(0)
    np.testing.assert_array_equal(np.rint(p * (1 + len(null))) - 1, counts)
    above = (null.max(1)[:, None] >= observed - 1e-12).sum(0)
    np.testing.assert_array_equal(np.rint(p_fwe * (1 + len(null))) - 1, above)


def test_the_guard_is_far_above_the_error_of_float32() -> None:
    for a, b in (
        columns(980, 100),
        [np.exp(3 * x) for x in columns(980, 100)],
        [np.ones((64, 2))] * 2,
    ):
        x, y = (v.T / np.linalg.norm(v, axis=0)[:, None] for v in (a, b))
        narrow, wide = (
            scipy.fft.irfft(
                scipy.fft.rfft(x.astype(kind)) * scipy.fft.rfft(y.astype(kind)).conj(), x.shape[1]
            )
            for kind in ("f4", "f8")
        )
        assert narrow.dtype == np.float32
        assert (10 * abs(narrow - wide).max(1) < stats._guard(narrow)).all()


def test_orders_are_permutations_of_the_seed_alone() -> None:
    orders, m = null_orders(50, 100, 1)
    assert m == 50
    assert null_orders(982, 1000, 1)[1] == 980
    assert orders.shape == (3, 50)
    assert len(null_orders(50, 49, 1)[0]) == 1
    np.testing.assert_array_equal(np.sort(orders, axis=1), np.tile(np.arange(50), (3, 1)))
    np.testing.assert_array_equal(orders, null_orders(50, 100, 1)[0])
    assert (orders != null_orders(50, 100, 2)[0]).any()


def test_a_voxel_has_the_same_p_whatever_voxels_are_beside_it() -> None:
    a, b = columns(40, 100, effect=0.2)
    whole, _ = p_permutation(a, b, 200, 0)
    part, _ = p_permutation(a[:, 90:], b[:, 90:], 200, 0)
    np.testing.assert_array_equal(whole[90:], part)


def test_constant_columns_stay_out_of_the_maximum() -> None:
    a, b = columns(40, 20, effect=0.3)
    spoilt = np.hstack([a, np.zeros((40, 1))]), np.hstack([b, b[:, :1]])
    np.testing.assert_array_equal(
        p_permutation(*spoilt, 200, 0)[1][:-1], p_permutation(a, b, 200, 0)[1]
    )


@pytest.mark.parametrize("null", ["own", "pooled", "tail"])
@pytest.mark.parametrize("tails", ["gaussian", "heavy"])
def test_permutation_p_is_uniform_under_the_null(tails: str, null: str) -> None:
    rng = np.random.default_rng(0)
    draw = rng.standard_normal if tails == "gaussian" else lambda size: rng.standard_t(3, size)
    n, t = 60, 20_000
    p, _ = p_permutation(draw((n, t)), draw((n, t)), 1000, 0, null)
    if (tails, null) == ("heavy", "pooled"):  # voxels' nulls differ: nearly uniform at most
        assert scipy.stats.kstest(p, "uniform").statistic < 0.02
        return
    assert scipy.stats.kstest(p, "uniform").pvalue > 0.01
    for level in (0.05, 0.01, 2e-3):
        low, high = scipy.stats.binom.interval(0.999, t, level)
        assert low <= (p <= level).sum() <= high


def test_permutation_p_is_exact_over_all_orders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every arrangement of four pictures against every pair of orders: P(p <= a) = a."""
    rng = np.random.default_rng(3)
    every = np.array(list(itertools.permutations(range(4))))  # (24, 4)
    x, y = np.exp(3 * rng.normal(size=(2, 4)))
    a, b = np.repeat(x[:, None], 24, axis=1), y[every].T
    found = []
    for pair in itertools.product(every, every):
        monkeypatch.setattr(stats, "null_orders", lambda *_, pair=pair: (np.array(pair), 4))
        found.append(p_permutation(a, b, 7, 0)[0])
    for rank in range(1, 9):
        assert np.mean(np.array(found) <= rank / 8 + 1e-9) <= rank / 8 + 1e-9


def test_permutation_p_is_uniform_for_correlated_voxels() -> None:
    rng = np.random.default_rng(1)
    shared = rng.normal(size=(2, 60, 2000, 1))  # ten voxels share half of their variance
    a, b = (shared + rng.normal(size=(2, 60, 2000, 10))).reshape(2, 60, 20_000)
    p, _ = p_permutation(a, b, 1000, 0)
    apart = [scipy.stats.kstest(p[first::10], "uniform").pvalue for first in range(10)]
    assert min(apart) > 0.001


def test_pooled_p_counts_all_nulls_within_a_bin() -> None:
    a, b = columns(40, 150, effect=0.4)
    p, p_fwe = p_permutation(a, b, 200, 4, null="pooled")
    observed, null = loop(a, b, 200, 4)
    for r, found in zip(observed, p, strict=True):
        low, high = ((1 + (null >= r - slack).sum()) / (1 + null.size) for slack in (0, 5e-5))
        assert low - 1e-12 <= found <= high + 1e-12
    np.testing.assert_array_equal(p_fwe, p_permutation(a, b, 200, 4)[1])


def test_tail_p_goes_on_where_counts_end() -> None:
    rng = np.random.default_rng(0)
    a, b = columns(300, 400)
    b += rng.uniform(0, 0.5, 400) * a
    own, tail = (p_permutation(a, b, 2000, 0, null)[0] for null in ("own", "tail"))
    total = 2100
    many = own * total > 10.5
    np.testing.assert_array_equal(own[many], tail[many])
    exact = p_gaussian(pearson(a, b), 300)
    assert exact.min() < 1e-12
    assert (tail > 0).all()
    close = (exact > 1e-4) & (exact < 3e-3)
    error = np.log10(tail / exact)[close]
    assert abs(np.median(error)) < 0.15
    assert np.quantile(abs(error), 0.9) < 0.5
    far = exact < 1e-5
    assert np.median(np.log10(tail / exact)[far]) > -0.3  # not smaller than it should be
    assert tail[exact < 1e-12].max() < 1e-4


def test_tail_p_of_few_values_and_few_nulls_is_the_count_or_finite() -> None:
    a, b = columns(30, 40, effect=1.0)
    a, b = np.sign(a), np.sign(b)
    for n_nulls in (20, 500):
        own, tail = (p_permutation(a, b, n_nulls, 0, null)[0] for null in ("own", "tail"))
        assert np.isfinite(tail).all()
        assert ((tail > 0) & (tail <= 2 * own)).all()


def test_memory_is_that_of_a_block() -> None:
    a, b = (x.astype("f4") for x in columns(100, 20_000))
    tracemalloc.start()
    p_permutation(a, b, 100, 0)
    pearson(a, b)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < a.nbytes / 2


def test_family_wise_error_is_held_with_correlated_voxels() -> None:
    n_sets, found = 500, 0
    for seed in range(n_sets):
        a, b = columns(30, 20, seed)
        b += b[:, :1]  # voxels share noise
        found += p_permutation(a, b, 200, seed)[1].min() <= 0.05
    low, high = scipy.stats.binom.interval(0.998, n_sets, 0.05)
    assert low <= found <= high


def test_a_planted_effect_is_found() -> None:
    a, b = columns(100, 200)
    b[:, :20] += 0.8 * a[:, :20]
    p, p_fwe = p_permutation(a, b, 1000, 0)
    assert (p_fwe[:20] <= 0.05).mean() > 0.95
    assert fdr(p)[0][:20].all()
    assert (p >= 1 / 1100).all()
    assert (p_fwe >= p).all()


# --- false discoveries --------------------------------------------------------------------------


def test_fdr_equals_statsmodels_and_leaves_nan_out() -> None:
    rng = np.random.default_rng(0)
    p = np.concatenate([rng.uniform(size=200), rng.uniform(size=30) * 1e-3])
    p[::7] = np.nan
    known = np.isfinite(p)
    for alpha in (0.05, 0.2):
        significant, q = fdr(p, alpha)
        reject, expected, *_ = multipletests(p[known], alpha, "fdr_bh")
        np.testing.assert_array_equal(significant[known], reject)
        np.testing.assert_allclose(q[known], expected)
        assert not significant[~known].any()
        assert np.isnan(q[~known]).all()


def test_fdr_of_nothing_known() -> None:
    significant, q = fdr(np.full(3, np.nan))
    assert significant.dtype == bool
    assert not significant.any()
    assert np.isnan(q).all()


# --- ceiling, intervals, gain -------------------------------------------------------------------


def test_noise_ceiling_is_the_highest_r2_of_a_simulated_voxel() -> None:
    rng = np.random.default_rng(0)
    repeats = rng.integers(1, 4, 100_000)
    ncsnr = np.array([0.2, 0.5, 1.5])
    signal = rng.normal(size=(len(repeats), 3)) * ncsnr
    measured = signal + rng.normal(size=signal.shape) / np.sqrt(repeats)[:, None]
    np.testing.assert_allclose(
        np.sqrt(noise_ceiling(ncsnr, repeats)), pearson(signal, measured), atol=0.01
    )


def test_bootstrap_equals_scipy_and_keeps_axes() -> None:
    values = np.random.default_rng(0).exponential(size=(300, 2, 3))
    mean, low, high = bootstrap_ci(values, 5000, 0, level=0.9)
    np.testing.assert_allclose(mean, values.mean(0))
    expected = scipy.stats.bootstrap(
        (values,), np.mean, axis=0, n_resamples=5000, confidence_level=0.9, method="percentile",
        vectorized=True, batch=100, rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    np.testing.assert_allclose(low, expected.low, atol=0.01)
    np.testing.assert_allclose(high, expected.high, atol=0.01)


def test_bootstrap_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(100, 1000)) + 2  # each column an experiment of 100 pictures
    _, low, high = bootstrap_ci(values, 1000, 0)
    assert 0.91 < ((low <= 2) & (high >= 2)).mean() < 0.97


@pytest.mark.parametrize(("k", "n"), [(0, 10), (7, 10), (600, 600), (451, 600)])
def test_binomial_interval_equals_statsmodels(k: int, n: int) -> None:
    np.testing.assert_allclose(
        binomial_ci(k, n), proportion_confint(k, n, method="beta"), atol=1e-9
    )


def gain_case(t: int = 70) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    one, two = rng.normal(size=(2, 80, t))
    return one + two, one, one + two + rng.normal(size=(80, t)) + 3


def test_gain_equals_explicit_resampling() -> None:
    joint, single, measured = gain_case()
    gain, low, high = gain_r2(joint, single, measured, 50, seed=3)

    def difference(weights: np.ndarray | None) -> np.ndarray:
        options = {"sample_weight": weights, "multioutput": "raw_values"}
        return r2_score(measured, joint, **options) - r2_score(measured, single, **options)

    np.testing.assert_allclose(gain, difference(None), rtol=1e-8)
    resampled = [difference(weights) for weights in resamples(80, 50, 3)]
    np.testing.assert_allclose(
        [low, high], np.quantile(resampled, [0.025, 0.975], axis=0), rtol=1e-8
    )


def test_gain_recovers_what_was_planted() -> None:
    rng = np.random.default_rng(1)
    one, two, noise = rng.normal(size=(3, 3000, 40))
    gain, low, high = gain_r2(one + two, one, one + two + noise, 300, 0)
    np.testing.assert_allclose(gain.mean(), 1 / 3, atol=0.01)
    assert ((low <= 1 / 3) & (high >= 1 / 3)).mean() > 0.8
    assert (low > 0).all()


def test_gain_of_a_constant_voxel_is_nan_and_the_others_stay() -> None:
    joint, single, measured = gain_case()
    expected = gain_r2(joint, single, measured, 20, 0)
    measured[:, 5] = 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = gain_r2(joint, single, measured, 20, 0)
    assert np.isnan([values[5] for values in found]).all()
    np.testing.assert_allclose(np.delete(found, 5, 1), np.delete(expected, 5, 1))


# --- input --------------------------------------------------------------------------------------


def test_bad_input_is_refused() -> None:
    a, b = columns(10, 4)
    for call in (
        lambda: pearson(a, b[:, 1:]),
        lambda: pearson(a[:, 0], b[:, 0]),
        lambda: p_gaussian(np.zeros(3), 2),
        lambda: p_permutation(a, b[1:], 10, 0),
        lambda: p_permutation(a[:2], b[:2], 10, 0),
        lambda: p_permutation(a, b, 10, 0, null="both"),
        lambda: gain_r2(a, a, b[:, 1:], 10, 0),
        lambda: noise_ceiling(np.ones(3), np.array([1, 0])),
        lambda: p_permutation(a, b, 0, 0),
        lambda: p_permutation(a, b, -5, 0),
        lambda: gain_r2(a, a, b, 0, 0),
        lambda: bootstrap_ci(a, 0, 0),
        lambda: pearson(a[:, :0], b[:, :0]),
        lambda: pearson(a[:0], b[:0]),
        lambda: p_permutation(a[:, :0], b[:, :0], 10, 0),
    ):
        with pytest.raises(ValueError, match="expected"):
            call()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_named(value: float) -> None:
    good = columns(10, 130)
    spoilt = good[0].copy()
    spoilt[4, 100] = value
    calls = {
        "a": lambda bad: pearson(bad, good[1]),
        "b": lambda bad: pearson(good[1], bad),
        "predicted": lambda bad: p_permutation(bad, good[1], 10, 0),
        "measured": lambda bad: p_permutation(good[1], bad, 10, 0),
        "joint": lambda bad: gain_r2(bad, *good, 10, 0),
        "single": lambda bad: gain_r2(good[0], bad, good[1], 10, 0),
    }
    for name, call in calls.items():
        with pytest.raises(ValueError, match=rf"^{name} \(10, 130\): column 100 is not finite"):
            call(spoilt)
        call(good[0])


# --- device -------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_device_equals_host(cupy: Any, dtype: str) -> None:
    a, b = (x.astype(dtype) for x in columns(200, 3000, effect=0.05))
    b[:, 7] = 1
    there = cupy.asarray(a), cupy.asarray(b)
    np.testing.assert_allclose(pearson(*there).get(), pearson(a, b), atol=1e-12)
    for null in ("own", "pooled", "tail"):
        expected, found = p_permutation(a, b, 500, 0, null), p_permutation(*there, 500, 0, null)
        assert isinstance(found[0], cupy.ndarray)
        rtol = 1e-12 if null == "own" else 1e-3
        np.testing.assert_allclose(found[0].get(), expected[0], rtol=rtol)
        np.testing.assert_allclose(found[1].get(), expected[1], rtol=1e-12)


@pytest.mark.gpu
def test_gain_on_a_device_equals_host(cupy: Any) -> None:
    case = gain_case()
    found = gain_r2(*(cupy.asarray(x) for x in case), 50, 3)
    for one, other in zip(found, gain_r2(*case, 50, 3), strict=True):
        np.testing.assert_allclose(one.get(), other, rtol=1e-8)


@pytest.mark.gpu
def test_host_and_device_are_not_mixed(cupy: Any) -> None:
    a, b = columns(20, 5)
    for call in (
        lambda: pearson(a, cupy.asarray(b)),
        lambda: p_permutation(cupy.asarray(a), b, 9, 0),
    ):
        with pytest.raises(ValueError, match="expected"):
            call()
