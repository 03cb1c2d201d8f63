"""Maps of encoding results: NIfTI in the subject's volume, MGZ on fsaverage, and what figures read.

::

    maps/README.md                       what is what, and how to look at it
    maps/maps.json                       a list: an entry a file
    maps/subj01/z_B_mid_r.nii.gz         (X, Y, Z, layers): feature, phase, statistic
    maps/subj01/z_v_r.nii.gz             (X, Y, Z)
    maps/subj01/fsaverage/lh.z_B_mid_r.mgz        (163842, 1, 1, layers)
    maps/subj01/fsaverage5/lh.z_B_r.func.gii      (10242,), significant vertices, for the figures

Four subjects with 13 layers: 500 files, 300 MB.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from xml.parsers.expat import ExpatError

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from nsdcap.config import PHASES
from nsdcap.encoded import CEILING_FLOOR, Model, Voxels, best_layer
from nsdcap.errors import DataError, first_line

ALPHA = 0.05  # of the false discovery rate
FSAVERAGE5 = 10242  # vertices a hemisphere: the first of fsaverage's
HEMIS = ("lh", "rh")
DEPTHS = (1, 2, 3)  # of NSD's cortical surfaces
SHARE = "share of variance"

# name on disk -> (map of a model, unit, what it is); p stays in the volume
STATISTICS: dict[str, tuple[str, str, str]] = {
    "r": ("r", "Pearson r", "prediction against the test pictures' mean responses"),
    "p": ("p_permutation", "probability", "of r under permuted pictures, one-sided"),
    "q": ("q", "false discovery rate", "Benjamini-Hochberg over the voxels of this map"),
    "r_over_ceiling": (
        "r_over_ceiling", "share of the highest r",
        f"r / sqrt(noise ceiling); NaN where that root is below {CEILING_FLOOR}",
    ),
    "gain": ("gain", SHARE, "R2(z_v and z_B) - R2(z_v), test pictures"),
    "gain_low": ("gain_low", SHARE, "2.5 % point of the gain, bootstrap over pictures"),
    "gain_high": ("gain_high", SHARE, "97.5 % point of the gain, bootstrap over pictures"),
    "gain_p": ("gain_p", "probability", "of a gain not above 0: paired t of squared errors"),
    "gain_q": ("gain_q", "false discovery rate", "Benjamini-Hochberg over the voxels of this map"),
}  # fmt: skip
ALONE: dict[str, tuple[str, str]] = {
    "ceiling": ("Pearson r", "the highest r there can be, sqrt(noise ceiling)"),
    "best_layer": ("BERT layer", f"of the highest gain, where best_layer_q is below {ALPHA}"),
    "best_layer_q": ("false discovery rate", "of a gain in any layer and phase (Simes)"),
    "best_layer_r": (
        "BERT layer",
        f"of the highest joint r, where best_layer_r_q is below {ALPHA}",
    ),
    "best_layer_r_q": ("false discovery rate", "of the joint r in any layer and phase (Simes)"),
}
VOLUME_ONLY = ("p", "gain_low", "gain_high", "gain_p")
SHOWN = ("z_v_r", "z_B_r", "gain", "best_layer", "best_layer_r")  # thresholded on fsaverage5


@dataclass(frozen=True)
class Map:
    """A file's entry in maps.json; ``values`` (n_voxels,), or (n_voxels, layers), are not written there.

    ``layers``: the BERT layer of each volume or frame, in order; empty for maps of none.
    ``n_voxels``: those with a value, in the first volume.
    """

    name: str
    feature: str
    phase: str
    statistic: str
    unit: str
    meaning: str
    layers: tuple[int, ...]
    n_voxels: int
    values: np.ndarray


@dataclass(frozen=True)
class Fixed:
    """The layer and phase whose z_B and joint maps figures show, chosen before any look."""

    layer: int
    phase: str = "mid"


def maps_of(models: list[Model], voxels: Voxels) -> list[Map]:
    """Every map of a subject, of all its models.

    Memory: as much as ``models`` hold again, 60 MB for 15,000 voxels and 79 models.
    """
    found = []
    for feature, phase in [
        ("z_v", None), ("z_v_cls", None), *((f, p) for f in ("z_B", "joint") for p in PHASES),
    ]:  # fmt: skip
        own = [model for model in models if (model.feature, model.phase) == (feature, phase)]
        layers = tuple(model.layer for model in own if model.layer is not None)
        stem = feature if phase is None else f"{feature}_{phase}"
        for statistic, (key, unit, meaning) in STATISTICS.items():
            if key not in own[0].maps:
                continue
            values = np.stack([model.maps[key] for model in own], axis=1)
            values = values if layers else values[:, 0]
            found.append(
                _map(
                    f"{stem}_{statistic}", feature, phase, statistic, unit, meaning, layers, values
                )
            )
    single = {"ceiling": voxels.ceiling}
    for name, by in (("best_layer", "gain"), ("best_layer_r", "r")):
        best, q = best_layer(models, by)
        with np.errstate(invalid="ignore"):
            single |= {name: np.where(q < ALPHA, best, np.nan), f"{name}_q": q}
    for name, values in single.items():
        feature = "" if name == "ceiling" else "joint"
        found.append(_map(name, feature, None, name, *ALONE[name], (), values))
    return found


def _map(
    name: str, feature: str, phase: str | None, statistic: str, unit: str, meaning: str,
    layers: tuple[int, ...], values: np.ndarray,
) -> Map:  # fmt: skip
    known = int(np.isfinite(values.reshape(len(values), -1)[:, 0]).sum())
    values = values.astype(np.float32)
    return Map(name, feature, phase or "", statistic, unit, meaning, layers, known, values)


def write_volumes(folder: Path, subject: int, maps: list[Map], voxels: Voxels) -> list[dict]:
    """Write each map as NIfTI in the subject's volume, one at a time; returns entries of the listing."""
    (folder / _place(subject)).mkdir(parents=True, exist_ok=True)
    entries = []
    for one in maps:
        image = nib.Nifti1Image(voxels.volume(one.values), voxels.affine)
        image.header.set_xyzt_units("mm")
        image.header["descrip"] = f"{one.name}: {one.unit}"[:79].encode()
        name = f"{_place(subject)}/{one.name}.nii.gz"
        nib.save(image, folder / name)
        entries.append(_entry(name, subject, "subject's volume", "", one))
    return entries


def write_surfaces(
    folder: Path,
    subject: int,
    maps: list[Map],
    voxels: Voxels,
    surfaces: Any,
    fixed: Fixed,
    log: Callable[[str], object],
) -> list[dict]:
    """Write maps on fsaverage (MGZ) and significant ones on fsaverage5 (GIfTI, for the figures).

    ``surfaces``: an ``nsd.NSD``. Returns entries of the listing, none where a transform is missing or
    broken: what is wrong goes to ``log``, and nothing is written.
    """
    try:
        rows = {hemi: vertex_voxels(surfaces, subject, hemi, voxels) for hemi in HEMIS}
    except DataError as error:
        log(f"aggregate subj{subject:02d}: not on the cortex, {error}")
        return []
    for name in ("fsaverage", "fsaverage5"):
        (folder / _place(subject) / name).mkdir(parents=True, exist_ok=True)
    entries = []
    for one in maps:
        if one.statistic in VOLUME_ONLY:
            continue
        for hemi in HEMIS:
            values = at_vertices(one.values, rows[hemi], _reduction(one.statistic))
            # MGH knows no fourth axis of length 1
            frames = values.reshape(len(values), 1, 1, *[n for n in values.shape[1:] if n > 1])
            name = f"{_place(subject)}/fsaverage/{hemi}.{one.name}.mgz"
            nib.save(nib.MGHImage(frames, np.eye(4)), folder / name)
            entries.append(_entry(name, subject, "fsaverage", hemi, one))
    by_name = {one.name: one for one in maps}
    for shown in SHOWN:
        one, column = _resolve(by_name, shown, fixed)
        for hemi in HEMIS:
            few = rows[hemi][:, :FSAVERAGE5]
            values = at_vertices(_column(one, column), few, _reduction(one.statistic))
            if not shown.startswith("best_layer"):  # they are NaN elsewhere already
                q, column = _resolve(by_name, _q_of(shown), fixed)
                with np.errstate(invalid="ignore"):
                    hit = at_vertices(_column(q, column), few, "largest") < ALPHA
                values = np.where(hit, values, np.nan)
            name = f"{_place(subject)}/fsaverage5/{hemi}.{shown}.func.gii"
            array = nib.gifti.GiftiDataArray(
                values.astype(np.float32), intent="NIFTI_INTENT_ESTIMATE", meta={"Name": shown}
            )
            nib.save(nib.gifti.GiftiImage(darrays=[array]), folder / name)
            entry = _entry(name, subject, "fsaverage5", hemi, one)
            layers = () if column is None else (fixed.layer,)
            entries.append(entry | {"layers": layers, "only_significant": True})
    return entries


def vertex_voxels(surfaces: Any, subject: int, hemi: str, voxels: Voxels) -> np.ndarray:
    """The voxel (its row in ``voxels``) at each depth of each fsaverage vertex, (depths, V) int; -1: none.

    By NSD's own transforms: the nearest voxel at each depth of the subject's surface, then the
    subject's nearest vertex. Raises DataError where a transform is missing or broken.
    """
    numbers = np.full(voxels.shape, np.nan)
    numbers[tuple(voxels.xyz.T)] = np.arange(len(voxels.xyz))
    found = []
    for depth in DEPTHS:
        own = surfaces.to_surface(subject, hemi, numbers, "nearest", (depth,))
        found.append(surfaces.to_fsaverage(subject, hemi, own))
    return np.nan_to_num(np.stack(found), nan=-1).astype(np.int64)


def at_vertices(values: np.ndarray, rows: np.ndarray, reduction: str) -> np.ndarray:
    """Voxels' values (n_voxels,) or (n_voxels, n) at vertices, float32 (V,) or (V, n).

    ``rows`` (depths, V) as ``vertex_voxels`` gives them; of the depths that have a value the "mean", the
    "largest" (of q: below 0.05 only where every depth's voxel is), or the "median", of two the lower,
    which is some voxel's own value. NaN where no depth has one.
    """
    many = values.reshape(len(values), -1)
    found = np.full((rows.shape[1], many.shape[1]), np.nan, dtype=np.float32)
    somewhere = (rows >= 0).any(0)
    rows = rows[:, somewhere]
    for k, column in enumerate(many.T):
        deep = np.sort(np.where(rows >= 0, column[rows], np.nan), axis=0)  # NaN come last
        count = np.isfinite(deep).sum(0)
        if reduction == "mean":
            with np.errstate(invalid="ignore"):
                found[somewhere, k] = np.nansum(deep, axis=0, dtype=np.float64) / np.where(
                    count, count, np.nan
                )
        elif reduction in ("largest", "median"):
            at = count - 1 if reduction == "largest" else (count - 1) // 2
            found[somewhere, k] = np.take_along_axis(deep, np.maximum(at, 0)[None], axis=0)[0]
        else:
            raise ValueError(f"reduction {reduction!r}: expected mean, largest or median")
    return found.reshape(len(found), *values.shape[1:])


def read_volume(target: Path, about: dict[str, Any], subject: int, name: str) -> np.ndarray:
    """A map (X, Y, Z) float64 by the name that figures use; NaN outside.

    ``name``: z_v_r, z_v_q, z_B_r, z_B_q, gain, gain_q (the last four at the layer and phase of
    run.json's ``z_B_map``), best_layer, best_layer_r (the same by r), either with _q, ceiling.
    ``about``: run.json. Raises DataError where the file is missing or broken.
    """
    fixed = Fixed(about["z_B_map"]["layer"], about["z_B_map"]["phase"])
    stem, of_layer = _stem(name, fixed)
    path = target / "maps" / _place(subject) / f"{stem}.nii.gz"
    at = (..., about["layers"].index(fixed.layer)) if of_layer else ...
    return _read(path, lambda image: np.asarray(image.dataobj[at], dtype=np.float64))


def read_surface(target: Path, subject: int, name: str, hemi: str) -> np.ndarray:
    """A map's significant values on fsaverage5, (10242,) float32, NaN elsewhere; ``name`` one of SHOWN.

    Raises DataError where the file is missing or broken.
    """
    path = target / "maps" / _place(subject) / "fsaverage5" / f"{hemi}.{name}.func.gii"
    return _read(path, lambda image: image.darrays[0].data)


def _read(path: Path, take: Callable[[Any], np.ndarray]) -> np.ndarray:
    """What ``take`` gets of an image file."""
    again = "run the aggregate stage again, with --force"
    if not path.is_file():
        raise DataError(f"{path}: missing; {again}")
    try:
        return take(nib.load(path))
    except (
        OSError, EOFError, ValueError, IndexError, zlib.error, ExpatError, ImageFileError, HeaderDataError
    ) as error:  # fmt: skip
        raise DataError(f"{path}: broken ({first_line(error)}); {again}") from error


def write_listing(folder: Path, entries: list[dict]) -> None:
    """maps.json and README.md, once for all subjects."""
    (folder / "maps.json").write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(README, encoding="utf-8")


def _entry(name: str, subject: int, space: str, hemi: str, one: Map) -> dict:
    about = {
        field.name: getattr(one, field.name) for field in fields(one) if field.name != "values"
    }
    return {"file": name, "subject": subject, "space": space, "hemi": hemi} | about


def _place(subject: int) -> str:
    return f"subj{subject:02d}"


def _reduction(statistic: str) -> str:
    if statistic.endswith("q"):
        return "largest"
    return "median" if statistic.startswith("best_layer") else "mean"  # no mean of layers


def _q_of(shown: str) -> str:
    return f"{shown.removesuffix('_r')}_q"


def _stem(name: str, fixed: Fixed) -> tuple[str, bool]:
    """The name on disk of a map that figures ask for, and whether it has a volume for each layer."""
    feature, _, statistic = name.rpartition("_")
    if feature == "z_B":
        return f"z_B_{fixed.phase}_{statistic}", True
    if name in ("gain", "gain_q"):
        return f"joint_{fixed.phase}_{name}", True
    return name, False


def _resolve(by_name: dict[str, Map], name: str, fixed: Fixed) -> tuple[Map, int | None]:
    stem, of_layer = _stem(name, fixed)
    one = by_name[stem]
    return one, one.layers.index(fixed.layer) if of_layer else None


def _column(one: Map, column: int | None) -> np.ndarray:
    return one.values if column is None else one.values[:, column]


README = f"""# Maps of encoding results

Every file is listed in `maps.json`: subject, space, hemisphere, feature, phase, statistic, unit, the BERT
layer of each volume or frame (0: embeddings), how many voxels have a value. NaN: no voxel of the ROI, or one
that never varied.

- `subj01/z_v_r.nii.gz`: float32 in the subject's own volume. Features: `z_v`, `z_v_cls` (its CLS token alone),
  `z_B_early`, `z_B_mid`, `z_B_late`, and `joint_early`, ... (z_v and z_B). Those of z_B and joint have four
  dimensions, a volume for each BERT layer: a time course in a viewer is r by layer.
- `subj01/fsaverage/lh.z_v_r.mgz`: the same on fsaverage, a frame a layer, by NSD's transforms (nearest voxel at
  three depths). r, gain and ceiling: mean over depths; q: the largest, so that below {ALPHA} every depth is
  significant; best layer: the median. (The miniature's fsaverage is fsaverage5: 10,242 vertices.)
- `subj01/fsaverage5/`: what the figures draw, significant vertices only.

| statistic | is |
|---|---|
""" + "".join(
    f"| `{name}` | {row[-1]} ({row[-2]}) |\n" for name, row in {**STATISTICS, **ALONE}.items()
) + """
```
freeview -v T1.nii.gz subj01/z_B_mid_r.nii.gz:colormap=heat        # step through the frames: BERT layers
freeview -f $SUBJECTS_DIR/fsaverage/surf/lh.inflated:overlay=subj01/fsaverage/lh.z_v_r.mgz
```

```python
r = nibabel.load("subj01/z_B_mid_r.nii.gz").get_fdata()[..., 12]  # the 13th of `layers` in maps.json
cortex.quickshow(cortex.Vertex(np.r_[lh, rh], "fsaverage"))  # lh, rh: .get_fdata().squeeze() of the MGZ files
```
"""  # fmt: skip
