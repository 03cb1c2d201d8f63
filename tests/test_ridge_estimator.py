"""The estimator against scikit-learn, and its contract."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import refusing_arrays
from sklearn import config_context
from sklearn.base import clone
from sklearn.feature_selection import VarianceThreshold
from sklearn.linear_model import Ridge
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    KFold,
    PredefinedSplit,
    ShuffleSplit,
    TimeSeriesSplit,
    cross_val_predict,
)
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks
from test_ridge import ALPHAS, FEATURES, REPEATS, sklearn_ridge, trial_scores, world

from nsdcap.folds import collapse
from nsdcap.ridge_encode import encode_dual, encode_flops, encode_primal
from nsdcap.ridge_estimator import RidgeCV

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*targets want a penalty at an end:UserWarning"),
    pytest.mark.filterwarnings("ignore:The groups parameter is ignored:UserWarning"),
]


@REPEATS
@FEATURES
@pytest.mark.parametrize("intercept", [True, False], ids=["intercept", "through0"])
def test_estimator_equals_sklearn(p: int, repeats: bool, intercept: bool) -> None:
    w = world(p, repeats)
    x = w.x[w.picture]
    if repeats:  # rows of a group need not agree: then nothing may be collapsed
        x = x + (np.random.default_rng(9).normal(size=x.shape) if p == 120 else 0)
    model = RidgeCV(ALPHAS, cv=4, fit_intercept=intercept, seed=0).fit(x, w.y, w.picture)
    reference = sklearn_ridge(x, w.y, model.alpha_, intercept=intercept)
    np.testing.assert_allclose(model.coef_, reference.coef_, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(model.intercept_, reference.intercept_, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(model.predict(w.test), reference.predict(w.test), rtol=1e-6)
    assert model.score(x, w.y) == pytest.approx(reference.score(x, w.y))
    if intercept:
        np.testing.assert_allclose(
            model.cv_scores_, trial_scores(x, w.y, w.folds, ALPHAS), rtol=1e-6
        )


def test_estimator_of_one_target_and_its_settings() -> None:
    w = world(15, False)
    model = clone(RidgeCV(ALPHAS)).set_params(cv=4).fit(w.x[w.picture], w.y[:, 0])
    assert (model.coef_.shape, np.shape(model.intercept_)) == ((15,), ())
    assert model.predict(w.test).shape == (len(w.test),)
    assert model.alpha_ in ALPHAS
    with pytest.raises(ValueError, match="folds"):
        RidgeCV().set_params(folds=3)


@parametrize_with_checks([RidgeCV(cv=2)])
def test_estimator_keeps_scikit_learns_contract(estimator, check) -> None:
    check(estimator)


def test_splits_of_scikit_learns_are_taken_as_they_are() -> None:
    w = world(15, True)
    x = w.x[w.picture]
    three = GroupKFold(3)
    for cv in (three, list(three.split(x, w.y, w.picture)), KFold(4, shuffle=True, random_state=1)):
        model = RidgeCV(ALPHAS, cv=cv).fit(x, w.y, w.picture)
        folds = np.zeros(len(x), dtype=int)
        splits = cv if isinstance(cv, list) else cv.split(x, w.y, w.picture)
        for number, (_, left) in enumerate(splits):
            folds[left] = number
        expected = trial_scores(x, w.y, folds, ALPHAS)
        np.testing.assert_allclose(model.cv_scores_, expected, rtol=1e-6, atol=1e-8)
        reference = sklearn_ridge(x, w.y, model.alpha_)
        np.testing.assert_allclose(model.coef_, reference.coef_, rtol=1e-6, atol=1e-9)
    five, default = (RidgeCV(ALPHAS, cv=cv).fit(x, w.y, w.picture) for cv in (5, None))
    np.testing.assert_array_equal(five.cv_scores_, default.cv_scores_)
    assert RidgeCV(ALPHAS, cv=PredefinedSplit(w.folds)).fit(x, w.y).alpha_.shape == (7,)


def test_other_splits_are_refused() -> None:
    w = world(15, False)
    n = len(w.x)
    half = np.arange(n // 2)
    for cv, match in (
        (ShuffleSplit(3, random_state=0), "rows out never or more than once"),
        (TimeSeriesSplit(3), "rows out never or more than once"),
        ([(half, half + n // 2), (half[1:] + n // 2, half)], "does not train on all others"),
        ("five", "cv"),
        (2.5, "cv"),
        *((cv, f"^cv = {cv}: expected at least 2 folds$") for cv in (1, 0, -2, True)),
        ([(half, half)], "does not train on all others in 1 splits, first 0"),
        ([(half, half + n // 2), (half + n // 2, half + n)], "cv: split 1 is not of 60 rows"),
        ([(half, half + n // 2), (half + 0.5, half)], "cv: split 1 is not of 60 rows"),
        ([1, 2], r"cv: split 0 is not \(train, test\)"),
        ([half], r"cv: split 0 is not \(train, test\)"),
        (n + 1, f"{n} groups"),
    ):
        with pytest.raises(ValueError, match=match) as found:
            RidgeCV(cv=cv).fit(w.x, w.y)
        assert len(str(found.value)) < 250  # no lists of rows


@REPEATS
@FEATURES
@pytest.mark.parametrize("options", [{}, {"fit_intercept": False}, {"relative": False}], ids=str)
def test_penalties_are_those_of_scikit_learns_ridge(p: int, repeats: bool, options: dict) -> None:
    w = world(p, repeats)
    x = w.x[w.picture]
    for y in (w.y, w.y[:, 0]):
        model = RidgeCV(ALPHAS, cv=4, **options).fit(x, y, w.picture)
        intercept = options.get("fit_intercept", True)
        reference = Ridge(model.penalties_, fit_intercept=intercept, solver="svd").fit(x, y)
        np.testing.assert_allclose(model.predict(w.test), reference.predict(w.test), rtol=1e-6)
        assert np.shape(model.penalties_) == np.shape(model.alpha_)


def test_groups_within_another_cross_validation() -> None:
    """What a loop by hand gives, that hands each outer fold's groups on."""
    w = world(15, True)
    x, y, g = w.x[w.picture], w.y, w.picture
    outer, model = GroupKFold(3), RidgeCV(ALPHAS, cv=4)
    expected, leaking = np.empty(y.shape), np.empty(y.shape)
    for train, left in outer.split(x, y, g):
        expected[left] = clone(model).fit(x[train], y[train], g[train]).predict(x[left])
        leaking[left] = clone(model).fit(x[train], y[train]).predict(x[left])
    pipe = make_pipeline(VarianceThreshold(), RidgeCV(ALPHAS, cv=4))
    for found in (
        cross_val_predict(model, x, y, groups=g, cv=outer, params={"groups": g}),
        cross_val_predict(pipe, x, y, groups=g, cv=outer, params={"ridgecv__groups": g}),
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-9)
    alone = cross_val_predict(model, x, y, groups=g, cv=outer)
    np.testing.assert_allclose(alone, leaking, rtol=1e-9)  # what the docstring warns of
    assert abs(leaking - expected).max() > 1e-3
    grid, fitted = {"ridgecv__relative": [True]}, clone(model).fit(x, y, g)
    search = GridSearchCV(pipe, grid, cv=outer).fit(x, y, groups=g, ridgecv__groups=g)
    np.testing.assert_allclose(search.predict(x), fitted.predict(x), rtol=1e-9)
    with config_context(enable_metadata_routing=True):
        routed = RidgeCV(ALPHAS, cv=4).set_fit_request(groups=True)
        found = cross_val_predict(routed, x, y, cv=outer, params={"groups": g})
        np.testing.assert_allclose(found, expected, rtol=1e-9)
        search = GridSearchCV(routed, {"relative": [True]}, cv=outer).fit(x, y, groups=g)
        np.testing.assert_allclose(search.predict(x), fitted.predict(x), rtol=1e-9)


def test_a_feature_that_is_constant_in_an_outer_fold_is_refused_and_can_be_left_out() -> None:
    w = world(15, False)
    x = w.x.copy()
    x[:, 3] = np.arange(len(x)) < 20  # the first of three folds alone knows it
    with pytest.raises(
        ValueError, match="1 columns are the same in every row, the first is column 3"
    ):
        cross_val_predict(RidgeCV(ALPHAS), x, w.y, cv=3)
    cured = cross_val_predict(make_pipeline(VarianceThreshold(), RidgeCV(ALPHAS)), x, w.y, cv=3)
    without = cross_val_predict(RidgeCV(ALPHAS), np.delete(x, 3, 1)[20:], w.y[20:], cv=2)
    assert cured.shape == w.y.shape
    assert np.isfinite(without).all()


def test_targets_of_any_scale_beside_each_other() -> None:
    w = world(15, True)
    x, powers = w.x[w.picture], np.array([-1000, -660, -300, 0, 300, 660, 1000])
    plain = RidgeCV(ALPHAS, cv=4).fit(x, w.y, w.picture)
    scaled = RidgeCV(ALPHAS, cv=4).fit(x, np.ldexp(w.y, powers), w.picture)
    np.testing.assert_allclose(scaled.cv_scores_, plain.cv_scores_, rtol=1e-9)
    expected = np.ldexp(plain.predict(w.test), powers)
    np.testing.assert_allclose(scaled.predict(w.test), expected, rtol=1e-9)
    one = RidgeCV(ALPHAS, cv=4).fit(x, np.ldexp(w.y[:, 0], 660), w.picture)
    np.testing.assert_allclose(one.coef_, np.ldexp(plain.coef_[0], 660), rtol=1e-9)


@pytest.mark.parametrize("intercept", [True, False], ids=["intercept", "through0"])
@pytest.mark.parametrize("p", [15, 120], ids=["primal", "dual"])
@pytest.mark.parametrize("power", [-660, -300, 660])
def test_features_of_any_scale(power: int, p: int, intercept: bool) -> None:
    w = world(p, True)
    x = w.x[w.picture]
    model = RidgeCV(ALPHAS, cv=4, fit_intercept=intercept)
    plain = model.fit(x, w.y, w.picture).predict(w.test)
    scaled = clone(model).fit(np.ldexp(x, power), w.y, w.picture)
    np.testing.assert_array_equal(scaled.alpha_, model.alpha_)
    np.testing.assert_allclose(scaled.predict(np.ldexp(w.test, power)), plain, rtol=1e-9)
    for extreme, options in ((power, {"relative": False}), (1000, {}), (-1010, {})):
        if abs(extreme) > 400:
            with pytest.raises(
                ValueError, match=r"X .* whose squares float64 does not hold; scale"
            ):
                clone(model).set_params(**options).fit(np.ldexp(x, extreme), w.y, w.picture)


def test_estimator_refuses_bad_input_in_its_own_words() -> None:
    w = world(15, True)
    for call, match in (
        (
            lambda: RidgeCV(cv=3).fit(w.x[:4], w.y[:4], np.array([0, 0, 1, 1])),
            r"^cv = 3 with 2 groups .* fewer folds",
        ),
        *(
            (
                lambda alphas=alphas: RidgeCV(alphas).fit(w.x, w.y[:60]),
                "^alphas: found .* list of finite",
            )
            for alphas in (
                ["a"],
                ["1", "2"],
                "1",
                1.0,
                None,
                [[1.0]],
                [],
                [1, None],
                [0.0, 1.0],
                [10**400],
            )
        ),
        *(
            (lambda groups=groups: RidgeCV().fit(w.x, w.y[:60], groups), match)
            for groups, match in (
                ([1.0] * 59 + [np.nan], r"^groups \(60,\): found NaN, expected a number, or text"),
                (np.array([1.0] * 59 + [np.nan], dtype=object), "found NaN and numbers"),
                (["a"] * 59 + [np.nan], "found NaN and text"),
                ([None] * 60, "found NoneType"),
                (["a"] * 59 + [None], "found NoneType and text"),
                (["a"] * 59 + [1], "found numbers and text"),
                (np.array(["a"] * 59 + [1], dtype=object), "found numbers and text"),
            )
        ),
        (lambda: RidgeCV().fit(w.x, w.y[:60], w.picture[:59]), r"groups \(59,\): expected \(60,\)"),
        (lambda: RidgeCV([1.0, -1.0]).fit(w.x, w.y[:60]), "alphas"),
        (lambda: RidgeCV(cv=2).fit(w.x[:2], w.y[:2]), "fold 0: .* the same in every row"),
    ):
        with pytest.raises(ValueError, match=match) as found:
            call()
        assert "session" not in str(found.value)


def test_a_penalty_at_an_end_of_the_grid_warns_of_the_cure() -> None:
    w = world(15, True)
    x = w.x[w.picture]
    with pytest.warns(
        UserWarning,
        match=r"100% .* end of the grid, 100% the largest, 0.01: widen alphas \(targets that X does not",
    ):
        model = RidgeCV([1e-2, 1e-3], cv=4).fit(x, w.y, w.picture)
    assert model.edge_share_ == 1
    planted = x[:, :4] + 1e-3 * np.random.default_rng(0).normal(size=(len(x), 4))
    both = np.concatenate([planted, planted[:, :1] * 0 + 0.1, w.y[:, -1:]], axis=1)  # a constant
    with pytest.warns(
        UserWarning, match=r"100% .* 80% the smallest, 1 and 20% the largest, 1000: w"
    ):
        RidgeCV([1, 1000], cv=4).fit(x, both, w.picture)
    with pytest.warns(UserWarning, match=r"100% .* grid, 100% the smallest, 1: widen alphas$"):
        RidgeCV([1, 1000], cv=4).fit(x, planted, w.picture)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wide = RidgeCV(np.geomspace(1e-9, 1e9, 19), cv=4).fit(x, w.y[:, :5], w.picture)
        one = RidgeCV([1.0], cv=4).fit(x, w.y, w.picture)
        RidgeCV(ALPHAS, cv=4).fit(x, 0 * w.y[:, 0] + 0.1, w.picture)  # chose nothing
    assert (wide.edge_share_, one.edge_share_) == (0, 0)


def test_the_form_of_fewer_operations_is_counted() -> None:
    """Both ways of solving, at sizes where one plainly takes longer."""
    few, many = (
        encode_flops(8859, 768, 982, 15000, 5, 16),
        encode_flops(800, 20000, 100, 1000, 5, 10),
    )
    assert few["primal"] < few["dual"] / 4
    assert many["dual"] < many["primal"] / 1000


@pytest.mark.parametrize("p", [15, 120])
@pytest.mark.parametrize("form", ["primal", "dual"])
def test_operations_are_those_of_the_products_made(
    form: str, p: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What 1,000 more targets cost, against every product of two matrices counted as it is made."""
    made = 0
    plain = refusing_arrays.Array.__matmul__

    def counted(a, b):
        nonlocal made
        if len(a.shape) == len(b.shape) == 2:
            made += 2 * a.shape[0] * a.shape[1] * b.shape[1]
        return plain(a, b)

    monkeypatch.setattr(refusing_arrays.Array, "__matmul__", counted)
    w = world(p, False)
    to = refusing_arrays.asarray
    totals = []
    for t in (1000, 2000):
        y = np.random.default_rng(0).normal(size=(60, t))
        data, made = collapse(y, np.arange(60)), 0
        folds = np.arange(60) % 4
        if form == "primal":
            encode_primal(to(w.x), data, folds, ALPHAS, to(w.test))
        else:
            encode_dual(to(w.x @ w.x.T), data, folds, ALPHAS, to(w.test @ w.x.T))
        totals.append(made - encode_flops(60, p, len(w.test), t, 4, len(ALPHAS))[form])
    assert totals[1] - totals[0] == pytest.approx(0, abs=0.02 * made)


@pytest.mark.parametrize("p", [15, 120])
def test_the_form_of_fewer_operations_is_taken(p: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from nsdcap import ridge_estimator

    used = []
    for form in ("primal", "dual"):
        solve = getattr(ridge_estimator, f"encode_{form}")
        spy = lambda *a, form=form, solve=solve, **b: used.append(form) or solve(*a, **b)  # noqa: E731
        monkeypatch.setattr(ridge_estimator, f"encode_{form}", spy)
    w = world(p, False)
    RidgeCV(ALPHAS, cv=4).fit(w.x[w.picture], w.y)
    costs = encode_flops(60, p, p, 7, 4, len(ALPHAS))
    assert used == [min(costs, key=costs.__getitem__)]
    assert used == ["primal" if p == 15 else "dual"]
