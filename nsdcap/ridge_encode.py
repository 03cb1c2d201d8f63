"""Ridge from features of pictures to voxels: primal for few features, dual (a kernel) for many.

With c the repeats of a picture and w = sqrt(c), ridge on the single trials is ridge on pictures
weighted by c. The primal form takes a fold's Gram matrix from the whole by subtraction, and one
eigenbasis a fold. The dual form has one eigenbasis for all folds: the weighted errors of a fold left
out are (P_ff)^-1 (P w y)_f, P = (w K w + alpha)^-1 on what is orthogonal to the intercept.

Responses are handed over by picture, as ``nsdcap.folds.collapse`` makes them of trials. All else follows
the order of its sorted ``ids``: rows of features, rows and columns of a kernel, and folds, one for each
picture here (for each trial in ``decode_bases``). The answer is a ``nsdcap.ridge.Fit``: ``predictions``
(m, t) of ``test``, ``alpha_index`` (t,) into the penalties, ``cv_scores`` (n_alphas, t), R2 of the trials left
out, and where asked for ``weights`` (p, t) of the features about their mean.

>>> import numpy as np
>>> from nsdcap.folds import collapse, grouped_folds
>>> rng = np.random.default_rng(0)
>>> features = rng.normal(size=(60, 5))  # of pictures 0 to 59
>>> picture = rng.permutation(np.repeat(np.arange(60), 3))  # that each trial shows
>>> voxels = features[picture] @ rng.normal(size=(5, 4)) + rng.normal(size=(180, 4))
>>> data = collapse(voxels, picture)
>>> folds = grouped_folds(data.ids, 5, seed=0)
>>> alphas = np.logspace(-4, 3, 8)
>>> fit = encode_primal(features[data.ids], data, folds, alphas, features[:2], return_weights=True)
>>> fit.predictions.shape, alphas[fit.alpha_index].shape, fit.cv_scores.shape, fit.weights.shape
((2, 4), (4,), (8, 4), (5, 4))
>>> kernel = features @ features.T
>>> dual = encode_dual(kernel, data, folds, alphas, kernel[:2])  # test: (m, n)
>>> np.allclose(dual.predictions, fit.predictions)
True
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nsdcap.folds import Collapsed
from nsdcap.ridge import (
    Fit,
    Triangle,
    about_mean,
    alpha_grid,
    array_module,
    blocks,
    eigen,
    penalised_errors,
    r2,
    squares,
    to_host,
    triangle,
    triangle_flops,
    unseen,
)
from nsdcap.ridge_input import (
    check_encode,
    check_features,
    check_folds,
    check_kernel,
    check_positive,
    check_responses,
    check_scale,
    check_spread,
    check_square,
)
from nsdcap.streams import fitting_block


def encode_primal(
    features: Any, data: Collapsed, folds: Any, alphas: Sequence[float], test: Any,
    block: int = 2048, *, intercept: bool = True, relative: bool = True, per_target: bool = True,
    return_weights: bool = False,
) -> Fit:  # fmt: skip
    """Ridge from features (n, p) of pictures to voxels (n, t), a penalty for each by cross-validation.

    ``data`` (``nsdcap.folds.collapse``) holds the voxels' responses by picture, n of them, in whose order are
    the rows of ``features`` and ``folds`` (n,), each picture's fold, a whole number; ``alphas``
    multiples of the mean eigenvalue (or, ``relative`` false, the penalties), ``test`` (m, p) features.
    ``per_target`` false takes one penalty for all voxels, of the best mean score. Equal to ridge on the
    single trials. For p < n; products for each penalty are
    (p, p / 2) @ (p, block), in the precision of the responses.

    Memory beside what is given, d bytes a response, A penalties, k = min(n / folds, p): 8 (2 (n + m) p +
    (2 folds + 3) p^2 + block (2.5 n + (folds + 3) p)) + d k (n + folds p) bytes whatever t, scores and
    predictions (8 (A + 1) + d m) t; with ``return_weights`` also d p t.

    Raises
    ------
    ValueError
        Not arrays, shapes that disagree, numbers that are not finite or whose squares are not, a feature that
        is the same for every picture (without an intercept: 0 for every picture), features that are all
        the same for the pictures that a fold trains on, a penalty not above 0, a block below 1.
    """
    folds = check_encode("features", features, data, folds, alphas, test)
    check_features("features", features, intercept)
    xp = array_module(features)
    dtype = data.deviation.dtype
    counts = xp.asarray(data.counts, dtype=xp.float64)
    centre = counts @ features / counts.sum() * intercept
    x, x_test = features - centre, test - centre  # float64
    gram, folded = _primal_folds(x, counts, folds, dtype, intercept)
    values, vectors = eigen(gram)
    scale = float(xp.trace(gram) / counts.sum()) if relative else 1.0
    out = (x_test @ vectors, vectors) if return_weights else (x_test @ vectors,)
    grid, t = alpha_grid(alphas), data.deviation.shape[1]
    block = fitting_block(xp, block, 8 * (3 * len(x) + len(folded) * 3 * x.shape[1]))
    scores, index = np.empty((len(grid), t)), np.empty(t, dtype=int)
    found = [np.empty((len(part), t), dtype=dtype) for part in out]
    for columns in blocks(t, block):
        y = xp.asarray(data.deviation[:, columns]).astype(xp.float64)
        y, mean, total = about_mean(y, counts)
        mean += xp.asarray(data.centre[columns])
        if not intercept:
            y += mean
        moments = [(x[fold.rows] * counts[fold.rows][:, None]).T @ y[fold.rows] for fold in folded]
        whole = sum(moments)  # (p, b)
        errors = sum(
            fold.errors(y, whole - moment, grid * (fold.scale if relative else 1.0), dtype)
            for fold, moment in zip(folded, moments, strict=True)
        )
        within = data.within[columns]
        scores[:, columns] = r2(to_host(errors) + within, to_host(total) + within)
        index[columns] = scores[:, columns].argmax(0)
        penalty = xp.asarray(grid[index[columns]] * scale)
        inner = (vectors.T @ whole) / (values[:, None] + penalty)
        for part, rows in zip(out, found, strict=True):
            rows[:, columns] = to_host(part @ inner)
        found[0][:, columns] += to_host(mean * intercept).astype(dtype)
    weights = found[1] if return_weights else None
    fit = Fit(found[0], index, scores, np.zeros(t, dtype=int), weights)
    if per_target:
        return fit
    return _one_penalty(
        fit, lambda alpha: encode_primal(
            features, data, folds, [alpha], test, block, intercept=intercept, relative=relative,
            return_weights=return_weights,
        ), grid,
    )  # fmt: skip


def _one_penalty(fit: Fit, solve: Callable[[float], Fit], grid: np.ndarray) -> Fit:
    """``fit`` with the penalty of the best mean score for every voxel, solved once more."""
    best = int(fit.cv_scores.mean(1).argmax())
    found = solve(grid[best])
    return replace(found, alpha_index=found.alpha_index + best, cv_scores=fit.cv_scores)


@dataclass(frozen=True)
class _PrimalFold:
    """A fold's training set, factorised, and its left-out pictures ready to be compared."""

    rows: Any  # pictures left out
    counts: Any  # of them, (n_f,)
    n_train: float
    mean: Any  # (p,) of the training features
    values: Any  # (p,)
    vectors: Any  # (p, p)
    scale: float
    seen: Any  # (k', n_f): from responses left out to where predictions can lie
    parts: Triangle
    intercept: bool

    def errors(self, y: Any, moment: Any, penalties: Any, dtype: Any) -> Any:
        """Squared errors (n_alphas, b) of the pictures left out, each repeat counted.

        ``y`` (n, b) responses about their mean, ``moment`` (p, b) features by responses in training.
        """
        left = y[self.rows]
        mean = -(self.counts @ left) / self.n_train * self.intercept
        moment = moment - self.n_train * self.mean[:, None] * mean
        inner = (self.vectors.T @ moment).astype(dtype)
        left = (left - mean).astype(dtype)
        seen = self.seen @ left
        outside = unseen(len(left), left, seen, self.counts)
        return outside + penalised_errors(self.parts, self.values, penalties, inner, seen)


def _primal_folds(
    x: Any, counts: Any, folds: Any, dtype: Any, intercept: bool
) -> tuple[Any, list[_PrimalFold]]:
    """The Gram matrix (p, p) of the whole, and every fold."""
    xp = array_module(x)
    names = np.unique(folds)
    groups = [xp.asarray(np.flatnonzero(folds == fold)) for fold in names]
    weight = xp.sqrt(counts)[:, None]
    grams = [(part := x[rows] * weight[rows]).T @ part for rows in groups]
    whole, found = sum(grams), []
    check_scale("features", float(xp.trace(whole)))
    for fold, rows, gram in zip(names, groups, grams, strict=True):
        n_train = float(counts.sum() - counts[rows].sum())
        # the mean of all is 0, so what is left out tells the mean of the rest
        mean = -(counts[rows] @ x[rows]) / n_train * intercept
        train = whole - gram - n_train * mean[:, None] * mean
        trace = float(xp.trace(train))
        check_spread("features", fold, trace, float(xp.trace(whole)))
        values, vectors = eigen(train)
        q, parts = triangle((x[rows] - mean) @ vectors * weight[rows], dtype)
        seen = (q * weight[rows]).T.astype(dtype)
        found.append(
            _PrimalFold(rows, counts[rows], n_train, mean, values, vectors, trace / n_train, seen,
                        parts, intercept)
        )  # fmt: skip
    return whole, found


def encode_flops(
    n: int, p: int, m: int, n_targets: int, n_folds: int, n_alphas: int
) -> dict[str, float]:
    """Operations of ``encode_primal`` and ``encode_dual`` from features (n, p), those of the kernel among
    them; ``m`` rows are predicted. An eigenbasis of k counts 10 k^3."""
    left = -(-n // n_folds)
    k = min(left, p)
    primal = n * p**2 + 10 * (n_folds + 1) * p**3 + n_folds * left * p * (2 * p + 4 * k)
    primal += 2 * m * p**2
    a_target = 2 * n * p + 2 * p**2 + 2 * m * p
    a_target += n_folds * (2 * p**2 + 2 * k * left + n_alphas * triangle_flops(left, p))
    dual = n**2 * p + 2 * m * n * p + 10 * n**3 + 2 * m * n**2
    dual += n_folds * n_alphas * left**2 * (3 * n + 2 * left)
    return {
        "primal": float(primal + n_targets * a_target),
        "dual": float(dual + n_targets * (2 * n**2 * (1 + n_alphas) + 2 * m * n)),
    }


# --- dual ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class KernelBasis:
    """A kernel's eigenbasis on weighted pictures, orthogonal to the intercept.

    ``values`` (k,), ``vectors`` (n, k) of w K w, K centred; ``out`` (m, k) from there to other pictures;
    ``weight`` (n,) w. k = n - 1 with an intercept. ``scale`` mean eigenvalue of the trials' Gram matrix.
    """

    values: Any
    vectors: Any
    out: Any
    weight: Any
    scale: float


def kernel_basis(kernel: Any, counts: Any, others: Any, intercept: bool = True) -> KernelBasis:
    """Factorise the uncentred kernel (n, n) of pictures shown ``counts`` (n,) times; ``others`` (m, n).

    float64; memory 3 (n^2 + m n) numbers beside the kernels.

    Raises
    ------
    ValueError
        Not arrays, shapes that disagree, numbers that are not finite, counts not above 0, a kernel that is
        not symmetric or not that of features: negative.
    """
    check_square(kernel, counts, others, "others")
    return factorised(kernel, counts, others, intercept)


def factorised(
    kernel: Any, counts: Any, others: Any, intercept: bool = True, *, part: bool = False
) -> KernelBasis:
    """``kernel_basis`` of a kernel that was looked at. Of a ``part`` of one, little but rounding may be left,
    and eigenvalues are then not looked at either."""
    xp = array_module(kernel)
    counts = xp.asarray(counts, dtype=xp.float64)
    weight, whole = xp.sqrt(counts), float((xp.diag(kernel) * counts).sum())
    if intercept:
        share = counts / counts.sum()
        column = kernel @ share
        grand = share @ column
        kernel = kernel - column[:, None] - column + grand
        others = others - (others @ share)[:, None] - column + grand
    gram = kernel * weight[:, None] * weight
    trace = float(xp.trace(gram))
    if intercept:
        # w is an eigenvector of eigenvalue 0; lifted above all others it comes last, and is dropped
        gram += (2 * abs(trace) / float(counts.sum())) * weight[:, None] * weight
    values, vectors = xp.linalg.eigh(gram)
    if intercept:
        values, vectors = values[:-1], vectors[:, :-1]
    if not part:
        check_positive(gram.shape, float(values[0]), float(values[-1]), whole)
    values = xp.maximum(values, 0)
    out = (others * weight) @ vectors
    return KernelBasis(values, vectors, out, weight, trace / float(counts.sum()))


def encode_dual(
    kernel: Any, data: Collapsed, folds: Any, alphas: Sequence[float], test: Any,
    block: int = 2048, *, intercept: bool = True, relative: bool = True, per_target: bool = True,
) -> Fit:  # fmt: skip
    """``encode_primal`` from the uncentred kernel (n, n) and ``test`` (m, n) in place of features.

    Where features are far from 0, make the kernel from features less their mean: products of large
    numbers leave few digits to what differs.
    Memory: that of ``kernel_basis``, and what ``encode_basis`` says.

    Raises
    ------
    ValueError
        As ``encode_primal``; a kernel that is not symmetric, negative, or the same for every picture.
    """
    folds = check_encode("kernel", kernel, data, folds, alphas, test)
    check_kernel(kernel, data.counts, folds, intercept)
    basis = factorised(kernel, data.counts, test, intercept)
    return encode_basis(basis, data, folds, alphas, block, relative=relative, per_target=per_target)


def encode_basis(
    basis: KernelBasis, data: Collapsed, folds: Any, alphas: Sequence[float], block: int = 2048, *,
    relative: bool = True, per_target: bool = True,
) -> Fit:  # fmt: skip
    """``encode_dual`` from the kernel's eigenbasis, which it needs once for all folds.

    Products for each penalty: (n_f, n) @ (n, block) for each fold, of n_f pictures.

    Memory beside what is given, d bytes a response, m pictures predicted: responses once more and predictions,
    d (n + m) t, scores 40 A t for A penalties, and 8 n times the larger of 5 n_f and 3 block bytes.

    Raises
    ------
    ValueError
        Shapes that disagree, numbers that are not finite, repeats that are not those of the basis, a
        kernel that is the same for every picture or for those that a fold trains on, a penalty not above
        0, a block below 1.
    """
    xp, n = array_module(basis.vectors), len(basis.weight)
    counts, intercept = basis.weight**2, basis.vectors.shape[1] < n
    check_responses(data, n, counts)
    folds = check_folds(folds, n)
    if not basis.scale > 0:
        raise ValueError(
            f"kernel {(n, n)}: the same for every picture; expected features that differ"
        )
    dtype, t, grid = data.deviation.dtype, data.deviation.shape[1], alpha_grid(alphas)
    block = fitting_block(xp, block, 8 * 3 * len(counts))
    inner = xp.empty((len(basis.values), t), dtype=dtype)
    mean, total = xp.empty(t), xp.empty(t)
    for columns in blocks(t, block):
        y = xp.asarray(data.deviation[:, columns]).astype(xp.float64)
        y, mean[columns], total[columns] = about_mean(y, counts)
        mean[columns] += xp.asarray(data.centre[columns])
        if not intercept:
            y += mean[columns]
        y *= basis.weight[:, None]
        inner[:, columns] = basis.vectors.T @ y
    del y
    errors = xp.zeros((len(grid), t))
    for fold in np.unique(folds):
        rows = xp.asarray(np.flatnonzero(folds == fold))
        left = basis.vectors[rows]
        trained = _training_scale(basis, rows, fold)
        scale = trained if relative else 1.0
        for number, alpha in enumerate(grid):
            root = (basis.values + alpha * scale) ** -0.5
            half = left * root  # times its own transpose: half the operations of a product
            # two products and a small inverse take half the time of a solve with so many sides
            out = (xp.linalg.inv(half @ half.T) @ (half * root)).astype(dtype)  # (n_f, k)
            for columns in blocks(t, block):
                errors[number, columns] += squares(out @ inner[:, columns])
        del left, half, out
    scores = r2(to_host(errors) + data.within, to_host(total) + data.within)
    index = scores.argmax(0)
    if not per_target:
        index = np.full(t, scores.mean(1).argmax())
    predictions = np.empty((len(basis.out), t), dtype=dtype)
    for columns in blocks(t, block):
        penalty = xp.asarray(grid[index[columns]] * (basis.scale if relative else 1.0))
        found = basis.out @ (inner[:, columns] / (basis.values[:, None] + penalty))
        predictions[:, columns] = to_host(found + mean[columns] * intercept)
    return Fit(predictions, index, scores, np.zeros(t, dtype=int))


def _training_scale(basis: KernelBasis, rows: Any, fold: Any) -> float:
    """Mean eigenvalue, trace / n_trials, of the Gram matrix about their mean of all but the fold's ``rows``."""
    # from the rows left out: columns of vectors have length 1, and are orthogonal to the weights
    left, weight = basis.vectors[rows], basis.weight[rows]
    n_train = basis.weight @ basis.weight - weight @ weight
    trace = basis.values.sum() - ((left**2) @ basis.values).sum()
    if basis.vectors.shape[1] < len(basis.weight):  # with an intercept
        trace -= ((weight @ left) ** 2) @ basis.values / n_train
    check_spread("the features of its kernel", fold, float(trace), float(basis.values.sum()))
    return float(trace / n_train)
