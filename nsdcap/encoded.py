"""A subject's encoding models as its cells hold them, and what follows voxel by voxel: q, r over ceiling,
best layer.

A layer is a hidden state of BERT: 0 the embeddings, then one a layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import false_discovery_control

from nsdcap.config import PHASES, STREAMS
from nsdcap.errors import DataError
from nsdcap.paths import Cell, artefact
from nsdcap.stats import fdr
from nsdcap.tables import open_hdf5

ROIS = (*STREAMS, "all")
MAPS = ("r", "p_permutation", "p_gaussian", "alpha")
JOINT_MAPS = (*MAPS, "ratio", "gain", "gain_low", "gain_high", "gain_p")
P_OF = {"gain": "gain_p", "r": "p_permutation"}
ERRORS = ("mean_r_error", "mean_gain_error")
# below this highest r nothing is divided by it: r's own error, 0.03 for 982 pictures, grows fivefold there
CEILING_FLOOR = 0.2


@dataclass(frozen=True)
class Voxels:
    """A subject's voxels in the order of all its maps."""

    xyz: np.ndarray  # (n_voxels, 3) int
    affine: np.ndarray  # (4, 4)
    stream: np.ndarray  # (n_voxels,) 1 to 7
    ceiling: np.ndarray  # (n_voxels,) highest r there can be
    shape: tuple[int, ...]  # (X, Y, Z)
    n_trials: int

    def volume(self, values: np.ndarray) -> np.ndarray:
        """Values (n_voxels,) or (n_voxels, n) as (X, Y, Z) or (X, Y, Z, n) float32, NaN elsewhere."""
        volume = np.full(self.shape + values.shape[1:], np.nan, dtype=np.float32)
        volume[tuple(self.xyz.T)] = values
        return volume


@dataclass(frozen=True)
class Model:
    """One encoding model's maps by name, (n_voxels,) each; ``layer`` and ``phase`` None for z_v.

    Maps: what the cell holds (``MAPS`` or ``JOINT_MAPS``), and of these ``q`` of p_permutation,
    ``q_gaussian``, ``r_over_ceiling``; of joint models also ``gain_q``. ``errors``:
    ``mean_r_error`` and of joint models ``mean_gain_error``, (ROIS,) standard errors over pictures.
    """

    feature: str
    layer: int | None
    phase: str | None
    maps: dict[str, np.ndarray]
    errors: dict[str, np.ndarray]
    edge_share: float


def inside(stream: np.ndarray, roi: str) -> np.ndarray:
    """Which voxels (n_voxels,) bool lie in a stream, or in any ("all")."""
    if roi == "all":
        return np.isin(stream, range(1, 8))
    return stream == STREAMS.index(roi) + 1


def read_voxels(out: Path, subject: int) -> Voxels:
    """Where a subject's voxels are and what they can reach."""
    with open_hdf5(artefact(out, Cell("prepare", subject)), ()) as file:
        ceiling = np.sqrt(np.clip(file["noise_ceiling"][:], 0, 1))
        shape = tuple(int(side) for side in file.attrs["shape"])
        n_trials = len(file["nsd_id_train"])
        return Voxels(
            file["xyz"][:], file["affine"][:], file["stream"][:], ceiling, shape, n_trials
        )


def read_models(out: Path, subject: int, layers: list[int], voxels: Voxels) -> Iterator[Model]:
    """Every encoding model of a subject, one at a time.

    Raises
    ------
    DataError
        A cell's file is broken, lacks a model or a map, or has other voxels.
    """
    for layer in (None, *layers):
        names = ["z_v", "z_v_cls"]
        if layer is not None:
            names = [f"{feature}_{phase}" for feature in ("z_B", "joint") for phase in PHASES]
        path = artefact(out, Cell("encode", subject, layer))
        with open_hdf5(path, names) as file:
            for name in names:
                feature, phase = name, None
                if layer is not None:
                    feature, phase = name.rsplit("_", 1)
                wanted = JOINT_MAPS if feature == "joint" else MAPS
                maps = {key: _map(file[name], key, len(voxels.stream), path) for key in wanted}
                maps |= derived(maps, voxels.ceiling)
                errors = {
                    key: _map(file[name], key, len(ROIS), path)
                    for key in ERRORS
                    if feature == "joint" or key == "mean_r_error"
                }
                share = float(file[name].attrs["edge_share"])
                yield Model(feature, layer, phase, maps, errors, share)


def derived(maps: dict[str, np.ndarray], ceiling: np.ndarray) -> dict[str, np.ndarray]:
    """What follows from a model's maps (n_voxels,) and the voxels' highest r, float32 each.

    q: Benjamini-Hochberg over the voxels of the map; those without p, which never varied, are left
    out first and stay NaN. r over ceiling is NaN where the highest r is below ``CEILING_FLOOR``.
    """
    found = {
        "q": fdr(maps["p_permutation"])[1],
        "q_gaussian": fdr(maps["p_gaussian"])[1],
        "r_over_ceiling": maps["r"] / np.where(ceiling >= CEILING_FLOOR, ceiling, np.nan),
    }
    if "gain" in maps:
        found["gain_q"] = fdr(maps["gain_p"])[1]
    return {name: values.astype(np.float32) for name, values in found.items()}


def best_layer(models: list[Model], by: str = "gain") -> tuple[np.ndarray, np.ndarray]:
    """The layer of each voxel's best joint model, and q of there being any, (n_voxels,) float64 each.

    ``by`` "gain": the highest gain over z_v, and whether any model adds; "r": the highest r, and whether
    any model predicts at all, as the paper has it. NaN where neither is known. The best of many
    flatters itself, so q is not of that one but of all of the voxel's models together: Simes' p, of "none
    does", which costs little where models that are alike agree; then Benjamini-Hochberg over the voxels.
    """
    joint = [model for model in models if model.feature == "joint"]
    values = np.stack([model.maps[by] for model in joint])  # (models, n_voxels)
    p = np.stack([model.maps[P_OF[by]] for model in joint]).astype(np.float64)
    known = np.isfinite(values) & np.isfinite(p)
    at = np.where(known, values, -np.inf).argmax(0)
    layer = np.array([float(model.layer or 0) for model in joint])[at]
    # Benjamini-Hochberg's smallest q among p of one hypothesis is Simes' p
    simes = false_discovery_control(np.where(known, p, 1.0), axis=0).min(0)
    anywhere = known.any(0)
    return np.where(anywhere, layer, np.nan), fdr(np.where(anywhere, simes, np.nan))[1]


def _map(group: Any, key: str, length: int, path: Path) -> np.ndarray:
    if key not in group or group[key].shape != (length,):
        found = group[key].shape if key in group else "nothing"
        kind = "the streams and all" if key in ERRORS else "the voxels of the prepare stage"
        raise DataError(
            f"{path}: {group.name}/{key}: found {found}, expected ({length},), {kind}; run the encode "
            "stage again, with --force"
        )
    return group[key][:]
