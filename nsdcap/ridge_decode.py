"""Ridge from voxels to latents of pictures: many targets, streamed in blocks.

Voxels of single trials are on the left, and a picture's repeats share its latent: with S the trials'
pictures, predictions are (H S) y for the latents y of pictures, which are read once. A penalty's squared
errors over all trials left out are found in whichever of two ways takes fewer operations:

- in the eigenbasis of each fold, |Q' y - R D V'X'S y|^2, R a triangle (``ridge.triangle``);
- pooled, y' M y with one matrix (n_pictures, n_pictures) a penalty, half of which is multiplied: the
  errors of all folds at once.

One penalty for all targets needs neither: sums over targets are read off the Gram matrix of the targets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nsdcap.decode_bases import DecodeBases, add_rows
from nsdcap.ridge import (
    ROWS,
    Triangle,
    alpha_grid,
    array_module,
    blocks,
    check_block,
    constant,
    penalised_errors,
    r2,
    squares,
    to_host,
    triangle,
    triangle_flops,
    unseen,
)
from nsdcap.streams import ahead, fitting_block, free_memory, uploader

POOLED_LIMIT = 4e9  # bytes that the pooled form's matrices may take


@dataclass(frozen=True)
class DecodedBlock:
    """Targets start..stop: ``predictions`` (m, b), training ``y_mean`` (b,), ``alpha_index`` (b,),
    ``cv_r2`` (b,) under that penalty, ``cv_scores`` (n_alphas, b) under each, or, with one penalty for
    all, (n_alphas, 1), their mean over all targets. Squared lengths of the targets, ``truth``, and of
    their cross-validated predictions, ``predicted``, about the training mean, over pictures (0 where no
    gain was asked for): the square root of their ratio is the gain that gives predictions the length of
    the truth."""

    start: int
    stop: int
    predictions: np.ndarray
    y_mean: np.ndarray
    alpha_index: np.ndarray
    cv_r2: np.ndarray
    cv_scores: np.ndarray
    truth: float
    predicted: float


def decode_cv(
    bases: DecodeBases, read_targets: Callable[[int, int], Any], n_targets: int,
    alphas: Sequence[float], *, block: int = 4096, per_target: bool = True, relative: bool = True,
    gain: bool = True, form: str | None = None,
) -> Iterator[DecodedBlock]:  # fmt: skip
    """Predict latents of the test pictures, block by block, penalties by cross-validation.

    ``read_targets(start, stop)`` gives columns (n_pictures, b) of the latents; a thread reads the next
    block meanwhile. One penalty a target: one pass over the targets; one for all of them (the best mean
    R2): two, its choice and predictions. ``alphas`` are multiples of the mean eigenvalue, or (``relative``
    false) the penalties themselves. Scores are R2 over the single trials left out, in float32 right to
    about 1e-6 of the variance. ``form`` "basis" or "pooled" overrides the choice by ``flops``.

    Memory beside the bases, n pictures, m test pictures, k eigenvectors: block (6 n + folds k + m) numbers
    of the targets' precision; (n_alphas) m n of the voxels'; pooled n_alphas n^2 (twice with ``gain``) of
    it, at most 4e9 bytes; one penalty 3 n^2 + 4 k^2 float64 in its first pass. None depends on ``n_targets``.

    Raises
    ------
    ValueError
        Targets that are not finite or of another number of pictures, no targets, a penalty not above 0, a
        block below 1, another form.
    """
    check_block(block)
    if n_targets < 1:
        raise ValueError(f"n_targets: found {n_targets}, expected one at least")
    if form not in (None, "basis", "pooled"):
        raise ValueError(f"form: found {form!r}, expected basis, pooled or None")
    grid = alpha_grid(alphas)  # at once, not when the first block is asked for
    return _decoded(bases, read_targets, n_targets, grid, block, per_target, relative, gain, form)


def _decoded(
    bases: DecodeBases, read_targets: Callable[[int, int], Any], n_targets: int, grid: np.ndarray,
    block: int, per_target: bool, relative: bool, gain: bool, form: str | None,
) -> Iterator[DecodedBlock]:  # fmt: skip
    xp = array_module(bases.whole.into)
    width = len(bases.folds) * len(bases.whole.values) + 6 * bases.n_pictures
    block = fitting_block(xp, block, bases.dtype.itemsize * width)
    upload = uploader(xp)

    def read(part: slice) -> tuple[Any, Any]:
        y, mean = _read(bases, read_targets, part)
        return upload(y), mean

    common: np.ndarray | None = None
    first = 0  # of the grid's penalties that are tried for each target
    if not per_target:
        common = _common_scores(bases, ahead(read, blocks(n_targets, block)), grid, relative)
        first = int(common.argmax())
        grid = grid[first : first + 1]
    solver = _Solver(bases, grid, relative, gain, form, n_targets)
    # again, now that the solver's matrices are there
    block = fitting_block(xp, block, bases.dtype.itemsize * width)
    for part, (y, mean) in ahead(read, blocks(n_targets, block)):
        scores, index, predictions, sums = solver.solve(y)
        cv_r2 = np.take_along_axis(scores, index[None], 0)[0]
        index = index + first
        if common is not None:
            scores = common[:, None]
        predictions = to_host(predictions) + mean.astype(bases.dtype)
        yield DecodedBlock(part.start, part.stop, predictions, mean, index, cv_r2, scores, *sums)


def flops(bases: DecodeBases, n_alphas: int, n_targets: int, gain: bool) -> dict[str, float]:
    """Operations of ``n_targets`` targets under ``n_alphas`` penalties, in either form."""
    n = bases.n_pictures
    basis = pooled = 0.0
    for fold in bases.folds:
        m, k = fold.out.shape
        n_left, n_train = fold.averaged.shape[0], fold.into.shape[1]
        a_target = 2 * k * n_train + 2 * min(m, k) * n_left + n_alphas * triangle_flops(m, k)
        basis += n_targets * (a_target + gain * 2 * n_left * k)
        rows = m + gain * n_left
        pooled += n_alphas * rows * n_train * (2.0 * k + n_train)
    pooled += n_targets * (n_alphas + gain) * n * (n + ROWS)
    return {"basis": basis, "pooled": pooled}


def choose_form(bases: DecodeBases, n_alphas: int, n_targets: int, gain: bool) -> tuple[str, float]:
    """The form of fewer operations whose matrices are within ``POOLED_LIMIT``, and its operations."""
    costs = flops(bases, n_alphas, n_targets, gain)
    size = (1 + gain) * n_alphas * bases.n_pictures**2 * bases.dtype.itemsize / 2
    limit = min(POOLED_LIMIT, free_memory(array_module(bases.whole.into)) / 2)
    form = "pooled" if size <= limit and costs["pooled"] < costs["basis"] else "basis"
    return form, costs[form]


class _Solver:
    """Scores, penalties and predictions of blocks of targets about their mean."""

    def __init__(
        self, bases: DecodeBases, grid: np.ndarray, relative: bool, gain: bool, form: str | None,
        n_targets: int,
    ) -> None:  # fmt: skip
        self.bases, self.gain = bases, gain
        self.xp = array_module(bases.whole.into)
        self.penalties = [grid * (f.scale if relative else 1.0) for f in bases.folds]
        whole = bases.whole
        penalties = grid * (whole.scale if relative else 1.0)
        self.hats = [
            ((whole.out / (whole.values + a)) @ whole.into).astype(bases.dtype) for a in penalties
        ]
        self.form = form or choose_form(bases, len(grid), n_targets, gain)[0]
        if self.form == "pooled":
            made = [self._pooled(number) for number in range(len(grid))]
            self.errors = [pair[0] for pair in made]
            self.lengths = [pair[1] for pair in made]
        else:
            self.triangles = [_fold_triangle(fold, bases.dtype) for fold in bases.folds]

    def solve(self, y: Any) -> tuple[np.ndarray, np.ndarray, Any, tuple[float, float]]:
        """For y (n, b): scores (n_alphas, b), index (b,), predictions (m, b), ``truth``, ``predicted``."""
        xp, bases = self.xp, self.bases
        total = to_host(squares(y, bases.counts))  # y is about its mean
        shares = [fold.share @ y for fold in bases.folds]  # training means
        errors, inners = (
            self._pooled_errors(y) if self.form == "pooled" else self._basis_errors(y, shares)
        )
        scores = r2(np.maximum(to_host(errors), 0), total)
        index = scores.argmax(0)
        predictions = xp.empty((len(bases.whole.out), y.shape[1]), dtype=bases.dtype)
        predicted = 0.0
        for number in np.unique(index):
            some = xp.asarray(np.flatnonzero(index == number))
            own = y if len(some) == y.shape[1] else y[:, some]
            predictions[:, some] = self.hats[number] @ own
            if self.gain and self.form == "pooled":
                predicted += float(_quadratic(self.lengths[number], own).sum())
        truth = 0.0
        if self.gain:
            for fold, share in zip(bases.folds, shares, strict=True):
                # where folds split pictures, not every picture of the slice is left out
                there = (fold.left_counts > 0).astype(xp.float64)
                truth += float(squares(y[fold.left] - share, there).sum())
            if self.form == "basis":
                predicted = self._basis_lengths(inners, index)
        return scores, index, predictions, (truth, predicted)

    # --- in the eigenbasis of each fold

    def _basis_errors(self, y: Any, shares: list[Any]) -> tuple[Any, list[Any]]:
        """Squared errors (n_alphas, b) over trials, and targets in each fold's eigenbasis (k, b)."""
        found, inners = 0, []
        for fold, penalties, share, (seen, parts) in zip(
            self.bases.folds, self.penalties, shares, self.triangles, strict=True
        ):
            inner = sum(
                fold.into[:, own] @ y[pictures]
                for own, pictures in zip(fold.columns, fold.pictures, strict=True)
            )
            left = y[fold.left] - share
            target = seen @ left
            outside = unseen(len(fold.out), left, target, fold.left_counts)
            found = found + outside + penalised_errors(parts, fold.values, penalties, inner, target)
            inners.append(inner if self.gain else None)
        return found, inners

    def _basis_lengths(self, inners: list[Any], index: np.ndarray) -> float:
        xp, found = self.xp, 0.0
        for fold, penalties, inner in zip(self.bases.folds, self.penalties, inners, strict=True):
            inner /= fold.values.astype(inner.dtype)[:, None] + xp.asarray(
                penalties[index].astype(inner.dtype)
            )
            found += float(squares(fold.averaged @ inner).sum())
        return found

    # --- pooled

    def _pooled_errors(self, y: Any) -> tuple[Any, list[Any]]:
        return self.xp.stack([_quadratic(parts, y) for parts in self.errors]), []

    def _pooled(self, number: int) -> tuple[Triangle, Triangle]:
        """Matrices of a penalty's squared errors over trials and, for the gain, of squared lengths of
        predictions over pictures; over all folds, as ``_half``."""
        xp, n, dtype = self.xp, self.bases.n_pictures, self.bases.dtype
        errors = xp.zeros((n, n), dtype=dtype)
        lengths = xp.zeros((n, n) if self.gain else (0, 0), dtype=dtype)
        for fold, penalties in zip(self.bases.folds, self.penalties, strict=True):
            shrink = (1 / (fold.values + penalties[number])).astype(dtype)
            spans = list(zip(fold.columns, fold.pictures, strict=True))
            if self.gain:
                _add_square(lengths, (fold.averaged * shrink) @ fold.into, spans)
            hat = (fold.out * shrink) @ fold.into  # (m_f, n_train)
            for own, pictures in spans:
                hat[:, own] += fold.share[pictures]
            _add_square(errors, hat, spans)
            # the pictures left out: their own squares, and against what is predicted for them
            cross = -add_rows(hat, fold.shown, len(fold.averaged))  # (n_left, n_train)
            for own, pictures in spans:
                errors[fold.left, pictures] += cross[:, own]
                errors[pictures, fold.left] += cross[:, own].T
            diagonal = xp.arange(fold.left.start, fold.left.stop)
            errors[diagonal, diagonal] += fold.left_counts.astype(dtype)
        return _half(errors), _half(lengths)


def _fold_triangle(fold: Any, dtype: Any) -> tuple[Any, Triangle]:
    """Predictions' triangle, and what brings targets of the pictures left out there (k', n_left)."""
    xp = array_module(fold.out)
    q, parts = triangle(fold.out.astype(xp.float64), dtype)
    return add_rows(q, fold.shown, len(fold.averaged)).T.astype(dtype), parts


def _add_square(into: Any, rows: Any, spans: list[tuple[slice, slice]]) -> None:
    """Add rows' rows, columns ``own`` of which are ``pictures`` of ``into``."""
    square = rows.T @ rows
    for own, pictures in spans:
        for other, others in spans:
            into[pictures, others] += square[own, other]


def _half(matrix: Any) -> Triangle:
    """Blocks of rows of a symmetric matrix from its diagonal on, doubled right of the block's square."""
    found: Triangle = []
    for rows in blocks(len(matrix), ROWS):
        block = matrix[rows, rows.start :].copy()
        block[:, rows.stop - rows.start :] *= 2
        found.append((rows, rows.start, block))
    return found


def _quadratic(parts: Triangle, y: Any) -> Any:
    """y' M y (b,) float64 of the columns of y (n, b), M as ``_half`` gives it."""
    xp = array_module(y)
    total = xp.zeros(y.shape[1])
    for rows, start, block in parts:
        total += xp.einsum("ij,ij->j", y[rows], block @ y[start:])
    return total


# --- one penalty for all targets ------------------------------------------------------------------


def _common_scores(
    bases: DecodeBases, stream: Iterator[tuple[slice, Any]], grid: np.ndarray, relative: bool
) -> np.ndarray:
    """R2 (n_alphas,) of each penalty, mean over targets; one pass over them."""
    xp = array_module(bases.whole.into)
    gram = xp.zeros((bases.n_pictures, bases.n_pictures))
    n_targets = varying = 0
    for _, (y, _) in stream:
        total = squares(y, bases.counts)
        y *= (xp.where(total > 0, total, xp.inf) ** -0.5).astype(y.dtype)
        gram += y @ y.T
        n_targets += y.shape[1]
        varying += int((total > 0).sum())  # and so waits for the product: see uploader
    errors = np.zeros(len(grid))
    gram = gram.astype(bases.dtype)
    for fold in bases.folds:
        penalties = grid * (fold.scale if relative else 1.0)
        spans = list(zip(fold.columns, fold.pictures, strict=True))
        inner = sum(fold.into[:, own] @ gram[pictures] for own, pictures in spans)  # (k, n)
        both = sum(inner[:, pictures] @ fold.into[:, own].T for own, pictures in spans)  # (k, k)
        # what is left out, about the training mean: rows of the identity less the share of each picture
        left = inner[:, fold.left] - (inner @ fold.share)[:, None]  # (k, n_left)
        mean = gram @ fold.share
        own = xp.diag(gram)[fold.left] - 2 * mean[fold.left] + fold.share @ mean
        out = fold.averaged * fold.left_counts[:, None].astype(bases.dtype)
        cross = xp.einsum("kl,lk->k", left, out).astype(xp.float64)
        square = (both * (fold.out.T @ fold.out)).astype(xp.float64)
        for number, penalty in enumerate(penalties):
            shrink = 1 / (fold.values + penalty)
            error = fold.left_counts @ own - 2 * shrink @ cross + shrink @ square @ shrink
            errors[number] += float(error)
    return (varying - errors) / max(n_targets, 1)


def _read(
    bases: DecodeBases, read_targets: Callable[[int, int], Any], part: slice
) -> tuple[np.ndarray, np.ndarray]:
    """Targets (n, b) about their mean over trials, pictures in the bases' order, and that mean (b,).

    About the mean before they are cast to the bases' precision: a large mean would take the digits of
    what differs. Targets that are constant, to rounding, become exactly 0.
    """
    found = read_targets(part.start, part.stop)
    if found.shape != (bases.n_pictures, part.stop - part.start) or not np.isfinite(found).all():
        raise ValueError(
            f"targets {part.start} to {part.stop}: found {found.shape} or numbers that are not finite, "
            f"expected {(bases.n_pictures, part.stop - part.start)} finite ones"
        )
    found = found[bases.order]  # a copy
    y = found if found.dtype == bases.dtype else np.empty(found.shape, dtype=bases.dtype)
    mean, square = np.zeros(y.shape[1]), np.zeros(y.shape[1])
    for rows in blocks(len(y), ROWS):  # float64 of a part at a time
        mean += bases.host_share[rows] @ found[rows].astype(np.float64)
    for rows in blocks(len(y), ROWS):
        wide = found[rows] - mean
        y[rows] = wide
        square += bases.host_share[rows] @ np.square(wide, out=wide)
    y[:, constant(square, mean, len(y))] = 0
    return y, mean
