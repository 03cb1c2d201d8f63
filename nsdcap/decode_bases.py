"""Factorisations of voxels for decoding: one for each fold and one for all trials.

Everything is by trial here, voxels and folds alike; ``ridge_decode`` has an example.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from nsdcap.ridge import array_module, check_arrays, eigen
from nsdcap.ridge_encode import factorised
from nsdcap.ridge_input import (
    check_features,
    check_folds,
    check_numbers,
    check_scale,
    check_spread,
    check_whole,
)


@dataclass(frozen=True)
class FoldBasis:
    """A fold's training trials, factorised; pictures are in the bases' order.

    ``values`` (k,) float64. ``into`` (k, n_train) from latents of the training pictures, the columns of a
    picture's repeats summed; its ``columns`` are the ``pictures``, slice by slice. ``out`` (m_f, k) to the
    trials left out, ``averaged`` (n_left, k) to their pictures; ``left`` the slice of those, ``shown``
    (m_f,) on the host which of them each trial shows, ``left_counts`` (n_left,) their repeats. ``share`` (n,)
    each picture's share of the training trials, ``scale`` the mean eigenvalue.
    """

    values: Any
    into: Any
    columns: list[slice]
    pictures: list[slice]
    out: Any
    averaged: Any
    left: slice
    shown: np.ndarray
    left_counts: Any
    share: Any
    scale: float


@dataclass(frozen=True)
class WholeBasis:
    """All trials: ``values`` (k,), ``into`` (k, n), ``out`` (m, k) to the test pictures; float64."""

    values: Any
    into: Any
    out: Any
    scale: float


@dataclass(frozen=True)
class DecodeBases:
    """Factorisations of the voxels for each fold and for all trials; they serve every latent.

    ``order`` (n_pictures,) the order of pictures within, ``counts`` (n_pictures,) float64 repeats in that
    order, ``host_share`` the same as shares on the host, ``dtype`` that of the voxels.
    """

    folds: list[FoldBasis]
    whole: WholeBasis
    order: np.ndarray
    counts: Any
    host_share: np.ndarray
    dtype: Any

    @property
    def n_pictures(self) -> int:
        return len(self.order)


def decode_bases(
    voxels: Any, picture: np.ndarray, test: Any, folds: np.ndarray, n_pictures: int
) -> DecodeBases:
    """Factorise voxels (n_trials, p) of single trials, for ``test`` voxels (m, p).

    ``picture`` (n_trials,) is each trial's row of the latents, ``folds`` (n_trials,) its fold, whole numbers.
    Folds may split a picture's trials (nsdcap's ``ridge.group_folds=false`` does), and then penalties are
    chosen too small, for the pictures left out have been seen; ``nsdcap.folds.grouped_folds(picture, 5,
    seed)`` keeps them together. The
    smaller of the voxels' and the trials' Gram matrix is factorised, in float64; a fold's is taken from
    the whole by subtraction. What multiplies targets is kept in the voxels' own precision.

    Memory beside what is given, d bytes a voxel, k = min(n_trials, p), m test pictures: kept, d k (folds
    n_pictures + n_trials) + 8 k (n_pictures + m) bytes; while it works 8 (4 p^2 + 5 n_pictures p + 3 n_trials
    p / folds) more, or for more voxels than trials in all 8 (4.5 n_trials^2 + n_trials (p + n_pictures + m)).

    Raises
    ------
    ValueError
        Not arrays, shapes that disagree, no trials, numbers that are not finite or whose squares are not,
        pictures or folds that are not whole numbers, fewer than two folds, a voxel that is the same in every
        trial, voxels that are all the same in the trials that a fold trains on.
    """
    picture, folds = _check(voxels, picture, test, folds, n_pictures)
    xp = array_module(voxels)
    # pictures by fold, so that those left out are one slice; where folds split pictures, all train
    first = np.full(n_pictures, -1)
    first[picture[::-1]] = folds[::-1]
    grouped = bool((folds == first[picture]).all())
    order = np.argsort(first, kind="stable") if grouped else np.arange(n_pictures)
    place = np.empty(n_pictures, dtype=int)
    place[order] = np.arange(n_pictures)
    member = place[picture]
    counts = np.bincount(member, minlength=n_pictures).astype(np.float64)
    primal = voxels.shape[1] <= min((folds != fold).sum() for fold in np.unique(folds))
    make = _primal if primal else _dual
    parts, whole = make(voxels, member, test, folds, n_pictures)
    found = []
    for fold, (values, into, out, scale) in zip(np.unique(folds), parts, strict=True):
        found.append(_fold(values, into, out, scale, member, folds == fold, counts, voxels.dtype))
    return DecodeBases(
        found, whole, order, xp.asarray(counts), counts / counts.sum(), np.dtype(voxels.dtype)
    )


def _fold(
    values: Any, into: Any, out: Any, scale: float, member: np.ndarray, left: np.ndarray,
    counts: np.ndarray, dtype: Any,
) -> FoldBasis:  # fmt: skip
    """``into`` (k, n) and ``out`` (m_f, k) float64, with the pictures of the trials ``left`` out."""
    xp, n = array_module(out), len(counts)
    own = np.bincount(member[left], minlength=n).astype(np.float64)
    train = counts - own
    start, stop = int(member[left].min()), int(member[left].max()) + 1
    if train[start:stop].any():
        pictures = columns = [slice(0, n)]
    else:
        pictures = [part for part in (slice(0, start), slice(stop, n)) if part.stop > part.start]
        ends = np.cumsum([0, *(part.stop - part.start for part in pictures)])
        columns = [slice(int(a), int(b)) for a, b in pairwise(ends)]
    shown, own = member[left] - start, own[start:stop]
    averaged = add_rows(out, shown, len(own)) / xp.asarray(np.maximum(own, 1))[:, None]
    into = xp.concatenate([into[:, part] for part in pictures], axis=1).astype(dtype)
    return FoldBasis(
        values, into, columns, pictures, out.astype(dtype), averaged.astype(dtype),
        slice(start, stop), shown, xp.asarray(own), xp.asarray((train / train.sum()).astype(dtype)),
        scale,
    )  # fmt: skip


def _primal(
    voxels: Any, member: np.ndarray, test: Any, folds: np.ndarray, n: int
) -> tuple[Any, WholeBasis]:
    """For p <= trials in training: (p, p) Gram matrices, a fold's by subtraction."""
    xp = array_module(voxels)
    centre = voxels.mean(0, dtype=xp.float64)
    p, total = voxels.shape[1], len(voxels)
    gram, summed = xp.zeros((p, p)), xp.zeros((n, p))
    for fold in np.unique(folds):
        x = voxels[xp.asarray(np.flatnonzero(folds == fold))] - centre
        gram += x.T @ x
        summed += add_rows(x, member[folds == fold], n)

    check_scale("voxels", float(xp.trace(gram)))

    def parts() -> Any:
        for fold in np.unique(folds):
            left = np.flatnonzero(folds == fold)
            x = voxels[xp.asarray(left)] - centre
            n_train = total - len(left)
            mean = -x.sum(0) / n_train  # the mean of all is 0
            train = gram - x.T @ x - n_train * mean[:, None] * mean
            own = add_rows(x, member[left], n)
            repeats = np.bincount(member, minlength=n) - np.bincount(member[left], minlength=n)
            rows = summed - own - xp.asarray(repeats)[:, None] * mean
            trace = float(xp.trace(train))
            check_spread("voxels", fold, trace, float(xp.trace(gram)))
            values, vectors = eigen(train)
            yield values, vectors.T @ rows.T, (x - mean) @ vectors, trace / n_train

    values, vectors = eigen(gram)
    whole = WholeBasis(
        values, vectors.T @ summed.T, (test - centre) @ vectors, float(xp.trace(gram)) / total
    )
    return parts(), whole


def _dual(
    voxels: Any, member: np.ndarray, test: Any, folds: np.ndarray, n: int
) -> tuple[Any, WholeBasis]:
    """For more voxels than trials in training: (n_trials, n_trials) kernels."""
    xp = array_module(voxels)
    centre = voxels.mean(0, dtype=xp.float64)
    x = voxels.astype(xp.float64) - centre
    kernel = x @ x.T
    check_scale("voxels", float(xp.trace(kernel)))

    def make(train: np.ndarray, others: Any) -> tuple[Any, Any, Any, float]:
        rows = xp.asarray(train)
        basis = factorised(kernel[rows][:, rows], xp.ones(len(train)), others, part=True)
        summed = add_rows(basis.vectors, member[train], n)
        return basis.values, summed.T, basis.out, basis.scale

    def parts() -> Any:
        for fold in np.unique(folds):
            train, left = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
            found = make(train, kernel[xp.asarray(left)][:, xp.asarray(train)])
            check_spread("voxels", fold, found[-1] * len(train), float(xp.trace(kernel)))
            yield found

    everyone = np.arange(len(voxels))
    return parts(), WholeBasis(*make(everyone, (test - centre) @ x.T))


def add_rows(x: Any, member: np.ndarray, n: int) -> Any:
    """Sums (n, ...) of the rows of x that have the same ``member``.

    A repeat is added at a time, so that no index comes twice: every array module can do that.
    """
    xp = array_module(x)
    total = xp.zeros((n, x.shape[1]), dtype=x.dtype)
    order = np.argsort(member, kind="stable")
    _, starts, counts = np.unique(member[order], return_index=True, return_counts=True)
    repeat = np.arange(len(order)) - np.repeat(starts, counts)
    for number in range(counts.max()):
        rows = order[repeat == number]
        total[xp.asarray(member[rows])] += x[xp.asarray(rows)]
    return total


def _check(
    voxels: Any, picture: Any, test: Any, folds: Any, n_pictures: int
) -> tuple[np.ndarray, np.ndarray]:
    """``picture`` and ``folds`` (n_trials,) as arrays, where all is well."""
    check_arrays(voxels=voxels, test=test)
    picture = np.asarray(picture)
    if voxels.ndim != 2 or test.ndim != 2 or 0 in voxels.shape:
        raise ValueError(
            f"voxels {voxels.shape}, test {test.shape}: expected (n, p) and (m, p), n and p above 0"
        )
    n, p = voxels.shape
    for name, array, expected in (("picture", picture, (n,)), ("test", test, (len(test), p))):
        if array.shape != expected:
            raise ValueError(
                f"{name} is {array.shape}, expected {expected} beside voxels {voxels.shape}"
            )
    picture = check_whole("picture", picture)
    if picture.min() < 0 or picture.max() >= n_pictures:
        raise ValueError(
            f"picture: found rows {picture.min()} to {picture.max()}, expected 0 to {n_pictures - 1}"
        )
    for name, array in (("voxels", voxels), ("test", test)):
        if array.dtype not in (np.float32, np.float64):
            raise ValueError(f"{name} are {array.dtype}: expected float32 or float64")
    check_numbers(voxels=voxels, test=test)
    check_features("voxels", voxels)
    return picture, check_folds(folds, n)
