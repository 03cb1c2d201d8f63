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

from nsdcap.folds import collapse, grouped_folds
from nsdcap.ridge import EDGE_SHARE, edge_share
from nsdcap.ridge_encode import encode_dual, encode_flops, encode_primal
from nsdcap.ridge_input import check_features


class RidgeCV(MultiOutputMixin, RegressorMixin, BaseEstimator):
    """Ridge with a penalty for each target, chosen by cross-validation that keeps groups together.

    ``alphas``: multiples of the mean eigenvalue of X's (centred) Gram matrix, or with ``relative`` false
    the penalties themselves; ``alpha_per_target`` false: one for all; ``cv``: a number of folds, None for
    5, or a splitter of scikit-learn's or a list of (train, test) that leaves each row out exactly once;
    ``seed`` of the shuffle of groups, where ``cv`` is a number. After ``fit``:
    ``alpha_`` (t,) chosen, ``alpha_index_`` (t,), ``coef_`` (t, p), ``intercept_`` (t,), ``cv_scores_``
    (n_alphas, t), R2 of the rows, each predicted by the fold that left it out; ``edge_share_`` of targets
    whose penalty is at an end of the grid; without the axis of t for y (n,).
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
        Warns where more than a tenth of the targets want a penalty at an end of the grid.

        Raises
        ------
        ValueError
            As ``encode_primal``; fewer groups than folds; a ``cv`` that leaves rows out never or twice.
        """
        X, y = validate_data(
            self, X, y, dtype=np.float64, multi_output=True, y_numeric=True, ensure_min_samples=2
        )
        if groups is not None and np.shape(groups) != (len(X),):
            raise ValueError(f"groups {np.shape(groups)}: expected ({len(X)},) beside X {X.shape}")
        check_features("X", X, self.fit_intercept)
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
        data = collapse(y.reshape(len(y), -1), member, self.block)
        rows, (n, p), folds = X[first], (len(first), X.shape[1]), folds[first]
        centre = data.counts @ rows / data.counts.sum() * self.fit_intercept
        rows -= centre  # else a kernel has no digits left where features are far from 0
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
        only = 0 if y.ndim == 1 else slice(None)
        self.intercept_ = (fit.predictions[0] - centre @ coefficients)[only]
        self.coef_ = coefficients.T[only]
        self.alpha_index_ = fit.alpha_index[only]
        self.edge_share_ = edge_share(fit.alpha_index, self.alphas, fit.cv_scores.max(0))
        self.alpha_ = np.asarray(self.alphas, dtype=np.float64)[self.alpha_index_]
        self.cv_scores_ = fit.cv_scores[:, only]
        if self.edge_share_ > EDGE_SHARE:
            warnings.warn(
                f"{self.edge_share_:.0%} of targets want a penalty at an end of the grid, {min(self.alphas):g} "
                f"or {max(self.alphas):g}: widen alphas",
                stacklevel=2,
            )
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Responses (m, t) or (m,) to features X (m, p)."""
        check_is_fitted(self)
        return validate_data(self, X, reset=False) @ self.coef_.T + self.intercept_

    def _folds(self, X: np.ndarray, y: np.ndarray, groups: Any) -> np.ndarray:
        """Fold (n,) int of each row; ValueError where ``cv`` is not folds that leave each row out once."""
        n, cv = len(X), 5 if self.cv is None else self.cv
        if isinstance(cv, Integral):
            return grouped_folds(np.arange(n) if groups is None else groups, int(cv), self.seed)
        folds, times, others = np.zeros(n, dtype=int), np.zeros(n, dtype=int), True
        for number, (train, left) in enumerate(check_cv(cv).split(X, y, groups)):
            kept = np.ones(n, dtype=bool)
            kept[left] = False
            others &= np.array_equal(np.flatnonzero(kept), np.unique(np.arange(n)[train]))
            times[left] += 1
            folds[left] = number
        if not others or (times != 1).any():
            raise ValueError(
                f"cv: {cv} leaves {(times != 1).sum()} of {n} rows out never or more than once, or does not "
                "train on all others; expected a number of folds, or splits such as GroupKFold's"
            )
        return folds
