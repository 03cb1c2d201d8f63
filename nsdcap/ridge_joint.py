"""Banded ridge from two feature spaces to voxels: a kernel shared by many models, and few features.

The first space (z_v) is the same for every BERT layer and phase, so its kernel is factorised once, for
each fold and for all pictures. A second space of q features then costs a matrix of rank q:

    (K + rho B B' + a)^-1 = D - D B (1 / rho + B'DB)^-1 B'D,   D = 1 / (s + a),

in the kernel's eigenbasis, and the eigenbasis of B'DB serves every ratio of the two penalties.

Responses, rows and folds are by picture, as in ``ridge_encode``:

>>> import numpy as np
>>> from nsdcap.folds import collapse, grouped_folds
>>> rng = np.random.default_rng(0)
>>> wide, few = rng.normal(size=(62, 90)), rng.normal(size=(62, 5))  # 60 pictures and two to predict
>>> picture = np.repeat(np.arange(60), 3)
>>> data = collapse(wide[picture, :4] + few[picture, :4] + rng.normal(size=(180, 4)), picture)
>>> folds = grouped_folds(data.ids, 5, seed=0)
>>> bases = joint_bases(wide[:60] @ wide[:60].T, data.counts, folds, wide[60:] @ wide[:60].T)
>>> alone, both = encode_joint(
...     bases, [(few[:60], few[60:])], data, folds, np.logspace(-3, 3, 7), ratios=[0.1, 1, 10]
... )
>>> both.predictions.shape, both.alpha_index.shape, both.ratio_index.shape
((2, 4), (4,), (4,))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nsdcap.folds import Collapsed
from nsdcap.ridge import (
    ROWS,
    Fit,
    Triangle,
    about_mean,
    alpha_grid,
    array_module,
    blocks,
    check_arrays,
    finite_numbers,
    r2,
    squared_errors,
    squares,
    to_host,
    triangle,
    triangle_flops,
    unseen,
)
from nsdcap.ridge_encode import KernelBasis, factorised
from nsdcap.ridge_input import (
    check_features,
    check_folds,
    check_kernel,
    check_numbers,
    check_responses,
    check_scale,
    check_spread,
    check_square,
)
from nsdcap.streams import fitting_block


@dataclass(frozen=True)
class JointBases:
    """A kernel's eigenbases: of all training pictures, ``out`` to the test pictures, and of each fold's,
    ``out`` to the pictures left out, whose rows are ``lefts``."""

    whole: KernelBasis
    folds: list[KernelBasis]
    lefts: list[np.ndarray]


def joint_bases(kernel: Any, counts: Any, folds: Any, test: Any) -> JointBases:
    """Factorise the uncentred kernel (n, n), ``test`` (m, n), for ``encode_joint``.

    Memory beside what is given: (folds - 1) n^2 + 3 (n^2 + m n) float64, of which the first stay, and n^2 +
    m n of the last.

    Raises
    ------
    ValueError
        Not arrays, shapes that disagree, numbers that are not finite, fewer than two folds, a kernel that is
        not symmetric, negative, or the same for every picture or for those that a fold trains on.
    """
    check_kernels(kernel, counts, folds, test)
    made = [fold_basis(kernel, counts, folds, fold) for fold in np.unique(folds)]
    return JointBases(
        factorised(kernel, counts, test), [basis for basis, _ in made], [left for _, left in made]
    )


def fold_basis(kernel: Any, counts: Any, folds: Any, fold: Any) -> tuple[KernelBasis, np.ndarray]:
    """The eigenbasis of all pictures but a fold's, ``out`` to those, and the rows of those."""
    xp = array_module(kernel)
    left, train = (xp.asarray(np.flatnonzero(part)) for part in (folds == fold, folds != fold))
    rows = kernel[left][:, train]
    basis = factorised(kernel[train][:, train], counts[folds != fold], rows, part=True)
    return basis, np.flatnonzero(folds == fold)


def check_kernels(kernel: Any, counts: Any, folds: Any, test: Any) -> None:
    """Raise ValueError as ``joint_bases`` says."""
    check_square(kernel, counts, test)
    check_kernel(kernel, counts, check_folds(folds, len(kernel)))


def encode_joint(
    bases: JointBases, spaces: Sequence[tuple[Any, Any]], data: Collapsed, folds: Any,
    alphas: Sequence[float], ratios: Sequence[float], block: int = 2048,
) -> list[Fit]:  # fmt: skip
    """Ridge on the kernel's space alone, and on it together with each of ``spaces``, to voxels (n, t).

    ``spaces`` are (n, q) features of the training pictures and (m, q) of the test pictures. Each voxel has
    a penalty for either space (banded ridge): alpha times its mean eigenvalue for the first, alpha / ratio
    times its own mean eigenvalue for the second; both are chosen by cross-validation, and a ratio of 0
    leaves the second space out. Returns the fit of the first space alone, then one for each of
    ``spaces``. Equal to ridge on the single trials of both spaces, scaled.

    Products for each penalty and fold of n_f pictures: (n_f, n) @ (n, t) once, (q, n) @ (n, t) for each
    space, (q, q / 2) @ (q, t) for each ratio.

    Memory beside what is given, d bytes a response, s spaces: responses once more, those left out and
    predictions, d (n + n_f + (s + 1) m) t, scores 8 A (s n_ratios + 3 n_ratios + 1) t for A penalties, and
    8 (2 n_f n + (s + 6) n q + 3 q^2 + 3 n block) bytes.

    Raises
    ------
    ValueError
        Spaces that are not pairs of arrays, shapes that disagree, numbers that are not finite, repeats that
        are not those of the bases, a ratio below 0, a feature that is the same for every picture, a block
        below 1.
    """
    folds = _check(bases, spaces, data, folds, ratios)
    xp = array_module(bases.whole.vectors)
    block = fitting_block(xp, block, 8 * 3 * len(data.ids))
    grid, t, dtype = alpha_grid(alphas), data.deviation.shape[1], data.deviation.dtype
    counts = xp.asarray(data.counts, dtype=xp.float64)
    strengths = [
        np.asarray(ratios, dtype=np.float64) * bases.whole.scale / _mean_eigenvalue(x, counts)
        for x, _ in spaces
    ]
    errors = np.zeros((len(grid), t))
    joint_errors = [np.zeros((len(ratios), len(grid), t)) for _ in spaces]
    for basis, fold in zip(bases.folds, np.unique(folds), strict=True):
        left, train = np.flatnonzero(folds == fold), np.flatnonzero(folds != fold)
        inner, truth = _rotated(basis, data, train, left, block)
        left, train = xp.asarray(left), xp.asarray(train)
        weight = xp.sqrt(counts[left])[:, None]
        sides = [_Side.of(basis, x[train], x[left], weight) for x, _ in spaces]
        out = basis.out * weight
        for row, alpha in enumerate(grid):
            shrink = 1 / (basis.values + alpha * basis.scale)
            hat = (out * shrink).astype(dtype)
            lefts = xp.empty_like(truth)
            for columns in blocks(t, block):
                lefts[:, columns] = hat @ inner[:, columns] - truth[:, columns]
                errors[row, columns] += to_host(squares(lefts[:, columns]))
            for side, strength, sums in zip(sides, strengths, joint_errors, strict=True):
                update = side.updated(hat, shrink, len(strength), dtype)
                for columns in blocks(t, block):
                    sums[:, row, columns] += to_host(
                        update.errors(inner[:, columns], lefts[:, columns], strength)
                    )
        del inner, truth, lefts, sides, out, hat  # before the next fold's are there
    total = np.empty(t)
    for columns in blocks(t, block):
        y = data.deviation[:, columns].astype(np.float64)
        total[columns] = about_mean(y, data.counts.astype(np.float64))[2]
    total += data.within
    alone = r2(errors + data.within, total)
    choices = [(alone, alone.argmax(0), np.zeros(t, dtype=int), None)]
    for sums, strength in zip(joint_errors, strengths, strict=True):
        scores = r2(sums + data.within, total)
        ratio = scores.max(1).argmax(0)
        chosen = np.take_along_axis(scores, ratio[None, None], 0)[0]
        choices.append((chosen, chosen.argmax(0), ratio, strength[ratio]))
    return _refit(bases.whole, spaces, data, choices, grid, block)


def _refit(
    basis: KernelBasis, spaces: Sequence, data: Collapsed, choices: Sequence, grid: Any, block: int
) -> list[Fit]:
    """Predictions of the test pictures under each voxel's own penalties, in float64."""
    xp = array_module(basis.vectors)
    t, dtype = data.deviation.shape[1], data.deviation.dtype
    fits = [
        Fit(np.empty((len(basis.out), t), dtype=dtype), index, scores, ratio)
        for scores, index, ratio, _ in choices
    ]
    mean = np.empty(t)
    for columns in blocks(t, block):
        mean[columns] = data.counts @ data.deviation[:, columns] / data.counts.sum()
    mean += data.centre
    inner, _ = _rotated(basis, data, slice(None), slice(0, 0), block)
    sides = [_Side.of(basis, x, x_test, 1.0) for x, x_test in spaces]
    for row, alpha in enumerate(grid):
        shrink = 1 / (basis.values + alpha * basis.scale)
        hat = basis.out * shrink
        for fit, (_, index, _, strength), side in zip(fits, choices, [None, *sides], strict=True):
            chosen = np.flatnonzero(index == row)
            if side is not None and len(chosen):
                update = side.updated(hat, shrink, 1, xp.float64)
            for part in blocks(len(chosen), block):
                some = chosen[part]
                own = inner[:, xp.asarray(some)].astype(xp.float64)
                found = hat @ own
                if side is not None:
                    lam, rho = update.values[:, None], xp.asarray(strength[some])
                    found += update.out @ (rho / (1 + rho * lam) * (update.into @ own))
                fit.predictions[:, some] = to_host(found) + mean[some]
    return fits


def _rotated(
    basis: KernelBasis, data: Collapsed, train: Any, left: Any, block: int
) -> tuple[Any, Any]:
    """Weighted responses in the eigenbasis (k, t), and those left out (n_f, t), about training's mean."""
    xp = array_module(basis.vectors)
    dtype, t = data.deviation.dtype, data.deviation.shape[1]
    n_left = len(data.counts[left])
    inner = xp.empty((len(basis.values), t), dtype=dtype)
    truth = xp.empty((n_left, t), dtype=dtype)
    counts = basis.weight**2
    weight = xp.sqrt(xp.asarray(data.counts[left], dtype=xp.float64))[:, None]
    for columns in blocks(t, block):
        responses = data.deviation[:, columns]
        y = xp.asarray(responses[train]).astype(xp.float64)
        mean = counts @ y / counts.sum()
        y -= mean
        y *= basis.weight[:, None]
        inner[:, columns] = basis.vectors.T @ y
        truth[:, columns] = (xp.asarray(responses[left]).astype(xp.float64) - mean) * weight
    return inner, truth


@dataclass(frozen=True)
class _Update:
    """What a second space adds under one penalty of the first.

    ``into`` (q, k) from responses in the kernel's eigenbasis; ``values`` (q,) of B'DB; ``out`` (m, q) to
    predictions; or, where that is fewer operations, ``seen`` (m, q') and its triangle in place of ``out``.
    """

    values: Any
    into: Any
    out: Any
    seen: Any
    parts: Triangle

    def errors(self, inner: Any, lefts: Any, strengths: Any) -> Any:
        """Squared errors (n_ratios, b); ``inner`` (k, b), ``lefts`` (m, b) the first space's errors."""
        xp = array_module(inner)
        own = self.into @ inner  # (q, b)
        target = -lefts if self.seen is None else -(self.seen.T @ lefts)
        outside = unseen(len(lefts), lefts, target)
        found = []
        for rho in strengths:
            shrink = (rho / (1 + rho * self.values)).astype(own.dtype)
            found.append(outside + squared_errors(self.parts, shrink, own, target))
        return xp.stack(found)


@dataclass(frozen=True)
class _Side:
    """A second space beside a kernel's eigenbasis: ``inner`` (k, q) B, ``out`` (m, q) of others."""

    inner: Any
    out: Any

    @staticmethod
    def of(basis: KernelBasis, x: Any, others: Any, weight: Any) -> _Side:
        """From features (n, q) of the basis' pictures; ``others`` (m, q), their rows times ``weight``."""
        counts = basis.weight**2
        mean = counts @ x / counts.sum()
        return _Side(
            basis.vectors.T @ ((x - mean) * basis.weight[:, None]), (others - mean) * weight
        )

    def updated(self, hat: Any, shrink: Any, n_ratios: int, dtype: Any) -> _Update:
        """Under the first space's ``shrink`` (k,) = 1 / (values + penalty); ``hat`` (m, k) its basis' out
        times that, in the precision ``dtype`` that errors are found in."""
        xp = array_module(shrink)
        root = self.inner * xp.sqrt(shrink)[:, None]
        values, vectors = xp.linalg.eigh(root.T @ root)
        values = xp.maximum(values, 0)
        rotated = self.inner @ vectors  # (k, q)
        map_out = (self.out @ vectors).astype(dtype) - hat @ rotated.astype(dtype)  # (m, q)
        m, q = map_out.shape
        whole = [(rows, 0, map_out[rows]) for rows in blocks(m, ROWS)]
        into = (rotated * shrink[:, None]).T.astype(dtype)
        if n_ratios * 2 * m * q <= 2 * m * min(m, q) + n_ratios * triangle_flops(m, q):
            return _Update(values, into, map_out, None, whole)
        seen, parts = triangle(map_out, dtype)
        return _Update(values, into, map_out, seen, parts)


def _mean_eigenvalue(x: Any, counts: Any) -> float:
    """trace / n_trials of the Gram matrix of features (n, q) about their mean."""
    centred = x - counts @ x / counts.sum()
    return float(counts @ (centred**2).sum(1) / counts.sum())


def _check(bases: JointBases, spaces: Any, data: Collapsed, folds: Any, ratios: Any) -> np.ndarray:
    """``folds`` (n,) as an array, where all is well."""
    n, m = len(bases.whole.weight), len(bases.whole.out)
    check_responses(data, n, bases.whole.weight**2)
    folds = check_folds(folds, n)
    own = [np.flatnonzero(folds == fold) for fold in np.unique(folds)]
    if len(own) != len(bases.lefts) or not all(map(np.array_equal, own, bases.lefts)):
        raise ValueError(
            f"folds {np.shape(folds)}: not those that the {len(bases.folds)} bases were made with; expected "
            "the same pictures left out"
        )
    finite_numbers("ratios", ratios, zero=True)
    for number, pair in enumerate(spaces):
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise ValueError(
                f"spaces: number {number} is a {type(pair).__name__}, expected a list of pairs, features "
                "(n, q) of the training pictures and (m, q) of the test pictures"
            )
        x, test = pair
        check_arrays(space=x, test=test)
        if x.shape != (n, x.shape[-1]) or test.shape != (m, x.shape[-1]):
            raise ValueError(
                f"space {x.shape} and test {test.shape}: expected ({n}, q) and ({m}, q)"
            )
        check_numbers(space=x, test=test)
        check_features("space", x)
        check_scale("space", _mean_eigenvalue(x, bases.whole.weight**2))
    if not bases.whole.scale > 0:
        raise ValueError(f"kernel ({n}, {n}): the same for every picture; leave the space out")
    for fold, basis in zip(np.unique(folds), bases.folds, strict=True):
        check_spread("the features of its kernel", fold, basis.scale, bases.whole.scale)
    return folds
