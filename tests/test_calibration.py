"""Are discoveries as rare as they claim where nothing is planted, and found where something is?"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import ttest_rel
from statsmodels.stats.multitest import multipletests

from nsdcap.encoded import Model, best_layer
from nsdcap.stats import fdr, gain_p, gain_r2, p_permutation, pearson
from nsdcap.stats_means import mean_gain_error, mean_r_error

ALPHA = 0.05
N, VOXELS, TOGETHER, NULLS = 61, 40, 20, 2000  # p down to 1 / 2001: BH of 40 needs 0.05 / 40


def alike(rng: np.random.Generator, shape: tuple[int, ...], correlated: bool) -> np.ndarray:
    """Normal (..., voxels) of variance 1; correlated: half of it common to all voxels of a map."""
    own = rng.normal(size=shape)
    return (own + rng.normal(size=(*shape[:-1], 1))) / 2**0.5 if correlated else own


def maps_of(count: int, correlated: bool, effect: np.ndarray, seed: int) -> np.ndarray:
    """p (count, VOXELS) of so many maps; each TOGETHER have random orders of their own."""
    rng = np.random.default_rng(seed)
    found = []
    for batch in range(count // TOGETHER):
        predicted = alike(rng, (N, TOGETHER, VOXELS), correlated)
        measured = alike(rng, (N, TOGETHER, VOXELS), correlated) + effect * predicted
        flat = (x.reshape(N, -1) for x in (predicted, measured))
        found.append(p_permutation(*flat, NULLS, seed + batch)[0].reshape(TOGETHER, VOXELS))
    return np.concatenate(found)


@pytest.mark.parametrize("correlated", [False, True], ids=["independent", "correlated"])
def test_few_maps_of_noise_have_a_discovery(correlated: bool) -> None:
    p = maps_of(600, correlated, np.zeros(VOXELS), seed=1)
    share = np.mean([fdr(one)[0].any() for one in p])
    error = (ALPHA * (1 - ALPHA) / len(p)) ** 0.5
    assert share <= ALPHA + 3 * error
    if not correlated:  # then it is 0.05, but for the steps of p: less would be power lost
        assert share >= ALPHA - 3 * error


@pytest.mark.parametrize("correlated", [False, True], ids=["independent", "correlated"])
def test_false_discoveries_are_few_beside_planted_ones(correlated: bool) -> None:
    effect = np.where(np.arange(VOXELS) < 10, 0.7, 0.0)
    p = maps_of(400, correlated, effect, seed=2)
    hits = np.stack([fdr(one)[0] for one in p])
    false = hits[:, 10:].sum(1) / np.maximum(hits.sum(1), 1)
    assert false.mean() <= ALPHA
    assert hits[:, :10].mean() > 0.7


def test_q_is_statsmodels() -> None:
    for p in maps_of(20, True, np.linspace(0, 1, VOXELS), seed=3):
        p[5] = np.nan
        known = np.arange(VOXELS) != 5
        hit, q = fdr(p)
        expected = multipletests(p[known], ALPHA, method="fdr_bh")
        np.testing.assert_array_equal(hit[known], expected[0])
        np.testing.assert_allclose(q[known], expected[1], rtol=1e-12)
        assert np.isnan(q[5])
        assert not hit[5]


def test_few_maps_have_a_gain_where_nothing_is_gained() -> None:
    """Two predictions equally far from the truth; and one that is spoilt by noise gains less still."""
    rng = np.random.default_rng(4)
    shares = []
    for spoilt in (1.0, 1.3):
        hits = []
        for _ in range(20):
            signal, one, two, noise = rng.normal(size=(4, 200, 20 * VOXELS))
            measured = signal + noise
            p = gain_p(signal + spoilt * two, signal + one, measured)
            hits += [fdr(one)[0].any() for one in p.reshape(20, VOXELS)]
        shares.append(np.mean(hits))
    error = (ALPHA * (1 - ALPHA) / len(hits)) ** 0.5
    assert shares[0] <= ALPHA + 3 * error
    assert shares[1] < ALPHA / 5


def test_few_maps_have_a_best_layer_where_no_layer_adds() -> None:
    """Nine models a voxel that err alike: the best of them is no discovery."""
    rng = np.random.default_rng(8)
    hits = []
    for _ in range(20):
        signal, one, two, noise = rng.normal(size=(4, 80, 10 * VOXELS))
        models = []
        for layer in range(9):
            own = (two + rng.normal(size=two.shape)) / 2**0.5
            sides = signal + own, signal + one, signal + noise
            maps = {"gain": gain_r2(*sides, 1, 0)[0], "gain_p": gain_p(*sides)}
            models.append(Model("joint", layer, "mid", maps, {}, 0.0))
        # BH within each map
        q = [best_layer([part(model, k) for model in models])[1] for k in range(10)]
        hits += [(each < ALPHA).any() for each in q]
    assert np.mean(hits) <= ALPHA + 3 * (ALPHA * (1 - ALPHA) / len(hits)) ** 0.5


def part(model: Model, k: int) -> Model:
    """The k-th map of those beside each other."""
    maps = {name: values[k * VOXELS : (k + 1) * VOXELS] for name, values in model.maps.items()}
    return replace(model, maps=maps)


def test_the_best_layer_is_the_planted_one() -> None:
    """Of three layers one adds to half of the voxels; Simes' p is its definition's."""
    rng = np.random.default_rng(9)
    one, two, noise = rng.normal(size=(3, 300, VOXELS))
    measured = one + np.where(np.arange(VOXELS) < 20, 0.6, 0) * two + noise
    models = []
    for layer, share in ((0, 0.1), (4, 0.6), (7, 0.3)):
        joint = one + share * np.where(np.arange(VOXELS) < 20, two, rng.normal(size=two.shape))
        gain = gain_r2(joint, one, measured, 1, 0)[0]
        maps = {"gain": gain, "gain_p": gain_p(joint, one, measured)}
        models.append(Model("joint", layer, "mid", maps, {}, 0.0))
    best, q = best_layer(models)
    assert (best[:20] == 4).mean() > 0.9
    assert (q[:20] < ALPHA).mean() > 0.9
    p = np.sort([model.maps["gain_p"] for model in models], axis=0)
    simes = (p * 3 / np.arange(1, 4)[:, None]).min(0)
    np.testing.assert_allclose(q, multipletests(simes, method="fdr_bh")[1])


def test_p_of_a_gain_is_scipys_paired_t() -> None:
    rng = np.random.default_rng(7)
    single, more, noise = rng.normal(size=(3, 80, 6))
    joint, measured = single + 0.3 * more, single + 0.1 * more + noise
    joint[:, 4] = single[:, 4]
    measured[:, 5] = 2.0
    errors = (single - measured) ** 2, (joint - measured) ** 2
    found = gain_p(joint, single, measured)
    expected = ttest_rel(*errors, alternative="greater").pvalue
    np.testing.assert_allclose(found[:4], expected[:4], rtol=1e-9)
    assert found[4] == 1
    assert np.isnan(found[5])


def loops(statistic, n: int, rng: np.random.Generator) -> np.ndarray:
    """Standard deviation of a statistic of resampled pictures."""
    return np.std([statistic(rng.integers(0, n, n)) for _ in range(1500)], axis=0)


def test_errors_of_means_are_those_of_resampled_pictures() -> None:
    rng = np.random.default_rng(5)
    n, t = 150, 100
    signal, first, second = (alike(rng, (n, t), correlated=True) for _ in range(3))
    measured = signal + first + 3
    measured[:, 7] = 1.0
    groups = np.stack([np.arange(t) < 60, np.arange(t) >= 60, np.arange(t) == 7])
    single, joint = signal + second, signal + 0.7 * second
    rest = [groups[0] & (np.arange(t) != 7), groups[1]]

    def mean_r(rows: np.ndarray) -> list[float]:
        r = pearson(single[rows], measured[rows])
        return [r[mine].mean() for mine in rest]

    def mean_gain(rows: np.ndarray) -> list[float]:
        y, saved = measured[rows], (single - measured)[rows] ** 2 - (joint - measured)[rows] ** 2
        return [(saved.mean(0)[mine] / y.var(0)[mine]).mean() for mine in rest]

    for found, statistic in (
        (mean_r_error(single, measured, groups), mean_r),
        (mean_gain_error(joint, single, measured, groups), mean_gain),
    ):
        np.testing.assert_allclose(found[:2], loops(statistic, n, rng), rtol=0.1)
        assert np.isnan(found[2])
    # voxels that err alike are not so many independent ones
    naive = pearson(single, measured)[rest[0]].std() / rest[0].sum() ** 0.5
    assert mean_r_error(single, measured, groups)[0] > 2 * naive


def test_interval_of_a_mean_r_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(6)
    covered = []
    for _ in range(400):
        predicted, noise = (alike(rng, (100, 20), correlated=True) for _ in range(2))
        measured = predicted + noise
        error = mean_r_error(predicted, measured, np.ones((1, 20), dtype=bool))[0]
        covered.append(abs(pearson(predicted, measured).mean() - 0.5**0.5) < 1.96 * error)
    assert 0.95 - 3 * (0.95 * 0.05 / 400) ** 0.5 - 0.01 <= np.mean(covered) <= 0.99
