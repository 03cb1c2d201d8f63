"""Maps of a run drawn on the flattened cortex, or, without surface transforms, through the volume."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from nsdcap.errors import DataError
from nsdcap.maps import read_surface, read_volume

# flat maps are cut here: in front of it there is no visual cortex (mm on nilearn's flat fsaverage5)
POSTERIOR = 20.0


@dataclass(frozen=True)
class Run:
    """A run on disk: the folder of all stages, that of the tables, and run.json."""

    out: Path
    target: Path
    about: dict[str, Any]

    @property
    def subjects(self) -> list[int]:
        return self.about["subjects"]

    def table(self, name: str) -> list[dict[str, str]]:
        with (self.target / "tables" / f"{name}.csv").open(encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def volume(self, subject: int, name: str) -> np.ndarray:
        """A map (X, Y, Z) float64, NaN outside: see ``maps.read_volume``."""
        return read_volume(self.target, self.about, subject, name)

    def surface(self, subject: int, name: str, hemi: str) -> np.ndarray:
        """A map's significant values on fsaverage5, (10242,), NaN elsewhere: see ``maps.SHOWN``."""
        return read_surface(self.target, subject, name, hemi)


def open_run(out: Path, target: Path) -> Run:
    """Raises DataError where there are no tables yet."""
    try:
        return Run(out, target, json.loads((target / "run.json").read_text()))
    except OSError as error:
        raise DataError(f"{target}: has no run.json; run the aggregate stage first") from error


def significant(run: Run, subject: int, feature: str) -> np.ndarray:
    """Where a map's q is below 0.05, (X, Y, Z) bool; ``feature``: z_v or z_B."""
    with np.errstate(invalid="ignore"):
        return run.volume(subject, f"{feature}_q") < 0.05


def map_rows(
    run: Run,
    names: dict[str, str],
    colours: Any,
    limits: tuple[float, float],
    unit: str,
    ticks: list[int] | None = None,
) -> tuple[Any, str]:
    """A row a subject, maps beside each other: flat if all subjects have surfaces, else volumes.

    names: a map's name on disk -> its title. Returns the figure and, in words, how it is drawn.
    """
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    flat = run.about["on_surface"] == run.subjects
    per_map = 2 if flat else 3
    canvas, axes = plt.subplots(
        len(run.subjects), per_map * len(names), squeeze=False, layout="constrained",
        figsize=(1.6 * per_map * len(names) + 1.0, 2.0 * len(run.subjects) + 0.5),
    )  # fmt: skip
    meshes = _flat_meshes() if flat else {}
    for row, subject in zip(axes, run.subjects, strict=True):
        for k, (name, title) in enumerate(names.items()):
            cells = row[k * per_map : (k + 1) * per_map]
            if flat:
                for ax, (hemi, mesh) in zip(cells, meshes.items(), strict=True):
                    _flat_map(ax, mesh, run.surface(subject, name, hemi), colours, limits)
                    side = "left" if hemi == "lh" else "right"
                    ax.set_title(f"{title}\n{side} hemisphere", fontsize=8)
            else:
                values = run.volume(subject, name)
                if name.endswith("_r"):
                    shown = significant(run, subject, name.removesuffix("_r"))
                    values = np.where(shown, values, np.nan)
                _projections(cells, values, colours, limits, title)
        row[0].set_ylabel(f"subject {subject}", fontsize=9)
    scale = mpl.cm.ScalarMappable(mpl.colors.Normalize(*limits), colours)
    bar = canvas.colorbar(scale, ax=axes, shrink=0.8, label=unit, ticks=ticks, pad=0.02)
    bar.outline.set_visible(False)
    if flat:
        return canvas, "on the flat map of fsaverage5, its posterior part"
    return canvas, "as the highest value along each axis of the volume (not all have surfaces)"


def _flat_meshes() -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """fsaverage5 as nilearn ships it: flat (10242, 2), faces (n, 3), sulcal depth (10242,)."""
    from nilearn.datasets import fetch_surf_fsaverage

    files, meshes = fetch_surf_fsaverage("fsaverage5"), {}
    for hemi, side, back in (("lh", "left", 1), ("rh", "right", -1)):
        flat: Any = nib.load(files[f"flat_{side}"])
        sulci: Any = nib.load(files[f"sulc_{side}"])
        xy = flat.darrays[0].data[:, :2]
        faces = flat.darrays[1].data
        # the occipital pole lies to the right of the left hemisphere's flat map, and the reverse
        faces = faces[(back * xy[faces, 0] > POSTERIOR).all(1)]
        meshes[hemi] = (xy, faces, sulci.darrays[0].data)
    return meshes


def _flat_map(
    ax: Any,
    mesh: tuple[np.ndarray, np.ndarray, np.ndarray],
    values: np.ndarray,
    colours: Any,
    limits: tuple[float, float],
) -> None:
    """Values (10242,) over the grey folds; a face is drawn where two of its corners have values."""
    xy, faces, sulci = mesh
    x, y = xy.T
    ax.tripcolor(
        x,
        y,
        faces,
        np.tanh(sulci[faces].mean(1)),
        cmap="Greys",
        vmin=-2.5,
        vmax=4.0,
        rasterized=True,
    )
    corners = values[faces]
    use = np.isfinite(corners).sum(1) >= 2
    if use.any():
        drawn = np.nanmedian(corners[use], axis=1)
        ax.tripcolor(
            x, y, faces[use], drawn, cmap=colours, vmin=limits[0], vmax=limits[1], rasterized=True
        )
    used = np.unique(faces)
    ax.set(xlim=(x[used].min(), x[used].max()), ylim=(y[used].min(), y[used].max()))
    ax.set(xticks=[], yticks=[], aspect="equal")
    ax.spines[:].set_visible(False)


def _projections(
    cells: Any, values: np.ndarray, colours: Any, limits: tuple[float, float], title: str
) -> None:
    """The highest value along x, y and z; axes as in the volume."""
    filled = np.where(np.isfinite(values), values, -np.inf)
    for axis, (ax, view) in enumerate(zip(cells, ("side", "back", "top"), strict=True)):
        plane = filled.max(axis)
        plane = np.where(np.isfinite(plane), plane, np.nan)
        ax.imshow(plane.T, origin="lower", cmap=colours, vmin=limits[0], vmax=limits[1])
        ax.set_facecolor("#eeeeee")
        ax.set_title(f"{title}\n{view}", fontsize=8)
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
