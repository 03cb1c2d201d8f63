"""Ridge against scikit-learn and himalaya on single trials, gains against planted shrinkage."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import numpy as np
import pytest
import scipy.linalg
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.model_selection import PredefinedSplit

from nsdcap.folds import Collapsed, collapse, grouped_folds
from nsdcap.ridge import alpha_grid, edge_share, edge_warning
from nsdcap.ridge_encode import encode_dual, encode_primal

ALPHAS = [1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0]
N_TARGETS = 7
REPEATS = pytest.mark.parametrize("repeats", [True, False], ids=["repeats", "single"])
FEATURES = pytest.mark.parametrize("p", [15, 120], ids=["p<n", "p>n"])


@dataclass(frozen=True)
class World:
    """Pictures' features x (n, p), trials' pictures and responses, folds, test features (m, p)."""

    x: np.ndarray
    picture: np.ndarray
    y: np.ndarray  # (n_trials, N_TARGETS)
    folds: np.ndarray  # (n_trials,)
    test: np.ndarray

    @property
    def data(self) -> Collapsed:
        return collapse(self.y, self.picture)

    @property
    def picture_folds(self) -> np.ndarray:
        return self.folds[np.unique(self.picture, return_index=True)[1]]


def world(p: int, repeats: bool, seed: int = 0) -> World:
    rng = np.random.default_rng(seed)
    n = 60
    x = rng.normal(size=(n, p)) * np.linspace(2, 0.1, p) + rng.normal(size=p)
    picture = rng.permutation(np.repeat(np.arange(n), rng.integers(1, 4, n) if repeats else 1))
    noise = np.geomspace(0.1, 20, N_TARGETS)  # so that targets want different penalties
    y = x[picture] @ rng.normal(size=(p, N_TARGETS)) + 3
    y += rng.normal(size=y.shape) * noise * y.std(0)
    return World(x, picture, y, grouped_folds(picture, 4, seed), rng.normal(size=(9, p)))


def trial_scores(x, y, folds, alphas, absolute=False) -> np.ndarray:
    """R2 (n_alphas, t) of scikit-learn's Ridge, alpha by alpha, of single trials left out."""
    scores = []
    for alpha in alphas:
        predicted = np.empty(y.shape)
        for train, left in PredefinedSplit(folds).split():
            model = sklearn_ridge(x[train], y[train], alpha, absolute)
            predicted[left] = model.predict(x[left])
        scores.append(r2_score(y, predicted, multioutput="raw_values"))
    return np.array(scores)


def sklearn_ridge(x, y, alpha, absolute=False, intercept=True) -> Ridge:
    """Ridge on trials; alpha, a number or one a target, as multiples of the mean eigenvalue."""
    centred = x - x.mean(0) if intercept else x
    scale = 1.0 if absolute else (centred**2).sum() / len(x)
    return Ridge(alpha=np.asarray(alpha) * scale, fit_intercept=intercept, solver="svd").fit(x, y)


def check_fit(fit, w: World, x: np.ndarray, test: np.ndarray) -> None:
    """A fit against the explicit loop over trials of features x[w.picture]."""
    trials = x[w.picture]
    scores = trial_scores(trials, w.y, w.folds, ALPHAS)
    np.testing.assert_allclose(fit.cv_scores, scores, rtol=1e-6, atol=1e-8)
    np.testing.assert_array_equal(fit.alpha_index, scores.argmax(0))
    model = sklearn_ridge(trials, w.y, np.array(ALPHAS)[fit.alpha_index])
    np.testing.assert_allclose(fit.predictions, model.predict(test), rtol=1e-6)


# --- encoding -----------------------------------------------------------------------------------


@REPEATS
@FEATURES
def test_primal_equals_sklearn_on_trials(p: int, repeats: bool) -> None:
    w = world(p, repeats)
    fit = encode_primal(w.x, w.data, w.picture_folds, ALPHAS, w.test, block=3, return_weights=True)
    check_fit(fit, w, w.x, w.test)
    assert len(np.unique(fit.alpha_index)) > 1
    model = sklearn_ridge(w.x[w.picture], w.y, np.array(ALPHAS)[fit.alpha_index])
    assert fit.weights is not None
    np.testing.assert_allclose(fit.weights.T, model.coef_, rtol=1e-6, atol=1e-9)
    assert fit.predictions.shape == (len(w.test), N_TARGETS)


@REPEATS
@FEATURES
def test_dual_equals_sklearn_on_trials(p: int, repeats: bool) -> None:
    w = world(p, repeats)
    fit = encode_dual(w.x @ w.x.T, w.data, w.picture_folds, ALPHAS, w.test @ w.x.T, block=3)
    check_fit(fit, w, w.x, w.test)


def test_ill_conditioned_features_keep_their_digits() -> None:
    rng = np.random.default_rng(0)
    left, right = (
        np.linalg.qr(rng.normal(size=(200, 40)))[0],
        np.linalg.qr(rng.normal(size=(40, 40)))[0],
    )
    x = left * np.geomspace(1, 1e-3, 40) @ right  # condition 1e6 of the Gram matrix
    y = x @ rng.normal(size=(40, 3)) + 1e-3 * rng.normal(size=(200, 3))
    data, folds = collapse(y, np.arange(200)), grouped_folds(np.arange(200), 4, 0)
    for alpha in (1e-7, 1e-5, 1e-3):
        expected = sklearn_ridge(x, y, alpha).predict(x[:20])
        for fit in (
            encode_primal(x, data, folds, [alpha], x[:20]),
            encode_dual(x @ x.T, data, folds, [alpha], x[:20] @ x.T),
        ):
            assert np.abs(fit.predictions - expected).max() < 1e-6 * np.abs(expected).max()


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("form", ["primal", "dual"])
def test_digits_are_kept_at_every_penalty(dtype: str, form: str) -> None:
    """Features of condition 1e6; against SciPy in float64 on single trials: predictions, scores."""
    rng = np.random.default_rng(0)
    n, p = (400, 60) if form == "primal" else (120, 300)
    k = min(n, p)
    left, right = (np.linalg.qr(rng.normal(size=(side, k)))[0] for side in (n, p))
    x = (left * np.geomspace(1, 1e-6, k) @ right.T).astype("f4").astype("f8")
    picture = rng.permutation(np.repeat(np.arange(n), 2))
    y = (x @ rng.normal(size=(p, 30)))[picture]
    y = (y + 0.3 * y.std() * rng.normal(size=y.shape)).astype(dtype)
    folds, test = grouped_folds(np.arange(n), 5, 0), x[:50] + 0.1 * x[50:100]
    data = collapse(y, picture)
    largest = np.linalg.norm(x[picture] - x.mean(0), 2) ** 2
    for alpha in np.geomspace(1e-8, 1, 9) * largest:
        if form == "primal":
            fit = encode_primal(x, data, folds, [alpha], test, relative=False)
        else:
            fit = encode_dual(x @ x.T, data, folds, [alpha], test @ x.T, relative=False)
        expected = scipy_ridge(x[picture], y, alpha, test)
        assert np.abs(fit.predictions - expected).max() < 1e-6 * np.abs(expected).max()
        scores = scipy_scores(x[picture], y, alpha, folds[picture])
        # of the variance: where a fit of 60 weights is far off, scores are far below 0
        np.testing.assert_allclose(fit.cv_scores[0], scores, rtol=1e-6, atol=1e-6)


def scipy_ridge(x: np.ndarray, y: np.ndarray, alpha: float, test: np.ndarray) -> np.ndarray:
    """Predictions for ``test`` by a solve in float64 on trials."""
    x, y, test = (a.astype("f8") for a in (x, y, test))
    centred = x - x.mean(0)
    gram = centred @ centred.T + alpha * np.eye(len(x))
    dual = scipy.linalg.solve(gram, y - y.mean(0), assume_a="pos")
    return (test - x.mean(0)) @ (centred.T @ dual) + y.mean(0)


def scipy_scores(x: np.ndarray, y: np.ndarray, alpha: float, folds: np.ndarray) -> np.ndarray:
    """R2 (t,) of trials, each predicted by the fold that left it out."""
    predicted = np.empty(y.shape)
    for train, left in PredefinedSplit(folds).split():
        predicted[left] = scipy_ridge(x[train], y[train], alpha, x[left])
    return r2_score(y.astype("f8"), predicted, multioutput="raw_values")


def test_a_constant_voxel_spoils_no_other_and_warns_of_nothing() -> None:
    w = world(15, True)
    with_constant = w.y.copy()
    with_constant[:, 2] = 1.5
    data = collapse(with_constant, w.picture)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit = encode_primal(w.x, data, w.picture_folds, ALPHAS, w.test)
    np.testing.assert_allclose(fit.predictions[:, 2], 1.5, rtol=1e-6)
    others = np.arange(N_TARGETS) != 2
    check = encode_primal(w.x, w.data, w.picture_folds, ALPHAS, w.test)
    np.testing.assert_allclose(fit.cv_scores[:, others], check.cv_scores[:, others], rtol=1e-9)


@FEATURES
def test_one_penalty_for_all_is_that_of_the_best_mean_score(p: int) -> None:
    w = world(p, True)
    x = w.x[w.picture]
    scores = trial_scores(x, w.y, w.folds, ALPHAS)
    best = scores.mean(1).argmax()
    expected = sklearn_ridge(x, w.y, ALPHAS[best]).predict(w.test)
    for fit in (
        encode_primal(w.x, w.data, w.picture_folds, ALPHAS, w.test, per_target=False),
        encode_dual(w.x @ w.x.T, w.data, w.picture_folds, ALPHAS, w.test @ w.x.T, per_target=False),
    ):
        assert (fit.alpha_index == best).all()
        np.testing.assert_allclose(fit.cv_scores, scores, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(fit.predictions, expected, rtol=1e-6)


# --- folds, grid, input -------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_grouped_folds_are_balanced_and_never_split_a_picture(seed: int) -> None:
    groups = np.random.default_rng(seed).integers(0, 40, 200)
    folds = grouped_folds(groups, 5, seed)
    assert all(len(np.unique(folds[groups == group])) == 1 for group in groups)
    sizes = np.bincount(folds, minlength=5)
    assert sizes.max() - sizes.min() <= np.bincount(groups).max()
    np.testing.assert_array_equal(folds, grouped_folds(groups, 5, seed))


def test_grouped_folds_follow_the_seed() -> None:
    assert (grouped_folds(np.arange(50), 5, 0) != grouped_folds(np.arange(50), 5, 1)).any()


def test_collapse_keeps_means_and_sums_of_squares() -> None:
    w = world(15, True)
    groups = w.picture * 7 + 3  # ids need be neither 0 to n - 1 nor in order
    data = collapse(w.y.astype("f4"), groups, block=2)
    np.testing.assert_array_equal(data.ids, np.unique(groups))
    assert data.deviation.dtype == data.mean.dtype == np.float32
    trials = w.y.astype("f4").astype("f8")
    np.testing.assert_allclose(data.centre, trials.mean(0), rtol=1e-12)
    np.testing.assert_allclose(data.mean, data.deviation + data.centre, rtol=1e-6)
    within = np.zeros(N_TARGETS)
    for row, group in enumerate(data.ids):
        own = trials[groups == group]
        assert data.counts[row] == len(own)
        np.testing.assert_allclose(data.deviation[row], own.mean(0) - trials.mean(0), rtol=2e-7)
        within += own.var(0) * len(own)
    np.testing.assert_allclose(data.within, within, rtol=1e-9)


def test_grid_and_its_edges() -> None:
    np.testing.assert_allclose(alpha_grid([0.1, 1], 4.0), [0.4, 4.0])
    index, scores = np.array([0, 1, 2, 3, 3]), np.array([0.3, 0.2, -0.1, 0.5, 0.4])
    assert edge_share(index, ALPHAS[:4], scores) == pytest.approx(0.6)
    assert edge_share(index, [1.0, 100.0, 0.01, 10.0], scores) == pytest.approx(0.4)  # in any order
    assert edge_share(np.zeros(5, dtype=int), [1.0], scores) == 0  # nothing to choose
    constant = np.where(index == 0, 0, scores)  # a constant target chose nothing
    assert edge_share(index, ALPHAS[:4], constant) == pytest.approx(0.5)
    assert edge_share(index, ALPHAS[:4], 0 * scores) == 0
    assert edge_warning(0.1) == ""
    assert "widen the grid" in edge_warning(0.11)


BAD = [
    ("x", lambda w: replace(w, x=np.where(w.x == w.x[0, 0], np.nan, w.x)), "not finite"),
    ("y", lambda w: replace(w, y=np.where(w.y == w.y[0, 0], np.nan, w.y)), "not finite"),
    ("rows", lambda w: replace(w, x=w.x[:-1]), "expected"),
    ("test", lambda w: replace(w, test=w.test[:, :-1]), "test"),
    ("zero", lambda w: replace(w, x=0 * w.x), "the same"),
    ("fold", lambda w: replace(w, folds=w.folds * 0), "folds"),
]


@pytest.mark.parametrize(("change", "match"), [case[1:] for case in BAD], ids=[c[0] for c in BAD])
def test_encoding_refuses_bad_input(change, match: str) -> None:
    w = change(world(15, True))
    with pytest.raises(ValueError, match=match):
        encode_primal(w.x, w.data, w.picture_folds, ALPHAS, w.test)
    kernel = w.x @ w.x.T
    kernel_test = w.test @ w.x.T if w.test.shape[1] == w.x.shape[1] else w.test
    with pytest.raises(ValueError, match=match):
        encode_dual(kernel, w.data, w.picture_folds, ALPHAS, kernel_test)


@pytest.mark.parametrize("alphas", [[], [1.0, -1.0], [0.0], [np.nan], [np.inf], 1.0])
def test_penalties_must_be_finite_and_above_0(alphas) -> None:
    w = world(15, True)
    with pytest.raises(ValueError, match="alphas"):
        encode_primal(w.x, w.data, w.picture_folds, alphas, w.test)


def test_folds_refuse_bad_input() -> None:
    w = world(15, True)
    with pytest.raises(ValueError, match="2 groups"):
        grouped_folds(np.array([1, 1, 2, 2, 2]), 3, 0)
    with pytest.raises(ValueError, match="expected"):
        collapse(w.y, w.picture[1:])
    with pytest.raises(ValueError, match=r"features \(59, 15\): expected \(60, 15\)"):
        encode_primal(w.x[1:], w.data, w.picture_folds, ALPHAS, w.test)
    w.y[4, 2] = np.nan
    with pytest.raises(ValueError, match="column 2 is not finite"):
        collapse(w.y, w.picture)
