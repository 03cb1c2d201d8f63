"""Statistics against scipy and statsmodels, explicit loops, and planted truths."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import scipy.fft
import scipy.stats
from columns import columns, small_blocks  # noqa: F401, a fixture of every test
from sklearn.metrics import r2_score
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from nsdcap.stats import (
    binomial_ci,
    bootstrap_ci,
    fdr,
    gain_r2,
    noise_ceiling,
    p_gaussian,
    p_permutation,
    pearson,
    resamples,
)

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
