"""Folds that keep a picture's repeats together, and repeats collapsed without loss."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np

from nsdcap.ridge import about_mean, blocks


@dataclass(frozen=True)
class Collapsed:
    """Trials by picture: what weighted least squares on pictures needs to equal that on trials.

    ``ids`` (n,) sorted groups, ``counts`` (n,) repeats of each, ``deviation`` (n, t) of the mean over the
    repeats from ``centre``, in the trials' own precision, ``within`` (t,) float64 sum of squares of all
    trials about the mean of their group, ``centre`` (t,) float64 mean of all trials. Columns that are
    constant, to rounding, are exactly 0 in ``deviation`` and ``within``.
    """

    ids: np.ndarray
    counts: np.ndarray
    deviation: np.ndarray
    within: np.ndarray
    centre: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """Mean (n, t) over the repeats, in the trials' own precision; a new array."""
        return (self.deviation + self.centre).astype(self.deviation.dtype)


def group_names(groups: Any) -> np.ndarray:
    """``groups`` (numbers, or text) as an array; ValueError where some are missing, or kinds mixed."""
    named = np.asarray(groups)
    kinds = set()
    # a list of text and None or NaN becomes text, or objects
    if named.dtype.kind == "O" or (named.dtype.kind in "US" and isinstance(groups, list | tuple)):
        kinds = {
            "text" if isinstance(name, str | bytes)
            else "NaN" if isinstance(name, Real) and name != name
            else "numbers" if isinstance(name, Real)
            else type(name).__name__
            for name in np.asarray(groups, dtype=object).ravel()
        }  # fmt: skip
    elif named.dtype.kind in "fcmM" and (named != named).any():
        kinds = {"NaN"}
    if len(kinds) > 1 or kinds & {"NaN", "NoneType"}:
        raise ValueError(
            f"groups {named.shape}: found {' and '.join(sorted(kinds))}, expected a number, or text, for each "
            "row: the picture that the trial shows; leave out rows that have none"
        )
    return named


def grouped_folds(groups: Any, n_folds: int, seed: int, name: str = "n_folds") -> np.ndarray:
    """Fold number (n_trials,) int of each trial; trials of one group share a fold.

    Groups are shuffled by ``seed`` and each goes to the fold with the fewest trials so far. ``name`` is
    what errors call ``n_folds``.

    Raises
    ------
    ValueError
        Fewer groups than folds, fewer than two folds, or groups that are NaN, None or of mixed kinds.
    """
    if not isinstance(n_folds, Integral) or n_folds < 2:
        raise ValueError(f"{name} = {n_folds}: expected at least 2 folds")
    ids, member, counts = np.unique(group_names(groups), return_inverse=True, return_counts=True)
    if len(ids) < n_folds:
        raise ValueError(
            f"{name} = {n_folds} with {len(ids)} groups (pictures): expected at least as many groups as "
            "folds; ask for fewer folds"
        )
    order = np.random.default_rng(seed).permutation(len(ids))
    sizes, fold = np.zeros(n_folds), np.empty(len(ids), dtype=int)
    for group in order:
        fold[group] = sizes.argmin()
        sizes[fold[group]] += counts[group]
    return fold[member]


def collapse(responses: np.ndarray, groups: np.ndarray, block: int = 2048) -> Collapsed:
    """Collapse trials (n_trials, t), an array or an HDF5 dataset, of the same group.

    Sums are taken in float64. Memory: one array (n_groups, t) and ``block`` columns of the trials.

    Raises
    ------
    ValueError
        Shapes that disagree, no trials or columns, numbers that are not finite or whose squares are not, or
        groups that are NaN, None or of mixed kinds.
    """
    if not (hasattr(responses, "shape") and hasattr(responses, "dtype")):
        raise ValueError(
            f"responses: found {type(responses).__module__}.{type(responses).__name__}, expected a NumPy "
            "array or an HDF5 dataset"
        )
    if len(responses.shape) != 2 or 0 in responses.shape or np.shape(groups) != responses.shape[:1]:
        raise ValueError(
            f"responses {responses.shape} and groups {np.shape(groups)}: expected (n_trials, t), "
            "(n_trials,), none of them 0"
        )
    ids, member, counts = np.unique(group_names(groups), return_inverse=True, return_counts=True)
    order = np.argsort(member, kind="stable")
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    precision = np.float32 if responses.dtype == np.float32 else np.float64
    deviation = np.empty((len(ids), responses.shape[1]), dtype=precision)
    within, centre = np.empty(responses.shape[1]), np.empty(responses.shape[1])
    for columns in blocks(responses.shape[1], block):
        trials = responses[:, columns].astype(np.float64)[order]
        if not np.isfinite(trials).all():
            bad = columns.start + int(np.flatnonzero(~np.isfinite(trials).all(0))[0])
            raise ValueError(f"responses: column {bad} is not finite; leave such voxels out first")
        # about the mean before they are cast: a large mean would take the digits of what differs
        with np.errstate(over="ignore", invalid="ignore"):
            trials, mean, total = about_mean(trials, np.ones(len(trials)))
        # squares that came out infinite, or as 0 or nearly so without the numbers being 0
        lost = ~(total < 1e290) | (
            (total < 1e-280) & ((total > 0) | (mean != 0) & (abs(mean) < 1e-140))
        )
        if lost.any():
            bad = columns.start + int(lost.argmax())
            raise ValueError(
                f"responses: column {bad} is of numbers whose squares float64 does not hold, about "
                f"{abs(mean).flat[lost.argmax()]:.0e}; scale them"
            )
        centre[columns] = mean
        block_mean = np.add.reduceat(trials, starts) / counts[:, None]
        deviation[:, columns] = block_mean
        trials -= np.repeat(block_mean, counts, axis=0)
        within[columns] = np.einsum("ij,ij->j", trials, trials)
    return Collapsed(ids, counts, deviation, within, centre)
