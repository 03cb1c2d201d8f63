"""The miniature's cortex: the back of fsaverage5, two fifths of human size, on a grid of 1.8 mm.

fsaverage5 comes with nilearn, so nothing is fetched. Streams are laid out on fsaverage by distance
along the cortex from the calcarine sulcus; each subject has its own turn, shift and order of
vertices, and its voxels are those that its half-way surface runs through.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import nibabel as nib
import numpy as np
from scipy.ndimage import binary_closing, binary_dilation, binary_fill_holes
from scipy.sparse import coo_array
from scipy.sparse.csgraph import dijkstra
from scipy.spatial import cKDTree

HEMIS = ("lh", "rh")
STREAMS = {
    "early": 1,
    "midventral": 2,
    "midlateral": 3,
    "midparietal": 4,
    "ventral": 5,
    "lateral": 6,
    "parietal": 7,
}
PRF_ROIS = ("V1v", "V1d", "V2v", "V2d", "V3v", "V3d", "hV4")
DEPTHS = (0.25, 0.5, 0.75)  # of layers B1 to B3, from white to pial
VOXEL = 1.8  # mm
SHRINK = 0.4  # a head of two fifths, so that 1.8 mm voxels are as coarse to it as 4.5 mm to ours
NO_DATA = 9999.0

_CALCARINE = np.array([(8, -98, -4), (8, -90, 0), (9, -82, 4), (11, -74, 8)], dtype=float)  # mm
_EARLY, _MID = 38.0, 55.0  # mm along the cortex at which these streams end
_LOW, _HIGH = -6.0, 18.0  # mm: ventral below, parietal above


@dataclass(frozen=True)
class Hemisphere:
    """One hemisphere of fsaverage5 and the areas drawn on it. V = 10,242 vertices."""

    surfaces: dict[str, np.ndarray]  # white, pial, inflated, sphere, flat: (V, 3) mm
    faces: dict[str, np.ndarray]  # the same names: (F, 3); flat has fewer
    sulc: np.ndarray  # (V,)
    stream: np.ndarray  # (V,) 0 to 7
    prf: np.ndarray  # (V,) 0 to 7, see PRF_ROIS
    upper: np.ndarray  # (V,) bool: below the calcarine sulcus, so it sees the upper field
    behind: np.ndarray  # (V,) bool: within the miniature's volume


@dataclass(frozen=True)
class Anatomy:
    """One subject's cortex. Voxel arrays are in C order of (x, y, z), N cortical voxels."""

    shape: tuple[int, int, int]
    affine: np.ndarray  # (4, 4) voxel -> mm
    surfaces: dict[str, dict[str, np.ndarray]]  # hemi -> name -> (V, 3) mm, the subject's order
    faces: dict[str, np.ndarray]  # hemi -> (F, 3)
    sulc: dict[str, np.ndarray]  # hemi -> (V,)
    layers: dict[str, list[np.ndarray]]  # hemi -> depth -> (V, 3) 1-based, NO_DATA where none
    to_fsaverage: dict[str, np.ndarray]  # hemi -> (V,) 1-based index of the subject's vertex
    xyz: np.ndarray  # (N, 3) cortical voxels
    hemi: np.ndarray  # (N,) 0 left, 1 right
    stream: np.ndarray  # (N,) 0 to 7
    prf: np.ndarray  # (N,) 0 to 7
    upper: np.ndarray  # (N,) bool
    brain: np.ndarray  # (X, Y, Z) bool brain mask


@lru_cache(maxsize=1)
def fsaverage5() -> dict[str, Hemisphere]:
    """Both hemispheres, "lh" and "rh", with streams and retinotopic areas."""
    from nilearn.datasets import fetch_surf_fsaverage

    files = fetch_surf_fsaverage("fsaverage5")
    names = {"white": "white", "pial": "pial", "inflated": "infl", "sphere": "sphere"}
    names["flat"] = "flat"
    hemis = {}
    for hemi, side, sign in (("lh", "left", -1.0), ("rh", "right", 1.0)):
        surfaces, faces = {}, {}
        for name, key in names.items():
            points, triangles = _gifti(files[f"{key}_{side}"])[:2]
            surfaces[name] = points.data.astype(np.float64)
            faces[name] = triangles.data.astype(np.int32)
        sulc = _gifti(files[f"sulc_{side}"])[0].data.astype(np.float32)
        middle = (surfaces["white"] + surfaces["pial"]) / 2
        far, height = _calcarine_distance(middle, faces["white"], sign)
        y, z = middle[:, 1], middle[:, 2]
        visual = (y < -55) | ((y < -35) & (z < _LOW))
        stream = np.where(far < _EARLY, 1, 0)
        level = np.where(z < _LOW, 0, np.where(z > _HIGH, 2, 1))  # ventral, lateral, parietal
        stream = np.where(far >= _EARLY, 2 + level, stream)
        stream = np.where(far >= _MID, 5 + level, stream) * visual
        upper = height < 0
        ring = np.digitize(far, [0.4 * _EARLY, 0.7 * _EARLY])  # V1, V2, V3
        prf = np.where(stream == 1, 1 + 2 * ring + ~upper, 0)
        prf = np.where(stream == STREAMS["midventral"], 7, prf)
        behind = visual | (y < -50)
        hemis[hemi] = Hemisphere(surfaces, faces, sulc, stream, prf, upper, behind)
    return hemis


def _gifti(path: str) -> Any:
    """The data arrays of a GIFTI file."""
    image: Any = nib.load(path)
    return image.darrays


def _calcarine_distance(
    points: np.ndarray, faces: np.ndarray, sign: float
) -> tuple[np.ndarray, np.ndarray]:
    """Distance along the mesh from the calcarine sulcus, and height above it, both (V,) mm."""
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [0, 2]]])
    edges = np.unique(np.sort(edges, axis=1), axis=0)
    lengths = np.linalg.norm(points[edges[:, 0]] - points[edges[:, 1]], axis=1)
    graph = coo_array((lengths, edges.T), shape=(len(points), len(points))).tocsr()
    line = _CALCARINE * (sign, 1, 1)
    seeds = cKDTree(points).query(line)[1]
    far = dijkstra(graph, directed=False, indices=np.unique(seeds), min_only=True)
    floor = np.interp(points[:, 1], line[:, 1], line[:, 2])
    return far, points[:, 2] - floor


def subject_anatomy(rng: np.random.Generator) -> Anatomy:
    """One subject: fsaverage5 turned by some degrees, shifted, shrunk, its vertices shuffled."""
    average = fsaverage5()
    turn, shift = _rotation(rng.normal(0, np.deg2rad(2.0), 3)), rng.normal(0, 2.0, 3)
    surfaces: dict[str, dict[str, np.ndarray]] = {}
    faces, sulc, to_average, areas = {}, {}, {}, {}
    for hemi in HEMIS:
        one = average[hemi]
        n = len(one.sulc)
        order = rng.permutation(n)  # the subject's vertex i is fsaverage's order[i]
        place = np.argsort(order)
        moved = {k: one.surfaces[k] for k in ("inflated", "sphere")}
        for name in ("white", "pial"):
            moved[name] = (one.surfaces[name] @ turn.T + shift) * SHRINK
        surfaces[hemi] = {name: points[order] for name, points in moved.items()}
        faces[hemi] = place[one.faces["white"]].astype(np.int32)
        sulc[hemi] = one.sulc[order]
        to_average[hemi] = place + 1
        areas[hemi] = {k: getattr(one, k)[order] for k in ("stream", "prf", "upper", "behind")}

    # a volume around the half-way surface of the back of the brain, with room at its borders
    middle = {h: (surfaces[h]["white"] + surfaces[h]["pial"]) / 2 for h in HEMIS}
    points = np.concatenate([middle[h][areas[h]["behind"]] for h in HEMIS])
    origin = np.floor(points.min(0) / VOXEL) * VOXEL - 2 * VOXEL
    shape = tuple(int(n) for n in np.ceil((points.max(0) - origin) / VOXEL) + 3)
    affine = np.diag([VOXEL, VOXEL, VOXEL, 1.0])
    affine[:3, 3] = origin

    layers = {h: _layers(surfaces[h], areas[h]["behind"], origin, shape) for h in HEMIS}
    at = np.concatenate([(middle[h][areas[h]["behind"]] - origin) / VOXEL for h in HEMIS])
    xyz = np.unique(np.rint(at).astype(np.int64), axis=0)  # sorted by x, y, z: C order
    nearest = cKDTree(at).query(xyz)[1]
    voxel = {
        k: np.concatenate([areas[h][k][areas[h]["behind"]] for h in HEMIS])[nearest]
        for k in ("stream", "prf", "upper")
    }
    side = np.repeat([0, 1], [int(areas[h]["behind"].sum()) for h in HEMIS])[nearest]

    cortex = np.zeros(shape, dtype=bool)
    cortex[tuple(xyz.T)] = True
    brain = binary_fill_holes(binary_closing(binary_dilation(cortex), iterations=2)) | cortex
    return Anatomy(
        (shape[0], shape[1], shape[2]),
        affine,
        surfaces,
        faces,
        sulc,
        layers,
        to_average,
        xyz,
        side,
        voxel["stream"],
        voxel["prf"],
        voxel["upper"],
        brain,
    )


def _layers(
    surfaces: dict[str, np.ndarray], behind: np.ndarray, origin: np.ndarray, shape: tuple[int, ...]
) -> list[np.ndarray]:
    """The 1-based volume coordinates (V, 3) of three depths, NO_DATA outside the volume."""
    found = []
    for depth in DEPTHS:
        points = (1 - depth) * surfaces["white"] + depth * surfaces["pial"]
        at = (points - origin) / VOXEL
        inside = behind & np.all((at >= 0) & (at <= np.array(shape) - 1), axis=1)
        found.append(np.where(inside[:, None], at + 1, NO_DATA))
    return found


def _rotation(angles: np.ndarray) -> np.ndarray:
    """(3, 3) rotation about x, then y, then z, by ``angles`` in radians."""
    turn = np.eye(3)
    for axis, angle in enumerate(angles):
        i, j = [(1, 2), (2, 0), (0, 1)][axis]
        step = np.eye(3)
        step[[i, j], [i, j]] = np.cos(angle)
        step[i, j], step[j, i] = -np.sin(angle), np.sin(angle)
        turn = step @ turn
    return turn
