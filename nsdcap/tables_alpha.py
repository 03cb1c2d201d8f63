"""The table of the penalties that ridge chose, for every model."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from nsdcap.config import load
from nsdcap.encoded import Model
from nsdcap.errors import DataError
from nsdcap.paths import Cell, artefact, config_file
from nsdcap.tables import open_hdf5

ALPHA_COLUMNS = ("subject", "stage", "feature", "layer", "phase", "alpha", "n", "absolute")


def alpha_rows(out: Path, subject: int, models: Iterable[Model]) -> list[dict]:
    """A row for each penalty of the grid: how many targets of a decoding latent, or voxels, chose it.

    Targets that never vary chose none and are left out. The grid is that of the run's config.toml, of
    latents that in their own file. Raises DataError where config.toml is missing, or a penalty is not
    on the grid.
    """
    path = config_file(out)
    if not path.is_file():
        raise DataError(f"{path}: missing; expected the settings that the run was made with")
    ridge = load(path).ridge
    rows = []
    with open_hdf5(artefact(out, Cell("decode", subject)), ("z_v", "c", "z")) as file:
        for latent in ("z_v", "c", "z"):
            group = file[latent]
            index, varies = group["alpha_index"][:], group["cv_r2"][:] != 0
            # with one penalty for all targets there is one index
            chosen = np.broadcast_to(index, varies.shape)[varies]
            counts = np.bincount(chosen, minlength=len(group.attrs["alphas"]))
            rows += _rows(subject, "decode", latent, group.attrs["alphas"], counts, ridge.absolute)
    grid = np.asarray(ridge.alphas)
    for model in models:
        alpha = model.maps["alpha"][np.isfinite(model.maps["r"])]
        nearest = np.abs(np.log(alpha[:, None] / grid)).argmin(1)
        if len(alpha) and not np.allclose(alpha, grid[nearest], rtol=1e-5):
            off = alpha[~np.isclose(alpha, grid[nearest], rtol=1e-5)][0]
            raise DataError(
                f"{path}: ridge.alphas has no {off:g}, which a voxel of subject {subject} has; run the "
                "encode stage again under these settings"
            )
        counts = np.bincount(nearest, minlength=len(grid))
        more = {"layer": model.layer, "phase": model.phase}
        rows += _rows(subject, "encode", model.feature, grid, counts, ridge.absolute, more)
    return rows


def _rows(
    subject: int, stage: str, feature: str, grid: Any, counts: np.ndarray,
    absolute: bool, more: dict[str, Any] | None = None,
) -> list[dict]:  # fmt: skip
    same = {"subject": subject, "stage": stage, "feature": feature, "absolute": absolute}
    same |= more or {}
    return [same | {"alpha": float(a), "n": int(n)} for a, n in zip(grid, counts, strict=True)]
