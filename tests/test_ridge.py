"""Ridge against scikit-learn and himalaya on the single trials, and what it refuses."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from nsdcap import ridge
from nsdcap.folds import collapse, grouped_folds

ALPHAS = (1e-3, 0.1, 3.0, 100.0)


def world(n_pictures=60, p=20, t=7, seed=0, repeats=3, noise=2.0):
    """Features of pictures, trials with 1 to ``repeats`` repeats in random order, a linear truth."""
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((n_pictures, p)) + rng.standard_normal(p)
    counts = rng.integers(1, repeats + 1, n_pictures)
    picture = rng.permutation(np.repeat(np.arange(n_pictures), counts))
    weights = rng.standard_normal((p, t)) / np.sqrt(p)
    trials = features[picture] @ weights + noise * rng.standard_normal((len(picture), t)) + 5
    return rng, features, picture, trials


def reference(x, y, folds, alphas, x_test):
    """scikit-learn on the single trials: CV scores of each penalty, and predictions of the refits."""
    scores = []
    for multiple in alphas:
        per_fold = []
        for fold in np.unique(folds):
            train, left = folds != fold, folds == fold
            model = Ridge(multiple * mean_eigenvalue(x[train]), solver="svd").fit(
                x[train], y[train]
            )
            error = ((y[left] - model.predict(x[left])) ** 2).sum(0)
            per_fold.append(1 - error / ((y[left] - y[left].mean(0)) ** 2).sum(0))
        scores.append(np.mean(per_fold, 0))
    predictions = [
        Ridge(multiple * mean_eigenvalue(x), solver="svd").fit(x, y).predict(x_test)
        for multiple in alphas
    ]
    return np.array(scores), np.array(predictions)


def mean_eigenvalue(x):
    """Of the trials' centred Gram matrix (n_trials, n_trials), by its definition."""
    centred = x - x.mean(0)
    return np.linalg.eigvalsh(centred @ centred.T).mean()


def chosen(predictions, index):
    return np.take_along_axis(predictions, index[None, None], 0)[0]


@pytest.mark.parametrize("p", [20, 150])
@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("solver", ["primal", "dual"])
def test_encoding_equals_sklearn_on_the_trials(p, repeats, solver):
    rng, features, picture, trials = world(p=p, repeats=repeats)
    test = rng.standard_normal((11, p))
    trial_folds = grouped_folds(picture, 5, 1)
    data = collapse(trials, picture)
    folds = trial_folds[np.unique(picture, return_index=True)[1]]
    if solver == "primal":
        fit = ridge.encode_primal(features, data, folds, ALPHAS, test, block=3)
    else:
        fit = ridge.encode_dual(
            features @ features.T, data, folds, ALPHAS, test @ features.T, block=3
        )
    scores, predictions = reference(features[picture], trials, trial_folds, ALPHAS, test)
    np.testing.assert_allclose(fit.cv_scores, scores, rtol=1e-6, atol=1e-8)
    np.testing.assert_array_equal(fit.alpha_index, scores.argmax(0))
    np.testing.assert_allclose(fit.predictions, chosen(predictions, fit.alpha_index), rtol=1e-6)


def test_joint_of_one_ratio_equals_the_scaled_features_side_by_side():
    rng, features, picture, trials = world(p=30)
    spaces = (features[:, :20], features[:, 20:] * 50)
    test = rng.standard_normal((9, 30))
    tests = (test[:, :20], test[:, 20:] * 50)
    data = collapse(trials, picture)
    trial_folds = grouped_folds(picture, 4, 2)
    folds = trial_folds[np.unique(picture, return_index=True)[1]]
    kernels = [x @ x.T for x in spaces]
    test_kernels = [x @ y.T for x, y in zip(tests, spaces, strict=True)]
    for ratio in (0.1, 4.0):
        fit = ridge.encode_joint(kernels, data, folds, ALPHAS, [ratio], test_kernels)
        scales = [np.sqrt(r / ((x[picture] - x[picture].mean(0)) ** 2).sum())
                  for x, r in zip(spaces, (1, ratio), strict=True)]  # fmt: skip
        side = np.hstack([x * s for x, s in zip(spaces, scales, strict=True)])
        side_test = np.hstack([x * s for x, s in zip(tests, scales, strict=True)])
        scores, predictions = reference(side[picture], trials, trial_folds, ALPHAS, side_test)
        np.testing.assert_allclose(fit.cv_scores, scores, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(fit.predictions, chosen(predictions, fit.alpha_index), rtol=1e-6)


def test_joint_gives_each_voxel_the_space_that_drives_it():
    rng, features, picture, _ = world(n_pictures=300, p=60, seed=3)
    spaces = (features[:, :30], features[:, 30:])
    drive = [space[picture] @ rng.standard_normal((30, 25)) for space in spaces]
    trials = np.hstack(drive) + 3 * rng.standard_normal((len(picture), 50))
    data, trial_folds = collapse(trials, picture), grouped_folds(picture, 5, 0)
    folds = trial_folds[np.unique(picture, return_index=True)[1]]
    kernels = [x @ x.T for x in spaces]
    ratios = (0.01, 1.0, 100.0)
    fit = ridge.encode_joint(kernels, data, folds, ALPHAS, ratios, kernels)
    assert (fit.ratio_index[:25] == 0).mean() > 0.9
    assert (fit.ratio_index[25:] == 2).mean() > 0.9


@pytest.mark.parametrize("p", [15, 400])
@pytest.mark.parametrize("per_target", [True, False])
@pytest.mark.parametrize("relative", [True, False])
def test_decoding_equals_sklearn_on_the_trials(p, per_target, relative):
    rng, latents, picture, trials = world(n_pictures=50, p=13, t=p, seed=4)
    test = rng.standard_normal((8, p))
    folds = grouped_folds(picture, 5, 0)
    bases = ridge.decode_bases(trials, picture, test, folds, 50)
    blocks = list(
        ridge.decode_cv(bases, lambda a, b: latents[:, a:b], 13, ALPHAS, block=4, per_target=per_target,
                        relative=relative)
    )  # fmt: skip
    assert [(b.start, b.stop) for b in blocks] == [(0, 4), (4, 8), (8, 12), (12, 13)]
    index = np.concatenate([b.alpha_index for b in blocks])
    got = np.hstack([b.predictions for b in blocks])
    scores = np.hstack([b.cv_scores for b in blocks])
    y = latents[picture]
    if relative:
        expected, predictions = reference(trials, y, folds, ALPHAS, test)
    else:
        expected, predictions = absolute_reference(trials, y, folds, test)
    np.testing.assert_allclose(scores, expected, rtol=1e-6, atol=1e-8)
    best = expected.argmax(0) if per_target else np.full(13, expected.sum(1).argmax())
    np.testing.assert_array_equal(index, best)
    np.testing.assert_allclose(got, chosen(predictions, best), rtol=1e-6)
    np.testing.assert_allclose(np.concatenate([b.y_mean for b in blocks]), y.mean(0), rtol=1e-9)


def absolute_reference(x, y, folds, x_test):
    scores = []
    for alpha in ALPHAS:
        found = []
        for fold in np.unique(folds):
            model = Ridge(alpha, solver="svd").fit(x[folds != fold], y[folds != fold])
            left = y[folds == fold]
            error = ((left - model.predict(x[folds == fold])) ** 2).sum(0)
            found.append(1 - error / ((left - left.mean(0)) ** 2).sum(0))
        scores.append(np.mean(found, 0))
    predictions = [Ridge(a, solver="svd").fit(x, y).predict(x_test) for a in ALPHAS]
    return np.array(scores), np.array(predictions)


def test_decoding_in_float32_stays_within_1e_4():
    rng, latents, picture, trials = world(n_pictures=80, p=5, t=60, seed=5)
    test = rng.standard_normal((8, 60))
    folds = grouped_folds(picture, 5, 0)

    def predict(dtype):
        bases = ridge.decode_bases(trials.astype(dtype), picture, test.astype(dtype), folds, 80)
        solved = ridge.decode_cv(bases, lambda a, b: latents[:, a:b].astype(dtype), 5, (0.3,))
        return next(iter(solved)).predictions

    np.testing.assert_allclose(predict(np.float32), predict(np.float64), rtol=1e-4, atol=1e-4)


def test_gain_gives_averaged_predictions_the_length_of_the_truth():
    _, latents, picture, trials = world(n_pictures=90, p=6, t=40, seed=6, noise=4.0)
    folds = grouped_folds(picture, 5, 0)
    bases = ridge.decode_bases(trials, picture, trials[:5], folds, 90)
    blocks = list(ridge.decode_cv(bases, lambda a, b: latents[:, a:b], 6, (0.5,), block=4))
    truth = length = 0.0
    x, y = trials, latents[picture]
    for fold in range(5):
        train = folds != fold
        model = Ridge(0.5 * mean_eigenvalue(x[train]), solver="svd").fit(x[train], y[train])
        for one in np.unique(picture[~train]):
            mean = y[train].mean(0)
            averaged = model.predict(x[picture == one]).mean(0) - mean
            truth += ((latents[one] - mean) ** 2).sum()
            length += (averaged**2).sum()
    assert sum(b.truth for b in blocks) == pytest.approx(truth, rel=1e-6)
    assert sum(b.predicted for b in blocks) == pytest.approx(length, rel=1e-6)
    assert truth > 1.5 * length  # ridge shrinks


def test_encoding_equals_himalaya():
    from himalaya.ridge import RidgeCV
    from sklearn.model_selection import PredefinedSplit

    rng, features, picture, trials = world(n_pictures=80, p=12, t=5, seed=7)
    centred = features - features[picture].mean(0)
    y = trials - trials.mean(0)
    trial_folds = grouped_folds(picture, 4, 0)
    # one absolute penalty grid for both: himalaya does not scale, so the folds' scales must agree
    data = collapse(y, picture)
    folds = trial_folds[np.unique(picture, return_index=True)[1]]
    scale = mean_eigenvalue(centred[picture])
    fit = ridge.encode_primal(centred, data, folds, ALPHAS, centred)
    theirs = RidgeCV(
        alphas=np.array(ALPHAS) * scale, cv=PredefinedSplit(trial_folds), fit_intercept=True
    ).fit(centred[picture], y)
    for target in range(5):
        model = Ridge(scale * ALPHAS[fit.alpha_index[target]]).fit(centred[picture], y[:, target])
        np.testing.assert_allclose(fit.predictions[:, target], model.predict(centred), rtol=1e-6)
    same = np.isclose(np.array(ALPHAS)[fit.alpha_index] * scale, theirs.best_alphas_)
    assert same.mean() >= 0.8
    np.testing.assert_allclose(
        fit.predictions[:, same], theirs.predict(centred)[:, same], rtol=1e-5, atol=1e-6
    )


def test_folds_never_split_a_picture_and_are_balanced():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        picture = rng.permutation(np.repeat(np.arange(100, 187), rng.integers(1, 4, 87)))
        folds = grouped_folds(picture, 5, seed)
        for one in np.unique(picture):
            assert len(set(folds[picture == one])) == 1
        sizes = np.bincount(folds, minlength=5)
        assert sizes.max() - sizes.min() <= 3
        np.testing.assert_array_equal(folds, grouped_folds(picture, 5, seed))
    assert not np.array_equal(grouped_folds(picture, 5, 0), grouped_folds(picture, 5, 1))


def test_collapse_keeps_sums_of_squares():
    _, _, picture, trials = world(seed=8)
    data = collapse(trials, picture, block=3)
    for row, one in enumerate(data.ids):
        mine = trials[picture == one]
        np.testing.assert_allclose(data.mean[row], mine.mean(0))
        np.testing.assert_allclose(data.within[row], ((mine - mine.mean(0)) ** 2).sum(0), atol=1e-9)
    assert data.counts.sum() == len(trials)


def test_edge_share():
    assert ridge.edge_share(np.array([0, 1, 2, 3, 3]), 4) == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"alphas": (-1.0,)}, "above 0"),
        ({"alphas": ()}, "above 0"),
        ({"folds": np.zeros(60, int)}, "two at least"),
        ({"folds": np.zeros(59, int)}, "60 pictures"),
        ({"test": np.zeros((3, 19))}, r"expected \(m, 20\)"),
        ({"features": np.full((60, 20), np.nan)}, "not finite"),
        ({"features": np.zeros((59, 20))}, r"expected \(60, 20\)"),
    ],
)
def test_bad_input_names_what_and_shapes(change, words):
    _, features, picture, trials = world()
    given = {"features": features, "data": collapse(trials, picture), "alphas": ALPHAS,
             "folds": np.arange(60) % 5, "test": features}  # fmt: skip
    with pytest.raises(ValueError, match=words):
        ridge.encode_primal(**{**given, **change})


def test_bad_trials_are_refused():
    _, latents, picture, trials = world()
    folds = grouped_folds(picture, 5, 0)
    with pytest.raises(ValueError, match="at least"):
        grouped_folds(np.array([1, 1, 2, 2]), 3, 0)
    with pytest.raises(ValueError, match="column 2 is not finite"):
        bad = trials.copy()
        bad[4, 2] = np.nan
        collapse(bad, picture)
    with pytest.raises(ValueError, match="picture is"):
        ridge.decode_bases(trials, picture[:-1], trials, folds, 60)
    bases = ridge.decode_bases(trials, picture, trials[:3], folds, 60)
    with pytest.raises(ValueError, match="targets 0 to 20"):
        list(ridge.decode_cv(bases, lambda a, b: latents[:-1, a:b], 20, ALPHAS))
