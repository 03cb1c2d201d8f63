"""Encoding's ridge as an estimator of scikit-learn."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.model_selection import check_cv
from sklearn.utils.validation import check_is_fitted, validate_data

from nsdcap.folds import collapse, group_names, grouped_folds
from nsdcap.ridge import EDGE_SHARE, Fit, alpha_grid, edge_share
from nsdcap.ridge_encode import encode_dual, encode_flops, encode_primal
from nsdcap.ridge_input import check_features


class RidgeCV(MultiOutputMixin, RegressorMixin, BaseEstimator):
    """Ridge with a penalty for each target, chosen by cross-validation that keeps groups together.

    Parameters
    ----------
    alphas
        Multiples of trace(X'X) / n_trials, X about its mean (as it is without an intercept): the mean
        eigenvalue. It is taken anew from each fold's training trials, so a multiple is not one penalty.
        With ``relative`` false, the penalties themselves, in each fold the same.
    cv
        A number of folds, None for 5, or a splitter of scikit-learn's or a list of (train, test) that
        leaves each row out exactly once and trains on all others.
    fit_intercept
        Whether X and y are taken about their means; else the model goes through 0.
    alpha_per_target
        False: one penalty for all targets, that of the best mean score.
    seed
        Of the shuffle of groups, where ``cv`` is a number.
    block
        Targets at a time: memory grows with it, results do not change.

    Attributes
    ----------
    After ``fit``, without the axis of t for y (n,): ``alpha_`` (t,) chosen of ``alphas``, ``alpha_index_``
    (t,) its place; ``penalties_`` (t,) what that is on all rows, as scikit-learn's Ridge takes it;
    ``coef_`` (t, p), ``intercept_`` (t,); ``cv_scores_`` (n_alphas, t), R2 of the rows, each predicted by
    the fold that left it out; ``edge_share_`` of targets whose penalty is at an end of the grid, constant
    targets, which choose none and score 0, left out.

    Notes
    -----
    Groups in another cross-validation. ``cross_val_predict(model, X, y, groups=g)`` and ``GridSearchCV``'s
    ``fit(X, y, groups=g)`` hand groups to their own splitter alone: ``fit`` then sees none, repeats leak
    between its folds, and penalties come out too small. Two ways work:

    - ``params``: ``cross_val_predict(model, X, y, groups=g, params={"groups": g})``; of a pipeline
      ``params={"ridgecv__groups": g}``, and of ``GridSearchCV`` on one ``fit(X, y, groups=g,
      ridgecv__groups=g)``;
    - ``sklearn.set_config(enable_metadata_routing=True)`` and ``RidgeCV().set_fit_request(groups=True)``;
      then ``cross_val_predict(model, X, y, params={"groups": g})`` or ``fit(X, y, groups=g)``; a
      ``GridSearchCV`` on ``RidgeCV`` itself, without a pipeline, knows this way alone.

    A feature that is the same in every row that ``fit`` gets (in an outer fold, say, a rare label) is
    refused: it says nothing there, and is most often a mistake, or a feature that comes alive in the rows
    left out, where its coefficient of 0 would be taken for a finding. Where it is meant,
    ``make_pipeline(VarianceThreshold(), RidgeCV())`` leaves it out.
    """

    def __init__(
        self,
        alphas: Sequence[float] = (0.01, 0.1, 1.0, 10.0, 100.0),
        *,
        cv: Any = 5,
        fit_intercept: bool = True,
        alpha_per_target: bool = True,
        relative: bool = True,
        seed: int = 0,
        block: int = 2048,
    ) -> None:
        self.alphas = alphas
        self.cv = cv
        self.fit_intercept = fit_intercept
        self.alpha_per_target = alpha_per_target
        self.relative = relative
        self.seed = seed
        self.block = block

    def fit(self, X: Any, y: Any, groups: Any = None) -> RidgeCV:
        """Features X (n, p), responses y (n, t) or (n,), ``groups`` (n,) kept within one fold.

        Rows of a group that are all the same are collapsed, which changes nothing but the time.
        float64. Of ``encode_primal`` and ``encode_dual`` the one of fewer operations; memory is its.
        Groups are numbers or text. Warns where more than a tenth of the targets want a penalty at an end of
        the grid.

        Raises
        ------
        ValueError
            As ``encode_primal``; groups that are NaN, None or of mixed kinds, or fewer than folds; a ``cv``
            that leaves rows out never or twice, or does not train on all others.
        """
        X, y = validate_data(
            self, X, y, dtype=np.float64, multi_output=True, y_numeric=True, ensure_min_samples=2
        )
        alpha_grid(self.alphas)
        if groups is not None:
            groups = group_names(groups)
            if groups.shape != (len(X),):
                raise ValueError(f"groups {groups.shape}: expected ({len(X)},) beside X {X.shape}")
        check_features("X", X, self.fit_intercept)
        targets = y.reshape(len(y), -1)
        sizes = _powers(np.abs(targets).max(0))
        if sizes.any():
            targets = np.ldexp(targets, -sizes)
        folds = self._folds(X, y, groups)
        first = member = np.arange(len(X))
        if groups is not None:
            names, same = np.unique(groups, return_inverse=True)
            # a splitter of the user's own may put a group into several folds
            first, own = np.unique(
                folds * len(names) + same, return_index=True, return_inverse=True
            )[1:]
            if np.array_equal(X[first][own], X):
                member = own
            else:
                first = member
        data = collapse(targets, member, self.block)
        rows, (n, p), folds = X[first], (len(first), X.shape[1]), folds[first]
        centre = data.counts @ rows / data.counts.sum() * self.fit_intercept
        rows -= centre  # else a kernel has no digits left where features are far from 0
        power = self._power(rows)
        if power:
            np.ldexp(rows, -power, out=rows)
        eigen_mean = np.einsum("ij,ij,i->", rows, rows, data.counts) / data.counts.sum()
        options: dict[str, Any] = {
            "intercept": self.fit_intercept,
            "relative": self.relative,
            "per_target": self.alpha_per_target,
        }
        costs = encode_flops(
            n, p, p, data.deviation.shape[1], len(np.unique(folds)), np.size(self.alphas)
        )
        # what the model says to nothing is its intercept
        if costs["primal"] <= costs["dual"]:
            fit = encode_primal(rows, data, folds, self.alphas, np.zeros((1, p)), self.block,
                                return_weights=True, **options)  # fmt: skip
            coefficients: Any = fit.weights
        else:
            probe = np.concatenate([np.zeros((1, n)), rows.T])  # nothing, and each feature
            fit = encode_dual(rows @ rows.T, data, folds, self.alphas, probe, self.block,
                              **options)  # fmt: skip
            coefficients = fit.predictions[1:] - fit.predictions[0]
        coefficients = np.ldexp(coefficients, sizes - power)
        only = 0 if y.ndim == 1 else slice(None)
        self.intercept_ = (np.ldexp(fit.predictions[0], sizes) - centre @ coefficients)[only]
        self.coef_ = coefficients.T[only]
        self.alpha_index_ = fit.alpha_index[only]
        self.edge_share_ = edge_share(fit.alpha_index, self.alphas, fit.cv_scores.max(0))
        self.alpha_ = np.asarray(self.alphas, dtype=np.float64)[self.alpha_index_]
        with np.errstate(over="ignore", under="ignore"):
            scale = np.ldexp(eigen_mean, 2 * power) if self.relative else 1.0
            self.penalties_ = self.alpha_ * scale
        self.cv_scores_ = fit.cv_scores[:, only]
        if self.edge_share_ > EDGE_SHARE:
            warnings.warn(self._edges(fit), stacklevel=2)
        return self

    def _edges(self, fit: Fit) -> str:
        """Which end of the grid how many want, and what to do."""
        grid = np.asarray(self.alphas, dtype=np.float64)
        chosen, low, high = grid[fit.alpha_index], grid.min(), grid.max()
        chosen = chosen[fit.cv_scores.max(0) != 0]
        told = [
            f"{np.mean(chosen == end):.0%} the {name}, {end:g}"
            for name, end in (("smallest", low), ("largest", high))
            if (chosen == end).any()
        ]
        largest = " (targets that X does not predict want the largest there is)"
        return (
            f"{self.edge_share_:.0%} of targets want a penalty at an end of the grid, {' and '.join(told)}: "
            f"widen alphas{largest * bool((chosen == high).any())}"
        )

    def _power(self, rows: np.ndarray) -> int:
        """Power of 2 that centred ``rows`` are to be divided by so that their squares are in range."""
        largest = float(np.abs(rows).max())
        power = _powers(largest)
        if power and not (self.relative and 1e-290 < largest < 1e290):
            cure = "" if self.relative else ", or take relative=True"
            raise ValueError(
                f"X {rows.shape}: numbers up to {largest:.3g} about the mean, whose squares float64 does not "
                f"hold; scale X{cure}"
            )
        return int(power)

    def predict(self, X: Any) -> np.ndarray:
        """Responses (m, t) or (m,) to features X (m, p)."""
        check_is_fitted(self)
        return validate_data(self, X, reset=False) @ self.coef_.T + self.intercept_

    def _folds(self, X: np.ndarray, y: np.ndarray, groups: Any) -> np.ndarray:
        """Fold (n,) int of each row; ValueError where ``cv`` is not folds that leave each row out once."""
        n = len(X)
        cv: Any = 5 if self.cv is None else self.cv
        if isinstance(cv, Integral):
            named = np.arange(n) if groups is None else groups
            folds: Any = cv  # not an int to a type checker
            return grouped_folds(named, folds, self.seed, "cv")
        told = "" if isinstance(cv, list | tuple) else f"{type(cv).__name__} "
        folds, times = np.zeros(n, dtype=int), np.zeros(n, dtype=int)
        unlike: list[int] = []  # folds that do not train on all others
        for number, split in enumerate(cv if told == "" else ()):
            if not hasattr(split, "__len__") or len(split) != 2:
                raise ValueError(f"cv: split {number} is not (train, test), the rows of each")
        for number, (train, left) in enumerate(check_cv(cv).split(X, y, groups)):
            kept = np.ones(n, dtype=bool)
            try:
                kept[left] = False
                trained = np.unique(np.arange(n)[train])
            except IndexError as error:
                raise ValueError(
                    f"cv: split {number} is not of {n} rows ({error}); expected whole numbers from 0 to {n - 1}"
                ) from None
            if not np.array_equal(np.flatnonzero(kept), trained):
                unlike.append(number)
            times[left] += 1
            folds[left] = number
        faults = []
        if (times != 1).any():
            faults.append(f"leaves {(times != 1).sum()} of {n} rows out never or more than once")
        if unlike:
            faults.append(
                f"does not train on all others in {len(unlike)} splits, first {unlike[0]}"
            )
        if faults:
            raise ValueError(
                f"cv: {told}{' and '.join(faults)}; expected a number of folds, or splits such as GroupKFold's"
            )
        return folds


def _powers(largest: Any) -> Any:
    """Powers of 2 that numbers up to ``largest`` are to be divided by so that float64 holds their squares."""
    well = ((largest > 1e-100) & (largest < 1e100)) | (np.asarray(largest) == 0)
    return np.where(well, 0, np.frexp(largest)[1])
