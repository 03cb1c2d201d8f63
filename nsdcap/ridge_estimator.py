"""Encoding's ridge as an estimator of scikit-learn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from nsdcap.folds import collapse, grouped_folds
from nsdcap.ridge import edge_share
from nsdcap.ridge_encode import encode_dual, encode_primal


class RidgeCV(MultiOutputMixin, RegressorMixin, BaseEstimator):
    """Ridge with a penalty for each target, chosen by cross-validation that keeps groups together.

    ``alphas``: multiples of the mean eigenvalue of X's (centred) Gram matrix, or with ``relative`` false
    the penalties themselves; ``alpha_per_target`` false: one for all; ``cv``: number of folds; ``seed``
    of the shuffle of groups. After ``fit``:
    ``alpha_`` (t,) chosen, ``alpha_index_`` (t,), ``coef_`` (t, p), ``intercept_`` (t,), ``cv_scores_``
    (n_alphas, t), R2 of the rows, each predicted by the fold that left it out; ``edge_share_`` of targets
    whose penalty is at an end of the grid; without the axis of t for y (n,).
    """

    def __init__(
        self,
        alphas: Sequence[float] = (0.01, 0.1, 1.0, 10.0, 100.0),
        *,
        cv: int = 5,
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
        float64. Memory: that of ``encode_primal`` or, for more features than rows, ``encode_dual``.

        Raises
        ------
        ValueError
            As ``encode_primal``; fewer groups than folds.
        """
        X, y = validate_data(
            self, X, y, dtype=np.float64, multi_output=True, y_numeric=True, ensure_min_samples=2
        )
        groups = np.arange(len(X)) if groups is None else np.asarray(groups)
        if groups.shape != (len(X),):
            raise ValueError(f"groups {groups.shape}: expected ({len(X)},) beside X {X.shape}")
        folds = grouped_folds(groups, self.cv, self.seed)
        first, member = np.unique(groups, return_index=True, return_inverse=True)[1:]
        if not np.array_equal(X[first][member], X):
            first = member = np.arange(len(X))
        data = collapse(y.reshape(len(y), -1), member, self.block)
        rows, p = X[first], X.shape[1]
        options = {
            "intercept": self.fit_intercept,
            "relative": self.relative,
            "per_target": self.alpha_per_target,
        }
        # what the model says to nothing is its intercept
        if p <= len(rows):
            fit = encode_primal(rows, data, folds[first], self.alphas, np.zeros((1, p)), self.block,
                                return_weights=True, **options)  # fmt: skip
            coefficients: Any = fit.weights
        else:
            probe = np.concatenate([np.zeros((1, len(rows))), rows.T])  # nothing, and each feature
            fit = encode_dual(rows @ rows.T, data, folds[first], self.alphas, probe, self.block,
                              **options)  # fmt: skip
            coefficients = fit.predictions[1:] - fit.predictions[0]
        only = 0 if y.ndim == 1 else slice(None)
        self.intercept_ = fit.predictions[0][only]
        self.coef_ = coefficients.T[only]
        self.alpha_index_ = fit.alpha_index[only]
        self.edge_share_ = edge_share(fit.alpha_index, len(self.alphas))
        self.alpha_ = np.asarray(self.alphas, dtype=np.float64)[self.alpha_index_]
        self.cv_scores_ = fit.cv_scores[:, only]
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Responses (m, t) or (m,) to features X (m, p)."""
        check_is_fitted(self)
        return validate_data(self, X, reset=False) @ self.coef_.T + self.intercept_
