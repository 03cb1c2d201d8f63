"""Ridge from voxels to latents of pictures: many targets, streamed in blocks.

The factorisations of ``ridge.py`` with the voxels of single trials on the left. A picture's repeats
share its latent, so the hat matrix's columns of one picture are summed and its targets read once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nsdcap.ridge import Basis, alpha_grid, blocks, dual_basis, predict, primal_basis


@dataclass(frozen=True)
class DecodedBlock:
    """Targets start..stop: ``predictions`` (m, b), training ``y_mean`` (b,), ``alpha_index`` (b,),
    ``cv_scores`` (n_alphas, b); squared lengths of the targets, ``truth``, and of their
    cross-validated predictions, ``predicted``, about the training mean, over pictures: the square
    root of their ratio is the gain that gives predictions the length of the truth."""

    start: int
    stop: int
    predictions: np.ndarray
    y_mean: np.ndarray
    alpha_index: np.ndarray
    cv_scores: np.ndarray
    truth: float
    predicted: float


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
            for part in blocks(n_targets, block)
        )
        common = int(np.argmax(scores))
    for part in blocks(n_targets, block):
        y = _read(bases, read_targets, part)
        scores = _decode_scores(bases, y, grid, relative)  # (n_alphas, b)
        index = scores.argmax(0) if common is None else np.full(y.shape[1], common)
        sums = _gain_sums(bases, y, grid[index], relative)
        mean = _weighted_mean(bases.counts, y)
        inner = bases.whole.into @ (y - mean)
        penalty = grid[index] * (bases.whole.scale if relative else 1.0)
        predicted = predict(bases.whole, inner, penalty.astype(y.dtype)) + mean
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
            error = ((truth - predict(basis, inner, penalty)) ** 2).sum(0, dtype=np.float64)
            found[row] += 1 - error / np.where(total > 0, total, 1)
    return found / len(bases.folds)


def _gain_sums(bases: DecodeBases, y: Any, chosen: Any, relative: bool) -> tuple[float, float]:
    """``truth`` and ``predicted`` of a block.

    Predictions of a picture's repeats are averaged first, as those of the test pictures are.
    """
    truth_sum = predicted_sum = 0.0
    for basis, counts, left in bases.folds:
        mean = _weighted_mean(counts, y)
        penalty = (chosen * (basis.scale if relative else 1.0)).astype(y.dtype)
        predicted = predict(basis, basis.into @ (y - mean), penalty)
        pictures, member, repeats = np.unique(left, return_inverse=True, return_counts=True)
        averaged = np.zeros((len(pictures), y.shape[1]), dtype=y.dtype)
        np.add.at(averaged, member, predicted)
        averaged /= repeats[:, None].astype(y.dtype)
        truth_sum += float(((y[pictures] - mean) ** 2).sum(dtype=np.float64))
        predicted_sum += float((averaged**2).sum(dtype=np.float64))
    return truth_sum, predicted_sum
