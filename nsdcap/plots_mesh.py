"""fsaverage5 as nilearn ships it, seen from some side: which vertices lie under each pixel.

The mesh is the same for all subjects and maps, so a view is found once, and then a map is a look-up.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import nibabel as nib
import numpy as np

HEMIS = {"lh": "left", "rh": "right"}
FINE = 2  # pixels are averaged over FINE x FINE
# flat maps are cut here: in front of it there is no visual cortex (mm on nilearn's flat fsaverage5)
POSTERIOR = 20.0
# camera of the inflated surfaces: degrees from behind towards the right (of the right hemisphere; the
# left one's is mirrored), and degrees above the horizon
VIEWS = {"behind": (48.0, 4.0), "below": (-20.0, -58.0)}
_LIGHT, _DARK = 0.86, 0.62  # grey of ridges and furrows


@dataclass(frozen=True)
class View:
    """A hemisphere from one side: h x w pixels."""

    corner: np.ndarray  # (h, w, 3) int: the vertices of the face that is seen; 0 where none
    weight: np.ndarray  # (h, w, 3) float32: their shares, sum 1; 0 where no face is seen
    grey: np.ndarray  # (h, w) float32 folds and light, 1 where no face is seen

    def at_pixels(self, values: np.ndarray, mean: bool = True) -> np.ndarray:
        """Values (V,), NaN where there is none, at the pixels: (h, w) float64, NaN where not shown.

        A pixel shows a value where more than half of it belongs to vertices that have one: their mean,
        or (for numbers that stand for kinds) the nearest one's.
        """
        found = np.asarray(values, dtype=np.float64)[self.corner]
        weight = np.where(np.isfinite(found), self.weight, 0.0)
        share = weight.sum(2)
        if mean:
            with np.errstate(invalid="ignore", divide="ignore"):
                shown = np.nansum(found * weight, axis=2) / share
        else:
            shown = np.take_along_axis(found, weight.argmax(2)[..., None], 2)[..., 0]
        return np.where(share > 0.5, shown, np.nan)

    def paint(
        self, values: np.ndarray, colours: Any, limits: tuple[float, float], mean: bool = True
    ) -> np.ndarray:
        """Values (V,) in ``colours`` over the grey folds, white around: (h, w, 3) uint8, FINE times less."""
        shown = self.at_pixels(values, mean)
        low, high = limits
        scaled = np.clip((shown - low) / (high - low), 0, 1)
        rgb = np.where(
            np.isfinite(shown)[..., None], colours(scaled)[..., :3], self.grey[..., None]
        )
        h, w = (side // FINE for side in rgb.shape[:2])
        small = rgb[: h * FINE, : w * FINE].reshape(h, FINE, w, FINE, 3).mean((1, 3))
        return (small * 255).round().astype(np.uint8)


@dataclass(frozen=True)
class Hemisphere:
    """One hemisphere of fsaverage5, V = 10,242 vertices."""

    inflated: np.ndarray  # (V, 3) mm
    faces: np.ndarray  # (20480, 3)
    flat: np.ndarray  # (V, 3) mm
    flat_faces: np.ndarray  # (F, 3), those of the posterior part
    sulc: np.ndarray  # (V,) depth


@lru_cache(maxsize=1)
def fsaverage5() -> dict[str, Hemisphere]:
    """Both hemispheres, lh and rh, as nilearn ships them."""
    from nilearn.datasets import fetch_surf_fsaverage

    files, found = fetch_surf_fsaverage("fsaverage5"), {}
    for hemi, side in HEMIS.items():
        (inflated, faces), (flat, flat_faces), (sulc,) = (
            [array.data for array in _gifti(files[f"{name}_{side}"])]
            for name in ("infl", "flat", "sulc")
        )
        # the occipital pole lies to the right of the left hemisphere's flat map, and the reverse
        back = flat[:, 0] if hemi == "lh" else -flat[:, 0]
        flat_faces = flat_faces[(back[flat_faces] > POSTERIOR).all(1)]
        found[hemi] = Hemisphere(inflated, faces, flat, flat_faces, sulc)
    return found


def _gifti(path: str) -> Any:
    image: Any = nib.load(path)
    return image.darrays


@lru_cache(maxsize=8)
def flat_view(hemi: str, height: int) -> View:
    """The posterior part of the flat map, ``height`` pixels high."""
    mesh = fsaverage5()[hemi]
    return _view(mesh.flat * (1, 1, 0), mesh.flat_faces, mesh.sulc, np.eye(3), height)


@lru_cache(maxsize=8)
def inflated_view(hemi: str, name: str, height: int) -> View:
    """The inflated surface from a side in VIEWS, ``height`` pixels high."""
    mesh = fsaverage5()[hemi]
    azimuth, elevation = np.deg2rad(VIEWS[name])
    azimuth *= 1 if hemi == "rh" else -1
    towards = np.array([
        np.sin(azimuth) * np.cos(elevation), -np.cos(azimuth) * np.cos(elevation), np.sin(elevation),
    ])  # fmt: skip
    right = np.array([np.cos(azimuth), np.sin(azimuth), 0.0])
    camera = np.stack([right, np.cross(towards, right), towards])
    return _view(mesh.inflated, mesh.faces, mesh.sulc, camera, height)


def fold_grey(sulc: np.ndarray) -> np.ndarray:
    """The grey (V,) of the folds, 0 black to 1 white, from their depth (V,)."""
    return (_LIGHT + _DARK) / 2 - np.tanh(1.5 * sulc) * (_LIGHT - _DARK) / 2


def _view(
    points: np.ndarray, faces: np.ndarray, sulc: np.ndarray, camera: np.ndarray, height: int
) -> View:
    """``camera`` (3, 3): the directions to the right, up and towards the eye, in rows."""
    from PIL import Image, ImageDraw

    seen = points @ camera.T  # (V, 3)
    used = seen[np.unique(faces)]
    low, high = used[:, :2].min(0), used[:, :2].max(0)
    scale = (height * FINE - 1) / (high[1] - low[1])
    x = (seen[:, 0] - low[0]) * scale
    y = (high[1] - seen[:, 1]) * scale
    xy = np.stack([x, y], 1)
    a, b, c = (seen[faces[:, k]] for k in range(3))
    normal = np.cross(b - a, c - a)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    front = np.flatnonzero(normal[:, 2] > 0)
    front = front[np.argsort(seen[faces[front], 2].mean(1), kind="stable")]  # the nearest last
    size = (int(np.ceil((high[0] - low[0]) * scale)) + 1, height * FINE)
    image = Image.new("I", size, 0)
    draw = ImageDraw.Draw(image)
    for k in front:
        draw.polygon(xy[faces[k]].ravel().tolist(), fill=int(k) + 1)
    face = np.asarray(image) - 1  # (h, w)
    inside = face >= 0
    corner = np.where(inside[..., None], faces[face], 0)
    weight = np.where(inside[..., None], _shares(xy[corner]), 0.0)
    light = np.where(inside, 0.8 + 0.2 * normal[face][..., 2], 1.0)
    grey = np.where(inside, (fold_grey(sulc)[corner] * weight).sum(2) * light, 1.0)
    return View(corner, weight.astype("f4"), grey.astype("f4"))


def _shares(corners: np.ndarray) -> np.ndarray:
    """Barycentric coordinates (h, w, 3) of each pixel in its triangle (h, w, 3, 2)."""
    h, w = corners.shape[:2]
    pixel = np.stack(np.meshgrid(np.arange(w), np.arange(h)), -1)[:, :, None]
    a, b, c = (corners[:, :, k] - pixel[:, :, 0] for k in range(3))
    areas = np.stack([_cross(b, c), _cross(c, a), _cross(a, b)], -1)
    total = areas.sum(-1, keepdims=True)
    areas = np.clip(
        areas / np.where(total == 0, 1, total), 0, None
    )  # a border pixel may lie outside
    return areas / np.maximum(areas.sum(-1, keepdims=True), 1e-12)


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]
