"""Figures 5, 7 and 8: maps on the inflated and the flattened cortex, or through the volume.

Subjects whose transforms to the surface are there are drawn on fsaverage5, all others in a figure of
their own as projections of the volume.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from nsdcap.errors import DataError
from nsdcap.plots_mesh import HEMIS, flat_view, inflated_view
from nsdcap.plots_run import DPI, NORMAL, SMALL, WIDTH, Figure, Run, open_run

__all__ = ["Run", "draw_best_layers", "draw_cortex", "draw_gain", "open_run", "significant"]

VIEW_TITLES = {"behind": "inflated, from behind", "below": "from below", "flat": "flat map"}
FOLDS = "Light grey: ridges of the cortex, dark grey: furrows."
OF_FLAT = " (the back of the brain in the middle, up is up)"
ON_CORTEX = {
    ("behind", "below"): "on the inflated fsaverage5, from behind and from below (front down)",
    ("flat",): f"on the flat map of fsaverage5, its posterior part{OF_FLAT}",
    (
        "behind",
        "below",
        "flat",
    ): "on fsaverage5: inflated, from behind and from below (front down), "
    f"and on its flat map, the posterior part{OF_FLAT}",
}
PROJECTIONS = {"side": (0, "from the side,\nfront to the right"), "back": (1, "from behind"),
               "top": (2, "from above")}  # fmt: skip


@dataclass(frozen=True)
class Scale:
    """How numbers become colours, the same for all subjects of a figure."""

    colours: Any
    limits: tuple[float, float]
    unit: str
    ticks: list[int] | None = None  # of numbers that stand for kinds: these are not averaged


@dataclass(frozen=True)
class Maps:
    """A figure of maps; ``text``: its caption, with {how} for how it is drawn and {counts}."""

    number: int
    names: dict[str, str]  # a map's name on disk -> its title
    scale: Scale
    views: Mapping[str, tuple[str, ...]]  # a figure's name -> the sides it shows of the cortex
    volume: str  # the name of the figure of those who have no surface
    text: str
    counts: dict[int, str]  # of each subject's voxels, in words
    alt: str


def significant(run: Run, subject: int, feature: str) -> np.ndarray:
    """Where a map's q is below 0.05, (X, Y, Z) bool; ``feature``: z_v, z_B or gain."""
    with np.errstate(invalid="ignore"):
        return run.volume(subject, f"{feature}_q") < 0.05


def shown_volume(run: Run, subject: int, name: str) -> np.ndarray:
    """A map's significant voxels, (X, Y, Z), NaN elsewhere."""
    values = run.volume(subject, name)
    if name.startswith("best_layer"):  # is only where it is significant
        return values
    return np.where(significant(run, subject, name.removesuffix("_r")), values, np.nan)


def r_scale(run: Run) -> Scale:
    """Of z_v_r and z_B_r."""
    return Scale(_colours("inferno"), (0.0, _highest(run, ["z_v_r", "z_B_r"], 0.05)), "Pearson r")


def gain_scale(run: Run) -> Scale:
    """Of gain."""
    return Scale(_colours("inferno"), (0.0, _highest(run, ["gain"], 0.01)), "R²(joint) − R²(z_v)")


def best_layer_scale(run: Run) -> Scale:
    """Of best_layer and best_layer_r: a colour a layer."""
    layers = run.about["layers"]
    limits = (min(layers) - 0.5, max(layers) + 0.5)
    colours = _colours("magma").resampled(len(layers))
    return Scale(colours, limits, "BERT layer (0: embeddings)", layers)


def draw_cortex(run: Run) -> Iterator[tuple[Any, Figure]]:
    """Figure 5: where z_v and z_B predict the brain."""
    where = run.about["z_B_map"]
    names = {"z_v_r": "z_v", "z_B_r": f"z_B, layer {where['layer']}, {where['phase']}"}
    scale = r_scale(run)
    text = (
        f"Where z_v and z_B (layer {where['layer']}, {where['phase']} in the caption, fixed "
        "beforehand) predict held out responses, {how}. Significant voxels only (permutation of "
        "pictures, FDR 0.05): {counts}."
    )
    alt = (
        "Maps of the prediction's correlation for each subject, z_v beside z_B. Numbers by stream "
        "are in the table of encoding results."
    )
    views = {"fig5_cortex": ("behind", "below"), "fig5_flat": ("flat",)}
    counts = _counts(run, {"z_v": "z_v", "z_B": "z_B"})
    yield from _maps(run, Maps(5, names, scale, views, "fig5_volume", text, counts, alt))


def draw_best_layers(run: Run) -> Iterator[tuple[Any, Figure]]:
    """Figure 7: the BERT layer of the best joint model, by r as in the paper and by its gain over z_v."""
    names = {"best_layer_r": "by r of z_v and z_B", "best_layer": "by gain over z_v"}
    scale = best_layer_scale(run)
    counts = {}
    for s in run.subjects:
        by_r, by_gain = (int(np.isfinite(run.volume(s, name)).sum()) for name in names)
        counts[s] = (
            f"subject {s}: by r {by_r}, by gain {by_gain} of {run.counts(s)['n_voxels']} voxels"
        )
    text = (
        "The BERT layer of the best joint model of z_v and z_B, all phases, {how}. By r, as in the paper: "
        "its z_v counts in every layer, so differences are small. By gain: the layer that adds most to "
        "z_v. Only voxels that are significant in any of the models (Simes over layers and phases, FDR "
        "0.05): {counts}. A single voxel's layer is unreliable."
    )
    alt = "Maps of the best BERT layer for each subject; means by stream are in the chart beside them."
    views = {"fig7_best_layer": ("behind", "below"), "fig7_flat": ("flat",)}
    yield from _maps(run, Maps(7, names, scale, views, "fig7_volume", text, counts, alt))


def draw_gain(run: Run) -> Iterator[tuple[Any, Figure]]:
    """Figure 8: what z_B adds to z_v."""
    where = run.about["z_B_map"]
    names = {"gain": "gain of z_B"}
    scale = gain_scale(run)
    text = (
        "What z_B adds to z_v: R² of the joint model less that of z_v alone, test pictures, layer "
        f"{where['layer']}, {where['phase']} in the caption, fixed beforehand, "
        "{how}. Only voxels whose gain is significant (paired t over pictures, FDR 0.05): {counts}."
    )
    alt = "Maps of the gain of z_B over z_v for each subject."
    views = {"fig8_gain": ("behind", "below", "flat")}
    counts = _counts(run, {"gain": ""})
    yield from _maps(run, Maps(8, names, scale, views, "fig8_volume", text, counts, alt))


def _maps(run: Run, maps: Maps) -> Iterator[tuple[Any, Figure]]:
    """Figures on the cortex, one for each of the views, and one of those who have no surface."""
    on_surface = [s for s in run.subjects if s in run.about["on_surface"]]
    others = [s for s in run.subjects if s not in on_surface]
    without = f"ubject{'s' * (len(others) > 1)} {', '.join(map(str, others))}"
    for name, sides in maps.views.items() if on_surface else ():
        canvas = surface_grid(run, on_surface, maps.names, maps.scale, sides)
        how = ON_CORTEX[sides]
        if maps.scale.ticks is None:
            how += ", colours from vertex to vertex interpolated"
        words = maps.text.format(how=how, counts="; ".join(maps.counts[s] for s in on_surface))
        if others:
            words += f" S{without}: no surface, see the projections of the volume."
        yield canvas, Figure(name, maps.number, f"{words} {FOLDS}", maps.alt)
    if others:
        canvas = volume_grid(run, others, maps.names, maps.scale)
        how = (
            f"as the {'mean' if maps.scale.ticks else 'highest value'} along each axis of the volume, "
            f"as the transforms to the surface are missing for s{without}"
        )
        words = maps.text.format(how=how, counts="; ".join(maps.counts[s] for s in others))
        yield canvas, Figure(maps.volume, maps.number, words, maps.alt)


def surface_grid(
    run: Run, subjects: list[int], names: dict[str, str], scale: Scale, sides: tuple[str, ...]
) -> Any:
    """A row a subject; for each map its views, left and right hemisphere side by side."""
    widths = [_view(side, hemi, 100).grey.shape[1] / 200 for side in sides for hemi in HEMIS]
    room = WIDTH - 0.3 - len(names) * (0.06 * len(widths) + 0.15)
    height = int(min(room / (len(names) * sum(widths)), 1.5) * DPI)
    cells, left = [], 0.28 * DPI  # (map, view, hemisphere, x, width) in pixels
    for name in names:
        for side in sides:
            for hemi in HEMIS:
                width = _view(side, hemi, height).grey.shape[1] // 2
                cells.append((name, side, hemi, left, width))
                left += width + 0.03 * DPI
            left += 0.06 * DPI
        left += 0.15 * DPI
    left -= 0.24 * DPI
    grid = _Grid(left, len(subjects), height, 0.62 if len(names) > 1 else 0.45)
    for name, title in names.items():
        inside = [c for c in cells if c[0] == name]
        if len(names) > 1:
            grid.head(inside[0][3], inside[-1][3] + inside[-1][4], title, 0.5, bold=True)
        for side in sides:
            pair = [c for c in inside if c[1] == side]
            grid.head(pair[0][3], pair[-1][3] + pair[-1][4], VIEW_TITLES[side], 0.3)
            for _, _, hemi, x, width in pair:
                grid.head(x, x + width, HEMIS[hemi], 0.14)
    for row, subject in enumerate(subjects):
        for name, side, hemi, x, width in cells:
            values = run.surface(subject, name, hemi)
            if values.shape != (10242,):
                raise DataError(
                    f"{run.target}/maps: {name} of subject {subject}, {hemi}: found {values.shape}, "
                    "expected (10242,), fsaverage5; run the aggregate stage again"
                )
            view = _view(side, hemi, height)
            picture = view.paint(values, scale.colours, scale.limits, mean=scale.ticks is None)
            grid.picture(row, x, width, height, picture)
        grid.label(row, f"subject {subject}")
    return grid.with_bar(scale)


def volume_grid(run: Run, subjects: list[int], names: dict[str, str], scale: Scale) -> Any:
    """A row a subject; each map along x, y and z: the highest value, or of kinds the mean."""
    volumes = {(s, name): shown_volume(run, s, name) for s in subjects for name in names}
    shape = np.max([volume.shape for volume in volumes.values()], axis=0)
    room = (WIDTH - 0.3) / len(names) - 0.4
    scaled = min(room / (shape[1] + 2 * shape[0]), 1.2 / max(shape)) * DPI  # pixels a voxel
    height = scaled * max(shape[2], shape[1])
    cells, left = [], 0.28 * DPI
    for name in names:
        for axis, _ in PROJECTIONS.values():
            width = scaled * (shape[1] if axis == 0 else shape[0])
            cells.append((name, axis, left, width))
            left += width + 0.08 * DPI
        left += 0.1 * DPI
    grid = _Grid(left, len(subjects), height, 0.72)
    for name, title in names.items():
        inside = [c for c in cells if c[0] == name]
        grid.head(inside[0][2], inside[-1][2] + inside[-1][3], title, 0.6, bold=True)
        for (_, _, x, width), (axis, words) in zip(inside, PROJECTIONS.values(), strict=True):
            sides = words if axis == 0 else f"{words}\nleft     right"
            grid.head(x, x + width, sides, 0.3)
    for row, subject in enumerate(subjects):
        for name, axis, x, width in cells:
            plane = _project(volumes[subject, name], axis, mean=scale.ticks is not None)
            ax = grid.axes(row, x, width, scaled * (shape[1] if axis == 2 else shape[2]))
            ax.imshow(
                plane.T, origin="lower", cmap=scale.colours, vmin=scale.limits[0],
                vmax=scale.limits[1], interpolation="nearest",
            )  # fmt: skip
            ax.set(xticks=[], yticks=[], facecolor="#eeeeee")
            ax.spines[:].set_visible(False)
        grid.label(row, f"subject {subject}")
    return grid.with_bar(scale)


def _project(volume: np.ndarray, axis: int, mean: bool) -> np.ndarray:
    """(X, Y, Z) along one axis; NaN where nothing is."""
    known = np.isfinite(volume)
    if mean:
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(known, volume, 0).sum(axis) / known.sum(axis)
    highest = np.where(known, volume, -np.inf).max(axis)
    return np.where(np.isfinite(highest), highest, np.nan)


class _Grid:
    """Rows of pictures at exact pixels, titles above, a colour bar below; pixels of DPI."""

    def __init__(self, width: float, rows: int, height: float, head: float):
        import matplotlib.pyplot as plt

        self.rows, self.height = rows, height + 0.08 * DPI
        self.top = head * DPI
        self.size = width, self.top + rows * self.height + 0.5 * DPI
        self.canvas = plt.figure(figsize=(self.size[0] / DPI, self.size[1] / DPI))
        self.page = self.canvas.add_axes((0, 0, 1, 1))
        self.page.set_axis_off()

    def axes(self, row: int, x: float, width: float, height: float) -> Any:
        y = self.size[1] - self.top - row * self.height - self.height / 2 - height / 2
        box = (x / self.size[0], y / self.size[1], width / self.size[0], height / self.size[1])
        return self.canvas.add_axes(box)

    def picture(self, row: int, x: float, width: float, height: float, picture: np.ndarray) -> None:
        y = round(self.size[1] - self.top - row * self.height - self.height / 2 - height / 2)
        box = (round(x), round(x) + width, y, y + height)
        self.page.imshow(picture, extent=box, interpolation="none", aspect="auto")

    def head(self, low: float, high: float, text: str, above: float, bold: bool = False) -> None:
        x, y = (low + high) / 2 / self.size[0], 1 - (self.top - above * DPI) / self.size[1]
        size, weight = (NORMAL + 1, "bold") if bold else (SMALL, "normal")
        self.canvas.text(x, y, text, ha="center", va="top", fontsize=size, weight=weight)

    def label(self, row: int, text: str) -> None:
        y = 1 - (self.top + (row + 0.5) * self.height) / self.size[1]
        x = 0.12 * DPI / self.size[0]
        self.canvas.text(x, y, text, rotation=90, ha="center", va="center", fontsize=NORMAL)

    def with_bar(self, scale: Scale) -> Any:
        """The figure, its colour bar drawn."""
        import matplotlib as mpl

        width = min(2.4 * DPI, self.size[0] * 0.8)
        box = (
            (self.size[0] - width) / 2 / self.size[0], 0.38 * DPI / self.size[1],
            width / self.size[0], 0.09 * DPI / self.size[1],
        )  # fmt: skip
        self.page.set(xlim=(0, self.size[0]), ylim=(0, self.size[1]))
        mapped = mpl.cm.ScalarMappable(mpl.colors.Normalize(*scale.limits), scale.colours)
        bar = self.canvas.colorbar(
            mapped, cax=self.canvas.add_axes(box), ticks=scale.ticks, orientation="horizontal"
        )
        bar.set_label(scale.unit, fontsize=NORMAL, labelpad=2)
        bar.outline.set_visible(False)
        return self.canvas


def _view(side: str, hemi: str, height: int) -> Any:
    return flat_view(hemi, height) if side == "flat" else inflated_view(hemi, side, height)


def _colours(name: str) -> Any:
    import matplotlib as mpl

    return mpl.colormaps[name]


def _highest(run: Run, names: list[str], least: float) -> float:
    """Upper end of a scale that all subjects share: 99.5 % of what is shown lies below."""
    values = [shown_volume(run, s, name) for s in run.subjects for name in names]
    found = np.concatenate([x[np.isfinite(x)] for x in values])
    return max(float(np.quantile(found, 0.995)) if len(found) else 0.0, least)


def _counts(run: Run, features: dict[str, str]) -> dict[int, str]:
    """Significant voxels of each subject in words."""
    parts = {}
    for s in run.subjects:
        found = ", ".join(
            f"{title} {significant(run, s, f).sum()}".strip() for f, title in features.items()
        )
        parts[s] = f"subject {s}: {found} of {run.counts(s)['n_voxels']} voxels"
    return parts
