"""The permutation null against an explicit loop, by enumeration, and by its calibration."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest
import scipy.fft
import scipy.stats
from columns import columns, small_blocks  # noqa: F401, a fixture of every test

from nsdcap import stats
from nsdcap.stats import (
    fdr,
    null_orders,
    p_gaussian,
    p_permutation,
    pearson,
)


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
