"""A page with a cortex that turns under the mouse, the subject and the map chosen by the reader.

It is what nilearn's view_surf makes, with several maps on one mesh and without the plotly package that
view_surf asks for: the script that draws (plotly.js, MIT) lies in nilearn's wheel. The page holds it and
everything else it needs, and fetches nothing.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np

from nsdcap.errors import DataError
from nsdcap.pages import fill
from nsdcap.plots_cortex import best_layer_scale, gain_scale, r_scale
from nsdcap.plots_mesh import HEMIS, fold_grey, fsaverage5
from nsdcap.plots_run import Run

APART = 6.0  # mm between the hemispheres
LEVELS = 254  # of colour, numbers 1 to 254; 0: no significant value


def write_page(run: Run, path: Path) -> Path | None:
    """Write the page; None, and no page is left, where no subject has a surface.

    Raises DataError where a map is missing.
    """
    subjects = [s for s in run.subjects if s in run.about["on_surface"]]
    if not subjects:
        path.unlink(missing_ok=True)
        return None
    path.write_text(page(run, subjects), encoding="utf-8")
    return path


def page(run: Run, subjects: list[int]) -> str:
    """The page's text: every map of every subject given."""
    where = run.about["z_B_map"]
    of_layer = f"layer {where['layer']}, {where['phase']} in the caption"
    maps = [
        ("z_v_r", "z_v predicts", r_scale(run)),
        ("z_B_r", f"z_B predicts ({of_layer})", r_scale(run)),
        ("gain", f"what z_B adds to z_v ({of_layer})", gain_scale(run)),
        ("best_layer_r", "best BERT layer, by r of z_v and z_B", best_layer_scale(run)),
        ("best_layer", "best BERT layer, by gain over z_v", best_layer_scale(run)),
    ]
    shown = []
    for name, title, scale in maps:
        low, high = scale.limits
        values = {
            str(s): _encoded(
                np.concatenate([run.surface(s, name, hemi) for hemi in HEMIS]), low, high
            )
            for s in subjects
        }
        palette = (scale.colours((np.arange(LEVELS) + 0.5) / LEVELS)[:, :3] * 255).round()
        shown.append({
            "title": title, "unit": scale.unit, "low": low, "high": high, "ticks": scale.ticks,
            "palette": [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in palette.astype(int).tolist()],
            "values": values,
        })  # fmt: skip
    left, right = (fsaverage5()[hemi] for hemi in HEMIS)
    shift = (left.inflated[:, 0].max() - right.inflated[:, 0].min() + APART) / 2
    points = np.concatenate(
        [left.inflated - np.array([shift, 0, 0]), right.inflated + np.array([shift, 0, 0])]
    )
    faces = np.concatenate([left.faces, right.faces + len(left.inflated)])
    grey = fold_grey(np.concatenate([left.sulc, right.sulc]))
    data = {
        "maps": shown,
        "points": [_base64((column * 100).round().astype("<i2")) for column in points.T],
        "faces": [_base64(column.astype("<u2")) for column in faces.T],
        "grey": _base64((grey * 255).round().astype(np.uint8)),
    }
    text = json.dumps(data, sort_keys=True, ensure_ascii=False).replace("<", "\\u003c")
    return fill(
        "nsdcap", "cortex.html.j2", trim=False, subjects=subjects,
        titles=[one["title"] for one in shown], script=_script(), data=text,
    )  # fmt: skip


def _script() -> str:
    """plotly.js as it lies in nilearn."""
    import nilearn

    root = Path(nilearn.__file__).parent
    found = sorted(root.rglob("plotly-gl3d*.min.js"))
    if not found:
        raise DataError(
            f"{root}: found no plotly-gl3d*.min.js, expected nilearn's script for surfaces; install "
            "nilearn from 0.10 to 0.14"
        )
    return found[0].read_text(encoding="utf-8")


def _encoded(values: np.ndarray, low: float, high: float) -> str:
    """Values (V,) as a byte each in base64: 0 for NaN, else the place in the palette from 1."""
    with np.errstate(invalid="ignore"):
        level = 1 + np.clip(np.floor((values - low) / (high - low) * LEVELS), 0, LEVELS - 1)
    level = np.where(np.isfinite(values), level, 0).astype(np.uint8)
    return _base64(level)


def _base64(values: np.ndarray) -> str:
    return base64.b64encode(values.tobytes()).decode()
