"""Encoding's ridge as an estimator in the manner of scikit-learn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nsdcap.folds import collapse, grouped_folds
from nsdcap.ridge import encode_dual, encode_primal


class RidgeCV:
    """Ridge with a penalty for each target, chosen by cross-validation that keeps groups together.

    In the manner of scikit-learn. ``alphas``: multiples of the mean eigenvalue of X's (centred) Gram
    matrix; ``cv``: number of folds; ``seed`` of the shuffle of groups. After ``fit``: ``alpha_`` (t,)
    chosen multiple, ``alpha_index_`` (t,), ``coef_`` (t, p), ``intercept_`` (t,), ``cv_scores_``
    (n_alphas, t), R2 of the rows left out, mean over folds; without the axis of t for y (n,).
    """

    def __init__(
        self,
        alphas: Sequence[float] = (0.01, 0.1, 1.0, 10.0, 100.0),
        *,
        cv: int = 5,
        fit_intercept: bool = True,
        seed: int = 0,
        block: int = 2048,
    ) -> None:
        self.alphas = alphas
        self.cv = cv
        self.fit_intercept = fit_intercept
        self.seed = seed
        self.block = block

    def fit(self, X: Any, y: Any, groups: Any = None) -> RidgeCV:
        """Features X (n, p), responses y (n, t) or (n,), ``groups`` (n,) kept within one fold.

        Rows of a group that are all the same are collapsed, which changes nothing but the time.
        Memory: that of ``encode_primal`` or, for more features than rows, ``encode_dual``.

        Raises
        ------
        ValueError
            As ``encode_primal``; fewer groups than folds.
        """
        X, y = np.asarray(X, dtype=np.float64), np.asarray(y)
        groups = np.arange(len(X)) if groups is None else np.asarray(groups)
        if X.ndim != 2 or y.ndim not in (1, 2) or len(y) != len(X) or groups.shape != (len(X),):
            raise ValueError(
                f"X {X.shape}, y {y.shape}, groups {groups.shape}: expected (n, p), (n, t) or (n,), (n,)"
            )
        folds = grouped_folds(groups, self.cv, self.seed)
        first, member = np.unique(groups, return_index=True, return_inverse=True)[1:]
        if not np.array_equal(X[first][member], X):
            first = member = np.arange(len(X))
        data = collapse(y.reshape(len(y), -1), member, self.block)
        rows, p = X[first], X.shape[1]
        # what the model says to nothing and to each feature alone: intercept, intercept + weight
        probe = np.concatenate([np.zeros((1, p)), np.eye(p)])
        if p <= len(rows):
            fit = encode_primal(rows, data, folds[first], self.alphas, probe, self.block,
                                intercept=self.fit_intercept)  # fmt: skip
        else:
            fit = encode_dual(rows @ rows.T, data, folds[first], self.alphas, probe @ rows.T,
                              self.block, intercept=self.fit_intercept)  # fmt: skip
        only = 0 if y.ndim == 1 else slice(None)
        self.intercept_ = fit.predictions[0][only]
        self.coef_ = (fit.predictions[1:] - fit.predictions[0]).T[only]
        self.alpha_index_ = fit.alpha_index[only]
        self.alpha_ = np.asarray(self.alphas, dtype=np.float64)[self.alpha_index_]
        self.cv_scores_ = fit.cv_scores[:, only]
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Responses (m, t) or (m,) to features X (m, p)."""
        return np.asarray(X) @ self.coef_.T + self.intercept_

    def score(self, X: Any, y: Any) -> float:
        """R2, mean over targets."""
        y = np.asarray(y)
        error = ((y - self.predict(X)) ** 2).sum(0)
        return float(np.mean(1 - error / ((y - y.mean(0)) ** 2).sum(0)))

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The settings, as scikit-learn's ``clone`` asks for them."""
        return {name: getattr(self, name) for name in self._SETTINGS}

    def set_params(self, **settings: Any) -> RidgeCV:
        """Change settings; an unknown one is a ValueError."""
        for name, value in settings.items():
            if name not in self._SETTINGS:
                raise ValueError(f"{name}: expected one of {', '.join(self._SETTINGS)}")
            setattr(self, name, value)
        return self

    _SETTINGS = ("alphas", "cv", "fit_intercept", "seed", "block")
