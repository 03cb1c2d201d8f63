"""From a subject's volume to its cortical surface, and on to fsaverage, by NSD's transform files.

The files count from 1; here, and nowhere after, that is undone. Source: the NSD Data Manual
(transforms) and nsdcode's ``nsd_mapdata``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nsdcap.errors import DataError
from nsdcap.nsd_read import read_image

NO_DATA = 9999.0


def sample_layers(volume: np.ndarray, layers: Sequence[Path], kind: str = "nearest") -> np.ndarray:
    """Sample ``volume`` (X, Y, Z) at every vertex, averaged over the cortical depths.

    ``layers``: a transform file for each depth, V x 3, 1-based volume coordinates, 9999 where there
    are none. ``kind``: "nearest" voxel, or "linear" between voxels. Returns (V,) float64. Voxels
    that are NaN (outside an ROI) are left out of the mean; a vertex with no voxel at all is NaN.
    Raises DataError when a transform is missing, broken, or not V x 3.
    """
    from scipy.ndimage import map_coordinates  # it takes long to load

    values = np.asarray(volume, dtype=np.float64)
    if values.ndim != 3:
        raise DataError(f"the volume has shape {values.shape}, expected (X, Y, Z).")
    if kind not in ("nearest", "linear"):
        raise DataError(f"kind {kind!r}: expected 'nearest' or 'linear'.")
    order = 0 if kind == "nearest" else 1
    present = np.isfinite(values).astype(np.float64)
    filled = np.where(present > 0, values, 0.0)
    total: Any = 0.0
    weight: Any = 0.0
    for path in layers:
        at = read_layer(path)
        where = np.where(np.isfinite(at), at, -1e3).T  # (3, V); far outside reads as absent
        options: dict[str, Any] = {"order": order, "mode": "constant", "cval": 0.0}
        total = total + map_coordinates(filled, where, **options)
        weight = weight + map_coordinates(present, where, **options)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(weight > 1e-6, total / weight, np.nan)


def to_fsaverage(values: np.ndarray, path: Path) -> np.ndarray:
    """Values (V,) of a subject's vertices at fsaverage's vertices, (V_fsaverage,) float64.

    ``path``: for each fsaverage vertex the 1-based index of the subject's nearest vertex.
    Raises DataError when the file is missing or broken, or points beyond the subject's vertices.
    """
    return np.asarray(values, dtype=np.float64)[read_index(path, len(values))]


def read_index(path: Path, n_vertices: int) -> np.ndarray:
    """The subject's vertex nearest to each fsaverage vertex, (V_fsaverage,) int64, 0-based.

    Raises DataError when the file is missing or broken, or points beyond the subject's ``n_vertices``.
    """
    index = _read_transform(path)
    if index.ndim != 1:
        raise DataError(f"{path} has shape {index.shape}, expected one index a vertex.")
    if not np.all(index % 1 == 0):
        raise DataError(f"{path} holds {index[index % 1 != 0][0]:g}, expected whole indices.")
    if index.min() < 1 or index.max() > n_vertices:
        wrong = index.min() if index.min() < 1 else index.max()
        raise DataError(
            f"{path} points at vertex {wrong:.0f} of the subject, but {n_vertices} values were"
            " given; take the values of the same subject and hemisphere."
        )
    return index.astype(np.int64) - 1


def read_layer(path: Path) -> np.ndarray:
    """A depth's volume coordinates (V, 3) float64, 0-based, NaN where there are none.

    Raises DataError when the file is missing or broken, or not V x 3.
    """
    at = _read_transform(path)
    if at.ndim != 2 or at.shape[1] != 3:
        raise DataError(f"{path} has shape {at.shape}, expected (vertices, 3).")
    known = np.all(np.isfinite(at) & (at != NO_DATA), axis=1)
    return np.where(known[:, None], at - 1, np.nan)


def _read_transform(path: Path) -> np.ndarray:
    """The transform's numbers, (V,) or (V, 3) float64: MGH files pad with axes of length 1."""
    return np.squeeze(read_image(path)[0])
