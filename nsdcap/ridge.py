"""What the ridge solvers share: penalties, the array module, triangles, results.

The solvers are ``ridge_encode`` (features of pictures -> voxels), ``ridge_joint`` (two feature spaces ->
voxels) and ``ridge_decode`` (voxels -> latents). In all of them

- repeats of a picture are collapsed, and the answer is ridge on the single trials all the same;
- one eigenbasis serves every penalty; penalties are multiples of the mean eigenvalue of the trials' Gram
  matrix, trace / n_trials, which collapsing leaves as it is;
- the score of a penalty is R2 over all trials, each predicted by the fold that left it out,
  1 - sum of squared errors / sum of squares about the mean: scikit-learn's ``r2_score`` of
  ``cross_val_predict``. Errors are summed over folds first, so they may be summed in any form;
- Gram matrices, factorisations and what is divided by eigenvalues are float64. Products that are
  repeated for every penalty are in the responses' own precision;
- the array module is that of the features or the kernel: NumPy, or CuPy on a GPU. Responses and targets
  lie on the host, go to the device in blocks, and results come back.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np

ROWS = 128  # rows of a triangle at a time: what they give is summed while it is in the cache

EDGE_SHARE = (
    0.1  # of targets; noise voxels want the largest penalty there is, so a few are always there
)

Triangle = list[tuple[slice, int, Any]]  # rows, the first column that is not 0, the block


@dataclass(frozen=True)
class Fit:
    """``predictions`` (m, t) in the responses' precision; ``alpha_index`` (t,) into the grid;
    ``cv_scores`` (n_alphas, t) float64, R2 of the trials left out; ``ratio_index`` (t,) of a joint
    model, else zeros; ``weights`` (p, t) of the features where they were asked for."""

    predictions: np.ndarray
    alpha_index: np.ndarray
    cv_scores: np.ndarray
    ratio_index: np.ndarray
    weights: np.ndarray | None = None


def array_module(array: Any) -> Any:
    """The module that an array comes from: numpy, or cupy."""
    return sys.modules[_library(array)]


def check_arrays(**arrays: Any) -> None:
    """Raise ValueError with the name of what is no array of NumPy's or CuPy's: a list, a table, a dataset."""
    for name, array in arrays.items():
        # no other library's arrays come with this function
        if not hasattr(sys.modules.get(_library(array)), "ascontiguousarray"):
            raise ValueError(
                f"{name}: found {type(array).__module__}.{type(array).__name__}, expected a NumPy or CuPy "
                "array"
            )


def _library(array: Any) -> str:
    return type(array).__module__.partition(".")[0]


def to_host(array: Any) -> np.ndarray:
    """A NumPy array of what may lie on a GPU."""
    return array.get() if hasattr(array, "get") else np.asarray(array)


def blocks(n: int, size: int) -> Iterator[slice]:
    """Slices of at most ``size`` that cover ``n``. ValueError for a size below 1 or with a fraction."""
    check_block(size)  # at once: what follows runs when the first slice is asked for
    return (slice(start, min(n, start + size)) for start in range(0, n, size))


def check_block(size: Any) -> None:
    """Raise ValueError where a block's size is not a whole number above 0."""
    if not isinstance(size, Integral) or size < 1:
        raise ValueError(f"block: found {size}, expected a whole number above 0")


# --- means --------------------------------------------------------------------------------------


def about_mean(y: Any, counts: Any) -> tuple[Any, Any, Any]:
    """y (n, b) float64 less its mean, in place, that mean (b,) and the squares (b,) about it.

    Rows count ``counts`` (n,) float64 times. Columns that are constant, to rounding, become exactly 0, and
    so do their squares.
    """
    weight = counts.sum()
    mean = counts @ y / weight
    y -= mean
    total = squares(y, counts)
    same = constant(total / weight, mean, len(y))
    if bool(same.any()):
        y *= ~same
        total *= ~same
    return y, mean, total


def constant(mean_square: Any, mean: Any, n: int) -> Any:
    """Which columns (b,) of n rows are constant: off their mean by no more than a sum of n is wrong by."""
    return mean_square <= ((n + 10) * 2.0**-52 * mean) ** 2


# --- penalties ----------------------------------------------------------------------------------


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
    return finite_numbers("alphas", multiples) * eigen_mean


def finite_numbers(name: str, given: Any, zero: bool = False) -> np.ndarray:
    """``given`` as float64 (k,); ValueError where it is not a list of finite numbers above 0, or with
    ``zero`` none below."""
    try:
        found = np.asarray(given)
        found = np.empty(0) if found.dtype.kind in "US" else found.astype(np.float64)
    except (TypeError, ValueError, OverflowError):
        found = np.empty(0)
    fits = found.ndim == 1 and len(found) > 0 and np.isfinite(found).all()
    if not fits or found.min() < 0 or (found.min() == 0 and not zero):
        told = "none below 0" if zero else "above 0"
        raise ValueError(f"{name}: found {given!r:.200}, expected a list of finite numbers, {told}")
    return found


def edge_share(
    alpha_index: np.ndarray, alphas: Sequence[float] | np.ndarray, scores: np.ndarray
) -> float:
    """Share of targets whose penalty is the smallest or largest of the grid, in whatever order that is.

    ``scores`` (t,) of the targets under their penalty; constant ones, of exactly 0, chose none and are
    left out. 0 where the grid is one penalty: there is nothing to choose.
    """
    grid = np.asarray(alphas, dtype=np.float64)
    low, high = grid.min(), grid.max()
    chosen = grid[alpha_index][scores != 0]
    if high == low or len(chosen) == 0:
        return 0.0
    return float(np.mean((chosen == low) | (chosen == high)))


def edge_warning(share: float) -> str:
    """What to do where many targets want a penalty beyond the grid, to stand at the end of a line."""
    return "; WARNING: widen the grid of penalties" if share > EDGE_SHARE else ""


def r2(errors: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Scores (..., t) from squared errors (..., t) and squares about the mean (t,); 0 for a constant."""
    return np.where(total > 0, 1 - errors / np.where(total > 0, total, 1), 0.0)


# --- factorisations -----------------------------------------------------------------------------


def eigen(gram: Any) -> tuple[Any, Any]:
    """Eigenvalues (k,), none below 0, and vectors (k, k) of a Gram matrix; float64."""
    xp = array_module(gram)
    values, vectors = xp.linalg.eigh(gram)
    return xp.maximum(values, 0), vectors


def triangle(matrix: Any, dtype: Any) -> tuple[Any, Triangle]:
    """``matrix`` (m, k) as Q (m, k') times an upper triangle or trapezoid (k', k), k' = min(m, k).

    So lengths of ``matrix @ z - y`` are lengths of ``R @ z - Q' y`` and of what of y lies outside Q: k^2
    in place of 2 m k operations a column. R comes as blocks of rows, what is 0 left out.
    """
    xp = array_module(matrix)
    q, r = xp.linalg.qr(matrix)
    r = r.astype(dtype)
    return q, [(rows, rows.start, r[rows, rows.start :].copy()) for rows in blocks(len(r), ROWS)]


def triangle_flops(m: int, k: int) -> int:
    """Operations a column of what ``triangle`` gives for (m, k)."""
    return sum(2 * (rows.stop - rows.start) * (k - rows.start) for rows in blocks(min(m, k), ROWS))


def squared_errors(parts: Triangle, shrink: Any, inner: Any, seen: Any) -> Any:
    """Squared lengths (b,) float64 of the columns of R diag(shrink) inner - seen.

    ``inner`` (k, b), ``seen`` (k', b), ``shrink`` (k,) in one precision. Each block of rows is squared
    as soon as it is there, so predictions are nowhere kept.
    """
    xp = array_module(inner)
    total = xp.zeros(inner.shape[1])
    for rows, start, block in parts:
        error = (block * shrink[start:]) @ inner[start:]
        error -= seen[rows]
        total += squares(error)
    return total


def penalised_errors(parts: Triangle, values: Any, penalties: Any, inner: Any, seen: Any) -> Any:
    """``squared_errors`` (n_alphas, b) under each penalty; ``values`` (k,) the eigenvalues, float64."""
    shrunk = ((1 / (values + a)).astype(inner.dtype) for a in penalties)
    return array_module(inner).stack(
        [squared_errors(parts, shrink, inner, seen) for shrink in shrunk]
    )


def unseen(m: int, left: Any, seen: Any, counts: Any = None) -> Any:
    """What of the squares (b,) of ``left``, rows counting ``counts`` times, no prediction reaches.

    ``seen`` (k', b) is where predictions lie; nothing is beyond where they are as many as the rows, ``m``.
    """
    xp = array_module(left)
    if m <= len(seen):
        return xp.zeros(left.shape[1])
    return xp.maximum(squares(left, counts) - squares(seen), 0)


def squares(x: Any, counts: Any = None) -> Any:
    """Sums of squares (b,) float64 of columns (m, b), rows counting ``counts`` (m,) float64 times.

    Blocks of rows are squared in their own precision and promoted one at a time.
    """
    xp = array_module(x)
    total = xp.zeros(x.shape[1])
    for rows in blocks(len(x), 4 * ROWS):
        if counts is None:
            total += xp.einsum("ij,ij->j", x[rows], x[rows])
        else:
            total += counts[rows] @ (x[rows] * x[rows])
    return total
