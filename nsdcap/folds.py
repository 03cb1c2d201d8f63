"""Folds that keep a picture's repeats together, and repeats collapsed without loss."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Collapsed:
    """Trials by picture: what weighted least squares on pictures needs to equal that on trials.

    ``ids`` (n,) sorted groups, ``counts`` (n,) repeats of each, ``mean`` (n, t) over the repeats, in
    the trials' own precision, ``within`` (t,) float64 sum of squares of all trials about the mean of
    their group.
    """

    ids: np.ndarray
    counts: np.ndarray
    mean: np.ndarray
    within: np.ndarray


def grouped_folds(groups: np.ndarray, n_folds: int, seed: int) -> np.ndarray:
    """Fold number (n_trials,) int of each trial; trials of one group share a fold.

    Groups are shuffled by ``seed`` and each goes to the fold with the fewest trials so far.

    Raises
    ------
    ValueError
        Fewer groups than folds, or fewer than two folds.
    """
    ids, member, counts = np.unique(groups, return_inverse=True, return_counts=True)
    if n_folds < 2 or len(ids) < n_folds:
        raise ValueError(
            f"n_folds = {n_folds} with {len(ids)} pictures: expected at least 2 folds and at least as "
            "many pictures; ask for fewer folds or more sessions"
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
        Shapes that disagree, or numbers that are not finite.
    """
    if len(responses.shape) != 2 or len(responses) != len(groups):
        raise ValueError(
            f"responses {responses.shape} and groups {np.shape(groups)}: expected (n_trials, t), (n_trials,)"
        )
    ids, member, counts = np.unique(groups, return_inverse=True, return_counts=True)
    order = np.argsort(member, kind="stable")
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    precision = np.float32 if responses.dtype == np.float32 else np.float64
    mean = np.empty((len(ids), responses.shape[1]), dtype=precision)
    within = np.empty(responses.shape[1])
    for start in range(0, responses.shape[1], block):
        columns = slice(start, start + block)
        sorted_trials = responses[:, columns].astype(np.float64)[order]
        if not np.isfinite(sorted_trials).all():
            bad = start + int(np.flatnonzero(~np.isfinite(sorted_trials).all(0))[0])
            raise ValueError(f"responses: column {bad} is not finite; leave such voxels out first")
        block_mean = np.add.reduceat(sorted_trials, starts) / counts[:, None]
        mean[:, columns] = block_mean
        sorted_trials -= np.repeat(block_mean, counts, axis=0)
        within[columns] = np.einsum("ij,ij->j", sorted_trials, sorted_trials)
    return Collapsed(ids, counts, mean, within)
