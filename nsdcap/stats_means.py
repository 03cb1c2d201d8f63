"""How far means over many voxels would move had other pictures been shown."""

from __future__ import annotations

from typing import Any

import numpy as np

from nsdcap.ridge import array_module
from nsdcap.stats import checked, column_blocks, saved_error, standard


def mean_r_error(predicted: Any, measured: Any, groups: np.ndarray) -> Any:
    """Standard error (g,) float64 of the mean r over groups of voxels, had other pictures been shown.

    predicted, measured (n, t); ``groups`` (g, t) bool: which voxels are in each. Infinitesimal
    jackknife: a picture's pull on a voxel's r is x y - r (x^2 + y^2) / 2 of its z-scores, and pulls are
    averaged over the voxels before they are squared. So neighbours that err alike count as what they
    are; the unit is the picture, the model stays. Constant voxels are left out, NaN where no other is
    in a group. Memory: some (48, n) arrays and (g, n). ValueError as ``pearson``.
    """
    xp = checked(predicted=predicted, measured=measured)
    inside = xp.asarray(groups)
    pull, count = xp.zeros((len(inside), len(predicted))), xp.zeros(len(inside))
    for columns in column_blocks(predicted):
        x, y = standard(predicted[:, columns]), standard(measured[:, columns])
        r = xp.einsum("ij,ij->i", x, y)
        valid = xp.isfinite(r)
        x, y, r = x[valid], y[valid], r[valid]
        mine = inside[:, columns][:, valid].astype(np.float64)
        pull += mine @ (x * y - r[:, None] / 2 * (x**2 + y**2)) * len(predicted)
        count += mine.sum(1)
    return _error_of_mean(pull, count)


def mean_gain_error(joint: Any, single: Any, measured: Any, groups: np.ndarray) -> Any:
    """As ``mean_r_error`` for the mean of ``gain_r2`` over groups of voxels (g, t)."""
    xp = checked(joint=joint, single=single, measured=measured)
    inside = xp.asarray(groups)
    pull, count = xp.zeros((len(inside), len(measured))), xp.zeros(len(inside))
    for columns in column_blocks(measured):
        saved, y = saved_error(*(x[:, columns] for x in (joint, single, measured)))
        variance = (y**2).mean(0)
        with np.errstate(divide="ignore", invalid="ignore"):
            pulls = (saved - saved.mean(0) / variance * y**2) / variance
        valid = xp.isfinite(pulls[0])
        mine = inside[:, columns][:, valid].astype(np.float64)
        pull += mine @ pulls[:, valid].T
        count += mine.sum(1)
    return _error_of_mean(pull, count)


def _error_of_mean(pull: Any, count: Any) -> Any:
    """From sums of pulls (g, n) over ``count`` (g,) voxels."""
    xp = array_module(pull)
    n = pull.shape[1]
    squares = xp.einsum("ij,ij->i", pull, pull) / (n * max(n - 1, 1))
    return xp.sqrt(squares) / xp.where(count > 0, count, xp.nan)
