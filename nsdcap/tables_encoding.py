"""Tables of encoding results: a row for each subject, stream and model, and best layers by stream."""

from __future__ import annotations

from typing import Any

import numpy as np

from nsdcap.encoded import ROIS, Model, Voxels
from nsdcap.maps import ALPHA

ENCODING_COLUMNS = (
    "subject", "roi", "feature", "layer", "phase", "n_voxels", "n_nan", "n_significant",
    "n_significant_gaussian", "mean_r", "ci_low", "ci_high", "mean_r_over_ceiling", "n_over_ceiling",
    "mean_gain", "n_gain_significant", "alpha_median", "edge_share",
)  # fmt: skip
LAYER_COLUMNS = ("subject", "roi", "n_voxels", "n_significant", "mean_layer", "ci_low", "ci_high")


def encoding_rows(subject: int, model: Model, voxels: Voxels) -> list[dict]:
    """A row for each stream and one for all voxels.

    Intervals of means are over voxels, as if these were independent.
    """
    maps = model.maps
    known = np.isfinite(maps["p_permutation"]) & np.isfinite(maps["r"])
    rows = []
    for roi in ROIS:
        inside = voxels.inside(roi)
        use = inside & known
        row: dict[str, Any] = {
            "subject": subject, "roi": roi, "feature": model.feature, "layer": model.layer,
            "phase": model.phase, "n_voxels": int(use.sum()), "n_nan": int((inside & ~known).sum()),
            "n_significant": _below(maps["q"][use]),
            "n_significant_gaussian": _below(maps["q_gaussian"][use]),
            "n_over_ceiling": int(np.isfinite(maps["r_over_ceiling"][use]).sum()),
        }  # fmt: skip
        if use.any():
            row["mean_r"], row["ci_low"], row["ci_high"] = _mean_interval(maps["r"][use])
            row["mean_r_over_ceiling"] = _mean(maps["r_over_ceiling"][use])
            row["alpha_median"] = np.nanmedian(maps["alpha"][use])
        if "gain" in maps:
            row["mean_gain"] = _mean(maps["gain"][use])
            row["n_gain_significant"] = _below(maps["gain_q"][use])
        rows.append(row | ({"edge_share": model.edge_share} if roi == "all" else {}))
    return rows


def layer_rows(subject: int, best: np.ndarray, q: np.ndarray, voxels: Voxels) -> list[dict]:
    """Mean best layer of each stream over voxels whose gain is significant."""
    rows = []
    for roi in ROIS:
        inside = voxels.inside(roi)
        with np.errstate(invalid="ignore"):
            use = inside & (q < ALPHA)
        row: dict[str, Any] = {"subject": subject, "roi": roi, "n_voxels": int(inside.sum())}
        row["n_significant"] = int(use.sum())
        if use.any():
            mean, low, high = _mean_interval(best[use])
            row |= {"mean_layer": mean, "ci_low": low, "ci_high": high}
        rows.append(row)
    return rows


def _below(q: np.ndarray) -> int:
    with np.errstate(invalid="ignore"):
        return int((q < ALPHA).sum())


def _mean(values: np.ndarray) -> float:
    """Mean of what is known, NaN of none."""
    values = values[np.isfinite(values)].astype(np.float64)
    return float(values.mean()) if values.size else float("nan")


def _mean_interval(values: np.ndarray) -> tuple[float, float, float]:
    """Mean and normal 95 % interval of values (n,) over voxels."""
    values = values.astype(np.float64)
    mean, half = float(values.mean()), 1.96 * float(values.std()) / len(values) ** 0.5
    return mean, mean - half, mean + half
