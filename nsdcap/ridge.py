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

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nsdcap.folds import Collapsed, collapse, grouped_folds


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


@dataclass(frozen=True)
class DecodedBlock:
    """Targets start..stop: ``predictions`` (m, b), training ``y_mean`` (b,), ``alpha_index`` (b,),
    ``cv_scores`` (n_alphas, b); squared lengths of the targets, ``truth``, and of their
    cross-validated predictions, ``predicted``, about the training mean, per picture: what a gain
    that restores length needs; ``gain_num`` and ``gain_den`` over trials: see ``pooled_gain``."""

    start: int
    stop: int
    predictions: np.ndarray
    y_mean: np.ndarray
    alpha_index: np.ndarray
    cv_scores: np.ndarray
    truth: float
    predicted: float
    gain_num: float
    gain_den: float


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
    return _encode([_kernel_maker(kernel, test, data, intercept)], data, folds, alphas, block)


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
    makers = []
    for ratio in ratios:
        one, two = 1 / traces[0], ratio / traces[1]
        kernel = one * kernels[0] + two * kernels[1]
        test = one * tests[0] + two * tests[1]
        makers.append(_kernel_maker(kernel, test, data, True))
    return _encode(makers, data, folds, alphas, block)


def _kernel_maker(
    kernel: Any, test: Any, data: Collapsed, intercept: bool
) -> Callable[[Any, Any], Basis]:
    def make(train: Any, left: Any) -> Basis:
        others = test[:, train] if left is None else kernel[left][:, train]
        return dual_basis(kernel[train][:, train], data.counts[train], others, intercept)

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
            for columns in _blocks(n_targets, block):
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
        for part in _blocks(len(chosen), block):
            some = chosen[part]
            y = data.mean[:, some]
            mean = data.counts @ y / data.counts.sum() * basis.intercept
            penalty = alpha_grid(grid[index[some]], basis.scale)
            predictions[:, some] = _predict(basis, basis.into @ (y - mean), penalty) + mean
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
        counts_left @ (truth - mean - _predict(basis, inner, basis.scale * alpha)) ** 2
        for alpha in grid
    ]
    return 1 - (np.stack(errors) + within) / np.where(total > 0, total, 1)


def _predict(basis: Basis, inner: Any, penalty: Any) -> Any:
    """Deviations from the mean (m, b) for ``inner`` (k, b) and one penalty, or one a column."""
    # the eigenvalues are float64 and would drag the product, and what follows, along
    shrunk = (inner / (basis.values[:, None] + penalty)).astype(basis.out.dtype, copy=False)
    return basis.out @ shrunk


# --- decoding: voxels -> latents of pictures ------------------------------------------------------


@dataclass(frozen=True)
class DecodeBases:
    """Factorisations of the voxels for each fold and for all trials; they serve every latent.

    ``into`` of each is (k, n_pictures): the columns of a picture's repeats are summed.
    """

    folds: list[
        tuple[Basis, np.ndarray, np.ndarray]
    ]  # basis, trials per picture, pictures left out
    whole: Basis
    counts: np.ndarray


def decode_bases(voxels: Any, picture: Any, test: Any, folds: Any, n_pictures: int) -> DecodeBases:
    """Factorise voxels (n_trials, p) of single trials, for ``test`` voxels (m, p).

    ``picture`` (n_trials,) is each trial's row of the latents, ``folds`` (n_trials,) its fold. The
    smaller of the voxels' and the trials' Gram matrix is factorised, in float64; what multiplies the
    targets is kept in the voxels' own precision. Memory: (folds + 1) k (n_pictures + n_trials / folds)
    of these, k = min(n_trials, p), and one float64 Gram matrix.

    Raises
    ------
    ValueError
        Shapes that disagree, numbers that are not finite, fewer than two folds.
    """
    if voxels.ndim != 2 or test.ndim != 2:
        raise ValueError(f"voxels {voxels.shape}, test {test.shape}: expected (n, p) and (m, p)")
    n, p = voxels.shape
    for name, array, expected in (
        ("picture", picture, (n,)),
        ("folds", folds, (n,)),
        ("test", test, (len(test), p)),
    ):
        if array.shape != expected:
            raise ValueError(
                f"{name} is {array.shape}, expected {expected} beside voxels {voxels.shape}"
            )
    if picture.min() < 0 or picture.max() >= n_pictures:
        raise ValueError(
            f"picture: found rows {picture.min()} to {picture.max()}, expected 0 to {n_pictures - 1}"
        )
    for name, array in (("voxels", voxels), ("test", test)):
        if not np.isfinite(array).all():
            raise ValueError(
                f"{name} {array.shape} holds numbers that are not finite; leave such voxels out"
            )
    if len(np.unique(folds)) < 2:
        raise ValueError(f"folds: found {np.unique(folds)}, expected at least two")

    def make(train: Any, others: Any) -> Basis:
        rows = voxels[train].astype(np.float64)
        ones = np.ones(len(rows))
        if p <= len(rows):
            basis = primal_basis(rows, ones, others.astype(np.float64))
        else:
            basis = dual_basis(rows @ rows.T, ones, others.astype(np.float64) @ rows.T)
        summed = np.zeros((len(basis.values), n_pictures))
        np.add.at(summed.T, picture[train], basis.into.T)
        return Basis(
            basis.values, summed.astype(voxels.dtype), basis.out.astype(voxels.dtype), basis.scale
        )

    parts = []
    for fold in np.unique(folds):
        train, left = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        counts = np.bincount(picture[train], minlength=n_pictures).astype(np.float64)
        parts.append((make(train, voxels[left]), counts, picture[left]))
    counts = np.bincount(picture, minlength=n_pictures).astype(np.float64)
    return DecodeBases(parts, make(np.arange(n), test), counts)


def decode_cv(
    bases: DecodeBases, read_targets: Callable[[int, int], Any], n_targets: int,
    alphas: Sequence[float], *, block: int = 4096, per_target: bool = True, relative: bool = True,
) -> Iterator[DecodedBlock]:  # fmt: skip
    """Predict latents of the test pictures, block by block, penalties by cross-validation.

    ``read_targets(start, stop)`` gives columns (n_pictures, b) of the latents. One penalty a target:
    one pass over the targets; one for all of them: two, scores then predictions. ``alphas`` are
    multiples of the mean eigenvalue, or (``relative`` false) the penalties themselves. Scores are R2
    over the single trials left out. Memory: ``block`` targets of the pictures, a few times.

    Raises
    ------
    ValueError
        Targets that are not finite or of another number of pictures, a penalty not above 0.
    """
    grid = alpha_grid(alphas)
    common: int | None = None
    if not per_target:
        scores = sum(
            _decode_scores(bases, _read(bases, read_targets, part), grid, relative).sum(1)
            for part in _blocks(n_targets, block)
        )
        common = int(np.argmax(scores))
    for part in _blocks(n_targets, block):
        y = _read(bases, read_targets, part)
        scores = _decode_scores(bases, y, grid, relative)  # (n_alphas, b)
        index = scores.argmax(0) if common is None else np.full(y.shape[1], common)
        sums = _gain_sums(bases, y, grid[index], relative)
        mean = _weighted_mean(bases.counts, y)
        inner = bases.whole.into @ (y - mean)
        penalty = grid[index] * (bases.whole.scale if relative else 1.0)
        predicted = _predict(bases.whole, inner, penalty.astype(y.dtype)) + mean
        yield DecodedBlock(part.start, part.stop, predicted, mean, index, scores, *sums)


def _read(bases: DecodeBases, read_targets: Callable[[int, int], Any], part: slice) -> Any:
    y = read_targets(part.start, part.stop)
    if y.shape != (len(bases.counts), part.stop - part.start) or not np.isfinite(y).all():
        raise ValueError(
            f"targets {part.start} to {part.stop}: found {y.shape} or numbers that are not finite, expected "
            f"{(len(bases.counts), part.stop - part.start)} finite ones"
        )
    return y.astype(bases.whole.out.dtype, copy=False)


def _weighted_mean(counts: Any, y: Any) -> Any:
    """Mean (b,) over trials of targets (n_pictures, b), in float64 and then in the targets' precision."""
    return (counts @ y / counts.sum()).astype(y.dtype)


def _decode_scores(bases: DecodeBases, y: Any, grid: Any, relative: bool) -> np.ndarray:
    """R2 (n_alphas, b), mean over folds."""
    found = np.zeros((len(grid), y.shape[1]))
    for basis, counts, left in bases.folds:
        mean = _weighted_mean(counts, y)
        inner, truth = basis.into @ (y - mean), y[left] - mean
        total = ((truth - truth.mean(0)) ** 2).sum(0, dtype=np.float64)
        for row, alpha in enumerate(grid):
            penalty = y.dtype.type(alpha * (basis.scale if relative else 1.0))
            error = ((truth - _predict(basis, inner, penalty)) ** 2).sum(0, dtype=np.float64)
            found[row] += 1 - error / np.where(total > 0, total, 1)
    return found / len(bases.folds)


def _gain_sums(bases: DecodeBases, y: Any, chosen: Any, relative: bool) -> np.ndarray:
    """``truth``, ``predicted``, ``gain_num``, ``gain_den`` of a block, about the training mean.

    For the first two, predictions of a picture's repeats are averaged, as those of the test pictures
    are; the last two are over single trials.
    """
    sums = np.zeros(4)
    for basis, counts, left in bases.folds:
        mean = _weighted_mean(counts, y)
        penalty = (chosen * (basis.scale if relative else 1.0)).astype(y.dtype)
        predicted = _predict(basis, basis.into @ (y - mean), penalty)
        pictures, member, repeats = np.unique(left, return_inverse=True, return_counts=True)
        summed = np.zeros((len(pictures), y.shape[1]), dtype=y.dtype)
        np.add.at(summed, member, predicted)
        averaged = summed / repeats[:, None].astype(y.dtype)
        truth = y[pictures] - mean
        pairs = ((truth, truth), (averaged, averaged), (summed, truth), (predicted, predicted))
        sums += [float((one * two).sum(dtype=np.float64)) for one, two in pairs]
    return sums


def pooled_gain(blocks: Iterable[DecodedBlock]) -> float:
    """The factor g on predictions about the training mean of least squared error, over all blocks.

    g = <p, y> / <p, p> of cross-validated predictions p and targets y of the single training trials:
    argmin of sum ||(y - mean) - g (p - mean)||^2. Near 1 where penalties fit; it does not give
    predictions the length of the truth (sqrt(truth / predicted) does). NaN where all p are the mean.
    """
    sums = np.sum([(block.gain_num, block.gain_den) for block in blocks], axis=0)
    return float(sums[0] / sums[1]) if sums[1] > 0 else float("nan")


# --- an estimator -------------------------------------------------------------------------------


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


# --- common -------------------------------------------------------------------------------------


def edge_share(alpha_index: np.ndarray, n_alphas: int) -> float:
    """Share of targets whose penalty is the smallest or largest of the grid."""
    return float(np.mean((alpha_index == 0) | (alpha_index == n_alphas - 1)))


def _blocks(n: int, size: int) -> Iterator[slice]:
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
