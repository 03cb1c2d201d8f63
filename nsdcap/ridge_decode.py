"""Ridge from voxels to latents of pictures: many targets, streamed in blocks.

Voxels of single trials are on the left, and a picture's repeats share its latent: with S the trials'
pictures, predictions are (H S) y for the latents y of pictures, which are read once. A penalty's squared
errors over all trials left out are found in whichever of two forms (``decode_forms``) takes fewer operations:

- in the eigenbasis of each fold, |Q' y - R D V'X'S y|^2, R a triangle (``ridge.triangle``);
- pooled, y' M y with one matrix (n_pictures, n_pictures) a penalty.

One penalty for all targets needs neither: sums over targets are read off the Gram matrix of the targets.

Voxels and folds are by trial, latents by picture, and are asked for in blocks of columns:

>>> import numpy as np
>>> from nsdcap.decode_bases import decode_bases
>>> from nsdcap.folds import grouped_folds
>>> rng = np.random.default_rng(0)
>>> latents = rng.normal(size=(60, 7))
>>> picture = np.repeat(np.arange(60), 3)  # row of the latents, for each trial
>>> voxels = latents[picture] @ rng.normal(size=(7, 20)) + rng.normal(size=(180, 20))
>>> bases = decode_bases(voxels, picture, voxels[:2], grouped_folds(picture, 5, seed=0), len(latents))
>>> read = lambda start, stop: latents[:, start:stop]
>>> found = list(decode_cv(bases, read, 7, np.logspace(-4, 3, 8), block=5))
>>> [(block.start, block.stop, block.predictions.shape) for block in found]
[(0, 5, (2, 5)), (5, 7, (2, 2))]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np

from nsdcap.decode_bases import DecodeBases, add_rows
from nsdcap.decode_forms import make_plan, pooled, quadratic
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
    unseen,
)
from nsdcap.streams import ahead, fitting_block, uploader


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
    gain: bool = True, form: str | None = None, log: Callable[[str], None] = lambda line: None,
    finished: Callable[[slice], DecodedBlock | None] = lambda part: None,
    recall: Callable[[str], np.ndarray | None] = lambda name: None,
    note: Callable[[str, Any], object] = lambda name, array: None,
) -> Iterator[DecodedBlock]:  # fmt: skip
    """Predict latents of the test pictures, block by block, penalties by cross-validation.

    ``read_targets(start, stop)`` gives columns (n_pictures, b) of the latents; a thread reads the next
    block meanwhile. One penalty a target: one pass over the targets, or one for each group of penalties whose
    matrices fit in half of the free memory; one for all of them (the best mean R2): two, its choice and
    predictions. ``alphas`` are multiples of the mean eigenvalue, or (``relative`` false) the penalties
    themselves. Scores are R2 over the single trials left out, in float32 right to about 1e-6 of the variance.
    ``form`` "basis" or "pooled" overrides the choice by ``flops``; ``log`` is told the form, its operations
    and passes.

    A run that goes on gives the blocks that are ``finished``, which are passed on and their targets not read;
    ``recall`` gives what ``note`` was told to keep under a name by the run before, or None: the form, and the
    scores of passes before the last.

    Memory beside the bases and two blocks as ``read_targets`` gives them, in numbers of the voxels'
    precision, n pictures, m test pictures, A penalties (1 for all targets), a fold leaving out m_f trials of
    n_f pictures, k eigenvectors, k' = min(m_f, k):

    - pooled: A m n + the larger of 6 n block and 3 n^2 + 2 m_f n, and a matrix, n (n + 128) / 2, for each
      penalty of a group; the gain's, as large, for all A;
    - basis: A m n + folds k' (k + n_f) + (6 n + 4 k) block, with the gain (6 n + (folds + 4) k) block;
    - one penalty, in its first pass, 8 bytes each: 1.5 n^2 + 4 k^2, or 2 n^2 and 6 n block of the former.

    None depends on ``n_targets``, but for the scores where there is more than one group, 8 A n_targets bytes.

    Raises
    ------
    ValueError
        A reader that is no function, targets that are not finite or of another number of pictures or columns,
        no targets, a penalty not above 0, a block below 1, another form.
    """
    check_block(block)
    if not callable(read_targets):
        raise ValueError(
            f"read_targets: found {type(read_targets).__name__}, expected a function of (start, stop) that "
            "gives those columns (n_pictures, stop - start) of the targets"
        )
    if not isinstance(n_targets, Integral) or n_targets < 1:
        raise ValueError(f"n_targets: found {n_targets}, expected a whole number, one at least")
    if form not in (None, "basis", "pooled"):
        raise ValueError(f"form: found {form!r}, expected basis, pooled or None")
    grid = alpha_grid(alphas)  # at once, not when the first block is asked for
    options = (per_target, relative, gain, form, log, finished, recall, note)
    return _decoded(bases, read_targets, n_targets, grid, block, *options)


def _decoded(
    bases: DecodeBases, read_targets: Callable[[int, int], Any], n_targets: int, grid: np.ndarray,
    block: int, per_target: bool, relative: bool, gain: bool, form: str | None,
    log: Callable[[str], None], finished: Callable[[slice], DecodedBlock | None],
    recall: Callable[[str], np.ndarray | None], note: Callable[[str, Any], object],
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
        common = recall("scores")
        if common is None:
            common = _common_scores(bases, ahead(read, blocks(n_targets, block)), grid, relative)
            note("scores", common)
        first = int(common.argmax())
        grid = grid[first : first + 1]
    # free memory has a say in the form, so a run that goes on could choose another one
    before = recall("form")
    plan = make_plan(bases, len(grid), n_targets, gain, form if before is None else str(before))
    if before is None:
        note("form", plan.form)
    log(str(plan))
    solver = _Solver(bases, grid, relative, gain, plan.form)
    groups = len(plan.groups)
    known = np.zeros((len(grid), n_targets if groups > 1 else 0))
    for number, group in enumerate(plan.groups):
        last = number == groups - 1

        def name(part: slice, group: slice = group) -> str:
            return f"scores_{group.start}-{group.stop}_{part.start}-{part.stop}"

        def needed(part: slice, last: bool = last, name: Callable = name) -> Any:
            """The finished block, or else scores that were kept, or else targets."""
            block = finished(part)
            if block is not None:
                return block
            scores = None if last else recall(name(part))
            return read(part) if scores is None else scores

        solver.hold(group)
        # again, now that the solver's matrices are there
        block = fitting_block(xp, block, bases.dtype.itemsize * width)
        for part, found in ahead(needed, blocks(n_targets, block)):
            if isinstance(found, DecodedBlock):
                if last:
                    yield found
                continue
            if isinstance(found, np.ndarray):
                known[group, part] = found
                continue
            y, mean = found
            scores, inners = solver.scores(y)
            if groups > 1:
                known[group, part] = scores
                scores = known[:, part]
            if not last:
                note(name(part), known[group, part])
                continue
            index = scores.argmax(0)
            cv_r2 = np.take_along_axis(scores, index[None], 0)[0]
            sums = solver.lengths(y, inners, index) if gain else (0.0, 0.0)
            predictions = to_host(solver.predictions(y, index)) + mean.astype(bases.dtype)
            if common is not None:
                scores = common[:, None]
            yield DecodedBlock(
                part.start, part.stop, predictions, mean, index + first, cv_r2, scores, *sums
            )


class _Solver:
    """Scores, predictions and their lengths for blocks of targets y (n, b) about their mean."""

    def __init__(
        self, bases: DecodeBases, grid: np.ndarray, relative: bool, gain: bool, form: str
    ) -> None:
        self.bases, self.gain, self.form = bases, gain, form
        self.xp = array_module(bases.whole.into)
        self.penalties = [grid * (f.scale if relative else 1.0) for f in bases.folds]
        whole = bases.whole
        penalties = grid * (whole.scale if relative else 1.0)
        self.hats = [
            ((whole.out / (whole.values + a)) @ whole.into).astype(bases.dtype) for a in penalties
        ]
        self.error_matrices: list[Triangle] = []
        self.length_matrices: list[Triangle] = []
        if form == "basis":
            self.triangles = [_fold_triangle(fold, bases.dtype) for fold in bases.folds]

    def hold(self, group: slice) -> None:
        """Make ready for the scores of these of the grid's penalties."""
        if self.form == "pooled":
            self.error_matrices = []  # before the next ones are there
            for number in range(group.start, group.stop):
                own = [float(penalties[number]) for penalties in self.penalties]
                errors, lengths = pooled(self.bases, own, self.gain)
                self.error_matrices.append(errors)
                self.length_matrices.append(lengths)

    def scores(self, y: Any) -> tuple[np.ndarray, list[Any]]:
        """Scores (n_alphas, b) of the penalties held, and in the basis form y in each fold's eigenbasis."""
        inners: list[Any] = []
        if self.form == "pooled":
            errors = self.xp.stack([quadratic(parts, y) for parts in self.error_matrices])
        else:
            errors, inners = self._basis_errors(y)
        total = to_host(squares(y, self.bases.counts))  # y is about its mean
        return r2(np.maximum(to_host(errors), 0), total), inners

    def predictions(self, y: Any, index: np.ndarray) -> Any:
        """Of the test pictures (m, b), each target under its penalty ``index`` (b,)."""
        xp, bases = self.xp, self.bases
        found = xp.empty((len(bases.whole.out), y.shape[1]), dtype=bases.dtype)
        for number, some, own in self._by_penalty(y, index):
            found[:, some] = self.hats[number] @ own
        return found

    def lengths(self, y: Any, inners: list[Any], index: np.ndarray) -> tuple[float, float]:
        """Squared lengths over pictures, about the training mean: of y, and of what is predicted for it."""
        truth = 0.0
        for fold in self.bases.folds:
            # where folds split pictures, not every picture of the slice is left out
            there = (fold.left_counts > 0).astype(self.xp.float64)
            truth += float(squares(y[fold.left] - fold.share @ y, there).sum())
        if self.form == "basis":
            return truth, self._basis_lengths(inners, index)
        predicted = 0.0
        for number, _, own in self._by_penalty(y, index):
            predicted += float(quadratic(self.length_matrices[number], own).sum())
        return truth, predicted

    def _by_penalty(self, y: Any, index: np.ndarray) -> Iterator[tuple[int, Any, Any]]:
        """Each penalty that is taken, which columns take it, and those of y."""
        for number in np.unique(index):
            some = self.xp.asarray(np.flatnonzero(index == number))
            yield int(number), some, y if len(some) == y.shape[1] else y[:, some]

    # --- in the eigenbasis of each fold

    def _basis_errors(self, y: Any) -> tuple[Any, list[Any]]:
        """Squared errors (n_alphas, b) over trials, and targets in each fold's eigenbasis (k, b)."""
        found, inners = 0, []
        for fold, penalties, (seen, parts) in zip(
            self.bases.folds, self.penalties, self.triangles, strict=True
        ):
            inner = sum(
                fold.into[:, own] @ y[pictures]
                for own, pictures in zip(fold.columns, fold.pictures, strict=True)
            )
            left = y[fold.left] - fold.share @ y
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


def _fold_triangle(fold: Any, dtype: Any) -> tuple[Any, Triangle]:
    """Predictions' triangle, and what brings targets of the pictures left out there (k', n_left)."""
    xp = array_module(fold.out)
    q, parts = triangle(fold.out.astype(xp.float64), dtype)
    return add_rows(q, fold.shown, len(fold.averaged)).T.astype(dtype), parts


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
    found, expected = (
        read_targets(part.start, part.stop),
        (bases.n_pictures, part.stop - part.start),
    )
    told = f"targets {part.start} to {part.stop}"
    if not isinstance(found, np.ndarray):
        raise ValueError(f"{told}: read {type(found).__name__}, expected a NumPy array {expected}")
    if found.shape != expected:
        raise ValueError(f"{told}: read {found.shape}, expected {expected}, pictures and targets")
    finite = np.isfinite(found)
    if not finite.all():
        raise ValueError(
            f"{told}: target {part.start + int(finite.all(0).argmin())} is not finite, expected numbers; "
            "leave such targets out"
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
    limit = np.finfo(y.dtype).max / 1e8
    if not (square < limit).all():
        raise ValueError(
            f"{told}: target {part.start + int((square < limit).argmin())} is so large that {y.dtype} does not "
            "hold its squares; scale it"
        )
    y[:, constant(square, mean, len(y))] = 0
    return y, mean
