"""Banded ridge against scikit-learn on single trials of scaled features, and against himalaya."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.model_selection import PredefinedSplit
from test_ridge import ALPHAS, REPEATS, World, world

from nsdcap.folds import collapse, grouped_folds
from nsdcap.ridge_encode import encode_dual
from nsdcap.ridge_joint import encode_joint, joint_bases

RATIOS = [0.1, 1.0, 10.0]


def mean_eigenvalue(x: np.ndarray) -> float:
    return ((x - x.mean(0)) ** 2).sum() / len(x)


def solve(w: World, spaces, ratios=RATIOS, alphas=ALPHAS, block=3):
    bases = joint_bases(w.x @ w.x.T, w.data.counts, w.picture_folds, w.test @ w.x.T)
    return encode_joint(bases, spaces, w.data, w.picture_folds, alphas, ratios, block)


class Reference:
    """Ridge on trials of the first space beside the second, which weighs ``ratio``."""

    def __init__(self, w: World, other: World, ratio: float) -> None:
        scales = [mean_eigenvalue(v.x[w.picture]) for v in (w, other)]
        factor = np.sqrt(ratio * scales[0] / scales[1])
        self.first, self.y, self.folds = w.x[w.picture], w.y, w.folds
        self.x = np.hstack([self.first, factor * other.x[w.picture]])
        self.test = np.hstack([w.test, factor * other.test])

    def predict(self, alpha: float, train, test) -> np.ndarray:
        penalty = alpha * mean_eigenvalue(self.first[train])
        return Ridge(penalty, solver="svd").fit(self.x[train], self.y[train]).predict(test)

    def scores(self, alpha: float) -> np.ndarray:
        predicted = np.empty(self.y.shape)
        for train, left in PredefinedSplit(self.folds).split():
            predicted[left] = self.predict(alpha, train, self.x[left])
        return r2_score(self.y, predicted, multioutput="raw_values")


@REPEATS
@pytest.mark.parametrize("q", [5, 20], ids=["triangle", "trapezoid"])
@pytest.mark.parametrize("ratios", [RATIOS, [1.0], [0.0, 1.0, 2.0, 3.0, 4.0]], ids=len)
def test_joint_equals_sklearn_on_scaled_features(repeats: bool, q: int, ratios) -> None:
    w, other, third = world(90, repeats), world(q, repeats, seed=1), world(q, repeats, seed=2)
    driven = np.random.default_rng(7).normal(size=(q, 4))  # the second space drives four targets
    second = other.x[w.picture] @ driven
    w.y[:, 3:] = second + 0.1 * second.std() * np.random.default_rng(8).normal(size=second.shape)
    fits = solve(w, [(other.x, other.test), (third.x, third.test)], ratios)
    alone = encode_dual(w.x @ w.x.T, w.data, w.picture_folds, ALPHAS, w.test @ w.x.T)
    np.testing.assert_allclose(fits[0].cv_scores, alone.cv_scores, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(fits[0].predictions, alone.predictions, rtol=1e-7)
    for fit, space in zip(fits[1:], (other, third), strict=True):
        references = [Reference(w, space, ratio) for ratio in ratios]
        scores = np.array([[r.scores(alpha) for alpha in ALPHAS] for r in references])
        np.testing.assert_array_equal(fit.ratio_index, scores.max(1).argmax(0))
        for target, ratio in enumerate(fit.ratio_index):
            own = scores[ratio, :, target]
            np.testing.assert_allclose(fit.cv_scores[:, target], own, rtol=1e-6, atol=1e-9)
            assert fit.alpha_index[target] == own.argmax()
            model = references[ratio]
            alpha, everyone = ALPHAS[fit.alpha_index[target]], slice(None)
            expected = model.predict(alpha, everyone, model.test)[:, target]
            np.testing.assert_allclose(fit.predictions[:, target], expected, rtol=1e-6)


def test_joint_gives_each_voxel_the_space_that_drives_it() -> None:
    rng = np.random.default_rng(3)
    spaces = rng.normal(size=(2, 300, 30))
    picture = rng.permutation(np.repeat(np.arange(300), rng.integers(1, 4, 300)))
    y = np.hstack([space[picture] @ rng.normal(size=(30, 25)) for space in spaces])
    y += 3 * rng.normal(size=y.shape)
    w = World(spaces[0], picture, y, grouped_folds(picture, 5, 0), spaces[0])
    fit = solve(w, [(spaces[1], spaces[1])], (0.01, 1.0, 100.0), block=2048)[1]
    assert (fit.ratio_index[:25] == 0).mean() > 0.9
    assert (fit.ratio_index[25:] == 2).mean() > 0.9


def test_joint_equals_himalayas_multiple_kernels() -> None:
    """himalaya searches mixtures of kernels of one total penalty; ours are the same grid, one by one."""
    from himalaya.kernel_ridge import MultipleKernelRidgeCV
    from himalaya.scoring import r2_score as himalaya_r2

    rng = np.random.default_rng(4)
    n, t = 80, 6
    spaces = [rng.normal(size=(n, 100)), rng.normal(size=(n, 9))]
    spaces = [x - x.mean(0) for x in spaces]
    spaces = [x / np.sqrt(mean_eigenvalue(x)) for x in spaces]
    y = spaces[0] @ rng.normal(size=(100, t)) * np.linspace(0, 1, t) / 5
    y += spaces[1] @ rng.normal(size=(9, t)) + rng.normal(size=(n, t))
    y -= y.mean(0)
    kernels = np.stack([x @ x.T for x in spaces])
    folds = np.arange(n) % 4
    for ratio in (0.5, 4.0):
        gamma = np.array([[1 / (1 + ratio), ratio / (1 + ratio)]])
        for alpha in (0.3, 10.0):
            # K1 + ratio K2 under a penalty a is gamma's mixture under a / (1 + ratio)
            model = MultipleKernelRidgeCV(
                kernels="precomputed", solver="random_search", cv=PredefinedSplit(folds),
                solver_params={"n_iter": gamma, "alphas": np.array([alpha / (1 + ratio)]),
                               "score_func": himalaya_r2, "progress_bar": False},
            ).fit(kernels, y)  # fmt: skip
            data = collapse(y, np.arange(n))
            bases = joint_bases(kernels[0], data.counts, folds, kernels[0][:7])
            # all pictures' mean eigenvalue is 1, so the grid is of penalties in the refit
            fit = encode_joint(bases, [(spaces[1], spaces[1][:7])], data, folds, [alpha], [ratio])[
                1
            ]
            expected = model.predict(kernels[:, :7])
            np.testing.assert_allclose(fit.predictions, expected, rtol=1e-5, atol=1e-6)


def test_joint_chooses_what_himalaya_chooses() -> None:
    """CV scores and penalties of a grid, on data whose folds need no centring and no scaling: himalaya
    knows neither. Every fold holds each row with both signs, and has a mean eigenvalue of 1."""
    from himalaya.kernel_ridge import MultipleKernelRidgeCV
    from himalaya.scoring import l2_neg_loss

    rng = np.random.default_rng(5)
    n_folds, t = 4, 12
    ratios, alphas = np.array([0.2, 1.0, 5.0]), np.geomspace(0.01, 100, 5)
    spaces = []
    for q in (100, 9):
        half = rng.normal(size=(n_folds, 12, q))
        half /= np.sqrt((half**2).sum((1, 2), keepdims=True) / 12)
        spaces.append(np.concatenate([half, -half], axis=1).reshape(-1, q))
    n = len(spaces[0])
    folds = np.repeat(np.arange(n_folds), n // n_folds)
    share = np.linspace(0, 1, t)
    signals = [x @ rng.normal(size=(x.shape[1], t)) for x in spaces]
    noise = rng.normal(size=(n_folds, n // n_folds, t))
    noise = (noise - noise.mean(1, keepdims=True)).reshape(n, t)
    y = share * signals[0] + (1 - share) * signals[1] + np.resize([0.1, 1, 3], t) * noise
    kernels = np.stack([x @ x.T for x in spaces])
    total = (y**2).sum(0)

    scores, chosen = [], []
    for ratio in ratios:
        gamma = np.array([[1 / (1 + ratio), ratio / (1 + ratio)]])
        model = MultipleKernelRidgeCV(
            kernels="precomputed", solver="random_search", cv=PredefinedSplit(folds),
            solver_params={"n_iter": gamma, "alphas": alphas / (1 + ratio),
                           "score_func": l2_neg_loss, "progress_bar": False},
        ).fit(kernels, y)  # fmt: skip
        scores.append(1 + n * model.cv_scores_[0] / total)
        chosen.append(np.argmin(abs(np.log(alphas[:, None] / (1 + ratio) / model.best_alphas_)), 0))
    data = collapse(y, np.arange(n))
    bases = joint_bases(kernels[0], data.counts, folds, kernels[0][:7])
    space = (spaces[1], spaces[1][:7])
    for ratio, expected, index in zip(ratios, scores, chosen, strict=True):
        fit = encode_joint(bases, [space], data, folds, alphas, [ratio])[1]
        np.testing.assert_allclose(fit.cv_scores.max(0), expected, rtol=1e-6, atol=1e-9)
        np.testing.assert_array_equal(fit.alpha_index, index)
    fit = encode_joint(bases, [space], data, folds, alphas, ratios)[1]
    best = np.argmax(scores, axis=0)
    np.testing.assert_array_equal(fit.ratio_index, best)
    np.testing.assert_array_equal(fit.alpha_index, np.array(chosen)[best, np.arange(t)])
    assert len(np.unique(fit.ratio_index)) > 1
    assert len(np.unique(fit.alpha_index)) > 2


def test_joint_refuses_bad_input() -> None:
    w = world(15, True)
    pair = (w.x, w.test)
    for spaces, ratios, match in (
        ([pair], [-1.0], "ratios"),
        ([pair], [], "ratios"),
        ([(w.x[1:], w.test)], [1.0], r"expected \(60, q\)"),
        ([(w.x, w.test[:, 1:])], [1.0], r"expected \(60, q\)"),
        ([(0 * w.x, w.test)], [1.0], "15 columns are the same"),
        ([(np.where(w.x > 1, np.nan, w.x), w.test)], [1.0], "not finite"),
    ):
        with pytest.raises(ValueError, match=match):
            solve(w, spaces, ratios)
    kernel, test = w.x @ w.x.T, w.test @ w.x.T
    with pytest.raises(ValueError, match="not finite"):
        joint_bases(np.where(kernel > 1, np.nan, kernel), w.data.counts, w.picture_folds, test)
    bases = joint_bases(kernel, w.data.counts, w.picture_folds, test)
    with pytest.raises(ValueError, match="not those that"):
        encode_joint(bases, [pair], w.data, np.roll(w.picture_folds, 1), ALPHAS, [1.0])
    with pytest.raises(ValueError, match="the same for every picture"):
        joint_bases(0 * w.x @ w.x.T, w.data.counts, w.picture_folds, w.test @ w.x.T)
