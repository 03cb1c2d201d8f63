"""Ridge regression with cross-validated penalties, repeats collapsed exactly.

Everything rests on one form. With c the repeats of a picture, w = sqrt(c), and the training set's
weighted mean taken off features and responses, the prediction is

    B diag(1 / (s + alpha)) A (Y - mean) + mean,     s the eigenvalues of the Gram matrix,

where (A, s, B) is a ``Basis``: one factorisation of the features' or the pictures' Gram matrix,
whichever is smaller, serves every penalty and every target. Penalties are multiples of the mean
eigenvalue of the trials' Gram matrix, trace / n_trials, which collapsing repeats leaves as it is.

Encoding has features of pictures on the left, so repeats become weights; decoding has them on the
right, where the hat matrix's columns of one picture are summed and its targets read once. Both
equal ridge on the single trials. Factorisations are in float64. The array module is the input's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nsdcap.folds import Collapsed


@dataclass(frozen=True)
class Basis:
    """One training set's factorisation, ready for any penalty.

    ``values`` (k,) eigenvalues, clamped at 0; ``into`` (k, n) from centred responses;
    ``out`` (m, k) to predictions; ``scale`` mean eigenvalue of the trials' Gram matrix;
    ``intercept`` whether means were taken off, and are to be taken off the responses.
    """

    values: Any
    into: Any
    out: Any
    scale: float
    intercept: bool = True


@dataclass(frozen=True)
class Fit:
    """``predictions`` (m, t); ``alpha_index`` (t,) into the grid; ``cv_scores`` (n_alphas, t), R2
    over the trials left out, mean over folds; ``ratio_index`` (t,) of a joint model, else zeros;
    ``weights`` (p, t) of the features where they were asked for."""

    predictions: np.ndarray
    alpha_index: np.ndarray
    cv_scores: np.ndarray
    ratio_index: np.ndarray
    weights: np.ndarray | None = None


def array_module(array: Any) -> Any:
    """numpy, or cupy for an array of cupy's."""
    if type(array).__module__.split(".")[0] == "cupy":
        import cupy

        return cupy
    return np


# --- factorisations -----------------------------------------------------------------------------


def primal_basis(features: Any, counts: Any, others: Any, intercept: bool = True) -> Basis:
    """From features (n, p) of pictures shown ``counts`` (n,) times, for rows ``others`` (m, p).

    The Gram matrix is (p, p): for p < n. Memory: p^2 + (2 n + m) p float64.
    """
    xp = array_module(features)
    total = counts.sum()
    mean = counts @ features / total * intercept  # (p,)
    centred = features - mean
    weighted = centred * counts[:, None]
    gram = weighted.T @ centred  # (p, p)
    values, vectors = xp.linalg.eigh(gram)
    return Basis(
        xp.maximum(values, 0),
        vectors.T @ weighted.T,
        (others - mean) @ vectors,
        float(xp.trace(gram) / total),
        intercept,
    )


def dual_basis(kernel: Any, counts: Any, others: Any, intercept: bool = True) -> Basis:
    """From the uncentred kernel (n, n) of pictures shown ``counts`` times; ``others`` (m, n).

    For p >= n. Memory: 4 n^2 + m n float64.
    """
    xp = array_module(kernel)
    total = counts.sum()
    centred, others = _centre(kernel, others, counts) if intercept else (kernel, others)
    weight = xp.sqrt(counts)
    gram = centred * weight[:, None] * weight  # (n, n)
    values, vectors = xp.linalg.eigh(gram)
    return Basis(
        xp.maximum(values, 0),
        vectors.T * weight,
        (others * weight) @ vectors,
        float(xp.trace(gram) / total),
        intercept,
    )


def _centre(kernel: Any, others: Any, counts: Any) -> tuple[Any, Any]:
    """Kernels (n, n) and (m, n) of features about the training set's weighted mean."""
    share = counts / counts.sum()
    column = kernel @ share  # (n,)
    grand = share @ column
    centred = kernel - column[:, None] - column + grand
    return centred, others - (others @ share)[:, None] - column + grand


# --- encoding: features of pictures -> voxels -----------------------------------------------------


def encode_primal(
    features: Any, data: Collapsed, folds: Any, alphas: Sequence[float], test: Any,
    block: int = 2048, *, intercept: bool = True, return_weights: bool = False,
) -> Fit:  # fmt: skip
    """Ridge from features (n, p) of pictures to voxels (n, t), penalty by cross-validation.

    ``data`` holds the voxels' responses by picture, ``folds`` (n,) each picture's fold, ``alphas``
    multiples of the mean eigenvalue, ``test`` (m, p) features. Equal to ridge with intercept on the
    single trials. Memory: the bases of all folds, and n x ``block`` responses a few times; with
    ``return_weights`` also (p, t) float64.

    Raises
    ------
    ValueError
        Shapes that disagree, numbers that are not finite, a penalty that is not above 0.
    """
    _check_encode(features, data, folds, alphas, test)
    m, p = test.shape
    if return_weights:
        # what the model says to nothing and to each feature alone: intercept, intercept + weight
        xp = array_module(test)
        test = xp.concatenate([test, xp.zeros((1, p)), xp.eye(p)])

    def make(train: Any, left: Any) -> Basis:
        others = test if left is None else features[left]
        return primal_basis(features[train], data.counts[train], others, intercept)

    fit = _encode([make], data, folds, alphas, block)
    if not return_weights:
        return fit
    predictions = fit.predictions
    weights = predictions[m + 1 :] - predictions[m]
    return replace(fit, predictions=predictions[:m], weights=weights)


def encode_dual(
    kernel: Any, data: Collapsed, folds: Any, alphas: Sequence[float], test: Any,
    block: int = 2048, *, intercept: bool = True,
) -> Fit:  # fmt: skip
    """``encode_primal`` from the uncentred kernel (n, n) and ``test`` (m, n) in place of features.

    Memory: about 5 n^2 float64 beside the kernel, and n x ``block`` responses a few times.
    """
    _check_encode(kernel, data, folds, alphas, test, square=True)
    maker = _kernel_maker((kernel,), (test,), (1.0,), data, intercept)
    return _encode([maker], data, folds, alphas, block)


def encode_joint(
    kernels: Sequence[Any], data: Collapsed, folds: Any, alphas: Sequence[float],
    ratios: Sequence[float], tests: Sequence[Any], block: int = 2048,
) -> Fit:  # fmt: skip
    """Ridge on two feature spaces, given as kernels, each scaled to unit trace over the trials.

    The second space weighs ``ratios`` times the first; ratio and penalty are chosen for each voxel by
    cross-validation. ``kernels`` two (n, n), ``tests`` two (m, n), uncentred. ``alphas`` are
    multiples of the summed kernel's mean eigenvalue, as everywhere. Memory: that of ``encode_dual``.

    Raises
    ------
    ValueError
        As ``encode_primal``; other than two kernels; a ratio below 0; pictures that do not differ.
    """
    if len(kernels) != 2 or len(tests) != 2:
        raise ValueError(f"kernels {len(kernels)}, tests {len(tests)}: expected two of each")
    for kernel, test in zip(kernels, tests, strict=True):
        _check_encode(kernel, data, folds, alphas, test, square=True)
    if len(ratios) == 0 or not (np.isfinite(ratios).all() and np.min(ratios) >= 0):
        raise ValueError(f"ratios: found {ratios}, expected a list of finite numbers, none below 0")
    traces = [float((np.diag(_centre(k, k, data.counts)[0]) * data.counts).sum()) for k in kernels]
    if min(traces) <= 0:
        raise ValueError(
            f"kernels of trace {traces} about the mean: expected above 0; leave out a feature space "
            "that is the same for every picture"
        )
    makers = [
        _kernel_maker(kernels, tests, (1 / traces[0], ratio / traces[1]), data, True)
        for ratio in ratios
    ]
    return _encode(makers, data, folds, alphas, block)


def _kernel_maker(
    kernels: Sequence[Any], tests: Sequence[Any], weights: Sequence[float], data: Collapsed,
    intercept: bool,
) -> Callable[[Any, Any], Basis]:  # fmt: skip
    """Bases from the weighted sum of kernels, which is formed for the rows that are needed alone."""

    def summed(parts: Sequence[Any], rows: Any, columns: Any) -> Any:
        terms = (w * part[rows][:, columns] for part, w in zip(parts, weights, strict=True))
        total = next(terms)
        for term in terms:
            total += term
        return total

    def make(train: Any, left: Any) -> Basis:
        others = summed(tests, slice(None), train) if left is None else summed(kernels, left, train)
        return dual_basis(summed(kernels, train, train), data.counts[train], others, intercept)

    return make


def _encode(
    makers: Sequence[Callable[[Any, Any], Basis]], data: Collapsed, folds: Any,
    alphas: Sequence[float], block: int,
) -> Fit:  # fmt: skip
    """Choose among ``makers`` (feature spaces) and ``alphas`` for each voxel; refit; predict."""
    grid = alpha_grid(alphas)
    n_targets = data.mean.shape[1]
    best = np.full(n_targets, -np.inf)
    index, ratio = np.zeros(n_targets, dtype=int), np.zeros(n_targets, dtype=int)
    scores = np.zeros((len(grid), n_targets))
    everyone = np.arange(len(data.ids))
    for number, make in enumerate(makers):
        found = np.zeros((len(grid), n_targets))
        for fold in np.unique(folds):
            left = np.flatnonzero(folds == fold)
            train = np.flatnonzero(folds != fold)
            basis = make(train, left)
            for columns in blocks(n_targets, block):
                found[:, columns] += _fold_scores(basis, data, train, left, columns, grid)
        found /= len(np.unique(folds))
        better = found.max(0) > best
        best = np.where(better, found.max(0), best)
        index = np.where(better, found.argmax(0), index)
        ratio = np.where(better, number, ratio)
        scores = np.where(better, found, scores)
    predictions = np.empty((0, n_targets))
    for number in np.unique(ratio):
        basis = makers[number](everyone, None)
        if len(predictions) == 0:
            predictions = np.empty((len(basis.out), n_targets))
        chosen = np.flatnonzero(ratio == number)
        for part in blocks(len(chosen), block):
            some = chosen[part]
            y = data.mean[:, some]
            mean = data.counts @ y / data.counts.sum() * basis.intercept
            penalty = alpha_grid(grid[index[some]], basis.scale)
            predictions[:, some] = predict(basis, basis.into @ (y - mean), penalty) + mean
    return Fit(predictions, index, scores, ratio)


def _fold_scores(basis: Basis, data: Collapsed, train, left, columns, grid) -> np.ndarray:
    """R2 (n_alphas, b) over the trials of the pictures left out."""
    counts, y = data.counts[train], data.mean[train, columns]
    mean = counts @ y / counts.sum() * basis.intercept
    inner = basis.into @ (y - mean)  # (k, b)
    counts_left, truth = data.counts[left], data.mean[left, columns]
    own_mean = counts_left @ truth / counts_left.sum()
    within = data.within[left, columns].sum(0)
    total = within + counts_left @ (truth - own_mean) ** 2
    errors = [
        counts_left @ (truth - mean - predict(basis, inner, basis.scale * alpha)) ** 2
        for alpha in grid
    ]
    return 1 - (np.stack(errors) + within) / np.where(total > 0, total, 1)


def predict(basis: Basis, inner: Any, penalty: Any) -> Any:
    """Deviations from the mean (m, b) for ``inner`` (k, b) and one penalty, or one a column."""
    # the eigenvalues are float64 and would drag the product, and what follows, along
    shrunk = (inner / (basis.values[:, None] + penalty)).astype(basis.out.dtype, copy=False)
    return basis.out @ shrunk


# --- common -------------------------------------------------------------------------------------


def edge_share(alpha_index: np.ndarray, n_alphas: int) -> float:
    """Share of targets whose penalty is the smallest or largest of the grid."""
    return float(np.mean((alpha_index == 0) | (alpha_index == n_alphas - 1)))


def blocks(n: int, size: int) -> Iterator[slice]:
    for start in range(0, n, size):
        yield slice(start, min(n, start + size))


def alpha_grid(multiples: Sequence[float] | np.ndarray, eigen_mean: float = 1.0) -> np.ndarray:
    """Penalties (n_alphas,) float64 from multiples of the mean eigenvalue of the trials' Gram matrix.

    ``eigen_mean`` is trace(Gram) / n_trials, the Gram matrix that of the training trials about their
    mean: a picture shown c times counts c times, so collapsing repeats leaves it as it is. It is taken
    anew in every fold. By itself, the grid checked.

    Raises
    ------
    ValueError
        Not a list of finite numbers above 0.
    """
    grid = np.asarray(multiples, dtype=np.float64)
    if grid.ndim != 1 or len(grid) == 0 or not ((grid > 0) & np.isfinite(grid)).all():
        raise ValueError(f"alphas: found {multiples}, expected a list of finite numbers above 0")
    return grid * eigen_mean


def _check_encode(
    x: Any, data: Collapsed, folds: Any, alphas: Any, test: Any, square: bool = False
) -> None:
    alpha_grid(alphas)
    n, name = len(data.ids), "kernel" if square else "features"
    if x.ndim != 2 or len(x) != n or (square and x.shape[1] != n):
        expected = (n, n if square else x.shape[-1])
        raise ValueError(f"{name} {x.shape}: expected {expected} for {n} pictures")
    if test.ndim != 2 or test.shape[1] != x.shape[1]:
        raise ValueError(f"test {test.shape}: expected (m, {x.shape[1]}) beside {name} {x.shape}")
    if np.shape(folds) != (n,) or len(np.unique(folds)) < 2:
        raise ValueError(
            f"folds {np.shape(folds)}, {len(np.unique(folds))} of them: expected a fold for each of "
            f"{n} pictures, two at least"
        )
    for label, array in ((name, x), ("test", test)):
        if not np.isfinite(array).all():
            raise ValueError(
                f"{label} {array.shape}: numbers that are not finite; leave such columns out"
            )
