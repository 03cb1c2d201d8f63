"""Tables of encoding results: a row for each subject, stream and model, and best layers by stream."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.stats import t

from nsdcap.encoded import ROIS, Model, Voxels, inside
from nsdcap.maps import ALPHA

ENCODING_COLUMNS = (
    "subject", "roi", "feature", "layer", "phase", "n_voxels", "n_nan", "n_significant",
    "n_significant_gaussian", "mean_r", "ci_low", "ci_high", "n_over_ceiling", "mean_r_over_ceiling",
    "n_gain_significant", "mean_gain", "gain_ci_low", "gain_ci_high", "alpha_median", "edge_share",
)  # fmt: skip
GROUP_COLUMNS = (
    "roi", "feature", "layer", "phase", "n_subjects", "n_voxels", "n_significant", "mean_r", "ci_low",
    "ci_high", "mean_r_over_ceiling", "over_ceiling_ci_low", "over_ceiling_ci_high",
    "n_gain_significant", "mean_gain", "gain_ci_low", "gain_ci_high",
)  # fmt: skip
LAYER_COLUMNS = ("subject", "by", "roi", "n_voxels", "n_significant", "mean_layer", "sd_layer")


def encoding_rows(subject: int, model: Model, voxels: Voxels) -> list[dict]:
    """A row for each stream and one for all voxels.

    Means are over the voxels that varied, r over ceiling's over those of them with a ceiling above the
    floor. 95 % intervals: had other pictures been shown (see ``stats.mean_r_error``), for these voxels
    and this subject.
    """
    maps, errors = model.maps, model.errors
    known = np.isfinite(maps["p_permutation"]) & np.isfinite(maps["r"])
    rows = []
    for k, roi in enumerate(ROIS):
        here = inside(voxels.stream, roi)
        use = here & known
        row: dict[str, Any] = {
            "subject": subject, "roi": roi, "feature": model.feature, "layer": model.layer,
            "phase": model.phase, "n_voxels": int(use.sum()), "n_nan": int((here & ~known).sum()),
            "n_significant": _below(maps["q"][use]),
            "n_significant_gaussian": _below(maps["q_gaussian"][use]),
            "n_over_ceiling": int(np.isfinite(maps["r_over_ceiling"][use]).sum()),
            "mean_r": _mean(maps["r"][use]),
            "mean_r_over_ceiling": _mean(maps["r_over_ceiling"][use]),
            "alpha_median": np.nanmedian(maps["alpha"][use]) if use.any() else None,
        }  # fmt: skip
        row["ci_low"], row["ci_high"] = _interval(row["mean_r"], errors["mean_r_error"][k])
        if "gain" in maps:
            row["n_gain_significant"] = _below(maps["gain_q"][use])
            gain = row["mean_gain"] = _mean(maps["gain"][use])
            low_high = _interval(gain, errors["mean_gain_error"][k])
            row["gain_ci_low"], row["gain_ci_high"] = low_high
        rows.append(row | ({"edge_share": model.edge_share} if roi == "all" else {}))
    return rows


def group_rows(rows: list[dict]) -> list[dict]:
    """A row for each ROI and model over the subjects of ``encoding_rows``: sums of counts, means of means.

    Intervals are the 95 % t intervals over subjects; a single subject has none.
    """
    models: dict[tuple, list[dict]] = {}
    for row in rows:
        key = tuple(row[name] for name in ("roi", "feature", "layer", "phase"))
        models.setdefault(key, []).append(row)
    found = []
    for (roi, feature, layer, phase), each in models.items():
        group: dict[str, Any] = {
            "roi": roi, "feature": feature, "layer": layer, "phase": phase, "n_subjects": len(each),
        }  # fmt: skip
        for count in ("n_voxels", "n_significant", "n_gain_significant"):
            if count in each[0]:
                group[count] = sum(row[count] for row in each)
        for mean, stem in (
            ("mean_r", ""), ("mean_r_over_ceiling", "over_ceiling_"), ("mean_gain", "gain_"),
        ):  # fmt: skip
            values = np.array([row.get(mean, np.nan) for row in each])
            values = values[np.isfinite(values)]
            if values.size:
                group[mean] = float(values.mean())
            if values.size > 1:
                half = t.ppf(0.975, values.size - 1) * values.std(ddof=1) / values.size**0.5
                group |= {f"{stem}ci_low": group[mean] - half, f"{stem}ci_high": group[mean] + half}
        found.append(group)
    return found


def layer_rows(
    subject: int, by: str, best: np.ndarray, q: np.ndarray, voxels: Voxels
) -> list[dict]:
    """Mean best layer of each stream over its significant voxels, and their sd (n - 1).

    ``by``, ``best`` and ``q``: see ``encoded.best_layer``. No interval: voxels are not independent, and
    how far a stream's mean would move had other pictures been shown is not known.
    """
    rows = []
    for roi in ROIS:
        here = inside(voxels.stream, roi)
        with np.errstate(invalid="ignore"):
            use = here & (q < ALPHA)
        row: dict[str, Any] = {
            "subject": subject,
            "by": by,
            "roi": roi,
            "n_voxels": int(here.sum()),
        }
        row["n_significant"] = int(use.sum())
        if use.any():
            row["mean_layer"] = float(best[use].mean())
        if use.sum() > 1:
            row["sd_layer"] = float(best[use].std(ddof=1))
        rows.append(row)
    return rows


def _below(q: np.ndarray) -> int:
    with np.errstate(invalid="ignore"):
        return int((q < ALPHA).sum())


def _mean(values: np.ndarray) -> float:
    """Mean of what is known, NaN of none."""
    values = values[np.isfinite(values)].astype(np.float64)
    return float(values.mean()) if values.size else float("nan")


def _interval(mean: float, error: float) -> tuple[float, float]:
    """95 % by the normal, of a mean and its standard error."""
    return mean - 1.96 * float(error), mean + 1.96 * float(error)
